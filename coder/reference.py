"""The format of a compressed file as a program: decodes the mode `static` with NumPy alone, slowly and in plain sight.

    python -m coder.reference FILE.mgz -o OUT [--model MODEL]

It shares no code with the compressor: the container, the range decoder and the packed model are read here once more, from
their description in docs/FORMAT.md, `range_coder.py` and `packed.py` (by `reference_models.py`), and the GPT is
`minigpt/reference.py`.  It runs where Numba cannot be installed, and it proves that the format is fully described.  A byte
costs a second or two with the bundled model, which itself takes half a minute or more to unpack: this is for some hundred
bytes, not for some hundred thousand.
"""

import argparse
import hashlib
import io
import os
import struct
import sys
import zlib
from pathlib import Path

import numpy as np

from minigpt import reference
from minigpt.exact import exp, f32, log, maximum, row_max
from minigpt.files import write_atomically

from . import reference_models
from .reference_models import name_of

BUNDLED = Path(__file__).with_name("shakespeare.gpt")
START_SYMBOL = 10                       # every stream is said to follow a line break


class FormatError(Exception):
    """The file cannot be decoded."""


def require(condition, otherwise):
    if not condition:
        raise FormatError(otherwise)


# --- the container ----------------------------------------------------------------------------------------------------------

def take(stream, size):
    part = stream.read(size)
    require(len(part) == size, "the file is cut off")
    return part


def number(stream):
    byte = take(stream, 1)[0]                                       # 7 bits a byte, the lowest first
    return byte & 127 | (number(stream) << 7 if byte > 127 else 0)


def decode_file(file, load_model, progress=lambda done: None):
    """The original (bytes) of a compressed file (bytes).  load_model() gives the model, if the file needs one."""
    stream, data, begun, more, model = io.BytesIO(file), b"", 0, False, None
    while (start := stream.tell()) < len(file) or not file:
        require(stream.read(4) == b"\x89GZ\6", f"this is not a compressed file of format 6, or not from byte {start} on")
        (kind,), size = take(stream, 1), number(stream)
        if kind >= 64:                                              # an index, or what a reader may skip, such as a model
            body = take(stream, size)
            require(kind > 127 or hashlib.sha256(data[begun:]).digest() == body[-44:-12], "the index is another one's")
            begun, more = (begun, more) if kind > 127 else (len(data), False)
            continue
        end, (version, flags), length, check = stream.tell() + size, take(stream, 2), number(stream), take(stream, 8)
        k, first, follow = flags & 31, len(data), flags > 127
        name, _ = take(stream, flags >> 2 & 8), take(stream, flags >> 3 & 8)            # of the model, flag 32; of a primer, 64
        table = [(number(stream), take(stream, 4)) for _ in range(-(-length >> k))]
        crc = zlib.crc32(file[start:stream.tell()])
        require(crc == int.from_bytes(take(stream, 4), "little"), "the header is damaged")
        require(kind <= 1 and version == 1, f"the file is of another mode than stored (0) or static (1), {kind}, or of another "
                f"version of it than 1, {version}: use `python -m coder decompress`")
        for i, (taken, crc) in enumerate(table):
            payload, size = take(stream, taken >> 1), min(1 << k, length - (i << k))
            require(zlib.crc32(payload) == int.from_bytes(crc, "little"), f"block {i + 1} is damaged")
            if not taken & 1:                                       # it is not stored
                found = name_of(model := model or load_model())
                require(found == name, f"the file needs the model {name.hex()}, not {found.hex()}: see --model")
                payload = decode_block(payload, size, model, lambda done: progress((i << k) + done))
            data += payload
        require(hashlib.sha256(data[first:]).digest()[:8] == check, "what was decoded is not the original: another SHA-256")
        require(stream.tell() == end and follow >= more, "a segment is not as long as it says, or an index is missing")
        begun, more = begun if follow else len(data), follow
    require(not more, "the file is cut off: its index is missing")
    return data


# --- a block: S streams, in windows that move on by half ----------------------------------------------------------------------

def decode_block(code, size, model, progress):
    """The block of `size` bytes, whose S streams the range coder took in turn, a byte of each at a time."""
    S = max(1, min(size // 1024, 64))
    T, longest, longer = model[0][0].block_size, -(-size // S), size % S or S       # the first `longer` have `longest` bytes
    inputs, decoder = np.full((S, longest + 1), START_SYMBOL), RangeDecoder(code)
    start, first = 0, 0
    while True:                                                     # a window: inputs[:, start:start + T], new from `first` on
        stop, past = min(start + T, longest), [{} for _ in model]
        for t in range(start + first, stop):
            begin = start if t == start + first else t              # the first time all that is known of the window
            for s, row in enumerate(frequencies(model, inputs[:, begin:t + 1], past)[:S if t < longest - 1 else longer]):
                inputs[s, t + 1] = decoder.decode(row.tolist())
            progress(t * S)
        if stop == longest:
            break
        start, first = stop - T // 2, T // 2
    return b"".join(bytes(stream[1:longest + (s < longer)].tolist()) for s, stream in enumerate(inputs))


def frequencies(model, ids, past):
    """Integers (S, 256) that are to each other as the probabilities of what follows ids (S, t): 1 + floor(2^22 * p / max p)."""
    logits = [reference.forward(*own, ids, past=p)[0].reshape(*ids.shape, -1)[:, -1] for own, p in zip(model, past)]
    if len(model) > 1:                                              # several models: the mean of their probabilities
        total = f32(0)
        for own in logits:
            e, _, sums = reference.softmax_parts(own)
            total = total + e / sums
        logits = [log(maximum(total, f32(2.0 ** -100)))]
    with np.errstate(invalid="ignore"):
        scaled = exp(logits[0] - row_max(logits[0])) * f32(2 ** 22)
    return 1 + np.where(scaled >= 0, scaled, 0).astype(np.int64)


class RangeDecoder:
    """The interval [low, low + range) of 64 bits; offset is how far the number that the code spells lies above low."""
    def __init__(self, code):
        self.code, self.position, self.range = code, 8, 2 ** 64 - 1
        self.offset = int.from_bytes(code[:8].ljust(8, b"\0"), "big")

    def decode(self, frequencies, total=None):
        """The symbol whose part of the range, as long as its frequency, holds the number; the range narrows to that part."""
        total = total or sum(frequencies)
        step, start, symbol = self.range // total, 0, 0
        target = min(self.offset // step, total - 1)
        while start + frequencies[symbol] <= target:
            start, symbol = start + frequencies[symbol], symbol + 1
        self.offset, self.range = self.offset - step * start, step * frequencies[symbol]
        while self.range < 2 ** 56:
            byte = self.code[self.position] if self.position < len(self.code) else 0            # zeros behind the end
            self.range, self.offset, self.position = self.range << 8, (self.offset << 8 | byte) % 2 ** 64, self.position + 1
        return symbol


def read_model(path):
    """The model of a checkpoint or of a packed model: a list of (config, name -> weights), one for each GPT in it."""
    try:
        return reference_models.read(Path(path).read_bytes(), RangeDecoder)
    except (KeyError, TypeError, ValueError, IndexError, struct.error) as error:
        raise FormatError(f"{path} is not a whole model: {error}") from None


def main():
    parser = argparse.ArgumentParser(prog="python -m coder.reference", description="Decode a file of the mode static, slowly.")
    parser.add_argument("file", metavar="FILE")
    parser.add_argument("-o", "--output", required=True, metavar="OUT")
    parser.add_argument("--model", default=BUNDLED, metavar="MODEL", help="default: the bundled model")
    options = parser.parse_args()
    try:
        require(not os.path.exists(options.output), f"{options.output} exists already")
        data = decode_file(Path(options.file).read_bytes(), lambda: read_model(options.model),
                           lambda done: print(f"\r{done:,} bytes", end="", file=sys.stderr) if sys.stderr.isatty() else None)
        write_atomically(options.output, data)
    except (FormatError, OSError) as error:
        sys.exit(f"coder.reference: {error}")
    except KeyboardInterrupt:
        sys.exit("coder.reference: interrupted; nothing was written")


if __name__ == "__main__":
    main()

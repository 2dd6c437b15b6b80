"""The format of a compressed file as a program: decodes the mode `static` with NumPy alone, slowly and in plain sight.

    python -m coder.reference FILE.mgz -o OUT [--model MODEL]

It shares no code with the compressor: the container, the range decoder and the packed model are read here once more, from
their description in `container.py`, `range_coder.py` and `packed.py`, and the GPT is `minigpt/reference.py`.  It runs where
Numba cannot be installed, and it proves that the format is fully described.  A byte costs a second or two with the bundled
model, which itself takes half a minute or more to unpack: this is for some hundred bytes, not for some hundred thousand.
"""

import argparse
import hashlib
import json
import os
import struct
import sys
import zlib
from pathlib import Path

import numpy as np

from minigpt import reference
from minigpt.config import GPTConfig
from minigpt.exact import exp, f32, log, maximum, row_max
from minigpt.files import write_atomically

BUNDLED = Path(__file__).with_name("shakespeare.gpt")
START_SYMBOL = 10                       # every stream is said to follow a line break


class FormatError(Exception):
    """The file cannot be decoded."""


def require(condition, otherwise):
    if not condition:
        raise FormatError(otherwise)


# --- the container ----------------------------------------------------------------------------------------------------------

def decode_file(file, load_model, progress=lambda done: None):
    """The original (bytes) of a compressed file (bytes).  load_model() gives the model, if the file needs one."""
    require(len(file) >= 64 and file[:4] == b"\x89GZ\n", "this is not a compressed file of this format")
    version, mode, flags, block_bits, length, fingerprint, sha256 = struct.unpack("<BBBBQ16s32s", file[4:64])
    require(version == 5, f"the file has format version {version}, but this program decodes version 5")
    require(mode in (0, 1, 2, 3, 4, 6, 7) and flags <= 1 and 10 <= block_bits <= 24, "the header is not one of version 5")
    require(mode <= 1, "the file is of another mode than stored (0) or static (1): decode it with `python -m coder decompress`")
    table, count = 64 + 16 * flags, -(-length >> block_bits)                    # flag 1: 16 bytes that name a primer
    end = table + 8 * count
    require(len(file) >= end + 4, "the file is cut off")
    require(zlib.crc32(file[:end]) == int.from_bytes(file[end:end + 4], "little"), "the header is damaged")
    place, parts, model = end + 4, [], None
    for i in range(count):
        taken, crc = struct.unpack_from("<II", file, table + 8 * i)
        stored, taken, size = taken >> 31, taken & 0x7FFFFFFF, min(1 << block_bits, length - (i << block_bits))
        payload, place = file[place:place + taken], place + taken
        require(len(payload) == taken and zlib.crc32(payload) == crc, f"block {i + 1} is damaged or cut off")
        if not stored:
            if model is None:
                found = name_of(model := load_model())
                require(found == fingerprint, f"the file needs the model {fingerprint.hex()}, not {found.hex()}: see --model")
            payload = decode_block(payload, size, model, lambda done: progress((i << block_bits) + done))
        parts.append(payload)
    data = b"".join(parts)
    require(hashlib.sha256(data).digest() == sha256, "what was decoded is not the original: its SHA-256 is another one")
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
    logits = [reference.forward(config, w, ids, past=p)[0].reshape(*ids.shape, -1)[:, -1] for (config, w), p in zip(model, past)]
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
        self.code, self.position, self.range, self.offset = code, 8, 2 ** 64 - 1, int.from_bytes(code[:8].ljust(8, b"\0"), "big")

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


# --- a model: a list of (config, name -> weights), one for each GPT in it -------------------------------------------------------

def read_model(path):
    """The model of a checkpoint (a safetensors file) or of a packed model."""
    file = Path(path).read_bytes()
    try:
        return unpack(file) if file[:4] == b"\x89MGP" else read_checkpoint(file)
    except (KeyError, TypeError, ValueError, IndexError, struct.error) as error:
        raise FormatError(f"{path} is not a whole model: {error}") from None


def read_checkpoint(file):
    size = int.from_bytes(file[:8], "little")
    header = json.loads(file[8:8 + size])
    content = json.loads(header["__metadata__"]["minigpt"].partition(" ")[2])
    w = {name.removeprefix("weights."): np.frombuffer(file, "<f4", (b - a) // 4, 8 + size + a).reshape(entry["shape"])
         for name, entry in header.items() if name.startswith("weights.") for a, b in [entry["data_offsets"]]}
    return [(GPTConfig(**content["config"]), w)]


def unpack(file):
    """A packed model: a description, then the arrays that are kept whole, then one range code of all others: integers, times
    a step."""
    require(hashlib.sha256(file[36:]).digest() == file[4:36], "the packed model is damaged or cut off")
    size = int.from_bytes(file[36:40], "little")
    described, place = json.loads(file[40:40 + size]), 40 + size
    model = [(GPTConfig(**config), {}) for config in described["configs"]]
    places = {(f"{i}." if len(model) > 1 else "") + name: (w, name, shape)
              for i, (config, w) in enumerate(model) for name, shape, _, _ in reference.parameters(config)}
    arrays = [(*places[name], step, largest) for name, step, largest in described["arrays"]]
    for w, name, shape, step, _ in arrays:
        if not step:
            w[name] = np.frombuffer(file, "<f4", int(np.prod(shape)), place).reshape(shape)
            place += w[name].nbytes
    decoder = RangeDecoder(file[place:])
    for w, name, shape, step, largest in arrays:
        if step:
            counts, total, values = [1] * (2 * largest + 1), 2 * largest + 1, np.empty(int(np.prod(shape)), f32)
            for i in range(values.size):
                symbol = decoder.decode(counts, total)
                counts[symbol] += 24
                total += 24
                values[i] = symbol - largest
            w[name] = values.reshape(shape) * f32(step)
    return model


def name_of(model):
    """The 16 bytes by which a file names its model: its weights, and what of the config decides how they are used."""
    arrays = {(f"{i}." if len(model) > 1 else "") + name: array for i, (_, w) in enumerate(model) for name, array in w.items()}
    weights = hashlib.sha256()
    for name in sorted(arrays):
        weights.update(f"{name} float32 {arrays[name].shape}\n".encode() + arrays[name].astype("<f4").tobytes())
    configs = [{name: value for name, value in config.to_json().items() if name != "dropout"} for config, _ in model]
    text = " ".join(json.dumps(config, sort_keys=True) for config in configs)
    return hashlib.sha256(f"{weights.hexdigest()} {text}".encode()).digest()[:16]


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

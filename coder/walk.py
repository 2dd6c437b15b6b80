"""One byte of a text on its way through the network and the range coder into the compressed file, and back, in numbers.

    python -m coder walk TEXT [--byte N]

Everything printed was computed by the code that compresses: a float32 is printed with the digits that tell it from every other
float32, an integer whole.  docs/WALKTHROUGH.md explains the output line by line.
"""

import hashlib
from collections.abc import Iterator
from fractions import Fraction

import numpy as np

from minigpt.ensemble import SMALLEST_SUM, Ensemble
from minigpt.exact import f32, log, maximum
from minigpt.look import forward, label
from minigpt.model import GPT
from minigpt.reference import softmax_parts
from minigpt.tokenizer import ByteTokenizer

from .codec import START_SYMBOL
from .compressor import compress, decompress
from .container import CoderError, read
from .frequencies import BITS, to_frequencies
from .intervals import bits
from .predictor import static
from .range_coder import (LENGTH, LOW, OFFSET, POSITION, RANGE, STEP, decode_symbol, decode_target, encode_symbol, find_symbol,
                          finish_encoding, start_decoding, start_encoding)
from .tokens import TokenModel

CHANNELS, LARGEST, CANDIDATES = 3, 3, 5     # shown of the residual stream, of an attention row, and of the prediction


def walk(data: bytes, model: GPT | Ensemble | TokenModel, number: int | None = None) -> Iterator[str]:
    """The lines of the report on byte `number` of data, counted from 1 (default: the last one).

    CoderError where the model predicts no bytes, data does not fit into one window, or there is no such byte.
    """
    if isinstance(model, TokenModel) or model.config.vocab_size != 256:
        raise CoderError("walk follows a byte, and needs a model of bytes: a checkpoint or a packed model")
    most = min(model.config.block_size, 1024)
    if not 1 <= len(data) <= most:
        raise CoderError(f"the text has {len(data):,} bytes, but walk shows one window of this model: 1 to {most:,}")
    if number is not None and not 1 <= number <= len(data):
        raise CoderError(f"--byte must be from 1 to {len(data)}, but is {number}")
    n = (number or len(data)) - 1
    inputs = np.array([START_SYMBOL, *data[:-1]], np.int64)         # row t is what precedes byte t
    yield from _file(data, n)
    yield from _network(model, inputs[:n + 1], data[n])
    frequencies = to_frequencies(model.forward(inputs[None])[0])    # (T, 256)
    yield from _integers(frequencies[n], data[n])
    code, taken, done = yield from _encoder(frequencies, data, n)
    file = compress(data, "static", model)
    yield from _container(file, code, taken, done)
    yield from _decoder(static(model), code, n)
    back = decompress(file, lambda fingerprint: model)
    yield (f"\nThe whole file decompresses to {len(back)} bytes, whose SHA-256 begins {hashlib.sha256(back).hexdigest()[:16]}: "
           f"{'those of the text' if back == data else 'NOT THE TEXT'}.")


def _file(data, n):
    yield f"1. The text: {len(data)} bytes"
    yield f"before            {''.join(_shown(byte)[1:-1] for byte in data[:n]) or '(nothing)'}"
    yield f"byte {n + 1:<12} {_shown(data[n])} = {data[n]} = {data[n]:02X} in hexadecimal = {data[n]:08b} in binary"


def _network(model, ids, byte):
    member, n = model.members[0], len(ids) - 1
    C, H = member.config.n_embd, member.config.n_head
    yield f"\n2. The network{f': the first of {len(model.members)} GPTs' if len(model.members) > 1 else ''}"
    yield f"ids               {'... ' * (n > 19)}{' '.join(map(str, ids[-20:]))}: row {n + 1}, the last, predicts byte {n + 1}"
    seen = forward(member, np.append(ids, byte), list(range(H)), member.config.n_layer)
    yield (f"residual stream of row {n + 1}: {CHANNELS} of its {C} channels, the root mean square of all, and that of what was "
           "added")
    parts = "attention", "feed-forward"
    names = ["embedding"] + [f"block {i + 1}, {part}" for i in range(member.config.n_layer) for part in parts]
    for name, stream, rms, added in zip(names, seen["stream"], seen["rms"], [None, *seen["added"]]):
        channels = " ".join(f"{str(f32(x)):>13}" for x in stream[n][:CHANNELS])
        yield f"{name:22} {channels}   {f32(rms[n])!s:>11} {'' if added is None else str(f32(added[n])):>11}".rstrip()
    yield f"attention of row {n + 1}: of each block the head with the largest weight, and its {LARGEST} largest"
    for i, layer in enumerate(seen["layers"]):
        rows = [layer["attention"][h][n] for h in range(H)]
        h = int(np.argmax([max(row) for row in rows]))
        order = sorted(range(n + 1), key=lambda t: -rows[h][t])[:LARGEST]
        yield f"block {i + 1}, head {h + 1}   " + "  ".join(f"{f32(rows[h][t])!s} {_place(ids, t)}" for t in order)
    yield f"logit lens: the likeliest byte if the network ended here, and the nats that {_shown(byte)} would cost"
    for i, depth in enumerate(seen["lens"]):
        yield f"{f'block {i}' if i else 'embedding':17} {_shown(depth['guess'][n])}   {f32(depth['nats'][n])!s}"
    total = f32(0)
    for i, each in enumerate(model.members):
        logits = each.forward(ids[None])[0, n:]
        e, peak, whole = softmax_parts(logits)
        p = (e / whole)[0]
        total = total + p
        yield (f"GPT {i + 1}             logit {logits[0, byte]!s}, the largest {peak[0, 0]!s}; "
               f"p = e^(logit - largest) / {whole[0, 0]!s} = {p[byte]!s}")
    if len(model.members) > 1:
        total = log(maximum(total, SMALLEST_SUM))
        yield f"together          log of the sum of the p, for all 256 bytes: {total[byte]!s}; the largest {total.max()!s}"


def _integers(frequencies, byte):
    total, order = sum(frequencies.tolist()), np.argsort(-frequencies.astype(np.int64), kind="stable")[:CANDIDATES].tolist()
    f, start = int(frequencies[byte]), sum(frequencies[:byte].tolist())
    yield f"\n3. Integers: f = floor(e^(logit - largest) * 2^{BITS}) + 1"
    yield "the likeliest     " + "  ".join(f"{_shown(i)} {frequencies[i]}" for i in order)
    yield f"byte {byte:<12} f = {f}, start = {start} (the sum over the bytes below {byte}), total = {total}"
    yield f"cost              -log2(f / total) = {bits(Fraction(f, total)):.6f} bits"


def _encoder(frequencies, data, n):
    """Returns (the code, and how many bytes of it there were before byte n and after it)."""
    state, out = start_encoding()
    for t, byte in enumerate(data):
        row = frequencies[t].tolist()
        start, f, total = sum(row[:byte]), row[byte], sum(row)
        if t == n:
            low, width, before = (int(state[field]) for field in (LOW, RANGE, LENGTH))
        out = encode_symbol(state, out, start, f, total)
        if t == n:
            step, after, gone = width // total, int(state[LENGTH]), out[:int(state[LENGTH])].tobytes()
            yield "\n4. The range coder"
            yield f"before            low {low:016X}   range {width:016X}   {before} bytes are out"
            yield f"step              range // total = {step}"
            yield f"low + step*start  {low + step * start:017X}   step*f {step * f:016X}"
            yield (f"renormalised      low {int(state[LOW]):016X}   range {int(state[RANGE]):016X}   {after} bytes are out"
                   f"{', the new: ' + gone[before:].hex(' ').upper() if after > before else ''}")
    code = finish_encoding(state, out).tobytes()
    yield f"at the end        {len(code)} bytes of code: {code.hex(' ').upper()}"
    return code, before, after


def _container(file, code, before, after):
    header, (block,) = read(file)
    head, named = len(file) - len(block.payload), 8 * bool(header.fingerprint)
    table = head - 4 - 4 - (1 if len(block.payload) < 64 else 2)
    yield f"\n5. The file: {len(file)} bytes (docs/FORMAT.md)"
    fields = [("magic", 4), ("kind", 1), ("size of the body", table - named - 8 - (1 if header.length < 128 else 2) - 2 - 5),
              ("version and flags", 2), ("length of the text", 1 if header.length < 128 else 2), ("its SHA-256 begins", 8)]
    fields += [("name of the model", named)] * bool(named) + [("table of blocks", head - 4 - table), ("CRC-32", 4)]
    place = 0
    for name, size in fields:
        yield f"{place:4}  {name:20} {file[place:place + size].hex(' ').upper()}"
        place += size
    yield f"{place:4}  {'the block' if not block.stored else 'the block, stored':20} {block.payload.hex(' ').upper()}"
    if block.stored:
        yield "The code is no shorter than the text, so the file stores the text itself."
    elif after > before:
        yield f"The byte completed bytes {place + before} to {place + after - 1} of the file." if after - before > 1 else \
            f"The byte completed byte {place + before} of the file."
    else:
        yield f"The byte completed no byte of the file, but narrowed what byte {place + after} can be."


def _decoder(predictor, code, n):
    array, past = np.frombuffer(code, np.uint8), []
    state = start_decoding(array)
    for t in range(n + 1):
        frequencies = predictor.step(np.array(past[-1:])) if t else predictor.prefill(np.array([[START_SYMBOL]]))
        total, offset, width, at = sum(frequencies[0].tolist()), *(int(state[field]) for field in (OFFSET, RANGE, POSITION))
        target = int(decode_target(state, total))
        symbol, start = (int(x) for x in find_symbol(frequencies[0], target))
        step, f = int(state[STEP]), int(frequencies[0, symbol])
        decode_symbol(state, array, start, f)
        past.append(symbol)
    yield "\n6. Back: the decoder has found the bytes before, and predicts from them, one at a time, with the KV cache"
    yield f"before            offset {offset:016X}   range {width:016X}   {at} bytes are read"
    yield f"total             {total}, so step = range // total = {step}"
    yield f"target            offset // step = {target}"
    yield f"found             {start} <= {target} < {start + f} = start + f: byte {symbol} = {_shown(symbol)}"


def _place(ids, t):
    return "on the start symbol" if t == 0 else f"on {_shown(ids[t])} ({len(ids) - t} back)"


def _shown(byte):
    return f"'{label(ByteTokenizer(), int(byte))}'"

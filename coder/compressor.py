"""A segment's bytes to a compressed segment's bytes, and back: blocks through the codec, into the container.

A segment alone is a whole compressed file.  archive.py makes files of several.
"""

import hashlib
from collections.abc import Callable, Iterator

from minigpt.ensemble import Ensemble
from minigpt.model import GPT

from . import codec, tokens
from .container import (CHECK_SIZE, CODED, LARGEST_BLOCK, LARGEST_SEGMENT, MODES, PREDICTING, SALVAGE, SMALLEST_BLOCK, Block,
                        CoderError, Header, read, write)
from .models import short_fingerprint
from .online_tokens import OnlineTokens
from .predictor import Predictor, make_predictor
from .tokens import TokenModel

BLOCK_BITS = 18         # 256 KiB: what one damaged byte can take with it
TRIALS = {"fast": 2 ** 15, "static": 2 ** 12}    # bytes: contexts improve along the file, and are fast; a model is neither


def choose(data: bytes, model: GPT | Ensemble) -> str:
    """The mode for data of an unknown kind: fast or static, whichever compresses the beginning better."""
    def rate(mode):
        part = data[:TRIALS[mode]]
        return len(compress(part, mode, model)) / max(1, len(part))
    return min(TRIALS, key=rate)


def compress(data: bytes, mode: str, model: GPT | Ensemble | TokenModel | None = None,
             progress: Callable = lambda count, taken: None, block_bits: int = BLOCK_BITS, primer: bytes = b"",
             more: bool = False, version: int | None = None) -> bytes:
    """The segment of data (bytes).

    mode: of container.MODES, but stored; online with a model of tokens is online tokens.  model: of bytes or, for the modes of
    tokens, of tokens, where the mode needs one.
    primer: bytes that both sides have, for an adaptive mode.  progress(bytes read since the last call, bytes written in all) is
    called now and then.  more: this is one of several segments.  version: of the mode, by default the latest.
    CoderError where the model is missing or predicts something else, or the mode takes no primer.
    """
    if not SMALLEST_BLOCK <= block_bits <= LARGEST_BLOCK:
        raise ValueError(f"block_bits must be from {SMALLEST_BLOCK} to {LARGEST_BLOCK}, but is {block_bits}")
    if len(data) > LARGEST_SEGMENT:
        raise ValueError(f"a segment holds at most {LARGEST_SEGMENT:,} bytes, but these are {len(data):,}")
    if mode == "online" and isinstance(model, TokenModel):
        mode = "online tokens"
    if mode not in CODED:
        raise ValueError(f"mode must be one of {', '.join(CODED)}, but is {mode!r}")
    version, fingerprint = version or MODES[mode].versions[-1], _fingerprint(mode, model)
    predictor = _predictor(mode, version, model, len(data), primer)
    size, payloads, taken = 1 << block_bits, [], 0
    for start in range(0, len(data), size):
        block = data[start:start + size]
        code = _codec(mode).encode_block(predictor, block, lambda count, code_size: progress(count, taken + code_size))
        payloads.append((block, True) if len(block) <= len(code) else (code, False))
        taken += len(payloads[-1][0])
    header = Header(mode, version, block_bits, len(data), short_hash(data), fingerprint,
                    short_hash(primer) if primer else b"", more)
    if all(stored for _, stored in payloads):
        header = Header("stored", MODES["stored"].versions[-1], LARGEST_BLOCK, len(data), header.check, more=more)
        payloads = [(data[start:start + (1 << LARGEST_BLOCK)], True) for start in range(0, len(data), 1 << LARGEST_BLOCK)]
    return write(header, payloads)


def decompress(file: bytes, find_model: Callable, progress: Callable = lambda count: None, primer: bytes = b"") -> bytes:
    """The original bytes of a segment, checked against their SHA-256.

    find_model(short fingerprint) returns the model that the segment names, or raises CoderError; it is called only for one that
    needs one.  progress(bytes written since the last call) is called now and then.
    CoderError where the file is not ours, of another version, cut off or damaged, or the model or the primer is another one.
    """
    return extract(file, find_model, progress, primer)


def extract(file: bytes, find_model: Callable, progress: Callable = lambda count: None, primer: bytes = b"",
            start: int = 0, stop: int | None = None) -> bytes:
    """The bytes from start to stop (excluded) of a segment's original, as `decompress` gives them all.

    Only the blocks that this takes are decoded: in an adaptive mode those before them, too.  Where some are left out, their own
    checksums are checked, but not that of the whole.
    """
    header, blocks = read(file)
    stop = header.length if stop is None else min(stop, header.length)
    if not MODES[header.mode].adaptive:
        needed = [i for i, block in enumerate(blocks) if start < block.start + block.size and block.start < stop]
    else:
        needed = [i for i, block in enumerate(blocks) if block.start < stop]
    for i in needed:
        if not blocks[i].whole:
            raise CoderError(f"{describe(i, blocks)} is damaged or cut off; {SALVAGE}")
    parts = []
    for i, part in _decoded(header, [blocks[i] for i in needed], find_model, progress, primer):
        if part is None:
            raise CoderError(f"{describe(needed[i], blocks)} does not decode, although its checksum matches: the file was made "
                             "wrong")
        parts.append(part)
    data = b"".join(parts)
    if len(needed) == len(blocks):
        _checked(data, header)
    first = blocks[needed[0]].start if needed else 0
    return data[start - first:stop - first] if (start, stop) != (0, header.length) else data


def _checked(data, header):
    if short_hash(data) != header.check:
        raise CoderError("the result is not the original: SHA-256 mismatch")
    return data


def salvage(file: bytes, find_model: Callable, progress: Callable = lambda count: None,
            primer: bytes = b"") -> tuple[bytes, list[tuple[int, int]]]:
    """(data, missing): the bytes of a segment's intact blocks, joined, and the ranges (start, stop) of its original that are
    missing.

    In an adaptive mode a coded block needs all blocks before it: behind a damaged one, only stored blocks can be salvaged.
    """
    header, blocks = read(file, strict=False)
    parts, missing = [], []
    for i, part in _decoded(header, blocks, find_model, progress, primer):
        if part is None:
            missing.append((blocks[i].start, blocks[i].start + blocks[i].size))
        else:
            parts.append(part)
    data = b"".join(parts)
    return (data if missing else _checked(data, header)), missing


def _decoded(header: Header, blocks: list[Block], find_model, progress, primer) -> Iterator[tuple[int, bytes | None]]:
    """(i, the bytes of block i, or None where they cannot be decoded) for each block."""
    predictor, lost, adaptive = None, False, MODES[header.mode].adaptive
    for i, block in enumerate(blocks):
        part = None
        if block.whole and block.stored and (lost or not adaptive):
            part = block.payload
        elif block.whole and not lost and header.mode != "stored":
            predictor = predictor or _predictor_of(header, find_model, primer)
            if block.stored:                    # it did not compress, but the encoder learned from it all the same
                _codec(header.mode).encode_block(predictor, block.payload)
                part = block.payload
            else:
                try:
                    part = _codec(header.mode).decode_block(predictor, block.payload, block.size, progress)
                except ValueError:
                    part = None
        lost = lost or (part is None and adaptive)
        yield i, part


def _codec(mode):
    """The module that encodes and decodes blocks with what `_predictor` returns."""
    return tokens if MODES[mode].tokens else codec


def _predictor(mode, version, model, size, primer) -> Predictor | TokenModel:
    """What predicts a segment of `size` bytes; each version of a mode must go on predicting the same for ever."""
    properties = MODES[mode]
    if properties.needs_model and model is None:
        raise CoderError(f"the mode {mode} needs a model")
    if properties.needs_model and isinstance(model, TokenModel) != properties.tokens:
        raise CoderError(f"the mode {mode} needs a published language model: pass one with --model, as in --model smollm2"
                         if properties.tokens else
                         f"the mode {mode} needs a model that predicts bytes, but this one predicts tokens: leave out --mode")
    if primer and not properties.adaptive:
        raise CoderError(f"the mode {mode} does not learn, so a primer is of no use to it: choose "
                         f"{' or '.join(name for name in PREDICTING if MODES[name].adaptive)}")
    if properties.tokens:
        return OnlineTokens(model, size, primer) if properties.adaptive else model
    try:
        return make_predictor(mode, size, model, primer, version)
    except ValueError as error:
        raise CoderError(str(error)) from None


def _fingerprint(mode, model):
    """The bytes by which a segment names its model, if its mode needs one."""
    if not MODES[mode].needs_model or model is None:
        return b""
    return model.fingerprint if isinstance(model, TokenModel) else short_fingerprint(model)


def _predictor_of(header, find_model, primer):
    if header.primer and not primer:
        raise CoderError(f"the file needs the primer whose SHA-256 begins with {header.primer.hex()}: "
                         "python -m coder decompress --prime takes it")
    if header.primer and header.primer != short_hash(primer):
        raise CoderError(f"the file needs the primer whose SHA-256 begins with {header.primer.hex()}, but that of this one "
                         f"begins with {short_hash(primer).hex()}")
    model = find_model(header.fingerprint) if MODES[header.mode].needs_model else None
    found = _fingerprint(header.mode, model)
    predictor = _predictor(header.mode, header.version, model, header.length, primer if header.primer else b"")
    if found != header.fingerprint:
        raise CoderError(f"the file was made with the model {header.fingerprint.hex()}, but this one is {found.hex()}")
    return predictor


def short_hash(data: bytes) -> bytes:
    """The 8 bytes by which a compressed file checks its original, and names its primer: the first of the SHA-256."""
    return hashlib.sha256(data).digest()[:CHECK_SIZE]


def describe(i: int, blocks: list[Block]) -> str:
    """Block i, to a person."""
    return (f"block {i + 1} of {len(blocks)} (bytes {blocks[i].start:,} to {blocks[i].start + blocks[i].size - 1:,} "
            "of the original)")

"""A file's bytes to a compressed file's bytes, and back: blocks through the codec, into the container."""

import hashlib
from collections.abc import Callable, Iterator

from minigpt.ensemble import Ensemble
from minigpt.model import GPT

from . import codec, tokens
from .container import LARGEST_BLOCK, MODES, PREDICTING, SMALLEST_BLOCK, Block, CoderError, Header, read, write
from .models import short_fingerprint
from .online_tokens import OnlineTokens
from .predictor import Predictor, make_predictor
from .tokens import TokenModel

BLOCK_BITS = 18         # 256 KiB: what one damaged byte can take with it
NO_MODEL = bytes(16)
TOKEN_MODES = "tokens", "online tokens"
TRIALS = {"fast": 2 ** 15, "static": 2 ** 12}    # bytes: contexts improve along the file, and are fast; a model is neither


def choose(data: bytes, model: GPT | Ensemble) -> str:
    """The mode for data of an unknown kind: fast or static, whichever compresses the beginning better."""
    def rate(mode):
        part = data[:TRIALS[mode]]
        return len(compress(part, mode, model)) / max(1, len(part))
    return min(TRIALS, key=rate)


def compress(data: bytes, mode: str, model: GPT | Ensemble | TokenModel | None = None,
             progress: Callable = lambda count, taken: None, block_bits: int = BLOCK_BITS, primer: bytes = b"") -> bytes:
    """The compressed file of data.

    mode: of container.MODES, but stored; online with a model of tokens is online tokens.  model: of bytes or, for the modes of
    tokens, of tokens, where the mode needs one.
    primer: bytes that both sides have, for an adaptive mode.  progress(bytes read since the last call, bytes written in all) is
    called now and then.
    CoderError where the model is missing or predicts something else, or the mode takes no primer.
    """
    if not SMALLEST_BLOCK <= block_bits <= LARGEST_BLOCK:
        raise ValueError(f"block_bits must be from {SMALLEST_BLOCK} to {LARGEST_BLOCK}, but is {block_bits}")
    if mode == "online" and isinstance(model, TokenModel):
        mode = "online tokens"
    predictor = _predictor(mode, model, len(data), primer)
    fingerprint = _fingerprint(predictor)
    size, payloads, taken = 1 << block_bits, [], 0
    for start in range(0, len(data), size):
        block = data[start:start + size]
        code = _codec(mode).encode_block(predictor, block, lambda count, code_size: progress(count, taken + code_size))
        payloads.append((block, True) if len(block) <= len(code) else (code, False))
        taken += len(payloads[-1][0])
    header = Header(mode, block_bits, len(data), fingerprint, hashlib.sha256(data).digest(),
                    primer_fingerprint(primer) if primer else b"")
    if all(stored for _, stored in payloads):
        header = header._replace(mode="stored", block_bits=LARGEST_BLOCK, fingerprint=NO_MODEL, primer=b"")
        payloads = [(data[start:start + (1 << LARGEST_BLOCK)], True) for start in range(0, len(data), 1 << LARGEST_BLOCK)]
    return write(header, payloads)


def decompress(file: bytes, find_model: Callable, progress: Callable = lambda count: None, primer: bytes = b"") -> bytes:
    """The original bytes of a compressed file, checked against their SHA-256.

    find_model(short fingerprint) returns the model that the file names, or raises CoderError; it is called only for a file that
    needs one.  progress(bytes written since the last call) is called now and then.
    CoderError where the file is not ours, of another version, cut off or damaged, or the model or the primer is another one.
    """
    header, blocks = read(file)
    for i, block in enumerate(blocks):
        if not block.whole:
            raise CoderError(f"{_describe(i, blocks)} is damaged or cut off; --salvage writes what is intact")
    parts = []
    for i, part in _decoded(header, blocks, find_model, progress, primer):
        if part is None:
            raise CoderError(f"{_describe(i, blocks)} does not decode, although its checksum matches: the file was made wrong")
        parts.append(part)
    return _checked(b"".join(parts), header)


def _checked(data, header):
    if hashlib.sha256(data).digest() != header.sha256:
        raise CoderError("the result is not the original: SHA-256 mismatch")
    return data


def salvage(file: bytes, find_model: Callable, progress: Callable = lambda count: None,
            primer: bytes = b"") -> tuple[bytes, list[tuple[int, int]]]:
    """(data, missing): the bytes of the intact blocks, joined, and the ranges (start, stop) of the original that are missing.

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
    return tokens if mode in TOKEN_MODES else codec


def _predictor(mode, model, size, primer) -> Predictor | TokenModel:
    if mode not in (*PREDICTING, *TOKEN_MODES):
        raise ValueError(f"mode must be one of {', '.join([*PREDICTING, *TOKEN_MODES])}, but is {mode!r}")
    if MODES[mode].needs_model and model is None:
        raise CoderError(f"the mode {mode} needs a model")
    if MODES[mode].needs_model and isinstance(model, TokenModel) != (mode in TOKEN_MODES):
        raise CoderError(f"the mode {mode} needs a published language model: pass one with --model, as in --model smollm2"
                         if mode in TOKEN_MODES else
                         f"the mode {mode} needs a model that predicts bytes, but this one predicts tokens: leave out --mode")
    if primer and not MODES[mode].adaptive:
        raise CoderError(f"the mode {mode} does not learn, so a primer is of no use to it: choose "
                         f"{' or '.join(name for name in PREDICTING if MODES[name].adaptive)}")
    if mode in TOKEN_MODES:
        return model if mode == "tokens" else OnlineTokens(model, size, primer)
    try:
        return make_predictor(mode, size, model, primer)
    except ValueError as error:
        raise CoderError(str(error)) from None


def _fingerprint(predictor):
    if isinstance(predictor, TokenModel):
        return predictor.fingerprint
    return short_fingerprint(predictor.model) if predictor.model else NO_MODEL


def _predictor_of(header, find_model, primer):
    if header.primer and not primer:
        raise CoderError(f"the file needs the primer whose SHA-256 begins with {header.primer.hex()}: pass it with --prime")
    if header.primer and header.primer != primer_fingerprint(primer):
        raise CoderError(f"the file needs the primer whose SHA-256 begins with {header.primer.hex()}, but that of this one "
                         f"begins with {primer_fingerprint(primer).hex()}")
    model = find_model(header.fingerprint) if MODES[header.mode].needs_model else None
    predictor = _predictor(header.mode, model, header.length, primer if header.primer else b"")
    if _fingerprint(predictor) != header.fingerprint:
        raise CoderError(f"the file was made with the model {header.fingerprint.hex()}, but this one is "
                         f"{_fingerprint(predictor).hex()}")
    return predictor


def primer_fingerprint(primer: bytes) -> bytes:
    """The 16 bytes by which a compressed file names its primer."""
    return hashlib.sha256(primer).digest()[:16]


def _describe(i, blocks):
    return (f"block {i + 1} of {len(blocks)} (bytes {blocks[i].start:,} to {blocks[i].start + blocks[i].size - 1:,} "
            "of the original)")

"""A file's bytes to a compressed file's bytes, and back: blocks through the codec, into the container."""

import hashlib
import json

from minigpt.checkpoint import fingerprint
from minigpt.ensemble import members

from . import codec
from .container import LARGEST_BLOCK, SMALLEST_BLOCK, CoderError, Header, read, write

BLOCK_BITS = 18         # 256 KiB: what one damaged byte can take with it
NO_MODEL = bytes(16)
TRIALS = {"fast": 2 ** 15, "static": 2 ** 12}    # bytes: contexts grow better on the way, and are fast; a model is neither
NAMED = ("activation", "bias", "block_size", "n_embd", "n_head", "n_layer", "norm", "norm_order", "position", "qk_norm",
         "tied", "vocab_size")         # what of the config decides how the weights are used; part of the format


def short_fingerprint(model):
    """The 16 bytes by which a compressed file names its model: its weights, and what the config says of their use."""
    config = " ".join(json.dumps({name: getattr(member.config, name) for name in NAMED}) for member in members(model))
    return hashlib.sha256(f"{fingerprint(model)} {config}".encode()).digest()[:16]


def primer_name(primer):
    """The 16 bytes by which a compressed file names its primer."""
    return hashlib.sha256(primer).digest()[:16]


def choose(data, model):
    """The mode for data (bytes) of which nobody knows more: fast or static, whichever makes less of the beginning."""
    def rate(mode):
        part = data[:TRIALS[mode]]
        return len(compress(part, mode, model)) / max(1, len(part))
    return min(TRIALS, key=rate)


def compress(data, mode, model=None, progress=lambda count, taken: None, block_bits=BLOCK_BITS, primer=b""):
    """The compressed file (bytes) of data (bytes).

    mode is static or online, with a model of bytes, or scratch or fast, without one.  primer: bytes that both sides
    have, for the modes that mix.  progress(bytes read since the last call, bytes written in all) is called now and then.
    CoderError where the model is missing or does not fit.
    """
    if not SMALLEST_BLOCK <= block_bits <= LARGEST_BLOCK:
        raise ValueError(f"block_bits must be from {SMALLEST_BLOCK} to {LARGEST_BLOCK}, but is {block_bits}")
    predictor = _predictor(mode, model, len(data), primer)
    name = _name(predictor)
    size, payloads, taken = 1 << block_bits, [], 0
    for start in range(0, len(data), size):
        block = data[start:start + size]
        code = codec.encode_block(predictor, block, lambda count, code_size: progress(count, taken + code_size))
        payloads.append((block, True) if len(block) <= len(code) else (code, False))
        taken += len(payloads[-1][0])
    header = Header(mode, block_bits, len(data), name, hashlib.sha256(data).digest(), primer_name(primer) if primer else b"")
    if all(stored for _, stored in payloads):
        header = header._replace(mode="stored", block_bits=LARGEST_BLOCK, fingerprint=NO_MODEL, primer=b"")
        payloads = [(data[start:start + (1 << LARGEST_BLOCK)], True) for start in range(0, len(data), 1 << LARGEST_BLOCK)]
    return write(header, payloads)


def decompress(file, find_model, progress=lambda count: None, primer=b""):
    """The original bytes of a compressed file (bytes), checked against their SHA-256.

    find_model(fingerprint of 16 bytes) returns the model that the file names, or raises CoderError; it is called only
    for a file that needs one.  CoderError where the file is not ours, newer, cut off or damaged, or the model or the primer
    another one.
    """
    header, blocks = read(file)
    for i, block in enumerate(blocks):
        if not block.whole:
            raise CoderError(f"{_describe(i, blocks)} is damaged or cut off; --salvage writes what is intact")
    parts = []
    for i, part in _decoded(header, blocks, find_model, progress, primer):
        if part is None:
            raise CoderError(f"{_describe(i, blocks)} does not decode, although its checksum is right: the file was made wrong")
        parts.append(part)
    return _checked(b"".join(parts), header)


def _checked(data, header):
    if hashlib.sha256(data).digest() != header.sha256:
        raise CoderError("the result is not the original: its SHA-256 is another one than the file says")
    return data


def salvage(file, find_model, progress=lambda count: None, primer=b""):
    """(data, missing): the bytes of the intact blocks, joined, and the ranges (start, stop) of the original that are not there.

    Where the model learns, a coded block needs all blocks before it: after a damaged one, only stored blocks are left.
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


def _decoded(header, blocks, find_model, progress, primer):
    """(i, bytes, or None where they cannot be had) for each block."""
    predictor, lost = None, False
    for i, block in enumerate(blocks):
        part = None
        if block.whole and block.stored and (lost or header.mode in ("stored", "static")):
            part = block.payload
        elif block.whole and not lost and header.mode != "stored":
            predictor = predictor or _predictor_of(header, find_model, primer)
            if block.stored:                    # it did not compress, but was learned from all the same
                codec.encode_block(predictor, block.payload)
                part = block.payload
            else:
                try:
                    part = codec.decode_block(predictor, block.payload, block.size, progress)
                except ValueError:
                    part = None
        lost = lost or (part is None and header.mode != "static")
        yield i, part


def _predictor(mode, model, size, primer):
    if model is None and mode in ("static", "online"):
        raise CoderError(f"the mode {mode} needs a model; scratch and fast do not")
    if primer and mode == "static":
        raise CoderError("the mode static mixes nothing, so that a primer is of no use to it: take online, scratch or fast")
    try:
        match mode:
            case "static":
                return codec.static(model)
            case "online":
                return codec.online(model, size, primer)
            case "scratch":
                return codec.scratch(size, primer)
            case "fast":
                return codec.fast(size, primer)
    except ValueError as error:
        raise CoderError(str(error)) from None
    raise ValueError(f"mode must be static, online, scratch or fast, but is {mode!r}")


def _name(predictor):
    return short_fingerprint(predictor.model) if predictor.model else NO_MODEL


def _predictor_of(header, find_model, primer):
    if header.primer and not primer:
        raise CoderError(f"the file needs the primer whose SHA-256 begins with {header.primer.hex()}: name it with --prime")
    if header.primer and header.primer != primer_name(primer):
        raise CoderError(f"the file needs the primer whose SHA-256 begins with {header.primer.hex()}, but that of this one "
                         f"begins with {primer_name(primer).hex()}")
    model = find_model(header.fingerprint) if header.mode in ("static", "online") else None
    predictor = _predictor(header.mode, model, header.length, primer if header.primer else b"")
    if _name(predictor) != header.fingerprint:
        raise CoderError(f"the file was made with the model {header.fingerprint.hex()}, but this one is "
                         f"{_name(predictor).hex()}")
    return predictor


def _describe(i, blocks):
    return (f"block {i + 1} of {len(blocks)} (bytes {blocks[i].start:,} to {blocks[i].start + blocks[i].size - 1:,} "
            "of the original)")

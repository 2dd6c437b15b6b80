"""The compressed file, field by field: how it was made, and how to tell whether it is whole.

Integers are unsigned and little-endian.

    offset  bytes   field
    0       4       magic: 89 47 5A 0A (no text begins like that, and a transfer in text mode breaks it)
    4       1       version of this format, and of everything that the decoder must compute alike: 5
    5       1       mode: 0 stored, 1 static, 2 online, 3 scratch, 4 fast, 6 online tokens, 7 tokens (5 was the
                    same with matrices of floats)
    6       1       flags: 1 if there is a primer; a reader refuses bits that it does not know
    7       1       k, 10 .. 24: each block but the last holds 2^k bytes of the original
    8       8       length of the original, in bytes
    16      16      fingerprint of the model before the first symbol, its weights and its config (models.py); zeros where
                    stored or fast
    32      32      SHA-256 of the original
    64      0, 16   the first half of the SHA-256 of the primer, if there is one; then everything below is 16 bytes later
    64      8 n     for each of the n = ceil(length / 2^k) blocks:
                        4   bytes that it takes in this file; the highest bit is set if it is stored
                        4   CRC-32 of those bytes
    64+8n   4       CRC-32 of everything before
    68+8n           the blocks, one after the other, and nothing behind them

A block is stored, as the bytes of the original, where its code is no shorter than they are.  Where all blocks are, the mode is
stored, k is 24, and no model or primer is named.  In the modes static and tokens each block is coded on its own, from a fresh
context; in the others the predictor has learned from the primer, and then from all blocks before, stored ones included.

To decode a block of the mode static: cut it into streams and put their symbols in the order of codec.py; predict each symbol in
the windows of predictor.py, with the model that has the fingerprint (models.py; its file: packed.py, or minigpt/checkpoint.py;
an ensemble: minigpt/ensemble.py); turn logits to integers as frequencies.py says, and find the symbols with the range decoder of
range_coder.py.  coder/reference.py does so with NumPy alone.  One of the modes tokens and online tokens: as tokens.py and
online_tokens.py say.
"""

import struct
import zlib
from typing import NamedTuple

MAGIC, VERSION = b"\x89GZ\n", 5
PRIMED, PRIMER_SIZE = 1, 16                     # a flag, and the bytes that follow the fixed fields if it is set
FIXED = struct.Struct("<4sBBBBQ16s32s")
ENTRY = struct.Struct("<II")
CRC = struct.Struct("<I")
STORED = 1 << 31
SMALLEST_BLOCK, LARGEST_BLOCK = 10, 24          # k


class Mode(NamedTuple):
    number: int             # in the file
    needs_model: bool       # a trained one, the same on both sides
    adaptive: bool          # it learns from what it codes: it can be primed, and a block needs all blocks before it
    help: str


# Here, not beside the predictors that the modes stand for: to read a file takes no network.  predictor.py has a maker for each
# but the last two, which are tokens.py and online_tokens.py.
MODES = {
    "stored": Mode(0, False, False, "the bytes as they are"),
    "static": Mode(1, True, False, "the model as it is"),
    "online": Mode(2, True, True, "the model mixed with contexts, while it goes on learning from FILE"),
    "scratch": Mode(3, False, True, "the same from a seeded start, without a trained model"),
    "fast": Mode(4, False, True, "contexts alone"),
    "tokens": Mode(7, True, False, "a published language model, in integers of 8 bits, on tokens of several bytes"),
    "online tokens": Mode(6, True, True, "a published language model with a bias that learns, mixed with contexts"),
}
NAMES = {mode.number: name for name, mode in MODES.items()}
PREDICTING = [name for name in MODES if name not in ("stored", "tokens", "online tokens")]      # bytes: those of predictor.py


class CoderError(Exception):
    """A file cannot be compressed or decompressed.  The message is one sentence for a person."""


class Block(NamedTuple):
    start: int              # offset of its first byte in the original
    size: int               # in the original, in bytes
    stored: bool
    payload: bytes          # as found in the file: too short where the file was cut off
    whole: bool             # its checksum is right


class Header(NamedTuple):
    mode: str
    block_bits: int         # k
    length: int             # of the original, in bytes
    fingerprint: bytes      # 16
    sha256: bytes           # 32, of the original
    primer: bytes = b""     # 16 of the SHA-256 of the primer, or none


def write(header: Header, payloads: list[tuple[bytes, bool]]) -> bytes:
    """The file, from its header and a (payload, stored) for each block."""
    head = FIXED.pack(MAGIC, VERSION, MODES[header.mode].number, PRIMED * bool(header.primer), header.block_bits,
                      header.length, header.fingerprint, header.sha256) + header.primer
    head += b"".join(ENTRY.pack(len(payload) | STORED * stored, zlib.crc32(payload)) for payload, stored in payloads)
    return b"".join([head, CRC.pack(zlib.crc32(head)), *(payload for payload, _ in payloads)])


def read(file: bytes, strict: bool = True) -> tuple[Header, list[Block]]:
    """The header and the blocks of a file.  CoderError where its header is not a whole one of this version.

    A damaged block is no error: see Block.whole.  Bytes behind the last block are one, if strict.
    """
    if len(file) < len(MAGIC) and MAGIC.startswith(file) and file:
        raise CoderError(f"the file is cut off after {len(file)} bytes, in its header")
    if not file.startswith(MAGIC):
        raise CoderError("this is not a compressed file of this program" if file else "the file is empty")
    if len(file) > 4 and file[4] > VERSION:
        raise CoderError(f"the file has format version {file[4]}, but this program reads only {VERSION}: "
                         "it needs a newer program")
    if len(file) > 4 and file[4] < VERSION:
        raise CoderError(f"the file has format version {file[4]}, of an older program; this one reads only {VERSION}")
    if len(file) < FIXED.size:
        raise CoderError(f"the file is cut off after {len(file)} bytes, in its header")
    _, version, mode, flags, block_bits, length, fingerprint, sha256 = FIXED.unpack_from(file)
    count = -(-length >> block_bits) if SMALLEST_BLOCK <= block_bits <= LARGEST_BLOCK else 0
    table = FIXED.size + PRIMER_SIZE * (flags & PRIMED)
    table_end = table + count * ENTRY.size
    if len(file) < table_end + CRC.size:
        raise CoderError(f"the file is cut off or its header damaged: it claims {length:,} bytes of original, but ends "
                         f"after {len(file):,} bytes, inside the table of blocks")
    if CRC.unpack_from(file, table_end)[0] != zlib.crc32(file[:table_end]):
        raise CoderError("the header of the file is damaged: CRC-32 mismatch")
    if version != VERSION or mode not in NAMES or flags > PRIMED or not SMALLEST_BLOCK <= block_bits <= LARGEST_BLOCK:
        raise CoderError(f"the file has a header that this program does not know (version {version}, mode {mode}, "
                         f"flags {flags}, blocks of 2^{block_bits} bytes)")
    header = Header(NAMES[mode], block_bits, length, fingerprint, sha256, file[FIXED.size:table])
    blocks, place = [], table_end + CRC.size
    for i in range(count):
        taken, crc = ENTRY.unpack_from(file, table + i * ENTRY.size)
        stored, taken = bool(taken & STORED), taken & ~STORED
        payload, start = file[place:place + taken], i << block_bits
        size = min(1 << block_bits, length - start)
        blocks.append(Block(start, size, stored, payload, len(payload) == taken and zlib.crc32(payload) == crc))
        place += taken
        if stored and taken != size:
            raise CoderError(f"block {i + 1} is stored, but takes {taken:,} bytes instead of {size:,}")
    if len(file) > place and strict:
        raise CoderError(f"{len(file) - place:,} bytes follow the end of the compressed file")
    return header, blocks

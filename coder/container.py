"""The file around the codes: what it is, how it was made, and how to tell that it is whole.

Integers are unsigned and little-endian.

    offset  bytes   field
    0       4       magic: 89 47 5A 0A (no text begins so, and a transfer "as text" breaks it)
    4       1       version of this format and of all that the decoder must do alike: 5
    5       1       mode: 0 stored, 1 static, 2 online, 3 scratch, 4 fast
    6       1       flags: 1 if there is a primer; a reader refuses bits that it does not know
    7       1       k, 10 .. 24: each block but the last holds 2^k bytes of the original
    8       8       length of the original, in bytes
    16      16      fingerprint of the model before the first symbol, its weights and its config (compressor.py); zeros
                    where stored or fast
    32      32      SHA-256 of the original
    64      0, 16   the first half of the SHA-256 of the primer, if there is one; from here on all is 16 bytes later then
    64      8 n     for each of the n = ceil(length / 2^k) blocks:
                        4   bytes that it takes in this file; the highest bit is set if it is stored as it is
                        4   CRC-32 of those bytes
    64+8n   4       CRC-32 of everything before
    68+8n           the blocks, one after the other, and nothing behind them

A block is stored where that is no longer than its code.  Static blocks are coded independently, each from a fresh context;
in the other modes the model has learned from the blocks before, and from the primer before all of them.
"""

import struct
import zlib
from typing import NamedTuple

MAGIC, VERSION = b"\x89GZ\n", 5
MODES = ("stored", "static", "online", "scratch", "fast")
PRIMED, PRIMER = 1, 16                          # a flag, and the bytes that follow the fixed fields if it is set
FIXED = struct.Struct("<4sBBBBQ16s32s")
ENTRY = struct.Struct("<II")
CRC = struct.Struct("<I")
STORED = 1 << 31
SMALLEST_BLOCK, LARGEST_BLOCK = 10, 24          # k


class CoderError(Exception):
    """A file cannot be compressed or decompressed.  The message is one sentence for a person."""


class Block(NamedTuple):
    start: int              # where its bytes begin in the original
    size: int               # how many they are
    stored: bool
    payload: bytes          # as found in the file; shorter than it should be where the file was cut off
    whole: bool             # its checksum is right


class Header(NamedTuple):
    mode: str
    block_bits: int         # k
    length: int             # of the original, in bytes
    fingerprint: bytes      # 16
    sha256: bytes           # 32, of the original
    primer: bytes = b""     # 16 of the SHA-256 of the primer, or none


def write(header, payloads):
    """The file (bytes), from its header and a (payload, stored) for each block."""
    head = FIXED.pack(MAGIC, VERSION, MODES.index(header.mode), PRIMED * bool(header.primer), header.block_bits,
                      header.length, header.fingerprint, header.sha256) + header.primer
    head += b"".join(ENTRY.pack(len(payload) | STORED * stored, zlib.crc32(payload)) for payload, stored in payloads)
    return b"".join([head, CRC.pack(zlib.crc32(head)), *(payload for payload, _ in payloads)])


def read(file, strict=True):
    """The (Header, [Block, ...]) of a file (bytes).  CoderError where that much cannot be told.

    Damaged blocks do not stop it: see Block.whole.  Bytes behind the last block do, if it is to be strict.
    """
    if len(file) < len(MAGIC) and MAGIC.startswith(file) and file:
        raise CoderError(f"the file is cut off after {len(file)} bytes, in its header")
    if not file.startswith(MAGIC):
        raise CoderError("this is not a file that this program compressed" if file else "the file is empty")
    if len(file) > 4 and file[4] > VERSION:
        raise CoderError(f"the file has format version {file[4]}, but this program knows versions up to {VERSION}: "
                         "it needs a newer program")
    if len(file) > 4 and file[4] < VERSION:
        raise CoderError(f"the file has format version {file[4]}, of an older program, but this one knows only {VERSION}")
    if len(file) < FIXED.size:
        raise CoderError(f"the file is cut off after {len(file)} bytes, in its header")
    _, version, mode, flags, block_bits, length, fingerprint, sha256 = FIXED.unpack_from(file)
    count = -(-length >> block_bits) if SMALLEST_BLOCK <= block_bits <= LARGEST_BLOCK else 0
    table = FIXED.size + PRIMER * (flags & PRIMED)
    table_end = table + count * ENTRY.size
    if len(file) < table_end + CRC.size:
        raise CoderError(f"the file is cut off or its header damaged: {length:,} bytes are said to be in it, but it "
                         f"ends after {len(file):,}, before the table of their blocks does")
    if CRC.unpack_from(file, table_end)[0] != zlib.crc32(file[:table_end]):
        raise CoderError("the header of the file is damaged")
    if version != VERSION or mode >= len(MODES) or flags > PRIMED or not SMALLEST_BLOCK <= block_bits <= LARGEST_BLOCK:
        raise CoderError(f"the file has a header that this program does not know (version {version}, mode {mode}, "
                         f"flags {flags}, blocks of 2^{block_bits} bytes)")
    header = Header(MODES[mode], block_bits, length, fingerprint, sha256, file[FIXED.size:table])
    blocks, place = [], table_end + CRC.size
    for i in range(count):
        taken, crc = ENTRY.unpack_from(file, table + i * ENTRY.size)
        stored, taken = bool(taken & STORED), taken & ~STORED
        payload, start = file[place:place + taken], i << block_bits
        size = min(1 << block_bits, length - start)
        blocks.append(Block(start, size, stored, payload, len(payload) == taken and zlib.crc32(payload) == crc))
        place += taken
        if stored and taken != size:
            raise CoderError(f"block {i + 1} is stored, but takes {taken:,} bytes for {size:,}")
    if len(file) > place and strict:
        raise CoderError(f"{len(file) - place:,} bytes follow the end of the compressed file")
    return header, blocks

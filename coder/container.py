"""A compressed file's segments: how each was made, and how to tell whether it is whole.  docs/FORMAT.md has every field.

    file        members, one after the other, so that `cat` joins files: archive.py
    member      magic (4 bytes), kind (1 byte), size of the body (a number), body
    number      unsigned, 7 bits a byte, the lowest first; all bytes but the last have the highest bit set

A member whose kind is the number of a mode is a segment: a part of the original, decoded without the others.  Its body:
version of the mode (1 byte), flags (1), length of the original (a number), checks and names (8 bytes each), table of blocks,
CRC-32 of everything so far, the blocks.
"""

import struct
import zlib
from typing import NamedTuple

MAGIC = b"\x89GZ\x06"                           # the last byte is the version of the format
INDEX, SKIPPABLE, MODEL, PARITY = 64, 128, 128, 129             # kinds that are no mode's number
FINGERPRINTED, PRIMED, MORE = 32, 64, 128       # flags of a segment; the 5 bits below them are k
CRC, CHECK_SIZE = struct.Struct("<I"), 8
SMALLEST_BLOCK, LARGEST_BLOCK, LARGEST_SEGMENT = 10, 24, 2 ** 30    # k; and bytes of the original, which bounds the memory


class Mode(NamedTuple):
    number: int             # in the file
    versions: tuple         # of its predictions: those that this program reads, of which it writes the last
    needs_model: bool       # a trained one, the same on both sides
    adaptive: bool          # it learns from what it codes: it can be primed, and a block needs all blocks before it
    tokens: bool            # it predicts tokens of several bytes
    segment: int            # bytes of the original in a segment, if nobody says otherwise
    help: str


# Here, not beside the predictors that the modes stand for: to read a file takes no network.
MODES = {
    "stored": Mode(0, (1,), False, False, False, 2 ** 24, "the bytes as they are"),
    "static": Mode(1, (1,), True, False, False, 2 ** 20, "the model as it is"),
    "online": Mode(2, (1,), True, True, False, 2 ** 22, "the model, which keeps learning from FILE, mixed with contexts"),
    "scratch": Mode(3, (1,), False, True, False, 2 ** 22, "the same, but starting from random weights"),
    "fast": Mode(4, (1, 2), False, True, False, 2 ** 24, "context mixing, without a model"),
    "tokens": Mode(5, (1,), True, False, True, 2 ** 20, "a published language model, on tokens of several bytes"),
    "online tokens": Mode(6, (1,), True, True, True, 2 ** 22, "the same with a bias that learns, mixed with contexts"),
}
NAMES = {mode.number: name for name, mode in MODES.items()}
CODED = [name for name in MODES if name != "stored"]
PREDICTING = [name for name in CODED if not MODES[name].tokens]         # bytes: those with a maker in predictor.py


SALVAGE = "python -m coder decompress --salvage writes what is intact"     # whichever command says so: not all have that option


class CoderError(Exception):
    """A file cannot be compressed or decompressed.  The message is one sentence for a person."""


class Block(NamedTuple):
    start: int              # offset of its first byte in the segment's original
    size: int               # in the original, in bytes
    stored: bool
    payload: bytes          # as found in the file: too short where the file was cut off
    whole: bool             # its checksum is right


class Header(NamedTuple):
    mode: str
    version: int            # of the mode's predictions
    block_bits: int         # k: each block but the last holds 2^k bytes of the original
    length: int             # of the original, in bytes
    check: bytes            # the first 8 bytes of the SHA-256 of the original
    fingerprint: bytes = b""        # of the model (models.py), 8 bytes, or none
    primer: bytes = b""     # the first 8 bytes of the SHA-256 of the primer, or none
    more: bool = False      # there are other segments, and an index behind the last


class Fields:
    """The fields of a member, one after the other.  CoderError where they are cut off."""

    def __init__(self, file: bytes, place: int):
        self.file, self.place = file, place

    def take(self, size: int) -> bytes:
        self.place += size
        if self.place > len(self.file):
            raise CoderError(f"the file is cut off or damaged: it ends after {len(self.file):,} bytes, inside a header")
        return self.file[self.place - size:self.place]

    def number(self) -> int:
        value, shift, byte = 0, 0, 128
        while byte & 128:
            (byte,) = self.take(1)
            value, shift = value | (byte & 127) << shift, shift + 7
        if shift > 63 or byte == 0 and shift > 7:
            raise CoderError("the header is damaged: a number in it is too large, or longer than it has to be")
        return value

    def check(self) -> None:
        if zlib.crc32(self.file[:self.place]) != CRC.unpack(self.take(CRC.size))[0]:
            raise CoderError("the header of the file is damaged: CRC-32 mismatch")


def number(value: int) -> bytes:
    """An unsigned integer below 2^63, as `Fields.number` reads it."""
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + number(value >> 7)


def begin(file: bytes) -> tuple[int, Fields, int]:
    """(kind, the fields of the body, where the member ends) of the member at the beginning of `file`."""
    if file[:4] != MAGIC[:len(file)] or not file:
        if file[:3] != MAGIC[:3] or len(file) < 5:
            raise CoderError("this is not a compressed file of this program" if file else "the file is empty")
        version = file[4] if file[3:4] == b"\n" else file[3]            # where it was up to 5, behind a line feed
        raise CoderError(f"the file has format version {version}, but this program reads only {MAGIC[3]}: it needs "
                         f"{'a newer program' if version > MAGIC[3] else 'the older program that made it'}")
    fields = Fields(file, len(MAGIC))
    (kind,), size = fields.take(1), fields.number()
    if kind not in NAMES and kind != INDEX and kind < SKIPPABLE:
        raise CoderError(f"the file has a member of kind {kind}, which this program does not know: it needs a newer program")
    return kind, fields, fields.place + size


def write(header: Header, payloads: list[tuple[bytes, bool]]) -> bytes:
    """The segment, from its header and a (payload, stored) for each block."""
    flags = header.block_bits | FINGERPRINTED * bool(header.fingerprint) | PRIMED * bool(header.primer) | MORE * header.more
    table = [number(2 * len(payload) + stored) + CRC.pack(zlib.crc32(payload)) for payload, stored in payloads]
    codes, head = b"".join(payload for payload, _ in payloads), b"".join(
        [bytes([header.version, flags]), number(header.length), header.check, header.fingerprint, header.primer, *table])
    head = MAGIC + bytes([MODES[header.mode].number]) + number(len(head) + CRC.size + len(codes)) + head
    return head + CRC.pack(zlib.crc32(head)) + codes


def read(file: bytes, strict: bool = True) -> tuple[Header, list[Block]]:
    """The header and the blocks of a segment.  CoderError where the header is damaged, or something this program does not know.

    A damaged block is no error: see Block.whole.  Bytes behind the segment are one, if strict.
    """
    kind, fields, end = begin(file)
    version, flags = fields.take(2)
    k, length, mode = flags & 31, fields.number(), NAMES.get(kind)
    names = [fields.take(CHECK_SIZE if present else 0) for present in (True, flags & FINGERPRINTED, flags & PRIMED)]
    count = -(-length >> k) if SMALLEST_BLOCK <= k <= LARGEST_BLOCK else 0
    table = [(fields.number(), CRC.unpack(fields.take(CRC.size))[0]) for _ in range(count)]
    fields.check()
    if mode is None or not SMALLEST_BLOCK <= k <= LARGEST_BLOCK or length > LARGEST_SEGMENT:
        raise CoderError(f"the file has a header that this program does not know (kind {kind}, blocks of 2^{k} bytes, "
                         f"{length:,} bytes in a segment)")
    if version not in MODES[mode].versions:
        raise CoderError(f"the file has version {version} of the mode {mode}, of which this program reads "
                         f"{' and '.join(map(str, MODES[mode].versions))}: it needs another version of the program")
    blocks, place = [], fields.place
    for i, (taken, crc) in enumerate(table):
        stored, taken, size = bool(taken & 1), taken >> 1, min(1 << k, length - (i << k))
        payload = file[place:place + taken]
        blocks.append(Block(i << k, size, stored, payload, len(payload) == taken and zlib.crc32(payload) == crc))
        place += taken
        if stored and taken != size:
            raise CoderError(f"block {i + 1} is stored, but takes {taken:,} bytes instead of {size:,}")
    if place != end:
        raise CoderError(f"the blocks of the segment take {place:,} bytes, but the whole {end:,}")
    if len(file) > end and strict:
        raise CoderError(f"{len(file) - end:,} bytes follow the end of the compressed file")
    return Header(mode, version, k, length, *names, bool(flags & MORE)), blocks

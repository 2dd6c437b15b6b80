"""A compressed file of any size: segments, which are coded one by one, in memory for a few of them.

    archive     a model (if it is embedded), segments, and, unless there is only one, an index
    file        archives, one after the other; anywhere between members there may be others that a reader skips

An index has, for each member since the archive's beginning, its size in the file and how many bytes of the original it holds,
and the SHA-256 of the original.  So a reader that starts at the end of the file finds every segment without reading the others.
"""

import hashlib
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO, NamedTuple

from . import packed
from .compressor import BLOCK_BITS, TRIALS, choose, describe, short_hash
from .compressor import compress as compress_segment
from .compressor import extract as extract_segment
from .container import (CHECK_SIZE, CODED, CRC, FINGERPRINTED, INDEX, LARGEST_SEGMENT, MAGIC, MODEL, MODES, MORE, NAMES,
                        SALVAGE, SKIPPABLE, CoderError, begin, number, read)
from .models import short_fingerprint
from .tokens import TokenModel

HEAD = 14                       # bytes in which a member says its kind and size; there is no shorter member
SIZE = 8                        # bytes at the end of an index, and of what may be skipped, that repeat its size
PIECE = 2 ** 20                 # bytes read at once: a header that claims 2^60 bytes takes no memory for those that do not come
TOO_LARGE = 2 * LARGEST_SEGMENT     # bytes of a member that is read whole
LARGEST_TRIAL = max(TRIALS.values())


# --- members ----------------------------------------------------------------------------------------------------------------

class Member(NamedTuple):
    kind: int
    place: int              # in the file
    size: int               # as it says itself
    data: bytes             # the whole member, shorter where the file is cut off; none of what is skipped


def skippable(kind: int, content: bytes) -> bytes:
    """A member that a reader may skip."""
    head = MAGIC + bytes([kind]) + number(len(content) + SIZE)
    return head + content + (len(head) + len(content) + SIZE).to_bytes(SIZE, "little")


def content_of(member: bytes) -> bytes:
    """The content of a `skippable` member."""
    return member[begin(member)[1].place:-SIZE]


def write_index(entries: list[tuple[int, int]], sha256: bytes) -> bytes:
    """The index behind members that have (bytes in the file, bytes of the original); sha256: of the original, 32 bytes."""
    body = b"".join([number(len(entries)), *(number(n) for entry in entries for n in entry), sha256])
    head = MAGIC + bytes([INDEX]) + number(len(body) + CRC.size + SIZE) + body
    return head + CRC.pack(zlib.crc32(head)) + (len(head) + CRC.size + SIZE).to_bytes(SIZE, "little")


def read_index(file: bytes) -> tuple[list[tuple[int, int]], bytes]:
    """The entries and the SHA-256 of an index.  CoderError where it is damaged."""
    _, fields, end = begin(file)
    entries = [(fields.number(), fields.number()) for _ in range(min(fields.number(), len(file)))]
    sha256 = fields.take(32)
    fields.check()
    if fields.place + SIZE != end or file[fields.place:] != end.to_bytes(SIZE, "little"):
        raise CoderError("the index of the file is damaged or cut off: its size is not what it says")
    return entries, sha256


def members(stream: BinaryIO) -> Iterator[Member]:
    """The members of a file, from where the stream is to its end.  CoderError where there is something else."""
    place = 0
    while head := take(stream, HEAD):
        if place and head[:4] != MAGIC[:len(head)]:
            raise CoderError(f"bytes that are no part of a compressed file follow its end, from byte {place:,} on")
        kind, _, size = begin(head)
        if kind >= SKIPPABLE and kind != MODEL:
            skip(stream, size - len(head))
            data = b""
        elif size > TOO_LARGE:
            raise CoderError(f"the header is damaged: it claims a part of {size:,} bytes, and the largest has {TOO_LARGE:,}")
        else:
            data = head + take(stream, size - len(head))
        yield Member(kind, place, size, data)
        place += size


def take(stream, size):
    """The next `size` bytes of a stream, or all that are left."""
    parts = []
    while size > 0 and (part := stream.read(min(size, PIECE))):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def skip(stream, size):
    if stream.seekable():
        stream.seek(size, os.SEEK_CUR)
    else:
        while size > 0 and (part := stream.read(min(size, PIECE))):
            size -= len(part)


def models_in(member: bytes) -> list[bytes]:
    """The packed model in a member, if it is one that holds it."""
    return [content_of(member)] if begin(member)[0] == MODEL else []


class Ledger:
    """What an index says of the members since the archive's beginning: gathered as they come by."""

    def __init__(self):
        self.entries = []               # (bytes in the file, bytes of the original) of each member
        self.sha256 = hashlib.sha256()  # of the original

    def index(self) -> bytes:
        """The member at the end of an archive of several segments."""
        return write_index(self.entries, self.sha256.digest())

    def compare(self, member: bytes) -> None:
        """CoderError where an index that was read says something else.

        What may be skipped before the first segment is perhaps not this archive's, and the index need not know of it.
        """
        entries, sha256 = read_index(member)
        before = len(self.entries) - len(entries)
        if before < 0 or self.entries[before:] != entries or any(length for _, length in self.entries[:before]):
            raise CoderError("the index at the end does not fit the segments before it: one is missing, or is another one's")
        if self.sha256.digest() != sha256:
            raise CoderError("the result is not the original: SHA-256 mismatch")


# --- one task a segment: what an engine (engines.py) does, here or elsewhere ------------------------------------------

class Range(NamedTuple):
    """Bytes of a file, for whoever can read them there."""
    path: str
    start: int
    size: int


def load(data: bytes | Range) -> bytes:
    """The bytes themselves.  CoderError where they cannot be read."""
    if isinstance(data, bytes):
        return data
    try:
        with open(data.path, "rb") as file:
            file.seek(data.start)
            return file.read(data.size)
    except OSError as error:
        raise CoderError(f"{data.path} cannot be read by a worker: {error.strerror}") from None


class Tools(NamedTuple):
    """A model and a primer, in this process."""
    model: object
    primer: bytes

    def load(self):
        return self


class Encode(NamedTuple):
    """The task to make a segment of `size` bytes."""
    data: bytes | Range
    size: int
    check: bytes            # of the data as they were first read
    more: bool
    mode: str
    block_bits: int
    tools: Tools            # or what load() makes one of

    def __call__(self, progress: Callable = lambda count, taken: None) -> bytes:
        model, primer = self.tools.load()
        file = compress_segment(load(self.data), self.mode, model, progress, self.block_bits, primer, self.more)
        if glance(file).check != self.check:
            raise CoderError("the input was changed while it was being compressed")
        return file


class Decode(NamedTuple):
    """The task to decode the bytes from start to stop (excluded) of a segment."""
    data: bytes | Range
    size: int               # of the segment's original
    more: bool              # it is one of several
    member: Member | None
    tools: Tools
    start: int = 0
    stop: int | None = None

    def __call__(self, progress: Callable = lambda count: None) -> bytes:
        model, primer = self.tools.load()
        return extract_segment(load(self.data), lambda fingerprint: model, progress, primer, self.start, self.stop)


class Here:
    """The simplest engine: does one task after the other in this process."""
    elsewhere = False       # its tasks can be given data: it need not read them again
    share = Tools           # makes what a task's `tools` are

    def run(self, tasks: Iterator, progress: Callable) -> Iterator[tuple]:
        """(task, its result) of each task, in order.  What is no task passes through, with None."""
        for task in tasks:
            yield task, task(progress) if callable(task) else None


class Glance(NamedTuple):
    """What the beginning of a segment says, before its checksum is known to be right."""
    more: bool
    length: int
    check: bytes
    fingerprint: bytes


def glance(file: bytes) -> Glance:
    """Of a segment, or of its first 64 bytes."""
    fields = begin(file)[1]
    _, flags = fields.take(2)
    length, check = fields.number(), fields.take(CHECK_SIZE)
    return Glance(bool(flags & MORE), length, check, fields.take(CHECK_SIZE if flags & FINGERPRINTED else 0))


def path_of(stream: BinaryIO) -> str | None:
    """The path of the file that the stream reads from its beginning, if there is one that others can read, too."""
    name = getattr(stream, "name", None)
    return os.path.abspath(name) if isinstance(name, str) and os.path.isfile(name) and stream.seekable() else None


# --- whole files ------------------------------------------------------------------------------------------------------

class Totals(NamedTuple):
    original: int           # bytes
    compressed: int
    fingerprint: bytes      # of the model that the file needs, if it does


def compress(source: BinaryIO, sink: BinaryIO, mode: str | None = None, model=None,
             progress: Callable = lambda count, taken: None, *, primer: bytes = b"", segment: int | None = None,
             block_bits: int = BLOCK_BITS, embedded: bytes = b"", engine=None) -> Totals:
    """Read an original from a stream, and write its archive to another, segment by segment.

    mode, model, progress, primer, block_bits: as compressor.compress; without mode, fast or static.  segment: bytes of the
    original in each, by default as the mode says.  embedded: a packed model to put in front.  engine: who does the work; the
    bytes are the same whoever it is.
    """
    engine, ledger, original, compressed, fingerprint = engine or Here(), Ledger(), 0, 0, b""

    def tasks():
        chosen, size, tools, data, place = mode, segment, None, b"", 0
        path = path_of(source) if engine.elsewhere else None
        while True:
            if chosen is None:
                data += take(source, LARGEST_TRIAL - len(data))
                chosen = choose(data, model)
            size = size or segment_size(chosen, model)
            tools = tools or engine.share(model, primer)
            data += take(source, size - len(data))
            after, data = data[size:] or take(source, 1), data[:size]
            ledger.sha256.update(data)
            yield Encode(Range(path, place, len(data)) if path else data, len(data), short_hash(data), bool(place or after),
                         chosen, block_bits, tools)
            place, data = place + len(data), after
            if not after:
                return

    if embedded:
        member = skippable(MODEL, embedded)
        sink.write(member)
        ledger.entries.append((len(member), 0))
        compressed = len(member)
    for task, file in engine.run(tasks(), lambda count, taken=0: progress(count, compressed + taken)):
        sink.write(file)
        ledger.entries.append((len(file), task.size))
        original, compressed = original + task.size, compressed + len(file)
        fingerprint = fingerprint or glance(file).fingerprint
    if task.more:
        sink.write(index := ledger.index())
        compressed += len(index)
    return Totals(original, compressed, fingerprint)


def segment_size(mode: str, model=None) -> int:
    """How many bytes of the original a segment holds, if nobody says otherwise.  ValueError for an unknown mode."""
    if mode not in CODED:
        raise ValueError(f"mode must be one of {', '.join(CODED)}, but is {mode!r}")
    return MODES["online tokens" if mode == "online" and isinstance(model, TokenModel) else mode].segment


def decompress(source: BinaryIO, sink: BinaryIO, find_model: Callable, progress: Callable = lambda count: None, *,
               primer: bytes = b"", engine=None) -> Totals:
    """Read a compressed file from a stream, and write the originals of all its archives to another, segment by segment.

    find_model, progress, primer, and what a CoderError says: as compressor.decompress.  No byte of a segment is written before
    all of it is decoded and checked; but segments are written before those behind them are read.
    """
    engine, models, found = engine or Here(), Models(find_model), Unpacked()
    path = path_of(source) if engine.elsewhere else None
    tasks = decoding(members(source), engine, models, primer, path)
    for task, data in engine.run(tasks, lambda count, taken=None: progress(count)):
        if data is None:
            found.add(task)
        else:
            sink.write(data)
            found.add(task.member, data)
    return found.end()


class Unpacked:
    """Compares what comes out of a file, member by member, with what the file says about it."""

    def __init__(self):
        self.ledger, self.follow = Ledger(), False              # whether others must follow, and an index
        self.members, self.segments, self.original, self.compressed, self.fingerprint = 0, 0, 0, 0, b""

    def add(self, member: Member, data: bytes | None = None) -> None:
        """The next member and, if it is a segment, what it was decoded to.  CoderError where that does not fit."""
        if member.kind == INDEX:
            self.ledger.compare(member.data)
            self.ledger, self.follow = Ledger(), False
        else:
            self.ledger.entries.append((member.size, len(data or b"")))
        if data is not None:
            more, _, _, name = glance(member.data)
            if self.follow > more:
                raise CoderError(MISSING)
            self.ledger.sha256.update(data)
            self.ledger, self.follow = self.ledger if more else Ledger(), more
            self.segments, self.original = self.segments + 1, self.original + len(data)
            self.fingerprint = self.fingerprint or name
        self.members, self.compressed = self.members + 1, self.compressed + member.size

    def end(self) -> Totals:
        """The file has no other member."""
        if self.follow:
            raise CoderError(MISSING)
        if not self.segments:
            raise CoderError("the file has no segment" if self.members else "the file is empty")
        return Totals(self.original, self.compressed, self.fingerprint)


MISSING = "the file is cut off: behind its last segment others are missing, or at least the index"


def decoding(found: Iterable[Member], engine, models: "Models", primer: bytes, path: str | None = None) -> Iterator:
    """The tasks to decode all segments of a file, and the members between them, which are no tasks.  path: of the file, if the
    tasks are to read it themselves."""
    shared = {}                                                 # the same tools for all segments that need the same
    for member in found:
        if member.kind not in NAMES:
            if member.kind == MODEL:
                models.embedded += models_in(member.data)
            yield member
            continue
        header, blocks = read(member.data)
        for i, block in enumerate(blocks):
            if not block.whole:
                raise CoderError(f"{describe(i, blocks)} is damaged or cut off; {SALVAGE}")
        if header.fingerprint not in shared:
            shared.clear()
            shared[header.fingerprint] = engine.share(models.find(header.fingerprint) if header.fingerprint else None, primer)
        data = Range(path, member.place, member.size) if path else member.data
        yield Decode(data, header.length, header.more, member._replace(data=member.data[:64]), shared[header.fingerprint])


class Models:
    """Finds a model: embedded in this file, or elsewhere."""

    def __init__(self, find_model: Callable):
        self.find_elsewhere, self.embedded = find_model, []     # packed models, as they come by
        self.last = None, None                                  # the one that was found last, and its name

    def find(self, fingerprint: bytes):
        """The model of that short fingerprint.  CoderError where there is none, or an embedded one is damaged."""
        if self.last[1] != fingerprint:
            self.last = self._find(fingerprint), fingerprint
        return self.last[0]

    def _find(self, fingerprint):
        for file in self.embedded:
            try:
                model = packed.unpack(file)[0]
            except ValueError as error:
                raise CoderError(f"the model in the file cannot be read: {error}") from None
            if short_fingerprint(model) == fingerprint:
                return model
        return self.find_elsewhere(fingerprint)

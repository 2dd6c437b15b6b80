"""A part of a compressed file, and what is left of a damaged one.  Both need a file that can be read anywhere."""

import os
from collections import deque
from collections.abc import Callable
from itertools import accumulate
from typing import BinaryIO, NamedTuple

from .archive import (HEAD, SIZE, Decode, Here, Member, Models, Range, Totals, content_of, glance, models_in, path_of,
                      read_index, take)
from .compressor import salvage as salvage_segment
from .container import INDEX, MAGIC, MODEL, NAMES, CoderError, begin, read

SMALLEST = 21                   # bytes of a segment: in a smaller gap there was none


# --- a part -----------------------------------------------------------------------------------------------------------

class Part(NamedTuple):
    """A segment, or a member that holds nothing of the original: then its length is 0."""
    place: int              # in the file
    size: int               # there
    start: int              # in the original
    length: int             # there


def table(file: BinaryIO) -> list[Part]:
    """The members of a file that hold something of the original or a model, through its indices where it has them.

    CoderError where it is damaged.
    """
    end, found = file.seek(0, os.SEEK_END), []              # (place, size, length) of each, the last first
    while end:
        kind, place = from_end(file, end)
        if kind == INDEX:
            for size, length in reversed(read_index(read_at(file, place, end - place))[0]):
                place -= size
                found.append((place, size, length))
            if place < 0:
                raise CoderError("the index of the file is damaged: it knows of members before the beginning of the file")
        elif kind is None:
            found += [*forward(file, end)][::-1]
            place = 0
        end = place
    parts, start = [], 0
    for place, size, length in reversed(found):
        parts.append(Part(place, size, start, length))
        start += length
    return parts


def from_end(file, end):
    """(kind, place) of the member that ends there, if it is an index or may be skipped; else (None, None)."""
    place = end - int.from_bytes(read_at(file, max(0, end - SIZE), SIZE), "little")
    if 0 <= place < end:
        head = read_at(file, place, HEAD)
        if head.startswith(MAGIC):
            kind, _, size = begin(head)
            if kind >= INDEX and place + size == end:
                return kind, place
    return None, None


def forward(file, end):
    """(place, size, length) of each segment and model before `end`, from one header to the next."""
    place = 0
    while place < end:
        head = read_at(file, place, 64)
        kind, _, size = begin(head)
        if place + size > end:
            raise CoderError(f"the file is cut off or damaged: the member at byte {place:,} goes beyond its end")
        if kind in NAMES or kind == MODEL:
            yield place, size, glance(head).length if kind in NAMES else 0
        place += size


def read_at(file, place, size):
    file.seek(place)
    return take(file, size)


def extract(file: BinaryIO, sink: BinaryIO, start: int, stop: int | None, find_model: Callable,
            progress: Callable = lambda count: None, *, primer: bytes = b"", engine=None) -> Totals:
    """Write the bytes from start to stop (excluded; None: to the end) of the original of a file that can be read anywhere.

    Only the segments that hold them are read.  CoderError where there are no such bytes, or as `decompress`.
    """
    engine, models, parts = engine or Here(), Models(find_model), table(file)
    total = parts[-1].start + parts[-1].length if parts else 0
    stop = total if stop is None else stop
    if not 0 <= start <= stop <= total:
        raise CoderError(f"bytes {start:,} to {stop:,} are not all there: the original has {total:,} bytes")

    def tasks():
        shared, path = {}, path_of(file) if engine.elsewhere else None
        for part in parts:
            if not (part.length and part.start < stop and start < part.start + part.length):
                continue
            data = read_at(file, part.place, part.size)
            name = glance(data).fingerprint
            if name not in shared:
                shared.clear()
                if name:
                    before = [read_at(file, p.place, p.size) for p in parts if not p.length and p.place < part.place]
                    models.embedded = [model for member in before for model in models_in(member)]
                shared[name] = engine.share(models.find(name) if name else None, primer)
            yield Decode(Range(path, part.place, part.size) if path else data, part.length, stop - start > part.length, None,
                         shared[name], max(0, start - part.start), min(stop - part.start, part.length))

    for _, data in engine.run(tasks(), lambda count, taken=None: progress(count)):
        sink.write(data)
    return Totals(stop - start, file.seek(0, os.SEEK_END), b"")


# --- what is left -----------------------------------------------------------------------------------------------------

class Salvaged(NamedTuple):
    written: int            # bytes
    missing: list           # (start, stop) of the original; stop is None where that is unknown, and so are those that follow it


def salvage(file: bytes, sink: BinaryIO, find_model: Callable, progress: Callable = lambda count: None,
            primer: bytes = b"") -> Salvaged:
    """Write the bytes of all intact blocks of a damaged file (or a map of it), joined.

    Members are searched for wherever they may begin.  Where an index is intact, it says what else there was.
    CoderError where no part of the file is intact.
    """
    models, written, start, missing = Models(find_model), 0, 0, []
    found, gaps = search(file)
    if not found:
        raise CoderError("no part of the file is intact" if file else "the file is empty")
    models.embedded = [content_of(file[m.place:m.place + m.size]) for m in found if m.kind == MODEL]
    for member, length in expected(file, found, gaps):
        if member is None:
            missing.append((start, None if length is None else start + length))
        else:
            data, lost = salvage_segment(file[member.place:member.place + member.size], models.find, progress, primer)
            sink.write(data)
            written += len(data)
            missing += [(start + first, start + last) for first, last in lost]
        start += length or 0
    return Salvaged(written, missing)


def search(file: bytes) -> tuple[list[Member], list[int]]:
    """The members of a damaged file whose headers are intact, without their data; and where there is something else."""
    found, gaps, place = [], [], 0
    while 0 <= place < len(file):
        try:
            kind, _, size = begin(file[place:place + HEAD])
            end, whole = place + size, True
            if kind in NAMES:
                whole = all(block.whole for block in read(file[place:end], strict=False)[1])
            elif kind == INDEX:
                read_index(file[place:end])
            elif from_end_of(file, end) != place:
                raise CoderError("a damaged member")
        except CoderError:
            following = file.find(MAGIC, place + 1)
            if (len(file) if following < 0 else following) - place >= SMALLEST:
                gaps.append(place)
            place = following
            continue
        found.append(Member(kind, place, size, b""))
        # Where bytes were lost or inserted, the next member is not where this one should end.
        place = end if whole or end >= len(file) or file[end:end + len(MAGIC)] == MAGIC else file.find(MAGIC, place + 1)
    return found, gaps


def from_end_of(file, end):
    return end - int.from_bytes(file[end - SIZE:end], "little")


def expected(file, found, gaps):
    """(segment or None, length) of each part that the original had, as far as this can be known; None: it is lost.

    A lost part whose length is None is of unknown length.
    """
    segments = [m for m in found if m.kind in NAMES]
    for index in [m for m in found if m.kind == INDEX]:
        before = [m for m in segments if m.place < index.place]
        matched = fit(index, before, read_index(file[index.place:index.place + index.size])[0])
        first = min([m.place for m, length in matched if m] or [index.place])
        lost = [g for g in gaps if g < first] if matched and matched[0][0] else []
        yield from known(file, [m for m in before if m.place < first], lost)
        yield from matched
        segments, gaps = [m for m in segments if m.place > index.place], [g for g in gaps if g > index.place]
    yield from known(file, segments, gaps)


def fit(index, segments, entries):
    """(segment or None, length) of each of an index's entries that holds something: the segment that stands in its place, or,
    where bytes were lost or inserted before the index, the next one of its size that does not stand in another's place."""
    places = [*accumulate((size for size, _ in entries), initial=index.place - sum(size for size, _ in entries))]
    taken, matched = set(places), []
    here, moved = {m.place: m for m in segments if m.place in taken}, deque(m for m in segments if m.place not in taken)
    for place, (size, length) in zip(places, entries):
        if length:
            found = here.get(place) or next((m for m in moved if m.size == size), None)
            while found and moved and moved[0].place <= found.place:
                moved.popleft()
            matched.append((found, length))
    return matched


def known(file, segments, gaps):
    """`expected` where there is no index."""
    last = None
    for place, member in sorted([*((m.place, m) for m in segments), *((g, None) for g in gaps)], key=lambda pair: pair[0]):
        last = glance(file[place:place + 64]) if member else None
        yield member, last.length if member else None
    if last and last.more:
        yield None, None

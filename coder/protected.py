"""Compressed files with parity, as streams: how it is appended, and used where a file is damaged."""

import hashlib
import io
import mmap
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO

from .archive import glance, members
from .container import INDEX, NAMES, SALVAGE, CoderError
from .parity import Mended, choose, pieces, protect
from .slices import SIZE, find


@contextmanager
def protecting(sink: BinaryIO, percent: float | None) -> Iterator[BinaryIO]:
    """A stream whose bytes go to the sink at the end, and their parity behind them; without `percent`, the sink itself."""
    if percent is None:
        yield sink
        return
    protect(b"", percent)                       # an error before the work
    with tempfile.TemporaryFile() as part:
        yield part
        part.seek(0)
        shutil.copyfileobj(part, sink)
        sink.write(protect(mapped(part), percent))


@contextmanager
def mended(source: BinaryIO, tell: Callable, salvage: bool = False) -> Iterator[BinaryIO]:
    """The file that the source was before it was damaged, if it has parity; else the source itself.

    tell(Mended) is called if it was damaged.  A source that is no file, but a pipe, is read as it is.
    CoderError where too much of it is damaged, unless salvage: then the source as it is.
    """
    whole, found = source, Mended(0, 0, 0, 0, 0)
    if source.seekable() and source.tell() == 0:
        try:
            if find(mapped(source)):
                whole, found = repaired(source)
        except CoderError as error:
            if not salvage:
                raise CoderError(f"{error}; {SALVAGE}") from None
    if whole is source:
        yield source
        return
    tell(found)
    with whole:
        yield whole


def repaired(source: BinaryIO) -> tuple[BinaryIO, Mended]:
    """The file that the source was, in a temporary file, or the source if it is intact; and what was wrong with it.

    CoderError where too much is damaged, or the result has the same archive twice: it may have been joined with itself, or most
    of it was doubled by what damaged it, and nothing tells which.
    """
    parts, found = pieces(mapped(source))
    if not any(found[1:]):
        return source, found
    whole = tempfile.TemporaryFile()
    whole.writelines(parts)
    whole.seek(0)
    ends = []                                   # what is in a file once for each archive: its index, or its only segment
    with suppress(CoderError):                  # told by those who decode it
        ends = [hashlib.sha256(member.data).digest() for member in members(whole)
                if member.kind == INDEX or member.kind in NAMES and not glance(member.data[:64]).more]
    if len(set(ends)) < len(ends):
        whole.close()
        raise CoderError("the file is damaged, and has the same data twice: it was joined with itself, or a part of it was "
                         "doubled")
    whole.seek(0)
    return whole, found


def mapped(stream):
    """All bytes of a file, in memory only as far as they are read.  Closed when the last piece of it is forgotten."""
    place = stream.tell()
    size = stream.seek(0, os.SEEK_END)
    stream.seek(place)
    try:
        return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
    except io.UnsupportedOperation:                 # it is in memory
        data = stream.read()
        stream.seek(place)
        return data


def parity_size(length: int, percent: float | None) -> int:
    """How many bytes `protecting` appends to a file of that length."""
    plan = choose(length, percent or 100)
    return plan.place(plan.records) + SIZE - length if percent else 0


def describe(found: Mended) -> str:
    """What was wrong, in words."""
    return (f"slices computed from the parity: {found.data + found.parity:,} of {found.slices:,}"
            f"{f', moved back: {found.moved:,}' if found.moved else ''}"
            f"{f', bytes left out: {found.surplus:,}' if found.surplus else ''}")

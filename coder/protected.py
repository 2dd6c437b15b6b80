"""Compressed files with parity, as streams: how it is appended, and used where a file is damaged."""

import io
import mmap
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import BinaryIO

from .container import SALVAGE, CoderError
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
    parts, found = [], Mended(0, 0, 0, 0, 0)
    if source.seekable() and source.tell() == 0:
        try:
            if find(mapped(source)):
                parts, found = repaired(source)
        except CoderError as error:
            if not salvage:
                raise CoderError(f"{error}; {SALVAGE}") from None
    if not any(found[1:]):
        yield source
        return
    tell(found)
    with tempfile.TemporaryFile() as whole:
        whole.writelines(parts)
        whole.seek(0)
        yield whole


def repaired(source: BinaryIO) -> tuple[list, Mended]:
    """parity.pieces of a file."""
    return pieces(mapped(source))


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

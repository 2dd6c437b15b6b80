"""The compressor as a library, modelled on Python's gzip and lzma: `import coder`.

    >>> import coder
    >>> data = b"one line of text, and then another line of text\\n" * 50
    >>> packed = coder.compress(data, "fast")
    >>> len(packed) < 100, coder.decompress(packed) == data
    (True, True)

A model is named as on the command line (a checkpoint, a packed model, smollm2, a GGUF file), or given as an object; by default
it is the bundled one.  Everything raises coder.CoderError, with one sentence, where a file is damaged, foreign or of another
version, or a model is missing.
"""

import builtins
import io
import os
from bisect import bisect_right
from contextlib import nullcontext
from pathlib import Path
from typing import IO, BinaryIO

from . import archive, engines, models
from .archive import HEAD, LARGEST_TRIAL, Encode, Here, Ledger, Models, Unpacked, decoding, members, segment_size
from .compressor import BLOCK_BITS, choose, extract, short_hash
from .container import MAGIC, MODES, CoderError, begin
from .retrieve import Part, read_at, table

Model = object      # a path, or a GPT, an Ensemble or a TokenModel


def compress(data: bytes, mode: str | None = None, *, model: "Model | None" = None, primer: bytes = b"",
             segment: int | None = None, workers: int = 1) -> bytes:
    """The compressed file of data.

    mode: of the command line's; by default static with a model, or tokens with a published one, fast with a primer, else
    whichever of fast and static compresses the beginning better.  primer: a text like data, which both sides have.  segment:
    bytes of data in each segment.  workers: processes to share the segments; a script that asks for more than 1 needs the usual
    guard `if __name__ == "__main__":`.
    """
    mode, model = _chosen(mode, model, primer)
    out = io.BytesIO()
    with _engine(workers) as engine:
        archive.compress(io.BytesIO(data), out, mode, model, primer=primer, segment=segment, engine=engine)
    return out.getvalue()


def decompress(data: bytes, *, model: "Model | None" = None, primer: bytes = b"", workers: int = 1) -> bytes:
    """The original of a compressed file, checked.  model, primer: what it was compressed with, if it was, and does not hold it.

    >>> import coder
    >>> coder.decompress(coder.compress(b"") + coder.compress(b"two files") + coder.compress(b" joined"))
    b'two files joined'
    """
    out = io.BytesIO()
    with _engine(workers) as engine:
        archive.decompress(io.BytesIO(data), out, _finder(model), primer=primer, engine=engine)
    return out.getvalue()


class Compressor:
    """Compresses a stream of data, segment by segment.

    >>> import coder
    >>> compressor = coder.Compressor("fast", segment=1000)
    >>> packed = b"".join(compressor.compress(b"a line of text\\n" * 40) for _ in range(5)) + compressor.flush()
    >>> coder.decompress(packed) == b"a line of text\\n" * 200
    True
    """

    def __init__(self, mode: str | None = None, *, model: "Model | None" = None, primer: bytes = b"",
                 segment: int | None = None):
        self.mode, self.model = _chosen(mode, model, primer)
        self.primer, self.segment = primer, segment
        self._data, self._ledger = bytearray(), Ledger()

    def compress(self, data: bytes) -> bytes:
        """Take data, and return what is compressed by now: nothing, until a segment is full and another begins."""
        self._data += data
        out = []
        while len(self._data) > (LARGEST_TRIAL if self.mode is None else self._size()):
            if self.mode is None:
                self.mode = choose(bytes(self._data[:LARGEST_TRIAL]), self.model)
            else:
                out.append(self._cut(True))
        return b"".join(out)

    def flush(self) -> bytes:
        """The rest of the file."""
        if self.mode is None:
            self.mode = choose(bytes(self._data), self.model)
        several = bool(self._ledger.entries)
        return self._cut(several) + (self._ledger.index() if several else b"")

    def _size(self):
        return self.segment or segment_size(self.mode, self.model)

    def _cut(self, more):
        data = bytes(self._data[:self._size()])
        del self._data[:len(data)]
        task = Encode(data, len(data), short_hash(data), more, self.mode, BLOCK_BITS, Here.share(self.model, self.primer))
        file = task()
        self._ledger.entries.append((len(file), len(data)))
        self._ledger.sha256.update(data)
        return file


class Decompressor:
    """Decompresses a stream, segment by segment.

    >>> import coder
    >>> packed, decompressor = coder.compress(b"a line of text\\n" * 200, "fast", segment=1000), coder.Decompressor()
    >>> data = b"".join(decompressor.decompress(packed[i:i + 10]) for i in range(0, len(packed), 10))
    >>> decompressor.flush()
    >>> data == b"a line of text\\n" * 200
    True
    """

    def __init__(self, *, model: "Model | None" = None, primer: bytes = b""):
        self.primer = primer
        self._data, self._models, self._unpacked, self._skip = bytearray(), Models(_finder(model)), Unpacked(), 0

    def decompress(self, data: bytes) -> bytes:
        """Take a part of the file, and return what it can decompress by now: all segments that are complete."""
        self._data += data
        return b"".join(self._complete())

    def _complete(self):
        while len(self._data) >= HEAD:
            if self._unpacked.members and not self._data.startswith(MAGIC):
                raise CoderError("bytes that are no part of a compressed file follow its end")
            _, _, size = begin(bytes(self._data[:HEAD]))
            if size > archive.TOO_LARGE:
                raise CoderError(f"the header is damaged: it claims a part of {size:,} bytes")
            if len(self._data) < size:
                return
            file = bytes(self._data[:size])
            del self._data[:size]
            for task in decoding(members(io.BytesIO(file)), Here(), self._models, self.primer):
                part = task() if callable(task) else None
                self._unpacked.add(task if part is None else task.member, part)
                yield part or b""

    def flush(self) -> None:
        """The file is at its end.  CoderError where it should not be."""
        if self._data:
            raise CoderError("the file is cut off")
        self._unpacked.end()


def open(path: str | os.PathLike, mode: str = "rb", *, model: "Model | None" = None, primer: bytes = b"",
         compress_mode: str | None = None, segment: int | None = None, encoding: str | None = None) -> IO:
    """A compressed file as a file object of its original.

    mode: rb or wb, or rt or wt for text.  Reading can seek: only the segments that it needs are read and decoded.

    >>> import coder, os, tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), "text.mgz")
    >>> with coder.open(path, "wt", compress_mode="fast") as file:
    ...     count = file.write("the first line\\nthe second line\\n")
    >>> with coder.open(path, "rt") as file:
    ...     print(file.read(), end="")
    the first line
    the second line
    >>> with coder.open(path) as file:
    ...     place = file.seek(-5, os.SEEK_END)
    ...     file.read()
    b'line\\n'
    """
    if mode not in ("r", "rb", "rt", "w", "wb", "wt"):
        raise ValueError(f"the mode must be rb, wb, rt or wt, but is {mode!r}")
    stream: io.BufferedReader | io.BufferedWriter
    if mode[0] == "r":
        stream = io.BufferedReader(SegmentReader(builtins.open(path, "rb"), model, primer))
    else:
        compressor = Compressor(compress_mode, model=model, primer=primer, segment=segment)
        stream = io.BufferedWriter(SegmentWriter(builtins.open(path, "wb"), compressor))
    return io.TextIOWrapper(stream, encoding=encoding or "utf-8") if mode.endswith("t") else stream


class SegmentReader(io.RawIOBase):
    """What `open` reads from: it decodes the segment at its position, and keeps it until it needs another."""

    def __init__(self, file: BinaryIO, model: "Model | None", primer: bytes):
        self._file, self._primer, self._models = file, primer, Models(_finder(model))
        try:
            parts = table(file)
        except BaseException:
            file.close()
            raise
        self._others = [part for part in parts if not part.length]
        self._parts = [part for part in parts if part.length]
        self._starts = [part.start for part in self._parts]
        self._size = self._starts[-1] + self._parts[-1].length if self._parts else 0
        self._position, self._data = 0, b""
        self._current: Part | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        if position < 0:
            raise ValueError(f"negative seek position {position}")
        self._position = position
        return position

    def readinto(self, buffer) -> int:
        if self._position >= self._size:
            return 0
        part = self._parts[bisect_right(self._starts, self._position) - 1]
        if part != self._current:
            self._current, self._data = None, b""               # its memory is the next one's
            self._models.embedded = [file for other in self._others if other.place < part.place
                                     for file in archive.models_in(read_at(self._file, other.place, other.size))]
            self._data = extract(read_at(self._file, part.place, part.size), self._models.find, primer=self._primer)
            self._current = part
        data = self._data[self._position - part.start:][:len(buffer)]
        buffer[:len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


class SegmentWriter(io.RawIOBase):
    """What `open` writes to."""

    def __init__(self, file: BinaryIO, compressor: Compressor):
        self._file, self._compressor = file, compressor

    def writable(self) -> bool:
        return True

    def write(self, data) -> int:
        data = bytes(data)
        self._file.write(self._compressor.compress(data))
        return len(data)

    def close(self) -> None:
        if not self.closed:
            try:
                self._file.write(self._compressor.flush())
            finally:
                self._file.close()
                super().close()


def _chosen(mode, model, primer):
    """(mode, model object) to compress with; no mode: to be chosen by the data."""
    mode = mode or ("fast" if primer and not model else None)
    if mode is not None and mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, but is {mode!r}")
    if mode is None or MODES[mode].needs_model:
        named = model is not None
        model = models.load(model)[0] if model is None or isinstance(model, (str, Path)) else model
        if mode is None and named:
            mode = "tokens" if isinstance(model, models.TokenModel) else "static"
    return mode, model


def _finder(model):
    """find_model for decompressing."""
    if model is None or isinstance(model, (str, Path)):
        return lambda fingerprint: models.load_fitting(fingerprint, model)
    return lambda fingerprint: model


def _engine(workers):
    return nullcontext(Here()) if workers == 1 else engines.processes(workers)

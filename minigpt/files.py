"""Files that are written whole or not at all."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def write_atomically(path: str | os.PathLike, data: bytes, like: str | os.PathLike | None = None) -> None:
    """Write data to a file beside `path` and move it there once it is whole and on the disk: see `replacing`."""
    with replacing(path, like) as file:
        file.write(data)


@contextmanager
def replacing(path: str | os.PathLike, like: str | os.PathLike | None = None) -> Iterator[BinaryIO]:
    """A file beside `path` to write to, which is moved there once it is whole and on the disk.

    Whatever fails (OSError) or interrupts it (Ctrl-C), `path` is left as it was and nothing is left beside it.  The file
    gets the times and the mode of the file `like`, and is readable by its owner alone until then; without `like`, it gets
    those of any new file.
    """
    path = Path(path)
    part = path.with_name(f".{secrets.token_hex(8)}.part")  # short, whatever the length of the file's own name
    mode = 0o666 if like is None else 0o600  # the system takes the umask off
    file = open(part, "xb", opener=lambda name, flags: os.open(name, flags, mode))
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if like is not None:
            shutil.copystat(like, part)
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise

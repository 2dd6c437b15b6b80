"""Numba's cache of compiled code: invalidated where Numba does not notice that it is stale, and announced where it is filled."""

import os
import sys
from pathlib import Path


def forget_stale_code(folder: str | os.PathLike, *used: str | os.PathLike) -> None:
    """Delete cached code of the files in `folder` that is older than the newest source in it, in the kernels, or in `used`.

    Numba recompiles a function when its own file changes, but not when a function that it calls in another file does.
    """
    sources = [path for place in (Path(__file__).parent, folder, *used) for path in Path(place).glob("*.py")]
    newest = max(path.stat().st_mtime for path in sources)
    cache = os.environ.get("NUMBA_CACHE_DIR") or os.devnull
    places = [Path(folder, "__pycache__"), *Path(cache).glob(Path(folder).name + "_*")]
    for path in (path for place in places for path in place.glob("*.nbi")):
        try:
            if path.stat().st_mtime < newest:
                path.unlink()
        except OSError:
            pass        # already gone, or in a folder that we cannot write to: then Numba caches elsewhere


def announce_compilation() -> None:
    """While Numba compiles something, say so on a terminal: a first run takes half a minute longer than the others."""
    from numba.core import event

    class Announcement(event.Listener):
        depth = count = 0

        def on_start(self, compilation):
            self.depth += 1
            if self.depth == 1 and sys.stderr and sys.stderr.isatty():
                self.count += 1
                name = compilation.data["dispatcher"].py_func.__name__.strip("_")
                print(f"\r\033[Kcompiling kernels (once): {self.count}, {name}", end="", file=sys.stderr, flush=True)

        def on_end(self, compilation):
            self.depth -= 1
            if self.depth == 0 and sys.stderr and sys.stderr.isatty():
                print("\r\033[K", end="", file=sys.stderr, flush=True)
    event.register("numba:compile", Announcement())

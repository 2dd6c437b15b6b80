"""Invalidates Numba's cache of compiled code where Numba itself does not notice that it is stale.  Does not import Numba."""

import os
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
            pass  # already gone, or in a folder that we cannot write to: then Numba caches elsewhere

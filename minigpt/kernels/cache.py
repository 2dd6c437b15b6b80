"""Numba's cache of compiled code, where Numba itself does not notice that it is stale.  Imports nothing of Numba."""

import os
from pathlib import Path


def forget_stale_code(folder, *used):
    """Delete what Numba compiled for the files in `folder` before the newest file in it, in the kernels, or in the folders
    `used` was written.

    Numba compiles a function anew when its own file changes, but not when one that it calls in another file does.
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
            pass        # gone already, or not ours to delete: then Numba keeps its code elsewhere

"""The arithmetic of the network: everything that depends on an order of floating-point operations happens here."""

import os
from contextlib import contextmanager
from pathlib import Path

from numba import get_num_threads, set_num_threads

# Threads that wait for each other do so in a loop, for milliseconds, before they sleep.  Between two kernels some microseconds
# are enough; and on a machine where others want the cores, too, the loop's full length makes training 100 times slower.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

LITTLE_WORK = 2 ** 18       # multiply-adds of one matrix product


@contextmanager
def threads_for(work):
    """All threads, or one where there is little work: to wake the others, and to wait for them, would cost more."""
    threads = get_num_threads()
    if work < LITTLE_WORK:
        set_num_threads(1)
    try:
        yield
    finally:
        set_num_threads(threads)


def forget_stale_code(folder):
    """Delete what Numba compiled for the files in `folder` before the newest of them, or the newest kernel, was written.

    Numba compiles a function anew when its own file changes, but not when one that it calls in another file does.
    """
    sources = [*Path(__file__).parent.glob("*.py"), *Path(folder).glob("*.py")]
    newest = max(path.stat().st_mtime for path in sources)
    for path in Path(folder).glob("__pycache__/*.nbi"):
        try:
            if path.stat().st_mtime < newest:
                path.unlink()
        except OSError:
            pass        # gone already, or not ours to delete: then Numba keeps its code elsewhere


forget_stale_code(Path(__file__).parent)
forget_stale_code(Path(__file__).parents[1])

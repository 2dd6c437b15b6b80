"""python -m minigpt verify --exhaustive: exp and log of all 2^32 floats, hashed, and how far they are from the truth.

The kernels have no other function.  A hash of every result on every machine is a proof for that machine; the largest error
says that the functions are also good.
"""

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numba import njit
from tqdm import tqdm

from .kernels.lanes import LANES, exp, load, log, store

PART = 2 ** 22                          # floats at a time; their hashes, in order, are hashed again
EXPECTED = {
    "exp": "",
    "log": "",
}


@njit(cache=True, nogil=True)
def exp_of(x, y):
    """y = exp(x); x, y (n,), n a multiple of 16."""
    for i in range(0, x.size, LANES):
        store(y, i, exp(load(x, i)))


@njit(cache=True, nogil=True)
def log_of(x, y):
    """y = log(x); x, y (n,), n a multiple of 16."""
    for i in range(0, x.size, LANES):
        store(y, i, log(load(x, i)))


KERNELS = {"exp": (exp_of, np.exp), "log": (log_of, np.log)}


def results(parts: int = 2 ** 32 // PART) -> Iterator[tuple[str, str, float]]:
    """(name, SHA-256 of the results for the first `parts` * PART bit patterns, largest error in units in the last place)."""
    for name in KERNELS:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            found = list(tqdm(pool.map(lambda part: _part(name, part), range(parts)), name, parts, leave=False, delay=1))
        yield name, hashlib.sha256(b"".join(digest for digest, _ in found)).hexdigest(), max(error for _, error in found)


def _part(name, part):
    """Of the bit patterns part * PART, ...: (SHA-256 of the results, largest error)."""
    kernel, truth = KERNELS[name]
    x = np.arange(part * PART, (part + 1) * PART, dtype=np.int64).astype(np.uint32).view(np.float32)
    y = np.empty_like(x)
    kernel(x, y)
    y[np.isnan(y)] = np.nan             # processors give NaN different signs and payloads
    digest = hashlib.sha256(y.astype("<f4", copy=False)).digest()
    inside = (np.abs(x) > 2.0 ** -30) & (x >= -87) & (x <= 88) if name == "exp" else (x >= 2.0 ** -126) & (x < np.inf)
    if not inside.any():                # there the result is 0, 1, the largest, infinite or NaN
        return digest, 0.0
    exact, y = truth(x[inside].astype(np.float64)), y[inside]
    return digest, float((np.abs(y - exact) / np.spacing(np.abs(exact).astype(np.float32))).max())


def report() -> bool:
    """Print a line for each function.  Returns whether all hashes are those expected."""
    same = True
    for name, value, error in results():
        same = same and value == EXPECTED[name]
        print(f"{name} of all 2^32 floats   {value[:16]}   {'same' if value == EXPECTED[name] else 'DIFFERENT'}   "
              f"largest error {error:.3f} units in the last place", flush=True)
    return same

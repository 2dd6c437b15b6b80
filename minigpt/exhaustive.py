"""python -m minigpt verify --exhaustive: exp and log of all 2^32 float32 numbers, hashed, and their largest errors."""

import hashlib
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numba import njit
from tqdm import tqdm

from .kernels.lanes import LANES, exp, load, log, store
from .kernels.threads import check_arithmetic, get_num_threads
from .verify import sha256

INPUTS = 2 ** 20             # of a chunk: the inputs and results of one stay in the second-level cache
CHUNKS = 2 ** 32 // INPUTS
# SHA-256 of the chunks' hashes in ascending order of the inputs' bits.
EXPECTED = {
    "exp": "6b62bfc91b033d63086f361f18fe03e879a9852d9f8bd4dd83f2f4622498c884",
    "log": "1b97d34273e3c207c705c21d5357dbbcfb44bfe1aa8f0457ce086fe6f2409e5f",
}


@njit(nogil=True, cache=True)
def exp_and_log(x, exponentials, logarithms):
    """Write exp and log of x (n,), n a multiple of 16."""
    for i in range(0, x.size, LANES):
        store(exponentials, i, exp(load(x, i)))
        store(logarithms, i, log(load(x, i)))


def examine(chunk: int) -> tuple[str, float, str, float]:
    """Of exp, then of log: the hash of the results of one chunk, and their largest error in units in the last place.

    The errors are those where a result is neither NaN nor clipped: of exp from -87 to 88, of log for normal positive numbers.
    """
    check_arithmetic(1)
    x = (np.arange(INPUTS, dtype=np.uint32) + np.uint32(chunk * INPUTS)).view(np.float32)
    exponentials, logarithms = np.empty_like(x), np.empty_like(x)
    exp_and_log(x, exponentials, logarithms)
    return (sha256(exponentials), largest_error(np.exp, x, exponentials, (x >= -87) & (x <= 88)),
            sha256(logarithms), largest_error(np.log, x, logarithms, (x >= np.float32(2.0 ** -126)) & (x < np.inf)))


def largest_error(function, x: np.ndarray, found: np.ndarray, where: np.ndarray) -> float:
    """Of the results found (n,), in units in the last place, against NumPy's function in float64; 0 where there are none."""
    if not where.any():
        return 0.0
    if not where.all():
        x, found = x[where], found[where]
    exact = function(x.astype(np.float64))
    power = (exact.astype(np.float32).view(np.uint32) & np.uint32(0x7F800000)).view(np.float32)     # 2^exponent
    unit = np.maximum(power.astype(np.float64) * 2.0 ** -23, 2.0 ** -149)
    return float((np.abs(found - exact) / unit).max())


def report() -> bool:
    """Examine all chunks and print what was found.  Returns whether both hashes are those expected."""
    start, digests, errors = time.perf_counter(), [hashlib.sha256(), hashlib.sha256()], [0.0, 0.0]
    pool = ThreadPoolExecutor(get_num_threads())
    try:
        for found in tqdm(pool.map(examine, range(CHUNKS)), "exp and log", CHUNKS, leave=False, delay=2):
            for i in range(2):
                digests[i].update(found[2 * i].encode())
                errors[i] = max(errors[i], found[2 * i + 1])
    finally:
        pool.shutdown(cancel_futures=True)          # after Ctrl-C
    hashes = dict(zip(EXPECTED, (digest.hexdigest() for digest in digests)))
    for (name, value), error in zip(hashes.items(), errors):
        print(f"{name} of all 2^32 inputs: {value[:16]}  {'same' if value == EXPECTED[name] else 'DIFFERENT'}, "
              f"error at most {error:.3f} units in the last place")
    print(f"in {time.perf_counter() - start:.0f} s")
    return hashes == EXPECTED

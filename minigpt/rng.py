"""Random numbers without a hidden state: each has an address, (seed, purpose, step, index), and is a function of it.

So a run that was interrupted at step 700 draws at step 701 what it would have drawn, and the dropout of one layer does
not move when another layer is added.  The function is Philox4x32-10, a block cipher with integer multiplications made
for this use [Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"].
"""

import zlib
from functools import lru_cache

import numpy as np
from numba import njit, uint32, uint64

from .kernels.threads import parallel_for

ROUNDS = 10
PART = 1024  # times four words that one iteration of the parallel loop makes
_WORD = uint64(0xFFFFFFFF)


@njit
def philox(c0, c1, c2, c3, k0, k1):
    """Encrypt the counter, four words of 32 bits, under the key, two words: four random words."""
    c0, c1, c2, c3, k0, k1 = uint64(c0), uint64(c1), uint64(c2), uint64(c3), uint64(k0), uint64(k1)
    for _ in range(ROUNDS):
        p, q = uint64(0xD2511F53) * c0, uint64(0xCD9E8D57) * c2
        c0, c1, c2, c3 = (q >> uint64(32)) ^ c1 ^ k0, q & _WORD, (p >> uint64(32)) ^ c3 ^ k1, p & _WORD
        k0, k1 = (k0 + uint64(0x9E3779B9)) & _WORD, (k1 + uint64(0xBB67AE85)) & _WORD
    return uint32(c0), uint32(c1), uint32(c2), uint32(c3)


@njit
def _fill_part(part, words, seed, purpose, step):
    words = words[part * PART : (part + 1) * PART]
    for i in range(len(words)):
        a, b, c, d = philox(part * PART + i, step & _WORD, step >> uint64(32), purpose, seed & _WORD, seed >> uint64(32))
        words[i, 0], words[i, 1], words[i, 2], words[i, 3] = a, b, c, d


@njit(cache=True)
def _fill(words, seed, purpose, step):
    parallel_for((len(words) + PART - 1) // PART, _fill_part, words, seed, purpose, step)


def words(seed: int, purpose: str, step: int, count: int) -> np.ndarray:
    """`count` random integers of 32 bits (uint32).  seed and step are integers in [0, 2^64), purpose is any text."""
    blocks = np.empty(((count + 3) // 4, 4), np.uint32)
    _fill(blocks, np.uint64(seed), np.uint64(zlib.crc32(purpose.encode())), np.uint64(step))
    return blocks.reshape(-1)[:count]


def uniform(seed: int, purpose: str, step: int, count: int) -> np.ndarray:
    """`count` float32 in [0, 1): the upper 24 bits of each word, so that the conversion is exact."""
    return (words(seed, purpose, step, count) >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)


def integers(seed: int, purpose: str, step: int, count: int, high: int) -> np.ndarray:
    """`count` integers (int64) in [0, high), high <= 2^32: the upper half of word * high."""
    return ((words(seed, purpose, step, count).astype(np.uint64) * np.uint64(high)) >> np.uint64(32)).astype(np.int64)


@lru_cache(maxsize=2)
def permutation(seed: int, purpose: str, step: int, count: int) -> np.ndarray:
    """0 .. count - 1 (int64) in random order; read-only, since the latest are remembered."""
    order = np.argsort(words(seed, purpose, step, count), kind="stable")
    order.flags.writeable = False
    return order


def keep(seed: int, purpose: str, step: int, count: int, drop: float) -> np.ndarray:
    """`count` booleans (uint8), each 0 with probability `drop`, to 1 part in 2^16: each word serves two of them."""
    pairs = words(seed, purpose, step, (count + 1) // 2).astype("<u4", copy=False)
    return (pairs.view("<u2")[:count] >= np.uint16(drop * 65536)).view(np.uint8)  # the lower half first

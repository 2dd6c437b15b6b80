"""Sums down the columns of x (N, C), sums by index, and the sum of squares of a whole array.

A column sum adds row after row, and each column is computed by one thread.
"""

import numpy as np
from numba import njit, prange

from .lanes import LANES, ZERO, fma, lane_sum, load_part, splat, store_part

PARTIAL = 4096      # elements of a partial sum in `sum_of_squares`: part of its order of addition


@njit
def column_sum(x, c, total):
    """total[c : c + 16] += the sum of these columns of x (N, C)."""
    N, C = x.shape
    lanes = load_part(total, c, C - c, ZERO)
    for i in range(N):
        lanes = lanes + load_part(x, i * C + c, C - c, ZERO)
    store_part(total, c, C - c, lanes)


@njit(parallel=True, cache=True)
def add_column_sums(x, total):
    """total (C,) += the sum of the rows of x (N, C)."""
    for block in prange((x.shape[1] + LANES - 1) // LANES):
        column_sum(x, block * LANES, total)


@njit(parallel=True, cache=True)
def add_rows_at(x, indices, table):
    """table[indices[i]] += x[i] for i ascending; x (N, C), indices (N,), table (V, C)."""
    N, C = x.shape
    for block in prange((C + LANES - 1) // LANES):
        c = block * LANES
        for i in range(N):
            at = indices[i] * C + c
            store_part(table, at, C - c, load_part(table, at, C - c, ZERO) + load_part(x, i * C + c, C - c, ZERO))


@njit
def _sum_of_squares(x, start, stop):
    total = splat(ZERO)
    for i in range(start, stop, LANES):
        lanes = load_part(x, i, stop - i, ZERO)
        total = fma(lanes, lanes, total)
    return lane_sum(total)


@njit
def sum_in_chunks(x):
    """`sum_of_squares`, computed by the calling thread alone."""
    total = ZERO
    for start in range(0, x.size, PARTIAL):
        total += _sum_of_squares(x, start, min(start + PARTIAL, x.size))
    return total


@njit(parallel=True, cache=True)
def sum_of_squares(x):
    """The sum of x[i]^2 over a contiguous array of any shape: partial sums of 4096 elements, added in order."""
    count = (x.size + PARTIAL - 1) // PARTIAL
    partial = np.empty(count, np.float32)
    for i in prange(count):
        partial[i] = _sum_of_squares(x, i * PARTIAL, min((i + 1) * PARTIAL, x.size))
    total = ZERO
    for i in range(count):
        total += partial[i]
    return total

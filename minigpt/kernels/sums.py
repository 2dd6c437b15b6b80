"""Sums down the columns of x (N, C), sums by index, and the sum of squares of a whole array.

A column sum adds row after row, and each column is computed by one thread.
"""

import numpy as np
from numba import njit

from .lanes import LANES, ZERO, fma, lane_sum, load_part, splat, store_part
from .threads import parallel_for

PARTIAL = 4096  # elements of a partial sum in `sum_of_squares`: part of its order of addition


@njit
def column_sum(block, x, total):
    """total[c] += the sum of column c of x (N, C), for the 16 columns from block * 16 on."""
    (N, C), c = x.shape, block * LANES
    lanes = load_part(total, c, C - c, ZERO)
    for i in range(N):
        lanes = lanes + load_part(x, i * C + c, C - c, ZERO)
    store_part(total, c, C - c, lanes)


@njit(cache=True)
def add_column_sums(x, total):
    """total (C,) += the sum of the rows of x (N, C)."""
    parallel_for((x.shape[1] + LANES - 1) // LANES, column_sum, x, total)


@njit
def _add_columns_at(block, x, indices, table):
    (N, C), c = x.shape, block * LANES
    for i in range(N):
        at = indices[i] * C + c
        store_part(table, at, C - c, load_part(table, at, C - c, ZERO) + load_part(x, i * C + c, C - c, ZERO))


@njit(cache=True)
def add_rows_at(x, indices, table):
    """table[indices[i]] += x[i] for i ascending; x (N, C), indices (N,), table (V, C)."""
    parallel_for((x.shape[1] + LANES - 1) // LANES, _add_columns_at, x, indices, table)


@njit
def _partial_sum(part, x, partial):
    stop, total = min((part + 1) * PARTIAL, x.size), splat(ZERO)
    for i in range(part * PARTIAL, stop, LANES):
        lanes = load_part(x, i, stop - i, ZERO)
        total = fma(lanes, lanes, total)
    partial[part] = lane_sum(total)


@njit(cache=True)
def sum_of_squares(x):
    """The sum of x[i]^2 over x (n,): partial sums of 4096 elements, added in order."""
    partial = np.empty((x.size + PARTIAL - 1) // PARTIAL, np.float32)
    parallel_for(len(partial), _partial_sum, x, partial)
    total = ZERO
    for i in range(len(partial)):
        total += partial[i]
    return total

"""Muon's orthogonalisation: a chain of small matrix products for each weight matrix, one thread per matrix."""

import numpy as np
from numba import njit

from .matmul import product
from .sums import sum_of_squares
from .threads import parallel_for

# X <- a X + b (X X^T) X + c (X X^T)^2 X maps each singular value s to a s + b s^3 + c s^5, which brings any s between
# about 0.002 and 1 near 1 in five iterations.  [Newton-Schulz; coefficients of Jordan et al. 2024, "Muon"]
ITERATIONS, A, B, C = 5, np.float32(3.4445), np.float32(-4.7750), np.float32(2.0315)
EPSILON = np.float32(1e-7)
BLOCK_ROWS = 48  # a multiple of the tile heights, 8 and 6


@njit(cache=True)
def orthogonalise(matrices):
    """Bring the singular values S of each U S V^T in matrices (n, rows, columns), float32, near 1, in place."""
    parallel_for(len(matrices), _orthogonalise, matrices)


@njit
def _orthogonalise(n, matrices):
    matrix = matrices[n]
    short, long = min(matrix.shape), max(matrix.shape)
    wide = matrix.shape[1] == long  # else orthogonalise the transpose
    x, y = np.empty((short, long), np.float32), np.empty((short, long), np.float32)
    square, fourth = np.empty((short, short), np.float32), np.empty((short, short), np.float32)
    for i in range(short):
        for j in range(long):
            x[i, j] = matrix[i, j] if wide else matrix[j, i]
    norm = np.sqrt(sum_of_squares(x.reshape(-1))) + EPSILON  # at least the largest singular value
    for i in range(short):
        for j in range(long):
            x[i, j] /= norm
    for _ in range(ITERATIONS):
        _times_own_transpose(x, square)
        _times_own_transpose(square, fourth)  # its square, as it is symmetric
        for i in range(short):
            for j in range(short):
                square[i, j] = B * square[i, j] + C * fourth[i, j]
            for j in range(long):
                y[i, j] = A * x[i, j]
        product(square, x, y, True)
        x, y = y, x
    for i in range(short):
        for j in range(long):
            if wide:
                matrix[i, j] = x[i, j]
            else:
                matrix[j, i] = x[i, j]


@njit
def _times_own_transpose(x, out):
    """out = x x^T: one half is computed, then mirrored, as the other multiplies the same numbers in the same order."""
    for i in range(0, len(x), BLOCK_ROWS):
        stop = min(i + BLOCK_ROWS, len(x))
        product(x[i:stop], x[:stop].T, out[i:stop, :stop], False)
        for row in range(i, stop):
            for column in range(row):
                out[column, row] = out[row, column]

"""LayerNorm and RMSNorm of the rows of a contiguous x (N, C).

Sums along a row are taken lane by lane (see lanes.py).  Each row is computed by one thread, so its bits depend neither on the
number of threads nor on the other rows.  epsilon (float32) is added to the mean square before its root is taken.
"""

import numpy as np
from numba import njit

from .lanes import LANES, ONE, ZERO, fma, lane_sum, load_part, splat, store_part
from .sums import column_sum
from .threads import parallel_for

AT_A_TIME, FLOATS = 8, 1024  # the most rows, and about the most floats, of a block: it should stay in the first-level cache


# --- layer norm -------------------------------------------------------------------------------------------------------


@njit(cache=True)
def layer_norm_forward(x, gain, bias, epsilon, y, mean, rstd):
    """Normalise each row of x (N, C) to mean 0 and variance 1, scale it by gain (C,), add bias (C,).  [Ba et al. 2016]

    Writes y (N, C) and, for the backward pass, mean (N,) and rstd (N,), the reciprocal of the standard deviation.
    """
    parallel_for(_blocks(x), _layer_norm_rows, x, gain, bias, epsilon, y, mean, rstd)


@njit
def _layer_norm_rows(block, x, gain, bias, epsilon, y, mean, rstd):
    (start, stop), C = _block(block, x), x.shape[1]
    for i in range(start, stop):
        mean[i] = _mean(x, i * C, C)
    for i in range(start, stop):
        rstd[i] = _rstd(x, i * C, C, mean[i], epsilon)
    for i in range(start, stop):
        _shift_and_scale(x, i, mean[i], rstd[i], gain, bias, y)


@njit
def _shift_and_scale(x, i, mean, rstd, gain, bias, y):
    C, m, r = x.shape[1], splat(mean), splat(rstd)
    for c in range(0, C, LANES):
        n = (load_part(x, i * C + c, C - c, ZERO) - m) * r
        store_part(y, i * C + c, C - c, fma(n, load_part(gain, c, C - c, ZERO), load_part(bias, c, C - c, ZERO)))


@njit
def layer_norm_row(x, i, gain, bias, epsilon, y):
    """Row i of `layer_norm_forward`."""
    C = x.shape[1]
    mean = _mean(x, i * C, C)
    _shift_and_scale(x, i, mean, _rstd(x, i * C, C, mean, epsilon), gain, bias, y)


# With n = (x - mean) * rstd and g = dy * gain; every x affects its whole row through mean and rstd:
#   dx = rstd * (g - mean(g) - n * mean(g * n)),  dgain = sum over rows of dy * n,  dbias = sum over rows of dy
@njit(cache=True)
def layer_norm_backward(dy, x, gain, mean, rstd, dx, dgain, dbias):
    """Write dx (N, C); add to dgain (C,) and dbias (C,).  dy, x (N, C); gain (C,); mean, rstd (N,)."""
    means = np.empty((2, len(x)), np.float32)
    parallel_for(_blocks(x), _norm_rows_backward, dy, x, gain, mean, rstd, True, means, dx)
    parallel_for((x.shape[1] + LANES - 1) // LANES, _gain_backward, dy, x, mean, rstd, dgain)
    parallel_for((x.shape[1] + LANES - 1) // LANES, column_sum, dy, dbias)


# --- RMS norm: the same without the mean --------------------------------------------------------------------------------


@njit(cache=True)
def rms_norm_forward(x, gain, epsilon, y, rstd):
    """Divide each row of x (N, C) by its root mean square, scale it by gain (C,).  [Zhang and Sennrich 2019]

    Writes y (N, C) and, for the backward pass, rstd (N,), the reciprocal of the root mean square.
    """
    parallel_for(_blocks(x), _rms_norm_rows, x, gain, epsilon, y, rstd)


@njit
def _rms_norm_rows(block, x, gain, epsilon, y, rstd):
    (start, stop), C = _block(block, x), x.shape[1]
    for i in range(start, stop):
        rstd[i] = _rstd(x, i * C, C, ZERO, epsilon)
    for i in range(start, stop):
        _scale(x, i, rstd[i], gain, y)


@njit
def _scale(x, i, rstd, gain, y):
    C, r = x.shape[1], splat(rstd)
    for c in range(0, C, LANES):
        store_part(y, i * C + c, C - c, load_part(x, i * C + c, C - c, ZERO) * r * load_part(gain, c, C - c, ZERO))


@njit
def rms_norm_row(x, i, gain, epsilon, y):
    """Row i of `rms_norm_forward`."""
    _scale(x, i, _rstd(x, i * x.shape[1], x.shape[1], ZERO, epsilon), gain, y)


# n = x * rstd, g = dy * gain:  dx = rstd * (g - n * mean(g * n)),  dgain = sum over rows of dy * n
@njit(cache=True)
def rms_norm_backward(dy, x, gain, rstd, dx, dgain):
    """Write dx (N, C); add to dgain (C,).  dy, x (N, C); gain (C,); rstd (N,)."""
    mean, means = np.zeros(len(x), np.float32), np.empty((2, len(x)), np.float32)
    parallel_for(_blocks(x), _norm_rows_backward, dy, x, gain, mean, rstd, False, means, dx)
    parallel_for((x.shape[1] + LANES - 1) // LANES, _gain_backward, dy, x, mean, rstd, dgain)


@njit
def _blocks(x):
    rows = _rows(x)
    return (len(x) + rows - 1) // rows


@njit
def _rows(x):
    return max(2, min(AT_A_TIME, FLOATS // max(x.shape[1], 1)))


@njit
def _block(block, x):
    """(start, stop) of a block's rows."""
    rows = _rows(x)
    return block * rows, min((block + 1) * rows, len(x))


@njit
def _mean(x, at, C):
    total = splat(ZERO)
    for c in range(0, C, LANES):
        total = total + load_part(x, at + c, C - c, ZERO)
    return lane_sum(total) / np.float32(C)


@njit
def _rstd(x, at, C, mean, epsilon):
    total, m = splat(ZERO), splat(mean)
    for c in range(0, C, LANES):
        centred = load_part(x, at + c, C - c, mean) - m  # 0 past the end of the row
        total = fma(centred, centred, total)
    return ONE / np.sqrt(lane_sum(total) / np.float32(C) + epsilon)


@njit
def _norm_rows_backward(block, dy, x, gain, mean, rstd, centred, means, dx):
    (start, stop), C = _block(block, x), x.shape[1]
    for i in range(start, stop):
        at, m, r, sum_g, sum_gn = i * C, splat(mean[i]), splat(rstd[i]), splat(ZERO), splat(ZERO)
        for c in range(0, C, LANES):
            g = load_part(dy, at + c, C - c, ZERO) * load_part(gain, c, C - c, ZERO)
            n = (load_part(x, at + c, C - c, ZERO) - m) * r
            sum_g = sum_g + g
            sum_gn = fma(g, n, sum_gn)
        means[0, i] = lane_sum(sum_g) / np.float32(C) if centred else ZERO
        means[1, i] = lane_sum(sum_gn) / np.float32(C)
    for i in range(start, stop):
        at, m, r = i * C, splat(mean[i]), splat(rstd[i])
        mean_g, minus_mean_gn = splat(means[0, i]), splat(-means[1, i])
        for c in range(0, C, LANES):
            g = load_part(dy, at + c, C - c, ZERO) * load_part(gain, c, C - c, ZERO)
            n = (load_part(x, at + c, C - c, ZERO) - m) * r
            store_part(dx, at + c, C - c, r * fma(n, minus_mean_gn, g - mean_g))


@njit
def _gain_backward(block, dy, x, mean, rstd, dgain):
    (N, C), c = x.shape, block * LANES
    total = load_part(dgain, c, C - c, ZERO)
    for i in range(N):
        n = (load_part(x, i * C + c, C - c, ZERO) - splat(mean[i])) * splat(rstd[i])
        total = fma(load_part(dy, i * C + c, C - c, ZERO), n, total)
    store_part(dgain, c, C - c, total)

"""LayerNorm and RMSNorm of the rows of a contiguous x (N, C).

A sum along a row adds in lanes (see lanes.py).  Each row is computed by one thread, so its bits depend neither on the number of
threads nor on the other rows.  epsilon (float32) is added to the mean square before its root is taken.
"""

import numpy as np
from numba import njit

from .lanes import LANES, ONE, ZERO, fma, lane_sum, load_part, splat, store_part
from .sums import column_sum
from .threads import parallel_for


# --- layer norm -------------------------------------------------------------------------------------------------------


@njit(cache=True)
def layer_norm_forward(x, gain, bias, epsilon, y, mean, rstd):
    """Normalise each row of x (N, C) to mean 0 and variance 1, scale it by gain (C,), add bias (C,).  [Ba et al. 2016]

    Writes y (N, C) and, for the backward pass, mean (N,) and rstd (N,), the reciprocal of the standard deviation.
    """
    parallel_for(len(x), _layer_norm_row, x, gain, bias, epsilon, y, mean, rstd)


@njit
def _layer_norm_row(i, x, gain, bias, epsilon, y, mean, rstd):
    mean[i], rstd[i] = layer_norm_row(x, i, gain, bias, epsilon, y)


@njit
def layer_norm_row(x, i, gain, bias, epsilon, y):
    """Row i of `layer_norm_forward`; returns its mean and rstd."""
    C = x.shape[1]
    mean, rstd = _mean_and_rstd(x, i * C, C, epsilon)
    m, r = splat(mean), splat(rstd)
    for c in range(0, C, LANES):
        n = (load_part(x, i * C + c, C - c, ZERO) - m) * r
        store_part(y, i * C + c, C - c, fma(n, load_part(gain, c, C - c, ZERO), load_part(bias, c, C - c, ZERO)))
    return mean, rstd


# With n = (x - mean) * rstd and g = dy * gain; every x affects its whole row through mean and rstd:
#   dx = rstd * (g - mean(g) - n * mean(g * n)),  dgain = sum over rows of dy * n,  dbias = sum over rows of dy
@njit(cache=True)
def layer_norm_backward(dy, x, gain, mean, rstd, dx, dgain, dbias):
    """Write dx (N, C); add to dgain (C,) and dbias (C,).  dy, x (N, C); gain (C,); mean, rstd (N,)."""
    parallel_for(len(x), _norm_row_backward, dy, x, gain, mean, rstd, True, dx)
    parallel_for((x.shape[1] + LANES - 1) // LANES, _gain_backward, dy, x, mean, rstd, dgain)
    parallel_for((x.shape[1] + LANES - 1) // LANES, column_sum, dy, dbias)


# --- RMS norm: the same without the mean --------------------------------------------------------------------------------


@njit(cache=True)
def rms_norm_forward(x, gain, epsilon, y, rstd):
    """Divide each row of x (N, C) by its root mean square, scale it by gain (C,).  [Zhang and Sennrich 2019]

    Writes y (N, C) and, for the backward pass, rstd (N,), the reciprocal of the root mean square.
    """
    parallel_for(len(x), _rms_norm_row, x, gain, epsilon, y, rstd)


@njit
def _rms_norm_row(i, x, gain, epsilon, y, rstd):
    rstd[i] = rms_norm_row(x, i, gain, epsilon, y)


@njit
def rms_norm_row(x, i, gain, epsilon, y):
    """Row i of `rms_norm_forward`; returns its rstd."""
    C = x.shape[1]
    rstd = _rstd(x, i * C, C, ZERO, epsilon)
    r = splat(rstd)
    for c in range(0, C, LANES):
        store_part(y, i * C + c, C - c, load_part(x, i * C + c, C - c, ZERO) * r * load_part(gain, c, C - c, ZERO))
    return rstd


# n = x * rstd, g = dy * gain:  dx = rstd * (g - n * mean(g * n)),  dgain = sum over rows of dy * n
@njit(cache=True)
def rms_norm_backward(dy, x, gain, rstd, dx, dgain):
    """Write dx (N, C); add to dgain (C,).  dy, x (N, C); gain (C,); rstd (N,)."""
    mean = np.zeros(len(x), np.float32)
    parallel_for(len(x), _norm_row_backward, dy, x, gain, mean, rstd, False, dx)
    parallel_for((x.shape[1] + LANES - 1) // LANES, _gain_backward, dy, x, mean, rstd, dgain)


@njit
def _rstd(x, at, C, mean, epsilon):
    total, m = splat(ZERO), splat(mean)
    for c in range(0, C, LANES):
        centred = load_part(x, at + c, C - c, mean) - m  # 0 past the end of the row
        total = fma(centred, centred, total)
    return ONE / np.sqrt(lane_sum(total) / np.float32(C) + epsilon)


@njit
def _mean_and_rstd(x, at, C, epsilon):
    total = splat(ZERO)
    for c in range(0, C, LANES):
        total = total + load_part(x, at + c, C - c, ZERO)
    mean = lane_sum(total) / np.float32(C)
    return mean, _rstd(x, at, C, mean, epsilon)


@njit
def _norm_row_backward(i, dy, x, gain, mean, rstd, centred, dx):
    C = x.shape[1]
    at, m, r = i * C, splat(mean[i]), splat(rstd[i])
    sum_g, sum_gn = splat(ZERO), splat(ZERO)
    for c in range(0, C, LANES):
        g = load_part(dy, at + c, C - c, ZERO) * load_part(gain, c, C - c, ZERO)
        n = (load_part(x, at + c, C - c, ZERO) - m) * r
        sum_g = sum_g + g
        sum_gn = fma(g, n, sum_gn)
    mean_g = splat(lane_sum(sum_g) / np.float32(C) if centred else ZERO)
    minus_mean_gn = splat(-(lane_sum(sum_gn) / np.float32(C)))
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

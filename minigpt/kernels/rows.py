"""Kernels that work along rows or down columns: norms, cross-entropy, sums.

x is (N, C) and contiguous.  A sum along a row adds in lanes (see lanes.py), one down a column adds row after row.  Each
row, or each column, belongs to one thread, so neither the number of threads nor the other rows touch its bits.
"""

import numpy as np
from numba import njit, prange

from .lanes import LANES, exp, fma, keep_first, lane_max, lane_sum, load_part, log, maximum, splat, sqrt, store_part

ZERO, ONE = np.float32(0), np.float32(1)
EPSILON = np.float32(1e-5)


# --- layer norm -------------------------------------------------------------------------------------------------------

@njit(parallel=True, cache=True)
def layer_norm_forward(x, gain, bias, y, mean, rstd):
    """Bring each row of x (N, C) to mean 0 and variance 1, scale it by gain (C,), shift it by bias (C,).  [Ba et al. 2016]

    Writes y (N, C) and, for the way back, mean (N,) and rstd (N,), one over the standard deviation.
    """
    for i in prange(x.shape[0]):
        mean[i], rstd[i] = layer_norm_row(x, i, gain, bias, y)


@njit
def layer_norm_row(x, i, gain, bias, y):
    C = x.shape[1]
    mean, rstd = _mean_and_rstd(x, i * C, C)
    m, r = splat(mean), splat(rstd)
    for c in range(0, C, LANES):
        n = (load_part(x, i * C + c, C - c, ZERO) - m) * r
        store_part(y, i * C + c, C - c, fma(n, load_part(gain, c, C - c, ZERO), load_part(bias, c, C - c, ZERO)))
    return mean, rstd


# With n = (x - mean) * rstd and g = dy * gain, every x moves its whole row through mean and rstd:
#   dx = rstd * (g - mean(g) - n * mean(g * n)),  dgain = sum over rows of dy * n,  dbias = sum over rows of dy
@njit(parallel=True, cache=True)
def layer_norm_backward(dy, x, gain, mean, rstd, dx, dgain, dbias):
    """Write dx (N, C); add to dgain (C,) and dbias (C,)."""
    N, C = x.shape
    for i in prange(N):
        _norm_row_backward(dy, x, i * C, C, gain, mean[i], rstd[i], True, dx)
    for block in prange((C + LANES - 1) // LANES):
        _gain_backward(dy, x, mean, rstd, block * LANES, dgain)
        _column_sum(dy, block * LANES, dbias)


# --- RMS norm: the same without the mean --------------------------------------------------------------------------------

@njit(parallel=True, cache=True)
def rms_norm_forward(x, gain, y, rstd):
    """Divide each row of x (N, C) by its root mean square, scale it by gain (C,).  [Zhang and Sennrich 2019]"""
    for i in prange(x.shape[0]):
        rstd[i] = rms_norm_row(x, i, gain, y)


@njit
def rms_norm_row(x, i, gain, y):
    C = x.shape[1]
    rstd = _rstd(x, i * C, C, ZERO)
    r = splat(rstd)
    for c in range(0, C, LANES):
        store_part(y, i * C + c, C - c, load_part(x, i * C + c, C - c, ZERO) * r * load_part(gain, c, C - c, ZERO))
    return rstd


# n = x * rstd, g = dy * gain:  dx = rstd * (g - n * mean(g * n)),  dgain = sum over rows of dy * n
@njit(parallel=True, cache=True)
def rms_norm_backward(dy, x, gain, rstd, dx, dgain):
    """Write dx (N, C); add to dgain (C,)."""
    N, C = x.shape
    mean = np.zeros(N, np.float32)
    for i in prange(N):
        _norm_row_backward(dy, x, i * C, C, gain, ZERO, rstd[i], False, dx)
    for block in prange((C + LANES - 1) // LANES):
        _gain_backward(dy, x, mean, rstd, block * LANES, dgain)


@njit
def _rstd(x, at, C, mean):
    total, m = splat(ZERO), splat(mean)
    for c in range(0, C, LANES):
        centred = load_part(x, at + c, C - c, mean) - m      # 0 behind the row's end
        total = fma(centred, centred, total)
    return ONE / np.sqrt(lane_sum(total) / np.float32(C) + EPSILON)


@njit
def _mean_and_rstd(x, at, C):
    total = splat(ZERO)
    for c in range(0, C, LANES):
        total = total + load_part(x, at + c, C - c, ZERO)
    mean = lane_sum(total) / np.float32(C)
    return mean, _rstd(x, at, C, mean)


@njit
def _norm_row_backward(dy, x, at, C, gain, mean, rstd, centred, dx):
    m, r = splat(mean), splat(rstd)
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
def _gain_backward(dy, x, mean, rstd, c, dgain):
    N, C = x.shape
    total = load_part(dgain, c, C - c, ZERO)
    for i in range(N):
        n = (load_part(x, i * C + c, C - c, ZERO) - splat(mean[i])) * splat(rstd[i])
        total = fma(load_part(dy, i * C + c, C - c, ZERO), n, total)
    store_part(dgain, c, C - c, total)


# --- sums -------------------------------------------------------------------------------------------------------------

@njit
def _column_sum(x, c, total):
    N, C = x.shape
    lanes = load_part(total, c, C - c, ZERO)
    for i in range(N):
        lanes = lanes + load_part(x, i * C + c, C - c, ZERO)
    store_part(total, c, C - c, lanes)


@njit(parallel=True, cache=True)
def add_column_sums(x, total):
    """total (C,) += the sum of the rows of x (N, C)."""
    for block in prange((x.shape[1] + LANES - 1) // LANES):
        _column_sum(x, block * LANES, total)


@njit(parallel=True, cache=True)
def add_rows_at(x, indices, table):
    """table[indices[i]] += x[i] for i ascending; x (N, C), indices (N,), table (V, C)."""
    N, C = x.shape
    for block in prange((C + LANES - 1) // LANES):
        c = block * LANES
        for i in range(N):
            at = indices[i] * C + c
            store_part(table, at, C - c, load_part(table, at, C - c, ZERO) + load_part(x, i * C + c, C - c, ZERO))


CHUNK = 4096


@njit
def _sum_of_squares(x, start, stop):
    total = splat(ZERO)
    for i in range(start, stop, LANES):
        lanes = load_part(x, i, stop - i, ZERO)
        total = fma(lanes, lanes, total)
    return lane_sum(total)


@njit
def sum_in_chunks(x):
    """`sum_of_squares`, on one thread."""
    total = ZERO
    for start in range(0, x.size, CHUNK):
        total += _sum_of_squares(x, start, min(start + CHUNK, x.size))
    return total


@njit(parallel=True, cache=True)
def sum_of_squares(x):
    """The sum of x[i]^2 over a contiguous array of any shape: in chunks of 4096, then over the chunks in order."""
    chunks = (x.size + CHUNK - 1) // CHUNK
    parts = np.empty(chunks, np.float32)
    for chunk in prange(chunks):
        parts[chunk] = _sum_of_squares(x, chunk * CHUNK, min((chunk + 1) * CHUNK, x.size))
    total = ZERO
    for chunk in range(chunks):
        total += parts[chunk]
    return total


# --- softmax and cross-entropy ----------------------------------------------------------------------------------------

@njit(cache=True)
def softmax_row(x, at, count, width, scale):
    """x[at : at + count] becomes e^(scale * x - peak); up to `width` follow zeros.  Returns peak, the largest, and the sum.

    The quotient that makes probabilities of it is left to the caller.  The peak cancels there; without it exp overflows.
    """
    peaks = splat(np.float32(-np.inf))
    for c in range(0, count, LANES):
        peaks = maximum(keep_first(load_part(x, at + c, width - c, ZERO) * splat(scale), count - c, np.float32(-np.inf)), peaks)
    peak = lane_max(peaks)
    total = splat(ZERO)
    for c in range(0, width, LANES):
        e = exp(load_part(x, at + c, width - c, ZERO) * splat(scale) - splat(peak))
        e = keep_first(e, count - c, ZERO)
        store_part(x, at + c, width - c, e)
        total = total + e
    return peak, lane_sum(total)


@njit
def _cross_entropy_row(logits, i, target, probabilities):
    V = logits.shape[1]
    for c in range(V):
        probabilities[i, c] = logits[i, c]
    peak, total = softmax_row(probabilities, i * V, V, V, ONE)
    for c in range(V):
        probabilities[i, c] /= total
    return lane_max(log(splat(total))) - (logits[i, target] - peak)         # the peak first: it may be large


@njit(parallel=True, cache=True)
def cross_entropy_forward(logits, targets, probabilities, losses):
    """losses (N,) in nats: -log of the probability that softmax(logits (N, V)) gives targets (N,).

    Writes the probabilities (N, V), too, for the way back.
    """
    for i in prange(logits.shape[0]):
        losses[i] = _cross_entropy_row(logits, i, targets[i], probabilities)


# loss = log(sum of e^logits) - logits[target]:  dlogits = dloss * (probabilities - onehot(target))
@njit(parallel=True, cache=True)
def cross_entropy_backward(dloss, probabilities, targets, dlogits):
    """Write dlogits (N, V), given dloss, the weight of each row's loss."""
    for i in prange(probabilities.shape[0]):
        for c in range(probabilities.shape[1]):
            dlogits[i, c] = dloss * (probabilities[i, c] - (ONE if c == targets[i] else ZERO))

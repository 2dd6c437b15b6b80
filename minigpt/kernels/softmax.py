"""Softmax along rows, and the cross-entropy of it.  Each row belongs to one thread, and its sums add in lanes (see lanes.py)."""

import numpy as np
from numba import njit, prange

from .lanes import LANES, ONE, ZERO, exp, keep_first, lane_max, lane_sum, load_part, log, maximum, splat, store_part


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

"""Softmax of rows, and cross-entropy.  Each row is computed by one thread, and summed lane by lane (see lanes.py)."""

import numpy as np
from numba import njit

from .lanes import LANES, ONE, ZERO, exp, keep_first, lane_max, lane_sum, load_part, log, maximum, splat, store_part
from .threads import parallel_for


@njit(cache=True)
def softmax_row(x, at, count, width, scale):
    """Replace x[at : at + count] by e^(scale * x - peak), the rest of `width` by 0.  Returns peak, the row max, and the sum.

    x is contiguous, and `at` indexes it flat.  Dividing by the sum is left to the caller: the peak cancels in the quotient, and
    without it exp would overflow.
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
def _cross_entropy_row(i, logits, targets, probabilities, losses):
    V = logits.shape[1]
    for c in range(V):
        probabilities[i, c] = logits[i, c]
    peak, total = softmax_row(probabilities, i * V, V, V, ONE)
    for c in range(V):
        probabilities[i, c] /= total
    losses[i] = lane_max(log(splat(total))) - (logits[i, targets[i]] - peak)        # the large numbers cancel first


@njit(cache=True)
def cross_entropy_forward(logits, targets, probabilities, losses):
    """losses (N,) in nats: -log of the probability that softmax(logits (N, V)) assigns to targets (N,).

    Also writes the probabilities (N, V), for the backward pass.
    """
    parallel_for(len(logits), _cross_entropy_row, logits, targets, probabilities, losses)


# loss = log(sum of e^logits) - logits[target]:  dlogits = dloss * (probabilities - onehot(target))
@njit
def _cross_entropy_row_backward(i, dloss, probabilities, targets, dlogits):
    for c in range(probabilities.shape[1]):
        dlogits[i, c] = dloss * (probabilities[i, c] - (ONE if c == targets[i] else ZERO))


@njit(cache=True)
def cross_entropy_backward(dloss, probabilities, targets, dlogits):
    """Write dlogits (N, V) from the probabilities (N, V), the targets (N,), and dloss, the weight of each row's loss."""
    parallel_for(len(probabilities), _cross_entropy_row_backward, dloss, probabilities, targets, dlogits)

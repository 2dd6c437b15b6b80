"""From logits to the integer frequencies that the range coder works with.

    f_i = floor(e^(logit_i - largest logit) * 2^BITS) + 1

logit_i - largest logit is a binary32 subtraction, e^x the exp of minigpt/kernels/lanes.py, and the product with 2^BITS
exact; the floor is the one conversion to an integer.  Floats are never summed, so there is no order to agree on.  The
division by the sum, which turns frequencies into probabilities (the softmax), is the range coder's, in integers.  The + 1
lets every symbol be coded, however unlikely the model finds it; it takes from the others at most V / 2^BITS of their
share, for V = 256 less than 0.0001 bits a symbol.
"""

import numpy as np
from numba import njit

from minigpt.kernels.lanes import LANES, exp, lane_max, load_part, maximum, splat, store_part
from minigpt.kernels.threads import parallel_for

BITS = 22  # V * (2^BITS + 1) must not exceed the range coder's largest total, 2^32
TWO_TO_THE_BITS = np.float32(2**BITS)
MINUS_INFINITY = np.float32(-np.inf)


def to_frequencies(logits: np.ndarray) -> np.ndarray:
    """Frequencies (N, V) uint32, each from 1 to 2^BITS + 1, of logits (N, V) float32.  A NaN counts as minus infinity.

    ValueError for another dtype or number of dimensions.
    """
    if logits.ndim != 2 or logits.dtype != np.float32:
        raise ValueError(f"logits must be (N, V) of float32, not {logits.shape} of {logits.dtype}")
    frequencies = np.empty(logits.shape, np.uint32)
    _to_frequencies(np.ascontiguousarray(logits), frequencies)
    return frequencies


@njit(cache=True)
def _to_frequencies(logits, frequencies):
    parallel_for(len(logits), _row, logits, frequencies)


@njit
def _row(i, logits, frequencies):
    V = logits.shape[1]
    peaks = splat(MINUS_INFINITY)
    for c in range(0, V, LANES):
        peaks = maximum(load_part(logits, i * V + c, V - c, MINUS_INFINITY), peaks)
    peak = splat(lane_max(peaks))
    scaled = np.empty(V, np.float32)
    for c in range(0, V, LANES):
        e = exp(load_part(logits, i * V + c, V - c, MINUS_INFINITY) - peak)
        store_part(scaled, c, V - c, e * splat(TWO_TO_THE_BITS))
    for c in range(V):
        frequencies[i, c] = np.uint32(1) + (np.uint32(scaled[c]) if scaled[c] >= np.float32(0) else np.uint32(0))

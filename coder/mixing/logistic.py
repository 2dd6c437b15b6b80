"""The arithmetic of context mixing, in integers, so the same on every machine: squash and stretch, StateMap, APM, mixer.

A prediction is the probability p that the next bit is 1, a 16-bit integer: 0 < p < P_ONE.  Predictions are added up in the
logistic domain, where evidence is additive [Mahoney 2005, "Adaptive weighing of context models", PAQ7]:

    stretch(p) = ln(p / (1 - p)),     squash(x) = 1 / (1 + e^-x)  its inverse,     x in units of 1/256

    mixed = squash(sum of w_i * x_i),     w_i += rate * x_i * (bit - mixed)

The last formula is one step of gradient descent on the coding cost of the bit, -log2 p: a network of one neuron, whose
gradient is simply the input times the prediction error.  Bounds, which show that nothing overflows 64 bits:

    |x| <= X_LIMIT < 2^12,  |w| <= WEIGHT_LIMIT = 2^23 (in units of 2^-16: 128.0),  at most 2^8 inputs:   |sum| < 2^43    (1)
    |x * (bit - mixed) * rate| < 2^12 * 2^16 * 2^8                                                                        (2)
"""

from decimal import Decimal, localcontext

import numpy as np
from numba import njit

P_ONE = 2 ** 16             # the probability 1.0
X_LIMIT = 3071              # the largest |x|: 12.0, beyond which every probability rounds to 1 or P_ONE - 1
WEIGHT_ONE = 2 ** 16        # the weight 1.0
WEIGHT_LIMIT = 2 ** 23
RATE_SHIFT = 20             # a rate of 1 is 2^(8 + 16 - 16 - RATE_SHIFT) = 2^-12, with weights, inputs and bits in units of 1.0


def _tables():
    """squash of -X_LIMIT .. X_LIMIT (2 X_LIMIT + 1,) int32, and stretch of 0 .. P_ONE - 1 (P_ONE,) int16, rounded to nearest.

    In decimals of 30 digits, of which 12,000 multiplications leave 25: the last bits of a float's exp depend on the library.
    """
    squash, boundaries = np.empty(2 * X_LIMIT + 1, np.int32), np.empty(2 * X_LIMIT, np.int64)
    with localcontext() as context:
        context.prec = 30
        odds, half = (Decimal(-X_LIMIT) / 256).exp(), (Decimal(1) / 512).exp()
        for i in range(2 * X_LIMIT + 1):
            squash[i] = round(P_ONE * odds / (1 + odds))
            odds *= half
            if i < 2 * X_LIMIT:                                 # from here on p is nearer to the next x
                boundaries[i] = int(P_ONE * odds / (1 + odds)) + 1
            odds *= half
    stretch = np.searchsorted(boundaries, np.arange(P_ONE), "right") - X_LIMIT
    return np.clip(squash, 1, P_ONE - 1), stretch.astype(np.int16)


SQUASH, STRETCH = _tables()


# --- mixer ------------------------------------------------------------------------------------------------------------

@njit(cache=True)
def dot_product(weights, row, inputs):
    """The inputs (n,) int32 mixed with weights[row] (n,) int32 in the logistic domain: x, from -X_LIMIT to X_LIMIT."""
    total = np.int64(0)
    for i in range(len(inputs)):
        total += np.int64(weights[row, i]) * np.int64(inputs[i])                    # (1)
    return min(max(total >> 16, -X_LIMIT), X_LIMIT)


@njit(cache=True)
def train(weights, row, inputs, error, rate):
    """One step of gradient descent on weights[row], given error = bit * P_ONE - mixed probability."""
    step = error * rate
    for i in range(len(inputs)):
        change = (np.int64(inputs[i]) * step + (1 << RATE_SHIFT - 1)) >> RATE_SHIFT     # (2)
        weights[row, i] = min(max(np.int64(weights[row, i]) + change, -WEIGHT_LIMIT), WEIGHT_LIMIT)


# --- StateMap: an adaptive probability for each small context ---------------------------------------------------------

# A 32-bit entry: a probability p of 22 bits, and the number of bits seen, n <= STATEMAP_LIMIT.  p moves by 1 / (n + 1.5) of the
# prediction error: at first it is nearly the mean of all bits; once n is at its limit, it is an exponential moving average.
STATEMAP_LIMIT = 1023
RECIPROCALS = np.array([2 ** 17 // (2 * n + 3) for n in range(STATEMAP_LIMIT + 1)], np.int64)       # 2^16 / (n + 1.5)


@njit(cache=True)
def update_statemap(statemaps, row, context, bit, reciprocals):
    entry = np.int64(statemaps[row, context])
    p, n = entry >> 10, entry & STATEMAP_LIMIT
    p += ((bit << 22) - p) * reciprocals[n] >> 16               # < 2^22 * 2^16
    p = min(max(p, 64), 2 ** 22 - 64)
    statemaps[row, context] = p << 10 | min(n + 1, STATEMAP_LIMIT)


# --- APM (adaptive probability map), also called SSE (secondary symbol estimation) ------------------------------------

# For each small context, a curve that maps the predicted x to the observed probability: 33 points with linear interpolation
# between two of them, of which the nearer one is updated [Mahoney 2002, PAQ2].
APM_POINTS = 33
APM_RATE = 6


def new_apm(contexts: int) -> np.ndarray:
    """(contexts * APM_POINTS,) uint16: curves that are still the identity."""
    return np.tile(SQUASH[(np.arange(APM_POINTS) - 16) * 128 + X_LIMIT].astype(np.uint16), contexts)


@njit(cache=True)
def refine(apm, context, x):
    """The refined probability of 16 bits for x in units of 1/256, and the index that `update_apm` needs."""
    x = min(max(x, -2047), 2047) + 2048
    point, fraction = context * APM_POINTS + (x >> 7), x & 127
    p = (np.int64(apm[point]) * (128 - fraction) + np.int64(apm[point + 1]) * fraction) >> 7
    return min(max(p, 1), P_ONE - 1), point + (fraction >> 6)


@njit(cache=True)
def update_apm(apm, point, bit):
    p = np.int64(apm[point])
    apm[point] = p + ((bit * (P_ONE - 1) - p) >> APM_RATE)

"""The arithmetic of mixing bit predictions, in integers: exactly the same everywhere, since there is nothing to round.

A probability p that the next bit is 1 is an integer of 16 bits, 0 < p < ONE.  Predictions are added up in the logistic
domain, where evidence is additive [Bayes; Mahoney 2005]:

    stretch(p) = ln(p / (1 - p)),     squash(x) = 1 / (1 + e^-x)  its inverse,     x in units of 1/256

    mixed = squash(sum of w_i * x_i),     w_i += rate * x_i * (bit - mixed)

The second line is one step of gradient descent on the cost of the bit, -log2 p: a neural network of one neuron, for which
the derivative comes out as simple as that.  Ranges, which show that nothing overflows 64 bits:

    |x| <= LIMIT < 2^12,  |w| <= HEAVIEST = 2^23 (in units of 2^-16: 128.0),  at most 2^8 inputs:   |sum| < 2^43          (1)
    |x * (bit - mixed) * rate| < 2^12 * 2^16 * 2^8                                                                        (2)
"""

from decimal import Decimal, localcontext

import numpy as np
from numba import njit

ONE = 2 ** 16
LIMIT = 3071                # the largest |x|: 12.0, beyond which all probabilities are the least or the largest
HEAVIEST = 2 ** 23
WEIGHT = 2 ** 16            # the weight 1.0
SCALE = 20                  # a rate of 1 is 2^(8 + 16 - 16 - SCALE) = 2^-12 in units of 1.0, of weights, inputs and bits


def _tables():
    """squash of -LIMIT .. LIMIT (2 LIMIT + 1,) int32, and stretch of 0 .. ONE - 1 (ONE,) int16, both rounded to the nearest.

    In decimals with 30 digits, of which 12000 multiplications leave 25: a float's exp has other last bits elsewhere.
    """
    squash, between = np.empty(2 * LIMIT + 1, np.int32), np.empty(2 * LIMIT, np.int64)
    with localcontext() as context:
        context.prec = 30
        odds, half = (Decimal(-LIMIT) / 256).exp(), (Decimal(1) / 512).exp()
        for i in range(2 * LIMIT + 1):
            squash[i] = round(ONE * odds / (1 + odds))
            odds *= half
            if i < 2 * LIMIT:                                   # from here on p is nearer to the next x
                between[i] = int(ONE * odds / (1 + odds)) + 1
            odds *= half
    return np.clip(squash, 1, ONE - 1), (np.searchsorted(between, np.arange(ONE), "right") - LIMIT).astype(np.int16)


SQUASH, STRETCH = _tables()


# --- a neuron ---------------------------------------------------------------------------------------------------------

@njit(cache=True)
def dot(weights, row, inputs):
    """What the weights[row] (n,) int32 make of inputs (n,) int32: an x in -LIMIT .. LIMIT."""
    total = np.int64(0)
    for i in range(len(inputs)):
        total += np.int64(weights[row, i]) * np.int64(inputs[i])                    # (1)
    return min(max(total >> 16, -LIMIT), LIMIT)


@njit(cache=True)
def learn(weights, row, inputs, error, rate):
    """One step towards the bit, from error = bit * ONE - mixed probability."""
    step = error * rate
    for i in range(len(inputs)):
        change = (np.int64(inputs[i]) * step + (1 << SCALE - 1)) >> SCALE           # (2)
        weights[row, i] = min(max(np.int64(weights[row, i]) + change, -HEAVIEST), HEAVIEST)


# --- probabilities that adapt -----------------------------------------------------------------------------------------

# An entry of 32 bits: a probability of 22 bits, and how often it was met, n <= 1023.  It moves by 1 / (n + 1.5) of its
# distance to the bit, so that at first it is the mean of all bits, nearly; from n = MOST on it forgets.
MOST = 1023
SHARES = np.array([2 ** 17 // (2 * n + 3) for n in range(MOST + 1)], np.int64)     # 2^16 / (n + 1.5)


@njit(cache=True)
def adapt(entries, row, place, bit, shares):
    entry = np.int64(entries[row, place])
    p, n = entry >> 10, entry & MOST
    p += ((bit << 22) - p) * shares[n] >> 16                    # < 2^22 * 2^16
    p = min(max(p, 64), 2 ** 22 - 64)
    entries[row, place] = p << 10 | min(n + 1, MOST)


# --- refining a probability -------------------------------------------------------------------------------------------

# An adaptive probability map holds, for each small context, what really came where x was predicted: a curve of 33 points,
# between which it interpolates, and of which the nearer one learns [Mahoney 2002: "secondary symbol estimation"].
POINTS = 33
REFINE_RATE = 6


def straight(contexts):
    """Maps (contexts * POINTS,) uint16 that change nothing yet."""
    return np.tile(SQUASH[(np.arange(POINTS) - 16) * 128 + LIMIT].astype(np.uint16), contexts)


@njit(cache=True)
def refine(maps, row, context, x):
    """(The refined probability, the place that `corrected` is to be told.)"""
    x = min(max(x, -2047), 2047) + 2048
    place, part = context * POINTS + (x >> 7), x & 127
    p = (np.int64(maps[row, place]) * (128 - part) + np.int64(maps[row, place + 1]) * part) >> 7
    return min(max(p, 1), ONE - 1), place + (part >> 6)


@njit(cache=True)
def corrected(maps, row, place, bit):
    p = np.int64(maps[row, place])
    maps[row, place] = p + ((bit * (ONE - 1) - p) >> REFINE_RATE)

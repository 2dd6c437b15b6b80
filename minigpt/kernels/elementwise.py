"""Element-wise kernels: dropout, and the update of AdamW."""

import numpy as np
from numba import njit, prange

from .lanes import ONE, ZERO


# --- dropout ----------------------------------------------------------------------------------------------------------

@njit(parallel=True, cache=True)
def apply_mask(x, keep, scale, y):
    """y = scale * x where keep, else 0; its own derivative.  All arrays are flat; y may be x."""
    for i in prange(x.size):
        y[i] = scale * x[i] if keep[i] else ZERO


# --- AdamW ------------------------------------------------------------------------------------------------------------

@njit(parallel=True, cache=True)
def adamw(weight, gradient, mean, square, clip, rate, decay, beta1, beta2, correction1, correction2, epsilon):
    """One step of AdamW [Loshchilov and Hutter 2019] on flat arrays, in place.  All scalars are float32.

    clip scales the gradient; rate is the learning rate, decay = 1 - rate * weight decay; correction1 and correction2 are
    1 / (1 - beta^step).
    """
    for i in prange(weight.size):
        g = clip * gradient[i]
        mean[i] = beta1 * mean[i] + (ONE - beta1) * g
        square[i] = beta2 * square[i] + (ONE - beta2) * (g * g)
        step = mean[i] * correction1 / (np.sqrt(square[i] * correction2) + epsilon)
        weight[i] = decay * weight[i] - rate * step

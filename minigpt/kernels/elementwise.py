"""Element-wise kernels: dropout, and the update of AdamW."""

import numpy as np
from numba import njit

from .lanes import ONE, ZERO
from .threads import parallel_for


# --- dropout ----------------------------------------------------------------------------------------------------------

@njit
def _apply_mask(i, x, keep, scale, y):
    y[i] = scale * x[i] if keep[i] else ZERO


@njit(cache=True)
def apply_mask(x, keep, scale, y):
    """y = scale * x where keep, else 0; its own derivative.  All arrays are flat; y may be x."""
    parallel_for(x.size, _apply_mask, x, keep, scale, y)


# --- AdamW ------------------------------------------------------------------------------------------------------------

@njit(cache=True)
def adamw(weight, gradient, mean, square, clip, rate, decay, beta1, beta2, correction1, correction2, epsilon):
    """One step of AdamW [Loshchilov and Hutter 2019] on flat arrays, in place.  All scalars are float32.

    clip scales the gradient; rate is the learning rate, decay = 1 - rate * weight decay; correction1 and correction2 are
    1 / (1 - beta^step).
    """
    parallel_for(weight.size, _adamw, weight, gradient, mean, square, clip, rate, decay, beta1, beta2, correction1, correction2,
                 epsilon)


@njit
def _adamw(i, weight, gradient, mean, square, clip, rate, decay, beta1, beta2, correction1, correction2, epsilon):
    g = clip * gradient[i]
    mean[i] = beta1 * mean[i] + (ONE - beta1) * g
    square[i] = beta2 * square[i] + (ONE - beta2) * (g * g)
    step = mean[i] * correction1 / (np.sqrt(square[i] * correction2) + epsilon)
    weight[i] = decay * weight[i] - rate * step

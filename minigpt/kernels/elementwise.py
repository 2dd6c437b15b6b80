"""Element-wise kernels: residual connections, dropout, and the update of AdamW."""

import numpy as np
from numba import njit

from .lanes import ONE, ZERO
from .threads import parallel_for

BLOCK = 4096        # elements per iteration, in a loop that the compiler vectorises


# --- residual connections ---------------------------------------------------------------------------------------------

@njit
def _add(row, x, y, out):
    for c in range(x.shape[1]):
        out[row, c] = x[row, c] + y[row, c]


@njit(cache=True)
def add(x, y, out):
    """out = x + y, all (N, C).  Returns out."""
    parallel_for(len(x), _add, x, y, out)
    return out


# --- dropout ----------------------------------------------------------------------------------------------------------

@njit
def _apply_mask(block, x, keep, scale, y):
    own = slice(block * BLOCK, (block + 1) * BLOCK)
    x, keep, y = x[own], keep[own], y[own]
    for i in range(x.size):
        y[i] = scale * x[i] if keep[i] else ZERO


@njit(cache=True)
def apply_mask(x, keep, scale, y):
    """y = scale * x where keep, else 0; also its own backward pass.  All arrays are flat; y may be x."""
    parallel_for((x.size + BLOCK - 1) // BLOCK, _apply_mask, x, keep, scale, y)


# --- AdamW ------------------------------------------------------------------------------------------------------------

@njit(cache=True)
def adamw(weight, gradient, mean, square, clip, rate, decay, beta1, beta2, correction1, correction2, epsilon):
    """One step of AdamW [Loshchilov and Hutter 2019] on flat arrays, in place.  All scalars are float32.

    mean and square are the moment estimates; clip scales the gradient; rate is the learning rate, decay = 1 - rate * weight
    decay; correction1 and correction2 are 1 / (1 - beta^step) of beta1 and beta2.
    """
    parallel_for((weight.size + BLOCK - 1) // BLOCK, _adamw, weight, gradient, mean, square, clip, rate, decay, beta1, beta2,
                 correction1, correction2, epsilon)


@njit(error_model="numpy")          # Python's would test every divisor for zero
def _adamw(block, weight, gradient, mean, square, clip, rate, decay, beta1, beta2, correction1, correction2, epsilon):
    own = slice(block * BLOCK, (block + 1) * BLOCK)
    weight, gradient, mean, square = weight[own], gradient[own], mean[own], square[own]
    for i in range(weight.size):
        g = clip * gradient[i]
        mean[i] = beta1 * mean[i] + (ONE - beta1) * g
        square[i] = beta2 * square[i] + (ONE - beta2) * (g * g)
        step = mean[i] * correction1 / (np.sqrt(square[i] * correction2) + epsilon)
        weight[i] = decay * weight[i] - rate * step

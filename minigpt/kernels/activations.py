"""ReLU, its square, GELU and SwiGLU, forward and backward, each in one pass over memory.

x, y, dy, dx are contiguous arrays of one shape; y may be x, and dx may be dy.  (No kernel makes a view of its arguments:
Numba's parallel pass loses track of a view that is unpacked from a tuple and removes writes to it as dead code.)
"""

import numpy as np
from numba import njit, prange

from .lanes import LANES, ONE, ZERO, exp, fma, load_part, maximum, splat, store_part, where_positive

PER_TASK = 4096       # elements of one iteration of a parallel loop


@njit
def _tasks(x):
    return (x.size + PER_TASK - 1) // PER_TASK


# --- ReLU, and its square ---------------------------------------------------------------------------------------------

@njit
def relu(lanes):
    return maximum(lanes, splat(ZERO))


@njit(parallel=True, cache=True)
def relu_forward(x, y):
    """y = max(x, 0)"""
    for task in prange(_tasks(x)):
        for i in range(task * PER_TASK, min((task + 1) * PER_TASK, x.size), LANES):
            store_part(y, i, x.size - i, relu(load_part(x, i, x.size - i, ZERO)))


# dx = dy where x > 0, else 0
@njit(parallel=True, cache=True)
def relu_backward(dy, x, dx):
    for task in prange(_tasks(x)):
        for i in range(task * PER_TASK, min((task + 1) * PER_TASK, x.size), LANES):
            n = x.size - i
            store_part(dx, i, n, where_positive(load_part(x, i, n, ZERO), load_part(dy, i, n, ZERO), splat(ZERO)))


@njit
def squared_relu(lanes):
    return relu(lanes) * relu(lanes)


@njit(parallel=True, cache=True)
def squared_relu_forward(x, y):
    """y = max(x, 0)^2  [So et al. 2021]"""
    for task in prange(_tasks(x)):
        for i in range(task * PER_TASK, min((task + 1) * PER_TASK, x.size), LANES):
            store_part(y, i, x.size - i, squared_relu(load_part(x, i, x.size - i, ZERO)))


# dx = 2 * max(x, 0) * dy
@njit(parallel=True, cache=True)
def squared_relu_backward(dy, x, dx):
    for task in prange(_tasks(x)):
        for i in range(task * PER_TASK, min((task + 1) * PER_TASK, x.size), LANES):
            n = x.size - i
            positive = relu(load_part(x, i, n, ZERO))
            store_part(dx, i, n, (positive + positive) * load_part(dy, i, n, ZERO))


# --- GELU -------------------------------------------------------------------------------------------------------------
# x * Phi(x) in its usual approximation, 0.5 x (1 + tanh(u)) with u = sqrt(2 / pi) (x + 0.044715 x^3).
# Since 0.5 (1 + tanh(u)) = 1 / (1 + e^(-2u)), no tanh is needed: y = x * g with the gate g = 1 / (1 + e^(-2u)).

MINUS_2_ROOT = np.float32(-1.5957691216057308)      # -2 sqrt(2 / pi)
CUBIC = np.float32(0.044715)


@njit
def _gate(x):
    u = x * fma(x * x, splat(CUBIC), splat(ONE))
    return splat(ONE) / (splat(ONE) + exp(u * splat(MINUS_2_ROOT)))


@njit
def gelu(lanes):
    return lanes * _gate(lanes)


@njit(parallel=True, cache=True)
def gelu_forward(x, y):
    """y = 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))  [Hendrycks and Gimpel 2016]"""
    for task in prange(_tasks(x)):
        for i in range(task * PER_TASK, min((task + 1) * PER_TASK, x.size), LANES):
            store_part(y, i, x.size - i, gelu(load_part(x, i, x.size - i, ZERO)))


# dg/du = 2 g (1 - g)  and  du/dx = sqrt(2 / pi) (1 + 3 * 0.044715 x^2):  dx = dy * (g + x * dg/du * du/dx)
@njit(parallel=True, cache=True)
def gelu_backward(dy, x, dx):
    """Write dx, for |x| < 1e12.

    Beyond, where the derivative is 0 or 1 to the last bit, the result is wrong: for x < -1e12 the slope grows faster than the
    gate closes (it stays at 1 / (1 + e^88)), and from |x| = 1.8e19 on, where x^2 overflows, it is infinite or NaN.
    """
    for task in prange(_tasks(x)):
        for i in range(task * PER_TASK, min((task + 1) * PER_TASK, x.size), LANES):
            n = x.size - i
            lanes = load_part(x, i, n, ZERO)
            gate = _gate(lanes)
            slope = fma(lanes * lanes, splat(np.float32(3) * CUBIC), splat(ONE)) * splat(-MINUS_2_ROOT)
            store_part(dx, i, n, load_part(dy, i, n, ZERO) * fma(lanes * gate * (splat(ONE) - gate), slope, gate))


# --- SwiGLU -----------------------------------------------------------------------------------------------------------
# y = silu(z) * x, where z opens or closes the gate for x; silu(z) = z s with s = 1 / (1 + e^-z).

@njit
def _sigmoid(z):
    return splat(ONE) / (splat(ONE) + exp(splat(ZERO) - z))


@njit
def swiglu(z, x):
    return z * _sigmoid(z) * x


@njit(parallel=True, cache=True)
def swiglu_forward(z, x, y):
    """y = silu(z) * x  [Shazeer 2020]"""
    for task in prange(_tasks(x)):
        for i in range(task * PER_TASK, min((task + 1) * PER_TASK, x.size), LANES):
            n = x.size - i
            store_part(y, i, n, swiglu(load_part(z, i, n, ZERO), load_part(x, i, n, ZERO)))


# ds/dz = s (1 - s), so silu'(z) = s + z s (1 - s):  dz = dy * x * silu'(z),  dx = dy * silu(z)
@njit(parallel=True, cache=True)
def swiglu_backward(dy, z, x, dz, dx):
    for task in prange(_tasks(x)):
        for i in range(task * PER_TASK, min((task + 1) * PER_TASK, x.size), LANES):
            n = x.size - i
            dy_lanes, lanes = load_part(dy, i, n, ZERO), load_part(z, i, n, ZERO)
            s = _sigmoid(lanes)
            store_part(dz, i, n, dy_lanes * load_part(x, i, n, ZERO) * fma(lanes * s, splat(ONE) - s, s))
            store_part(dx, i, n, dy_lanes * (lanes * s))

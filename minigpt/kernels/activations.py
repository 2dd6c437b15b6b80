"""ReLU, its square, GELU and SwiGLU, forward and backward, each in one pass over memory.

x, y, dy, dx are contiguous arrays of one shape; y may be x, and dx may be dy.
"""

import numpy as np
from numba import njit

from .lanes import LANES, ONE, ZERO, exp, fma, load_part, maximum, splat, store_part, where_positive
from .threads import parallel_for


@njit
def _vectors(x):
    return (x.size + LANES - 1) // LANES


# --- ReLU, and its square ---------------------------------------------------------------------------------------------


@njit
def relu(lanes):
    return maximum(lanes, splat(ZERO))


@njit
def _relu_forward(vector, x, y):
    i = vector * LANES
    store_part(y, i, x.size - i, relu(load_part(x, i, x.size - i, ZERO)))


@njit(cache=True)
def relu_forward(x, y):
    """y = max(x, 0)"""
    parallel_for(_vectors(x), _relu_forward, x, y)


# dx = dy where x > 0, else 0
@njit
def _relu_backward(vector, dy, x, dx):
    i = vector * LANES
    n = x.size - i
    store_part(dx, i, n, where_positive(load_part(x, i, n, ZERO), load_part(dy, i, n, ZERO), splat(ZERO)))


@njit(cache=True)
def relu_backward(dy, x, dx):
    parallel_for(_vectors(x), _relu_backward, dy, x, dx)


@njit
def squared_relu(lanes):
    return relu(lanes) * relu(lanes)


@njit
def _squared_relu_forward(vector, x, y):
    i = vector * LANES
    store_part(y, i, x.size - i, squared_relu(load_part(x, i, x.size - i, ZERO)))


@njit(cache=True)
def squared_relu_forward(x, y):
    """y = max(x, 0)^2  [So et al. 2021]"""
    parallel_for(_vectors(x), _squared_relu_forward, x, y)


# dx = 2 * max(x, 0) * dy
@njit
def _squared_relu_backward(vector, dy, x, dx):
    i = vector * LANES
    n = x.size - i
    positive = relu(load_part(x, i, n, ZERO))
    store_part(dx, i, n, (positive + positive) * load_part(dy, i, n, ZERO))


@njit(cache=True)
def squared_relu_backward(dy, x, dx):
    parallel_for(_vectors(x), _squared_relu_backward, dy, x, dx)


# --- GELU -------------------------------------------------------------------------------------------------------------
# x * Phi(x) in its usual approximation, 0.5 x (1 + tanh(u)) with u = sqrt(2 / pi) (x + 0.044715 x^3).
# Since 0.5 (1 + tanh(u)) = 1 / (1 + e^(-2u)), no tanh is needed: y = x * g with the gate g = 1 / (1 + e^(-2u)).

MINUS_2_ROOT = np.float32(-1.5957691216057308)  # -2 sqrt(2 / pi)
CUBIC = np.float32(0.044715)


@njit
def _gate(x):
    u = x * fma(x * x, splat(CUBIC), splat(ONE))
    return splat(ONE) / (splat(ONE) + exp(u * splat(MINUS_2_ROOT)))


@njit
def gelu(lanes):
    return lanes * _gate(lanes)


@njit
def _gelu_forward(vector, x, y):
    i = vector * LANES
    store_part(y, i, x.size - i, gelu(load_part(x, i, x.size - i, ZERO)))


@njit(cache=True)
def gelu_forward(x, y):
    """y = 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))  [Hendrycks and Gimpel 2016]"""
    parallel_for(_vectors(x), _gelu_forward, x, y)


# dg/du = 2 g (1 - g)  and  du/dx = sqrt(2 / pi) (1 + 3 * 0.044715 x^2):  dx = dy * (g + x * dg/du * du/dx)
@njit
def _gelu_backward(vector, dy, x, dx):
    i = vector * LANES
    n = x.size - i
    lanes = load_part(x, i, n, ZERO)
    gate = _gate(lanes)
    slope = fma(lanes * lanes, splat(np.float32(3) * CUBIC), splat(ONE)) * splat(-MINUS_2_ROOT)
    store_part(dx, i, n, load_part(dy, i, n, ZERO) * fma(lanes * gate * (splat(ONE) - gate), slope, gate))


@njit(cache=True)
def gelu_backward(dy, x, dx):
    """Write dx, for |x| < 1e12.

    Beyond, the derivative should be 0 or 1 to the last bit, but the result is wrong: for x < -1e12 the slope keeps growing
    while the gate stays at 1 / (1 + e^88), and from |x| = 1.8e19 on, where x^2 overflows, it is infinite or NaN.
    """
    parallel_for(_vectors(x), _gelu_backward, dy, x, dx)


# --- SwiGLU -----------------------------------------------------------------------------------------------------------
# y = silu(z) * x, where z opens or closes the gate for x; silu(z) = z s with s = 1 / (1 + e^-z).


@njit
def _sigmoid(z):
    return splat(ONE) / (splat(ONE) + exp(splat(ZERO) - z))


@njit
def swiglu(z, x):
    return z * _sigmoid(z) * x


@njit
def _swiglu_forward(vector, z, x, y):
    i = vector * LANES
    n = x.size - i
    store_part(y, i, n, swiglu(load_part(z, i, n, ZERO), load_part(x, i, n, ZERO)))


@njit(cache=True)
def swiglu_forward(z, x, y):
    """y = silu(z) * x  [Shazeer 2020], for z > -1e12: below, the sigmoid stays at 1 / (1 + e^88) instead of going to 0."""
    parallel_for(_vectors(x), _swiglu_forward, z, x, y)


# ds/dz = s (1 - s), so silu'(z) = s + z s (1 - s):  dz = dy * x * silu'(z),  dx = dy * silu(z)
@njit
def _swiglu_backward(vector, dy, z, x, dz, dx):
    i = vector * LANES
    n = x.size - i
    dy_lanes, lanes = load_part(dy, i, n, ZERO), load_part(z, i, n, ZERO)
    s = _sigmoid(lanes)
    store_part(dz, i, n, dy_lanes * load_part(x, i, n, ZERO) * fma(lanes * s, splat(ONE) - s, s))
    store_part(dx, i, n, dy_lanes * (lanes * s))


@njit(cache=True)
def swiglu_backward(dy, z, x, dz, dx):
    parallel_for(_vectors(x), _swiglu_backward, dy, z, x, dz, dx)

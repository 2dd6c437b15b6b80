"""One more token of each sequence through a whole block, when there are few rows: the forward passes of blocks.py again.

A kernel at a time, a token would spend most of its time between the kernels.  But as no row knows of another one's,
each thread can take some rows the whole way, and nobody waits for anybody.  Every row goes through the same functions
as in the kernels for whole windows, in the same order; so it has the same bits.
"""

import numpy as np
from numba import njit, prange

from .attention import attend_one
from .elementwise import gelu, relu, rotate_row, squared_relu
from .lanes import LANES, load_part, store_part
from .matmul import product
from .rows import ZERO, layer_norm_row, rms_norm_row

RELU, GELU, SQUARED_RELU = range(3)


@njit(parallel=True, cache=True)
def block_step(x, threads, norm_first, norm1, query, key, value, qk_gains, rotary, projection, norm2, expand, activation,
               contract, keys, values, position, scale):
    """x (S, C) becomes the block's output.  A norm is (gain, bias), a linear layer (weight, bias), with None for no bias;
    qk_gains (query's, key's) and rotary (cosine, sine) are None where there are none; activation is one of the three above;
    keys and values are the cache's (see `attend_one`), for this block.
    """
    rows = (x.shape[0] + threads - 1) // threads
    for task in prange(threads):
        i, j = min(task * rows, x.shape[0]), min((task + 1) * rows, x.shape[0])
        if i < j:
            _block(x[i:j], norm_first, norm1, query, key, value, qk_gains, rotary, projection, norm2, expand, activation,
                   contract, keys[i:j], values[i:j], position, scale)


@njit
def _block(x, norm_first, norm1, query, key, value, qk_gains, rotary, projection, norm2, expand, activation, contract,
           keys, values, position, scale):
    y = _norm(x, norm1[0], norm1[1]) if norm_first else x
    y = _attention(y, query, key, value, qk_gains, rotary, keys, values, position, scale)
    _add(x, _linear(y, projection[0], projection[1]))
    if not norm_first:
        _copy(_norm(x, norm1[0], norm1[1]), x)
    y = _norm(x, norm2[0], norm2[1]) if norm_first else x
    y = _activate(_linear(y, expand[0], expand[1]), activation)
    _add(x, _linear(y, contract[0], contract[1]))
    if not norm_first:
        _copy(_norm(x, norm2[0], norm2[1]), x)


@njit
def _attention(x, query, key, value, qk_gains, rotary, keys, values, position, scale):
    q, k, v = _linear(x, query[0], query[1]), _linear(x, key[0], key[1]), _linear(x, value[0], value[1])
    out = np.empty_like(x)
    S, H, D, _ = keys.shape
    if qk_gains is not None:
        q = _norm(q.reshape(S * H, D), qk_gains[0], None).reshape(x.shape)
        k = _norm(k.reshape(S * H, D), qk_gains[1], None).reshape(x.shape)
    for s in range(S):
        if rotary is not None:
            rotate_row(q, s, rotary[0], rotary[1], position, H, q)
            rotate_row(k, s, rotary[0], rotary[1], position, H, k)
        for h in range(H):
            attend_one(q, k, v, keys, values, s, h, position, scale, out)
    return out


@njit
def _norm(x, gain, bias):
    y = np.empty_like(x)
    for i in range(len(x)):
        if bias is None:
            rms_norm_row(x, i, gain, y)
        else:
            layer_norm_row(x, i, gain, bias, y)
    return y


@njit
def _linear(x, weight, bias):
    y = np.empty((len(x), weight.shape[1]), np.float32)
    product(x, weight, y, False)
    if bias is not None:
        for i in range(len(y)):
            for j in range(y.shape[1]):
                y[i, j] += bias[j]
    return y


@njit
def _activate(x, activation):
    for i in range(0, x.size, LANES):
        lanes = load_part(x, i, x.size - i, ZERO)
        if activation == SQUARED_RELU:
            lanes = squared_relu(lanes)
        elif activation == GELU:
            lanes = gelu(lanes)
        else:
            lanes = relu(lanes)
        store_part(x, i, x.size - i, lanes)
    return x


@njit
def _add(x, y):
    for i in range(len(x)):
        for j in range(x.shape[1]):
            x[i, j] += y[i, j]


@njit
def _copy(source, target):
    for i in range(len(source)):
        for j in range(source.shape[1]):
            target[i, j] = source[i, j]

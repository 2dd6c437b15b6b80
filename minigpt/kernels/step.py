"""One more token of each sequence through the whole network, when there are few rows: the forward pass again.

A kernel at a time, a token would spend most of its time between the kernels.  But as no row knows of another one's,
each thread can take some rows all the way to their logits, and nobody waits for anybody.  Every row goes through the
same functions as in the kernels for whole windows, in the same order; so it has the same bits.
"""

import numpy as np
from numba import njit, prange

from .attention import attend_one
from .elementwise import gelu, relu, rotate_row, squared_relu
from .lanes import LANES, load_part, store_part
from .matmul import product
from .rows import ZERO, layer_norm_row, rms_norm_row

ACTIVATIONS = {"relu": 0, "gelu": 1, "relu2": 2}
RELU, GELU, _ = ACTIVATIONS.values()


@njit(parallel=True, cache=True)
def step(ids, embeddings, norm_first, norm1, query, key, value, query_norm, key_norm, rotary, scale, projection, norm2, expand,
         activation, contract, norm3, head, keys, values, position, threads, logits):
    """Write the logits (S, V) that follow the tokens ids (S,), which stand at `position` of their sequences.

    embeddings are the tokens' and the positions' (or None).  A norm is (gains, biases), a linear layer (weights, biases),
    arrays with the block's number in front, and None for what there is not; rotary is (cosine, sine) or None; norm3 comes
    before the head; activation is a number of ACTIVATIONS; keys and values (n_layer, ...) are the cache's (see `attend_one`).
    """
    rows = (len(ids) + threads - 1) // threads
    for task in prange(threads):
        i, j = min(task * rows, len(ids)), min((task + 1) * rows, len(ids))
        if i < j:
            _step(ids[i:j], embeddings, norm_first, norm1, (query, key, value, query_norm, key_norm, rotary, scale, projection),
                  norm2, (expand, activation, contract), norm3, head, keys[:, i:j], values[:, i:j], position, logits[i:j])


@njit
def _step(ids, embeddings, norm_first, norm1, attention, norm2, feed_forward, norm3, head, keys, values, position, logits):
    x = _embed(ids, position, embeddings[0], embeddings[1])
    for n in range(len(keys)):
        y = _norm(x, norm1, n) if norm_first else x
        _add(x, _attention(y, attention, n, keys[n], values[n], position))
        if not norm_first:
            x = _norm(x, norm1, n)
        y = _norm(x, norm2, n) if norm_first else x
        _add(x, _feed_forward(y, feed_forward, n))
        if not norm_first:
            x = _norm(x, norm2, n)
    product(_norm(x, norm3, 0), head, logits, False)


@njit
def _embed(ids, position, tokens, positions):
    x = np.empty((len(ids), tokens.shape[1]), np.float32)
    for i in range(len(ids)):
        for c in range(x.shape[1]):
            x[i, c] = tokens[ids[i], c]
            if positions is not None:
                x[i, c] += positions[position, c]
    return x


@njit
def _attention(x, layer, n, keys, values, position):
    query, key, value, query_norm, key_norm, rotary, scale, projection = layer
    S, H, D, _ = keys.shape
    q = _norm(_linear(x, query, n).reshape(S * H, D), query_norm, n).reshape(x.shape)
    k = _norm(_linear(x, key, n).reshape(S * H, D), key_norm, n).reshape(x.shape)
    v, out = _linear(x, value, n), np.empty_like(x)
    for s in range(S):
        _rotate(q, s, rotary, position, H)
        _rotate(k, s, rotary, position, H)
        for h in range(H):
            attend_one(q, k, v, keys, values, s, h, position, scale, out)
    return _linear(out, projection, n)


@njit
def _rotate(x, s, rotary, position, heads):
    if rotary is not None:
        rotate_row(x, s, rotary[0], rotary[1], position, heads, x)


@njit
def _feed_forward(x, layer, n):
    expand, activation, contract = layer
    hidden = _linear(x, expand, n)
    _activate(hidden, activation)
    return _linear(hidden, contract, n)


@njit
def _norm(x, norm, n):
    return x if norm is None else _norm_rows(x, norm[0][n], norm[1], n)


@njit
def _norm_rows(x, gain, biases, n):
    y = np.empty_like(x)
    for i in range(len(x)):
        if biases is None:
            rms_norm_row(x, i, gain, y)
        else:
            layer_norm_row(x, i, gain, biases[n], y)
    return y


@njit
def _linear(x, layer, n):
    weight = layer[0][n]
    y = np.empty((len(x), weight.shape[1]), np.float32)
    product(x, weight, y, False)
    _add_biases(y, layer[1], n)
    return y


@njit
def _add_biases(y, biases, n):
    if biases is not None:
        for i in range(len(y)):
            for j in range(y.shape[1]):
                y[i, j] += biases[n, j]


@njit
def _activate(x, activation):
    for i in range(0, x.size, LANES):
        lanes = load_part(x, i, x.size - i, ZERO)
        if activation == RELU:
            lanes = relu(lanes)
        elif activation == GELU:
            lanes = gelu(lanes)
        else:
            lanes = squared_relu(lanes)
        store_part(x, i, x.size - i, lanes)


@njit
def _add(x, y):
    for i in range(len(x)):
        for j in range(x.shape[1]):
            x[i, j] += y[i, j]

"""One more token of each sequence through the whole network: the forward pass again, for few rows.

A kernel at a time, a token would spend most of its time between the kernels.  So here the whole network is one kernel, and
there are two ways to share the work:

    by rows       As no row knows of another one's, a thread takes some rows all the way to their logits, and nobody waits
                  for anybody.  But every thread reads all weights.
    by columns    The threads part each layer's columns, and wait for each other before the next one.  Each of them reads its
                  share of the weights and no more; with few rows and many weights, that is what takes the time.

Every output goes through the same functions as in the kernels for whole windows, in the same order; so it has the same bits.
"""

import numpy as np
from numba import njit, prange

from .activations import gelu, relu, squared_relu
from .attention import attend_one
from .lanes import LANES, ZERO, load_part, store_part
from .matmul import BROAD, product
from .norms import layer_norm_row, rms_norm_row
from .rotary import rotate_row

ACTIVATIONS = {"relu": 0, "gelu": 1, "relu2": 2}
RELU, GELU, _ = ACTIVATIONS.values()
NONE = -1


def _step(ids, embeddings, norm_first, norm1, query, key, value, query_norm, key_norm, rotary, scale, projection, norm2, expand,
          activation, contract, norm3, head, keys, values, position, threads, logits):
    """Write the logits (S, V) that follow the tokens ids (S,), which stand at `position` of their sequences.

    embeddings are the tokens' and the positions' (or None).  A norm is (gains, biases), a linear layer (weights, biases),
    arrays with the block's number in front, and None for what there is not; rotary is (cosine, sine) or None; norm3 comes
    before the head; activation is a number of ACTIVATIONS; keys and values (n_layer, ...) are the cache's (see `attend_one`).
    """
    S, H = len(ids), keys.shape[2]
    x = _embed(ids, position, embeddings[0], embeddings[1])
    q, k, v, attended, y = np.empty_like(x), np.empty_like(x), np.empty_like(x), np.empty_like(x), np.empty_like(x)
    hidden = np.empty((S, expand[0].shape[2]), np.float32)
    for n in range(len(keys)):
        normed = _norm(x, norm1, n) if norm_first else x
        for task in prange(threads):
            _linear(normed, query, n, NONE, task, threads, q)
            _linear(normed, key, n, NONE, task, threads, k)
            _linear(normed, value, n, NONE, task, threads, v)
        for task in prange(threads):
            for pair in range(task * S * H // threads, (task + 1) * S * H // threads):
                _prepare(q, pair, H, query_norm, rotary, position, n)
                _prepare(k, pair, H, key_norm, rotary, position, n)
                attend_one(q, k, v, keys[n], values[n], pair // H, pair % H, position, scale, attended)
        for task in prange(threads):
            _linear(attended, projection, n, NONE, task, threads, y)
        _add(x, y)
        normed = _norm(x, norm2 if norm_first else norm1, n)
        if not norm_first:
            x = normed
        for task in prange(threads):
            _linear(normed, expand, n, activation, task, threads, hidden)
        for task in prange(threads):
            _linear(hidden, contract, n, NONE, task, threads, y)
        _add(x, y)
        if not norm_first:
            x = _norm(x, norm2, n)
    normed = _norm(x, norm3, 0)
    for task in prange(threads):
        _part(normed, head, task, threads, logits)


_alone = njit(_step)
step_by_columns = njit(parallel={"fusion": False}, cache=True)(_step)       # each loop over tasks needs all of the one before


@njit(parallel=True, cache=True)
def step_by_rows(ids, embeddings, norm_first, norm1, query, key, value, query_norm, key_norm, rotary, scale, projection, norm2,
                 expand, activation, contract, norm3, head, keys, values, position, threads, logits):
    """As `_step`."""
    rows = (len(ids) + threads - 1) // threads
    for task in prange(threads):
        i, j = min(task * rows, len(ids)), min((task + 1) * rows, len(ids))
        if i < j:
            _alone(ids[i:j], embeddings, norm_first, norm1, query, key, value, query_norm, key_norm, rotary, scale, projection,
                   norm2, expand, activation, contract, norm3, head, keys[:, i:j], values[:, i:j], position, 1, logits[i:j])


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
def _part(x, weight, task, threads, y):
    """One task's part of y = x @ weight, and (first row, end, first column, end) of it: columns first, then rows as well."""
    S, M = y.shape
    pieces = (M + BROAD - 1) // BROAD
    across = min(threads, pieces)
    down = threads // across
    height, width = (S + down - 1) // down, (pieces + across - 1) // across * BROAD
    i, j = min(task // across * height, S), min(task % across * width, M)
    rows, columns = min(i + height, S), min(j + width, M)
    if i < rows and j < columns:
        product(x[i:rows], weight[:, j:columns], y[i:rows, j:columns], False)
    return i, rows, j, columns


@njit
def _linear(x, layer, n, activation, task, threads, y):
    i, rows, j, columns = _part(x, layer[0][n], task, threads, y)
    for row in range(i, rows):
        _add_biases(y, row, j, columns, layer[1], n)
        if activation != NONE:
            _activate(y, row, j, columns, activation)


@njit
def _add_biases(y, row, start, stop, biases, n):
    if biases is not None:
        for j in range(start, stop):
            y[row, j] += biases[n, j]


@njit
def _activate(x, row, start, stop, activation):
    for j in range(start, stop, LANES):
        at = row * x.shape[1] + j
        lanes = load_part(x, at, stop - j, ZERO)
        if activation == RELU:
            lanes = relu(lanes)
        elif activation == GELU:
            lanes = gelu(lanes)
        else:
            lanes = squared_relu(lanes)
        store_part(x, at, stop - j, lanes)


@njit
def _prepare(x, pair, heads, norm, rotary, position, n):
    """Normalise and turn one head of one row, in place."""
    rows = x.reshape(len(x) * heads, -1)
    _norm_row(rows, pair, norm, n, rows)
    if rotary is not None:
        rotate_row(rows, pair, rotary[0], rotary[1], position, 1, rows)


@njit
def _norm(x, norm, n):
    y = np.empty_like(x)
    for i in range(len(x)):
        for c in range(x.shape[1]):
            y[i, c] = x[i, c]
        _norm_row(x, i, norm, n, y)
    return y


@njit
def _norm_row(x, i, norm, n, y):
    if norm is not None:
        _gains(x, i, norm[0][n], norm[1], n, y)


@njit
def _gains(x, i, gain, biases, n, y):
    if biases is None:
        rms_norm_row(x, i, gain, y)
    else:
        layer_norm_row(x, i, gain, biases[n], y)


@njit
def _add(x, y):
    for i in range(len(x)):
        for j in range(x.shape[1]):
            x[i, j] += y[i, j]

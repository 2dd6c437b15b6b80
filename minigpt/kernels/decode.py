"""A decode step: the forward pass for one more token of each sequence, with the keys and values before it in a cache.

Called one at a time, the kernels of a forward pass would spend most of a token's time in the calls.  Here the whole network is
one kernel, which shares the work among threads in one of two ways:

    by rows       Rows are independent, so each thread takes some rows through the whole network to their logits, without
                  any synchronisation.  But every thread reads all weights.
    by columns    The threads divide the output columns of each layer among them and synchronise after it.  Each reads only
                  its share of the weights, which is what counts when there are few rows and many weights.

Every output is computed by the same functions as in the kernels for whole windows, in the same order; so it has the same bits.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from .activations import gelu, relu, squared_relu
from .attention import attend_one
from .lanes import LANES, ZERO, load_part, store_part
from .matmul import BROAD, WIDTH, product_packed
from .norms import layer_norm_row, rms_norm_row
from .rotary import rotate_row
from .threads import parallel_for

ACTIVATIONS = {"relu": 0, "gelu": 1, "relu2": 2}
RELU, GELU, _ = ACTIVATIONS.values()
NO_ACTIVATION = -1


class NetworkWeights(NamedTuple):
    """All that a decode step reads of a network, the weights of all blocks in one array each.

    Matrices are packed (see `pack`): "packed (K, M)" is an array (panels, K, WIDTH).  What a network lacks has length 0, not None,
    so that one compilation serves all networks.
    """
    tokens: np.ndarray                          # (V, C): the token embedding
    positions: np.ndarray                       # (block_size, C): learned positions
    norm_first: bool                            # norms before the sublayers; else after the residual sums
    attention_norm: np.ndarray                  # (n_layer, C): gains
    attention_norm_bias: np.ndarray             # (n_layer, C); of length 0 for RMSNorm, so also in the other norms
    query: np.ndarray                           # n_layer times packed (C, C)
    query_bias: np.ndarray                      # (n_layer, C)
    key: np.ndarray
    key_bias: np.ndarray
    value: np.ndarray
    value_bias: np.ndarray
    query_norm: np.ndarray                      # (n_layer, D): gains of an RMSNorm
    key_norm: np.ndarray
    cosine: np.ndarray                          # (block_size, D / 2): rotary positions
    sine: np.ndarray
    scale: np.float32                           # 1 / sqrt(D)
    projection: np.ndarray                      # n_layer times packed (C, C)
    projection_bias: np.ndarray
    feed_forward_norm: np.ndarray
    feed_forward_norm_bias: np.ndarray
    expand: np.ndarray                          # n_layer times packed (C, 4 * C)
    expand_bias: np.ndarray
    activation: int                             # one of ACTIVATIONS
    contract: np.ndarray                        # n_layer times packed (4 * C, C)
    contract_bias: np.ndarray
    last_norm: np.ndarray                       # (1, C): before the head
    last_norm_bias: np.ndarray
    head: np.ndarray                            # packed (C, V)


@njit(cache=True)
def step_by_columns(ids, weights, keys, values, position, threads, logits):
    """Write the logits (S, V) that follow the tokens ids (S,), which stand at `position` of their sequences.

    weights is a NetworkWeights.  keys and values are the cache's (see `attend_one`), with the layer as first axis, and receive
    this token's.
    """
    S, H, w = len(ids), keys.shape[2], weights
    query, key, value = (w.query, w.query_bias), (w.key, w.key_bias), (w.value, w.value_bias)
    projection, expand, contract = (w.projection, w.projection_bias), (w.expand, w.expand_bias), (w.contract, w.contract_bias)
    attention_norm = w.attention_norm, w.attention_norm_bias
    feed_forward_norm = w.feed_forward_norm, w.feed_forward_norm_bias
    no_bias = w.query_norm[:0]
    query_norm, key_norm, rotary = (w.query_norm, no_bias), (w.key_norm, no_bias), (w.cosine, w.sine)
    norm_first, scale, activation, head = w.norm_first, w.scale, w.activation, w.head

    x = _embed(ids, position, w.tokens, w.positions)
    q, k, v, attended, y = np.empty_like(x), np.empty_like(x), np.empty_like(x), np.empty_like(x), np.empty_like(x)
    hidden = np.empty((S, 4 * x.shape[1]), np.float32)
    for n in range(len(keys)):
        normed = _norm(x, attention_norm, n) if norm_first else x
        parallel_for(threads, _linear_3, normed, query, key, value, n, threads, q, k, v)
        parallel_for(S * H, _attend, q, k, v, H, query_norm, key_norm, rotary, n, keys, values, position, scale, attended)
        parallel_for(threads, _linear, attended, projection, n, NO_ACTIVATION, threads, y)
        _add(x, y)
        normed = _norm(x, feed_forward_norm if norm_first else attention_norm, n)
        if not norm_first:
            x = normed
        parallel_for(threads, _linear, normed, expand, n, activation, threads, hidden)
        parallel_for(threads, _linear, hidden, contract, n, NO_ACTIVATION, threads, y)
        _add(x, y)
        if not norm_first:
            x = _norm(x, feed_forward_norm, n)
    normed = _norm(x, (w.last_norm, w.last_norm_bias), 0)
    parallel_for(threads, _columns, normed, head, threads, logits)


@njit(cache=True)
def step_by_rows(ids, weights, keys, values, position, threads, logits):
    """As `step_by_columns`, which is then left to one thread for each share of the rows."""
    parallel_for(threads, _step_of_rows, ids, weights, keys, values, position, threads, logits)


@njit
def _step_of_rows(task, ids, weights, keys, values, position, threads, logits):
    i, j = task * len(ids) // threads, (task + 1) * len(ids) // threads
    if i < j:
        step_by_columns(ids[i:j], weights, keys[:, i:j], values[:, i:j], position, 1, logits[i:j])


@njit
def _embed(ids, position, tokens, positions):
    x = np.empty((len(ids), tokens.shape[1]), np.float32)
    for i in range(len(ids)):
        for c in range(x.shape[1]):
            x[i, c] = tokens[ids[i], c]
            if len(positions):
                x[i, c] += positions[position, c]
    return x


@njit
def _columns(task, x, panels, threads, y):
    """The share of one of `threads` tasks in y = x @ a packed matrix; returns its first row, last + 1, first column, last + 1.

    The columns are divided first; the rows, too, where there are more threads than pieces of BROAD columns.
    """
    S, M = y.shape
    pieces = (M + BROAD - 1) // BROAD
    across = min(threads, pieces)
    down = threads // across
    height, width = (S + down - 1) // down, (pieces + across - 1) // across * BROAD
    i, j = min(task // across * height, S), min(task % across * width, M)
    rows, columns = min(i + height, S), min(j + width, M)
    if i < rows and j < columns:
        product_packed(x[i:rows, :], panels[j // WIDTH:, :, :], y[i:rows, j:columns], False)
    return i, rows, j, columns


@njit
def _linear(task, x, layer, n, activation, threads, y):
    """A task's share of y = activation(x @ weight + bias); layer is (packed weights, biases), of which it takes number n."""
    weights, biases = layer
    i, rows, j, columns = _columns(task, x, weights[n], threads, y)
    for row in range(i, rows):
        _add_bias(y, row, j, columns, biases, n)
        if activation != NO_ACTIVATION:
            _activate(y, row, j, columns, activation)


@njit
def _linear_3(task, x, query, key, value, n, threads, q, k, v):
    _linear(task, x, query, n, NO_ACTIVATION, threads, q)
    _linear(task, x, key, n, NO_ACTIVATION, threads, k)
    _linear(task, x, value, n, NO_ACTIVATION, threads, v)


@njit
def _attend(pair, q, k, v, heads, query_norm, key_norm, rotary, n, keys, values, position, scale, attended):
    """Attention for one head of one row; pair = row * heads + head."""
    _norm_and_rotate(q, pair, heads, query_norm, rotary, position, n)
    _norm_and_rotate(k, pair, heads, key_norm, rotary, position, n)
    attend_one(q, k, v, keys[n], values[n], pair // heads, pair % heads, position, scale, attended)


@njit
def _add_bias(y, row, start, stop, biases, n):
    if len(biases):
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
def _norm_and_rotate(x, pair, heads, norm, rotary, position, n):
    """Normalise and rotate one head of one row of x (S, C), in place; pair = row * heads + head."""
    rows = x.reshape(len(x) * heads, -1)
    _norm_row(rows, pair, norm[0], norm[1], n, rows)
    _rotate_row(rows, pair, rotary[0], rotary[1], position)


@njit
def _rotate_row(rows, row, cosine, sine, position):
    if len(cosine):
        rotate_row(rows, row, cosine, sine, position, 1, rows)


@njit
def _norm(x, norm, n):
    """A normalised copy of x (S, C), with number n of norm = (gains, biases); a plain copy if there are none."""
    y = np.empty_like(x)
    for i in range(len(x)):
        for c in range(x.shape[1]):
            y[i, c] = x[i, c]
        _norm_row(x, i, norm[0], norm[1], n, y)
    return y


@njit
def _norm_row(x, i, gains, biases, n, y):
    if len(biases):
        layer_norm_row(x, i, gains[n], biases[n], y)
    elif len(gains):
        rms_norm_row(x, i, gains[n], y)


@njit
def _add(x, y):
    for i in range(len(x)):
        for j in range(x.shape[1]):
            x[i, j] += y[i, j]

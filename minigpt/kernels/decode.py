"""A decode step: the forward pass for one more token of each sequence, with the earlier keys and values in a cache.

If the kernels of a forward pass were called one by one, most of a token's time would be call overhead.  Here the whole network
is one kernel, which divides the work among threads in one of two ways:

    by rows       Rows are independent, so each thread takes some rows through the whole network to their logits, without
                  any synchronisation.  But every thread reads all weights.
    by columns    The threads divide the output columns of each layer among them and synchronise after it.  Each reads only
                  its share of the weights, which is what counts when there are few rows and many weights.

Every output is computed by the same functions as in the kernels for whole windows, in the same order, so it has the same bits.
"""

from typing import NamedTuple

import numpy as np
from numba import njit, types
from numba.extending import overload

from .activations import gelu, relu, squared_relu, swiglu
from .attention import attend_one
from .lanes import LANES, ZERO, load_part, named, store_part
from .matmul import BROAD, WIDTH, product_packed
from .norms import layer_norm_row, rms_norm_row
from .rotary import rotate_row
from .threads import parallel_for

ACTIVATIONS = {"relu": 0, "gelu": 1, "relu2": 2, "swiglu": 3}
RELU, GELU, _, SWIGLU = ACTIVATIONS.values()


class NetworkWeights(NamedTuple):
    """All that a decode step reads of a network: one array for each kind of weight, stacked over the blocks.

    Matrices are packed (see `pack`): "packed (K, M)" is an array (panels, K, WIDTH).  In an 8-bit model they are Quantised.
    What a network lacks has length 0 and is not None, so that one compilation serves all float networks, and one all integer
    networks.
    """
    tokens: np.ndarray                          # (V, C): the token embedding; of length 0 if tied to the head
    positions: np.ndarray                       # (block_size, C): learned positions
    epsilon: np.float32                         # of the norms
    norm_first: bool                            # norms before the sublayers; else after the residual sums
    attention_norm: np.ndarray                  # (n_layer, C): gains
    attention_norm_bias: np.ndarray             # (n_layer, C); of length 0 for RMSNorm, as are the biases of the other norms
    query: np.ndarray                           # n_layer times packed (C, C)
    query_bias: np.ndarray                      # (n_layer, C)
    key: np.ndarray                             # n_layer times packed (C, kv_width)
    key_bias: np.ndarray
    kv_width: int                               # Hkv * D
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
    gate: np.ndarray                            # n_layer times packed (C, n_hidden), for swiglu
    gate_bias: np.ndarray
    expand: np.ndarray                          # n_layer times packed (C, n_hidden)
    expand_bias: np.ndarray
    activation: int                             # one of ACTIVATIONS
    hidden: int                                 # n_hidden
    contract: np.ndarray                        # n_layer times packed (n_hidden, C)
    contract_bias: np.ndarray
    last_norm: np.ndarray                       # (1, C): before the head
    last_norm_bias: np.ndarray
    head: np.ndarray                            # one packed (C, V)
    head_bias: np.ndarray                       # (1, V)


# --- matrices of floats, or of integers ---------------------------------------------------------------------------------
# The integer kernels are imported where they are used: importing compiles them, which takes seconds, and few models need them.

def prepare(x, matrix):
    """x (S, K) in the form in which `multiply` takes it for this matrix, which is in float panels or Quantised."""


def multiply(x, matrix, n, i, rows, j, columns, y):
    """y[i:rows, j:columns] = rows i:rows of what `prepare` returned @ columns j:columns of matrix n."""


def element(matrices, k, j):
    """Element (k, j) of the first matrix, as a float."""


@overload(prepare)
def _prepare(x, matrix):
    if not isinstance(matrix, types.BaseTuple):
        return named(lambda x, matrix: x, "prepare_floats")
    from .quantised import new_rows, quantise_row

    def integers(x, matrix):
        items, scales = new_rows(x.shape[0], x.shape[1])
        for row in range(len(x)):
            quantise_row(x, row, items, scales)
        return items, scales
    return integers


@overload(multiply)
def _multiply(x, matrix, n, i, rows, j, columns, y):
    def floats(x, matrix, n, i, rows, j, columns, y):
        product_packed(x[i:rows, :], matrix[n, j // WIDTH:, :, :], y[i:rows, j:columns], False)
    if not isinstance(matrix, types.BaseTuple):
        return floats
    from .quantised import product_quantised

    def integers(x, matrix, n, i, rows, j, columns, y):
        p = j // WIDTH
        product_quantised(x[0][i:rows], x[1][i:rows], matrix.integers[n, p:], matrix.scales[n, p:], matrix.starts[n, p:],
                          y[i:rows, j:columns])
    return integers


@overload(element)
def _element(matrices, k, j):
    if not isinstance(matrices, types.BaseTuple):
        return named(lambda matrices, k, j: matrices[0, j // WIDTH, k, j % WIDTH], "element_of_floats")
    from .quantised import GROUP, STEP

    def integers(matrices, k, j):
        p, c, g = j // WIDTH, j % WIDTH, k // GROUP
        return np.float32(matrices.integers[0, p, g, k % GROUP // STEP, c, k % STEP]) * matrices.scales[0, p, g, c]
    return integers


# --- a step ---------------------------------------------------------------------------------------------------------------

@njit(cache=True)
def step(ids, weights, held, first, place, position, down, across, logits):
    """Write the logits (S, V) that follow the tokens ids (S,), each at `position` in its sequence.

    weights is a NetworkWeights; held holds the cached keys and values, where row 0 is sequence number `first`: `place` tokens
    before these, whose own are added.  The rows are divided among `down` threads, or the columns of the matrices among
    `across`.  One of the two is 1: parallel loops do not nest (see `parallel_for`).
    """
    parallel_for(down, _step_of_rows, ids, weights, held, first, place, position, down, across, logits)


@njit
def _step_of_rows(share, ids, weights, held, first, place, position, down, threads, logits):
    i, j = share * len(ids) // down, (share + 1) * len(ids) // down
    if i == j:
        return
    ids, first, logits = ids[i:j], first + i, logits[i:j]
    S, Hkv, w = len(ids), held.keys.shape[2], weights
    query, key, value = (w.query, w.query_bias), (w.key, w.key_bias), (w.value, w.value_bias)
    projection, contract = (w.projection, w.projection_bias), (w.contract, w.contract_bias)
    gate, expand = (w.gate, w.gate_bias), (w.expand, w.expand_bias)
    attention_norm = w.attention_norm, w.attention_norm_bias
    feed_forward_norm = w.feed_forward_norm, w.feed_forward_norm_bias
    no_bias, epsilon = w.query_norm[:0], w.epsilon
    query_norm, key_norm, rotary = (w.query_norm, no_bias), (w.key_norm, no_bias), (w.cosine, w.sine)
    norm_first, scale, activation, head = w.norm_first, w.scale, w.activation, w.head

    x = np.empty((S, w.attention_norm.shape[1]), np.float32)
    _embed(ids, position, w.tokens, w.positions, head, x)
    q, attended, y = np.empty_like(x), np.empty_like(x), np.empty_like(x)
    k, v = np.empty((S, w.kv_width), np.float32), np.empty((S, w.kv_width), np.float32)
    hidden = np.empty((S, w.hidden), np.float32)
    gates = np.empty_like(hidden) if activation == SWIGLU else hidden[:0]
    for n in range(len(held.keys)):
        normed = _norm(x, attention_norm, n, epsilon) if norm_first else x
        parallel_for(threads, _linear_3, prepare(normed, w.query), query, key, value, n, threads, q, k, v)
        parallel_for(S * Hkv, _attend, q, k, v, Hkv, query_norm, key_norm, rotary, n, epsilon, held, first, place, position,
                     scale, attended)
        parallel_for(threads, _linear, prepare(attended, w.projection), projection, n, threads, y)
        _add(x, y)
        normed = _norm(x, feed_forward_norm if norm_first else attention_norm, n, epsilon)
        if not norm_first:
            x = normed
        parallel_for(threads, _expand, prepare(normed, w.expand), gate, expand, n, activation, threads, gates, hidden)
        parallel_for(threads, _linear, prepare(hidden, w.contract), contract, n, threads, y)
        _add(x, y)
        if not norm_first:
            x = _norm(x, feed_forward_norm, n, epsilon)
    first_of_one = np.int64(0)              # for a literal 0, Numba would compile these functions once more
    normed = _norm(x, (w.last_norm, w.last_norm_bias), first_of_one, epsilon)
    parallel_for(threads, _linear, prepare(normed, head), (head, w.head_bias), first_of_one, threads, logits)


@njit
def _embed(ids, position, tokens, positions, head, x):
    for i in range(len(ids)):
        for c in range(x.shape[1]):
            x[i, c] = tokens[ids[i], c] if len(tokens) else element(head, c, ids[i])
            if len(positions):
                x[i, c] += positions[position, c]


@njit
def _columns(task, x, matrices, n, threads, y):
    """Compute a task's share of y = x @ matrix n; returns its first row, last row + 1, first column, last column + 1.

    The columns are divided first; the rows as well where there are more threads than pieces of BROAD columns.
    """
    S, M = y.shape
    pieces = (M + BROAD - 1) // BROAD
    across = min(threads, pieces)
    down = threads // across
    height, width = (S + down - 1) // down, (pieces + across - 1) // across * BROAD
    i, j = min(task // across * height, S), min(task % across * width, M)
    rows, columns = min(i + height, S), min(j + width, M)
    if i < rows and j < columns:
        multiply(x, matrices, n, i, rows, j, columns, y)
    return i, rows, j, columns


@njit
def _linear(task, x, layer, n, threads, y):
    """A task's share of y = x @ weight + bias, number n of layer = (packed weights, biases).  Returns as `_columns` does."""
    weights, biases = layer
    i, rows, j, columns = _columns(task, x, weights, n, threads, y)
    for row in range(i, rows):
        _add_bias(y, row, j, columns, biases, n)
    return i, rows, j, columns


@njit
def _expand(task, x, gate, expand, n, activation, threads, gates, y):
    """A task's share of the hidden channels y; gates has the shape of y where the activation is SWIGLU."""
    i, rows, start, stop = _linear(task, x, expand, n, threads, y)
    if activation == SWIGLU:
        _linear(task, x, gate, n, threads, gates)
    for row in range(i, rows):
        if activation == SWIGLU:
            for j in range(start, stop, LANES):
                at, count = row * y.shape[1] + j, stop - j
                store_part(y, at, count, swiglu(load_part(gates, at, count, ZERO), load_part(y, at, count, ZERO)))
        else:
            _activate(y, row, start, stop, activation)


@njit
def _linear_3(task, x, query, key, value, n, threads, q, k, v):
    _linear(task, x, query, n, threads, q)
    _linear(task, x, key, n, threads, k)
    _linear(task, x, value, n, threads, v)


@njit
def _attend(pair, q, k, v, Hkv, query_norm, key_norm, rotary, n, epsilon, held, first, place, position, scale, attended):
    """Attention for the query heads of one row that share a key and value head; pair = row * Hkv + that head."""
    D = k.shape[1] // Hkv
    _norm_and_rotate(q, pair, Hkv, D, query_norm, rotary, position, n, epsilon)
    _norm_and_rotate(k, pair, Hkv, D, key_norm, rotary, position, n, epsilon)
    attend_one(q, k, v, held, n, first, pair // Hkv, pair % Hkv, place, scale, attended)


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
def _norm_and_rotate(x, pair, Hkv, D, norm, rotary, position, n, epsilon):
    """Normalise and rotate the heads of one group in one row of x (S, heads * D), in place; pair = row * Hkv + group."""
    rows = x.reshape(-1, D)
    group = len(rows) // (len(x) * Hkv)
    for row in range(pair * group, (pair + 1) * group):
        _norm_row(rows, row, norm[0], norm[1], n, epsilon, rows)
        _rotate_row(rows, row, rotary[0], rotary[1], position)


@njit
def _rotate_row(rows, row, cosine, sine, position):
    if len(cosine):
        rotate_row(rows, row, cosine, sine, position, np.int64(1), rows)       # no literal, as in `_step_of_rows`


@njit
def _norm(x, norm, n, epsilon):
    """A normalised copy of x (S, C), with number n of norm = (gains, biases); a plain copy if there are none."""
    y = np.empty_like(x)
    for i in range(len(x)):
        for c in range(x.shape[1]):
            y[i, c] = x[i, c]
        _norm_row(x, i, norm[0], norm[1], n, epsilon, y)
    return y


@njit
def _norm_row(x, i, gains, biases, n, epsilon, y):
    if len(biases):
        layer_norm_row(x, i, gains[n], biases[n], epsilon, y)
    elif len(gains):
        rms_norm_row(x, i, gains[n], epsilon, y)


@njit
def _add(x, y):
    for i in range(len(x)):
        for j in range(x.shape[1]):
            x[i, j] += y[i, j]

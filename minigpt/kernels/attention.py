"""Causal self-attention [Vaswani et al. 2017]: two matrix products with a softmax between, for each sequence and head.

Queries are processed in blocks of QUERY_ROWS, and a block computes scores only for the keys up to its last row.  Keys after a
row's own position have weight exactly zero, and fma(0, v, s) = s.  So a row has the same bits in any block, and `attend_one`,
which never sees those keys, computes the same.  (The only thing such a term can change is the sign of a zero; adding +0.0 at
the end makes every zero positive.)

In grouped-query attention [Ainslie et al. 2023] the keys and values have fewer heads than the queries, Hkv of H: each serves a
group of G = H / Hkv consecutive heads.
"""

from typing import NamedTuple

import numpy as np
from numba import njit, types
from numba.extending import overload

from .lanes import LANES, ONE, ZERO, exp, fma, keep_first, lane_sum, load, load_part, splat, store, store_part
from .linking import linked
from .matmul import MATRIX, WIDTH, pack_columns, panels_of, product, product_packed
from .softmax import softmax_row
from .threads import parallel_for

QUERY_ROWS = 24       # a multiple of the tile heights, 8 and 6
ROW = types.Array(types.float32, 1, "C")


@njit
def _head(x, sequence, head, T, D):
    """The rows (T, D) of one head of one sequence in x (B * T, H * D)."""
    return x[sequence * T:(sequence + 1) * T, head * D:(head + 1) * D]


@njit
def _whole_panels(columns):
    return (columns + WIDTH - 1) // WIDTH * WIDTH


@njit
def _packed(x):
    """The panels of x (K, M): see `pack_columns`."""
    panels = np.empty((panels_of(x.shape[1]), x.shape[0], WIDTH), np.float32)
    pack_columns(x, panels)
    return panels


@njit
def _dot(x, y, row):
    """The sum of x[row] * y[row], for views whose rows are contiguous."""
    total = splat(ZERO)
    D, at_x, at_y = x.shape[1], row * (x.strides[0] // 4), row * (y.strides[0] // 4)
    for d in range(0, D, LANES):
        total = fma(load_part(x, at_x + d, D - d, ZERO), load_part(y, at_y + d, D - d, ZERO), total)
    return lane_sum(total)


@njit
def _divide_row(x, row, divisor):
    """x[row] = (x[row] + 0) / divisor, for a view whose rows are contiguous.  The sum turns -0 to +0."""
    at, D = row * (x.strides[0] // 4), x.shape[1]
    for d in range(0, D, LANES):
        store_part(x, at + d, D - d, (load_part(x, at + d, D - d, ZERO) + splat(ZERO)) / splat(divisor))


@linked(types.void(MATRIX, MATRIX, MATRIX, types.float32, MATRIX, ROW, ROW))
def _attend(q, k, v, scale, out, peak, total):
    T, before = len(q), len(k) - len(q)         # the queries belong to the last T keys
    keys, values = _packed(k.T), _packed(v)
    width = len(keys) * WIDTH
    scores = np.empty((QUERY_ROWS, width), np.float32)
    for i in range(0, T, QUERY_ROWS):
        rows = min(QUERY_ROWS, T - i)
        seen = before + i + rows
        product_packed(q[i:i + rows], keys, scores[:rows, :_whole_panels(seen)], False)         # whole panels are faster
        for r in range(rows):
            peak[i + r], total[i + r] = softmax_row(scores, r * width, before + i + r + 1, seen, scale)
        product_packed(scores[:rows, :seen], values, out[i:i + rows], False)
        for r in range(rows):
            _divide_row(out, i + r, total[i + r])


@njit
def _attend_head(pair, q, k, v, heads, T, scale, out, peak, total):
    s, h, D, group = pair // heads, pair % heads, q.shape[1] // heads, q.shape[1] // k.shape[1]
    _attend(_head(q, s, h, T, D), _head(k, s, h // group, T, D), _head(v, s, h // group, T, D), scale, _head(out, s, h, T, D),
            peak[pair], total[pair])


@njit(cache=True)
def attention_forward(q, k, v, heads, T, scale, out, peak, total):
    """out = softmax(scale * q @ k.T, each row over its own and earlier positions) @ v, for each head of each sequence.

    q, out (B * T, H * D), with H = heads; k, v (B * T, Hkv * D).  Saved for the backward pass: peak and total (B * H, T), each
    row's largest score and its sum of e^(score - peak).
    """
    parallel_for(len(q) // T * heads, _attend_head, q, k, v, heads, T, scale, out, peak, total)


# With P = softmax(S), S = scale * q k^T and out = P v:
#   dv = P^T dout,  dP = dout v^T,  dS = P * (dP - rowsum(P * dP)),  dq = scale * dS k,  dk = scale * dS^T q
# and rowsum(P * dP) = rowsum(dout * out), which needs no P.  The heads of a group share k and v, so their contributions to dk
# and dv are added up, head by head.  P is recomputed from the row max and sum (peak and total), as in
# FlashAttention [Dao et al. 2022], which takes less memory traffic than saving it.
@linked(types.void(MATRIX, MATRIX, MATRIX, MATRIX, MATRIX, ROW, ROW, types.float32, MATRIX, MATRIX, MATRIX))
def _attend_backward(dout, q, k, v, out, peak, total, scale, dq, dk, dv):       # writes dq, adds to dk and dv
    T = len(q)
    keys, keys_as_rows, values = _packed(k.T), _packed(k), _packed(v.T)
    width = len(keys) * WIDTH
    P, dP = np.empty((QUERY_ROWS, width), np.float32), np.empty((QUERY_ROWS, width), np.float32)
    for i in range(0, T, QUERY_ROWS):
        rows = min(QUERY_ROWS, T - i)
        seen = i + rows
        product_packed(q[i:seen], keys, P[:rows, :_whole_panels(seen)], False)
        product_packed(dout[i:seen], values, dP[:rows, :_whole_panels(seen)], False)
        for r in range(rows):
            dot = _dot(dout, out, i + r)
            for j in range(0, seen, LANES):
                at = r * width + j
                p = exp(load(P, at) * splat(scale) - splat(peak[i + r])) * splat(ONE / total[i + r])
                p = keep_first(p, i + r + 1 - j, ZERO)
                store(P, at, p)
                store(dP, at, keep_first(p * (load(dP, at) - splat(dot)) * splat(scale), i + r + 1 - j, ZERO))
        product_packed(dP[:rows, :seen], keys_as_rows, dq[i:seen], False)
        product(dP[:rows, :seen].T, q[i:seen], dk[:seen], True)
        product(P[:rows, :seen].T, dout[i:seen], dv[:seen], True)


@njit
def _attend_group_backward(pair, dout, q, k, v, out, peak, total, heads, T, scale, dq, dk, dv):
    """The query heads that share key and value head g; their contributions to dk and dv add up in order."""
    D, group = q.shape[1] // heads, q.shape[1] // k.shape[1]
    s, g = pair // (heads // group), pair % (heads // group)
    k_head, v_head, dk_head, dv_head = _head(k, s, g, T, D), _head(v, s, g, T, D), _head(dk, s, g, T, D), _head(dv, s, g, T, D)
    dk_head[:], dv_head[:] = ZERO, ZERO
    for h in range(g * group, (g + 1) * group):
        _attend_backward(_head(dout, s, h, T, D), _head(q, s, h, T, D), k_head, v_head, _head(out, s, h, T, D),
                         peak[s * heads + h], total[s * heads + h], scale, _head(dq, s, h, T, D), dk_head, dv_head)


@njit(cache=True)
def attention_backward(dout, q, k, v, out, peak, total, heads, T, scale, dq, dk, dv):
    """Write dq (B * T, H * D), dk and dv (B * T, Hkv * D), given dout (B * T, H * D) and the inputs and outputs of
    attention_forward."""
    pairs = len(q) // T * (heads * k.shape[1] // q.shape[1])
    parallel_for(pairs, _attend_group_backward, dout, q, k, v, out, peak, total, heads, T, scale, dq, dk, dv)


# --- with a cache of the earlier keys and values -----------------------------------------------------------------------

class HeldFloats(NamedTuple):
    """The keys and values that a cache holds; those of a quantised model are HeldIntegers."""
    keys: np.ndarray            # (n_layer, S, Hkv, D, length padded to whole lanes) float32
    values: np.ndarray          # (n_layer, S, Hkv, length, D) float32


def hold_floats(n_layer: int, S: int, heads: int, length: int, D: int) -> HeldFloats:
    """Room for `length` keys and values of D channels in each layer, sequence and head."""
    return HeldFloats(np.zeros((n_layer, S, heads, D, (length + LANES - 1) // LANES * LANES), np.float32),
                      np.zeros((n_layer, S, heads, length, D), np.float32))


def put(held, n, s, g, place, k, v):
    """Write the key k (D,) and the value v (D,) to a place of head g of sequence s in layer n."""


def attend_rows(q, held, n, s, g, count, more, scale, out):
    """out (N, D) of queries q (N, D): the first attends to the head's first `count` places, each next query to `more` more."""


@overload(put)
def _put(held, n, s, g, place, k, v):
    def floats(held, n, s, g, place, k, v):
        for d in range(len(k)):
            held.keys[n, s, g, d, place] = k[d]
            held.values[n, s, g, place, d] = v[d]
    if held.instance_class is HeldFloats:
        return floats
    from .quantised_attention import put_integers           # here, since importing compiles it, which training does not need
    return put_integers


@overload(attend_rows)
def _attend_rows(q, held, n, s, g, count, more, scale, out):
    def floats(q, held, n, s, g, count, more, scale, out):
        keys, values, seen = held.keys[n, s, g], held.values[n, s, g], count + (len(q) - 1) * more
        if more:
            unused = np.empty((2, len(q)), np.float32)
            _attend(q, keys[:, :seen].T, values[:seen], scale, out, unused[0], unused[1])
        else:
            _attend_few(q, keys, values, count, scale, out)
    if held.instance_class is HeldFloats:
        return floats
    from .quantised_attention import attend_quantised
    return attend_quantised


@njit
def _attend_few(q, keys, values, count, scale, out):
    """As `_attend`, for few queries, which all attend to the first `count` of keys (D, length) and values (length, D)."""
    width = keys.shape[1]
    whole = min(_whole_panels(count), width)                                        # whole tiles are faster
    weights, totals = np.empty((len(q), width), np.float32), np.empty(len(q), np.float32)
    product(q, keys[:, :whole], weights[:, :whole], False)
    for r in range(len(q)):
        _, totals[r] = softmax_row(weights, r * width, count, count, scale)
    product(weights[:, :count], values[:count], out, False)
    for r in range(len(q)):
        _divide_row(out, r, totals[r])


@njit(cache=True)
def attend_one(q, k, v, held, n, first, row, g, place, scale, out):
    """Attention for one more token, in the heads that share key head g: a row of `attention_forward`, bit for bit.

    q, out (S, H * D); k, v (S, Hkv * D), of which only `row` is used.  In layer n the cache holds `place` tokens before this
    one, and receives its key and value; row 0 is the cache's sequence number `first`.
    """
    D, group, s = k.shape[1] // held.keys.shape[2], q.shape[1] // k.shape[1], first + row
    put(held, n, s, g, place, k[row, g * D:(g + 1) * D], v[row, g * D:(g + 1) * D])
    attend_rows(_group(q, row, g, group, D), held, n, s, g, place + 1, 0, scale, _group(out, row, g, group, D))


@njit
def _group(x, row, g, group, D):
    """The heads (G, D) of group g in a row of x (S, H * D)."""
    heads = x.reshape(-1, D)
    first = row * (x.shape[1] // D) + g * group
    return heads[first:first + group, :]            # of the type that _head returns, so that one compilation serves both


@njit
def _put_head(pair, k, v, held, n, first, place, T):
    s, g, D = pair // held.keys.shape[2], pair % held.keys.shape[2], k.shape[1] // held.keys.shape[2]
    for t in range(T):
        put(held, n, first + s, g, place + t, k[s * T + t, g * D:(g + 1) * D], v[s * T + t, g * D:(g + 1) * D])


@njit
def _attend_held(pair, q, held, n, first, heads, place, T, scale, out):
    s, h, D, group = pair // heads, pair % heads, q.shape[1] // heads, heads // held.keys.shape[2]
    attend_rows(_head(q, s, h, T, D), held, n, first + s, h // group, place + 1, 1, scale, _head(out, s, h, T, D))


@njit(cache=True)
def attention_continued(q, k, v, heads, held, n, first, place, T, scale, out):
    """As `attention_forward`, for T new tokens of each sequence: in layer n the cache holds `place` tokens before them, to
    which they attend as well, and receives their keys and values.  The first sequence is the cache's number `first`.

    q, out (S * T, H * D), with H = heads; k, v (S * T, Hkv * D).
    """
    S = len(q) // T
    parallel_for(S * held.keys.shape[2], _put_head, k, v, held, n, first, place, T)
    parallel_for(S * heads, _attend_held, q, held, n, first, heads, place, T, scale, out)

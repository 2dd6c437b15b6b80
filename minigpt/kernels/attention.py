"""Causal self-attention [Vaswani et al. 2017]: two matrix products with a softmax between, for each sequence and head.

Queries are processed in blocks of QUERY_ROWS, and a block computes scores only for the keys up to its last row.  Keys after a
row's own position have weight exactly zero, and fma(0, v, s) = s.  So a row has the same bits in any block, and `attend_one`,
which never sees those keys, computes the same.  (The only thing such a term can change is the sign of a zero; adding +0.0 at
the end makes every zero positive.)

In grouped-query attention [Ainslie et al. 2023] the keys and values have fewer heads than the queries, Hkv of H: each serves a
group of G = H / Hkv consecutive heads.
"""

import numpy as np
from numba import njit, types

from .lanes import LANES, ONE, ZERO, exp, fma, keep_first, lane_sum, load, load_part, splat, store, store_part
from .linking import linked
from .matmul import MATRIX, WIDTH, pack_columns, panels_of, product, product_packed
from .quantised import keys_of, put, values_of
from .softmax import softmax_row
from .threads import parallel_for

QUERY_ROWS = 24       # a multiple of the tile heights, 8 and 6
KEYS = 256            # keys and values in a part that attend_one reads: those of 8 bits are converted part by part
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
    T, before = len(q), len(k) - len(q)         # the queries are those of the last T keys
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


@njit
def _attend_cached(pair, q, keys, values, scales, heads, count, T, scale, out):
    s, h, D, group = pair // heads, pair % heads, keys.shape[2], heads // keys.shape[1]
    g = h // group
    k, v = keys_of(keys, scales, s, g, 0, count).T, values_of(values, scales, s, g, 0, count)       # (count, D)
    unused = np.empty((2, T), np.float32)
    _attend(_head(q, s, h, T, D), k, v, scale, _head(out, s, h, T, D), unused[0], unused[1])


@njit(cache=True)
def attention_continued(q, keys, values, scales, count, T, scale, out):
    """As `attention_forward`, of T new tokens of each sequence, whose keys and values are the last of `count` in a cache.

    q, out (B * T, H * D); keys (B, Hkv, D, length padded to whole lanes), values (B, Hkv, length, D) and scales: see Cache.
    """
    heads = q.shape[1] // keys.shape[2]
    parallel_for(len(keys) * heads, _attend_cached, q, keys, values, scales, heads, count, T, scale, out)


# With P = softmax(S), S = scale * q k^T and out = P v:
#   dv = P^T dout,  dP = dout v^T,  dS = P * (dP - rowsum(P * dP)),  dq = scale * dS k,  dk = scale * dS^T q
# and rowsum(P * dP) = rowsum(dout * out), which needs no P.  The heads of a group share k and v, so dk and dv add up what each
# of them contributes, in turn.  P is recomputed from the row max and sum (peak and total), as in
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
    """Write dq (B * T, H * D), dk and dv (B * T, Hkv * D) from dout (B * T, H * D), and from what attention_forward read and
    wrote."""
    pairs = len(q) // T * (heads * k.shape[1] // q.shape[1])
    parallel_for(pairs, _attend_group_backward, dout, q, k, v, out, peak, total, heads, T, scale, dq, dk, dv)


@njit(cache=True)
def attend_one(q, k, v, keys, values, scales, s, g, held, scale, out):
    """Attention for one more token of sequence s, in the heads that share head g of the keys: a row of `attention_forward`, bit
    for bit.

    q, out (S, H * D); k, v (S, Hkv * D).  keys (S, Hkv, D, length padded to whole lanes), values (S, Hkv, length, D) and their
    scales (see Cache) hold `held` tokens before this one, and receive its own.
    """
    _, Hkv, D, width = keys.shape
    put(keys, values, scales, s, g, held, k[s, g * D:(g + 1) * D], v[s, g * D:(g + 1) * D])
    count, whole = held + 1, min((held // WIDTH + 1) * WIDTH, width)                # whole tiles are faster
    group = q.shape[1] // (Hkv * D)
    queries, outputs = _group(q, s, g, group, D), _group(out, s, g, group, D)
    weights = np.empty((group, width), np.float32)
    for start in range(0, whole, KEYS):
        stop = min(start + KEYS, whole)
        product(queries, keys_of(keys, scales, s, g, start, stop), weights[:, start:stop], False)
    totals = np.empty(group, np.float32)
    for r in range(group):
        _, totals[r] = softmax_row(weights, r * width, count, count, scale)
    for start in range(0, count, KEYS):
        stop = min(start + KEYS, count)
        product(weights[:, start:stop], values_of(values, scales, s, g, start, stop), outputs, start > 0)
    for r in range(group):
        _divide_row(outputs, r, totals[r])


@njit
def _group(x, s, g, group, D):
    """The heads (G, D) of group g in row s of x (S, H * D)."""
    return x[s, g * group * D:(g + 1) * group * D].reshape(group, D)

"""Attention over 8-bit keys and values, in integer products (see quantised.py), for inference only.

A key is quantised like a row of such a product, in groups of GROUP channels; a value has one scale for all channels.  Then

    scores = q keys             queries are quantised like keys: a product like any other
    p_j = e^(scale * score_j - peak),    total = sum of p_j, in floats
    out = (w values) / total    with w_j = p_j * scale of value j, quantised to integers from 0 to 255 in groups of GROUP places

and the last product is a chain over groups of places in the cache, each a sum of integers.  A place after the query's own has
weight 0, and a group of only such places has scale 0.  So a row has the same bits in any block, as with floats (attention.py).
"""

from typing import NamedTuple

import numpy as np
from numba import njit, types

from .lanes import LANES, ZERO, exp, keep_first, lane_max, lane_sum, load, load_part, maximum, rint, splat, store, store_part
from .linking import linked
from .matmul import FLOAT, MATRIX, WIDTH, panels_of
from .quantised import (GROUP, ITEMS, LARGEST, LARGEST_WEIGHT, OFFSET, PANELS, SCALES, STEP, STEPS, bounded, inverse_of,
                        new_rows, product_quantised, quantise_row, rounded, store_unsigned)
from .threads import parallel_for

QUERY_ROWS = 24       # as in attention.py


class HeldIntegers(NamedTuple):
    """The keys and values that a cache holds, as matrices in panels (see Quantised) for each layer, sequence and head: keys
    as (D, length), and values as (length, D)."""
    keys: np.ndarray            # (n_layer, S, Hkv, P, G, STEPS, WIDTH, STEP) int8
    key_scales: np.ndarray      # (n_layer, S, Hkv, P, G, WIDTH) float32
    key_starts: np.ndarray      # (n_layer, S, Hkv, P, G, WIDTH) int32
    values: np.ndarray          # (n_layer, S, Hkv, P', G', STEPS, WIDTH, STEP) int8
    value_scales: np.ndarray    # (n_layer, S, Hkv, length padded to whole groups) float32


def hold_integers(n_layer: int, S: int, heads: int, length: int, D: int) -> HeldIntegers:
    """Room for `length` keys and values of D channels in each layer, sequence and head."""
    G = (length + GROUP - 1) // GROUP
    keys, values = ((n_layer, S, heads, panels_of(M), (K + GROUP - 1) // GROUP) for K, M in ((D, length), (length, D)))
    return HeldIntegers(
        np.zeros((*keys, STEPS, WIDTH, STEP), np.int8), np.zeros((*keys, WIDTH), np.float32),
        np.zeros((*keys, WIDTH), np.int32), np.zeros((*values, STEPS, WIDTH, STEP), np.int8),
        np.zeros((n_layer, S, heads, G * GROUP), np.float32))


def put_integers(held, n, s, g, place, k, v):
    """Write the key k (D,) and the value v (D,) to a place of head g of sequence s in layer n.  (`put` in attention.py.)"""
    p, c, D, largest = place // WIDTH, place % WIDTH, len(k), ZERO
    for i in range(held.key_scales.shape[4]):
        peak, total = ZERO, 0
        for d in range(i * GROUP, min((i + 1) * GROUP, D)):
            peak = max(peak, abs(k[d]))
        inverse = inverse_of(peak, LARGEST)
        for d in range(i * GROUP, min((i + 1) * GROUP, D)):
            integer = np.int8(rounded(k[d], inverse))
            held.keys[n, s, g, p, i, d % GROUP // STEP, c, d % STEP] = integer
            total += integer
        held.key_scales[n, s, g, p, i, c], held.key_starts[n, s, g, p, i, c] = peak / LARGEST, -OFFSET * total
    for d in range(D):
        largest = max(largest, abs(v[d]))
    inverse, i, step = inverse_of(largest, LARGEST), place // GROUP, place % GROUP // STEP
    for d in range(D):
        held.values[n, s, g, d // WIDTH, i, step, d % WIDTH, place % STEP] = np.int8(rounded(v[d], inverse))
    held.value_scales[n, s, g, place] = largest / LARGEST


@njit
def _weigh_row(scores, row, count, groups, scale, value_scales, items, scales):
    """The weights of row `row` of scores (N, G * GROUP), in the first `groups` groups of places, of which `count` are seen:
    their integers go to items[row], and the scales of their groups to scales[row].  Returns the total of the row's p_j."""
    at, low = row * scores.shape[1], splat(np.float32(-np.inf))
    peaks, others = low, low
    for j in range(0, count - 2 * LANES + 1, 2 * LANES):                # two chains: each maximum waits for the one before
        peaks = maximum(load(scores, at + j) * splat(scale), peaks)
        others = maximum(load(scores, at + j + LANES) * splat(scale), others)
    for j in range(count // (2 * LANES) * 2 * LANES, count, LANES):
        peaks = maximum(keep_first(load(scores, at + j) * splat(scale), count - j, np.float32(-np.inf)), peaks)
    peak, total = splat(lane_max(maximum(others, peaks))), splat(ZERO)
    for g in range(groups):
        largest = splat(ZERO)
        for j in range(g * GROUP, (g + 1) * GROUP, LANES):
            p = exp(load(scores, at + j) * splat(scale) - peak)
            if j + LANES > count:
                p = keep_first(p, count - j, ZERO)
            total = total + p
            weight = p * load(value_scales, j)
            store(scores, at + j, weight)
            largest = maximum(weight, largest)
        inverse = splat(inverse_of(lane_max(largest), LARGEST_WEIGHT))
        for j in range(g * GROUP, (g + 1) * GROUP, LANES):
            store_unsigned(items, at + j, rint(bounded(load(scores, at + j) * inverse, ZERO, LARGEST_WEIGHT)))
        scales[row, g] = lane_max(largest) / LARGEST_WEIGHT
    return lane_sum(total)


@linked(types.void(ITEMS, SCALES, *PANELS, PANELS[0], types.Array(types.float32, 1, "C"), types.intp, types.intp,
                   types.float32, MATRIX))
def _attend(q, q_scales, keys, key_scales, key_starts, values, value_scales, count, more, scale, out):
    N, D = out.shape
    G = (count + (N - 1) * more + GROUP - 1) // GROUP
    width = G * GROUP
    weights, totals = np.empty((QUERY_ROWS, width), np.float32), np.empty(QUERY_ROWS, np.float32)
    items, scales = new_rows(QUERY_ROWS, width)
    ones, zeros = np.ones((len(values), G, WIDTH), np.float32), np.zeros((len(values), G, WIDTH), np.int32)
    for i in range(0, N, QUERY_ROWS):
        rows = min(QUERY_ROWS, N - i)
        seen = count + (i + rows - 1) * more
        groups, whole = (seen + GROUP - 1) // GROUP, (seen + WIDTH - 1) // WIDTH * WIDTH        # whole tiles are faster
        product_quantised(q[i:i + rows], q_scales[i:i + rows], keys, key_scales, key_starts, weights[:rows, :whole])
        for r in range(rows):
            totals[r] = _weigh_row(weights, r, count + (i + r) * more, groups, scale, value_scales, items, scales)
        product_quantised(items[:rows], scales[:rows, :groups], values, ones, zeros, out[i:i + rows])
        for r in range(rows):
            at = (i + r) * (out.strides[0] // FLOAT)
            for d in range(0, D, LANES):
                store_part(out, at + d, D - d, load_part(out, at + d, D - d, ZERO) / splat(totals[r]))


def attend_quantised(q, held, n, s, g, count, more, scale, out):
    """out (N, D) of queries q (N, D): the first attends to the first `count` places of head g of sequence s in layer n, each
    next query to `more` more.  (`attend_rows` in attention.py.)"""
    items, scales = new_rows(len(q), q.shape[1])
    for r in range(len(q)):
        quantise_row(q, r, items, scales)
    _attend(items, scales, held.keys[n, s, g], held.key_scales[n, s, g], held.key_starts[n, s, g], held.values[n, s, g],
            held.value_scales[n, s, g], count, more, scale, out)


@njit
def _move_head(pair, held, n, start, stop, to):
    """Copy the places [start, stop) of a head to those from `to` on, where to < start."""
    s, g = pair // held.keys.shape[2], pair % held.keys.shape[2]
    for place in range(start, stop):
        p, c, P, C = place // WIDTH, place % WIDTH, (to + place - start) // WIDTH, (to + place - start) % WIDTH
        held.keys[n, s, g, P, :, :, C] = held.keys[n, s, g, p, :, :, c]
        held.key_scales[n, s, g, P, :, C] = held.key_scales[n, s, g, p, :, c]
        held.key_starts[n, s, g, P, :, C] = held.key_starts[n, s, g, p, :, c]
        target, own = to + place - start, held.values[n, s, g]
        own[:, target // GROUP, target % GROUP // STEP, :, target % STEP] = own[:, place // GROUP, place % GROUP // STEP, :,
                                                                                place % STEP]
        held.value_scales[n, s, g, target] = held.value_scales[n, s, g, place]


@njit(cache=True)
def move_integers(held, start, stop, to):
    """Copy the keys and values at the places [start, stop) to those from `to` on, where to < start, in all layers."""
    for n in range(len(held.keys)):
        parallel_for(held.keys.shape[1] * held.keys.shape[2], _move_head, held, n, start, stop, to)

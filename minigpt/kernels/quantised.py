"""Matrix products of 8-bit integers, for models that only predict: a quarter of the memory traffic, and sums without an order.

Rows of a and columns of b are cut along k into groups of GROUP.  Each group has a scale, its largest absolute value / 127, and
holds its values / scale, rounded to integers of -127 .. 127 [the format Q8_0 of ggml].  With d[g] the sum of the products of
group g's integers, which is the same in any order of summation,

    out[i, j] = fma(d[G-1] * scale_b[G-1, j], scale_a[i, G-1], ... fma(d[0] * scale_b[0, j], scale_a[i, 0], 0))

is one chain over the groups, ascending.  As in the product of floats (matmul.py), no other row or column occurs in it, so an
element has the same bits whatever is computed beside it.

What adds up d[g] differs from processor to processor, and with it how integers lie in memory.  STEP neighbours in k are taken at
once, and fill 4 bytes of a:

    vpdpbusd    STEP = 4: adds products of unsigned by signed bytes to a 32-bit sum.  So a is stored as a + 128, and the sum
                begins at -128 times the sum of b's integers.
    pmaddwd     STEP = 2: adds products of 16 bits.  b is widened as it is loaded.
"""

from functools import cache
from typing import NamedTuple

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from .lanes import LANES, ZERO, broadcast, float32x16, fused, lane_max, load, load_part, maximum, named, pointer, splat, store
from .linking import linked
from .matmul import BROAD, FLOAT, LOW, MATRIX, ROWS, WIDTH, behind, features, panels_of, part_of, product_packed
from .threads import get_num_threads, parallel_for

GROUP = 64                          # values that share a scale
LARGEST = np.float32(127)
SMALLEST = np.float32(2.0 ** -100)    # of a group's largest value: below, where 127 / it could overflow, all are rounded to 0
_UNSIGNED = "+avx512vnni" in features
STEP, ITEM = (4, 1) if _UNSIGNED else (2, 2)        # values of a in 4 bytes, and the bytes of one
STEPS = GROUP // STEP
OFFSET = 128 if _UNSIGNED else 0                    # of a as stored

_I8, _I16, _I32 = ir.IntType(8), ir.IntType(16), ir.IntType(32)
_INTS, _FLOATS = ir.VectorType(_I32, LANES), ir.VectorType(ir.FloatType(), LANES)
_intp, _bytes = types.intp, types.CPointer(types.int8)


class Quantised(NamedTuple):
    """A matrix (K, M) as integers, in panels of WIDTH columns; or, with one more axis in front, several matrices."""
    integers: np.ndarray        # (P, G, STEPS, WIDTH, STEP) int8: value t of step s of group g of each column
    scales: np.ndarray          # (P, G, WIDTH) float32
    starts: np.ndarray          # (P, G, WIDTH) int32: where the sum begins

    def columns(self, js: np.ndarray) -> np.ndarray:
        """The columns js (N,) of the matrix, as rows of floats (N, G * GROUP)."""
        integers, scales = self.integers[js // WIDTH, :, :, js % WIDTH], self.scales[js // WIDTH, :, js % WIDTH]
        return (integers.reshape(*scales.shape, GROUP) * scales[..., None]).reshape(len(js), -1)


# --- one step: the products of 4 bytes of a row by STEP values of 16 columns ------------------------------------------------

def _dot(builder, total, a, b):
    """total <16 x i32> + the sums of products of a <16 x i32>, the same 4 bytes in each lane, and b <16 * STEP x i8>."""
    if _UNSIGNED:
        function = ir.FunctionType(_INTS, [_INTS] * 3)
        name = "llvm.x86.avx512.vpdpbusd.512"
        return builder.call(cgutils.get_or_insert_function(builder.module, function, name), [total, a, builder.bitcast(b, _INTS)])
    pairs = ir.VectorType(_I16, 2 * LANES)
    a, b = builder.bitcast(a, pairs), builder.sext(b, pairs)
    products = []
    for odd in 0, 1:                                # LLVM makes one instruction of this, where there is one
        lanes = ir.Constant(_INTS, [*range(odd, 2 * LANES, 2)])
        x, y = (builder.sext(builder.shuffle_vector(z, ir.Constant(pairs, ir.Undefined), lanes), _INTS) for z in (a, b))
        products.append(builder.mul(x, y))
    return builder.add(total, builder.add(*products))


@cache
def _make_tile(rows, width):
    """out (rows, width) = a (rows, groups) @ b (groups, width).  All are addresses, and all distances are in bytes."""
    vectors = width // LANES

    @intrinsic
    def tile(typing, a, a_row, a_scales, a_scales_row, b, b_panel, scales, starts, panel, out, out_row, groups, steps):
        def generate(context, builder, sig, args):
            a, a_row, a_scales, a_scales_row, b, b_panel, scales, starts, panel, out, out_row, groups, steps = args

            def at(base, distance, count, offset, element):
                place = builder.mul(distance, distance.type(count) if isinstance(count, int) else count)
                return builder.bitcast(behind(builder, base, builder.add(place, offset)), ir.PointerType(element))

            def load(address, align=FLOAT):
                value = builder.load(address)
                value.align = align
                return value

            def splat(word):
                lane = builder.insert_element(ir.Constant(_INTS, ir.Undefined), word, _I32(0))
                return builder.shuffle_vector(lane, ir.Constant(_INTS, ir.Undefined), ir.Constant(_INTS, [0] * LANES))

            intp = groups.type
            tiles = [(r, v) for r in range(rows) for v in range(vectors)]
            totals = {t: cgutils.alloca_once(builder, _INTS) for t in tiles}
            outputs = {(r, v): at(out, out_row, r, intp(v * LANES * FLOAT), _FLOATS) for r, v in tiles}
            for t in tiles:
                builder.store(ir.Constant(_FLOATS, [0.0] * LANES), outputs[t]).align = FLOAT
            with cgutils.for_range(builder, groups) as group:
                place = builder.mul(group.index, intp(WIDTH * FLOAT))
                for v in range(vectors):
                    there = builder.add(place, intp(v * LANES % WIDTH * FLOAT))
                    start = load(at(starts, panel, v * LANES // WIDTH, there, _INTS))
                    for r in range(rows):
                        builder.store(start, totals[r, v])
                with cgutils.for_range(builder, steps) as step:
                    count = builder.add(builder.mul(group.index, steps), step.index)
                    a_lanes = [splat(load(at(a, a_row, r, builder.mul(count, intp(4)), _I32))) for r in range(rows)]
                    for v in range(vectors):
                        there = builder.add(builder.mul(count, intp(WIDTH * STEP)), intp(v * LANES % WIDTH * STEP))
                        b_lanes = load(at(b, b_panel, v * LANES // WIDTH, there, ir.VectorType(_I8, LANES * STEP)), 1)
                        for r in range(rows):
                            builder.store(_dot(builder, builder.load(totals[r, v]), a_lanes[r], b_lanes), totals[r, v])
                there = builder.mul(group.index, intp(FLOAT))
                a_scale = [broadcast(builder, load(at(a_scales, a_scales_row, r, there, ir.FloatType()))) for r in range(rows)]
                for v in range(vectors):
                    there = builder.add(place, intp(v * LANES % WIDTH * FLOAT))
                    scale = load(at(scales, panel, v * LANES // WIDTH, there, _FLOATS))
                    for r in range(rows):
                        d = builder.fmul(builder.sitofp(builder.load(totals[r, v]), _FLOATS), scale)
                        total = fused(builder, d, a_scale[r], load(outputs[r, v]))
                        builder.store(total, outputs[r, v]).align = FLOAT
            return context.get_dummy_value()
        return types.void(_bytes, _intp, _bytes, _intp, _bytes, _intp, _bytes, _bytes, _intp, _bytes, _intp, _intp, _intp), generate

    def compiled(a, a_row, a_scales, a_scales_row, b, b_panel, scales, starts, panel, out, out_row, groups, steps):
        tile(a, a_row, a_scales, a_scales_row, b, b_panel, scales, starts, panel, out, out_row, groups, steps)
    return njit(named(compiled, f"integer_tile_{rows}x{width}"))


_tile, _low_tile, _row_tile = _make_tile(ROWS, WIDTH), _make_tile(LOW, BROAD), _make_tile(1, BROAD)


# --- from floats to integers --------------------------------------------------------------------------------------------------

@njit
def _rounded(x, inverse):
    """x * inverse, rounded to an integer of -127 .. 127 (ties to even); -127 for NaN."""
    x *= inverse
    return np.rint(min(x, LARGEST) if x > -LARGEST else -LARGEST)


@njit(error_model="numpy")
def _inverse(largest):
    return LARGEST / largest if largest > SMALLEST else ZERO


@njit
def _quantise_panel(p, b, integers, scales, starts):
    K, M = b.shape
    for c in range(WIDTH):
        j = p * WIDTH + c
        for g in range(scales.shape[1]):
            first, last, largest, total = g * GROUP, min((g + 1) * GROUP, K) if j < M else 0, ZERO, 0
            for k in range(first, last):
                largest = max(largest, abs(b[k, j]))
            inverse = _inverse(largest)
            for k in range(first, first + GROUP):
                value = np.int8(_rounded(b[k, j], inverse)) if k < last else np.int8(0)
                integers[p, g, (k - first) // STEP, c, k % STEP] = value
                total += value
            scales[p, g, c], starts[p, g, c] = largest / LARGEST, -OFFSET * total


@njit(cache=True)
def _quantise_columns(b, integers, scales, starts):
    parallel_for(len(integers), _quantise_panel, b, integers, scales, starts)


@intrinsic
def _absolute(typing, x):
    """|x|, lane by lane."""
    def generate(context, builder, sig, args):
        function = ir.FunctionType(_FLOATS, [_FLOATS])
        return builder.call(cgutils.get_or_insert_function(builder.module, function, "llvm.fabs.v16f32"), args)
    return float32x16(float32x16), generate


@intrinsic
def _store_rounded(typing, items, index, x, inverse):
    """Store `_rounded(x, inverse)` of 16 lanes as 16 values of a, beginning with number `index` of `items`."""
    def generate(context, builder, sig, args):
        items, index, x, inverse = args
        most, least = (ir.Constant(_FLOATS, [sign * float(LARGEST)] * LANES) for sign in (1, -1))
        x = builder.fmul(x, inverse)
        x = builder.select(builder.fcmp_ordered(">", x, least), x, least)
        x = builder.select(builder.fcmp_ordered("<", x, most), x, most)
        function = ir.FunctionType(_FLOATS, [_FLOATS])
        x = builder.call(cgutils.get_or_insert_function(builder.module, function, "llvm.rint.v16f32"), [x])
        integers = builder.add(builder.fptosi(x, _INTS), ir.Constant(_INTS, [OFFSET] * LANES))
        stored = ir.VectorType(ir.IntType(8 * ITEM), LANES)
        place = pointer(context, builder, sig.args[0], items, builder.mul(index, index.type(ITEM)))
        builder.store(builder.trunc(integers, stored), builder.bitcast(place, ir.PointerType(stored))).align = 1
        return context.get_dummy_value()
    return types.void(items, _intp, float32x16, float32x16), generate


@njit
def quantise_row(x, row, items, scales):
    """Quantise x[row] of a contiguous x (N, K) to items[row] and scales[row]; see `new_rows`."""
    K, G = x.shape[1], scales.shape[1]
    for g in range(G):
        peaks = splat(ZERO)
        for k in range(g * GROUP, (g + 1) * GROUP, LANES):
            peaks = maximum(_absolute(load_part(x, row * K + k, K - k, ZERO)), peaks)
        largest = lane_max(peaks)
        inverse = splat(_inverse(largest))
        for k in range(g * GROUP, (g + 1) * GROUP, LANES):
            _store_rounded(items, row * G * GROUP + k, load_part(x, row * K + k, K - k, ZERO), inverse)
        scales[row, g] = largest / LARGEST


@njit
def new_rows(N, K):
    """Uninitialised (items, scales) for a quantised matrix (N, K): (N, G * GROUP * ITEM) bytes and (N, G)."""
    G = (K + GROUP - 1) // GROUP
    return np.empty((N, G * GROUP * ITEM), np.uint8), np.empty((N, G), np.float32)


# --- the product --------------------------------------------------------------------------------------------------------------

@intrinsic
def _address(typing, array, offset):
    """The address `offset` bytes after the first element of an array."""
    def generate(context, builder, sig, args):
        return behind(builder, context.make_array(sig.args[0])(context, builder, args[0]).data, args[1])
    return _bytes(array, _intp), generate


ITEMS, SCALES = types.Array(types.uint8, 2, "A"), types.Array(types.float32, 2, "A")
PANELS = types.Array(types.int8, 5, "A"), types.Array(types.float32, 3, "A"), types.Array(types.int32, 3, "A")


@linked(types.void(ITEMS, SCALES, *PANELS, MATRIX))
def product_quantised(items, a_scales, integers, scales, starts, out):
    """out (N, M) = the rows (items, a_scales) @ the first M columns of panels (see Quantised), on one thread."""
    (N, M), (a_row, a_scales_row), (b_panel, panel) = out.shape, (items.strides[0], a_scales.strides[0]), (integers.strides[0],
                                                                                                       scales.strides[0])
    whole, groups = N // ROWS * ROWS, a_scales.shape[1]
    edge = np.empty((ROWS, BROAD), np.float32)                          # the outputs of a tile that extends past the last column
    for first, last, width in (0, whole, WIDTH), (whole, N, BROAD):
        for j in range(0, M if first < last else 0, width):
            b, columns = _address(integers, j // WIDTH * b_panel), min(width, M - j)
            b_scales, b_starts, i = _address(scales, j // WIDTH * panel), _address(starts, j // WIDTH * panel), first
            while i < last:
                rows = ROWS if width == WIDTH else LOW if i + LOW <= last else 1
                a, a_scale = _address(items, i * a_row), _address(a_scales, i * a_scales_row)
                inside = columns == width
                target = _address(out, i * out.strides[0] + j * FLOAT) if inside else _address(edge, 0)
                row = out.strides[0] if inside else edge.strides[0]
                if rows == ROWS:
                    _tile(a, a_row, a_scale, a_scales_row, b, b_panel, b_scales, b_starts, panel, target, row, groups, STEPS)
                elif rows == LOW:
                    _low_tile(a, a_row, a_scale, a_scales_row, b, b_panel, b_scales, b_starts, panel, target, row, groups, STEPS)
                else:
                    _row_tile(a, a_row, a_scale, a_scales_row, b, b_panel, b_scales, b_starts, panel, target, row, groups, STEPS)
                if not inside:
                    out[i:i + rows, j:] = edge[:rows, :columns]
                i += rows


@njit
def _multiply_part(part, items, a_scales, integers, scales, starts, out, height, width):
    across = (out.shape[1] + width - 1) // width
    i, j = part // across * height, part % across * width
    p = j // WIDTH
    product_quantised(items[i:i + height], a_scales[i:i + height], integers[p:], scales[p:], starts[p:],
                      out[i:i + height, j:j + width])


@njit
def _quantise_part(row, x, items, scales):
    quantise_row(x, row, items, scales)


@njit(cache=True)
def _matmul(x, integers, scales, starts, out, threads):
    N, M = out.shape
    items, a_scales = new_rows(N, x.shape[1])
    parallel_for(N, _quantise_part, x, items, a_scales)
    height, width = part_of(N, (M + WIDTH - 1) // WIDTH * WIDTH, threads)
    width = panels_of(width) * WIDTH
    parts = (N + height - 1) // height * ((M + width - 1) // width)
    parallel_for(parts, _multiply_part, items, a_scales, integers, scales, starts, out, height, width)


# --- what a decode step does alike with floats and with integers ----------------------------------------------------------------

def prepare(x, matrix):
    """What `multiply` takes of x (S, K) for this matrix, in panels of floats or Quantised."""


def multiply(x, matrix, n, i, rows, j, columns, y):
    """y[i:rows, j:columns] = those rows of what `prepare` returned @ those columns of number n of the matrices."""


def element(matrices, k, j):
    """Element (k, j) of the first of the matrices, as a float."""


@overload(prepare)
def _prepare(x, matrix):
    def integers(x, matrix):
        items, scales = new_rows(x.shape[0], x.shape[1])
        for row in range(len(x)):
            quantise_row(x, row, items, scales)
        return items, scales
    return integers if isinstance(matrix, types.BaseTuple) else named(lambda x, matrix: x, "prepare_floats")


@overload(multiply)
def _multiply(x, matrix, n, i, rows, j, columns, y):
    def integers(x, matrix, n, i, rows, j, columns, y):
        p = j // WIDTH
        product_quantised(x[0][i:rows], x[1][i:rows], matrix.integers[n, p:], matrix.scales[n, p:], matrix.starts[n, p:],
                          y[i:rows, j:columns])

    def floats(x, matrix, n, i, rows, j, columns, y):
        product_packed(x[i:rows, :], matrix[n, j // WIDTH:, :, :], y[i:rows, j:columns], False)
    return integers if isinstance(matrix, types.BaseTuple) else floats


@overload(element)
def _element(matrices, k, j):
    def integers(matrices, k, j):
        p, c, g = j // WIDTH, j % WIDTH, k // GROUP
        return np.float32(matrices.integers[0, p, g, k % GROUP // STEP, c, k % STEP]) * matrices.scales[0, p, g, c]
    return integers if isinstance(matrices, types.BaseTuple) else named(
        lambda matrices, k, j: matrices[0, j // WIDTH, k, j % WIDTH], "element_of_floats")


# --- keys and values in a cache, as floats or as integers -------------------------------------------------------------------------

@njit(error_model="numpy")
def _quantise_head(x, integers):
    """Write the integers of x (D,), which is one group; returns its scale."""
    largest = ZERO
    for d in range(len(x)):
        largest = max(largest, abs(x[d]))
    inverse = _inverse(largest)
    for d in range(len(x)):
        integers[d] = np.int8(_rounded(x[d], inverse))
    return largest / LARGEST


@njit
def _round_head(row, x):
    integers = np.empty(x.shape[1], np.int8)
    scale = _quantise_head(x[row], integers)
    for d in range(len(integers)):
        x[row, d] = np.float32(integers[d]) * scale


@njit(cache=True)
def round_heads(x):
    """Round each row of x (N, D) to integers times a scale, as a cache of 8 bits would hold it."""
    parallel_for(len(x), _round_head, x)


@njit
def _quantise_heads_row(row, x, integers, scales):
    scales[row] = _quantise_head(x[row], integers[row])


@njit(cache=True)
def quantise_heads(x, integers, scales):
    """The integers (N, D) and the scales (N,) of each row of x (N, D)."""
    parallel_for(len(x), _quantise_heads_row, x, integers, scales)


@intrinsic
def _load_integers(typing, array, index):
    """Elements index .. index + 15 of an int8 array, counted flat, as floats."""
    def generate(context, builder, sig, args):
        place = builder.bitcast(pointer(context, builder, sig.args[0], *args), ir.PointerType(ir.VectorType(_I8, LANES)))
        value = builder.load(place)
        value.align = 1
        return builder.sitofp(value, _FLOATS)
    return float32x16(array, _intp), generate


def put(keys, values, scales, s, g, place, k, v):
    """Write k and v (D,) to that place of head g of sequence s; for the arrays see Cache."""


def keys_of(keys, scales, s, g, start, stop):
    """The keys (D, stop - start) from `start` on, as floats."""


def values_of(values, scales, s, g, start, stop):
    """The values (stop - start, D) from `start` on, as floats."""


@overload(put)
def _put(keys, values, scales, s, g, place, k, v):
    def floats(keys, values, scales, s, g, place, k, v):
        for d in range(len(k)):
            keys[s, g, d, place] = k[d]
            values[s, g, place, d] = v[d]

    def integers(keys, values, scales, s, g, place, k, v):
        scales[0, s, g, place] = _quantise_head(k, keys[s, g, :, place])
        scales[1, s, g, place] = _quantise_head(v, values[s, g, place])
    return integers if keys.dtype == types.int8 else floats


@overload(keys_of)
def _keys_of(keys, scales, s, g, start, stop):
    def floats(keys, scales, s, g, start, stop):
        return keys[s, g, :, start:stop]

    def integers(keys, scales, s, g, start, stop):
        part, scale, count = keys[s, g], scales[0, s, g], stop - start                  # (D, width), whose rows are whole lanes
        width = (count + 2 * LANES - 1) // LANES * LANES        # not 256: rows so far apart share lines of the cache
        out = np.empty((len(part), width), np.float32)
        for d in range(len(out)):
            for j in range(0, count, LANES):
                store(out, d * width + j, _load_integers(part, d * part.shape[1] + start + j) * load(scale, start + j))
        return out[:, :count]
    return integers if keys.dtype == types.int8 else floats


@overload(values_of)
def _values_of(values, scales, s, g, start, stop):
    def floats(values, scales, s, g, start, stop):
        return values[s, g, start:stop]

    def integers(values, scales, s, g, start, stop):
        part, scale = values[s, g, start:stop], scales[1, s, g, start:stop]
        D, out = part.shape[1], np.empty(part.shape, np.float32)
        whole = D // LANES * LANES
        for j in range(len(out)):
            for d in range(0, whole, LANES):
                store(out, j * D + d, _load_integers(part, j * D + d) * splat(scale[j]))
            for d in range(whole, D):
                out[j, d] = np.float32(part[j, d]) * scale[j]
        return out
    return integers if values.dtype == types.int8 else floats


def quantise(b: np.ndarray, into: Quantised | None = None) -> Quantised:
    """The matrix b (K, M), float32, as integers; written to `into`, from `empty`, if given."""
    into = empty(b.shape) if into is None else into
    _quantise_columns(b, *into)
    return into


def empty(shape: tuple[int, int], *count: int) -> Quantised:
    """Uninitialised memory for a matrix of that shape (K, M), or for `count` of them."""
    P, G = panels_of(shape[1]), (shape[0] + GROUP - 1) // GROUP
    return Quantised(np.empty((*count, P, G, STEPS, WIDTH, STEP), np.int8), np.empty((*count, P, G, WIDTH), np.float32),
                     np.empty((*count, P, G, WIDTH), np.int32))


def matmul_quantised(x: np.ndarray, matrix: Quantised, out: np.ndarray) -> np.ndarray:
    """out (N, M) = x (N, K) @ a quantised matrix (K, M), where x, contiguous float32, is quantised first.  Returns out."""
    if not x.dtype == out.dtype == np.float32 or not x.flags.c_contiguous or len(x) != len(out) \
            or (x.shape[1] + GROUP - 1) // GROUP != matrix.scales.shape[1] or len(matrix.scales) != panels_of(out.shape[1]) \
            or out.size > len(out) and out.strides[1] != FLOAT:
        raise ValueError(f"matmul_quantised takes float32 (N, K) @ (K, M) -> (N, M), but got {x.dtype} {x.shape} @ panels "
                         f"{matrix.integers.shape} -> {out.dtype} {out.shape}")
    _matmul(x, *matrix, out, get_num_threads())
    return out

"""Matrix products of 8-bit integers, for inference only: a quarter of the memory traffic, and sums that need no fixed order.

Rows of a and columns of b are cut along k into groups of GROUP.  Each group has a scale, its largest absolute value / 127, and
holds its values / scale, rounded to integers from -127 to 127 [as ggml's Q8_0, whose groups are of 32].  With d[g] the sum of
the products of group g's integers, which is the same in any order of summation,

    out[i, j] = fma(d[G-1] * scale_b[G-1, j], scale_a[i, G-1], ... fma(d[0] * scale_b[0, j], scale_a[i, 0], 0))

is one chain over the groups, ascending.  As in the product of floats (matmul.py), no other row or column occurs in it, so an
element has the same bits whatever is computed beside it.

The instruction that adds up d[g] differs between processors, and with it the layout of the integers in memory.  It takes STEP
neighbours in k at once, which fill 4 bytes of a:

    vpdpbusd    STEP = 4: adds products of unsigned by signed bytes to a 32-bit sum.  So a is stored as a + 128, and the sum
                begins at -128 times the sum of b's integers.
    pmaddwd     STEP = 2: adds pairs of products of 16-bit integers.  b is widened as it is loaded.  On processors other than
                x86, LLVM picks instructions to the same effect.
"""

from functools import cache
from typing import NamedTuple

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from .lanes import (LANES, ZERO, absolute, broadcast, call, float32x16, fused, lane_max, load_part, maximum, minimum, named,
                    pointer, rint, splat)
from .linking import linked
from .matmul import BROAD, FLOAT, LOW, MATRIX, ROWS, WIDTH, behind, cpu, features, panels_of, part_of, triple
from .prefetch import fetch
from .threads import get_num_threads, parallel_for

GROUP = 64                          # values that share a scale
LARGEST, LARGEST_WEIGHT = np.float32(127), np.float32(255)
SMALLEST = np.float32(2.0 ** -100)    # up to this largest value, 127 / it could overflow, so the whole group is rounded to 0
# The instruction of the processor that we compile for, and how many 32-bit sums it updates.
_INSTRUCTION, _SUMS = next(((name, lanes) for here, name, lanes in (
    ("+avx512vnni" in features, "llvm.x86.avx512.vpdpbusd.512", 16),
    ("+avxvnni" in features, "llvm.x86.avx512.vpdpbusd.256", 8),
    ("+avx512bw" in features or "avx512" in cpu, "llvm.x86.avx512.pmaddw.d.512", 16),
    ("+avx2" in features or cpu in ("haswell", "x86-64-v3"), "llvm.x86.avx2.pmadd.wd", 8),
    (triple.startswith("x86_64"), "llvm.x86.sse2.pmadd.wd", 4)) if here), ("", 16))
_UNSIGNED = "vpdpbusd" in _INSTRUCTION
STEP, ITEM = (4, 1) if _UNSIGNED else (2, 2)        # values of a in 4 bytes, and the bytes of one
STEPS = GROUP // STEP
OFFSET = 128 if _UNSIGNED else 0                    # added to a as it is stored
PREFETCH = 4096                                     # how many bytes ahead b is prefetched where there are few rows

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
    """total <16 x i32> + the dot products of a <16 x i32>, the same 4 bytes in each lane, and b <16 * STEP x i8>."""
    def part(vector, first, count):
        lanes = ir.Constant(ir.VectorType(_I32, count), [*range(first, first + count)])
        return builder.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), lanes)

    ints, pairs = ir.VectorType(_I32, _SUMS), ir.VectorType(_I16, 2 * _SUMS)
    sums = []
    for first in range(0, LANES, _SUMS):
        x, y, z = part(total, first, _SUMS), part(a, first, _SUMS), part(b, first * STEP, _SUMS * STEP)
        if _UNSIGNED:
            sums.append(call(builder, _INSTRUCTION, [x, y, builder.bitcast(z, ints)], ints))
            continue
        y, z = builder.bitcast(y, pairs), builder.sext(z, pairs)
        if _INSTRUCTION:
            sums.append(builder.add(x, call(builder, _INSTRUCTION, [y, z], ints)))
            continue
        for odd in 0, 1:
            lanes = ir.Constant(ints, [*range(odd, 2 * _SUMS, 2)])
            y_lanes, z_lanes = (builder.shuffle_vector(v, ir.Constant(pairs, ir.Undefined), lanes) for v in (y, z))
            x = builder.add(x, builder.mul(builder.sext(y_lanes, ints), builder.sext(z_lanes, ints)))
        sums.append(x)
    while len(sums) > 1:
        lanes = ir.Constant(ir.VectorType(_I32, 2 * sums[0].type.count), [*range(2 * sums[0].type.count)])
        sums = [builder.shuffle_vector(low, high, lanes) for low, high in zip(sums[::2], sums[1::2])]
    return sums[0]


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
                        address = at(b, b_panel, v * LANES // WIDTH, there, ir.VectorType(_I8, LANES * STEP))
                        b_lanes = load(address, 1)
                        if rows <= LOW:                     # so few rows wait for b, which is too large for the caches
                            fetch(builder, behind(builder, address, intp(PREFETCH)), 2)
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
        return types.void(_bytes, _intp, _bytes, _intp, _bytes, _intp, _bytes, _bytes, _intp, _bytes, _intp, _intp,
                          _intp), generate

    def compiled(a, a_row, a_scales, a_scales_row, b, b_panel, scales, starts, panel, out, out_row, groups, steps):
        tile(a, a_row, a_scales, a_scales_row, b, b_panel, scales, starts, panel, out, out_row, groups, steps)
    return njit(named(compiled, f"integer_tile_{rows}x{width}"))


_tile, _low_tile, _row_tile = _make_tile(ROWS, WIDTH), _make_tile(LOW, BROAD), _make_tile(1, BROAD)


# --- from floats to integers --------------------------------------------------------------------------------------------------

@njit
def rounded(x, inverse):
    """x * inverse, rounded to an integer from -127 to 127 (ties to even); -127 for NaN."""
    x *= inverse
    return np.rint(min(x, LARGEST) if x > -LARGEST else -LARGEST)


@njit(error_model="numpy")
def inverse_of(largest, most):
    """The factor that scales values of up to `largest` to integers of up to `most`; 0 up to SMALLEST."""
    return most / largest if largest > SMALLEST else ZERO


@njit
def _quantise_panel(p, b, integers, scales, starts):
    K, M = b.shape
    for c in range(WIDTH):
        j = p * WIDTH + c
        for g in range(scales.shape[1]):
            first, last, largest, total = g * GROUP, min((g + 1) * GROUP, K) if j < M else 0, ZERO, 0
            for k in range(first, last):
                largest = max(largest, abs(b[k, j]))
            inverse = inverse_of(largest, LARGEST)
            for k in range(first, first + GROUP):
                value = np.int8(rounded(b[k, j], inverse)) if k < last else np.int8(0)
                integers[p, g, (k - first) // STEP, c, k % STEP] = value
                total += value
            scales[p, g, c], starts[p, g, c] = largest / LARGEST, -OFFSET * total


@njit(cache=True)
def _quantise_columns(b, integers, scales, starts):
    parallel_for(len(integers), _quantise_panel, b, integers, scales, starts)


def _make_store(offset):
    @intrinsic
    def store_integers(typing, items, index, x):
        """Store 16 lanes of whole numbers, plus `offset`, as values index .. index + 15 of a in `items`."""
        def generate(context, builder, sig, args):
            items, index, x = args
            integers = builder.add(builder.fptosi(x, _INTS), ir.Constant(_INTS, [offset] * LANES))
            stored = ir.VectorType(ir.IntType(8 * ITEM), LANES)
            place = pointer(context, builder, sig.args[0], items, builder.mul(index, index.type(ITEM)))
            builder.store(builder.trunc(integers, stored), builder.bitcast(place, ir.PointerType(stored))).align = 1
            return context.get_dummy_value()
        return types.void(items, _intp, float32x16), generate
    return store_integers


_store, store_unsigned = _make_store(OFFSET), _make_store(0)


@njit
def bounded(x, least, most):
    """x, but at least `least` (also where it is NaN) and at most `most`."""
    return minimum(maximum(x, splat(least)), splat(most))


@njit
def quantise_row(x, row, items, scales):
    """Quantise x[row] of x (N, K), whose rows are contiguous, to items[row] and scales[row]; see `new_rows`."""
    at, K, G = row * (x.strides[0] // FLOAT), x.shape[1], scales.shape[1]
    for g in range(G):
        peaks = splat(ZERO)
        for k in range(g * GROUP, (g + 1) * GROUP, LANES):
            peaks = maximum(absolute(load_part(x, at + k, K - k, ZERO)), peaks)
        largest = lane_max(peaks)
        inverse = splat(inverse_of(largest, LARGEST))
        for k in range(g * GROUP, (g + 1) * GROUP, LANES):
            scaled = load_part(x, at + k, K - k, ZERO) * inverse
            _store(items, row * G * GROUP + k, rint(bounded(scaled, -LARGEST, LARGEST)))
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
    """out (N, M) = rows (items, a_scales), see `new_rows`, @ the first M columns of panels, see Quantised, on one thread."""
    (N, M), (a_row, a_scales_row), (b_panel, panel) = out.shape, (items.strides[0], a_scales.strides[0]), (integers.strides[0],
                                                                                                       scales.strides[0])
    whole, groups = N // ROWS * ROWS, a_scales.shape[1]
    edge = np.empty((ROWS, BROAD), np.float32)                      # the outputs of a tile that extends past the last column
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
                    _low_tile(a, a_row, a_scale, a_scales_row, b, b_panel, b_scales, b_starts, panel, target, row, groups,
                              STEPS)
                else:
                    _row_tile(a, a_row, a_scale, a_scales_row, b, b_panel, b_scales, b_starts, panel, target, row, groups,
                              STEPS)
                if not inside:
                    for r in range(rows):                           # element by element: assigning slices takes 3 s to compile
                        for c in range(columns):
                            out[i + r, j + c] = edge[r, c]
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


def quantise(b: np.ndarray, into: Quantised | None = None) -> Quantised:
    """Quantise a float32 matrix b (K, M); the result is written to `into`, if given (see `empty`)."""
    into = empty(b.shape) if into is None else into
    _quantise_columns(b, *into)
    return into


def empty(shape: tuple[int, int], *count: int) -> Quantised:
    """Uninitialised memory for a matrix of that shape (K, M), or for `count` of them."""
    P, G = panels_of(shape[1]), (shape[0] + GROUP - 1) // GROUP
    return Quantised(np.empty((*count, P, G, STEPS, WIDTH, STEP), np.int8), np.empty((*count, P, G, WIDTH), np.float32),
                     np.empty((*count, P, G, WIDTH), np.int32))


def matmul_quantised(x: np.ndarray, matrix: Quantised, out: np.ndarray) -> np.ndarray:
    """out (N, M) = x (N, K) @ a quantised matrix (K, M), where x, contiguous float32, is quantised first.  Returns out.

    ValueError where types, shapes or memory layouts do not match.
    """
    if not x.dtype == out.dtype == np.float32 or not x.flags.c_contiguous or len(x) != len(out) \
            or (x.shape[1] + GROUP - 1) // GROUP != matrix.scales.shape[1] or len(matrix.scales) != panels_of(out.shape[1]) \
            or out.size > len(out) and out.strides[1] != FLOAT:
        raise ValueError(f"matmul_quantised takes float32 (N, K) @ (K, M) -> (N, M), but got {x.dtype} {x.shape} @ panels "
                         f"{matrix.integers.shape} -> {out.dtype} {out.shape}")
    _matmul(x, *matrix, out, get_num_threads())
    return out

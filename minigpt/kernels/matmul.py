"""Matrix product with a fixed order of operations, at close to the peak speed of the processor.

    out[i, j] = fma(a[i, K-1], b[K-1, j], ... fma(a[i, 1], b[1, j], fma(a[i, 0], b[0, j], 0)))

That is the whole contract: each output element is one chain of fused multiply-adds, k ascending.  No other row or column
occurs in it, so an element has the same bits whatever is computed beside it.  Everything else here is about speed, and
schedules whole chains without changing any of them:

       b     k0..k1 x WIDTH columns, packed into a `panel` that stays in the first-level cache
             ┌──┐
             │  │            a tile of ROWS x WIDTH outputs stays in registers while k runs over the panel;
       a     │  │            the next panel of k continues the sums from where the last one left them
      ┌────┐ └──┘
      ├────┤  ▓▓   tile
      └────┘  ░░

The tile's shape follows the register file: 8 x 32 floats with AVX-512 (32 registers of 16), otherwise 6 x 16.  Other tiles
cover the edges: a narrow one the last columns; low, broad and flat ones products of few rows.  The latter read b unpacked, in
long runs of consecutive memory.
"""

from functools import cache

import numpy as np
from llvmlite import ir
from numba import get_num_threads, njit, prange, types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from .lanes import LANES, broadcast, fused, load, named, store

_, _cpu, _features = cpu_target.target_context.codegen().magic_tuple()       # what Numba compiles for
ROWS, LOW, VECTORS = (8, 4, 2) if "+avx512f" in _features or "avx512" in _cpu else (6, 2, 1)
WIDTH = VECTORS * LANES      # columns of a tile with ROWS rows,
BROAD = 2 * WIDTH            # of one with LOW rows, or a single one,
FLAT = 4 * WIDTH             # and of the widest with a single row
DEPTH = 256                  # steps of k in a panel: DEPTH * WIDTH floats are 32 KiB at most
FLOAT = 4                    # bytes

_float, intp = types.CPointer(types.float32), types.intp
_BYTES = ir.PointerType(ir.IntType(8))


def _behind(builder, pointer, offset):
    return builder.gep(builder.bitcast(pointer, _BYTES), [offset])


# An address must remain a pointer.  If it were passed as an integer, LLVM could split the sum, find a 0 in one half, and treat
# the other half as an offset from the null pointer, where a store is undefined behaviour.
@intrinsic
def address_of(typing, array, offset):
    """The address `offset` bytes after the first element of a float32 array."""
    def generate(context, builder, sig, args):
        data = context.make_array(sig.args[0])(context, builder, args[0]).data
        return builder.bitcast(_behind(builder, data, args[1]), ir.PointerType(ir.FloatType()))
    return _float(array, intp), generate


@cache
def _make_tile(rows, width):
    """The innermost loop: c (rows, width) = or += a (rows, depth) @ b (depth, width), with c held in registers.

    a, b and c are addresses (see `address_of`) and the strides are in bytes, so that one compilation serves arrays of any type.
    """
    vector, vectors = ir.VectorType(ir.FloatType(), LANES), width // LANES

    @intrinsic
    def tile(typing, a, a_row, a_step, b, b_step, c, c_row, depth, accumulate):
        def generate(context, builder, sig, args):
            a, a_row, a_step, b, b_step, c, c_row, depth, accumulate = args

            def address(base, stride, count, offset, element):
                place = builder.mul(stride, stride.type(count) if isinstance(count, int) else count)
                return builder.bitcast(_behind(builder, base, builder.add(place, place.type(offset))), ir.PointerType(element))

            def unaligned(memory_operation):
                memory_operation.align = FLOAT
                return memory_operation

            tiles = [(r, v) for r in range(rows) for v in range(vectors)]
            outputs = {(r, v): address(c, c_row, r, v * LANES * FLOAT, vector) for r, v in tiles}
            sums = {t: cgutils.alloca_once_value(builder, ir.Constant(vector, [0.0] * LANES)) for t in tiles}
            with builder.if_then(accumulate):
                for t in tiles:
                    builder.store(unaligned(builder.load(outputs[t])), sums[t])
            with cgutils.for_range(builder, depth) as loop:
                b_lanes = [unaligned(builder.load(address(b, b_step, loop.index, v * LANES * FLOAT, vector)))
                           for v in range(vectors)]
                a_column = _behind(builder, a, builder.mul(a_step, loop.index))
                a_lanes = [broadcast(builder, builder.load(address(a_column, a_row, r, 0, ir.FloatType())))
                           for r in range(rows)]
                for r, v in tiles:
                    builder.store(fused(builder, a_lanes[r], b_lanes[v], builder.load(sums[r, v])), sums[r, v])
            for t in tiles:
                unaligned(builder.store(builder.load(sums[t]), outputs[t]))
            return context.get_dummy_value()
        return types.void(_float, intp, intp, _float, intp, _float, intp, intp, types.boolean), generate

    def compiled(a, a_row, a_step, b, b_step, c, c_row, depth, accumulate):
        tile(a, a_row, a_step, b, b_step, c, c_row, depth, accumulate)
    return njit(named(compiled, f"tile_{rows}x{width}"))


_tile = _make_tile(ROWS, WIDTH)
_narrow_tile = _make_tile(ROWS, LANES)       # with AVX2 the same function as _tile, by way of the cache (see `named`)
_row_tile = _make_tile(1, WIDTH)
_low_tile = _make_tile(LOW, BROAD)
_broad_tile = _make_tile(1, BROAD)
_flat_tile = _make_tile(1, FLAT)


@njit
def _pack(b, panel):
    """Copy b (depth, columns <= WIDTH) to rows of WIDTH floats, padded with zeros."""
    depth, columns = b.shape
    if columns < WIDTH:
        panel[:depth * WIDTH] = np.float32(0)
    for j in range(columns):
        for k in range(depth):
            panel[k * WIDTH + j] = b[k, j]


@njit
def _pack_rows(b, panel):
    """`_pack` for b (depth, WIDTH) with contiguous rows."""
    row = b.strides[0] // FLOAT
    for k in range(b.shape[0]):
        for v in range(0, WIDTH, LANES):
            store(panel, k * WIDTH + v, load(b, k * row + v))


@njit
def product(a, b, out, accumulate):
    """out (N, M) = or += a (N, K) @ b (K, M), on one thread.  a and b have any strides; rows of out are contiguous."""
    (N, _), M = a.shape, b.shape[1]
    few = N <= 2 * ROWS and b.strides[1] == FLOAT           # too few rows to pay for a copy of b
    done = M // WIDTH * WIDTH if few else 0
    if done:
        _few_rows(a, b[:, :done], out, accumulate)
    if done < M:
        _many_rows(a, b[:, done:], out[:, done:], accumulate)


@njit
def _few_rows(a, b, out, accumulate):
    """`product` where rows of b (K, a multiple of WIDTH) are contiguous: without a copy of b."""
    (N, K), M = a.shape, b.shape[1]
    (a_row, a_step), b_row, out_row = a.strides, b.strides[0], out.strides[0]
    for j0 in range(0, M, FLAT):
        i = 0
        while i < N:
            rows, j, end = LOW if i + LOW <= N else 1, j0, min(j0 + FLAT, M)
            while j < end:
                left, right = address_of(a, i * a_row), address_of(b, j * FLOAT)
                target = address_of(out, i * out_row + j * FLOAT)
                if rows == 1 and end - j == FLAT:
                    _flat_tile(left, a_row, a_step, right, b_row, target, out_row, K, accumulate)
                    j += FLAT
                elif rows == 1 and end - j >= BROAD:
                    _broad_tile(left, a_row, a_step, right, b_row, target, out_row, K, accumulate)
                    j += BROAD
                elif end - j >= BROAD:
                    _low_tile(left, a_row, a_step, right, b_row, target, out_row, K, accumulate)
                    j += BROAD
                else:
                    for r in range(i, i + rows):
                        left, target = address_of(a, r * a_row), address_of(out, r * out_row + j * FLOAT)
                        _row_tile(left, a_row, a_step, right, b_row, target, out_row, K, accumulate)
                    j += WIDTH
            i += rows


@njit
def _many_rows(a, b, out, accumulate):
    """`product` with a copy of b, a panel at a time."""
    (N, K), M = a.shape, b.shape[1]
    panel = np.empty(DEPTH * WIDTH, np.float32)
    edge = np.empty((ROWS, WIDTH), np.float32)       # takes the outputs of a tile that extends past the last column
    source, source_row = address_of(panel, 0), WIDTH * FLOAT
    for k0 in range(0, max(K, 1), DEPTH):
        depth = min(DEPTH, K - k0)
        resume = accumulate or k0 > 0
        for j0 in range(0, M, WIDTH):
            columns = min(WIDTH, M - j0)
            stretch = b[k0:k0 + depth, j0:j0 + columns]
            if columns == WIDTH and stretch.strides[1] == FLOAT:
                _pack_rows(stretch, panel)
            else:
                _pack(stretch, panel)
            i = 0
            while i < N:
                rows = ROWS if i + ROWS <= N else 1
                left = address_of(a, i * a.strides[0] + k0 * a.strides[1])
                target, target_row = address_of(out, i * out.strides[0] + j0 * FLOAT), out.strides[0]
                if columns < WIDTH:
                    target, target_row = address_of(edge, 0), WIDTH * FLOAT
                    if resume:
                        for r in range(rows):
                            for c in range(columns):
                                edge[r, c] = out[i + r, j0 + c]
                if rows == ROWS and columns > LANES:
                    _tile(left, a.strides[0], a.strides[1], source, source_row, target, target_row, depth, resume)
                elif rows == ROWS:
                    _narrow_tile(left, a.strides[0], a.strides[1], source, source_row, target, target_row, depth, resume)
                else:
                    _row_tile(left, a.strides[0], a.strides[1], source, source_row, target, target_row, depth, resume)
                if columns < WIDTH:
                    for r in range(rows):
                        for c in range(columns):
                            out[i + r, j0 + c] = edge[r, c]
                i += rows


_matrix = types.Array(types.float32, 2, "A")     # any strides, so that one compilation serves all layouts


@njit(types.void(_matrix, _matrix, _matrix, types.boolean, types.intp), parallel=True, cache=True)
def _matmul(a, b, out, accumulate, threads):
    N, M = out.shape
    row_tiles, column_tiles = (N + ROWS - 1) // ROWS, (M + WIDTH - 1) // WIDTH
    by_rows = row_tiles >= threads          # a task is a block of rows where there are enough, else a block of columns
    height = (row_tiles + threads - 1) // threads * ROWS if by_rows else N
    width = M if by_rows else (column_tiles + threads - 1) // threads * WIDTH
    for task in prange(threads):
        i, j = (task * height, 0) if by_rows else (0, task * width)
        product(a[i:i + height, :], b[:, j:j + width], out[i:i + height, j:j + width], accumulate)


def matmul(a: np.ndarray, b: np.ndarray, out: np.ndarray, accumulate: bool = False) -> np.ndarray:
    """out (N, M) = a (N, K) @ b (K, M), or out += a @ b; a and b may be views of any strides.  Returns out.

    ValueError where they are not float32 matrices whose shapes match, or where a row of out is not contiguous.
    """
    if not a.dtype == b.dtype == out.dtype == np.float32:
        raise ValueError(f"matmul takes float32, but got {a.dtype} @ {b.dtype} -> {out.dtype}")
    if not a.ndim == b.ndim == 2 or a.shape[1] != b.shape[0] or out.shape != (a.shape[0], b.shape[1]):
        raise ValueError(f"matmul takes (N, K) @ (K, M) -> (N, M), but got {a.shape} @ {b.shape} -> {out.shape}")
    if out.size > len(out) and out.strides[1] != FLOAT:
        raise ValueError(f"matmul needs contiguous rows in out, but its strides are {out.strides}")
    _matmul(a, b, out, accumulate, get_num_threads())
    return out

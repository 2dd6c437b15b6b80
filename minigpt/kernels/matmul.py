"""Matrix product with a fixed order of operations, at close to the peak speed of the processor.

    out[i, j] = fma(a[i, K-1], b[K-1, j], ... fma(a[i, 1], b[1, j], fma(a[i, 0], b[0, j], 0)))

That is the whole contract: each output element is one chain of fused multiply-adds, k ascending.  No other row or column
occurs in it, so an element has the same bits whatever is computed beside it.  Everything else here is about speed, and
schedules whole chains without changing any of them:

       b     k0..k1 x WIDTH columns, packed into a `panel` that stays in the first-level cache
             ┌──┐
             │  │            a tile of ROWS x WIDTH outputs stays in registers while k runs over the panel;
       a     │  │            the next stretch of k continues the sums from where the last one left them
      ┌────┐ └──┘
      ├────┤  ▓▓   tile
      └────┘  ░░

A block of HEIGHT rows of a is multiplied by one panel after the other: it stays in the second-level cache, while the panels of
b come from beyond, each prefetched while the one before it is multiplied [Goto and van de Geijn 2008].  Where a is a transpose,
the block is packed as well.

The tile's shape follows the register file: 8 x 32 floats with AVX-512 (32 registers of 16 floats), otherwise 6 x 16.  Other
tiles cover the edges: a narrow one the last columns, broad and low ones the last rows.
"""

from functools import cache

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from .lanes import LANES, broadcast, fused, load, named, store
from .linking import linked
from .prefetch import fetch
from .threads import get_num_threads, parallel_for

triple, cpu, features = cpu_target.target_context.codegen().magic_tuple()       # what Numba compiles for
ROWS, LOW, VECTORS = (8, 4, 2) if "+avx512f" in features or "avx512" in cpu else (6, 2, 1)
WIDTH = VECTORS * LANES      # columns of a tile with ROWS rows, and of a panel
BROAD = 2 * WIDTH            # columns of a tile with LOW rows, or a single one: two panels
GROUP = 4                    # panels of b, or tiles of a, that are packed at a time
DEPTH = 384                  # steps of k in a panel: DEPTH * WIDTH floats are 48 KiB at most
HEIGHT = 192                 # rows of a block of a, a multiple of the tile heights: DEPTH * HEIGHT floats are 288 KiB
COLUMNS = 1024               # columns of b packed at a time: DEPTH * COLUMNS floats are 1.5 MiB
REUSE = 128                  # a block of a is packed only where b has more columns than this
FEW_COLUMNS = 4              # up to this many leftover columns are computed as rows of the transpose
FLOAT, CACHE_LINE = 4, 64    # bytes

MATRIX = types.Array(types.float32, 2, "A")     # any strides, so that one compilation serves all layouts
PANELS = types.Array(types.float32, 3, "A")     # (panels, depth, WIDTH), of which only the rows must be contiguous
_float, intp = types.CPointer(types.float32), types.intp
_BYTES = ir.PointerType(ir.IntType(8))


def behind(builder, pointer, offset):
    return builder.gep(builder.bitcast(pointer, _BYTES), [offset])


# An address must remain a pointer.  If it were passed as an integer, LLVM could split the sum, find a 0 in one half, and treat
# the other half as an offset from the null pointer, where a store is undefined behaviour.
@intrinsic
def address_of(typing, array, offset):
    """The address `offset` bytes after the first element of a float32 array."""
    def generate(context, builder, sig, args):
        data = context.make_array(sig.args[0])(context, builder, args[0]).data
        return builder.bitcast(behind(builder, data, args[1]), ir.PointerType(ir.FloatType()))
    return _float(array, intp), generate


@intrinsic
def _after(typing, address, offset):
    """The address `offset` bytes after `address`."""
    def generate(context, builder, sig, args):
        return builder.bitcast(behind(builder, *args), ir.PointerType(ir.FloatType()))
    return _float(_float, intp), generate


@cache
def _make_tile(rows, width):
    """The innermost loop: c (rows, width) = or += a (rows, depth) @ b (depth, width), with c held in registers.

    a, b and c are addresses (see `address_of`) and the strides are in bytes, so that one compilation serves arrays of any type.
    """
    vector, vectors = ir.VectorType(ir.FloatType(), LANES), width // LANES

    @intrinsic
    def tile(typing, a, a_row, a_step, b, b_step, b_panel, c, c_row, depth, accumulate):
        def generate(context, builder, sig, args):
            a, a_row, a_step, b, b_step, b_panel, c, c_row, depth, accumulate = args

            def address(base, stride, count, offset, element):
                place = builder.mul(stride, stride.type(count) if isinstance(count, int) else count)
                return builder.bitcast(behind(builder, base, builder.add(place, place.type(offset))), ir.PointerType(element))

            def unaligned(memory_operation):
                memory_operation.align = FLOAT
                return memory_operation

            tiles = [(r, v) for r in range(rows) for v in range(vectors)]
            outputs = {(r, v): address(c, c_row, r, v * LANES * FLOAT, vector) for r, v in tiles}
            sums = {t: cgutils.alloca_once_value(builder, ir.Constant(vector, [0.0] * LANES)) for t in tiles}
            with builder.if_then(accumulate):
                for t in tiles:
                    builder.store(unaligned(builder.load(outputs[t])), sums[t])
            b_of = [behind(builder, b, builder.mul(b_panel, b_panel.type(p))) for p in range((width + WIDTH - 1) // WIDTH)]
            with cgutils.for_range(builder, depth) as loop:
                b_lanes = [unaligned(builder.load(address(b_of[v * LANES // WIDTH], b_step, loop.index,
                                                          v * LANES % WIDTH * FLOAT, vector))) for v in range(vectors)]
                # The same row of the next panel.  Beyond the last one, too: a prefetch cannot fault.
                for line in range(0, width * FLOAT if (rows, width) == (ROWS, WIDTH) else 0, CACHE_LINE):
                    fetch(builder, address(behind(builder, b, b_panel), b_step, loop.index, line, ir.IntType(8)), 2)
                a_column = behind(builder, a, builder.mul(a_step, loop.index))
                a_lanes = [broadcast(builder, builder.load(address(a_column, a_row, r, 0, ir.FloatType())))
                           for r in range(rows)]
                for r, v in tiles:
                    builder.store(fused(builder, a_lanes[r], b_lanes[v], builder.load(sums[r, v])), sums[r, v])
            for t in tiles:
                unaligned(builder.store(builder.load(sums[t]), outputs[t]))
            return context.get_dummy_value()
        return types.void(_float, intp, intp, _float, intp, intp, _float, intp, intp, types.boolean), generate

    def compiled(a, a_row, a_step, b, b_step, b_panel, c, c_row, depth, accumulate):
        tile(a, a_row, a_step, b, b_step, b_panel, c, c_row, depth, accumulate)
    return njit(named(compiled, f"tile_{rows}x{width}"))


_tile = _make_tile(ROWS, WIDTH)
_narrow_tile = _make_tile(ROWS, LANES)       # without AVX-512, @cache makes it the same function as _tile (see `named`)
_low_tile = _make_tile(LOW, BROAD)
_row_tile = _make_tile(1, BROAD)
_short_tile = _make_tile(1, WIDTH)


# --- packing ----------------------------------------------------------------------------------------------------------

@intrinsic
def _transpose(typing, source, source_row, target, target_row):
    """Copy the transpose of a block (LANES, LANES) from one address to another; row strides are in bytes."""
    def generate(context, builder, sig, args):
        source, source_row, target, target_row = args
        vector = ir.PointerType(ir.VectorType(ir.FloatType(), LANES))

        def rows(base, stride):
            return [builder.bitcast(behind(builder, base, builder.mul(stride, stride.type(r))), vector) for r in range(LANES)]
        x = []
        for address in rows(source, source_row):
            x.append(builder.load(address))
            x[-1].align = FLOAT
        distance = LANES // 2
        while distance:             # in each pair of rows that far apart, exchange the blocks beside the diagonal
            lower = [lane if lane & distance == 0 else LANES + lane - distance for lane in range(LANES)]
            upper = [lane + distance if lane & distance == 0 else LANES + lane for lane in range(LANES)]
            for r in range(LANES):
                if r & distance == 0:
                    pair = x[r], x[r + distance]
                    for at, lanes in (r, lower), (r + distance, upper):
                        x[at] = builder.shuffle_vector(*pair, ir.Constant(ir.VectorType(ir.IntType(32), LANES), lanes))
            distance //= 2
        for address, value in zip(rows(target, target_row), x):
            builder.store(value, address).align = FLOAT
        return context.get_dummy_value()
    return types.void(_float, intp, _float, intp), generate


@njit
def panels_of(M):
    """How many panels hold M columns: an even number, since the broad tiles read two at a time."""
    return (M + BROAD - 1) // BROAD * 2


@linked(types.void(MATRIX, PANELS))
def pack_columns(b, panels):
    """Copy b (depth, M) to panels (at least panels_of(M), depth, WIDTH), on one thread.

    They are padded with zeros: a broad tile multiplies the padding, too, and leftovers in memory could be subnormal, and slow.
    """
    depth, M = b.shape
    b_row, b_column = b.strides
    stride = panels.strides[0] // FLOAT
    whole = M // LANES * LANES if b_column == FLOAT or b_row == FLOAT else 0
    deep = depth // LANES * LANES if b_column != FLOAT else 0
    if b_column == FLOAT:
        for j0 in range(0, whole, GROUP * WIDTH):
            for k in range(depth):
                for j in range(j0, min(j0 + GROUP * WIDTH, whole), LANES):
                    store(panels, j // WIDTH * stride + k * WIDTH + j % WIDTH, load(b, k * (b_row // FLOAT) + j))
    else:
        for j in range(0, whole, LANES):
            for k in range(0, deep, LANES):
                _transpose(address_of(b, k * b_row + j * b_column), b_column,
                           address_of(panels, (j // WIDTH * stride + k * WIDTH + j % WIDTH) * FLOAT), WIDTH * FLOAT)
            for k in range(deep, depth):
                for c in range(j, j + LANES):
                    panels[c // WIDTH, k, c % WIDTH] = b[k, c]
    for j in range(whole, panels_of(M) * WIDTH):
        for k in range(depth):
            panels[j // WIDTH, k, j % WIDTH] = b[k, j] if j < M else np.float32(0)


@intrinsic
def _copy_rows(typing, source, target):
    """Copy ROWS floats."""
    def generate(context, builder, sig, args):
        source, target = (builder.bitcast(a, ir.PointerType(ir.VectorType(ir.FloatType(), ROWS))) for a in args)
        value = builder.load(source)
        value.align = FLOAT
        builder.store(value, target).align = FLOAT
        return context.get_dummy_value()
    return types.void(_float, _float), generate


@njit
def _pack_rows(a, block):
    """Copy a (N, depth) to tiles of ROWS rows: depth columns of ROWS floats each.  Fast where columns of a are contiguous."""
    N, depth = a.shape
    whole = N // ROWS * ROWS if a.strides[0] == FLOAT else 0
    for i0 in range(0, whole, GROUP * ROWS):
        for k in range(depth):
            for i in range(i0, min(i0 + GROUP * ROWS, whole), ROWS):
                _copy_rows(address_of(a, i * FLOAT + k * a.strides[1]), address_of(block, (i * depth + k * ROWS) * FLOAT))
    for i in range(whole, N):
        for k in range(depth):
            block[i // ROWS * ROWS * depth + k * ROWS + i % ROWS] = a[i, k]


# --- the loops around the tile ----------------------------------------------------------------------------------------

@njit
def _load_edge(out, edge, accumulate):
    if accumulate:
        for r in range(out.shape[0]):
            for c in range(out.shape[1]):
                edge[r * BROAD + c] = out[r, c]


@njit
def _store_edge(out, edge):
    for r in range(out.shape[0]):
        for c in range(out.shape[1]):
            out[r, c] = edge[r * BROAD + c]


@linked(types.void(MATRIX, _float, intp, intp, MATRIX, types.boolean))
def _multiply(a, b, b_step, b_panel, out, accumulate):
    """out (N, M) = or += a (N, depth) @ the columns at address b, on one thread.

    b_step is the distance between rows of b, b_panel that between its panels, in bytes.
    """
    (N, depth), M, out_row = a.shape, out.shape[1], out.strides[0]
    packs = a.strides[1] != FLOAT and N >= ROWS and M > REUSE
    block = np.empty(min(N + ROWS, HEIGHT) * depth if packs else 0, np.float32)
    edge = np.empty(ROWS * BROAD if M % WIDTH else 0, np.float32)   # the outputs of a tile that extends past the last column
    for i0 in range(0, N, HEIGHT):
        height = min(HEIGHT, N - i0)
        whole = height // ROWS * ROWS
        if packs:
            _pack_rows(a[i0:i0 + height], block)
            origin, tile_row, a_row, a_step = address_of(block, 0), depth * FLOAT, FLOAT, ROWS * FLOAT
        else:
            origin, tile_row, a_row, a_step = address_of(a, i0 * a.strides[0]), a.strides[0], a.strides[0], a.strides[1]
        for j0 in range(0, M, BROAD):               # two panels at a time, so that the last rows still find them in cache
            for j in range(j0, min(j0 + BROAD, M) if whole else j0, WIDTH):
                right, columns = _after(b, j // WIDTH * b_panel), min(WIDTH, M - j)
                for i in range(0, whole, ROWS):
                    left, target = _after(origin, i * tile_row), address_of(out, (i0 + i) * out_row + j * FLOAT)
                    if columns == WIDTH:
                        _tile(left, a_row, a_step, right, b_step, b_panel, target, out_row, depth, accumulate)
                    else:
                        _load_edge(out[i0 + i:i0 + i + ROWS, j:], edge, accumulate)
                        target = address_of(edge, 0)
                        if columns > LANES:
                            _tile(left, a_row, a_step, right, b_step, b_panel, target, BROAD * FLOAT, depth, accumulate)
                        else:
                            _narrow_tile(left, a_row, a_step, right, b_step, b_panel, target, BROAD * FLOAT, depth, accumulate)
                        _store_edge(out[i0 + i:i0 + i + ROWS, j:], edge)
            right, columns = _after(b, j0 // WIDTH * b_panel), min(BROAD, M - j0)
            i = whole
            while i < height:
                rows = LOW if i + LOW <= height and columns > WIDTH else 1
                left = _after(origin, whole * tile_row + (i - whole) * a_row)
                target, target_row = address_of(out, (i0 + i) * out_row + j0 * FLOAT), out_row
                if columns % WIDTH:
                    _load_edge(out[i0 + i:i0 + i + rows, j0:], edge, accumulate)
                    target, target_row = address_of(edge, 0), BROAD * FLOAT
                if rows == LOW:
                    _low_tile(left, a_row, a_step, right, b_step, b_panel, target, target_row, depth, accumulate)
                elif columns > WIDTH:
                    _row_tile(left, a_row, a_step, right, b_step, b_panel, target, target_row, depth, accumulate)
                else:
                    _short_tile(left, a_row, a_step, right, b_step, b_panel, target, target_row, depth, accumulate)
                if columns % WIDTH:
                    _store_edge(out[i0 + i:i0 + i + rows, j0:], edge)
                i += rows


@njit
def _pack_and_multiply(a, b, out, accumulate):
    K, M = b.shape
    panels = np.empty((panels_of(min(M, COLUMNS)), min(K, DEPTH), WIDTH), np.float32)
    for j0 in range(0, M, COLUMNS):
        j1 = min(j0 + COLUMNS, M)
        for k0 in range(0, max(K, 1), DEPTH):
            k1 = min(k0 + DEPTH, K)
            pack_columns(b[k0:k1, j0:j1], panels)
            _multiply(a[:, k0:k1], address_of(panels, 0), WIDTH * FLOAT, panels.strides[0], out[:, j0:j1], accumulate or k0 > 0)


@linked(types.void(MATRIX, MATRIX, MATRIX, types.boolean))
def product(a, b, out, accumulate):
    """out (N, M) = or += a (N, K) @ b (K, M), on one thread.  a and b have any strides; rows of out are contiguous."""
    N, M = out.shape
    done = M // WIDTH * WIDTH if N <= 2 * ROWS and b.strides[1] == FLOAT else 0
    if done:                                        # too few rows to pay for a copy of b
        _multiply(a, address_of(b, 0), b.strides[0], WIDTH * FLOAT, out[:, :done], accumulate)
    rest = M % WIDTH if M % WIDTH <= FEW_COLUMNS and N > 2 * ROWS else 0
    if done < M - rest:
        _pack_and_multiply(a, b[:, done:M - rest], out[:, done:M - rest], accumulate)
    if rest:                                        # too few columns for a tile, but enough rows for one
        transposed = np.empty((rest, N), np.float32)
        for j in range(rest if accumulate else 0):
            for i in range(N):
                transposed[j, i] = out[i, M - rest + j]
        _pack_and_multiply(b[:, M - rest:].T, a.T, transposed[:, :N], accumulate)       # sliced, it has the type of `out` above
        for j in range(rest):
            for i in range(N):
                out[i, M - rest + j] = transposed[j, i]


@linked(types.void(MATRIX, PANELS, MATRIX, types.boolean))
def product_packed(a, panels, out, accumulate):
    """`product` with b in panels (see `pack_columns`), of which it uses the first K rows and the first M columns."""
    K = a.shape[1]
    for k0 in range(0, max(K, 1), DEPTH):
        _multiply(a[:, k0:k0 + DEPTH], address_of(panels, k0 * WIDTH * FLOAT), WIDTH * FLOAT, panels.strides[0], out,
                  accumulate or k0 > 0)


@njit
def part_of(N, M, threads):
    """(rows, columns) of an output (N, M) that one thread computes: whole tiles, with little packing for the multiplication."""
    best, height, width = np.inf, ROWS, WIDTH
    for down in range(1, threads + 1):
        rows, columns = _part(N, down, ROWS), _part(M, threads // down, WIDTH)
        cost = rows * columns + 8 * (rows + columns)
        if cost < best:
            best, height, width = cost, rows, columns
    return height, width


@njit
def _part(count, parts, unit):
    return max(1, (count + parts * unit - 1) // (parts * unit)) * unit


@njit
def _multiply_part(part, a, b, out, accumulate, height, width):
    across = (out.shape[1] + width - 1) // width
    i, j = part // across * height, part % across * width
    product(a[i:i + height, :], b[:, j:j + width], out[i:i + height, j:j + width], accumulate)


@njit(types.void(MATRIX, MATRIX, MATRIX, types.boolean, intp), cache=True)
def _matmul(a, b, out, accumulate, threads):
    N, M = out.shape
    height, width = part_of(N, M, threads)
    parts = (N + height - 1) // height * ((M + width - 1) // width)
    parallel_for(parts, _multiply_part, a, b, out, accumulate, height, width)


@njit
def _multiply_packed_part(part, a, panels, out, height, width):
    across = (out.shape[1] + width - 1) // width
    i, j = part // across * height, part % across * width
    product_packed(a[i:i + height, :], panels[j // WIDTH:, :, :], out[i:i + height, j:j + width], False)


@njit(cache=True)
def _matmul_packed(a, panels, out, threads):
    N, M = out.shape
    height, width = part_of(N, (M + WIDTH - 1) // WIDTH * WIDTH, threads)
    width = panels_of(width) * WIDTH
    parts = (N + height - 1) // height * ((M + width - 1) // width)
    parallel_for(parts, _multiply_packed_part, a, panels, out, height, width)


@njit
def _pack_part(part, b, panels, width):
    pack_columns(b[:, part * width:(part + 1) * width], panels[part * width // WIDTH:, :, :])


@njit(cache=True)
def _pack_all(b, panels, threads):
    width = _part(b.shape[1], threads, BROAD)
    parallel_for((b.shape[1] + width - 1) // width, _pack_part, b, panels, width)


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


def pack(b: np.ndarray, panels: np.ndarray | None = None) -> np.ndarray:
    """The panels (P, K, WIDTH), P even, of a float32 matrix b (K, M) that many products share, such as weights in decoding.

    They are written to `panels` if given, a contiguous array of that shape.
    """
    if panels is None:
        panels = np.empty((panels_of(b.shape[1]), len(b), WIDTH), np.float32)
    _pack_all(b, panels, get_num_threads())
    return panels


def matmul_packed(a: np.ndarray, panels: np.ndarray, out: np.ndarray) -> np.ndarray:
    """out (N, M) = a (N, K) @ b (K, M), given the panels of b from `pack`.  Returns out.

    ValueError where they are not float32 arrays whose shapes match, or where a row of out is not contiguous.
    """
    if not a.dtype == panels.dtype == out.dtype == np.float32:
        raise ValueError(f"matmul_packed takes float32, but got {a.dtype} @ {panels.dtype} -> {out.dtype}")
    if (a.ndim, panels.ndim, out.ndim) != (2, 3, 2) or a.shape != (len(out), panels.shape[1]) \
            or len(panels) != panels_of(out.shape[1]) or out.size > len(out) and out.strides[1] != FLOAT:
        raise ValueError(f"matmul_packed takes (N, K) @ the panels of (K, M) -> (N, M), but got {a.shape} @ {panels.shape} -> "
                         f"{out.shape} with strides {out.strides}")
    _matmul_packed(a, panels, out, get_num_threads())
    return out

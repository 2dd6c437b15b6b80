"""Vectors of sixteen floats, in which the kernels spell out their order of operations.

A `float32x16` holds sixteen binary32 lanes.  A kernel loads, computes and stores such vectors, and every processor does
exactly what it says: in one register with AVX-512, two with AVX2, four with NEON, in scalars elsewhere.  The bits are the same
on all of them, because IEEE 754 prescribes the rounding of every operation below.  The order of a sum along a row is fixed as
well: lane l adds the elements l, l + 16, l + 32, ..., and `lane_sum` then adds the lanes in halves.

These vectors exist only inside functions that Numba compiles.  A fused multiply-add is requested by name (LLVM's `llvm.fma`);
no operation here carries a fast-math flag, so the compiler may not fuse, split or reorder anything else.
"""

import operator

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model

LANES = 16
ZERO, ONE = np.float32(0), np.float32(1)

_FLOAT, _INT = ir.FloatType(), ir.IntType(32)
_FLOATS, _INTS, _BITS = (ir.VectorType(t, LANES) for t in (_FLOAT, _INT, ir.IntType(1)))
_VALUE = {_FLOAT: _FLOATS, _INT: _INTS}


class _Lanes(types.Type):
    def __init__(self):
        super().__init__(name="float32x16")


float32x16 = _Lanes()


@register_model(_Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager, type_):
        super().__init__(manager, type_, _FLOATS)


# --- the LLVM instructions that the operations are built from ---------------------------------------------------------

def _constant(value, element=_FLOAT):
    return ir.Constant(_VALUE[element], [value] * LANES)


def call(builder, name, args, result=_FLOATS):
    """Call the LLVM intrinsic of that name."""
    function_type = ir.FunctionType(result, [a.type for a in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, function_type, name), args)


def pointer(context, builder, array_type, array, index):
    """The address of element `index` of a flat array, counted from its first element."""
    return builder.gep(context.make_array(array_type)(context, builder, array).data, [index])


def lanes_at(builder, address):
    return builder.bitcast(address, ir.PointerType(_FLOATS))


def broadcast(builder, scalar):
    undefined = ir.Constant(_FLOATS, ir.Undefined)
    first = builder.insert_element(undefined, scalar, _INT(0))
    return builder.shuffle_vector(first, undefined, _constant(0, _INT))


def fused(builder, x, y, z):
    return call(builder, "llvm.fma.v16f32", [x, y, z])


def _first(builder, count):
    """A mask of the lanes below `count`."""
    ascending = ir.Constant(_INTS, list(range(LANES)))
    undefined = ir.Constant(_INTS, ir.Undefined)
    count = builder.insert_element(undefined, builder.trunc(count, _INT), _INT(0))
    return builder.icmp_signed("<", ascending, builder.shuffle_vector(count, undefined, _constant(0, _INT)))


def _operation(build, arguments):
    """An intrinsic that maps `arguments` vectors to one; `build(builder, *llvm values)` emits its code."""
    def make(typing):
        return float32x16(*[float32x16] * arguments), lambda context, builder, sig, args: build(builder, *args)
    if arguments == 1:
        return intrinsic(lambda typing, x: make(typing))
    if arguments == 2:
        return intrinsic(lambda typing, x, y: make(typing))
    return intrinsic(lambda typing, x, y, z: make(typing))


# --- memory -----------------------------------------------------------------------------------------------------------

@intrinsic
def splat(typing, x):
    """The scalar x in every lane."""
    return float32x16(types.float32), lambda context, builder, sig, args: broadcast(builder, args[0])


@intrinsic
def load(typing, array, index):
    """Elements index .. index + 15 of a contiguous float32 array of any shape, counted flat."""
    def generate(context, builder, sig, args):
        value = builder.load(lanes_at(builder, pointer(context, builder, sig.args[0], args[0], args[1])))
        value.align = 4
        return value
    return float32x16(array, types.intp), generate


@intrinsic
def store(typing, array, index, x):
    """Write the lanes of x to elements index .. index + 15 of a contiguous float32 array."""
    def generate(context, builder, sig, args):
        builder.store(args[2], lanes_at(builder, pointer(context, builder, sig.args[0], args[0], args[1]))).align = 4
        return context.get_dummy_value()
    return types.void(array, types.intp, float32x16), generate


@intrinsic
def _load_masked(typing, array, index, count, fill):
    def generate(context, builder, sig, args):
        address = lanes_at(builder, pointer(context, builder, sig.args[0], args[0], args[1]))
        return call(builder, "llvm.masked.load.v16f32.p0",
                     [address, _INT(4), _first(builder, args[2]), broadcast(builder, args[3])])
    return float32x16(array, types.intp, types.intp, types.float32), generate


@intrinsic
def _store_masked(typing, array, index, count, x):
    def generate(context, builder, sig, args):
        address = lanes_at(builder, pointer(context, builder, sig.args[0], args[0], args[1]))
        call(builder, "llvm.masked.store.v16f32.p0",
              [args[3], address, _INT(4), _first(builder, args[2])], ir.VoidType())
        return context.get_dummy_value()
    return types.void(array, types.intp, types.intp, float32x16), generate


@njit
def load_part(array, index, count, fill):
    """min(count, 16) elements from `index` on; the remaining lanes hold the scalar `fill`."""
    return load(array, index) if count >= LANES else _load_masked(array, index, count, np.float32(fill))


@njit
def store_part(array, index, count, x):
    """Write the first min(count, 16) lanes of x, and no memory beyond them."""
    if count >= LANES:
        store(array, index, x)
    else:
        _store_masked(array, index, count, x)


# --- arithmetic, lane by lane -----------------------------------------------------------------------------------------

fma = _operation(fused, 3)                                                  # x * y + z, rounded once
sqrt = _operation(lambda builder, x: call(builder, "llvm.sqrt.v16f32", [x]), 1)
absolute = _operation(lambda builder, x: call(builder, "llvm.fabs.v16f32", [x]), 1)
rint = _operation(lambda builder, x: call(builder, "llvm.rint.v16f32", [x]), 1)                        # ties to even
maximum = _operation(lambda builder, x, y: builder.select(builder.fcmp_ordered(">", x, y), x, y), 2)  # y if unordered
minimum = _operation(lambda builder, x, y: builder.select(builder.fcmp_ordered("<", x, y), x, y), 2)  # y if unordered


def named(function, name):
    """The function under a name of its own.

    The linker identifies a function by its name, its types and a number that Numba counts anew in each process.  So a function
    from the cache could be linked in place of another with the same name that happens to have the same number here.
    """
    function.__qualname__ = name
    return function


def _operator(symbol, build):
    """Make an operator such as `x + y` on two vectors mean the operation `build`."""
    function = _operation(build, 2)

    @overload(symbol)
    def on_lanes(x, y):
        if x is float32x16 and y is float32x16:
            return named(lambda x, y: function(x, y), symbol.__name__)


_operator(operator.add, lambda builder, x, y: builder.fadd(x, y))
_operator(operator.sub, lambda builder, x, y: builder.fsub(x, y))
_operator(operator.mul, lambda builder, x, y: builder.fmul(x, y))
_operator(operator.truediv, lambda builder, x, y: builder.fdiv(x, y))


@intrinsic
def where_positive(typing, condition, x, y):
    """Lanes of x where the condition is > 0, lanes of y elsewhere (also where the condition is NaN)."""
    def generate(context, builder, sig, args):
        return builder.select(builder.fcmp_ordered(">", args[0], _constant(0.0)), args[1], args[2])
    return float32x16(float32x16, float32x16, float32x16), generate


@intrinsic
def keep_first(typing, x, count, fill):
    """Lanes of x below `count`, the scalar `fill` in the others."""
    def generate(context, builder, sig, args):
        return builder.select(_first(builder, args[1]), args[0], broadcast(builder, args[2]))
    return float32x16(float32x16, types.intp, types.float32), generate


# exp(x) = 2^n * exp(r) with n = round(x / ln 2) and |r| <= ln(2) / 2.  Adding 1.5 * 2^23 rounds to an integer and leaves n in
# the low bits of the sum, from where it is shifted into the exponent.  ln 2 is split in two parts, so that r keeps its low
# bits [Cody and Waite 1980]; exp(r) is its Taylor polynomial, whose first omitted term is below 1.1e-8.
_ROUND = 12582912.0                                   # 1.5 * 2^23
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4     # the first has 9 bits: n * _LN2_HIGH is exact
_LOWEST, _HIGHEST = -87.0, 88.0                       # results stay normal numbers; below, the result is 0


def _exp(builder, x):
    low = builder.fcmp_ordered("<", x, _constant(_LOWEST))
    high = builder.fcmp_ordered(">", x, _constant(_HIGHEST))
    clipped = builder.select(high, _constant(_HIGHEST), builder.select(low, _constant(_LOWEST), x))   # NaN stays
    shifted = fused(builder, clipped, _constant(1.4426950408889634), _constant(_ROUND))
    n = builder.fsub(shifted, _constant(_ROUND))
    r = fused(builder, n, _constant(-_LN2_HIGH), clipped)
    r = fused(builder, n, _constant(-_LN2_LOW), r)
    p = _constant(1 / 5040)
    for coefficient in (1 / 720, 1 / 120, 1 / 24, 1 / 6, 1 / 2, 1.0, 1.0):
        p = fused(builder, p, r, _constant(coefficient))
    exponent = builder.shl(builder.bitcast(shifted, _INTS), _constant(23, _INT))
    power = builder.bitcast(builder.add(exponent, _constant(0x3F800000, _INT)), _FLOATS)              # 2^n
    return builder.select(low, _constant(0.0), builder.fmul(p, power))


exp = _operation(_exp, 1)        # within 1 unit in the last place; 0 below -87, e^88 above 88, NaN for NaN


# log(x) = n * ln 2 + log(m) with x = 2^n * m and sqrt(1/2) <= m < sqrt(2).  With s = (m - 1) / (m + 1), |s| < 0.172,
#   log(m) = 2 * (s + s^3 / 3 + s^5 / 5 + ...), whose first omitted term is below 7e-10.
_SMALLEST_NORMAL, _INFINITY, _NAN = 2.0 ** -126, float("inf"), float("nan")


def _log(builder, x):
    bits = builder.bitcast(x, _INTS)
    n = builder.ashr(builder.sub(bits, _constant(0x3F3504F3, _INT)), _constant(23, _INT))             # 0x3F3504F3: sqrt(1/2)
    m = builder.bitcast(builder.sub(bits, builder.shl(n, _constant(23, _INT))), _FLOATS)
    s = builder.fdiv(builder.fsub(m, _constant(1.0)), builder.fadd(m, _constant(1.0)))
    square = builder.fmul(s, s)
    p = _constant(2 / 9)
    for coefficient in (2 / 7, 2 / 5, 2 / 3, 2.0):
        p = fused(builder, p, square, _constant(coefficient))
    result = fused(builder, builder.sitofp(n, _FLOATS), _constant(0.6931471805599453), builder.fmul(s, p))
    infinite = builder.fcmp_ordered("==", x, _constant(_INFINITY))
    normal = builder.and_(builder.fcmp_ordered(">=", x, _constant(_SMALLEST_NORMAL)),
                          builder.fcmp_ordered("<", x, _constant(_INFINITY)))
    return builder.select(normal, result, builder.select(infinite, x, _constant(_NAN)))


log = _operation(_log, 1)        # for normal positive numbers and infinity; NaN for all others


# --- reductions: from sixteen lanes to one number ---------------------------------------------------------------------

def _fold(build):
    """Combine lanes 0-7 with lanes 8-15, then the first four with the next four, and so on down to one."""
    def generate(context, builder, sig, args):
        value, half = args[0], LANES // 2
        while half >= 1:
            undefined = ir.Constant(value.type, ir.Undefined)
            indices = ir.VectorType(_INT, half)
            lower = builder.shuffle_vector(value, undefined, ir.Constant(indices, list(range(half))))
            upper = builder.shuffle_vector(value, undefined, ir.Constant(indices, list(range(half, 2 * half))))
            value, half = build(builder, lower, upper), half // 2
        return builder.extract_element(value, _INT(0))
    return intrinsic(lambda typing, x: (types.float32(float32x16), generate))


lane_sum = _fold(lambda builder, x, y: builder.fadd(x, y))
lane_max = _fold(lambda builder, x, y: builder.select(builder.fcmp_ordered(">", x, y), x, y))

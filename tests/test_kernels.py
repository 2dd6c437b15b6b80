"""Each kernel against its specification, the slow and obvious version: in float64 or, where order matters, bit by bit.

A tolerance counts roundings: how many times half a unit in the last place of `size` may go wrong in the same direction.
The bits are the same everywhere, so are the errors, and each tolerance is two or three times what is found.
"""

import operator
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from numba import njit

from minigpt.kernels import activations, elementwise, lanes, matmul as matmul_module, norms, rotary, softmax, sums
from minigpt.kernels.attention import QUERY_ROWS, attend_one, attention_backward, attention_forward, hold_floats
from minigpt.kernels.lanes import (keep_first, lane_max, lane_sum, load, load_part, maximum, splat, store, store_part,
                                   where_positive)
from minigpt.kernels.matmul import BROAD, COLUMNS, DEPTH, HEIGHT, LOW, ROWS, WIDTH, matmul, matmul_packed, pack
from minigpt.exact import rotary_tables
from minigpt.kernels.threads import MOST_THREADS, get_num_threads, set_num_threads

ROUNDING = 2.0 ** -24            # the largest relative error of one operation in binary32
ZERO, ONE = np.float32(0), np.float32(1)
LENGTHS = (1, 2, 15, 16, 17, 33, 100)


def random(*shape, seed=0, size=1.0):
    return (size * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def same_bits(x, y):
    return x.shape == y.shape and x.dtype == y.dtype and x.tobytes() == y.tobytes()


def agrees(got, want, roundings, size=None):
    """Whether got is want, up to so many roundings of numbers of that size (by default, the largest of want)."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    bound = roundings * ROUNDING * (np.abs(want).max(initial=0) if size is None else size)
    return got.shape == want.shape and bool((np.abs(got - want) <= bound).all())


def is_slope(gradient, f, x, roundings, size=0.0, h=1e-5):
    """Whether gradient holds the central differences of f, a float64 function, at x; at 40 places where there are more.

    size is that of the terms that cancel in the gradient, where it is larger than the gradient.
    """
    x, places = x.astype(np.float64), np.random.default_rng(0).permutation(x.size)[:40]
    slopes = []
    for place in places:
        step = np.zeros(x.size)
        step[place] = h
        step = step.reshape(x.shape)
        slopes.append((f(x + step) - f(x - step)) / (2 * h))
    size = max(size, np.abs(slopes).max()) + 1e-3              # 1e-3: a difference over a finite h is not the slope itself
    return agrees(gradient.reshape(-1)[places], slopes, roundings, size)


def fma32(x, y, z):
    """x * y + z in float32 with one rounding.

    The product of two float32 is exact in float64.  Their sum is rounded to odd, which hides no tie from the second
    rounding: to the one of its two neighbours in float64 whose last bit is 1.
    """
    product, z = np.broadcast_arrays(x.astype(np.float64) * y, z.astype(np.float64))
    near = product + z
    back = near - product
    error = (product - (near - back)) + (z - back)
    other = np.nextafter(near, np.copysign(np.inf, error))
    return np.where((error != 0) & (near.view(np.int64) % 2 == 0), other, near).astype(np.float32)


def lanewise(operation):
    """The operation on lanes as a function of a float32 array."""
    @njit
    def apply(x, y):
        for i in range(0, x.size, 16):
            store_part(y, i, x.size - i, operation(load_part(x, i, x.size - i, ONE)))

    def function(x):
        y = np.empty_like(x)
        apply(x, y)
        return y
    return function


exp, log = lanewise(lanes.exp), lanewise(lanes.log)


# --- lanes: memory ----------------------------------------------------------------------------------------------------

@njit
def copy_part(x, start, count, fill, y):
    store(y, 0, load_part(x, start, count, fill))


@njit
def write_part(y, start, count):
    store_part(y, start, count, splat(ONE))


@pytest.mark.parametrize("count", (-3, 0, 1, 7, 15, 16, 17, 1000))
def test_load_part_fills_the_lanes_behind_the_last_element(count):
    x, y = random(1100), np.empty(16, np.float32)
    copy_part(x, 3, count, np.float32(-7), y)
    expected = np.where(np.arange(16) < count, x[3:19], np.float32(-7))
    assert same_bits(y, expected)


@pytest.mark.parametrize("count", (-3, 0, 1, 7, 15, 16, 17, 1000))
def test_store_part_leaves_all_other_memory_alone(count):
    y = np.zeros(40, np.float32)
    write_part(y, 5, count)
    place = np.arange(40) - 5
    assert (y == ((place >= 0) & (place < min(count, 16)))).all()


# --- lanes: arithmetic ------------------------------------------------------------------------------------------------

def nearest_float32(fraction):
    """The float32 next to a fraction: of two equally near, the even one."""
    guess = np.float32(float(fraction))
    candidates = (guess, np.nextafter(guess, np.float32(-np.inf)), np.nextafter(guess, np.float32(np.inf)))
    return min(candidates, key=lambda c: (abs(Fraction(float(c)) - fraction), int(c.view(np.int32)) & 1))


def hard_sums():
    """x, y, z whose x * y + z lies next to a tie of float32, or cancels."""
    rng = np.random.default_rng(1)
    x, y = ((1 + rng.integers(0, 2 ** 23, 4000) * 2.0 ** -23).astype(np.float32) for _ in range(2))
    z = np.float32(2) ** rng.integers(-60, 60, 4000).astype(np.float32) * rng.choice([-1, 1], 4000).astype(np.float32)
    z[:1000] = -(x[:1000] * y[:1000])
    return x, y, z


def test_the_specification_of_fma_rounds_the_exact_sum_once():
    x, y, z = (v[::8] for v in hard_sums())
    exact = [Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c)) for a, b, c in zip(x, y, z)]
    assert same_bits(fma32(x, y, z), np.array([nearest_float32(e) for e in exact]))


def test_fma_rounds_once():
    @njit
    def fused(x, y, z, out):
        for i in range(0, x.size, 16):
            store(out, i, lanes.fma(load(x, i), load(y, i), load(z, i)))

    x, y, z = hard_sums()
    out = np.empty_like(x)
    fused(x, y, z, out)
    assert same_bits(out, fma32(x, y, z))
    assert not same_bits(out, x * y + z)           # else the inputs were too easy


def error_in_last_places(got, want):
    return np.abs(got - want) / np.spacing(np.abs(want).astype(np.float32))


def test_exp_is_within_one_unit_in_the_last_place():
    rng = np.random.default_rng(2)
    small = rng.uniform(-1, 1, 200_000) * 2.0 ** rng.uniform(-40, 6, 200_000)
    x = np.concatenate([np.linspace(-87, 88, 500_001), small]).astype(np.float32)
    assert error_in_last_places(exp(x), np.exp(x.astype(np.float64))).max() <= 1


def test_exp_never_falls_where_its_pieces_meet():
    for n in range(-125, 127):                     # round(x / ln 2) steps from n to n + 1
        seam = np.float32((n + 0.5) * 0.6931471805599453).view(np.int32)
        x = np.sort((seam + np.arange(-200, 200, dtype=np.int32)).view(np.float32))
        assert (np.diff(exp(x)) >= 0).all()


def test_exp_at_and_beyond_its_ends():
    below = np.nextafter(np.float32(-87), np.float32(-np.inf))
    x = np.array([0, -0.0, -87, below, -1e30, -np.inf, 88, 1e30, np.inf], np.float32)
    want = np.exp([0, 0, -87, -np.inf, -np.inf, -np.inf, 88, 88, 88])
    assert agrees(exp(x), want, 2, want)
    assert exp(x)[2] >= np.finfo(np.float32).tiny               # the smallest result is a normal number


def test_exp_and_only_exp_of_nan_is_nan():
    assert np.isnan(exp(np.array([np.nan, 1, -np.nan], np.float32))).tolist() == [True, False, True]


def test_log_is_within_three_units_in_the_last_place():
    rng = np.random.default_rng(3)
    wide = 10 ** rng.uniform(-30, 30, 300_000)
    near_one = 1 + rng.choice([-0.3, 0.4], 300_000) * 2.0 ** rng.uniform(-24, 0, 300_000)
    x = np.concatenate([wide, near_one]).astype(np.float32)
    x = x[x != 1]
    assert error_in_last_places(log(x), np.log(x.astype(np.float64))).max() <= 3
    assert same_bits(log(np.ones(1, np.float32)), np.zeros(1, np.float32))


def test_unordered_lanes_take_the_second_operand():
    @njit
    def choose(x, y, larger, positive, kept):
        store(larger, 0, maximum(load(x, 0), load(y, 0)))
        store(positive, 0, where_positive(load(x, 0), splat(ONE), splat(ZERO)))
        store(kept, 0, keep_first(load(x, 0), 5, ZERO))

    x, y = random(16), random(16, seed=1)
    x[:3], y[2:5] = (np.nan, 0, np.nan), np.nan
    larger, positive, kept = np.empty((3, 16), np.float32)
    choose(x, y, larger, positive, kept)
    assert same_bits(larger, np.where(x > y, x, y))
    assert same_bits(positive, (x > 0).astype(np.float32))
    assert same_bits(kept, np.where(np.arange(16) < 5, x, ZERO))


# --- lanes: sums ------------------------------------------------------------------------------------------------------

def folded(x, combine):
    """Sixteen lanes to one number: the first half with the second half, and again."""
    while len(x) > 1:
        x = combine(x[:len(x) // 2], x[len(x) // 2:])
    return x[0]


def lane_order_sum(x, add=operator.add):
    """The sum of x in the order of every kernel here: lane l takes elements l, l + 16, ...; then the lanes fold."""
    total = np.zeros(16, np.float32)
    for part in np.pad(x, (0, -len(x) % 16)).reshape(-1, 16):
        total = add(total, part)
    return folded(total, operator.add)


@pytest.mark.parametrize("seed", range(20))
def test_lanes_fold_in_halves(seed):
    @njit
    def fold(x, y):
        y[0], y[1] = lane_sum(load(x, 0)), lane_max(load(x, 0))

    x, y = random(16, seed=seed) * np.exp2(random(16, seed=seed + 100, size=4.0)), np.empty(2, np.float32)
    fold(x, y)
    assert same_bits(y, np.array([folded(x, operator.add), x.max()]))


def squares_in_order(x):
    """Chunks of 4096, each in lane order with fma; then the chunks, one after the other."""
    total = ZERO
    for i in range(0, x.size, 4096):
        total = total + lane_order_sum(x.reshape(-1)[i:i + 4096], lambda sums, part: fma32(part, part, sums))
    return total


@pytest.mark.parametrize("size", (0, 1, 15, 16, 17, 4095, 4096, 4097, 8191, 8192, 10_000))
def test_sum_of_squares_adds_in_the_promised_order(size):
    x = random(size, seed=size)
    assert np.float32(sums.sum_of_squares(x)) == squares_in_order(x)
    assert agrees(sums.sum_of_squares(x), np.sum(x.astype(np.float64) ** 2), 4)


def test_sum_of_squares_takes_an_array_of_any_shape():
    x = random(3, 70, 41)
    assert sums.sum_of_squares(x) == sums.sum_of_squares(x.reshape(-1))


@pytest.mark.parametrize("C", LENGTHS)
@pytest.mark.parametrize("N", (0, 1, 7))
def test_add_column_sums_adds_row_after_row(N, C):
    x, total = random(N, C), random(C, seed=1)
    expected = total.copy()
    for row in x:
        expected = expected + row
    sums.add_column_sums(x, total)
    assert same_bits(total, expected)


@pytest.mark.parametrize("C", LENGTHS)
@pytest.mark.parametrize("indices", ([], [2], [4, 0, 4, 4, 1, 0, 4]))
def test_add_rows_at_adds_repeated_indices_in_turn(indices, C):
    x, table = random(len(indices), C), random(5, C, seed=1)
    expected = table.copy()
    for row, index in zip(x, indices):
        expected[index] = expected[index] + row
    sums.add_rows_at(x, np.array(indices, np.int64), table)
    assert same_bits(table, expected)


# --- matrix product ---------------------------------------------------------------------------------------------------

def chain(a, b, out):
    """The contract of matmul: for each output element, one fma after the other, k ascending."""
    for k in range(a.shape[1]):
        out = fma32(a[:, k, None], b[k], out)
    return out


def empty(a, b):
    return np.full((len(a), b.shape[1]), np.nan, np.float32)


EDGES = ((1, 1, 1), (1, 33, WIDTH), (ROWS, 16, WIDTH), (ROWS - 1, 7, WIDTH - 1), (ROWS + 1, 9, WIDTH + 1), (2 * ROWS, 5, 15),
         (2 * ROWS + 3, 17, 3 * WIDTH + 16), (3, DEPTH, 17), (ROWS, DEPTH - 1, 33), (ROWS + 1, DEPTH + 1, 2 * WIDTH),
         (3 * ROWS, 2 * DEPTH + 5, WIDTH), (1, 40, 2 * BROAD), (LOW + 1, DEPTH + 3, 4 * BROAD + WIDTH + 5),
         (2 * ROWS - 1, 33, 2 * BROAD), (HEIGHT + ROWS + 1, 17, WIDTH + 1), (2 * ROWS + 1, DEPTH + 2, BROAD + WIDTH + 3),
         (2 * ROWS + LOW, 30, COLUMNS + 20))


@pytest.mark.parametrize("shape", EDGES)
@pytest.mark.parametrize("accumulate", (False, True))
@pytest.mark.parametrize("size", (1.0, 1e-20))             # 1e-20: the products are subnormal, and are not cut to 0
def test_matmul_is_a_chain_of_fma(shape, accumulate, size):
    N, K, M = shape
    a, b, start = random(N, K, size=size), random(K, M, seed=1, size=size), random(N, M, seed=2, size=size * size)
    expected = chain(a, b, start if accumulate else np.zeros_like(start))
    assert same_bits(matmul(a, b, start if accumulate else empty(a, b), accumulate), expected)


@pytest.mark.parametrize("shape", EDGES)
def test_a_packed_matrix_gives_the_same_bits(shape):
    N, K, M = shape
    a, b = random(N, K), random(K, M, seed=1)
    expected = matmul(a, b, empty(a, b))
    assert same_bits(matmul_packed(a, pack(b), empty(a, b)), expected)
    assert same_bits(matmul_packed(a, pack(b.T.copy().T), empty(a, b)), expected)


@pytest.mark.parametrize("shape", EDGES + ((70, 600, 130),))
def test_matmul_agrees_with_float64(shape):
    N, K, M = shape
    a, b = random(N, K), random(K, M, seed=1)
    bound = np.abs(a).astype(np.float64) @ np.abs(b)              # of an element's sum, at every step
    assert agrees(matmul(a, b, empty(a, b)), a.astype(np.float64) @ b, K ** 0.5, bound)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(0, 40), st.integers(1, 70), st.data())
def test_matmul_takes_views_of_any_strides(N, K, M, data):
    def view(rows, columns, seed):
        kind = data.draw(st.sampled_from(("plain", "transposed", "every other", "backwards", "part")))
        if kind == "transposed":
            return random(columns, rows, seed=seed).T
        x = random(2 * rows, 2 * columns + 3, seed=seed)
        return {"plain": x[:rows, :columns].copy(), "every other": x[::2, 1:2 * columns:2],
                "backwards": x[:rows, :columns][::-1, ::-1], "part": x[rows:, 3:columns + 3]}[kind]

    a, b = view(N, K, 1), view(K, M, 2) if K else random(0, M)
    assert same_bits(matmul(a, b, empty(a, b)), chain(a, b, np.zeros((N, M), np.float32)))


def test_matmul_writes_into_a_part_of_a_matrix_and_nowhere_else():
    whole, a, b = random(30, 90), random(2 * ROWS + 1, 20), random(20, WIDTH + 5)
    expected = whole.copy()
    expected[4:4 + len(a), 7:12 + WIDTH] = chain(a, b, np.zeros((len(a), WIDTH + 5), np.float32))
    matmul(a, b, whole[4:4 + len(a), 7:12 + WIDTH])
    assert same_bits(whole, expected)


MISMATCHED = {
    "inner": (random(3, 4), random(5, 6), random(3, 6)), "rows of out": (random(3, 4), random(4, 6), random(2, 6)),
    "columns of out": (random(3, 4), random(4, 6), random(3, 7)), "one dimension": (random(4), random(4, 6), random(1, 6)),
    "float64": (random(3, 4).astype(float), random(4, 6), random(3, 6)),
    "float64 out": (random(3, 4), random(4, 6), np.ones((3, 6))),
    "integers": (random(3, 4), np.ones((4, 6), int), random(3, 6)),
    "transposed out": (random(3, 4), random(4, 6), random(6, 3).T),
    "every other column of out": (random(3, 4), random(4, 6), random(3, 12)[:, ::2])}


@pytest.mark.parametrize("a, b, out", MISMATCHED.values(), ids=MISMATCHED)
def test_matmul_refuses_what_it_would_read_or_write_out_of_bounds(a, b, out):
    before = out.copy()
    with pytest.raises(ValueError, match="^matmul (takes|needs) .* but "):
        matmul(a, b, out)
    assert same_bits(out.copy(), before)


@pytest.mark.parametrize("a, b, out", [MISMATCHED[name] for name in (
    "inner", "rows of out", "one dimension", "float64", "float64 out", "transposed out", "every other column of out")])
def test_matmul_packed_refuses_what_it_would_read_or_write_out_of_bounds(a, b, out):
    with pytest.raises(ValueError, match="^matmul_packed takes .* but got"):
        matmul_packed(a, pack(b), out)


@pytest.mark.parametrize("N, K, M", ((3, 0, 40), (0, 5, 40), (3, 5, 0), (0, 0, 0)))
def test_an_empty_product_is_zero_and_adds_nothing(N, K, M):
    a, b, start = random(N, K), random(K, M), random(N, M)
    assert same_bits(matmul(a, b, start.copy(), True), chain(a, b, start))
    assert same_bits(matmul(a, b, empty(a, b)), chain(a, b, np.zeros_like(start)))


@pytest.mark.parametrize("shape", EDGES[2:])
def test_a_row_of_a_product_has_the_same_bits_alone(shape):
    N, K, M = shape
    a, b = random(N, K), random(K, M, seed=1)
    together = matmul(a, b, empty(a, b))
    alone = [matmul(row, b, empty(row, b)) for row in (a[n:n + 1] for n in range(N))]
    assert same_bits(np.concatenate(alone), together)


@pytest.mark.parametrize("N, K, M", ((1, 300, 200), (ROWS, 40, 33), (5 * ROWS - 1, 300, 100)))
@pytest.mark.parametrize("threads", (2, 3, 5))
def test_matmul_has_the_same_bits_however_it_is_shared_out(N, K, M, threads):
    a, b = random(N, K), random(K, M, seed=1)
    shared, before = empty(a, b), get_num_threads()
    matmul_module._matmul(a, b, shared, False, threads)
    try:
        set_num_threads(1)
        assert same_bits(matmul(a, b, empty(a, b)), shared)
        set_num_threads(min(threads, MOST_THREADS))
        assert same_bits(matmul(a, b, empty(a, b)), shared)
    finally:
        set_num_threads(before)


# --- norms ------------------------------------------------------------------------------------------------------------

def layer_norm(x, gain, bias):
    centred = x - x.mean(axis=1, keepdims=True)
    return centred / np.sqrt(np.mean(centred ** 2, axis=1, keepdims=True) + 1e-5) * gain + bias


def rms_norm(x, gain):
    return x / np.sqrt(np.mean(x ** 2, axis=1, keepdims=True) + 1e-5) * gain


EPSILON = np.float32(1e-5)
NORM_SHAPES = [(N, C) for N in (1, 5) for C in LENGTHS]


def layer_norm_forward(x, gain, bias):
    y, mean, rstd = np.empty_like(x), np.empty(len(x), np.float32), np.empty(len(x), np.float32)
    norms.layer_norm_forward(x, gain, bias, EPSILON, y, mean, rstd)
    return y, mean, rstd


@pytest.mark.parametrize("N, C", NORM_SHAPES)
@pytest.mark.parametrize("offset, spread", ((0, 1), (0, 1e-6), (0, 1e8), (300, 1)))
def test_layer_norm_agrees_with_float64(N, C, offset, spread):
    x, gain, bias = offset + random(N, C, size=spread), random(C, seed=1), random(C, seed=2)
    want = layer_norm(x.astype(np.float64), gain, bias)
    # In x - mean, what both have in common is lost: an error of the offset's size, seen in units of the spread.
    assert agrees(layer_norm_forward(x, gain, bias)[0], want, 5, np.abs(want).max() + 4 * offset / spread)


def test_a_row_of_equal_elements_becomes_the_bias():
    bias = random(33, seed=2)
    assert same_bits(layer_norm_forward(np.full((2, 33), 3, np.float32), random(33), bias)[0], np.stack([bias, bias]))


@pytest.mark.parametrize("N, C", NORM_SHAPES)
def test_layer_norm_backward_is_the_slope(N, C):
    x, gain, bias, dy = random(N, C), random(C, seed=1), random(C, seed=2), random(N, C, seed=3)
    _, mean, rstd = layer_norm_forward(x, gain, bias)
    dx, before = np.empty_like(x), random(2, C, seed=4)
    dgain, dbias = before.copy()
    norms.layer_norm_backward(dy, x, gain, mean, rstd, dx, dgain, dbias)
    assert is_slope(dx, lambda x: np.sum(dy * layer_norm(x, gain, bias)), x, 64, np.abs(dy * gain * rstd[:, None]).max())
    x = x.astype(np.float64)
    assert is_slope(dgain - before[0], lambda gain: np.sum(dy * layer_norm(x, gain, bias)), gain, 64)
    assert is_slope(dbias - before[1], lambda bias: np.sum(dy * layer_norm(x, gain, bias)), bias, 64)


@pytest.mark.parametrize("N, C", NORM_SHAPES)
@pytest.mark.parametrize("spread", (1, 1e-6, 1e8))
def test_rms_norm_agrees_with_float64(N, C, spread):
    x, gain, y, rstd = random(N, C, size=spread), random(C, seed=1), np.empty((N, C), np.float32), np.empty(N, np.float32)
    norms.rms_norm_forward(x, gain, EPSILON, y, rstd)
    assert agrees(y, rms_norm(x.astype(np.float64), gain), 5)


@pytest.mark.parametrize("N, C", NORM_SHAPES)
def test_rms_norm_backward_is_the_slope(N, C):
    x, gain, dy = random(N, C), random(C, seed=1), random(N, C, seed=3)
    y, rstd, dx, before = np.empty_like(x), np.empty(N, np.float32), np.empty_like(x), random(C, seed=4)
    dgain = before.copy()
    norms.rms_norm_forward(x, gain, EPSILON, y, rstd)
    norms.rms_norm_backward(dy, x, gain, rstd, dx, dgain)
    assert is_slope(dx, lambda x: np.sum(dy * rms_norm(x, gain)), x, 8, np.abs(dy * gain * rstd[:, None]).max())
    x = x.astype(np.float64)
    assert is_slope(dgain - before, lambda gain: np.sum(dy * rms_norm(x, gain)), gain, 8)


def test_the_rms_norm_of_zeros_is_zero_and_has_a_slope():
    x, gain, dgain = np.zeros((1, 17), np.float32), random(17), np.zeros(17, np.float32)
    y, dx, rstd = np.empty_like(x), np.empty_like(x), np.empty(1, np.float32)
    norms.rms_norm_forward(x, gain, EPSILON, y, rstd)
    norms.rms_norm_backward(np.ones_like(x), x, gain, rstd, dx, dgain)
    assert (y == 0).all() and (dgain == 0).all()
    assert agrees(dx, gain[None] / np.sqrt(1e-5), 8)


# --- softmax and cross-entropy ----------------------------------------------------------------------------------------

@njit
def softmax_of(x, at, count, width, scale, result):
    result[0], result[1] = softmax.softmax_row(x, at, count, width, scale)


@pytest.mark.parametrize("count, width", ((1, 1), (1, 24), (15, 16), (16, 16), (17, 24), (20, 64), (100, 101)))
@pytest.mark.parametrize("size", (1.0, 1e4))
def test_softmax_row_leaves_powers_then_zeros_and_touches_nothing_else(count, width, size):
    x, result, scale = random(width + 40, size=size), np.empty(2, np.float32), np.float32(0.3)
    before = x.copy()
    softmax_of(x, 7, count, width, scale, result)
    scaled = before[7:7 + count] * scale
    assert result[0] == scaled.max()
    assert same_bits(x[7:7 + count], exp(scaled - scaled.max()))
    assert same_bits(x[7 + count:7 + width], np.zeros(width - count, np.float32))
    assert result[1] == lane_order_sum(x[7:7 + width])
    assert same_bits(x[:7], before[:7]) and same_bits(x[7 + width:], before[7 + width:])


def test_softmax_gives_no_weight_to_minus_infinity():
    x, result = np.array([0, -np.inf, 2, -np.inf], np.float32), np.empty(2, np.float32)
    softmax_of(x, 0, 4, 4, ONE, result)
    assert (x > 0).tolist() == [True, False, True, False]
    assert result[0] == 2


def cross_entropy(logits, targets):
    peak = logits.max(axis=1, keepdims=True)
    total = np.exp(logits - peak).sum(axis=1, keepdims=True)
    return np.exp(logits - peak) / total, (np.log(total) + (peak - logits[np.arange(len(logits)), targets, None]))[:, 0]


def forward_cross_entropy(logits, targets):
    probabilities, losses = np.empty_like(logits), np.empty(len(logits), np.float32)
    softmax.cross_entropy_forward(logits, targets, probabilities, losses)
    return probabilities, losses


def logits_and_targets(N, V, size):
    return random(N, V, seed=V, size=size), np.random.default_rng(V).integers(0, V, N)


@pytest.mark.parametrize("V", LENGTHS + (256,))
@pytest.mark.parametrize("size", (1e-3, 1.0, 30.0, 1e4))
def test_cross_entropy_agrees_with_float64(V, size):
    logits, targets = logits_and_targets(20, V, size)
    probabilities, losses = forward_cross_entropy(logits, targets)
    exact, exact_losses = cross_entropy(logits.astype(np.float64), targets)
    # logits - peak is rounded before it becomes a power, so its error is one of the power's relative size.
    distance = logits.max(axis=1, keepdims=True) - logits
    assert agrees(probabilities, exact, 1, exact * (16 + 2 * distance) + 1e-30)
    assert agrees(losses, exact_losses, 8, 1 + exact_losses)


@pytest.mark.parametrize("shift", (100, -1e4))
def test_a_loss_is_as_exact_with_large_logits_as_with_small_ones(shift):
    logits, targets = logits_and_targets(20, 65, 1.0)
    logits = np.round(logits * 256) / np.float32(256)               # so that the shift rounds nothing off
    shifted = logits + np.float32(shift)
    assert same_bits(forward_cross_entropy(shifted, targets)[1], forward_cross_entropy(logits, targets)[1])


@pytest.mark.parametrize("V", LENGTHS)
def test_cross_entropy_backward_is_the_slope(V):
    logits, targets = logits_and_targets(4, V, 2.0)
    probabilities, _ = forward_cross_entropy(logits, targets)
    softmax.cross_entropy_backward(np.float32(0.25), probabilities, targets, probabilities)          # in place
    assert is_slope(probabilities, lambda x: 0.25 * cross_entropy(x, targets)[1].sum(), logits, 4)


# --- attention --------------------------------------------------------------------------------------------------------

def attention(q, k, v, heads, T, scale):
    B, D = len(q) // T, q.shape[1] // heads
    q, k, v = (x.reshape(B, T, heads, D).transpose(0, 2, 1, 3) for x in (q, k, v))                # (B, H, T, D)
    scores = np.where(np.tri(T, dtype=bool), scale * (q @ k.transpose(0, 1, 3, 2)), -np.inf)      # (B, H, T, T)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    out = weights / weights.sum(axis=-1, keepdims=True) @ v
    return out.transpose(0, 2, 1, 3).reshape(B * T, heads * D)


def forward_attention(q, k, v, heads, T, scale):
    out, (peak, total) = np.empty_like(q), np.empty((2, len(q) // T * heads, T), np.float32)
    attention_forward(q, k, v, heads, T, scale, out, peak, total)
    return out, peak, total


def query_key_value(B, T, heads, D, size=1.0):
    return (*(random(B * T, heads * D, seed=s, size=size) for s in (1, 2)), random(B * T, heads * D, seed=3))


def scale_of(D):
    return np.float32(D ** -0.5)


ATTENTION_SHAPES = ((1, 1, 1, 2), (3, 2, 2, 2), (2, 7, 3, 8), (2, 16, 3, 20), (1, QUERY_ROWS, 2, 16),
                    (2, QUERY_ROWS + 1, 1, 20), (1, 33, 1, 17), (1, 2 * QUERY_ROWS + 1, 2, 32))          # B, T, heads, D


@pytest.mark.parametrize("B, T, heads, D", ATTENTION_SHAPES)
@pytest.mark.parametrize("size", (1e-3, 1.0, 30.0))            # 30: scores of some thousands
def test_attention_agrees_with_float64(B, T, heads, D, size):
    q, k, v = query_key_value(B, T, heads, D, size)
    out, _, _ = forward_attention(q, k, v, heads, T, scale_of(D))
    want = attention(*(x.astype(np.float64) for x in (q, k, v)), heads, T, np.float64(scale_of(D)))
    # A weight's relative error is its score's absolute one: of sqrt(D) additions of |q||k| scale / sqrt(D) each.
    score = size ** 2 * D ** 0.5
    assert agrees(out, want, 4 + score, np.abs(v).max())


@pytest.mark.parametrize("B, T, heads, D", ATTENTION_SHAPES)
def test_attention_backward_is_the_slope(B, T, heads, D):
    scale, (q, k, v), dout = scale_of(D), query_key_value(B, T, heads, D), random(B * T, heads * D, seed=4)
    out, peak, total = forward_attention(q, k, v, heads, T, scale)
    dq, dk, dv = np.full((3, *q.shape), np.nan, np.float32)
    attention_backward(dout, q, k, v, out, peak, total, heads, T, scale, dq, dk, dv)
    exact = [x.astype(np.float64) for x in (q, k, v)]
    for i, gradient in enumerate((dq, dk, dv)):
        def loss(x):
            return np.sum(dout * attention(*exact[:i], x, *exact[i + 1:], heads, T, np.float64(scale)))
        assert is_slope(gradient, loss, exact[i], 16)
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize("T", (1, 7, QUERY_ROWS - 1, QUERY_ROWS, QUERY_ROWS + 1, 2 * QUERY_ROWS))
def test_attention_to_a_beginning_has_the_bits_of_attention_to_the_whole(T):
    whole, heads, D = 2 * QUERY_ROWS + 1, 2, 20
    q, k, v = query_key_value(1, whole, heads, D)
    out, peak, total = forward_attention(q, k, v, heads, whole, scale_of(D))
    beginning = forward_attention(*(x[:T].copy() for x in (q, k, v)), heads, T, scale_of(D))
    for part, all_of_it in zip(beginning, (out[:T], peak[:, :T].copy(), total[:, :T].copy())):
        assert same_bits(part, all_of_it)


def attention_token_by_token(q, k, v, heads, T, scale):
    B, D, out = len(q) // T, q.shape[1] // heads, np.empty_like(q)
    held, one = hold_floats(1, B, heads, T, D), np.empty((B, heads * D), np.float32)
    for t in range(T):
        for pair in range(B * heads):
            attend_one(*(x[t::T].copy() for x in (q, k, v)), held, 0, 0, pair // heads, pair % heads, t, scale, one)
        out[t::T] = one
    return out


@pytest.mark.parametrize("B, T, heads, D", ATTENTION_SHAPES + ((1, DEPTH + 20, 1, 8),))
def test_attention_token_by_token_has_the_bits_of_attention_to_the_window(B, T, heads, D):
    arguments = (*query_key_value(B, T, heads, D), heads, T, scale_of(D))
    assert same_bits(attention_token_by_token(*arguments), forward_attention(*arguments)[0])


def test_a_sum_that_vanishes_is_the_same_zero_token_by_token():
    T, D = 2 * QUERY_ROWS + 1, 8
    q, k, v = query_key_value(1, T, 1, D)
    q[:], k[0] = 1, 4                                   # the first token weighs most, all others below one half:
    v[:] = np.copysign(np.float32(1e-45), v)            # half of the smallest number is 0, of either sign,
    v[0] = 0                                            # and the next product, even with weight 0, may turn it
    out, _, _ = forward_attention(q, k, v, 1, T, scale_of(D))
    assert (out == 0).all()
    assert same_bits(attention_token_by_token(q, k, v, 1, T, scale_of(D)), out)


# --- element by element -----------------------------------------------------------------------------------------------

def relu(x):
    return np.maximum(x, 0)


def squared_relu(x):
    return np.maximum(x, 0) ** 2


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x ** 3)))


ACTIVATIONS = {relu: (activations.relu_forward, activations.relu_backward),
               squared_relu: (activations.squared_relu_forward, activations.squared_relu_backward),
               gelu: (activations.gelu_forward, activations.gelu_backward)}
SIZES = (0, 1, 15, 16, 17, 4095, 4096, 4097, 9000)
activations = pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda f: f.__name__)


@pytest.mark.parametrize("size", SIZES)
@activations
def test_an_activation_agrees_with_float64(activation, size):
    forward, _ = ACTIVATIONS[activation]
    x, y = random(size, size=3.0), np.full(size, np.nan, np.float32)
    forward(x, y)
    exact = x.astype(np.float64)
    # A rounding of u counts |2u| times in e^(-2u).  1e-8: what float64 loses in 1 + tanh(u), times 2^24.
    u = np.sqrt(2 / np.pi) * np.abs(exact) * (1 + 0.044715 * exact ** 2)
    assert agrees(y, activation(exact), 1, np.abs(activation(exact)) * (6 + 12 * u) + 1e-8)


@activations
def test_an_activation_of_extreme_values(activation):
    x = np.array([0, -0.0, 1e-15, -1e-15, 1e4, -1e4, 1e15, -1e15], np.float32)
    y = np.empty_like(x)
    ACTIVATIONS[activation][0](x, y)
    want = activation(x.astype(np.float64))
    assert agrees(y, want, 4, np.abs(want) + 1e-15 * (x < -1))


@pytest.mark.parametrize("size", SIZES[1:])
@activations
def test_an_activation_backward_is_the_slope(activation, size):
    x, dy, dx = random(size, size=3.0), random(size, seed=1), np.empty(size, np.float32)
    x[np.abs(x) < 1e-3] = 1                                              # ReLU has a corner at 0
    ACTIVATIONS[activation][1](dy, x, dx)
    for start in range(0, size, 4080):                                   # places before, at and after a chunk's edge
        part = slice(start, start + 40)
        assert is_slope(dx[part], lambda x: np.sum(dy[part] * activation(x)), x[part], 24)
    in_place = dy.copy()
    ACTIVATIONS[activation][1](in_place, x, in_place)
    assert same_bits(in_place, dx)


@pytest.mark.parametrize("size", (1e3, 1e6, 9e11))
def test_the_slope_of_gelu_far_from_zero_is_one_or_nothing(size):
    x, dx = np.array([size, -size], np.float32), np.empty(2, np.float32)
    ACTIVATIONS[gelu][1](np.ones(2, np.float32), x, dx)
    assert dx[0] == 1 and abs(dx[1]) < 1e-2


def test_relu_is_flat_at_zero():
    x, dy, dx = np.array([0, -0.0], np.float32), np.ones(2, np.float32), np.empty(2, np.float32)
    for _, backward in (ACTIVATIONS[relu], ACTIVATIONS[squared_relu]):
        backward(dy, x, dx)
        assert (dx == 0).all()


@pytest.mark.parametrize("N, C", [(1, 1), (3, 17), (40, 33)])
def test_a_sum_of_arrays_is_rounded_element_by_element_and_may_overwrite_one(N, C):
    x, y = random(N, C), random(N, C, seed=1)
    x[0, 0], y[0, 0] = np.float32(2.0 ** -149), -0.0
    expected, out = x + y, np.empty_like(x)
    assert elementwise.add(x, y, out) is out and same_bits(out, expected)
    assert same_bits(elementwise.add(x, y, x), expected)


@pytest.mark.parametrize("size", SIZES)
def test_a_mask_scales_what_it_keeps_and_drops_even_nan(size):
    x, keep = random(size), (np.arange(size) % 3 > 0).astype(np.uint8)
    x[keep == 0] = np.nan
    expected = np.where(keep, np.float32(1.25) * x, ZERO)
    elementwise.apply_mask(x, keep, np.float32(1.25), x)                 # in place
    assert same_bits(x, expected)


# --- rotary positions -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("positions, D", ((1, 2), (64, 32), (300, 20), (512, 64)))
def test_rotary_tables_hold_the_cosines_and_sines_of_the_paper(positions, D):
    angle = np.outer(np.arange(positions), 10000.0 ** (-2 * np.arange(D // 2) / D))
    cosine, sine = rotary_tables(positions, D)
    assert error_in_last_places(cosine, np.cos(angle)).max() <= 1
    assert error_in_last_places(sine[1:], np.sin(angle[1:])).max(initial=0) <= 1
    assert (sine[0] == 0).all()


def rotated(x, T, heads, first=0, backwards=False):
    D, y = x.shape[1] // heads, np.empty_like(x)
    cosine, sine = (table[first:].copy() for table in rotary_tables(first + T, D))
    rotary.rotate(x, cosine, -sine if backwards else sine, T, heads, y)
    return y


HEADS = ((1, 2), (3, 8), (2, 20), (1, 32), (2, 34), (1, 66))


@pytest.mark.parametrize("heads, D", HEADS)
@pytest.mark.parametrize("first", (0, 5))
def test_rotate_turns_each_pair_by_its_angle_and_rounds_each_operation(heads, D, first):
    B, T = 2, 7
    x = random(B * T, heads * D)
    cosine, sine = (t[first:, None] for t in rotary_tables(first + T, D))            # (T, 1, D / 2)
    pairs = x.reshape(B, T, heads, 2, D // 2)
    a, b = pairs[:, :, :, 0], pairs[:, :, :, 1]
    expected = np.stack([a * cosine - b * sine, a * sine + b * cosine], axis=3)
    assert same_bits(rotated(x, T, heads, first), expected.reshape(x.shape))


@pytest.mark.parametrize("heads, D", HEADS)
def test_rotate_keeps_lengths_and_is_undone_by_the_negative_sine(heads, D):
    x = random(60, heads * D)
    y = rotated(x, 30, heads)
    lengths = [np.linalg.norm(v.reshape(60, heads, D).astype(np.float64), axis=2) for v in (x, y)]
    assert agrees(lengths[1], lengths[0], 4)
    assert agrees(rotated(y, 30, heads, backwards=True), x, 6)


def test_rotated_queries_and_keys_meet_at_an_angle_of_their_distance_alone():
    T, D = 40, 32
    q, k = (rotated(np.tile(random(D, seed=s), (T, 1)), T, 1).astype(np.float64) for s in (1, 2))
    scores = q @ k.T
    for distance in range(T):
        diagonal = np.diagonal(scores, -distance)
        assert agrees(diagonal, np.full_like(diagonal, diagonal[0]), 2, np.abs(q[0]) @ np.abs(k[0]))


# --- AdamW ------------------------------------------------------------------------------------------------------------

def adamw_steps(dtype, size, steps):
    """The weights after each step, by the formula of the paper, with every number in dtype."""
    clip, rate, decay, beta1, beta2, epsilon = (dtype(np.float32(v)) for v in (0.5, 0.01, 0.999, 0.9, 0.99, 0.125))
    weight, mean, square = random(size).astype(dtype), np.zeros(size, dtype), np.zeros(size, dtype)
    for step in range(steps):
        g = clip * random(size, seed=step + 1).astype(dtype)
        mean = beta1 * mean + (dtype(1) - beta1) * g
        square = beta2 * square + (dtype(1) - beta2) * (g * g)
        correction1, correction2 = (dtype(np.float32(1 / (1 - beta ** (step + 1)))) for beta in (0.9, 0.99))
        weight = decay * weight - rate * (mean * correction1 / (np.sqrt(square * correction2) + epsilon))
    return weight


def adamw_kernel(size, steps):
    weight, mean, square = random(size), np.zeros(size, np.float32), np.zeros(size, np.float32)
    for step in range(steps):
        corrections = (1 / (1 - beta ** (step + 1)) for beta in (0.9, 0.99))
        elementwise.adamw(weight, random(size, seed=step + 1), mean, square,
                          *map(np.float32, (0.5, 0.01, 0.999, 0.9, 0.99, *corrections, 0.125)))
    return weight


@pytest.mark.parametrize("size", (1, 17, 5000))
def test_ten_steps_of_adamw_agree_with_float64(size):
    assert agrees(adamw_kernel(size, 10), adamw_steps(np.float64, size, 10), 8)      # of 20 roundings, some of each sign


@pytest.mark.parametrize("size", (1, 17, 5000))
def test_adamw_rounds_each_operation(size):
    assert same_bits(adamw_kernel(size, 10), adamw_steps(np.float32, size, 10))

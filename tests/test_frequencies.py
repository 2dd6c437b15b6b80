"""Logits to integers: the definition in float64, its bounds, and what it costs against the exact probabilities."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coder.frequencies import BITS, to_frequencies
from coder.range_coder import LARGEST_TOTAL

ONE = 2 ** BITS
WIDTHS = 1, 2, 15, 16, 17, 65, 256, 257, 1000
INFINITY, NAN = np.inf, np.nan


def frequencies_of(*row):
    return to_frequencies(np.array([row], np.float32))[0].tolist()


def random_logits(shape, spread=3.0, seed=0):
    return np.random.default_rng(seed).normal(0, spread, shape).astype(np.float32)


# --- the definition ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("spread", [0.01, 1, 5, 30, 1000])
@pytest.mark.parametrize("V", WIDTHS)
def test_frequencies_follow_their_definition(V, spread):
    """f = floor(e * 2^BITS) + 1, where e may be off by exp's unit in the last place."""
    logits = random_logits((20, V), spread)
    differences = logits - logits.max(axis=1, keepdims=True)                # one rounding, in float32
    e = np.exp(differences.astype(np.float64))
    f = to_frequencies(logits)
    assert (f >= np.floor(e * (1 - 2.0 ** -23) * ONE) + 1).all()
    assert (f <= np.floor(e * (1 + 2.0 ** -23) * ONE) + 1).all()


@pytest.mark.parametrize("V", WIDTHS)
def test_the_likeliest_symbol_gets_the_most_there_is(V):
    logits = random_logits((20, V))
    f = to_frequencies(logits)
    assert (f.max(axis=1) == ONE + 1).all()
    assert (f[np.arange(20), logits.argmax(axis=1)] == ONE + 1).all()


def test_a_likelier_symbol_never_gets_less():
    logits = np.sort(random_logits((50, 256), 8))
    assert (np.diff(to_frequencies(logits).astype(np.int64), axis=1) >= 0).all()


def test_the_type_is_what_the_range_coder_takes():
    f = to_frequencies(random_logits((3, 256)))
    assert f.dtype == np.uint32 and f.shape == (3, 256)


def test_no_rows_give_no_rows():
    assert to_frequencies(np.empty((0, 256), np.float32)).shape == (0, 256)


# --- bounds -----------------------------------------------------------------------------------------------------------

anything = st.floats(width=32) | st.sampled_from([-1e4, 1e4, 0.0, -0.0, -INFINITY, INFINITY, NAN, 3e38, -3e38, 1e-45])


@settings(deadline=None)
@given(st.lists(anything, min_size=1, max_size=300))
def test_whatever_the_logits_every_symbol_can_be_coded(row):
    f = frequencies_of(*row)
    assert 1 <= min(f) and max(f) <= ONE + 1


def test_the_sum_of_256_equal_ones_fits_the_range_coder():
    assert sum(frequencies_of(*[1e4] * 256)) == 256 * (ONE + 1) <= LARGEST_TOTAL


@pytest.mark.parametrize("row, expected", [
    ([1e4, -1e4], [ONE + 1, 1]),
    ([1e4, 1e4], [ONE + 1, ONE + 1]),
    ([-1e4] * 3, [ONE + 1] * 3),
    ([-1e4, -1e4 - np.log(4), -2e4], [ONE + 1, pytest.approx(ONE / 4 + 1, rel=1e-3), 1]),       # float32 near 10,000: 0.001
    ([0.0, -0.0], [ONE + 1, ONE + 1]),
    ([0.0, -14.5], [ONE + 1, 3]),                       # e^-14.5 * 2^22 = 2.1
    ([0.0, -15.0], [ONE + 1, 2]),                       # 1.3
    ([0.0, -15.5], [ONE + 1, 1]),                       # 0.8
    ([0.0, -86.9, -87.1, -200.0], [ONE + 1, 1, 1, 1]),
    ([0.0, -INFINITY], [ONE + 1, 1]),
    ([-INFINITY, -INFINITY], [1, 1]),
])
def test_extreme_logits(row, expected):
    assert frequencies_of(*row) == expected


@pytest.mark.parametrize("at", [0, 1, 15, 16, 255])
def test_a_nan_counts_as_minus_infinity(at):
    logits = random_logits((1, 256))
    logits[0, at] = -INFINITY
    expected = to_frequencies(logits)
    logits[0, at] = NAN
    assert (to_frequencies(logits) == expected).all()


def test_nothing_but_nan_is_as_good_as_equal():
    assert frequencies_of(*[NAN] * 256) == [1] * 256


def test_an_infinite_logit_still_lets_every_symbol_be_coded():
    assert min(frequencies_of(INFINITY, 0.0, INFINITY, -INFINITY)) == 1


# --- a row among others -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("V", WIDTHS)
def test_a_row_has_the_same_frequencies_alone_and_among_others(V):
    logits = random_logits((7, V))
    logits[3] = NAN
    f = to_frequencies(logits)
    for i in range(7):
        assert (to_frequencies(logits[i:i + 1])[0] == f[i]).all()


@pytest.mark.parametrize("V", [5, 16, 256])
def test_the_same_logits_higher_up_give_the_same_frequencies(V):
    logits = np.round(random_logits((9, V)) * 64) / 64                      # so that adding 32 is exact
    assert (to_frequencies(logits.astype(np.float32)) == to_frequencies((logits + 32).astype(np.float32))).all()


@pytest.mark.parametrize("view", [
    lambda x: x[:, ::2], lambda x: x[::3], lambda x: x[:, 5:69], lambda x: x.T, lambda x: np.asfortranarray(x),
    lambda x: np.broadcast_to(x[0], x.shape), lambda x: x.reshape(4, 3, 128)[:, -1]])
def test_a_view_has_the_frequencies_of_a_copy(view):
    logits = view(random_logits((12, 128)))
    assert (to_frequencies(logits) == to_frequencies(np.array(logits, order="C"))).all()


@pytest.mark.parametrize("logits", [
    np.zeros((2, 3)), np.zeros((2, 3), np.int32), np.zeros((2, 3), ">f4"), np.zeros(3, np.float32),
    np.zeros((2, 3, 4), np.float32)], ids=lambda logits: f"{logits.dtype} {logits.shape}")
def test_logits_of_another_type_or_shape_are_refused(logits):
    with pytest.raises(ValueError, match=r"logits must be \(N, V\) of float32, not "):
        to_frequencies(logits)


# --- what it costs ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("spread", [0.5, 2, 4])
def test_coding_by_frequencies_costs_at_most_a_5000th_more_than_by_the_exact_probabilities(spread):
    logits = random_logits((2000, 256), spread).astype(np.float64)
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    f = to_frequencies(logits.astype(np.float32)).astype(np.float64)
    exact = -(p * np.log2(p)).sum()                                         # the expected bits, symbols drawn from p
    coded = -(p * np.log2(f / f.sum(axis=1, keepdims=True))).sum()
    assert exact <= coded < 1.0002 * exact


def test_a_certain_symbol_costs_less_than_a_10000th_of_a_bit():
    f = frequencies_of(0.0, *[-1e4] * 255)
    assert np.log2(sum(f) / f[0]) < 0.0001

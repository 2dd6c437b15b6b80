"""Exact arithmetic coding: the examples of its docstring, and what must hold for any model."""

import doctest
from fractions import Fraction
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coder import intervals
from coder.intervals import WHOLE, bits, decode, interval, narrow, shares, shortest_code, steps

AB = {"A": Fraction("0.6"), "B": Fraction("0.4")}


def F(*numbers):
    return tuple(map(Fraction, numbers))


@st.composite
def models(draw, symbols="abc"):
    """A model that heeds the last symbol and the position; probabilities from even to very uneven."""
    weights = draw(st.lists(st.tuples(*[st.integers(1, 9) | st.just(10 ** 6)] * len(symbols)), min_size=4, max_size=4))

    def model(past):
        row = weights[(len(past) + sum(map(ord, past[-1:]))) % len(weights)]
        return {symbol: Fraction(weight, sum(row)) for symbol, weight in zip(symbols, row)}
    return model


def cylinder(code):
    return Fraction(int("0" + code, 2), 2 ** len(code)), Fraction(int("0" + code, 2) + 1, 2 ** len(code))


def test_the_docstring_tells_the_truth():
    assert doctest.testmod(intervals) == (0, 7)


def test_AB_owns_the_numbers_from_36_to_60_hundredths():
    AB_interval = interval("AB", lambda past: AB)
    assert AB_interval == F("0.36", "0.6")
    assert cylinder("011") == F("0.375", "0.5") and shortest_code(AB_interval) == "011"
    assert cylinder("1") == F("0.5", "1") and shortest_code(AB_interval, complete=False) == "1"


def test_shares_from_the_bottom_multiply():
    taken = F("0.5", "0.7", "0.4")
    low, high = interval("xxx", lambda past: {"x": taken[len(past)], "other": 1 - taken[len(past)]})
    assert (low, high) == F("0", "0.14") and round(bits(high - low), 2) == 2.84


def test_a_share_may_be_taken_from_any_side():
    lower = narrow(WHOLE, *F("0", "0.4"))
    upper_of_it = narrow(lower, *F("0.4", "1"))
    assert upper_of_it == F("0.16", "0.4")
    assert narrow(upper_of_it, *F("0", "0.8")) == F("0.16", "0.352")


def test_decoding_stretches_the_share_to_the_whole():
    x = Fraction("0.02113")
    assert (x - 0) / (Fraction("0.05") - 0) == Fraction("0.4226")
    second = {"below": Fraction("0.4226"), "at": Fraction("0.0001"), "above": Fraction("0.5773")}
    code = format(int(x * 2 ** 40) + 1, "040b")             # just above x
    assert decode(code, 2, lambda past: second if past else dict(zip("pq", F("0.05", "0.95")))) == ("p", "at")


@given(models(), st.integers(0, 4))
def test_sequences_of_one_length_never_overlap_and_leave_no_gap(model, length):
    owned = sorted(interval(sequence, model) for sequence in product("abc", repeat=length))
    assert owned[0][0] == 0 and owned[-1][1] == 1
    assert all(low < high for low, high in owned)
    assert all(left[1] == right[0] for left, right in zip(owned, owned[1:]))


@given(models(), st.text("abc", max_size=20), st.text("01", max_size=20))
def test_a_complete_code_may_be_followed_by_anything(model, sequence, rest):
    code = shortest_code(interval(sequence, model))
    assert decode(code + rest, len(sequence), model) == tuple(sequence)


@given(models(), st.text("abc", max_size=20), st.integers(0, 20))
def test_a_pointing_code_may_be_followed_by_zeros(model, sequence, zeros):
    code = shortest_code(interval(sequence, model), complete=False)
    assert decode(code + "0" * zeros, len(sequence), model) == tuple(sequence)


def test_a_pointing_code_may_not_be_followed_by_a_one():
    assert decode("1", 2, lambda past: AB) == tuple("AB")
    assert decode("11", 2, lambda past: AB) == tuple("BA")


@given(models(), st.integers(1, 3))
def test_no_complete_code_begins_another(model, length):
    codes = sorted(shortest_code(interval(sequence, model)) for sequence in product("abc", repeat=length))
    assert not any(right.startswith(left) for left, right in zip(codes, codes[1:]))


@given(models(), st.text("abc", max_size=6))
def test_no_shorter_code_would_do(model, sequence):
    low, high = interval(sequence, model)
    for complete in True, False:
        n = len(shortest_code((low, high), complete))
        for k in range(2 ** (n - 1)) if 0 < n <= 12 else ():
            code = format(k, f"0{n - 1}b") if n > 1 else ""
            start, end = cylinder(code)
            assert not (low <= start and (end <= high if complete else start < high))


@given(models(), st.text("abc", max_size=50))
def test_a_code_is_as_long_as_its_sequence_is_unlikely(model, sequence):
    low, high = owned = interval(sequence, model)
    ideal = bits(high - low)
    assert ideal == pytest.approx(sum(bits(probability) for _, probability, _ in steps(sequence, model)))
    assert ideal <= len(shortest_code(owned)) + 1e-9 and len(shortest_code(owned)) < ideal + 2
    assert len(shortest_code(owned, complete=False)) < ideal + 1


def test_the_cost_of_something_tiny_is_no_error():
    assert bits(Fraction(1, 2) ** 5000) == 5000


def test_a_symbol_without_probability_is_an_error():
    with pytest.raises(ValueError, match="no probability to 'C', symbol 1"):
        interval("AC", lambda past: AB)


@pytest.mark.parametrize("wrong", [{}, {"A": 0.6, "B": 0.3}, {"A": 0.1, "B": 0.9}, {"A": 1, "B": 0}, {"A": 2, "B": -1}])
def test_probabilities_must_be_positive_and_sum_to_one(wrong):
    with pytest.raises(ValueError, match="sum to exactly 1"):
        shares(wrong)

"""The counting models: what they write they read, they are what their formula says, and context pays."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coder.baselines import LARGEST_COUNT, ORDERS, _predict, compress, decompress
from coder.intervals import bits


def text(words, seed):
    """Sentences of words that sound alike but repeat at random."""
    rng = np.random.default_rng(seed)
    syllables = "ba ce di fo gu lan men sor tin pul ar es".split()
    vocabulary = ["".join(rng.choice(syllables, rng.integers(1, 4))) for _ in range(200)]
    return (" ".join(rng.choice(vocabulary, words)) + ".\n").encode()


def specified_bits(data, order):
    """The code length by the formula, in fractions and dictionaries, where no count reaches LARGEST_COUNT."""
    counts, total = {}, 0
    for i, byte in enumerate(data):
        past, share = b"\0\0" + data[:i], Fraction(1, 256)
        contexts = [past[len(past) - k:] for k in range(order + 1)]
        for context in contexts:
            seen = counts.setdefault(context, {})
            if seen:
                n, distinct = sum(seen.values()), len(seen)
                share = (seen.get(byte, 0) + distinct * share) / (n + distinct)
        for context in contexts:
            counts[context][byte] = counts[context].get(byte, 0) + 1
        total += bits(share)
    return total


CASES = {
    "nothing": b"", "one byte": b"x", "one zero": b"\0", "all bytes": bytes(range(256)),
    "all bytes downwards": bytes(range(255, -1, -1)) * 3,
    "one byte repeated until its counts halve": b"a" * (5 * LARGEST_COUNT), "two in turn": b"ab" * 4000, "text": text(1000, 0),
    "noise": np.random.default_rng(1).bytes(5000)}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("data", CASES.values(), ids=CASES)
def test_what_was_compressed_comes_back(data, order):
    assert decompress(compress(data, order), len(data), order) == data


@settings(deadline=None)
@given(st.binary(max_size=300), st.sampled_from(ORDERS))
def test_any_bytes_come_back(data, order):
    assert decompress(compress(data, order), len(data), order) == data


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", ["text", "noise", "all bytes"])
def test_the_code_is_as_long_as_the_formula_says(name, order):
    data = CASES[name][:1500]
    assert 8 * len(compress(data, order)) == pytest.approx(specified_bits(data, order), rel=1e-4, abs=9)


@pytest.mark.parametrize("orders", [1, 2, 3])
def test_the_frequencies_are_the_shares_of_the_formula(orders):
    rng = np.random.default_rng(3)
    counts = (rng.integers(1, 5, (5, 256)) * (rng.random((5, 256)) < rng.random((5, 1)) ** 3)).astype(np.uint16)
    counts[4] = 0                                           # a context that was never met
    rows, frequencies = rng.permutation(5)[:orders], np.empty(256, np.int64)
    total, shares = _predict(counts, rows, frequencies), [Fraction(1, 256)] * 256
    for row in counts[rows].tolist():
        n, distinct = sum(row), sum(map(bool, row))
        shares = [(c + distinct * share) / (n + distinct) for c, share in zip(row, shares)] if n else shares
    assert total == frequencies.sum() and frequencies.min() >= 1
    assert [f / total for f in frequencies.tolist()] == pytest.approx([float(share) for share in shares], rel=1e-3)


def test_on_text_every_order_beats_the_one_below():
    sizes = [len(compress(text(5000, 2), order)) for order in ORDERS]
    assert sizes[0] > 1.2 * sizes[1] and sizes[1] > 1.1 * sizes[2]


def test_what_repeats_costs_next_to_nothing():
    assert len(compress(b"a" * 100_000, 0)) < 120


def test_noise_grows_by_little():
    noise = CASES["noise"]
    assert len(compress(noise, 0)) < 1.02 * len(noise) and len(compress(noise, 2)) < 1.12 * len(noise)


def test_the_format_stays_as_it_is():
    assert compress(b"abracadabra, abracadabra", 2).hex() == "61b15c45f42b1aece4833e"


def test_a_cut_off_code_is_an_error_or_has_the_right_length():
    data, short = CASES["text"][:300], 0
    code = compress(data, 2)
    for cut in range(len(code)):
        try:
            assert len(decompress(code[:cut], len(data), 2)) == len(data)
        except ValueError as error:
            assert "ends too early" in str(error)
            short += 1
    assert short > 0.9 * len(code)


@settings(deadline=None)
@given(st.binary(max_size=100), st.integers(0, 50), st.sampled_from(ORDERS))
def test_any_code_gives_bytes_or_a_clear_error(code, length, order):
    try:
        assert len(decompress(code, length, order)) == length
    except ValueError as error:
        assert "ends too early" in str(error)


@pytest.mark.parametrize("order", [-1, 3, "2"])
def test_an_unknown_order_is_an_error(order):
    with pytest.raises(ValueError, match="order must be one of"):
        compress(b"", order)
    with pytest.raises(ValueError, match="order must be one of"):
        decompress(b"", 0, order)

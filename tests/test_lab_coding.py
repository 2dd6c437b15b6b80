"""The laboratory's experiments on coding: worked examples, Huffman, avalanche, backwards, sense."""

import doctest
import re
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coder import tokens
from coder.codec import encode_block
from coder.intervals import bits, shortest_code
from coder.lab import avalanche, backwards, channel, huffman, material, sense, worked
from coder.predictor import Predictor
from coder.range_coder import Encoder
from coder.verify import LICENSE
from minigpt.model import GPT
from tests.golden_coder import TINY, taught

TEXT = b"".join(b"Licence %d. The software is provided as it is, without warranty of any kind.\n" % i for i in range(300))


@pytest.fixture
def small(monkeypatch, tmp_path):
    """The path of a text; and a small model in place of the bundled one, and no SmolLM2."""
    monkeypatch.setattr(material, "bundled", taught)
    monkeypatch.setattr(material, "smollm2", lambda: None)
    (tmp_path / "text").write_bytes(TEXT)
    return str(tmp_path / "text")


@pytest.fixture(scope="module")
def smollm2():
    return material.smollm2() or pytest.skip("SmolLM2 is not cached")


# --- worked -----------------------------------------------------------------------------------------------------------

def test_the_worked_examples_are_true():
    failed, attempted = doctest.testmod(worked)
    assert failed == 0 and attempted >= 10


def test_every_worked_example_has_the_interval_and_the_code_that_was_computed_by_hand(capsys):
    owned = {name: tuple(map(str, map(float, pair))) for name, pair in worked.run().items()}
    assert owned == {"cat eats fish": ("0.0", "0.14"), "人工智能将": ("0.0", "0.024"), "W1 W2 W3": ("0.16", "0.352"),
                     "AB": ("0.36", "0.6"), "a narrow interval": ("0.3654321", "0.3654343")}
    said = capsys.readouterr().out
    for code in "000 (3)", "0011 (4)", "011 (3)", "0101110110001101 (16)", "01011101100011010000 (20)":
        assert code in said


def test_a_narrow_interval_takes_19_bits_or_20():
    low, high = worked.NARROW
    assert 18 < bits(high - low) <= 19 and len(shortest_code((low, high))) == 20


def test_a_number_is_read_in_binary():
    assert worked.number("00010101") == Fraction(21, 256)


# --- huffman ----------------------------------------------------------------------------------------------------------

weights = st.lists(st.integers(1, 9) | st.integers(1, 2 ** 22), min_size=2, max_size=40)


def expected_length(weights, lengths):
    return Fraction(sum(int(w) * int(n) for w, n in zip(weights, lengths)), sum(weights))


@pytest.mark.parametrize("weights, length", [((40, 20, 20, 10, 10), "2.2"), ((1, 1, 1), "5/3"), ((4, 2, 1, 1), "1.75"),
                                             ((9999, 1), "1")])
def test_a_huffman_code_has_the_length_of_the_textbook(weights, length):
    assert expected_length(weights, huffman.code_lengths(np.array(weights))) == Fraction(length)


@given(st.lists(st.integers(1, 30), min_size=2, max_size=5))
def test_no_prefix_free_code_is_shorter(weights):
    V = len(weights)
    best = min(expected_length(weights, lengths) for lengths in product(range(1, V), repeat=V)
               if sum(Fraction(1, 2 ** n) for n in lengths) <= 1) if V > 2 else 1
    assert expected_length(weights, huffman.code_lengths(np.array(weights))) == best


@given(weights)
def test_huffman_lies_between_the_entropy_and_one_bit_more(weights):
    p = np.array(weights) / sum(weights)
    H, L = -(p * np.log2(p)).sum(), float(expected_length(weights, huffman.code_lengths(np.array(weights))))
    assert H - 1e-12 <= L < H + 1


@given(st.lists(st.integers(0, 9), min_size=2, max_size=12))
def test_of_dyadic_probabilities_huffman_is_the_entropy(path):
    weights = [1]                                           # of 2^k in all, by splitting one leaf after the other in two
    for choice in path:
        i = choice % len(weights)
        weights = [2 * w for w in weights]
        weights[i:i + 1] = [weights[i] // 2] * 2
    lengths = huffman.code_lengths(np.array(weights))
    assert all(w << int(n) == sum(weights) for w, n in zip(weights, lengths))


@given(weights)
def test_a_canonical_code_is_complete_and_no_word_begins_another(weights):
    lengths = huffman.code_lengths(np.array(weights))
    words = sorted(huffman.codewords(lengths))
    assert [len(word) for word in huffman.codewords(lengths)] == lengths.tolist()
    assert sum(Fraction(1, 2 ** len(word)) for word in words) == 1
    assert not any(right.startswith(left) for left, right in zip(words, words[1:]))


def test_huffman_codes_a_text_and_loses_to_arithmetic_coding(small, capsys):
    results = huffman.run(small, size=600)
    assert (results.expected > results.entropy - 1e-9).all() and (results.expected < results.entropy + 1).all()
    assert results.huffman.min() == 1 and len(results.huffman) == 600
    said = capsys.readouterr().out
    assert "at 100.00% of the positions" in said and f"{results.huffman.sum() / 600:.4f}" in said
    assert results.huffman.sum() > results.ideal.sum() > 0


def test_the_frequencies_are_those_of_the_coder():
    """One stream, through several windows: a code made of them is the code of encode_block."""
    data, encoder = TEXT[:100], Encoder()
    encoder.encode(material.frequencies(taught(), data), np.frombuffer(data, np.uint8))
    assert encoder.finish() == encode_block(Predictor(taught()), data)


# --- avalanche --------------------------------------------------------------------------------------------------------

def test_a_flip_is_one_bit():
    flipped = avalanche.flip(TEXT, 1001)
    assert [i for i in range(len(TEXT)) if flipped[i] != TEXT[i]] == [125] and flipped[125] ^ TEXT[125] == 2
    assert avalanche.flip(flipped, 1001) == TEXT


@pytest.mark.slow
def test_one_wrong_bit_is_one_byte_of_a_text_and_all_of_what_follows_in_a_code(small, capsys):
    results = avalanche.run(small, size=2300, flips=3, block_bits=10)
    assert (results["the text itself"].sum(1) == 2299).all()
    for name in "fast, checks off", "static, checks off":
        assert results[name].mean() < 0.8
    assert not results["static"].any() and not results["gzip -9"].any()
    assert re.search(r"^\| static +\| +[\d,]+ \| +0 \| +0 \|$", capsys.readouterr().out, re.M)        # all refused


def test_salvage_loses_the_block_with_the_wrong_bit():
    text = TEXT[:2400]
    method = next(m for m in avalanche.methods(text, taught(), 10) if "--salvage" in m.name)
    damaged = method.decode(avalanche.flip(method.file, 8 * len(method.file) - 1))
    assert damaged == (text[:2048] + bytes(352), True)
    assert method.decode(avalanche.flip(method.file, 0)) == (bytes(2400), True)         # the header takes the whole file


def test_what_comes_before_the_wrong_bit_is_right():
    text = LICENSE[:900]
    for method in avalanche.methods(text, taught(), 10):
        if "off" in method.name:
            damaged = method.decode(avalanche.flip(method.file, 8 * len(method.file) - 32))     # in one of its last bytes
            assert damaged.data[:700] == text[:700] and damaged.data != text, method.name


def test_parity_mends_any_wrong_bit():
    text = LICENSE[:900]
    method = avalanche.methods(text, taught(), 10)[-1]
    assert method.name == channel.PROTECTED and avalanche.all_flips(method, text) == (8 * len(method.file), 0)


def test_the_capacity_of_the_channel():
    assert (channel.capacity(0), channel.capacity(0.5), channel.capacity(1)) == (1, 0, 1)
    assert channel.capacity(0.11) == pytest.approx(0.5, abs=1e-3)


def test_the_channel_inverts_a_share_of_the_bits():
    sent = bytes(50_000)
    for p in (0, 0.01, 0.3):
        wrong = np.unpackbits(np.frombuffer(channel.send(sent, p, 3), np.uint8)).mean()
        assert abs(wrong - p) <= 4 * (p / len(sent) / 8) ** 0.5
    assert channel.send(sent, 0.3, 3) != channel.send(sent, 0.3, 4)


def test_no_code_beats_the_channel_but_parity_beats_no_code(monkeypatch):
    monkeypatch.setattr(channel, "PARITIES", (0, 100))
    bare, protected = channel.channel(TEXT[:2000])
    assert bare.rate == 1 and bare.limit < 1e-9
    assert bare.mended < protected.mended < protected.limit < 0.5
    assert channel.capacity(protected.limit) == pytest.approx(protected.rate)


# --- backwards --------------------------------------------------------------------------------------------------------

@given(st.binary(min_size=1, max_size=12))
@settings(max_examples=20, deadline=None)
def test_any_bits_are_the_code_of_a_text(code):
    coder = backwards.bytewise(lambda: Predictor(taught()))
    text = backwards.text_of(code, coder)
    assert coder.encode(text).startswith(code) and backwards.equal_bits(code, coder.encode(text)) == 8 * len(code)


def test_without_a_prediction_random_bits_are_their_own_text():
    uniform = GPT(TINY, seed=None)                          # every weight is 0, and so are all logits
    coder = backwards.bytewise(lambda: Predictor(uniform))
    code = bytes(range(1, 40, 3))
    text = backwards.text_of(code, coder)                   # each byte of it takes a little more than 8 bits
    assert text[:4] == code[:4] and len(code) <= len(text) <= len(code) + 1


@pytest.mark.parametrize("a, b, count", [(b"ab", b"abc", 16), (b"ab", b"a", 9), (b"\x80", b"", 0), (b"\1", b"\0", 7),
                                         (b"\0", b"", 8)])
def test_equal_bits_are_counted_up_to_the_first_that_differs(a, b, count):
    assert backwards.equal_bits(a, b) == count


def test_texts_and_passages_come_back(small, capsys):
    samples, rows = backwards.run(small, size=6, passages=1)
    assert [sample.returned for sample in samples.values()] == [48] * 3
    assert [row[-1] for row in rows] == [True, True] and all(row[1] > 0 for row in rows)
    assert "wrongly" not in capsys.readouterr().out


@pytest.mark.slow
def test_language_models_tokens_come_back_as_bits(smollm2):
    code = b"prefix-free"
    text = backwards.tokens_of(code, smollm2)
    assert smollm2.tokenizer.decode_bytes(smollm2.tokenizer.encode(text)) == text and len(text) > len(code)


# --- sense ------------------------------------------------------------------------------------------------------------

def test_an_encoders_state_says_the_bits_of_all_frequencies():
    data, encoder = TEXT[:200], Encoder()
    assert sense.bits_of(encoder._state) == pytest.approx(0, abs=1e-9)
    encoder.encode(material.frequencies(taught(), data), np.frombuffer(data, np.uint8))
    assert sense.bits_of(encoder._state) == pytest.approx(sense.gpt_bits(taught())(data), abs=1e-4)
    assert 0 <= 8 * len(encoder.finish()) - sense.bits_of(encoder._state) + 8 < 24


def test_without_a_prediction_every_byte_costs_8_bits():
    assert sense.gpt_bits(GPT(TINY, seed=None))("每 kind of text".encode()) == pytest.approx(8 * 16)


def test_a_primed_model_forgets_each_sentence():
    bits = sense.fast_bits(TEXT[:2000])
    first = bits(TEXT[2000:2050])
    assert first < bits(bytes(range(50))) and bits(TEXT[2000:2050]) == first < sense.fast_bits()(TEXT[2000:2050])


def test_variants_have_as_many_words_or_letters():
    made = sense.variants("The king is dead, my lord.", ["alas", "poor"], 3)
    assert list(made) == list(sense.KINDS)
    assert sorted(made["its words shuffled"].split()) == sorted(made["a sentence"].split())
    assert len(made["random words"].split()) == 6 and set(made["random words"].split()) <= {"alas", "poor"}
    assert len(made["random letters"]) == 26 and set(made["random letters"]) <= set(sense.LETTERS)


def test_chinese_sentences_differ_in_order_alone():
    first, second, third = (sense.CHINESE[kind] for kind in sense.KINDS[:3])
    assert sorted(first) == sorted(second) and first != second and len(first.encode()) == 39 and len(third.encode()) == 36


def test_a_model_pays_for_letters_that_form_no_words(small, capsys):
    results = sense.run(small, count=3)
    assert list(results) == ["bundled GPT", "fast", "fast, primed"]
    for name in "bundled GPT", "fast, primed":
        assert (results[name][:, 0] < results[name][:, 3]).all()


@pytest.mark.slow
def test_tokens_cost_what_their_code_takes(smollm2):
    text = b"Good morrow, cousin. " * 8
    assert 8 * len(tokens.encode_block(smollm2, text)) == pytest.approx(sense.token_bits(smollm2)(text), abs=9)


# --- pictures ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("module, options", [
    (worked, {}), (huffman, {"size": 100}), (avalanche, {"size": 1500, "flips": 2, "block_bits": 10}),
    (backwards, {"size": 2, "passages": 1}), (sense, {"count": 2}),
])
def test_results_can_be_drawn(module, options, small):
    figure = pytest.importorskip("matplotlib.figure").Figure()
    module.plot(figure, module.run(small, **options) if options else module.run())
    assert all(axes.has_data() for axes in figure.axes) and figure.axes
    figure.canvas.draw()

"""The integers of mixing against exact arithmetic, the contexts' bookkeeping, and the mixture against its parts."""

from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coder import predictor as predictors
from coder.codec import decode_block, encode_block
from coder.mixing import contexts, logistic
from coder.mixing.contexts import FRESH, LEAST, MATCHES, MOST_MET, SLOTS
from coder.mixing.logistic import (HEAVIEST, LIMIT, ONE, POINTS, SHARES, SQUASH, STRETCH, adapt, corrected, dot, learn, refine,
                            straight)
from coder.mixing.mixer import Mixing
from coder.range_coder import decode_bit, encode_bit, finish_encoding, make_room, start_decoding, start_encoding
from coder.verify import LICENSE, TEXT
from tests.golden_coder import taught

FILES = {
    "a run": b"a" * 4000,
    "text": 4 * LICENSE,
    "records": b"".join(i.to_bytes(4, "little") + b"name%03d\0" % (i * i % 997) for i in range(400)),
    "csv": "".join(f"{i},{i * 37 % 1000 / 8},item {i % 7}\n" for i in range(300)).encode(),
    "noise": np.random.default_rng(0).bytes(3000),
    "noise in text": LICENSE + np.random.default_rng(1).bytes(700) + LICENSE,
}


def blocks(data, size=1500, **options):
    """The codes of data in blocks of `size` under one mixing model; the bytes that a second one makes of them."""
    encoder, decoder = (predictors.Predictor(None, mixing=Mixing(len(data), **options)) for _ in range(2))
    parts = [data[start:start + size] for start in range(0, len(data), size)]
    codes = [encode_block(encoder, part) for part in parts]
    return codes, b"".join(decode_block(decoder, code, len(part)) for code, part in zip(codes, parts))


# --- stretch and squash -----------------------------------------------------------------------------------------------

def exact_squash(x):
    with localcontext(prec=60):
        return ONE / (1 + (Decimal(-x) / 256).exp())


def test_squash_is_the_nearest_integer():
    for x in range(-LIMIT, LIMIT + 1):
        assert abs(min(max(exact_squash(x), 1), ONE - 1) - int(SQUASH[x + LIMIT])) <= Decimal("0.5")


def test_stretch_is_the_nearest_integer():
    with localcontext(prec=60):
        for p in [*range(1, 600), *range(600, ONE - 600, 97), *range(ONE - 600, ONE)]:
            assert abs(256 * (Decimal(p) / (ONE - p)).ln() - int(STRETCH[p])) <= Decimal("0.5")


def test_both_are_symmetric_and_rise():
    assert (SQUASH + SQUASH[::-1] == ONE).all() and (np.diff(SQUASH) >= 0).all()
    assert (STRETCH[1:] == -STRETCH[:0:-1]).all() and (np.diff(STRETCH.astype(int)) >= 0).all()
    assert (np.abs(SQUASH[STRETCH[1:].astype(int) + LIMIT] - np.arange(1, ONE)) <= 33).all()    # half a step of x


# --- the neuron -------------------------------------------------------------------------------------------------------

inputs_and_weights = given(st.lists(st.tuples(st.integers(-LIMIT, LIMIT), st.integers(-HEAVIEST, HEAVIEST)),
                                    min_size=1, max_size=99))


@inputs_and_weights
@settings(deadline=None)
def test_dot_is_the_sum_in_whole_units(pairs):
    inputs, weights = np.array(pairs, np.int32).T.copy()
    exact = sum(Fraction(x * w, ONE) for x, w in pairs)
    assert dot(weights[None].copy(), 0, inputs) == min(max(exact.__floor__(), -LIMIT), LIMIT)


@inputs_and_weights
@settings(deadline=None)
def test_learn_is_the_step_rounded_and_never_leaves_the_range(pairs):
    inputs, before = np.array(pairs, np.int32).T.copy()
    for error in (-ONE + 1, -1, 0, 1, ONE):
        weights = np.stack([before, before])
        learn(weights, 1, inputs, error, 20)
        exact = [w + (Fraction(x * error * 20, 1 << logistic.SCALE) + Fraction(1, 2)).__floor__() for x, w in pairs]
        assert weights[1].tolist() == [min(max(w, -HEAVIEST), HEAVIEST) for w in exact]
        assert (weights[0] == before).all()


def test_learning_makes_the_bit_likelier():
    inputs, weights = np.array([300, -200, 256], np.int32), np.zeros((1, 3), np.int32)
    for _ in range(2000):
        learn(weights, 0, inputs, ONE - int(SQUASH[dot(weights, 0, inputs) + LIMIT]), 20)
    assert SQUASH[dot(weights, 0, inputs) + LIMIT] > 0.9 * ONE


@settings(deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=60))
def test_a_new_probability_is_the_mean_of_its_bits_nearly(bits):
    """p_n = p + (bit - p) / (n + 1.5) from p_0 = 1/2: the mean of all bits and of half a bit of 1/2."""
    entries = np.full((1, 2), 2 ** 31, np.uint32)
    for bit in bits:
        adapt(entries, 0, 1, int(bit), SHARES)
    assert entries[0, 1] & 1023 == len(bits) and entries[0, 0] == 2 ** 31
    assert (entries[0, 1] >> 10) / 2 ** 22 == pytest.approx((sum(bits) + 0.25) / (len(bits) + 0.5), abs=1e-3)


@pytest.mark.parametrize("bit", [0, 1])
def test_no_probability_becomes_certain(bit):
    entries, maps = np.full((1, 1), 2 ** 31, np.uint32), straight(1)[None]
    for _ in range(5000):
        adapt(entries, 0, 0, bit, SHARES)
        p, place = refine(maps, 0, 0, (2 * bit - 1) * LIMIT)
        corrected(maps, 0, place, bit)
        assert 0 < p < ONE and 0 < entries[0, 0] >> 10 < 2 ** 22


def test_a_new_map_changes_hardly_anything():
    maps = straight(3)[None]
    for x in range(-2000, 2001, 7):
        p, place = refine(maps, 0, 2, x)
        assert abs(p - int(SQUASH[x + LIMIT])) < ONE // 200 and 2 * POINTS <= place < 3 * POINTS


# --- one bit through the range coder ----------------------------------------------------------------------------------

@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from([1, 2, 77, ONE // 2, ONE - 2, ONE - 1]), st.booleans()), max_size=300))
def test_bits_come_back_whatever_their_probabilities(pairs):
    state, out = start_encoding()
    for i, (p, bit) in enumerate(pairs):
        if i % 8 == 0:
            out = make_room(state, out, 1)
        encode_bit(state, out, p, int(bit))
    code = finish_encoding(state, out)
    cost = sum(-np.log2((p if bit else ONE - p) / ONE) for p, bit in pairs) / 8
    assert len(code) <= cost + 1.001 + 1e-6 * len(pairs)
    state = start_decoding(code)
    assert [decode_bit(state, code, p) for p, _ in pairs] == [bit for _, bit in pairs]


# --- slots, matches ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("inputs", [3, 4])
def test_a_slot_counts_its_bits_and_remembers_the_last_six(inputs):
    table, lines = np.zeros((1, SLOTS), np.uint32), np.zeros(1, np.uint64)
    maps, nodes = np.full((1, contexts.PAIRS), 2 ** 31, np.uint32), np.full((inputs - 3, contexts.NODES), 2 ** 31, np.uint32)
    places, x = np.zeros(1, np.int64), np.ones(inputs, np.int32)
    assert contexts.ask_slots(table, lines, 5, 37, maps, nodes, places, x, STRETCH) == 0 and not x.any()
    history = [1, 0, 1, 1, 0, 0, 1, 1] * 6
    for i, bit in enumerate(history):
        contexts.ask_slots(table, lines, 5, 37, maps, nodes, places, x, STRETCH)
        contexts.tell_slots(table, lines, 5, 37, maps, nodes, places, bit, SHARES)
        slot, last = int(table[0, 5] ^ FRESH), history[max(0, i - 5):i + 1]
        assert slot & 127 == int("1" + "".join(map(str, last)), 2) and slot >> 7 & 127 == min(i + 1, MOST_MET)
    assert contexts.ask_slots(table, lines, 5, 37, maps, nodes, places, x, STRETCH) == 1
    assert (table[0, [i for i in range(SLOTS) if i != 5]] == 0).all()
    told = np.flatnonzero(nodes != 2 ** 31)         # the first bit is known of no slot yet
    assert (told & 255 == 37).all() and len(told) == len({tuple(history[max(0, i - 6):i]) for i in range(1, 48)}) * (inputs - 3)


def test_a_slot_counts_half_as_many_bits_after_one_it_hardly_expected():
    table, lines, nodes = np.zeros((1, SLOTS), np.uint32), np.zeros(1, np.uint64), np.empty((0, contexts.NODES), np.uint32)
    maps, places = np.full((1, contexts.PAIRS), 2 ** 31, np.uint32), np.full(1, -1)
    for bit, met in [(1, i + 1) for i in range(40)] + [(0, 21), (1, 22)]:
        contexts.tell_slots(table, lines, 5, 37, maps, nodes, places, bit, SHARES)
        assert int(table[0, 5] ^ FRESH) >> 7 & 127 == met


def test_the_second_map_begins_with_the_mean_of_the_bits():
    for bits in range(1, 128):
        entry = np.array([[2 ** 31]], np.uint32)
        for bit in f"{bits:b}"[1:]:
            adapt(entry, 0, 0, int(bit), SHARES)
        assert abs(int(entry[0, 0] >> 10) - int(contexts.after_bits()[bits] >> 10)) <= 64


def test_lines_are_found_again_and_the_least_used_of_three_gives_way():
    table = np.zeros((8, SLOTS), np.uint32)
    hashes = [np.uint64((k << 40) + 3) for k in range(1, 5)]
    first = []
    for h, n in zip(hashes, (9, 2, 5)):
        first.append(contexts._find(table, h, np.uint64(7)))
        table[int(first[-1]), 1] = n << 7
    assert sorted(map(int, first)) == [1, 2, 3] and [contexts._find(table, h, np.uint64(7)) for h in hashes[:3]] == first
    assert contexts._find(table, hashes[3], np.uint64(7)) == first[1] and table[int(first[1]), 1] == 0


@pytest.mark.parametrize("count", [contexts.FAST, contexts.ALL])
def test_each_context_is_hashed_and_nothing_else_is_written(count):
    text, past = np.zeros(1, np.uint8), np.zeros(contexts.FIELDS, np.uint64)
    hashes = np.zeros(contexts.ALL + 1, np.uint64)
    contexts.hash_contexts(past, text, 0, np.zeros((2, 2 ** 16), np.uint64), hashes[:count])
    assert len(set(hashes[:count].tolist())) == count and hashes[:count].all() and not hashes[count:].any()


@given(st.binary(min_size=1, max_size=40), st.integers(2, 5))
@settings(deadline=None, max_examples=40)
def test_a_match_expects_what_followed(unit, times):
    data = unit * times
    text, past = np.zeros(len(data), np.uint8), np.zeros(contexts.FIELDS, np.uint64)
    seen, recent = np.zeros((MATCHES, 2 ** 18), np.int32), np.zeros((2, 2 ** 16), np.uint64)
    for place, byte in enumerate(data):
        for k in range(MATCHES):
            expected, length = contexts.find_match(past, k, text, place, seen)
            if length:
                alike = [i for i in range(length, place) if data[i - length:i] == data[place - length:place]]
                assert any(expected == 256 + data[i] for i in alike) and length >= LEAST[k]
        contexts.remember(past, text, place, recent, byte)
    assert text.tobytes() == data


@given(st.text("ab", max_size=9), st.integers(1, 300))
@settings(deadline=None, max_examples=40)
def test_a_run_is_the_last_byte_of_a_context_and_how_often_it_came_in_a_row(text, times):
    data = text.encode() + b"c" * times
    runs, hashes = np.zeros((1, 2 ** 16), np.uint16), np.array([77 << 48], np.uint64)
    places, expected, length = np.zeros((3, MATCHES + 1), np.int64)
    for i in range(len(data) + 1):
        contexts.find_runs(runs, hashes, places, expected, length)
        row = i - len(data[:i].rstrip(data[i - 1:i]))
        assert (expected[-1], length[-1]) == ((256 + data[i - 1], min(row, 255)) if i else (0, 0))
        if i < len(data):
            contexts.tell_runs(runs, places, data[i])


# --- whole blocks -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("options", [dict(fast=True), dict(), dict(gpt=True)], ids=str)
@pytest.mark.parametrize("name", FILES)
def test_blocks_come_back(name, options):
    """With a GPT, too, if it says nothing, as when a primer is read."""
    assert blocks(FILES[name], **options)[1] == FILES[name]


@settings(deadline=None, max_examples=60)
@given(data=st.binary(min_size=1, max_size=300) |
       st.builds(lambda unit, n: unit * n, st.binary(min_size=1, max_size=9), st.integers(1, 90)),
       size=st.integers(1, 700))
def test_any_bytes_in_any_blocks_come_back(data, size):
    assert blocks(data, size)[1] == data


def test_what_repeats_itself_costs_next_to_nothing():
    assert len(blocks(b"\0" * 100_000, 10 ** 6)[0][0]) < 40
    once, ten = (len(blocks(LICENSE * n, 10 ** 6, fast=True)[0][0]) for n in (1, 10))
    assert ten < once + 60


def test_noise_costs_hardly_more_than_it_has():
    data = np.random.default_rng(2).bytes(20_000)
    assert len(blocks(data, 10 ** 6)[0][0]) < 1.02 * len(data)


def test_more_text_than_the_model_was_made_for_is_refused():
    mixing = Mixing(10)
    mixing.begin(10)
    with pytest.raises(ValueError, match="made for less"):
        mixing.begin(1)


# --- the mixture and its parts ----------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", ["text", "csv", "noise in text"])
def test_the_mixture_is_no_worse_than_the_better_part(name):
    """By 2 % at most, and 12 bytes of learning whom to trust."""
    data = FILES[name]
    model = taught().copy()
    learner = predictors.Learner(model, predictors.ONLINE_LEARNING, predictors.batch_of(len(data)))
    alone = predictors.Predictor(model, learner=learner)
    contexts_alone = predictors.Predictor(None, mixing=Mixing(len(data)))
    mixed = predictors.online(taught(), len(data))
    gpt, without, both = (len(encode_block(predictor, data)) for predictor in (alone, contexts_alone, mixed))
    assert both <= 1.02 * min(gpt, without) + 12


def test_a_primer_helps_and_leaves_the_weights_of_the_gpt_as_they_were():
    plain, primed = predictors.online(taught(), len(TEXT)), predictors.online(taught(), len(TEXT), LICENSE)
    assert (plain.mixing.memory.weights[:, -3:] == primed.mixing.memory.weights[:, -3:]).all()
    assert len(encode_block(primed, TEXT)) < 0.7 * len(encode_block(plain, TEXT))

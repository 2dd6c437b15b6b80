"""The integers of mixing against exact arithmetic, the contexts' bookkeeping, and the mixture against its parts."""

from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coder import predictor as predictors
from coder.codec import decode_block, encode_block
from coder.compressor import compress, decompress
from coder.mixing import contexts, histories, kinds, logistic, predict
from coder.mixing.contexts import ALL_CONTEXTS, CONTEXTS, FAST_CONTEXTS
from coder.mixing.histories import BUCKET_WORDS, COUNT_LIMIT, MATCH_MINIMUM, MATCHES, pack_counter, unpack_counter
from coder.mixing.logistic import (APM_POINTS, P_ONE, RECIPROCALS, SQUASH, STRETCH, WEIGHT_LIMIT, X_LIMIT, dot_product, new_apm,
                                   refine, train, update_apm, update_statemap)
from coder.mixing.mixer import Mixing, MixingDecoder, MixingEncoder
from coder.range_coder import decode_bit, encode_bit, finish_encoding, make_room, start_decoding, start_encoding
from coder.verify import LICENSE, TEXT
from tests.ablation import code_length
from tests.golden_coder import taught

FILES = {
    "a run": b"a" * 4000,
    "text": 4 * LICENSE,
    "records": b"".join(i.to_bytes(4, "little") + b"name%03d\0" % (i * i % 997) for i in range(400)),
    "csv": "".join(f"{i},{i * 37 % 1000 / 8},item {i % 7}\n" for i in range(300)).encode(),
    "noise": np.random.default_rng(0).bytes(3000),
    "noise in text": LICENSE + np.random.default_rng(1).bytes(700) + LICENSE,
    "kinds": LICENSE + np.arange(3000).astype("<i4").tobytes() + 5 * LICENSE + b"".join(b"%05d\0\1\2" % i for i in range(900)),
}


def blocks(data, size=1500, **options):
    """The codes of data in blocks of `size` under one mixing model; the bytes that a second one makes of them."""
    encoder, decoder = (predictors.Predictor(None, mixing=Mixing(len(data), **options)) for _ in range(2))
    parts = [data[start:start + size] for start in range(0, len(data), size)]
    codes = [encode_block(encoder, part) for part in parts]
    return codes, b"".join(decode_block(decoder, code, len(part)) for code, part in zip(codes, parts))


# --- stretch and squash -----------------------------------------------------------------------------------------------

def exact_squash(x):
    with localcontext() as context:
        context.prec = 60
        return P_ONE / (1 + (Decimal(-x) / 256).exp())


def test_squash_is_the_nearest_integer():
    for x in range(-X_LIMIT, X_LIMIT + 1):
        assert abs(min(max(exact_squash(x), 1), P_ONE - 1) - int(SQUASH[x + X_LIMIT])) <= Decimal("0.5")


def test_stretch_is_the_nearest_integer():
    with localcontext() as context:
        context.prec = 60
        for p in [*range(1, 600), *range(600, P_ONE - 600, 97), *range(P_ONE - 600, P_ONE)]:
            assert abs(256 * (Decimal(p) / (P_ONE - p)).ln() - int(STRETCH[p])) <= Decimal("0.5")


def test_both_are_symmetric_and_rise():
    assert (SQUASH + SQUASH[::-1] == P_ONE).all() and (np.diff(SQUASH) >= 0).all()
    assert (STRETCH[1:] == -STRETCH[:0:-1]).all() and (np.diff(STRETCH.astype(int)) >= 0).all()
    assert (np.abs(SQUASH[STRETCH[1:].astype(int) + X_LIMIT] - np.arange(1, P_ONE)) <= 33).all()    # half a step of x


# --- mixer, StateMap, APM ---------------------------------------------------------------------------------------------

inputs_and_weights = given(st.lists(st.tuples(st.integers(-X_LIMIT, X_LIMIT), st.integers(-WEIGHT_LIMIT, WEIGHT_LIMIT)),
                                    min_size=1, max_size=99))


@inputs_and_weights
@settings(deadline=None)
def test_dot_product_is_the_sum_in_whole_units(pairs):
    inputs, weights = np.array(pairs, np.int32).T.copy()
    exact = sum(Fraction(x * w, P_ONE) for x, w in pairs)
    assert dot_product(weights[None].copy(), 0, inputs) == min(max(exact.__floor__(), -X_LIMIT), X_LIMIT)


@inputs_and_weights
@settings(deadline=None)
def test_train_is_the_gradient_step_rounded_and_never_leaves_the_range(pairs):
    inputs, before = np.array(pairs, np.int32).T.copy()
    for error in (-P_ONE + 1, -1, 0, 1, P_ONE):
        weights = np.stack([before, before])
        train(weights, 1, inputs, error, 20)
        exact = [w + (Fraction(x * error * 20, 1 << logistic.RATE_SHIFT) + Fraction(1, 2)).__floor__() for x, w in pairs]
        assert weights[1].tolist() == [min(max(w, -WEIGHT_LIMIT), WEIGHT_LIMIT) for w in exact]
        assert (weights[0] == before).all()


def test_training_makes_the_bit_likelier():
    inputs, weights = np.array([300, -200, 256], np.int32), np.zeros((1, 3), np.int32)
    for _ in range(2000):
        train(weights, 0, inputs, P_ONE - int(SQUASH[dot_product(weights, 0, inputs) + X_LIMIT]), 20)
    assert SQUASH[dot_product(weights, 0, inputs) + X_LIMIT] > 0.9 * P_ONE


@settings(deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=60))
def test_a_new_statemap_entry_is_nearly_the_mean_of_its_bits(bits):
    """p_n = p + (bit - p) / (n + 1.5) from p_0 = 1/2: the mean of all bits and of half a bit of 1/2."""
    statemaps = np.full((1, 2), 2 ** 31, np.uint32)
    for bit in bits:
        update_statemap(statemaps, 0, 1, int(bit), RECIPROCALS)
    assert statemaps[0, 1] & 1023 == len(bits) and statemaps[0, 0] == 2 ** 31
    assert (statemaps[0, 1] >> 10) / 2 ** 22 == pytest.approx((sum(bits) + 0.25) / (len(bits) + 0.5), abs=1e-3)


@pytest.mark.parametrize("bit", [0, 1])
def test_no_probability_becomes_certain(bit):
    statemaps, apm = np.full((1, 1), 2 ** 31, np.uint32), new_apm(1)
    for _ in range(5000):
        update_statemap(statemaps, 0, 0, bit, RECIPROCALS)
        p, point = refine(apm, 0, (2 * bit - 1) * X_LIMIT)
        update_apm(apm, point, bit)
        assert 0 < p < P_ONE and 0 < statemaps[0, 0] >> 10 < 2 ** 22


def test_a_new_apm_changes_hardly_anything():
    apm = new_apm(3)
    for x in range(-2000, 2001, 7):
        p, point = refine(apm, 2, x)
        assert abs(p - int(SQUASH[x + X_LIMIT])) < P_ONE // 200 and 2 * APM_POINTS <= point < 3 * APM_POINTS


def test_each_apm_has_the_contexts_that_it_uses_and_no_more():
    """Noise meets nearly all of order 3, a hash of 13 bits; order 1 and the GPT have one for each byte and bits so far."""
    mixing, data = Mixing(30_000, fast=True), np.random.default_rng(3).bytes(30_000)
    mixing.prime(data)
    moved = (mixing.memory.apm_3.reshape(-1, APM_POINTS) != new_apm(1)).any(1)
    assert len(moved) == 2 ** 13 and moved.mean() > 0.99
    sizes = [(len(m.apm_1), len(m.apm_gpt)) for m in (mixing.memory, Mixing(1, gpt=True).memory)]
    assert sizes == [(2 ** 16 * APM_POINTS, 0), (2 ** 16 * APM_POINTS, 2 ** 16 * APM_POINTS)]


# --- one bit through the range coder ----------------------------------------------------------------------------------

@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from([1, 2, 77, P_ONE // 2, P_ONE - 2, P_ONE - 1]), st.booleans()), max_size=300))
def test_bits_come_back_whatever_their_probabilities(pairs):
    state, out = start_encoding()
    for i, (p, bit) in enumerate(pairs):
        if i % 8 == 0:
            out = make_room(state, out, 1)
        encode_bit(state, out, p, int(bit))
    code = finish_encoding(state, out)
    cost = sum(-np.log2((p if bit else P_ONE - p) / P_ONE) for p, bit in pairs) / 8
    assert len(code) <= cost + 1.001 + 1e-6 * len(pairs)
    state = start_decoding(code)
    assert [decode_bit(state, code, p) for p, _ in pairs] == [bit for _, bit in pairs]


# --- bit histories ----------------------------------------------------------------------------------------------------

@given(st.integers(0, 2 ** 18 - 1), st.integers(0, COUNT_LIMIT), st.integers(0, 127))
@settings(deadline=None)
def test_a_counter_is_unpacked_as_it_was_packed(p, n, last_bits):
    assert unpack_counter(np.uint32(pack_counter(p, n, last_bits))) == (p, n, last_bits)


def test_a_table_of_zeros_holds_new_counters():
    assert unpack_counter(np.uint32(0)) == (2 ** 17, 0, 0)


def one_context(inputs):
    """A table of one bucket, and the other arguments of predict_histories and update_histories for one context in it."""
    node_statemaps = np.full((inputs - 3, histories.HISTORY_NODE_STATES), 2 ** 31, np.uint32)
    return (np.zeros((1, BUCKET_WORDS), np.uint32), np.zeros(1, np.uint64),
            np.full((1, histories.HISTORY_P_STATES), 2 ** 31, np.uint32), node_statemaps, np.full(1, -1))


@pytest.mark.parametrize("inputs", [3, 4])
def test_a_counter_counts_its_bits_and_remembers_the_last_six(inputs):
    table, buckets, p_statemaps, node_statemaps, states = one_context(inputs)
    x = np.ones(inputs, np.int32)

    def known():
        return histories.predict_histories(table, buckets, 5, 37, 1, p_statemaps, node_statemaps, states, x, STRETCH)
    assert known() == 0 and not x.any()
    bits = [1, 0, 1, 1, 0, 0, 1, 1] * 6
    for i, bit in enumerate(bits):
        known()
        histories.update_histories(table, buckets, 5, 37, p_statemaps, node_statemaps, states, bit, RECIPROCALS)
        _, n, last_bits = unpack_counter(table[0, 5])
        assert last_bits == int("1" + "".join(map(str, bits[max(0, i - 5):i + 1])), 2) and n == min(i + 1, COUNT_LIMIT)
    assert known() == 1
    assert (table[0, [i for i in range(BUCKET_WORDS) if i != 5]] == 0).all()
    updated = np.flatnonzero(node_statemaps != 2 ** 31)         # not by the first bit, before which there is no history
    histories_seen = {tuple(bits[max(0, i - 6):i]) for i in range(1, 48)}
    assert (updated & 255 == 37).all() and len(updated) == len(histories_seen) * (inputs - 3)


def test_only_the_orders_count_for_their_confidence():
    table, buckets, p_statemaps, node_statemaps, states = one_context(3)
    table[0, 5] = pack_counter(2 ** 17, 1, 3)
    for orders in 0, 1:
        assert histories.predict_histories(table, buckets, 5, 37, orders, p_statemaps, node_statemaps, states,
                                           np.zeros(3, np.int32), STRETCH) == orders


def test_a_counter_halves_its_count_at_a_bit_that_it_hardly_expected():
    table, buckets, p_statemaps, node_statemaps, states = one_context(3)
    for bit, count in [(1, i + 1) for i in range(40)] + [(0, 21), (1, 22)]:
        histories.update_histories(table, buckets, 5, 37, p_statemaps, node_statemaps, states, bit, RECIPROCALS)
        assert unpack_counter(table[0, 5])[1] == count


def test_the_second_statemap_begins_with_the_mean_of_the_bits():
    new = histories.new_history_node_statemap().reshape(128, 256)
    assert (new == new[:, :1]).all()
    for bits in range(1, 128):
        entry = np.array([[2 ** 31]], np.uint32)
        for bit in f"{bits:b}"[1:]:
            update_statemap(entry, 0, 0, int(bit), RECIPROCALS)
        assert abs(int(entry[0, 0] >> 10) - int(new[bits, 0] >> 10)) <= 64


def test_buckets_are_found_again_and_the_least_used_of_three_is_replaced():
    table, mask = np.zeros((8, BUCKET_WORDS), np.uint32), np.uint64(7)
    hashes = [np.uint64((k << 40) + 3) for k in range(1, 5)]
    first = []
    for h, n in zip(hashes, (9, 2, 5)):
        first.append(histories._find_bucket(table, h, mask))
        table[int(first[-1]), 1] = n << 7
    assert sorted(map(int, first)) == [1, 2, 3] and [histories._find_bucket(table, h, mask) for h in hashes[:3]] == first
    assert histories._find_bucket(table, hashes[3], mask) == first[1] and table[int(first[1]), 1] == 0


def test_a_nibble_has_15_nodes_and_each_is_reached_by_one_path():
    for first_bit in 0, 4:
        for path in range(8):
            partials = [(1 << first_bit | 5 & (1 << first_bit) - 1) << depth | path >> 3 - depth for depth in range(4)]
            nodes = [predict.nibble_node(partial, first_bit + depth) for depth, partial in enumerate(partials)]
            assert nodes == [1 << depth | path >> 3 - depth for depth in range(4)]


# --- contexts ---------------------------------------------------------------------------------------------------------

def hashes_of(selected, count, past=None):
    """hash_contexts into an array with room for one more, of a past (zeros, if not given) and an empty text."""
    past = np.zeros(contexts.FIELDS, np.uint64) if past is None else past
    hashes = np.zeros(ALL_CONTEXTS + 1, np.uint64)
    contexts.hash_contexts(past, np.zeros(1, np.uint8), 0, np.zeros((2, 2 ** 16), np.uint64), np.zeros((MATCHES, 2), np.int64),
                           np.array(selected), np.full(count, 77, np.uint64), hashes[:len(selected)])
    return hashes


def test_the_table_gives_each_context_a_name_and_a_reason():
    names, reasons = zip(*CONTEXTS)
    assert len(set(names)) == len(set(reasons)) == contexts.MOST_CONTEXTS == 37 and all(names) and all(reasons)
    assert ALL_CONTEXTS == 33 and list(contexts.RECORD_CONTEXTS) == sorted(contexts.RECORD_CONTEXTS)
    assert [name for name, _ in CONTEXTS[:FAST_CONTEXTS]] == ["order 1", "order 2", "order 3", "order 4", "order 6", "word"]


@pytest.mark.parametrize("count", [FAST_CONTEXTS, ALL_CONTEXTS])
def test_each_context_is_hashed_and_nothing_else_is_written(count):
    hashes = hashes_of(range(count), count)
    assert len(set(hashes[:count].tolist())) == count and hashes[:count].all() and not hashes[count:].any()
    past = np.arange(1, contexts.FIELDS + 1).astype(np.uint64) << np.uint64(41)
    past[[contexts.LINE_START, contexts.LAST_LINE_START]] = 0
    assert len({int(h) for h in hashes_of(range(count), count, past)[:count]}) == count


def test_the_contexts_of_records_are_hashed_and_no_others():
    """With a period of 3 in 24 bytes, whose last ones are 20 .. 23."""
    past, values = np.zeros(contexts.FIELDS, np.uint64), np.full(contexts.MOST_CONTEXTS, 77, np.uint64)
    text, followers = np.arange(25).astype(np.uint8), np.full((2, 2 ** 16), 9, np.uint64)
    past[[contexts.HISTORY, contexts.PERIOD]] = 20 << 24 | 21 << 16 | 22 << 8 | 23, 3
    selected, hashes = np.array(contexts.RECORD_CONTEXTS), np.zeros(len(contexts.RECORD_CONTEXTS), np.uint64)
    contexts.hash_contexts(past, text, 24, followers, np.zeros((MATCHES, 2), np.int64), selected, values, hashes)
    assert len(set(hashes.tolist())) == len(hashes)
    found = {CONTEXTS[i][0]: int(values[i]) for i in contexts.RECORD_CONTEXTS[3:]}
    above, nearest = 21, (21 << 8 | 20) - 23 + 128 >> 8             # a step of 3 to the left takes two bits
    to_line = 2 * (21 << 8 | 20) - (18 << 8 | 17) - 23 + 128 >> 8
    assert list(found.values()) == [9, 21 << 16 | 22 << 8, 20 << 24 | 21 << 16, 23, above, nearest, to_line, above << 8 | 8 + 2]
    assert (values == 77).sum() == contexts.MOST_CONTEXTS - contexts.FAST_CONTEXTS - 8


@pytest.mark.parametrize("omitted", [0, 20, 32])
def test_a_context_that_is_left_out_leaves_the_hashes_of_the_others_as_they_are(omitted):
    selected = [i for i in range(ALL_CONTEXTS) if i != omitted]
    assert hashes_of(selected, ALL_CONTEXTS)[:32].tolist() == hashes_of(range(33), ALL_CONTEXTS)[selected].tolist()


def test_ablation_begins_with_the_code_of_the_mode():
    code = encode_block(predictors.fast(len(LICENSE)), LICENSE)
    assert code_length(LICENSE, range(FAST_CONTEXTS), fast=True) == len(code) < code_length(LICENSE, range(5), fast=True)


# --- kinds of data ----------------------------------------------------------------------------------------------------

def plain_period(data):
    """find_period of bytes, byte by byte, as its docstring says."""
    data = data[-kinds.WINDOW:]
    fresh = [i > 0 and data[i] != data[i - 1] for i in range(len(data))]
    control = sum(new and (byte < 32 and byte not in b"\t\n\r" or byte == 127) for new, byte in zip(fresh, data))
    broken, missing = 0, 0
    for byte in data:
        continues = 128 <= byte < 192
        broken += continues != (missing > 0)
        missing = missing - 1 if continues and missing else 0
        missing = 3 if byte >= 240 else 2 if byte >= 224 else 1 if byte >= 192 else missing
    if 32 * control < len(data) and 4 * broken < len(data):
        return 0
    equal = {p: sum(fresh[i] and data[i] == data[i - p] for i in range(p, len(data)))
             for p in range(2, min(512, len(data) // 4) + 1)}
    mean = sum(equal.values()) // max(len(equal), 1)
    best = max((count - mean for count in equal.values()), default=0)
    if 32 * best < len(data):
        return kinds.PLAIN
    return min(p for p, count in equal.items() if 8 * (count - mean) >= 7 * best)


def period(data):
    return kinds.find_period(np.frombuffer(data + b"x", np.uint8), len(data))


@given(st.binary(min_size=1, max_size=60) | st.text(min_size=1, max_size=60).map(str.encode) |
       st.builds(lambda unit, n, noise: b"".join(unit + bytes([b]) for b in noise) * n, st.binary(min_size=1, max_size=9),
                 st.integers(1, 9), st.binary(min_size=1, max_size=20)))
@settings(deadline=None, max_examples=60)
def test_a_period_is_counted_as_the_text_above_says(data):
    assert period(data) == plain_period(data)


@pytest.mark.parametrize("data, expected", [
    (LICENSE, 0), ("Ænglisc sprǣc, 古英语是英语的早期形式。".encode() * 20, 0), (LICENSE.decode().encode("utf-16le"), 2),
    (b"".join(i.to_bytes(4, "little") + b"ab%c" % byte for i, byte in enumerate(np.random.default_rng(1).bytes(400))), 7),
    (b"\0", 0), (b"\x80", kinds.PLAIN),
    (np.random.default_rng(0).bytes(9000), kinds.PLAIN), (np.random.default_rng(0).normal(0, 1, 999).tobytes(), 8),
    (FILES["records"], 12), (FILES["csv"], 0), (b"\0" * 9000, 0), (b"file name" + bytes(503) + LICENSE + bytes(200), 0),
])
def test_text_is_told_from_records_and_their_period_is_found(data, expected):
    assert period(data) == expected


def test_the_kind_is_looked_at_more_often_in_the_beginning():
    places, position = [], 0
    while position < 20_000:
        position = kinds.next_look(position)
        places.append(position)
        assert all(kinds.next_look(before) == position for before in (position - 1, position - 100))
    assert places == [256, 512, 1024, 2048, 4096, 8192, 12288, 16384, 20480]


def test_text_has_the_code_that_it_had_without_kinds_and_records_a_shorter_one():
    assert blocks(FILES["text"], fast=True, kinds=True) == blocks(FILES["text"], fast=True)
    for name, most in ("records", 0.8), ("kinds", 0.7):
        with_kinds, without = (sum(map(len, blocks(FILES[name], fast=True, kinds=also)[0])) for also in (True, False))
        assert with_kinds < most * without


@pytest.mark.parametrize("size", [0, 1, 2, 255, 256, 257, 4096, 4097])
def test_files_of_records_of_any_size_come_back(size):
    data = (np.arange(2000) ** 2).astype("<i4").tobytes()[:size]
    for primer in b"", LICENSE + data[:700]:
        assert decompress(compress(data, "fast", primer=primer), None, primer=primer) == data


# --- match model, run model -------------------------------------------------------------------------------------------

@given(st.binary(min_size=1, max_size=40), st.integers(2, 5))
@settings(deadline=None, max_examples=40)
def test_a_match_expects_what_followed(unit, times):
    data = unit * times
    text, past = np.zeros(len(data), np.uint8), np.zeros(contexts.FIELDS, np.uint64)
    followers, matches = np.zeros((2, 2 ** 16), np.uint64), np.zeros((MATCHES, 2), np.int64)
    last_seen = np.zeros((MATCHES, histories.MATCH_HASHES), np.int32)
    for position, byte in enumerate(data):
        for k in range(MATCHES):
            expected, length = histories.find_match(matches, k, text, position, past[contexts.HISTORY], last_seen)
            if length:
                alike = [i for i in range(length, position) if data[i - length:i] == data[position - length:position]]
                assert any(expected == 256 + data[i] for i in alike) and length >= MATCH_MINIMUM[k]
        contexts.update_past(past, text, position, followers, byte)
        histories.update_matches(matches, text, byte)
    assert text.tobytes() == data


@given(st.text("ab", max_size=9), st.integers(1, 300))
@settings(deadline=None, max_examples=40)
def test_a_run_is_the_last_byte_of_a_context_and_how_often_it_came_in_a_row(text, times):
    data = text.encode() + b"c" * times
    runs, hashes = np.zeros((1, histories.RUN_HASHES), np.uint16), np.array([77 << 48], np.uint64)
    entries, expected, lengths = np.zeros((3, MATCHES + 1), np.int64)
    for i in range(len(data) + 1):
        histories.find_runs(runs, hashes, entries, expected, lengths)
        row = i - len(data[:i].rstrip(data[i - 1:i]))
        assert (expected[-1], lengths[-1]) == ((256 + data[i - 1], min(row, 255)) if i else (0, 0))
        if i < len(data):
            histories.update_runs(runs, entries, data[i])


# --- the GPT's frequencies, bit by bit --------------------------------------------------------------------------------

def test_frequencies_are_summed_over_the_bytes_that_begin_with_the_same_bits():
    frequencies, sums = np.random.default_rng(4).integers(1, 2 ** 24, (2, 256)).astype(np.uint32), np.zeros(512, np.int64)
    predict.sum_frequencies(frequencies, 1, sums)
    for partial in range(1, 256):
        left = 8 - (partial.bit_length() - 1)
        begin = (partial << left) - 256
        assert sums[partial] == frequencies[1, begin:begin + (1 << left)].sum(dtype=np.int64)


# --- whole blocks -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("options", [dict(fast=True), dict(fast=True, kinds=True), dict(), dict(gpt=True)], ids=str)
@pytest.mark.parametrize("name", FILES)
def test_blocks_come_back(name, options):
    """With a GPT, too, if it says nothing, as when a primer is read."""
    assert blocks(FILES[name], **options)[1] == FILES[name]


@settings(deadline=None, max_examples=60)
@given(data=st.binary(min_size=1, max_size=300) |
       st.builds(lambda unit, n: unit * n, st.binary(min_size=1, max_size=9), st.integers(1, 90)),
       size=st.integers(1, 700))
def test_any_bytes_in_any_blocks_come_back(data, size):
    assert blocks(data, size)[1] == data == blocks(data, size, fast=True, kinds=True)[1]


def test_what_repeats_itself_costs_next_to_nothing():
    assert len(blocks(b"\0" * 100_000, 10 ** 6)[0][0]) < 40
    once, ten = (len(blocks(LICENSE * n, 10 ** 6, fast=True)[0][0]) for n in (1, 10))
    assert ten < once + 60


def test_noise_costs_hardly_more_than_it_has():
    data = np.random.default_rng(2).bytes(20_000)
    assert len(blocks(data, 10 ** 6)[0][0]) < 1.02 * len(data)


def test_more_text_than_the_model_was_made_for_is_refused():
    mixing = Mixing(10)
    MixingEncoder(mixing, 10)
    with pytest.raises(ValueError, match="made for 10 bytes"):
        MixingEncoder(mixing, 1)


@pytest.mark.parametrize("gpt, kinds", [(False, False), (True, False), (False, True)])
def test_decoder_mirrors_encoder_however_the_block_is_cut_into_calls(gpt, kinds):
    data = np.frombuffer(FILES["kinds"] if kinds else LICENSE, np.uint8).astype(np.int64)
    frequencies = np.random.default_rng(5).integers(1, 2 ** 20, (len(data), 256)).astype(np.uint32) if gpt else None
    codes, sides = [], [Mixing(len(data), gpt=gpt, fast=kinds, kinds=kinds) for _ in range(3)]
    for mixing, cuts in zip(sides, ([0, len(data)], [0, 1, 700, len(data)])):
        encoder = MixingEncoder(mixing, len(data))
        assert encoder.size == 0
        for start, stop in zip(cuts, cuts[1:]):
            encoder.encode(data[start:stop], start, frequencies[start:stop] if gpt else None)
        codes.append(encoder.finish())
        assert len(codes[-1]) - encoder.size in (0, 1)
    decoder, decoded = MixingDecoder(sides[2], len(data), codes[0]), np.zeros_like(data)
    for start in range(0, len(data), 300):
        decoder.decode(decoded[start:start + 300], start, frequencies[start:start + 300] if gpt else None)
    assert codes[0] == codes[1] and (decoded == data).all() and decoder.overrun == 0
    assert all((one == other).all() for one, other in zip(sides[0].memory, sides[2].memory))


def test_decoder_tells_how_many_bytes_are_missing():
    data = np.frombuffer(np.random.default_rng(6).bytes(500), np.uint8).astype(np.int64)
    encoder = MixingEncoder(Mixing(500), 500)
    encoder.encode(data, 0)
    decoder = MixingDecoder(Mixing(500), 500, encoder.finish()[:100])
    decoder.decode(data, 0)
    assert decoder.overrun > 0


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

"""The range coder against its specification in exact fractions, its invariants, and codes that are not its own."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit, types

from coder import intervals, range_coder
from coder.range_coder import (LARGEST_TOTAL, LENGTH, LOW, OFFSET, POSITION, RANGE, Decoder, Encoder, decode_symbol,
                               decode_target, encode_symbol, finish_encoding, start_decoding, start_encoding)

patient = settings(deadline=None)                       # the first call may compile


# --- the specification ------------------------------------------------------------------------------------------------

def specified_code(frequencies, symbols):
    """The same rounding in exact fractions of the whole: no window and no carry, and every digit is kept."""
    low, length, n = Fraction(0), 1 - Fraction(1, 2 ** 64), 0
    for row, symbol in zip(frequencies.tolist(), symbols.tolist()):
        unit = Fraction(1, 2 ** (64 + 8 * n))
        step = length / unit // sum(row) * unit
        low, length = low + step * sum(row[:symbol]), step * row[symbol]
        while length < Fraction(1, 256 ** (n + 1)):
            n += 1
    while True:
        last = -(-(low + length) * 256 ** n // 1) - 1       # the last multiple of 256^-n that is < low + length
        if last >= low * 256 ** n:
            return int(last).to_bytes(n, "big")
        n += 1


def exact_bits(frequencies, symbols):
    """What the symbols cost by their frequencies, without any rounding: log2 of an exact product."""
    table = frequencies.astype(object)                      # Python's integers
    return sum(intervals.bits(Fraction(row[symbol], sum(row))) for row, symbol in zip(table, symbols))


def table(kind, N, V, rng):
    """Frequencies (N, V) uint32 of a kind."""
    f = np.ones((N, V), np.int64)
    if kind == "small":
        f = rng.integers(1, 10, (N, V))
    elif kind == "like a softmax":
        f = np.exp2(16 - rng.exponential(4, (N, V))).astype(np.int64) + 1
    elif kind == "nearly everything is one symbol":
        f[:, rng.integers(V)] = min(LARGEST_TOTAL - V + 1, 2 ** 32 - 1)
    elif kind == "the largest total" and V > 1:
        f = rng.integers(1, LARGEST_TOTAL // V, (N, V), endpoint=True)
        f[:, rng.integers(V)] += LARGEST_TOTAL - f.sum(axis=1)
    return f.astype(np.uint32)


KINDS = "all ones", "small", "like a softmax", "nearly everything is one symbol", "the largest total"


@st.composite
def streams(draw, most=60):
    """frequencies (N, V) and symbols (N,)"""
    rng = np.random.default_rng(draw(st.integers(0, 2 ** 32 - 1)))
    N, V = draw(st.integers(0, most)), draw(st.sampled_from([1, 2, 256, 300]) | st.integers(1, 300))
    frequencies = table(draw(st.sampled_from(KINDS)), N, V, rng)
    likely, last = frequencies.argmax(axis=1), np.full(N, V - 1)
    return frequencies, np.choose(rng.choice(3, N, p=draw(st.sampled_from([(1, 0, 0), (.9, .1, 0), (0, .5, .5)]))),
                                  [likely, rng.integers(0, V, N), last])


def encoded(frequencies, symbols):
    encoder = Encoder()
    encoder.encode(frequencies, symbols)
    return encoder.finish()


# --- round trips ------------------------------------------------------------------------------------------------------

@patient
@given(streams())
def test_what_was_encoded_is_decoded(stream):
    frequencies, symbols = stream
    decoder = Decoder(encoded(frequencies, symbols))
    assert decoder.decode(frequencies).tolist() == symbols.tolist()
    assert decoder.overrun == 0


@patient
@given(streams(30))
def test_the_code_is_the_specified_one(stream):
    assert encoded(*stream) == specified_code(*stream)


def test_no_symbols_need_no_bytes():
    nothing = np.ones((0, 5), np.uint32)
    assert Encoder().finish() == encoded(nothing, np.zeros(0, int)) == b""
    assert Decoder(b"").decode(nothing).shape == (0,) and Decoder(b"").overrun == 0


@settings(max_examples=30, deadline=None)
@given(streams(), st.lists(st.integers(0, 60)), st.lists(st.integers(0, 60)))
def test_batches_of_any_size_are_one_stream(stream, some_cuts, other_cuts):
    frequencies, symbols = stream
    encoder = Encoder()
    some_cuts = sorted(some_cuts)
    for rows, part in zip(np.split(frequencies, some_cuts), np.split(symbols, some_cuts)):
        encoder.encode(rows, part)
    code = encoder.finish()
    decoder = Decoder(code)
    parts = [decoder.decode(rows) for rows in np.split(frequencies, sorted(other_cuts))]
    assert code == encoded(frequencies, symbols)
    assert np.concatenate(parts).tolist() == symbols.tolist()


def test_an_encoder_is_true_even_before_its_first_byte():
    assert Encoder() and Encoder().size == 0


def test_vocabularies_may_differ_from_batch_to_batch():
    encoder, sizes = Encoder(), (300, 1, 2, 256)
    for V in sizes:
        encoder.encode(np.ones((3, V), np.uint32), [0, V // 2, V - 1])
    decoder = Decoder(encoder.finish())
    assert [decoder.decode(np.ones((3, V), np.uint32)).tolist() for V in sizes] == [[0, V // 2, V - 1] for V in sizes]


def test_finish_changes_nothing():
    rng = np.random.default_rng(1)
    frequencies, symbols = table("small", 300, 7, rng), rng.integers(0, 7, 300)
    encoder = Encoder()
    for i in range(300):
        assert encoder.finish() == encoder.finish() == encoded(frequencies[:i], symbols[:i])
        assert encoder.size <= len(encoder.finish()) <= encoder.size + 1
        encoder.encode(frequencies[i:i + 1], symbols[i:i + 1])


def test_a_long_code_outgrows_its_buffer_many_times():
    rng = np.random.default_rng(2)
    frequencies, symbols = np.ones((50_000, 256), np.uint32), rng.integers(0, 256, 50_000)
    code = encoded(frequencies, symbols)
    assert 50_000 <= len(code) <= 50_001
    assert (Decoder(code).decode(frequencies) == symbols).all()


def test_the_format_stays_as_it_is():
    """These bytes are in people's files.  Whoever changes them changes the container's version."""
    i = np.arange(40)
    frequencies = ((i[:, None] * 7 + np.arange(5) * 11) % 13 + 1).astype(np.uint32)
    assert encoded(frequencies, i * i % 5).hex() == "02ed7b72e1eaac8ddbede48302c2"


# --- the inequalities of the docstring --------------------------------------------------------------------------------

@settings(max_examples=40, deadline=None)
@given(streams(40))
def test_no_stream_breaks_the_invariants(stream):
    frequencies, symbols = stream
    (state, out), code = start_encoding(), encoded(*stream)
    reader, before = start_decoding(np.frombuffer(code, np.uint8)), (Fraction(0), Fraction(1))
    for row, symbol in zip(frequencies.astype(np.uint64), symbols):
        total, start = row.sum(), row[:symbol].sum()
        out = encode_symbol(state, out, start, row[symbol], total)
        assert start <= decode_target(reader, total) < start + row[symbol]
        decode_symbol(reader, np.frombuffer(code, np.uint8), start, row[symbol])

        low, width, n = int(state[LOW]), int(state[RANGE]), int(state[LENGTH])
        units, past = 2 ** (64 + 8 * n), int.from_bytes(out[:n].tobytes(), "big") * 2 ** 64
        assert 2 ** 56 <= width < 2 ** 64                   # (1)
        assert past + low + width <= units                  # (2)
        assert before[0] <= Fraction(past + low, units) < Fraction(past + low + width, units) <= before[1]
        assert reader[OFFSET] < reader[RANGE] == width      # (5), and both move as one
        assert reader[POSITION] == n + 8
        before = Fraction(past + low, units), Fraction(past + low + width, units)


@patient
@given(streams())
def test_the_loss_is_as_derived(stream):
    frequencies, symbols = stream
    loss = 1.4427 * frequencies.sum(axis=1, dtype=np.uint64).astype(float).sum() / 2 ** 56        # (4)
    assert loss <= 1e-7 * len(symbols)
    assert 8 * len(encoded(frequencies, symbols)) <= exact_bits(frequencies, symbols) + loss + 1e-9 + 8


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("V", [2, 256])
def test_a_stream_loses_less_than_a_thousandth_of_a_percent_and_8_bytes(kind, V):
    rng = np.random.default_rng(3)
    frequencies = table(kind, 5_000, V, rng)
    targets = rng.random((5_000, 1)) * frequencies.sum(axis=1, keepdims=True)
    symbols = (frequencies.cumsum(axis=1) > targets).argmax(axis=1)
    assert len(encoded(frequencies, symbols)) <= exact_bits(frequencies, symbols) / 8 * 1.00001 + 8


def test_a_million_nearly_certain_symbols_cost_nothing():
    frequencies = np.tile(np.array([1, 2 ** 32 - 1], np.uint32), (1_000_000, 1))
    assert len(encoded(frequencies, np.ones(1_000_000, int))) <= 1


# --- carry ------------------------------------------------------------------------------------------------------------

def thirds_around_one_half(count):
    """Symbols out of three equal ones that keep 1/2 inside the interval `count` times, and then go above it.

    Also the encoder's bytes before the carry.
    """
    state, out = start_encoding()
    symbols, before, symbol = [], b"", None
    while len(symbols) < count or symbol == 2:              # 2 cannot be left upwards
        low, third = int(state[LOW]), int(state[RANGE]) // 3
        edge = 2 ** 64 if state[LENGTH] else 2 ** 63        # where 1/2 lies in the window
        symbol = (edge - low) // third
        symbols.append(symbol)
        before = out[:int(state[LENGTH])].tobytes()
        out = encode_symbol(state, out, symbol, 1, 3)
    symbols[-1] += 1
    return symbols, before


def test_a_carry_runs_through_as_many_bytes_as_there_are():
    symbols, before = thirds_around_one_half(2000)
    thirds = np.ones((len(symbols), 3), np.uint32)
    code = encoded(thirds, symbols)
    assert len(before) > 390 and before == b"\x7f" + b"\xff" * (len(before) - 1)
    assert code.startswith(b"\x80" + b"\x00" * (len(before) - 1)) and len(code) - len(before) <= 2
    assert Decoder(code).decode(thirds).tolist() == symbols


@pytest.mark.parametrize("carries", [True, False])
def test_without_the_carry_the_same_stream_is_lost(carries, monkeypatch):
    symbols, _ = thirds_around_one_half(100)
    if not carries:
        monkeypatch.setattr(range_coder, "_carry", lambda out, length: None)
    state, out = start_encoding()
    with np.errstate(over="ignore"):                        # in plain Python, where the carry can be taken out
        for symbol in symbols:
            out = encode_symbol.py_func(state, out, symbol, 1, 3)
    decoder = Decoder(finish_encoding(state, out).tobytes())
    assert (decoder.decode(np.ones((len(symbols), 3), np.uint32)).tolist() == symbols) == carries


# --- codes that are not whole -----------------------------------------------------------------------------------------

def test_every_cut_leaves_what_came_well_before_it():
    rng = np.random.default_rng(4)
    frequencies, symbols = np.ones((90, 5), np.uint32), rng.integers(0, 5, 90)
    code = encoded(frequencies, symbols)
    for cut in range(len(code)):
        decoder = Decoder(code[:cut])
        decoded = decoder.decode(frequencies)
        sure = max(0, int(8 * (cut - 1) / np.log2(5)) - 1)
        assert decoded[:sure].tolist() == symbols[:sure].tolist()
        assert 0 <= decoded.min() <= decoded.max() < 5
        assert len(code) - cut - 1 <= decoder.overrun <= len(code) - cut


@settings(max_examples=200, deadline=None)
@given(streams(), st.binary(max_size=200))
def test_any_bytes_decode_to_some_symbols(stream, code):
    frequencies, _ = stream
    decoder = Decoder(code)
    symbols = decoder.decode(frequencies)
    assert symbols.shape == (len(frequencies),) and ((0 <= symbols) & (symbols < frequencies.shape[1])).all()
    assert decoder.overrun <= 4 * len(frequencies)          # (3)


@settings(max_examples=200, deadline=None)
@given(streams(), st.data())
def test_a_flipped_bit_is_harmless(stream, data):
    frequencies, symbols = stream
    code = bytearray(encoded(frequencies, symbols))
    for _ in range(3 if code else 0):
        code[data.draw(st.integers(0, len(code) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    symbols = Decoder(code).decode(frequencies)
    assert ((0 <= symbols) & (symbols < frequencies.shape[1])).all()


@pytest.mark.parametrize("V", [1, 2, 3, 300])
def test_a_number_beyond_every_interval_is_taken_for_the_last_symbol(V):
    decoder = Decoder(b"\xff" * 100)                        # by (2), no encoder writes it
    symbols = decoder.decode(np.ones((200, V), np.uint32))
    assert symbols[0] == V - 1 and 0 <= symbols.min() <= symbols.max() < V


def test_zeros_behind_the_code_change_nothing():
    rng = np.random.default_rng(5)
    frequencies, symbols = table("like a softmax", 50, 20, rng), rng.integers(0, 20, 50)
    code = encoded(frequencies, symbols)
    for zeros in range(20):
        assert (Decoder(code + bytes(zeros)).decode(frequencies) == symbols).all()
    assert (Decoder(code.rstrip(b"\0")).decode(frequencies) == symbols).all()


# --- errors -----------------------------------------------------------------------------------------------------------

ONES = np.ones((2, 3), np.uint32)


@pytest.mark.parametrize("frequencies, says", [
    (ONES.astype(np.int64), "uint32"), (ONES.astype(np.float32), "uint32"), (ONES[0], r"\(N, V\)"),
    (ONES * np.uint32(0), "row 0"), (np.array([[1, 1], [1, 0]], np.uint32), "row 1"), (ONES[:, :0], "row 0"),
    (np.array([[1, 1], [2 ** 32 - 1, 2]], np.uint32), "row 1 .* sum at most 4294967296"),
    (np.full((2, 300), 2 ** 32 - 1, np.uint32), "row 0")])
def test_wrong_frequencies_are_an_error_on_both_sides(frequencies, says):
    with pytest.raises(ValueError, match=says):
        Encoder().encode(frequencies, [0, 0])
    with pytest.raises(ValueError, match=says):
        Decoder(b"").decode(frequencies)


@pytest.mark.parametrize("symbols, says", [
    ([0, 3], "0..2, but go from 0 to 3"), ([-1, 0], "from -1 to 0"),
    (np.array([2 ** 64 - 1, 0], np.uint64), "to 18446744073709551615"),
    ([0], r"2 integers.*\(1,\)"), ([[0], [0]], r"\(2, 1\)"), ([0.0, 1.0], "float64"), ([True, False], "bool")])
def test_wrong_symbols_are_an_error_and_leave_the_encoder_as_it_was(symbols, says):
    encoder = Encoder()
    encoder.encode(ONES, [1, 2])
    with pytest.raises(ValueError, match=says):
        encoder.encode(ONES, symbols)
    assert encoder.finish() == encoded(ONES, [1, 2])


@pytest.mark.parametrize("start, size, total", [
    (0, 0, 1), (0, 2, 1), (1, 1, 1), (-1, 1, 3), (0, -1, 3), (2, 2, 3), (0, 1, 0), (0, 1, 2 ** 32 + 1),
    (2 ** 62, 1, 3)])
def test_an_interval_that_is_none_is_an_error_in_numba_too(start, size, total):
    with pytest.raises(ValueError, match="start < start . size <= total"):
        encode_symbol(*start_encoding(), start, size, total)


def test_a_size_or_total_out_of_range_is_an_error_in_numba_too():
    code = np.zeros(0, np.uint8)
    state = start_decoding(code)
    for total in 0, -1, LARGEST_TOTAL + 1:
        with pytest.raises(ValueError, match="total must lie in"):
            decode_target(state, total)
    decode_target(state, 3)
    with pytest.raises(ValueError, match="size of 1 or more"):
        decode_symbol(state, code, 0, 0)


# --- types ------------------------------------------------------------------------------------------------------------

@njit
def bits_there_and_back(bits, zeros):
    """Code bits, of which bit i is 0 with probability zeros[i] / 2^16: all in Numba, as a model of bits would do it."""
    state, out = start_encoding()
    for bit, zero in zip(bits, zeros):
        out = encode_symbol(state, out, zero if bit else 0, 65536 - zero if bit else zero, 65536)
    code = finish_encoding(state, out)
    state, decoded = start_decoding(code), np.empty_like(bits)
    for i, zero in enumerate(zeros):
        bit = decode_target(state, 65536) >= np.uint64(zero)
        decode_symbol(state, code, zero if bit else 0, 65536 - zero if bit else zero)
        decoded[i] = bit
    return len(code), decoded


def test_a_model_of_bits_runs_within_numba():
    rng = np.random.default_rng(6)
    zeros = rng.integers(1, 65536, 20_000)
    bits = (rng.integers(0, 65536, 20_000) >= zeros).astype(np.uint8)
    length, decoded = bits_there_and_back(bits, zeros)
    ideal = -np.log2(np.where(bits, 65536 - zeros, zeros) / 65536).sum()
    assert (decoded == bits).all() and ideal - 8 < 8 * length < ideal + 8 + 0.002


@pytest.mark.parametrize("kind", [np.int64, np.uint32, np.uint64])
def test_integers_of_any_type_narrow_alike(kind):
    (state, out), (state_too, out_too) = start_encoding(), start_encoding()
    for i in range(100):
        out = encode_symbol(state, out, kind(i), kind(i + 2 ** 31), kind(2 ** 32 - 1))
        out_too = encode_symbol(state_too, out_too, i, i + 2 ** 31, 2 ** 32 - 1)
    assert (finish_encoding(state, out) == finish_encoding(state_too, out_too)).all()


INT, STATE, BYTES, TABLE = types.int64, types.uint64[::1], types.uint8[::1], types.uint32[:, ::1]
ARGUMENTS = {
    "start_encoding": (), "encode_symbol": (STATE, BYTES, INT, INT, INT), "_carry": (BYTES, INT),
    "finish_encoding": (STATE, BYTES), "start_decoding": (BYTES,), "_read": (STATE, BYTES),
    "decode_target": (STATE, INT), "decode_symbol": (STATE, BYTES, INT, INT), "_totals": (TABLE,),
    "find_symbol": (types.Array(types.uint32, 1, "C"), types.uint64),
    "make_room": (STATE, BYTES, INT), "encode_bit": (STATE, BYTES, INT, INT), "decode_bit": (STATE, BYTES, INT),
    "_encode": (STATE, BYTES, TABLE, types.uint64[::1], types.int64[::1]),
    "_decode": (STATE, BYTES, TABLE, types.uint64[::1])}


def wrong_types(function, arguments):
    """A function's variables that are floats, and its operations in which a uint64 meets a signed integer.

    Of such a pair Numba makes float64 or int64, depending on its version, and neither holds a uint64.
    """
    fresh = njit(function)                                  # what comes from the cache has no types any more
    fresh.compile(arguments)
    inferred = fresh.overloads[arguments].type_annotation
    floats = [name for name, kind in inferred.typemap.items() if isinstance(getattr(kind, "dtype", kind), types.Float)]
    mixed = [str(operation) for operation, signature in inferred.calltypes.items()
             if getattr(operation, "op", "") in ("binop", "inplace_binop") and types.uint64 in signature.args
             and any(isinstance(kind, types.Integer) and kind.signed for kind in signature.args)]
    return floats + mixed


def test_all_arithmetic_of_the_coder_is_in_one_type_of_integer():
    assert wrong_types(lambda a, b: a + b, (types.int64, types.uint64)) != []
    assert wrong_types(lambda a: a // 3, (types.uint64,)) != []
    assert wrong_types(lambda a: a * 0.5, (types.int64,)) != []
    functions = {name: f.py_func for name, f in vars(range_coder).items() if hasattr(f, "py_func")}
    assert functions.keys() == ARGUMENTS.keys()
    assert {name: wrong_types(f, ARGUMENTS[name]) for name, f in functions.items()} == dict.fromkeys(functions, [])

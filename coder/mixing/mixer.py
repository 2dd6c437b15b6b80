"""Context mixing: the bits of each byte, predicted by many contexts, by matches and, if there is one, by the GPT.

                 bit histories, run models of each context ──┐
    the past ──▶ match model                               ──┼──▶ some mixers, whose   ──▶ a final mixer ──▶ two APMs ──▶ p
                 the GPT's frequencies, an APM of them     ──┘    weights are selected     of their outputs
                                                                  by a small context each

The architecture is that of PAQ [Mahoney 2005; "Data Compression Explained", 2013]: predict a bit, code it, update every
component that took part.  Encoder and decoder run the same `predict` and `update`; between them the bit goes into the range
coder in the one, and comes out of it in the other.

The GPT predicts a byte, with 256 frequencies.  They predict the next bit as well, given the bits before it: of the bytes that
begin with those, the share of the ones that go on with a 1.

The model lives on from block to block.  Before the first one it may learn from a text that both sides know: the primer.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numba import njit

from ..range_coder import (LENGTH, decode_bit, encode_bit, finish_encoding, make_room, overrun, start_decoding,
                           start_encoding)
from .contexts import ALL_CONTEXTS, FAST_CONTEXTS, FIELDS, HISTORY, LINE_START, ORDERS, WORD_LENGTH, hash_contexts, update_past
from .histories import (BUCKET_WORDS, HISTORY_NODE_STATES, HISTORY_P_STATES, LONG_MATCH, MATCH_HASH_BITS, MATCHES, RUN_HASH_BITS,
                        SHORT_MATCH, find_buckets, find_match, find_runs, new_history_node_statemap, new_length_statemap,
                        predict_expected, predict_histories, prefetch_buckets, update_expected, update_histories,
                        update_matches, update_runs)
from .logistic import (P_ONE, RECIPROCALS, SQUASH, STRETCH, WEIGHT_ONE, X_LIMIT, dot_product, new_apm, refine, train,
                       update_apm, update_statemap)

# Each mixer selects a row of its weights by a small context.  How many rows they have:
SELECTORS = 256, 16 * 8, 256                # the byte's bits so far; length of the long match, confidence of the orders; order 1
MORE_SELECTORS = 256, 256, 256              # not in fast mode: the byte before; word length, bit, short match; column
GPT_SELECTOR = 16 * 8                       # confidence of the GPT, confidence of the orders
GPT_INPUTS = 3
BIAS = 256                                  # an input of 1.0
FIRST_RATE, LAST_RATE, RATE_PERIOD = 20, 3, 2048    # of the mixers: falls by 1 every 2048 bytes
FINAL_RATE = 2                              # of the final mixer
FAST_WEIGHT, FIRST_WEIGHT, GPT_WEIGHT = 0.12, 0.05, 0.2     # to begin with; fast mode has fewer inputs
WEIGHTS_AFTER_PRIMER = 0.75                 # of the weights learned from a primer, where the GPT joins in afterwards
LARGEST_TABLE = 23                          # 2^23 buckets of 64 bytes: 512 MiB
APM_1_CONTEXTS = 2 ** 16                    # of the APMs: order 1 and the byte's bits so far
APM_3_CONTEXTS = 2 ** 13                    # order 3 and those bits, hashed; so few that the curves stay in a cache

NO_FREQUENCIES = np.empty((0, 256), np.uint32)


class Memory(NamedTuple):
    """The state of the model, the same in encoder and decoder.  N contexts, G = MATCHES + N expected bytes, K mixers."""
    text: np.ndarray                # (size,) uint8: every byte at its position
    past: np.ndarray                # (FIELDS,) uint64
    followers: np.ndarray           # (2, 2^16) uint64: the last 8 bytes that followed each byte, each pair of bytes
    selected: np.ndarray            # (N,) int64: the contexts in use, indices in CONTEXTS
    table: np.ndarray               # (buckets, BUCKET_WORDS) uint32
    p_statemaps: np.ndarray         # (N, HISTORY_P_STATES) uint32
    node_statemaps: np.ndarray      # (N, HISTORY_NODE_STATES) uint32; (0, HISTORY_NODE_STATES) in fast mode
    matches: np.ndarray             # (MATCHES, 2) int64
    last_seen: np.ndarray           # (MATCHES, 2^MATCH_HASH_BITS) int32
    runs: np.ndarray                # (N, 2^RUN_HASH_BITS) uint16; (0, 2^RUN_HASH_BITS) in fast mode, where G = MATCHES
    length_statemaps: np.ndarray    # (G, 2 * LENGTH_STEPS) uint32
    weights: np.ndarray             # (rows, inputs) int32
    first_rows: np.ndarray          # (K,) int64: where in weights each mixer's rows begin
    final_weights: np.ndarray       # (256, K) int32
    apm_1: np.ndarray               # (APM_1_CONTEXTS * APM_POINTS,) uint16
    apm_3: np.ndarray               # (APM_3_CONTEXTS * APM_POINTS,) uint16
    apm_gpt: np.ndarray             # (APM_1_CONTEXTS * APM_POINTS,) uint16; (0,) without a GPT
    squash: np.ndarray              # the tables of logistic.py; as globals they would be compiled into the code
    stretch: np.ndarray
    reciprocals: np.ndarray


class Scratch(NamedTuple):
    """What lives for a byte or a bit, and which parts there are; made once for all bytes of a call."""
    fast: bool
    gpt: bool                       # the mixers have inputs for a GPT, and a selector
    has_frequencies: bool           # it predicts these bytes; it does not predict a primer
    orders: int                     # how many of the selected contexts are orders whose confidence counts
    values: np.ndarray              # (ALL_CONTEXTS,) uint64: of the contexts; (FAST_CONTEXTS,) in fast mode
    hashes: np.ndarray              # (N,) uint64: of the selected contexts
    buckets: np.ndarray             # (N,) uint64: index in table
    history_states: np.ndarray      # (N,) int64: index in p_statemaps, or -1
    run_entries: np.ndarray         # (N,) int64: index in runs
    expected: np.ndarray            # (G,) int64: 256 + byte, or 0
    lengths: np.ndarray             # (G,) int64: of the matches and runs that expect them
    length_states: np.ndarray       # (G,) int64: index in length_statemaps, or -1
    sums: np.ndarray                # (512,) int64: the GPT's frequencies as a binary tree, see `sum_frequencies`
    inputs: np.ndarray              # (n,) int32: 3 or 4 of each context, G of matches and runs, a bias, GPT_INPUTS of the GPT
    rows: np.ndarray                # (K,) int64: the rows of weights that are selected
    outputs: np.ndarray             # (K,) int32: of the mixers


class Prediction(NamedTuple):
    """Of a bit, and what `update` needs to know of it."""
    p: int                          # that it is 1
    mixed: int                      # the same, before the APMs
    apm_1_point: int
    apm_3_point: int
    apm_gpt_point: int


class Mixing:
    """The model of a file of `size` bytes, primer included, with or without a GPT.

    fast: fewer contexts and selectors, no run model.  contexts: which of CONTEXTS, if not those of the mode, to measure their worth.
    """

    def __init__(self, size: int, gpt: bool = False, fast: bool = False, contexts: Sequence[int] | None = None):
        self.fast, self.gpt, self.end = fast, gpt, 0
        in_mode = FAST_CONTEXTS if fast else ALL_CONTEXTS
        selected = np.arange(in_mode) if contexts is None else np.array(contexts, np.int64)
        selectors = [*SELECTORS, *MORE_SELECTORS * (not fast), *[GPT_SELECTOR] * gpt]
        N, K, rows = len(selected), len(selectors), np.cumsum([0, *selectors])
        each = 3 if fast else 4                                         # inputs of a context
        G = MATCHES + N * (not fast)
        inputs = each * N + G + 1 + GPT_INPUTS * gpt
        table_bits = min(max((size * in_mode).bit_length() - 1 - fast, 12), LARGEST_TABLE)  # 1/2 to 1 bucket a byte and context
        p_states = np.clip(np.arange(32) * 128 - 2048 + 64, -X_LIMIT, X_LIMIT) + X_LIMIT
        self.memory = Memory(
            text=np.zeros(size, np.uint8), past=np.zeros(FIELDS, np.uint64), followers=np.zeros((2, 2 ** 16), np.uint64),
            selected=selected, table=np.zeros((2 ** table_bits, BUCKET_WORDS), np.uint32),
            p_statemaps=np.tile(SQUASH[p_states].astype(np.uint32) << 16, (N, HISTORY_P_STATES // 32)),
            node_statemaps=np.tile(new_history_node_statemap(), (N * (not fast), 1)),
            matches=np.zeros((MATCHES, 2), np.int64), last_seen=np.zeros((MATCHES, 2 ** MATCH_HASH_BITS), np.int32),
            runs=np.zeros((G - MATCHES, 2 ** RUN_HASH_BITS), np.uint16),
            length_statemaps=np.tile(new_length_statemap(), (G, 1)),
            weights=np.zeros((rows[-1], inputs), np.int32), first_rows=rows[:-1].astype(np.int64),
            final_weights=np.full((256, K), WEIGHT_ONE // K, np.int32),
            apm_1=new_apm(APM_1_CONTEXTS), apm_3=new_apm(APM_3_CONTEXTS), apm_gpt=new_apm(APM_1_CONTEXTS * gpt),
            squash=SQUASH, stretch=STRETCH, reciprocals=RECIPROCALS)
        weights, weight = self.memory.weights, int(WEIGHT_ONE * (FAST_WEIGHT if fast else FIRST_WEIGHT))
        weights[:, 0:each * N:each] = weights[:, 1:each * N:each] = weights[:, each * N:each * N + MATCHES] = weight
        self._trust_gpt()

    def _trust_gpt(self):
        if self.gpt:
            self.memory.weights[:, [-3, -1]] = int(WEIGHT_ONE * GPT_WEIGHT)

    def prime(self, data: bytes) -> None:
        """Learn from data before the first block, as if it was coded."""
        symbols = np.frombuffer(data, np.uint8).astype(np.int64)
        MixingEncoder(self, len(data)).encode(symbols, 0)
        if self.gpt:
            self.memory.weights[...] = self.memory.weights.astype(np.int64) * int(WEIGHTS_AFTER_PRIMER * 256) >> 8
            self._trust_gpt()

    def begin(self, size: int) -> int:
        """A block of `size` bytes begins: its position in the text.  ValueError if it does not fit in."""
        if self.end + size > len(self.memory.text):
            raise ValueError(f"the mixing model was made for {len(self.memory.text)} bytes, but now there are {self.end + size}")
        self.end += size
        return self.end - size


class MixingEncoder:
    """The code of one block of `size` bytes."""

    def __init__(self, mixing: Mixing, size: int):
        self._mixing, self._position = mixing, mixing.begin(size)
        self._state, self._code = start_encoding()

    def encode(self, symbols: np.ndarray, start: int, frequencies: np.ndarray | None = None) -> None:
        """Append symbols (n,) int64, the bytes from `start` on in the block; all before them must have been encoded.

        frequencies: (n, 256) uint32, what the GPT predicts for each.
        """
        self._code = _encode(self._mixing.memory, self._mixing.fast, self._mixing.gpt, self._position + start,
                             _contiguous(frequencies), self._state, self._code, symbols)

    @property
    def size(self) -> int:
        """How many bytes have left so far; `finish` gives at most one more."""
        return int(self._state[LENGTH])

    def finish(self) -> bytes:
        """The code of all symbols so far."""
        return finish_encoding(self._state, self._code).tobytes()


class MixingDecoder:
    """The bytes of one block of `size` bytes, from its code."""

    def __init__(self, mixing: Mixing, size: int, code: bytes):
        self._mixing, self._position = mixing, mixing.begin(size)
        self._code = np.frombuffer(bytes(code), np.uint8).copy()        # writable, as the encoder's is: one type to compile for
        self._state = start_decoding(self._code)

    def decode(self, symbols: np.ndarray, start: int, frequencies: np.ndarray | None = None) -> None:
        """Write the bytes from `start` on in the block to symbols (n,) int64.  A damaged code gives some other bytes.

        frequencies: as they were encoded with.
        """
        _decode(self._mixing.memory, self._mixing.fast, self._mixing.gpt, self._position + start, _contiguous(frequencies),
                self._state, self._code, symbols)

    @property
    def overrun(self) -> int:
        """Bytes that were missing so far; more than 0 proves that the code was cut off or damaged."""
        return overrun(self._state, self._code)


def _contiguous(frequencies):
    return NO_FREQUENCIES if frequencies is None else np.ascontiguousarray(frequencies)


# --- encoder and decoder ----------------------------------------------------------------------------------------------

@njit(cache=True)
def _encode(memory, fast, gpt, start, frequencies, state, code, symbols):
    """MixingEncoder.encode, from position `start` on.  Returns the buffer of the code, maybe a larger one."""
    scratch = begin_bytes(memory, fast, gpt, start, frequencies)
    code = make_room(state, code, len(symbols))
    for i in range(len(symbols)):
        begin_byte(memory, scratch, start + i, frequencies, i)
        partial = 1                                             # a 1, then the byte's bits so far
        for bit in range(8):
            prediction = predict(memory, scratch, start + i, partial, bit)
            y = symbols[i] >> 7 - bit & 1
            encode_bit(state, code, prediction.p, y)
            update(memory, scratch, start + i, partial, bit, prediction, y)
            partial = partial << 1 | y
    return code


@njit(cache=True)
def _decode(memory, fast, gpt, start, frequencies, state, code, symbols):
    """MixingDecoder.decode, from position `start` on."""
    scratch = begin_bytes(memory, fast, gpt, start, frequencies)
    for i in range(len(symbols)):
        begin_byte(memory, scratch, start + i, frequencies, i)
        partial = 1
        for bit in range(8):
            prediction = predict(memory, scratch, start + i, partial, bit)
            y = decode_bit(state, code, prediction.p)
            update(memory, scratch, start + i, partial, bit, prediction, y)
            partial = partial << 1 | y
        symbols[i] = partial & 255


# --- the model --------------------------------------------------------------------------------------------------------

@njit(cache=True)
def begin_bytes(memory, fast, gpt, start, frequencies):
    """The Scratch for bytes from position `start` on."""
    N, G, K, n = len(memory.selected), len(memory.length_statemaps), len(memory.first_rows), memory.weights.shape[1]
    scratch = Scratch(
        fast, gpt, len(frequencies) > 0, np.searchsorted(memory.selected, ORDERS),
        np.empty(FAST_CONTEXTS if fast else ALL_CONTEXTS, np.uint64), np.empty(N, np.uint64), np.empty(N, np.uint64),
        np.zeros(N, np.int64), np.zeros(N, np.int64), np.zeros(G, np.int64), np.zeros(G, np.int64), np.zeros(G, np.int64),
        np.zeros(512, np.int64), np.zeros(n, np.int32), np.zeros(K, np.int64), np.zeros(K, np.int32))
    hash_next(memory, scratch, start)
    return scratch


@njit(cache=True, _nrt=False)
def hash_next(memory, scratch, position):
    """Hash the contexts of the byte at `position`, and prefetch the buckets of its first nibble."""
    hash_contexts(memory.past, memory.text, position, memory.followers, memory.matches, memory.selected, scratch.values,
                  scratch.hashes)
    prefetch_buckets(memory.table, scratch.hashes, 0)


@njit(cache=True, _nrt=False)
def begin_byte(memory, scratch, position, frequencies, i):
    """What is the same for all bits of the byte: which bytes are expected, and what the GPT says."""
    for k in range(MATCHES):
        scratch.expected[k], scratch.lengths[k] = find_match(memory.matches, k, memory.text, position, memory.past[HISTORY],
                                                             memory.last_seen)
    find_runs(memory.runs, scratch.hashes, scratch.run_entries, scratch.expected, scratch.lengths)
    if scratch.has_frequencies:
        sum_frequencies(frequencies, i, scratch.sums)


@njit(cache=True)
def sum_frequencies(frequencies, i, sums):
    """sums (512,) int64: at 256 + byte its frequency, at each `partial` the sum of the bytes that begin with those bits."""
    for byte in range(256):
        sums[256 + byte] = np.int64(frequencies[i, byte])
    for partial in range(255, 0, -1):
        sums[partial] = sums[2 * partial] + sums[2 * partial + 1]


@njit(cache=True, _nrt=False, forceinline=True)
def predict(memory, scratch, position, partial, bit):
    """The Prediction of the next bit: the `bit`-th, 0 .. 7, of the byte at `position`, after those in `partial`."""
    inputs, stretch, squash = scratch.inputs, memory.stretch, memory.squash
    N, G = len(scratch.hashes), len(scratch.expected)
    last_three = np.int64(memory.past[HISTORY] & np.uint64(0xFFFFFF))
    order_1 = last_three & 255
    if bit & 3 == 0:
        find_buckets(memory.table, scratch.hashes, scratch.buckets)
    known = predict_histories(memory.table, scratch.buckets, nibble_node(partial, bit), partial, scratch.orders,
                              memory.p_statemaps, memory.node_statemaps, scratch.history_states, inputs, stretch)
    first_expected = (3 if scratch.fast else 4) * N
    predict_expected(scratch.expected, scratch.lengths, partial, bit, memory.length_statemaps, scratch.length_states, inputs,
                     first_expected, stretch)
    inputs[first_expected + G] = BIAS
    gpt_x, apm_gpt_point = 0, 0
    if scratch.has_frequencies:
        p = min(max((scratch.sums[2 * partial + 1] << 16) // scratch.sums[partial], 1), P_ONE - 1)
        gpt_x = np.int64(stretch[p])
        refined, apm_gpt_point = refine(memory.apm_gpt, partial | order_1 << 8, gpt_x)
        inputs[-3], inputs[-2], inputs[-1] = gpt_x, (p - P_ONE // 2) >> 4, stretch[refined]

    rows = scratch.rows
    match_length = min(scratch.lengths[LONG_MATCH], 31) if scratch.length_states[LONG_MATCH] >= 0 else 0
    rows[0], rows[1], rows[2] = partial, (match_length >> 1) * 8 + known, order_1
    if not scratch.fast:
        rows[3] = last_three >> 8 & 255
        rows[4] = min(np.int64(memory.past[WORD_LENGTH]), 15) * 16 + bit * 2 + (scratch.length_states[SHORT_MATCH] >= 0)
        rows[5] = min(position - np.int64(memory.past[LINE_START]), 255)
    if scratch.gpt:
        rows[-1] = (min(abs(gpt_x), 2047) >> 7) * 8 + known
    for k in range(len(rows)):
        rows[k] += memory.first_rows[k]
        scratch.outputs[k] = dot_product(memory.weights, rows[k], inputs)

    x = dot_product(memory.final_weights, partial, scratch.outputs)
    mixed = np.int64(squash[x + X_LIMIT])
    by_order_1, apm_1_point = refine(memory.apm_1, partial | order_1 << 8, x)
    hashed = (last_three * 0x2F0B4C47 >> 16 ^ partial * 0x9E35) & APM_3_CONTEXTS - 1
    by_order_3, apm_3_point = refine(memory.apm_3, hashed, x)
    p = (2 * mixed + by_order_1 + by_order_3 + 2) >> 2
    return Prediction(p, mixed, apm_1_point, apm_3_point, apm_gpt_point)


@njit(cache=True, _nrt=False, forceinline=True)
def update(memory, scratch, position, partial, bit, prediction, y):
    """Learn that the bit is y.  The buckets of the next nibble are prefetched before, and arrive meanwhile."""
    longer = partial << 1 | y
    if bit == 7:
        end_byte(memory, scratch, position, longer & 255)
    elif bit == 3:
        prefetch_buckets(memory.table, scratch.hashes, longer)
    update_histories(memory.table, scratch.buckets, nibble_node(partial, bit), partial, memory.p_statemaps,
                     memory.node_statemaps, scratch.history_states, y, memory.reciprocals)
    update_expected(memory.length_statemaps, scratch.length_states, y, memory.reciprocals)
    rate = max(FIRST_RATE - position // RATE_PERIOD, LAST_RATE)
    for k in range(len(scratch.rows)):
        error = (y << 16) - np.int64(memory.squash[scratch.outputs[k] + X_LIMIT])
        train(memory.weights, scratch.rows[k], scratch.inputs, error, rate)
    train(memory.final_weights, partial, scratch.outputs, (y << 16) - prediction.mixed, FINAL_RATE)
    update_apm(memory.apm_1, prediction.apm_1_point, y)
    update_apm(memory.apm_3, prediction.apm_3_point, y)
    if scratch.has_frequencies:
        update_apm(memory.apm_gpt, prediction.apm_gpt_point, y)


@njit(cache=True, _nrt=False)
def end_byte(memory, scratch, position, byte):
    """The byte at `position` is known."""
    update_runs(memory.runs, scratch.run_entries, byte)
    update_past(memory.past, memory.text, position, memory.followers, byte)
    update_matches(memory.matches, memory.text, byte)
    hash_next(memory, scratch, position + 1)


@njit(cache=True)
def nibble_node(partial, bit):
    """The nibble's bits so far, behind a leading 1."""
    depth = bit & 3
    return 1 << depth | partial & (1 << depth) - 1


class Mixer:
    """What codec.py calls so far: a MixingEncoder, or the MixingDecoder of a code (bytes)."""

    def __init__(self, mixing, size, code=None):
        self.decoding = code is not None
        self.coder = MixingDecoder(mixing, size, code) if self.decoding else MixingEncoder(mixing, size)

    def code(self, symbols, start, stop, frequencies=None):
        code = self.coder.decode if self.decoding else self.coder.encode
        code(symbols[0, start:stop], start, None if frequencies is None else frequencies[:, 0])

    def __len__(self):
        return self.coder.size

    def finish(self):
        return self.coder.finish()

    @property
    def overrun(self):
        return self.coder.overrun

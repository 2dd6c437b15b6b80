"""Context mixing, in the manner of PAQ: each bit is predicted by many models, whose predictions a small network mixes.

                ┌──▶ bit histories of each context, StateMaps ──┐
    the past ───┼──▶ run model of each context, StateMaps     ──┤     mixers, each with      final mixer
                ├──▶ match model, StateMaps                   ──┼──▶  weights selected by ──▶ of their   ──▶ two APMs ──▶ p
                └──▶ the GPT's frequencies, an APM            ──┘     a small context         outputs

Predict a bit, code it, update every component that took part [Mahoney 2005; "Data Compression Explained", 2013].  Encoder and
decoder run the same `predict` and `update`; between the two, the bit goes into the range coder or comes out of it.

    logistic.py     the arithmetic: squash, stretch, mixer, StateMap, APM
    contexts.py     what may predict the next byte, a table
    kinds.py        text or records: which contexts, in fast mode
    histories.py    what followed before: bit histories, run model, match model
    predict.py      the two steps, for one bit
    mixer.py        the state of all that; encoder and decoder of a block

The GPT predicts a byte, with 256 frequencies.  They predict the next bit as well, given the bits before it: p is the share,
among the bytes that begin with those, of the ones that continue with a 1.

The model carries over from block to block.  Before the first one it may learn from a text that both sides know: the primer.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numba import njit

from ..range_coder import (LENGTH, decode_bit, encode_bit, finish_encoding, make_room, overrun, start_decoding,
                           start_encoding)
from .contexts import ALL_CONTEXTS, FAST_CONTEXTS, FIELDS, PERIOD, RECORD_CONTEXTS
from .histories import (BUCKET_WORDS, HISTORY_P_STATES, MATCH_HASHES, MATCHES, RUN_HASHES, new_history_node_statemap,
                        new_length_statemap)
from .kinds import find_period, next_look
from .logistic import RECIPROCALS, SQUASH, STRETCH, WEIGHT_ONE, X_LIMIT, new_apm
from .predict import (APM_1_CONTEXTS, APM_3_CONTEXTS, GPT_INPUTS, GPT_SELECTOR, MORE_SELECTORS, RECORD_SELECTORS,
                      SELECTORS, begin_byte, begin_bytes, predict, update)

MOST_TABLE_BITS = 23        # 2^23 buckets of 64 bytes: 512 MiB; below, 1/2 to 1 per byte and context, in fast mode half that
FAST_WEIGHT, FIRST_WEIGHT, GPT_WEIGHT = 0.12, 0.05, 0.2     # initial ones; fast mode has fewer inputs
WEIGHTS_AFTER_PRIMER = 0.75                 # factor of the weights learned from a primer, where the GPT joins in afterwards

NO_FREQUENCIES = np.empty((0, 256), np.uint32)


class Memory(NamedTuple):
    """The state of the model, the same in encoder and decoder.  N contexts, G = MATCHES + N expected bytes, K mixers."""
    text: np.ndarray                # (size,) uint8: every byte at its position
    past: np.ndarray                # (FIELDS,) uint64: see contexts.py
    followers: np.ndarray           # (2, 2^16) uint64: the last 8 bytes that followed each byte, each pair of bytes
    selected: np.ndarray            # (N,) int64: the contexts in use, indices in CONTEXTS
    table: np.ndarray               # (buckets, BUCKET_WORDS) uint32
    p_statemaps: np.ndarray         # (N, HISTORY_P_STATES) uint32
    node_statemaps: np.ndarray      # (N, HISTORY_NODE_STATES) uint32; (0, HISTORY_NODE_STATES) in fast mode
    matches: np.ndarray             # (MATCHES, 2) int64
    last_seen: np.ndarray           # (MATCHES, MATCH_HASHES) int32
    runs: np.ndarray                # (N, RUN_HASHES) uint16; (0, RUN_HASHES) in fast mode, where G = MATCHES
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


class Mixing:
    """The model of a file of `size` bytes, primer included, with or without a GPT.

    fast: fewer contexts and mixers, no run model.  kinds: in fast mode, other contexts where the data is not text (kinds.py).
    contexts: ascending indices in CONTEXTS, to measure what the omitted ones are worth.
    trust: the initial weights of a context and of the GPT, in place of the usual ones.
    """

    def __init__(self, size: int, gpt: bool = False, fast: bool = False, contexts: Sequence[int] | None = None,
                 trust: tuple[float, float] | None = None, kinds: bool = False):
        self.fast, self.gpt, self.end = fast, gpt, 0
        in_mode = FAST_CONTEXTS if fast else ALL_CONTEXTS
        selected = np.arange(in_mode) if contexts is None else np.array(contexts, np.int64)
        selectors = [*SELECTORS, *MORE_SELECTORS * (not fast), *[GPT_SELECTOR] * gpt]
        N, K, rows = len(selected), len(selectors), np.cumsum([0, *selectors])
        each = 3 if fast else 4                                         # inputs of a context
        G = MATCHES + N * (not fast)
        inputs = each * N + G + 1 + GPT_INPUTS * gpt
        table_bits = min(max((size * in_mode).bit_length() - 1 - fast, 12), MOST_TABLE_BITS)
        p_states = np.clip(np.arange(32) * 128 - 2048 + 64, -X_LIMIT, X_LIMIT) + X_LIMIT     # the middle of each step
        self.memory = Memory(
            text=np.zeros(size, np.uint8), past=np.zeros(FIELDS, np.uint64), followers=np.zeros((2, 1 << 16), np.uint64),
            selected=selected, table=np.zeros((1 << table_bits, BUCKET_WORDS), np.uint32),
            p_statemaps=np.tile(SQUASH[p_states].astype(np.uint32) << 16, (N, HISTORY_P_STATES // 32)),
            node_statemaps=np.tile(new_history_node_statemap(), (N * (not fast), 1)),
            matches=np.zeros((MATCHES, 2), np.int64), last_seen=np.zeros((MATCHES, MATCH_HASHES), np.int32),
            runs=np.zeros((G - MATCHES, RUN_HASHES), np.uint16),
            length_statemaps=np.tile(new_length_statemap(), (G, 1)),
            weights=np.zeros((rows[-1], inputs), np.int32), first_rows=rows[:-1].astype(np.int64),
            final_weights=np.full((256, K), WEIGHT_ONE // K, np.int32),
            apm_1=new_apm(APM_1_CONTEXTS), apm_3=new_apm(APM_3_CONTEXTS), apm_gpt=new_apm(APM_1_CONTEXTS * gpt),
            squash=SQUASH, stretch=STRETCH, reciprocals=RECIPROCALS)
        first, self.gpt_weight = trust or (FAST_WEIGHT if fast else FIRST_WEIGHT, GPT_WEIGHT)
        weights, weight = self.memory.weights, int(WEIGHT_ONE * first)
        weights[:, 0:each * N:each] = weights[:, 1:each * N:each] = weights[:, each * N:each * N + MATCHES] = weight
        self._trust_gpt()
        self._of_text, self._of_records = self.memory, self._for_records(weight) if kinds else None

    def _for_records(self, weight):
        """The same memory with the contexts of records, which have StateMaps and weights of their own."""
        N, K, rows = len(RECORD_CONTEXTS), len(RECORD_SELECTORS), np.cumsum([0, *RECORD_SELECTORS])
        weights = np.zeros((rows[-1], 3 * N + MATCHES + 1), np.int32)
        weights[:, 0:3 * N:3] = weights[:, 1:3 * N:3] = weights[:, 3 * N:3 * N + MATCHES] = weight
        return self.memory._replace(
            selected=np.array(RECORD_CONTEXTS, np.int64), p_statemaps=np.tile(self.memory.p_statemaps[:1], (N, 1)),
            length_statemaps=self.memory.length_statemaps.copy(), weights=weights, first_rows=rows[:-1].astype(np.int64),
            final_weights=np.full((256, K), WEIGHT_ONE // K, np.int32))

    def parts(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Split text[start:stop] into parts (start, stop) of one kind each, and set `memory` for each as it is yielded.

        The text before a part must be known when the part is requested.
        """
        while start < stop:
            end = min(stop, next_look(start)) if self._of_records else stop
            if self._of_records and next_look(start - 1) == start:
                self.memory.past[PERIOD] = period = find_period(self.memory.text, start)
                self.memory = self._of_records if period else self._of_text
            yield start, end
            start = end

    def _trust_gpt(self):
        if self.gpt:
            self.memory.weights[:, [-3, -1]] = int(WEIGHT_ONE * self.gpt_weight)

    def prime(self, data: bytes) -> None:
        """Learn from data before the first block, as if it were coded."""
        symbols = np.frombuffer(data, np.uint8).astype(np.int64)
        MixingEncoder(self, len(data)).encode(symbols, 0)
        if self.gpt:
            self.memory.weights[...] = self.memory.weights.astype(np.int64) * int(WEIGHTS_AFTER_PRIMER * 256) >> 8
            self._trust_gpt()

    def begin(self, size: int) -> int:
        """Begin a block of `size` bytes; returns its position in the text.  ValueError if it does not fit."""
        if self.end + size > len(self.memory.text):
            raise ValueError(f"the mixing model was made for {len(self.memory.text)} bytes, not for {self.end + size}")
        self.end += size
        return self.end - size


class MixingEncoder:
    """The code of one block of `size` bytes."""

    def __init__(self, mixing: Mixing, size: int):
        self._mixing, self._position = mixing, mixing.begin(size)
        self._state, self._code = start_encoding()

    def encode(self, symbols: np.ndarray, start: int, frequencies: np.ndarray | None = None) -> None:
        """Encode symbols (n,) int64, the bytes from `start` on in the block; all before them must have been encoded.

        frequencies: (n, 256) uint32, what the GPT predicts for each.
        """
        mixing, first = self._mixing, self._position + start
        for begin, end in mixing.parts(first, first + len(symbols)):
            self._code = _encode(mixing.memory, mixing.fast, mixing.gpt, begin, _contiguous(frequencies), self._state,
                                 self._code, symbols[begin - first:end - first])

    @property
    def size(self) -> int:
        """How many bytes of code have been written so far; `finish` adds at most one more."""
        return int(self._state[LENGTH])

    def finish(self) -> bytes:
        """The code of all symbols so far."""
        return finish_encoding(self._state, self._code).tobytes()


class MixingDecoder:
    """The bytes of one block of `size` bytes, from its code."""

    def __init__(self, mixing: Mixing, size: int, code: bytes):
        self._mixing, self._position = mixing, mixing.begin(size)
        self._code = np.frombuffer(bytes(code), np.uint8)
        self._state = start_decoding(self._code)

    def decode(self, symbols: np.ndarray, start: int, frequencies: np.ndarray | None = None) -> None:
        """Write the bytes from `start` on in the block to symbols (n,) int64.  A damaged code gives wrong bytes, no error.

        frequencies: as they were encoded with.
        """
        mixing, first = self._mixing, self._position + start
        for begin, end in mixing.parts(first, first + len(symbols)):
            _decode(mixing.memory, mixing.fast, mixing.gpt, begin, _contiguous(frequencies), self._state, self._code,
                    symbols[begin - first:end - first])

    @property
    def overrun(self) -> int:
        """How many bytes were missing so far; more than 0 proves that the code was cut off or damaged."""
        return overrun(self._state, self._code)


def _contiguous(frequencies):
    return NO_FREQUENCIES if frequencies is None else np.ascontiguousarray(frequencies)


# --- encoder and decoder ----------------------------------------------------------------------------------------------

@njit(cache=True)
def _encode(memory, fast, gpt, start, frequencies, state, code, symbols):
    """MixingEncoder.encode, from position `start` on.  Returns the code's buffer, which may be a new, larger one."""
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

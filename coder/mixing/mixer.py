"""Context mixing: the bits of each byte, predicted by many contexts, by matches and, if there is one, by the GPT.

                 the same context before ──▶ slots, a map ──┐
    the past ──▶ matches, runs: a byte   ──▶ a map        ──┼──▶ some mixers, each with ──▶ a mixer ──▶ two maps ──▶ p
                 the GPT's frequencies   ──▶ two sums     ──┘    weights chosen by a        of them     refine it
                                                                 small context

Every part predicts the next bit, and learns from it once it is known [Mahoney 2005; "Data Compression Explained", 2013].
Encoder and decoder go the same way through `_code`; the bit comes from the data here, from the range coder there.

The GPT tells a byte's 256 frequencies.  Of the next bit, given the bits before it, they tell the probability as well: of
the bytes that begin so, those that go on with a 1, by all.

The state goes on from block to block, and before the first one may come a text that both sides know: the primer.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from ..range_coder import (decode_bit, encode_bit, finish_encoding, make_room, overrun, start_decoding, start_encoding)
from .contexts import (ALL, FAST, FIELDS, HISTORY, LENGTHS, LINE, MATCHES, NODES, PAIRS, SLOTS,
                       WORD_LENGTH, after_bits, ask_slots, find_lines, find_match, find_runs, hash_contexts, remember,
                       send_for_lines, step_of, tell_runs, tell_slots)
from .logistic import LIMIT, ONE, SHARES, SQUASH, STRETCH, WEIGHT, adapt, corrected, dot, learn, refine, straight

SETS = 256, 16 * 8, 256                     # mixers choose weights by: the byte's bits so far; match and orders; last byte
MORE_SETS = 256, 256, 256                   # and, but in fast mode: the byte before; the word; the place in the line
GPT_SET = 16 * 8                            # how sure the GPT is, and the orders met
GPT_INPUTS = 3
FIRST_RATE, LEAST_RATE, SLOWER = 20, 3, 2048        # of the mixers: less by 1 after so many bytes each, down to the least
FINAL_RATE = 2
SHARE, MORE_SHARE, GPT_SHARE = 0.12, 0.05, 0.2      # weights to begin with
KEPT = 0.75                                 # of the weights that were learned from a primer, if the GPT joins in afterwards
MOST_LINES = 23                             # 2^23 lines of 64 bytes: 512 MiB
RATE, TIME = 0, 1
BY_LAST, BY_THREE, BY_GPT = range(3)        # the maps that refine

NO_FREQUENCIES = np.empty((0, 256), np.uint32)


class Memory(NamedTuple):
    """All that both sides change alike."""
    text: np.ndarray        # (size,) uint8: every byte where it stands
    past: np.ndarray        # (FIELDS,) uint64
    table: np.ndarray       # (lines, SLOTS) uint32
    maps: np.ndarray        # (N, PAIRS) uint32
    nodes: np.ndarray       # (N, NODES) uint32, but (0, NODES) in fast mode
    recent: np.ndarray      # (2, 2^16) uint64: the last 8 bytes that came after a byte, after a pair of bytes
    seen: np.ndarray        # (MATCHES, 2^18) int32
    runs: np.ndarray        # (N, 2^16) uint16, but (0, 2^16) in fast mode
    lengths: np.ndarray     # (G, 2 * LENGTHS) uint32: whether a match or run of this length that expects this bit was right
    weights: np.ndarray     # (rows, inputs) int32
    final: np.ndarray       # (256, K) int32
    refining: np.ndarray    # (2 or 3, 2^16 * POINTS) uint16
    first_rows: np.ndarray  # (K,) int64: where in weights the rows of each mixer begin
    control: np.ndarray     # (2,) int64: rate, time
    squash: np.ndarray
    stretch: np.ndarray
    shares: np.ndarray


class Mixing:
    """The model of a file of `size` bytes, primer included, with or without a GPT."""

    def __init__(self, size, gpt=False, fast=False):
        self.gpt, self.end = gpt, 0
        N, sets = FAST if fast else ALL, [*SETS, *MORE_SETS * (not fast), *[GPT_SET] * gpt]
        K, rows = len(sets), np.cumsum([0, *sets])
        each = 3 if fast else 4                                         # inputs of a context
        G = MATCHES + N * (not fast)                                    # guesses of the byte: matches and runs
        n = each * N + G + 1 + GPT_INPUTS * gpt
        lines = 1 << min(max((size * N).bit_length() - 1 - fast, 12), MOST_LINES)       # 1/2 to 1 for each byte and context
        edges = np.clip(np.arange(32) * 128 - 2048 + 64, -LIMIT, LIMIT) + LIMIT
        surprise = ONE // (2 * np.arange(LENGTHS) + 4)                  # the chance that a match of this length is wrong
        self.memory = Memory(
            text=np.zeros(size, np.uint8), past=np.zeros(FIELDS, np.uint64),
            table=np.zeros((lines, SLOTS), np.uint32), maps=np.tile(SQUASH[edges].astype(np.uint32) << 16, (N, PAIRS // 32)),
            nodes=np.tile(after_bits().repeat(NODES // 128), (N * (not fast), 1)),
            recent=np.zeros((2, 2 ** 16), np.uint64), seen=np.zeros((MATCHES, 2 ** 18), np.int32),
            runs=np.zeros((G - MATCHES, 2 ** 16), np.uint16),
            lengths=np.tile(np.stack([surprise, ONE - surprise], 1).astype(np.uint32).reshape(-1) << 16, (G, 1)),
            weights=np.zeros((rows[-1], n), np.int32), final=np.full((256, K), WEIGHT // K, np.int32),
            refining=np.tile(straight(2 ** 16), (2 + gpt, 1)), first_rows=rows[:-1].astype(np.int64),
            control=np.array([FIRST_RATE, 0]), squash=SQUASH, stretch=STRETCH, shares=SHARES)
        weights, share = self.memory.weights, int(WEIGHT * (SHARE if fast else MORE_SHARE))
        weights[:, 0:each * N:each] = weights[:, 1:each * N:each] = weights[:, each * N:each * N + MATCHES] = share
        self._trust_gpt()

    def _trust_gpt(self):
        if self.gpt:
            self.memory.weights[:, [-3, -1]] = int(WEIGHT * GPT_SHARE)

    def prime(self, data):
        """Learn from data (bytes), before the first block."""
        symbols = np.frombuffer(data, np.uint8).astype(np.int64)
        _code(self.memory, *start_encoding(), symbols, self.begin(len(data)), NO_FREQUENCIES, False, False)
        if self.gpt:
            self.memory.weights[...] = self.memory.weights.astype(np.int64) * int(KEPT * 256) >> 8
            self._trust_gpt()

    def begin(self, size):
        """A block of `size` bytes begins: where in the text."""
        if self.end + size > len(self.memory.text):
            raise ValueError("the mixing model was made for less")
        self.end += size
        return self.end - size


class Mixer:
    """The bits of one block, mixed and coded: an encoder, or the decoder of a code (bytes)."""

    def __init__(self, mixing, size, code=None):
        self.mixing, self.decoding, self._place = mixing, code is not None, mixing.begin(size)
        if self.decoding:
            self._out = np.frombuffer(bytes(code), np.uint8).copy()
            self._state = start_decoding(self._out)
        else:
            self._state, self._out = start_encoding()

    def code(self, symbols, start, stop, frequencies=None):
        """Encode symbols[0, start:stop], of (1, length) int64, or decode them into there.

        frequencies: (stop - start, 1, 256) uint32, the GPT's.
        """
        mixes = frequencies is not None
        self._out = _code(self.mixing.memory, self._state, self._out, symbols[0, start:stop], self._place + start,
                          np.ascontiguousarray(frequencies[:, 0]) if mixes else NO_FREQUENCIES, True, self.decoding)

    def __len__(self):
        return int(self._state[2])

    def finish(self):
        return finish_encoding(self._state, self._out).tobytes()

    @property
    def overrun(self):
        return overrun(self._state, self._out)


@njit(cache=True)
def _code(memory, state, out, symbols, start, frequencies, coded, decoding):
    """Mixer.code, of symbols (n,) that stand from `start` on in the text.  Returns the buffer, maybe a larger one."""
    (text, past, table, maps, nodes, recent, seen, runs, lengths, weights, final, refining, first_rows, control, squash,
     stretch, shares) = memory
    N, G, n, K, gpt = len(maps), len(lengths), weights.shape[1], len(first_rows), len(frequencies) > 0
    hashes, lines, places = np.empty(N, np.uint64), np.empty(N, np.uint64), np.zeros(N, np.int64)
    inputs, outs, rows = np.zeros(n, np.int32), np.zeros(K, np.int32), np.empty(K, np.int64)
    expected, length, met_at, run_at = np.zeros((4, G), np.int64)
    first_guess = (4 if len(nodes) else 3) * N
    from_gpt = first_guess + G + 1
    inputs[from_gpt - 1] = 256                                          # 1.0: its weight is a bias
    low, width, total, ones, heard, refined_gpt = 0, 256, 0, 0, 0, 0
    if coded and not decoding:
        out = make_room(state, out, len(symbols))
    hash_contexts(past, text, start, recent, hashes)
    send_for_lines(table, hashes, 0)
    for t in range(len(symbols)):
        place, symbol, byte = start + t, symbols[t], 1
        for k in range(MATCHES):
            expected[k], length[k] = find_match(past, k, text, place, seen)
        find_runs(runs, hashes, run_at, expected, length)
        three = np.int64(past[HISTORY] & np.uint64(0xFFFFFF))
        last, sure = three & 255, min(length[0], 31) >> 1
        if gpt:
            low, width, total = 0, 256, _sum(frequencies, t, 0, 256)
        for bit in range(8):                                        # byte: a 1, then the bits so far
            if bit & 3 == 0:
                find_lines(table, hashes, lines)
                node = 1
            # predict
            met = ask_slots(table, lines, node, byte, maps, nodes, places, inputs, stretch)
            for k in range(G):
                inputs[first_guess + k], met_at[k] = 0, -1
                if expected[k] >> 8 - bit == byte:
                    met_at[k] = 2 * step_of(length[k]) + (expected[k] >> 7 - bit & 1)
                    inputs[first_guess + k] = stretch[lengths[k, met_at[k]] >> np.uint32(16)]
                elif k == 0:
                    sure = 0
            rows[0], rows[1], rows[2] = byte, sure * 8 + met, last
            if K > 5:
                rows[3] = three >> 8 & 255
                rows[4] = min(np.int64(past[WORD_LENGTH]), 15) * 16 + bit * 2 + (met_at[1] >= 0)
                rows[5] = min(place - np.int64(past[LINE]), 255)
            if gpt:
                width >>= 1
                ones = _sum(frequencies, t, low + width, low + 2 * width)
                p = min(max((ones << 16) // total, 1), ONE - 1)
                heard = np.int64(stretch[p])
                inputs[from_gpt], inputs[from_gpt + 1] = heard, (p - ONE // 2) >> 4
                p, refined_gpt = refine(refining, BY_GPT, byte | last << 8, heard)
                inputs[from_gpt + 2] = stretch[p]
            if n > from_gpt:
                rows[K - 1] = (min(abs(heard), 2047) >> 7) * 8 + met
            for k in range(K):
                rows[k] += first_rows[k]
                outs[k] = dot(weights, rows[k], inputs)
            x = dot(final, byte, outs)
            mixed = np.int64(squash[x + LIMIT])
            by_last, last_at = refine(refining, BY_LAST, byte | last << 8, x)
            hashed = (three * 0x2F0B4C47 >> 16 ^ byte * 0x9E35) & 0x1FFF        # 13 bits: the curves stay in a cache
            by_three, three_at = refine(refining, BY_THREE, hashed, x)
            p = (2 * mixed + by_last + by_three + 2) >> 2
            # code
            if decoding:
                y = decode_bit(state, out, p)
            else:
                y = symbol >> 7 - bit & 1
                if coded:
                    encode_bit(state, out, p, y)
            # send for what the next bit needs: it comes while this one is learned
            before, byte = byte, byte << 1 | y
            if bit == 7:
                symbols[t] = byte & 255
                tell_runs(runs, run_at, byte & 255)
                remember(past, text, place, recent, byte & 255)
                hash_contexts(past, text, place + 1, recent, hashes)
                send_for_lines(table, hashes, 0)
            elif bit == 3:
                send_for_lines(table, hashes, byte)
            # learn
            tell_slots(table, lines, node, before, maps, nodes, places, y, shares)
            for k in range(G):
                if met_at[k] >= 0:
                    adapt(lengths, k, met_at[k], y, shares)
            for k in range(K):
                learn(weights, rows[k], inputs, (y << 16) - np.int64(squash[outs[k] + LIMIT]), control[RATE])
            learn(final, before, outs, (y << 16) - mixed, FINAL_RATE)
            corrected(refining, BY_LAST, last_at, y)
            corrected(refining, BY_THREE, three_at, y)
            if gpt:
                corrected(refining, BY_GPT, refined_gpt, y)
                low, total = (low + width, ones) if y else (low, total - ones)
            node = node << 1 | y
        control[TIME] += 1
        if control[TIME] % SLOWER == 0 and control[RATE] > LEAST_RATE:
            control[RATE] -= 1
    return out


@njit(cache=True)
def _sum(frequencies, t, start, stop):
    total = np.int64(0)
    for i in range(start, stop):
        total += np.int64(frequencies[t, i])
    return total

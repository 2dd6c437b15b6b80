"""Two sequences in step through the range coder, each with or without the other's past: real codes, with a decoder.

At each time t comes x_t, then y_t.  A coder that knows the other sequence sees only what came before of it, unless it is
allowed to look ahead.  It is a Bayesian mixture of experts: one knows its own sequence's past alone; each of the others starts
from the other sequence's symbol at a lag of its own, and adds further symbols of both in turn.  The first one has half of the
prior, so that knowing the other sequence never costs more than a bit.

An expert weights the contexts of all depths up to DEPTH, as context-tree weighting does, bit by bit [Willems, Shtarkov and
Tjalkens 1995; side information: Jiao et al. 2013].  In each node the KT estimator predicts [Krichevsky, Trofimov 1981];
`ratio` is the node's own probability of all its bits so far, divided by that of its children, and so how much it leans on
itself:

    p = (ratio * p_own + p_children) / (ratio + 1),     then ratio *= p_own(bit) / p_children(bit)

All that enters a code is binary64 with + - * /, in this order, so the codes are the same bytes on every machine.
"""

import numpy as np
from numba import njit

from ..range_coder import decode_symbol, decode_target, encode_symbol, finish_encoding, start_decoding, start_encoding

DEPTH = 6                       # symbols in a context
LAGS = 8                        # for y_t x_t .. x_(t-7), for x_t y_(t-1) .. y_(t-8)
AHEAD = 4                       # more lags, where the other sequence is known ahead of time: x_(t+4) is the first
TOTAL = 2 ** 24                 # the sum of a bit's two frequencies
MOST_SLOTS = 21                 # bits: of the first expert's table, and of the others'; nodes that share a slot predict worse
RATIO, WEIGHT = 2.0 ** 60, 2.0 ** -200          # bounds, so that an expert can come back
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def encode(streams: np.ndarray, widths: tuple[int, int], coded: tuple[int, ...] = (1,), knowing: bool = True,
           ahead: bool = False) -> tuple[bytes, np.ndarray]:
    """The code (bytes) of the sequences `coded` out of streams (2, n), x and y, and what each symbol costs: bits (2, n).

    widths: bits per symbol, of x and of y.  knowing: given the other sequence's past; ahead: and its future, if that
    sequence is not coded itself.  ValueError where a symbol does not fit its width, or with `ahead` where both are coded.
    """
    streams = np.array(streams, np.int64)
    for stream, width in zip(streams, widths):
        low, high = stream.min(initial=0), stream.max(initial=0)
        if low < 0 or high >= 1 << width:
            raise ValueError(f"symbols must lie in 0 .. {(1 << width) - 1}, but reach from {low} to {high}")
    return _run(streams, widths, coded, knowing, ahead, np.empty(0, np.uint8), False)


def decode(code: bytes, streams: np.ndarray, widths: tuple[int, int], coded: tuple[int, ...] = (1,), knowing: bool = True,
           ahead: bool = False) -> np.ndarray:
    """The streams (2, n) that were encoded.  In the argument, the coded ones may hold anything."""
    streams = np.array(streams, np.int64)
    streams[list(coded)] = -2                       # no symbol: what has not been decoded cannot be read
    _run(streams, widths, coded, knowing, ahead, np.array(bytearray(code), np.uint8), True)
    return streams


def _run(streams, widths, coded, knowing, ahead, code, decoding):
    if ahead and len(coded) > 1:
        raise ValueError("what is coded cannot be known ahead of time")
    experts = 1 + knowing * (LAGS + ahead * AHEAD)
    nodes = max(1, streams.shape[1] * max(widths) * (DEPTH + 1))
    slot_bits = np.array([min(MOST_SLOTS, (2 * count).bit_length()) for count in (nodes, nodes * (experts - 1))])
    first_lags = np.array([1, -AHEAD * ahead])
    chances = np.ones(streams.shape)
    flags = np.isin((0, 1), coded)
    code = _transcode(streams, np.array(widths), flags, first_lags, experts, slot_bits, code, decoding, chances)
    return code.tobytes(), -np.log2(chances)


@njit(cache=True)
def _transcode(streams, widths, coded, first_lags, experts, slot_bits, code, decoding, chances):
    state, out = start_encoding()
    if decoding:
        state = start_decoding(code)
    slots = (1 << slot_bits[0]) + (1 << slot_bits[1])
    counts, ratios = np.zeros((2, slots, 2)), np.ones((2, slots))
    weights, hashes = np.empty((2, experts)), np.empty((experts, DEPTH + 1), np.uint64)
    weights[:] = 0.5 / max(1, experts - 1)
    weights[:, 0] = 0.5
    for t in range(streams.shape[1]):
        for s in range(2):
            if coded[s]:
                for e in range(experts):
                    _contexts(hashes[e], streams, s, t, e, first_lags[s])
                symbol, chances[s, t], out = _symbol(streams[s, t], widths[s], hashes, counts[s], ratios[s], weights[s],
                                                     slot_bits, state, out, code, decoding)
                streams[s, t] = symbol
    return code if decoding else finish_encoding(state, out)


@njit(cache=True)
def _contexts(hashes, streams, s, t, e, first_lag):
    """Fill hashes (DEPTH + 1,): the contexts of expert e for the symbol t of stream s, from the shortest on."""
    hashes[0] = np.uint64(e + 1) * MULTIPLIER
    for k in range(DEPTH):
        if e == 0:
            other, at = s, t - 1 - k
        elif k % 2 == 0:
            other, at = 1 - s, t - (first_lag + e - 1) - k // 2
        else:
            other, at = s, t - 1 - k // 2
        symbol = streams[other, at] if 0 <= at < streams.shape[1] else -1
        hashes[k + 1] = ((hashes[k] ^ (hashes[k] >> np.uint64(29))) + np.uint64(symbol + 2)) * MULTIPLIER


@njit(cache=True)
def _symbol(symbol, width, hashes, counts, ratios, weights, slot_bits, state, out, code, decoding):
    """Code one symbol, or decode it, and learn it: (symbol, its probability, the buffer)."""
    E, K = hashes.shape
    slots, own, below, p = np.empty((E, K), np.int64), np.empty((E, K)), np.empty((E, K)), np.empty(E)
    prefix, chance = 1, 1.0
    for place in range(width - 1, -1, -1):
        mixed, whole = 0.0, 0.0
        for e in range(E):
            for k in range(K - 1, -1, -1):          # from the deepest node up; p: that a bit is 1
                h = (hashes[e, k] + np.uint64(prefix)) * MULTIPLIER
                slot = np.int64((h ^ (h >> np.uint64(31))) * MULTIPLIER >> np.uint64(64 - slot_bits[min(e, 1)]))
                slot += 1 << slot_bits[0] if e else 0           # the first expert predicts alone as it does among others
                slots[e, k] = slot
                own[e, k] = (counts[slot, 1] + 0.5) / (counts[slot, 0] + counts[slot, 1] + 1.0)
                below[e, k] = p[e] if k < K - 1 else own[e, k]
                p[e] = (ratios[slot] * own[e, k] + below[e, k]) / (ratios[slot] + 1.0)
            mixed += weights[e] * p[e]
            whole += weights[e]
        size = np.int64(1) + np.int64(mixed / whole * (TOTAL - 2))                  # 1 <= size < TOTAL
        if decoding:
            bit = np.int64(np.int64(decode_target(state, TOTAL)) < size)
            decode_symbol(state, code, 0 if bit else size, size if bit else TOTAL - size)
        else:
            bit = symbol >> place & 1
            out = encode_symbol(state, out, 0 if bit else size, size if bit else TOTAL - size, TOTAL)
        chance *= (size if bit else TOTAL - size) / TOTAL
        whole = 0.0
        for e in range(E):
            for k in range(K):
                slot = slots[e, k]
                quotient = (own[e, k] if bit else 1.0 - own[e, k]) / (below[e, k] if bit else 1.0 - below[e, k])
                ratios[slot] = min(max(ratios[slot] * quotient, 1.0 / RATIO), RATIO)
                counts[slot, bit] += 1.0
            weights[e] *= p[e] if bit else 1.0 - p[e]
            whole += weights[e]
        for e in range(E):
            weights[e] = max(weights[e] / whole, WEIGHT)
        prefix = 2 * prefix + bit
    return prefix - (1 << width), chance, out

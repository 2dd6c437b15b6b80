"""The mode `tokens`: a published language model, whose symbols are tokens of several bytes, through the range coder.

Streams.  A block of n bytes is cut into S = max(1, min(floor(n / 16384), 4)) contiguous streams, as in codec.py; each is cut
into tokens on its own.  They advance in lockstep, a token of each at a time, stream by stream; one that has all its bytes is
left out, though the model goes on reading something in its place.  How a stream is cut into tokens is the encoder's business:
the decoder joins tokens until the stream's bytes are complete.

Symbols.  A model of V tokens gives each the weight floor(e^(logit - largest logit) * 2^32) + 1 (see frequencies.py).  Control
tokens, which stand for no bytes, are left out, and so are those whose bytes are another's of a lower id.  The others are sorted
by their bytes; behind them comes the escape, whose weight is their sum / 2^16, rounded down, + 1.  With P[r] the sum of the
weights before rank r, every range of ranks has a weight that is the difference of two sums.

A token is coded byte by byte, through the trie of the vocabulary.  At a node, which is a range of ranks whose tokens share
their first bytes, the next byte or, first, the end of the token cuts the range into parts lo = b_0 < b_1 < ... < b_m = hi.
Which of them the token is in is a symbol of the range coder:
    part j starts at ((P[b_j] - P[lo]) >> k) + j        the total is the start of part m
with k the least that makes (P[hi] - P[lo]) >> k less than 2^31.  So every part has a frequency of 1 or more.  This goes on
until one rank is left.  After the escape, which is the last part of the root, follows a byte that is no token: a symbol of 256
equal ones.

Windows.  The model's input is tokenizer.start (without one, 0), then every token but the last; for a byte behind the escape,
start again.  It attends to at most W = min(4096, block_size) tokens.  After every c = max(1, min(64, floor(W / 2))) tokens of
each stream, and before the first, room is made for c more: where they would have no position below block_size, a new cache
begins by reading the first input and the last floor(W / 2) - 1 again (nothing where W is 1); else, where more than W - c are
held, the oldest are dropped until ceil(3 W / 4) - c are, but never the first input, since many models predict badly without it
(see Cache.drop).
"""

from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numba import njit

from minigpt.bpe import BPETokenizer
from minigpt.kernels.lanes import LANES, exp, lane_max, load_part, maximum, splat, store_part
from minigpt.model import GPT, TOKENS_PER_PASS

from .frequencies import MINUS_INFINITY
from .range_coder import (LENGTH, decode_symbol, decode_target, encode_symbol, finish_encoding, overrun, start_decoding,
                          start_encoding)

STREAMS, STREAM_BYTES = 4, 16384        # S, at most, and how many bytes each then has, at least
WINDOW, CHUNK = 4096, 64                # W and c, at most
SPARED = 1                              # the first inputs, which are never dropped
SCALE = np.float32(2 ** 32)             # weights: V * (2^32 + 1) stays far below 2^64
ESCAPE_SHIFT = np.uint64(16)
TOP = np.uint64(2 ** 31)                # TOP + 257 parts do not exceed the range coder's largest total


class Trie(NamedTuple):
    """A vocabulary of R different tokens, sorted by their bytes.

    Node n has the parts first[n] .. first[n + 1] - 2, of which part j begins at rank bounds[j], and ends at bounds[j + 1].
    """
    order: np.ndarray       # (R,) int64: the id of each rank
    ranks: np.ndarray       # (V + 256,) int64: the rank of each id, R where it has none: V + byte is an escaped byte
    first: np.ndarray       # (nodes + 1,) int64
    bounds: np.ndarray      # (parts + nodes,) int64
    child: np.ndarray       # (parts + nodes,) int64: the node of each part, or -1 where it is one rank


def make_trie(vocabulary: list[bytes]) -> Trie:
    """The trie of the bytes of each id; b"" for control tokens."""
    ids = {token: i for i, token in reversed(list(enumerate(vocabulary))) if token}
    tokens = sorted(ids)
    R, nodes, first, bounds, child = len(tokens), [(0, len(tokens), 0)], [0], [], []
    for lo, hi, depth in nodes:                                     # grows while it is read
        while lo < hi:
            byte, stop = tokens[lo][depth:depth + 1], lo + 1        # b"" where the token ends here
            while stop < hi and tokens[stop][depth:depth + 1] == byte:
                stop += 1
            bounds.append(lo)
            child.append(len(nodes) if stop - lo > 1 else -1)
            if stop - lo > 1:
                nodes.append((lo, stop, depth + 1))
            lo = stop
        if len(first) == 1:                                         # the root: the escape is one more part
            bounds.append(R)
            child.append(-1)
            hi = R + 1
        bounds.append(hi)
        child.append(-1)
        first.append(len(bounds))
    order, ranks = np.array([ids[token] for token in tokens], np.int64), np.full(len(vocabulary) + 256, R, np.int64)
    ranks[order] = np.arange(R)
    return Trie(order, ranks, *(np.array(a, np.int64) for a in (first, bounds, child)))


class TokenModel:
    """A language model with its tokenizer; `fingerprint` (8 bytes) names both in a file.  The model is quantised."""

    def __init__(self, model: GPT, tokenizer: BPETokenizer, fingerprint: bytes):
        self.model, self.tokenizer, self.config, self.fingerprint = model.quantise(), tokenizer, model.config, fingerprint

    @cached_property
    def trie(self) -> Trie:
        """Of the vocabulary."""
        return make_trie(self.tokenizer.vocabulary)

    def begin(self, sizes: list[int]) -> None:
        """The streams of a block, of so many bytes each, begin."""

    def encode(self, state, out, logits, ids, streams):
        """Encode ids (N,), the next tokens of the streams (N,), from the model's logits (N, V).  Returns the buffer."""
        return encode_tokens(state, out, logits, ids, self.trie)

    def decode(self, state, code, logits, streams):
        """The ids (N,) that `encode` encoded, from the same logits (N, V)."""
        return decode_tokens(state, code, logits, self.trie)

    def inputs(self, ids: np.ndarray) -> np.ndarray:
        """What the model reads for these ids, of which an escaped byte is none of its own."""
        return np.where(ids < self.tokenizer.vocab_size, ids, self.tokenizer.start or 0)


class Context:
    """What the model has read of S streams: the same on both sides, in however large parts it was read."""

    def __init__(self, model: GPT, S: int):
        self.model, self.S, self.window = model, S, min(WINDOW, model.config.block_size)
        self.chunk = max(1, min(CHUNK, self.window // 2))
        self.room, self.cache = 0, model.new_cache(S, self.window)
        self.again = np.empty((S, 0), np.int64)                     # the first token read, and the last of the others

    def read(self, ids: np.ndarray) -> np.ndarray:
        """Logits (S, n, V) of what follows each of ids (S, n), where n is at most `room` or, where that is 0, `chunk`."""
        if not self.room:
            self._make_room()
        n = ids.shape[1]
        logits = self.model.step(ids[:, 0], self.cache)[:, None] if n == 1 else self.model.forward(ids, cache=self.cache)
        known = np.hstack([self.again, ids])
        last = max(1, known.shape[1] - self.window // 2 + 1)
        self.again = np.hstack([known[:, :1], known[:, last:]])[:, :self.window // 2]
        self.room -= n
        return logits                                                           # (S, n, V)

    def _make_room(self):
        cache, self.room = self.cache, self.chunk
        if cache.position + self.chunk > self.model.config.block_size:
            self.cache = cache = None                               # its memory is the next one's
            self.cache = self.model.new_cache(self.S, self.window)
            size = rows_at_once(self.S)
            for i in range(0, self.again.shape[1], size):
                self.model.forward(self.again[:, i:i + size], cache=self.cache)
        elif cache.held + self.chunk > self.window:
            cache.drop(cache.held + self.chunk - (3 * self.window + 3) // 4, SPARED)


def rows_at_once(S: int) -> int:
    """How many tokens of each of S streams go through the model at once: this bounds the memory for their logits."""
    return max(1, TOKENS_PER_PASS // S)


def sizes_of(size: int) -> list[int]:
    """How many bytes each stream of a block has."""
    S = max(1, min(size // STREAM_BYTES, STREAMS))
    return [size // S + (s < size % S) for s in range(S)]


def encode_block(model: TokenModel, data: bytes, progress: Callable = lambda count, taken: None) -> bytes:
    """The code of data, at least one byte.  progress(bytes read, length of the code by now) is called now and then."""
    streams, at = [], 0
    for size in sizes_of(len(data)):
        streams.append(model.tokenizer.encode(data[at:at + size]))
        at += size
    S, longest = len(streams), max(map(len, streams))
    model.begin(sizes_of(len(data)))
    ids = np.full((S, longest + 1), model.tokenizer.vocab_size, np.int64)       # so that start is before all and behind some
    for s, stream in enumerate(streams):
        ids[s, 1:len(stream) + 1] = stream
    inputs, lengths = model.inputs(ids), np.array([len(stream) for stream in streams])
    context, (state, out), t = Context(model.model, S), start_encoding(), 0
    while t < longest:
        stop = min(longest, t + min(rows_at_once(S), context.room or context.chunk))
        logits, count = context.read(inputs[:, t:stop]), 0
        for i in range(t, stop):
            active = np.flatnonzero(i < lengths)
            out = model.encode(state, out, logits[active, i - t], ids[active, i + 1], active)
            count += len(model.tokenizer.decode_bytes(ids[active, i + 1]))
        t = stop
        progress(count, int(state[LENGTH]))
    return finish_encoding(state, out).tobytes()


def decode_block(model: TokenModel, code: bytes, size: int, progress: Callable = lambda count: None) -> bytes:
    """The `size` bytes that `encode_block` made the code of.

    A damaged code gives some other bytes, or ValueError.  progress(bytes) is called after a token of each stream.
    """
    sizes, code = sizes_of(size), np.frombuffer(bytearray(code), np.uint8)     # writable: as the encoder's buffer is
    S, streams, state = len(sizes), [bytearray() for _ in sizes], start_decoding(code)
    context, ids = Context(model.model, S), np.full(S, model.tokenizer.vocab_size, np.int64)
    active = np.arange(S)
    model.begin(sizes)
    while active.size:
        logits = context.read(model.inputs(ids)[:, None])[:, 0]                 # (S, V)
        ids[active] = model.decode(state, code, logits[active], active)
        progress(len(model.tokenizer.decode_bytes(ids[active])))
        for s in active:
            streams[s] += model.tokenizer.decode_bytes(ids[s:s + 1])
        if overrun(state, code) or any(len(stream) > size for stream, size in zip(streams, sizes)):
            raise ValueError("the code ends too early, or a stream too late")
        active = np.flatnonzero([len(stream) < size for stream, size in zip(streams, sizes)])
    return b"".join(streams)


# --- a token of each stream -------------------------------------------------------------------------------------------

@njit(cache=True)
def exponentiate(x, scale):
    """Replace x (R,) by e^(x - its largest element) * scale."""
    R, peaks = len(x), splat(MINUS_INFINITY)
    for r in range(0, R, LANES):
        peaks = maximum(load_part(x, r, R - r, MINUS_INFINITY), peaks)
    peak = splat(lane_max(peaks))
    for r in range(0, R, LANES):
        store_part(x, r, R - r, exp(load_part(x, r, R - r, MINUS_INFINITY) - peak) * splat(scale))


@njit(cache=True)
def weight_sums(logits, row, order):
    """P (R + 2,) uint64: the sums of the weights before each rank, from the logits (N, V) of a row; the last has the escape."""
    R = len(order)
    scaled = np.empty(R, np.float32)
    for r in range(R):
        scaled[r] = logits[row, order[r]]
    exponentiate(scaled, SCALE)
    sums = np.zeros(R + 2, np.uint64)
    for r in range(R):
        weight = np.uint64(scaled[r]) if scaled[r] >= np.float32(0) else np.uint64(0)       # NaN: as in frequencies.py
        sums[r + 1] = sums[r] + weight + np.uint64(1)
    sums[R + 1] = sums[R] + (sums[R] >> ESCAPE_SHIFT) + np.uint64(1)
    return sums


@njit(cache=True)
def part_start(sums, bounds, begin, j, shift):
    """Where part j of the node whose parts begin at `begin` starts, in frequencies; for the part behind the last, the total."""
    return ((sums[bounds[j]] - sums[bounds[begin]]) >> shift) + np.uint64(j - begin)


@njit(cache=True)
def node_shift(sums, bounds, begin, end):
    """The least shift that leaves less than TOP of the weight of a node."""
    shift = np.uint64(0)
    while (sums[bounds[end]] - sums[bounds[begin]]) >> shift >= TOP:
        shift += np.uint64(1)
    return shift


@njit(cache=True)
def encode_tokens(state, out, logits, ids, trie):
    """Encode ids (N,), which the model predicted with logits (N, V).  Returns the buffer, a larger one if need be."""
    for i in range(len(ids)):
        sums, rank, node = weight_sums(logits, i, trie.order), trie.ranks[ids[i]], 0
        while node >= 0:
            begin, end = trie.first[node], trie.first[node + 1] - 1
            shift, j = node_shift(sums, trie.bounds, begin, end), begin
            while trie.bounds[j + 1] <= rank:
                j += 1
            start, total = part_start(sums, trie.bounds, begin, j, shift), part_start(sums, trie.bounds, begin, end, shift)
            out = encode_symbol(state, out, start, part_start(sums, trie.bounds, begin, j + 1, shift) - start, total)
            node = trie.child[j]
        if rank == len(trie.order):
            out = encode_symbol(state, out, ids[i] - logits.shape[1], 1, 256)
    return out


@njit(cache=True)
def decode_tokens(state, code, logits, trie):
    """The ids (N,) that `encode_tokens` encoded, from the same logits (N, V)."""
    ids = np.empty(len(logits), np.int64)
    for i in range(len(ids)):
        sums, rank, node = weight_sums(logits, i, trie.order), 0, 0
        while node >= 0:
            begin, end = trie.first[node], trie.first[node + 1] - 1
            shift, j = node_shift(sums, trie.bounds, begin, end), begin
            target = decode_target(state, part_start(sums, trie.bounds, begin, end, shift))
            while part_start(sums, trie.bounds, begin, j + 1, shift) <= target:
                j += 1
            start = part_start(sums, trie.bounds, begin, j, shift)
            decode_symbol(state, code, start, part_start(sums, trie.bounds, begin, j + 1, shift) - start)
            rank, node = trie.bounds[j], trie.child[j]
        if rank < len(trie.order):
            ids[i] = trie.order[rank]
        else:
            byte = decode_target(state, 256)
            decode_symbol(state, code, byte, 1)
            ids[i] = logits.shape[1] + np.int64(byte)
    return ids

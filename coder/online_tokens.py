"""The mode `online tokens`: a language model as in tokens.py, with a bias that learns and contexts, coded bit by bit.

Streams, windows and their order are those of tokens.py.  So is the trie, but there is no escape: each byte without a token is
one more token, whose id is V + byte, and whose logit is the largest one of the row - 11.

Bias.  A token of rank r has the weight floor(e^(l_r - largest l) * 2^30) + 1 with l_r = logit_r + b_r.  All b are 0 at first.
After each token, whose rank is t, with w the sum of all weights:
    b_r -= weight_r * (RATE / w)  for all r,    b_t += RATE        (binary32)
which is a step of gradient descent on the cost of the token: what is frequent in this file becomes likelier.

Bits.  At each node of the trie a token takes at most 9 decisions: whether it goes on, where it may end, and the bits of its
next byte.  What is certain is not coded.  For each decision the model's probability, a quotient of sums of weights, enters
the mixing model of the mode fast (mixing/mixer.py) as a GPT's does.  There "goes on" is the bit before the byte's own:
`partial` is 0, and then 1.  The hashes of the contexts take in GO_ON or BEGIN as the nibble before the first, so that a byte
inside a token has other counters than one that begins it.  All streams share tables, weights and bias; each has a past and
matches of its own, which begin anew in each block, as the windows do.  A primer is encoded first, as a block whose code is
discarded.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from minigpt.kernels.lanes import LANES, lane_max, load_part, maximum, splat, store_part

from .frequencies import MINUS_INFINITY
from .mixing.contexts import FIELDS
from .mixing.histories import MATCHES, prefetch_buckets
from .mixing.mixer import Mixing
from .mixing.predict import begin_byte, begin_bytes, end_byte, hash_next, predict, update
from .range_coder import decode_bit, encode_bit, make_room
from .tokens import STREAMS, TokenModel, encode_block, exponentiate, make_trie

RATE = np.float32(0.15)
SCALE = np.float32(2 ** 30)     # weights: their sum stays far below 2^47, so that it can be multiplied by 2^16
ESCAPED = np.float32(11)
GO_ON, BEGIN = 16, 17
TRUST = 0.02, 0.5               # the first weights in the mixers, of a context and of the model


class Learned(NamedTuple):
    """What `code_tokens` has learned besides the mixing model, where each of S streams is, and arrays to work in."""
    bias: np.ndarray            # (R,) float32
    pasts: np.ndarray           # (S, FIELDS) uint64
    matches: np.ndarray         # (S, MATCHES, 2) int64
    positions: np.ndarray       # (S,) int64: where in the text its next byte is
    weights: np.ndarray         # (R,) float32
    sums: np.ndarray            # (R + 1,) int64
    frequencies: np.ndarray     # (1, 256) int64


class OnlineTokens(TokenModel):
    """A TokenModel that learns from a file of `size` bytes, and has learned from the primer."""

    def __init__(self, model: TokenModel, size: int, primer: bytes = b""):
        super().__init__(model.model, model.tokenizer, model.fingerprint)
        vocabulary = [*self.tokenizer.vocabulary, *(bytes([byte]) for byte in range(256))]
        self.trie = make_trie(vocabulary)
        tokens = [vocabulary[i] for i in self.trie.order]
        self.text = np.frombuffer(b"".join(tokens), np.uint8)
        lengths = [len(token) for token in tokens]
        self.starts = np.array([0, *lengths]).cumsum()
        self.longest = max(lengths)
        self.mixing = Mixing(size + len(primer) + self.longest, gpt=True, fast=True, trust=TRUST)
        R = len(tokens)
        self.learned = Learned(
            np.zeros(R, np.float32), np.zeros((STREAMS, FIELDS), np.uint64), np.zeros((STREAMS, MATCHES, 2), np.int64),
            np.zeros(STREAMS, np.int64), np.zeros(R, np.float32), np.zeros(R + 1, np.int64), np.zeros((1, 256), np.int64))
        if primer:
            encode_block(self, primer)

    def begin(self, sizes: list[int]) -> None:
        """Streams of so many bytes begin."""
        for s, size in enumerate(sizes):
            self.learned.positions[s] = self.mixing.begin(size)
        self.learned.pasts[...], self.learned.matches[...] = 0, 0

    def encode(self, state, out, logits, ids, streams):
        """Encode the next tokens ids (N,) of the streams (N,), from logits (N, V), and learn them.  Returns the buffer."""
        out = make_room(state, out, 2 * self.longest * len(ids))
        self._code(False, state, out, logits, ids, streams)
        return out

    def decode(self, state, code, logits, streams):
        """The ids (N,) that `encode` encoded, from the same logits (N, V); it learns them, too."""
        ids = np.empty(len(logits), np.int64)
        self._code(True, state, code, logits, ids, streams)
        return ids

    def _code(self, decoding, state, code, logits, ids, streams):
        code_tokens(decoding, state, code, logits, ids, streams, self.trie, self.text, self.starts, self.learned,
                    self.mixing.memory)


@njit(cache=True)
def code_tokens(decoding, state, code, logits, ids, streams, trie, text, starts, learned, memory):
    """Encode ids (N,), the next tokens of the streams (N,), which the model predicted with logits (N, V); or decode into ids.

    code: the encoder's buffer, which has room, or the code to read.  text and starts: the bytes of rank r are
    text[starts[r]:starts[r + 1]].
    """
    sums, bounds = learned.sums, trie.bounds
    scratch = begin_bytes(memory, True, True, 0, learned.frequencies)
    for i in range(len(ids)):
        s = streams[i]
        memory.past[:], memory.matches[:] = learned.pasts[s], learned.matches[s]
        weigh(logits, i, trie.order, learned)
        position, depth, node, rank = learned.positions[s], 0, 0, np.int64(0) if decoding else trie.ranks[ids[i]]
        hash_next(memory, scratch, position)
        while node >= 0:
            part, end = trie.first[node], trie.first[node + 1] - 1 - (node == 0)        # without the escape
            if starts[bounds[part]] + depth == starts[bounds[part] + 1]:                # a token ends here
                scratch.sums[0] = sums[bounds[end]] - sums[bounds[part]]
                scratch.sums[1] = sums[bounds[end]] - sums[bounds[part + 1]]
                if not code_bit(decoding, state, code, memory, scratch, position, 0, 0, rank >= bounds[part + 1]):
                    rank = bounds[part]
                    break
                part += 1
            learned.frequencies[:] = 0
            for j in range(part, end):
                learned.frequencies[0, text[starts[bounds[j]] + depth]] = sums[bounds[j + 1]] - sums[bounds[j]]
            begin_byte(memory, scratch, position, learned.frequencies, 0)
            prefetch_buckets(memory.table, scratch.hashes, GO_ON if depth else BEGIN)
            partial = 1
            for bit in range(8):
                y = np.int64(text[starts[rank] + depth]) >> 7 - bit & 1
                partial = partial << 1 | code_bit(decoding, state, code, memory, scratch, position, partial, bit, y)
            while text[starts[bounds[part]] + depth] != partial & 255:
                part += 1
            node, depth, position = trie.child[part], depth + 1, position + 1
            if decoding:
                rank = bounds[part]
        ids[i] = trie.order[rank]
        for at in range(starts[rank] + depth, starts[rank + 1]):            # one token is left: its bytes are certain
            begin_byte(memory, scratch, position, learned.frequencies, 0)
            end_byte(memory, scratch, position, np.int64(text[at]))
            position += 1
        learned.positions[s], learned.pasts[s], learned.matches[s] = position, memory.past, memory.matches
        learn(learned, rank)


@njit(cache=True)
def code_bit(decoding, state, code, memory, scratch, position, partial, bit, y):
    """Encode the bit y, or decode it, unless it is certain, and learn it.  Returns it as int64."""
    prediction = predict(memory, scratch, position, partial, bit)
    ones, either = scratch.sums[2 * partial + 1], scratch.sums[partial]
    certain = ones == 0 or ones == either
    if certain:
        y = np.int64(ones != 0)
    elif decoding:
        y = np.int64(decode_bit(state, code, prediction.p))
    else:
        y = np.int64(y)
        encode_bit(state, code, prediction.p, y)
    if certain:
        if bit == 7:
            end_byte(memory, scratch, position, (partial << 1 | y) & 255)
        elif bit == 3:
            prefetch_buckets(memory.table, scratch.hashes, partial << 1 | y)
    else:
        update(memory, scratch, position, partial, bit, prediction, y)
    return y


@njit(cache=True)
def weigh(logits, row, order, learned):
    """Write the weights, and the sums of those before each rank, from the logits (N, V) of a row.  A NaN has the weight 1."""
    R, V, weights, bias = len(order), logits.shape[1], learned.weights, learned.bias
    peaks = splat(MINUS_INFINITY)
    for i in range(0, V, LANES):
        peaks = maximum(load_part(logits, row * V + i, V - i, MINUS_INFINITY), peaks)
    escaped = lane_max(peaks) - ESCAPED
    for r in range(R):
        weights[r] = (logits[row, order[r]] if order[r] < V else escaped) + bias[r]
    exponentiate(weights, SCALE)
    for r in range(R):
        weight = (np.int64(weights[r]) if weights[r] >= np.float32(0) else np.int64(0)) + 1
        learned.sums[r + 1] = learned.sums[r] + weight
        weights[r] = np.float32(weight)


@njit(cache=True)
def learn(learned, rank):
    """A step of gradient descent on the bias, once a token of that rank has come."""
    R, bias, weights = len(learned.bias), learned.bias, learned.weights
    rate = splat(RATE / np.float32(learned.sums[R]))
    for r in range(0, R, LANES):
        change = load_part(weights, r, R - r, np.float32(0)) * rate
        store_part(bias, r, R - r, load_part(bias, r, R - r, np.float32(0)) - change)
    bias[rank] += RATE

"""What followed before: the bits in the same context (bit histories), the byte in it (run model), the byte after a match.

Bit histories.  A context is hashed, and for each nibble of the next byte (4 bits, 15 nodes of a binary tree) it has a bucket of
16 words of 32 bits: one cache line, one miss.  The first word is a check on the hash, the others are counters, one a node:

    31 .. 14    p, the probability of a 1: the mean of the bits seen here, later ones weighing more
    13 .. 7     n, the number of bits seen, up to COUNT_LIMIT: p moves by 1 / (n + 1.5) of its distance to the bit; n is
                halved first if the bit is a surprise, since the statistics may have changed
     6 .. 0     the last six bits behind a leading 1: `111` reads "a 1, then another 1"; 0 if none has been seen

p says how often a 1 came, the last bits say how recently.  A StateMap with one entry for each pair of the two learns what they
are worth in this context: whether one bit seen once is a law or an accident.  A second StateMap, which fast mode does without,
learns the same for the last bits and the byte's bits so far: a law for letters may be an accident for commas.

Run model: the last byte in a context, and how many times in a row it came.  Match model: the byte after the last occurrence of
the last MATCH_MINIMUM bytes.  Both expect one byte, and StateMaps learn how often it comes, for each length.
"""

import numpy as np
from numba import njit

from minigpt.kernels.prefetch import prefetch

from .logistic import P_ONE, RECIPROCALS, update_statemap

MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)          # for all hashes: odd, with no pattern in its bits

BUCKET_WORDS = 16                   # the check and 15 counters
NEW_COUNTER = np.uint32(2 ** 31)    # p = 1/2, nothing seen; counters are stored XOR this, so that a table of zeros is new
COUNT_LIMIT = 127
SURPRISE = 31 * 2 ** 13             # a bit farther than this from p is a surprise: 31/32
FULL_CONFIDENCE = 30                # a counter that has seen so many bits is as confident as one can be
HISTORY_P_STATES = 128 * 32         # of the first StateMap: the last bits, and p in 32 steps of its stretch
HISTORY_NODE_STATES = 128 * 256     # of the second: the last bits, and the byte's bits so far

# The match model, (MATCHES, 2) int64: for each match, the position of the expected byte, and how many bytes matched.
MATCH_POINTER, MATCH_LENGTH = range(2)
MATCHES = 2
LONG_MATCH, SHORT_MATCH = range(MATCHES)
MATCH_MINIMUM = np.array([8, 5])    # bytes
MATCH_VERIFIED = 40                 # bytes that are compared, at most, when a match begins
MATCH_HASHES, RUN_HASHES = 2 ** 18, 2 ** 16
LENGTH_STEPS = 64                   # the lengths that a StateMap distinguishes


# --- counters ---------------------------------------------------------------------------------------------------------

@njit(cache=True)
def unpack_counter(word):
    """p (18 bits), n and the last bits of a counter as it is stored."""
    counter = np.int64(word ^ NEW_COUNTER)
    return counter >> 14, counter >> 7 & 127, counter & 127


@njit(cache=True)
def pack_counter(p, n, last_bits):
    return np.uint32(p << 14 | n << 7 | last_bits) ^ NEW_COUNTER


@njit(cache=True)
def append_bit(last_bits, bit):
    """The last six bits, behind a leading 1, once `bit` has been seen as well."""
    longer = max(last_bits, 1) << 1 | bit
    return longer & 63 | 64 if longer > 127 else longer


def new_history_node_statemap() -> np.ndarray:
    """(HISTORY_NODE_STATES,) uint32: p as a StateMap learns it from the last bits alone, whatever the byte's bits so far."""
    p = [2 ** 21, 2 ** 21]
    for bits in range(2, 128):
        before = p[bits >> 1]
        p.append(before + (((bits & 1) << 22) - before) * int(RECIPROCALS[bits.bit_length() - 2]) // 2 ** 16)
    return (np.array(p, np.uint32) << 10).repeat(HISTORY_NODE_STATES // 128)


# --- buckets ----------------------------------------------------------------------------------------------------------

@njit(cache=True)
def prefetch_buckets(table, hashes, first_nibble):
    """Add the first nibble to the hashes (N,) uint64, and prefetch the buckets that `find_buckets` will look at.

    first_nibble: 0 before it; before the second nibble a 1, then the bits of the first.
    """
    mask = np.uint64(len(table) - 1)
    for i in range(len(hashes)):
        hashes[i] = (hashes[i] + np.uint64(first_nibble)) * MULTIPLIER
        hashes[i] ^= hashes[i] >> np.uint64(32)
        prefetch(table, np.int64(hashes[i] & mask) * BUCKET_WORDS)


@njit(cache=True)
def find_buckets(table, hashes, buckets):
    """Write to buckets (N,) uint64 the index of each hash's bucket in table (2^k, BUCKET_WORDS) uint32."""
    mask = np.uint64(len(table) - 1)
    for i in range(len(hashes)):
        buckets[i] = _find_bucket(table, hashes[i], mask)


@njit(cache=True)
def _find_bucket(table, hashed, mask):
    """The bucket with the check of that hash, or else the one of three neighbours that has seen the fewest bits, cleared."""
    check = np.uint32(hashed >> np.uint64(32)) | np.uint32(1)
    first = hashed & mask
    second, third = first ^ np.uint64(1), first ^ np.uint64(2)
    if table[first, 0] == check:
        return first
    if table[second, 0] == check:
        return second
    if table[third, 0] == check:
        return third
    bucket, count = first, np.uint32(COUNT_LIMIT << 7)          # n of the first counter
    seen, seen_second, seen_third = table[first, 1] & count, table[second, 1] & count, table[third, 1] & count
    if seen_second < seen and seen_second <= seen_third:
        bucket = second
    elif seen_third < seen:
        bucket = third
    for word in range(BUCKET_WORDS):
        table[bucket, word] = 0
    table[bucket, 0] = check
    return bucket


# --- bit histories ----------------------------------------------------------------------------------------------------

# A context gives the mixer three inputs: the stretch of p, the stretch of the first StateMap's probability, and that
# probability less 1/2, weighted by the counter's confidence.  The second StateMap gives a fourth one.  A context that has not
# been seen has no opinion: 0.
@njit(cache=True)
def predict_histories(table, buckets, node, partial, orders, p_statemaps, node_statemaps, states, inputs, stretch):
    """Write 3 or 4 inputs for each context, and to states (N,) int64 its state in p_statemaps, or -1 if it has not been seen.

    node: 1 .. 15, the nibble's bits so far behind a leading 1; partial: the byte's.  p_statemaps (N, HISTORY_P_STATES) uint32,
    node_statemaps (N, HISTORY_NODE_STATES), or (0, HISTORY_NODE_STATES) for 3 inputs.

    Returns how many of the first `orders` contexts have been seen: the confidence of the orders.
    """
    known, second, at = 0, len(node_statemaps) > 0, 0
    for i in range(len(buckets)):
        p, n, last_bits = unpack_counter(table[buckets[i], node])
        if last_bits:
            x = np.int64(stretch[p >> 2])
            states[i] = last_bits << 5 | (min(max(x, -2047), 2047) + 2048) >> 7
            learned = np.int64(p_statemaps[i, states[i]] >> np.uint32(16))
            inputs[at], inputs[at + 1] = x, stretch[learned]
            inputs[at + 2] = (learned - P_ONE // 2) * (min(n, FULL_CONFIDENCE) + 2) >> 10
            if second:
                inputs[at + 3] = stretch[node_statemaps[i, last_bits << 8 | partial] >> np.uint32(16)]
            known += i < orders
        else:
            states[i] = -1
            for j in range(at, at + 3 + second):
                inputs[j] = 0
        at += 3 + second
    return known


@njit(cache=True)
def update_histories(table, buckets, node, partial, p_statemaps, node_statemaps, states, bit, reciprocals):
    for i in range(len(buckets)):
        p, n, last_bits = unpack_counter(table[buckets[i], node])
        if states[i] >= 0:                  # not `if last_bits`: two contexts may have come to share a bucket
            update_statemap(p_statemaps, i, states[i], bit, reciprocals)
            if len(node_statemaps):
                update_statemap(node_statemaps, i, last_bits << 8 | partial, bit, reciprocals)
        distance = (bit << 18) - p
        if abs(distance) > SURPRISE:
            n >>= 1
        p += distance * reciprocals[n] >> 16
        p = min(max(p, 4), 2 ** 18 - 4)
        table[buckets[i], node] = pack_counter(p, min(n + 1, COUNT_LIMIT), append_bit(last_bits, bit))


# --- match model and run model ----------------------------------------------------------------------------------------

@njit(cache=True)
def find_match(matches, k, text, position, history, last_seen):
    """Continue match k, or look for a new one.  Returns the expected byte plus 256, and the match's length; or 0, 0.

    history: the last 8 bytes, uint64.  last_seen (MATCHES, MATCH_HASHES) int32: the position after the last MATCH_MINIMUM[k]
    bytes with that hash.
    """
    minimum, pointer, length = MATCH_MINIMUM[k], matches[k, MATCH_POINTER], matches[k, MATCH_LENGTH]
    hashed = (history << np.uint64(64 - 8 * minimum)) * MULTIPLIER >> np.uint64(64 - 18)
    if not length:
        pointer = np.int64(last_seen[k, hashed])
        while length < min(MATCH_VERIFIED, pointer, position) and text[pointer - 1 - length] == text[position - 1 - length]:
            length += 1
        length = length if length >= minimum else 0
    last_seen[k, hashed] = position
    matches[k, MATCH_POINTER], matches[k, MATCH_LENGTH] = pointer, length
    return (256 + np.int64(text[pointer]), length) if length else (0, 0)


@njit(cache=True)
def update_matches(matches, text, byte):
    """Extend each match by the byte that came, or end it."""
    for k in range(MATCHES):
        if matches[k, MATCH_LENGTH]:
            matches[k, MATCH_LENGTH] = matches[k, MATCH_LENGTH] + 1 if text[matches[k, MATCH_POINTER]] == byte else 0
            matches[k, MATCH_POINTER] += 1


@njit(cache=True)
def find_runs(runs, hashes, entries, expected, lengths):
    """Write the expected byte plus 256 for each context, and how many times in a row it came, after those of the matches.

    runs (N, RUN_HASHES) uint16: length << 8 | byte.  entries (N,) int64 is written, for `update_runs`.
    """
    for i in range(len(runs)):
        entries[i] = np.int64(hashes[i] >> np.uint64(64 - 16))
        run = np.int64(runs[i, entries[i]])
        expected[MATCHES + i], lengths[MATCHES + i] = (256 + (run & 255), run >> 8) if run else (0, 0)


@njit(cache=True)
def update_runs(runs, entries, byte):
    for i in range(len(runs)):
        run = np.int64(runs[i, entries[i]])
        length = run >> 8 if run & 255 == byte else 0
        runs[i, entries[i]] = min(length + 1, 255) << 8 | byte


@njit(cache=True)
def predict_expected(expected, lengths, partial, bit, statemaps, states, inputs, first_input, stretch):
    """Write an input for each match and run: 0 unless the byte it expects begins with the bits so far.

    statemaps (G, 2 * LENGTH_STEPS) uint32: the probability of a 1, for each length and expected bit.  states (G,) int64 is
    written: the state looked up, or -1.
    """
    for k in range(len(expected)):
        inputs[first_input + k], states[k] = 0, -1
        if expected[k] >> 8 - bit == partial:
            states[k] = 2 * length_step(lengths[k]) + (expected[k] >> 7 - bit & 1)
            inputs[first_input + k] = stretch[statemaps[k, states[k]] >> np.uint32(16)]


@njit(cache=True)
def update_expected(statemaps, states, bit, reciprocals):
    for k in range(len(states)):
        if states[k] >= 0:
            update_statemap(statemaps, k, states[k], bit, reciprocals)


@njit(cache=True)
def length_step(length):
    """The length of a match or run, quantised to LENGTH_STEPS steps; the first 16 are of one byte."""
    return length if length < 16 else min(14 + length // 8, LENGTH_STEPS - 1)


def new_length_statemap() -> np.ndarray:
    """(2 * LENGTH_STEPS,) uint32: a match or run of n steps is wrong once in 2n + 4 times, to begin with."""
    wrong = P_ONE // (2 * np.arange(LENGTH_STEPS) + 4)
    return np.stack([wrong, P_ONE - wrong], 1).astype(np.uint32).reshape(-1) << 16

"""What the mixing model knows of the past: which bits followed in the same context, and what followed the longest match.

A context is whatever may tell the next byte: the last one, the last four, the word so far, the place in the line.  Each is
hashed, and for each half of the next byte (4 bits, 15 nodes of a binary tree) it has one line of 16 numbers of 32 bits: one
cache line, one miss.  The first number is a check on the hash, the others are slots, one for each node:

    31 .. 14    p, the probability of a 1: the mean of the bits met here, the late ones weighing more
    13 .. 7     n, how many bits it has met, up to MOST_MET: p moves by 1 / (n + 1.5) of its distance to the bit;
                but half as many if a bit comes that p hardly expected, for then the past may be over
     6 .. 0     the last six bits behind a leading 1: `011` reads "a 1, then another 1 came"; 0 if none came yet

p says how often, the last bits say how lately.  A map of adaptive probabilities, one for each pair of the two, learns what
they are worth in this context: whether one bit met once is a law or an accident.
"""

import numpy as np
from numba import njit

from .logistic import ONE, adapt

SLOTS = 16                          # numbers in a line: the check and 15 slots
FRESH = np.uint32(2 ** 31)          # slots are kept with their highest bit flipped, so that 0 is p = 1/2, n = 0, no bits
MOST_MET = 127
SURPRISE = 15 * 2 ** 14             # the distance of p to a bit that was hardly expected: 15/16
SURE = 30                           # a context that has met so many bits speaks with its full voice
PAIRS = 128 * 32                    # of the last bits, and p in 32 steps of its stretch
MAP_LIMIT = 255

# A stream's fields, uint64.  What words and lines are is for text; to other data they are contexts like any other.
(HISTORY,                           # the last 8 bytes
 WORD, WORD_1, WORD_2,              # hashes of the word so far (letters, in lower case; 0: none), and of those before
 WORD_LENGTH, LETTERS,              # of the word so far; the last 8 letters of words, a 0 between two words
 MARK,                              # the last byte that is neither a small letter nor a space
 LINE, LINE_1, FIRST,               # where the line began, and the one before; the first byte of the line
 SO_FAR, TITLE, TITLE_1,            # hashes: the line so far; the last one with a colon, up to there (who speaks); before
 FOUND, LENGTH,                     # of a match: where in the text the byte stands that it expects, and how long it is
 FOUND_1, LENGTH_1) = range(17)     # of a second one
FIELDS = 17
MATCHES = 2
LEAST = np.array([8, 5])            # bytes that must be alike for a match to begin
LONGEST_CHECK = 40                  # bytes that are compared when it does
LENGTHS = 64                        # steps into which lengths fall
MATCH_LIMIT = 1023

FAST = 7                            # contexts in fast mode: the first ones of `hash_contexts`
ALL = 30
ORDERS = 5                          # the first of them are of the orders 1, 2, 3, 4 and 6

HASH = np.uint64(0x9E3779B97F4A7C15)            # odd, with no pattern in its bits
HASH_1 = np.uint64(0xD6E8FEB86659FD93)
BYTE, ONE_64 = np.uint64(255), np.uint64(1)


@njit(cache=True)
def hash_contexts(stream, text, place, recent, hashes):
    """Write the hash of each context of the next byte to hashes (N,) uint64, N = FAST or ALL."""
    h = stream[HISTORY]
    last, word, before, line = h & BYTE, stream[WORD], stream[WORD_1], np.int64(stream[LINE])
    hashes[0] = last
    hashes[1] = h & np.uint64(0xFFFF)
    hashes[2] = h & np.uint64(0xFFFFFF)
    hashes[3] = h & np.uint64(0xFFFFFFFF)
    hashes[4] = h & np.uint64(0xFFFFFFFFFFFF)
    hashes[5] = word
    hashes[6] = h & np.uint64(0xFFFFFFFFFF)
    if len(hashes) > FAST:
        pair, column, above = word * HASH + before, np.uint64(min(place - line, 255)), np.uint64(0)
        if np.int64(stream[LINE_1]) + place - line < line:
            above = np.uint64(text[np.int64(stream[LINE_1]) + place - line])
        hashes[7] = np.uint64(0)
        hashes[8] = pair
        hashes[9] = pair * HASH + stream[WORD_2]
        hashes[10] = word * HASH + stream[WORD_2]
        hashes[11] = word * HASH + stream[MARK]
        hashes[12] = word * HASH + stream[FIRST]
        hashes[13] = before * HASH + last
        hashes[14] = before * HASH + (h & np.uint64(0xFFFF))
        hashes[15] = stream[LETTERS] & np.uint64(0xFFFFFFFF)
        hashes[16] = stream[LETTERS] & np.uint64(0xFFFFFFFFFF)
        hashes[17] = stream[LETTERS] & np.uint64(0xFFFFFF)
        hashes[18] = recent[0, last] & np.uint64(0xFFFFFF)
        hashes[19] = (recent[1, h & np.uint64(0xFFFF)] & np.uint64(0xFFFF)) << np.uint64(8) | last
        hashes[20] = recent[1, h & np.uint64(0xFFFF)] & np.uint64(0xFFFFFF)
        hashes[21] = column << np.uint64(8) | last
        hashes[22] = stream[WORD_LENGTH] << np.uint64(16) | above << np.uint64(8) | last
        hashes[23] = above << np.uint64(8) | column
        hashes[24] = h & np.uint64(0xFFFF00)
        hashes[25] = h & np.uint64(0xFFFFFF00)
        hashes[26] = h & np.uint64(0xFFFF0000)
        hashes[27] = h & np.uint64(0xF8F8F8F8FF)
        hashes[28] = stream[TITLE] * HASH + word
        hashes[29] = stream[TITLE_1] * HASH + (h & np.uint64(0xFFFFFF))
    for i in range(len(hashes)):
        hashes[i] = (hashes[i] + np.uint64(i + 1) * HASH_1) * HASH


@njit(cache=True)
def remember(stream, text, place, recent, byte):
    """The next byte of the stream is known, and stands at text[place]."""
    text[place] = byte + 1
    h = stream[HISTORY]
    stream[HISTORY] = h << np.uint64(8) | np.uint64(byte)
    last, two = h & BYTE, h & np.uint64(0xFFFF)
    recent[0, last] = recent[0, last] << np.uint64(8) | np.uint64(byte)
    recent[1, two] = recent[1, two] << np.uint64(8) | np.uint64(byte)
    for k in range(MATCHES):
        found, length = FOUND + 2 * k, LENGTH + 2 * k
        if stream[length]:
            alike = text[np.int64(stream[found])] == byte + 1
            stream[length] = stream[length] + ONE_64 if alike else np.uint64(0)
            stream[found] += ONE_64
    letter = byte | 32 if 65 <= byte <= 90 else byte
    small = 97 <= letter <= 122
    if small or letter >= 128 or 48 <= letter <= 57 or letter == 39:
        stream[WORD] = (stream[WORD] + np.uint64(letter)) * HASH_1 ^ stream[WORD] >> np.uint64(13)
        stream[WORD_LENGTH] = min(stream[WORD_LENGTH] + ONE_64, BYTE)
        stream[LETTERS] = stream[LETTERS] << np.uint64(8) | np.uint64(letter)
    elif stream[WORD]:
        stream[WORD_2], stream[WORD_1] = stream[WORD_1], stream[WORD]
        stream[WORD], stream[WORD_LENGTH], stream[LETTERS] = np.uint64(0), np.uint64(0), stream[LETTERS] << np.uint64(8)
    if byte != 32 and not small:
        stream[MARK] = np.uint64(byte)
    if np.int64(stream[LINE]) == place:
        stream[FIRST] = np.uint64(byte)
    stream[SO_FAR] = (stream[SO_FAR] + np.uint64(byte)) * HASH_1
    if byte == 58:
        stream[TITLE_1], stream[TITLE] = stream[TITLE], stream[SO_FAR]
    if byte == 10:
        stream[LINE_1], stream[LINE] = stream[LINE], np.uint64(place + 1)
        stream[FIRST] = stream[SO_FAR] = np.uint64(0)


# --- lines and slots --------------------------------------------------------------------------------------------------

@njit(cache=True)
def find_lines(table, hashes, half, found):
    """Write where in table (2^k, SLOTS) uint32 the lines of all contexts are to found (N,) uint64.

    half: 0 for the first half of the byte; for the second one a 1, then the bits of the first.
    """
    mask, touched = np.uint64(len(table) - 1), np.uint32(0)
    for i in range(len(hashes)):
        hashes[i] = (hashes[i] + np.uint64(half)) * HASH
        hashes[i] ^= hashes[i] >> np.uint64(32)
        touched |= table[hashes[i] & mask, 0]                   # all misses at once, instead of one after the other
    for i in range(len(hashes)):
        found[i] = _find(table, hashes[i], mask)
    return touched


@njit(cache=True)
def _find(table, hashed, mask):
    """The line of that hash or, of three neighbours, the one that has met least, made fresh."""
    check = np.uint32(hashed >> np.uint64(32)) | np.uint32(1)
    first = hashed & mask
    second, third = first ^ ONE_64, first ^ np.uint64(2)
    if table[first, 0] == check:
        return first
    if table[second, 0] == check:
        return second
    if table[third, 0] == check:
        return third
    line, used = first, np.uint32(0x3F80)                       # n of the first slot
    met, met_second, met_third = table[first, 1] & used, table[second, 1] & used, table[third, 1] & used
    if met_second < met and met_second <= met_third:
        line = second
    elif met_third < met:
        line = third
    for node in range(SLOTS):
        table[line, node] = 0
    table[line, 0] = check
    return line


# A context gives the mixer three inputs: the stretch of p, what the map makes of p and the last bits, and the latter as
# it is, less 1/2, which counts for little where nothing is certain, and for less the fewer bits were met.  A context that
# was never met says nothing: 0.
@njit(cache=True)
def ask_slots(table, lines, node, maps, places, inputs, stretch):
    """Write 3 inputs for each context, and the place in maps (N, PAIRS) where it was looked up, or -1.

    Return how many of the first ORDERS contexts were met before.
    """
    met = 0
    for i in range(len(lines)):
        slot = np.int64(table[lines[i], node] ^ FRESH)
        bits = slot & 127
        if bits:
            x = np.int64(stretch[slot >> 16])
            places[i] = bits << 5 | (min(max(x, -2047), 2047) + 2048) >> 7
            p = np.int64(maps[i, places[i]] >> np.uint32(16))
            inputs[3 * i], inputs[3 * i + 1] = x, stretch[p]
            inputs[3 * i + 2] = (p - ONE // 2) * (min(slot >> 7 & 127, SURE) + 2) >> 10
            met += i < ORDERS
        else:
            places[i] = -1
            inputs[3 * i], inputs[3 * i + 1], inputs[3 * i + 2] = 0, 0, 0
    return met


@njit(cache=True)
def tell_slots(table, lines, node, maps, places, bit, shares):
    for i in range(len(lines)):
        slot = np.int64(table[lines[i], node] ^ FRESH)
        bits, n, p = slot & 127, slot >> 7 & 127, slot >> 14
        if places[i] >= 0:                  # not `if bits`: two contexts may have come to share a line
            adapt(maps, i, places[i], bit, MAP_LIMIT, shares)
        distance = (bit << 18) - p
        if abs(distance) > SURPRISE:
            n >>= 1
        p += distance * shares[n] >> 16
        p = min(max(p, 4), 2 ** 18 - 4)
        bits = max(bits, 1) << 1 | bit
        if bits > 127:
            bits = bits & 63 | 64
        table[lines[i], node] = np.uint32(p << 14 | min(n + 1, MOST_MET) << 7 | bits) ^ FRESH


# --- the longest match ------------------------------------------------------------------------------------------------

@njit(cache=True)
def find_match(stream, k, text, place, seen):
    """The byte that the k-th match expects, plus 256, and the length of the match: 0, 0 if there is none.

    text (size + 1,) int16 has each byte plus 1, or 0 where it is not known yet: streams may match what others wrote.
    seen (MATCHES, 2^18) int32 has the last place where LEAST[k] bytes of that hash ended.
    """
    least, found, length = LEAST[k], np.int64(stream[FOUND + 2 * k]), np.int64(stream[LENGTH + 2 * k])
    hashed = (stream[HISTORY] << np.uint64(64 - 8 * least)) * HASH >> np.uint64(46)
    if not length:
        found = np.int64(seen[k, hashed])
        while length < min(LONGEST_CHECK, found, place) and text[found - 1 - length] == text[place - 1 - length] > 0:
            length += 1
        length = length if length >= least else 0
    seen[k, hashed] = place
    if not text[found]:
        length = 0
    stream[FOUND + 2 * k], stream[LENGTH + 2 * k] = np.uint64(found), np.uint64(length)
    return (255 + np.int64(text[found]), length) if length else (0, 0)


@njit(cache=True)
def step_of(length):
    """The length of a match in LENGTHS steps, of which the first are of one byte."""
    return length if length < 16 else min(14 + length // 8, LENGTHS - 1)

"""What the mixing model knows of the past: which bits followed in the same context, which byte, and what followed a match.

A context is whatever may tell the next byte: the last one, the last four, the word so far, the place in the line.  Each is
hashed, and for each half of the next byte (4 bits, 15 nodes of a binary tree) it has one line of 16 numbers of 32 bits: one
cache line, one miss.  The first number is a check on the hash, the others are slots, one for each node:

    31 .. 14    p, the probability of a 1: the mean of the bits met here, the late ones weighing more
    13 .. 7     n, how many bits it has met, up to MOST_MET: p moves by 1 / (n + 1.5) of its distance to the bit;
                but half as many if a bit comes that p hardly expected, for then the past may be over
     6 .. 0     the last six bits behind a leading 1: `011` reads "a 1, then another 1 came"; 0 if none came yet

p says how often, the last bits say how lately.  A map of adaptive probabilities, one for each pair of the two, learns what
they are worth in this context: whether one bit met once is a law or an accident.  A second map, which fast mode does
without, learns it of the last bits and the byte's bits so far: a law for letters may be an accident for commas.
"""

import numpy as np
from numba import njit

from minigpt.kernels.prefetch import prefetch

from .logistic import ONE, SHARES, adapt

SLOTS = 16                          # numbers in a line: the check and 15 slots
FRESH = np.uint32(2 ** 31)          # slots are kept with their highest bit flipped, so that 0 is p = 1/2, n = 0, no bits
MOST_MET = 127
SURPRISE = 31 * 2 ** 13             # the distance of p to a bit that was hardly expected: 31/32
SURE = 30                           # a context that has met so many bits speaks with its full voice
PAIRS = 128 * 32                    # of the last bits, and p in 32 steps of its stretch
NODES = 128 * 256                   # of the last bits, and the byte's bits so far

# What is kept of the past, uint64.  What words and lines are is for text; to other data they are contexts like any other.
(HISTORY,                           # the last 8 bytes
 WORD, WORD_1, WORD_2,              # hashes of the word so far (letters, in lower case; 0: none), and of those before
 WORD_LENGTH, LETTERS,              # of the word so far; the last 8 letters of words, a 0 between two words
 MARK,                              # the last byte that is neither a small letter nor a space
 LINE, LINE_1, FIRST,               # where the line began, and the one before; the first byte of the line
 SO_FAR, TITLE, TITLE_1,            # hashes: the line so far; the last one with a colon, up to there (who speaks); before
 FOUND, LENGTH,                     # of a match: where in the text the byte stands that it expects, and how long it is
 FOUND_1, LENGTH_1,                 # of a second one
 WORDS, SHAPE) = range(19)          # begun in the line so far; the last bytes, small letters in a row being one: `a`
FIELDS = 19
MATCHES = 2
LEAST = np.array([8, 5])            # bytes that must be alike for a match to begin
LONGEST_CHECK = 40                  # bytes that are compared when it does
LENGTHS = 64                        # steps into which lengths fall

FAST = 6                            # contexts in fast mode: the first ones of `hash_contexts`
ALL = 33
ORDERS = 5                          # the first of them are of the orders 1, 2, 3, 4 and 6

HASH = np.uint64(0x9E3779B97F4A7C15)            # odd, with no pattern in its bits
HASH_1 = np.uint64(0xD6E8FEB86659FD93)
BYTE, ONE_64 = np.uint64(255), np.uint64(1)


@njit(cache=True)
def hash_contexts(past, text, place, recent, hashes):
    """Write the hash of each context of the next byte to hashes (N,) uint64, N = FAST or ALL."""
    h = past[HISTORY]
    last, word, before, line = h & BYTE, past[WORD], past[WORD_1], np.int64(past[LINE])
    hashes[0] = last
    hashes[1] = h & np.uint64(0xFFFF)
    hashes[2] = h & np.uint64(0xFFFFFF)
    hashes[3] = h & np.uint64(0xFFFFFFFF)
    hashes[4] = h & np.uint64(0xFFFFFFFFFFFF)
    hashes[5] = word
    if len(hashes) > FAST:
        pair, column, above, expected = word * HASH + before, np.uint64(min(place - line, 255)), np.uint64(0), np.uint64(0)
        if np.int64(past[LINE_1]) + place - line < line:
            above = np.uint64(text[np.int64(past[LINE_1]) + place - line])
        if past[LENGTH_1]:                                              # the last match goes on
            expected = np.uint64(256 + text[np.int64(past[FOUND_1])])
        hashes[6] = h & np.uint64(0xFFFFFFFFFF)
        hashes[7] = np.uint64(0)
        hashes[8] = pair
        hashes[9] = pair * HASH + past[WORD_2]
        hashes[10] = word * HASH + past[WORD_2]
        hashes[11] = word * HASH + past[MARK]
        hashes[12] = word * HASH + past[FIRST]
        hashes[13] = before * HASH + last
        hashes[14] = before * HASH + (h & np.uint64(0xFFFF))
        hashes[15] = past[LETTERS] & np.uint64(0xFFFFFFFF)
        hashes[16] = past[LETTERS] & np.uint64(0xFFFFFFFFFF)
        hashes[17] = past[LETTERS] & np.uint64(0xFFFFFF)
        hashes[18] = recent[0, last] & np.uint64(0xFFFFFF)
        hashes[19] = (recent[1, h & np.uint64(0xFFFF)] & np.uint64(0xFFFF)) << np.uint64(8) | last
        hashes[20] = recent[1, h & np.uint64(0xFFFF)] & np.uint64(0xFFFFFF)
        hashes[21] = column << np.uint64(8) | last
        hashes[22] = past[WORD_LENGTH] << np.uint64(16) | above << np.uint64(8) | last
        hashes[23] = above << np.uint64(8) | column
        hashes[24] = h & np.uint64(0xFFFF00)
        hashes[25] = h & np.uint64(0xFFFFFF00)
        hashes[26] = h & np.uint64(0xFFFF0000)
        hashes[27] = h & np.uint64(0xF8F8F8F8FF)
        hashes[28] = past[TITLE] * HASH + word
        hashes[29] = past[TITLE_1] * HASH + (h & np.uint64(0xFFFFFF))
        hashes[30] = expected << np.uint64(16) | min(past[LENGTH_1], np.uint64(15)) << np.uint64(8) | last
        hashes[31] = past[WORDS] << np.uint64(16) | past[WORD_LENGTH] << np.uint64(8) | last
        hashes[32] = past[SHAPE] * HASH + last
    for i in range(len(hashes)):
        hashes[i] = (hashes[i] + np.uint64(i + 1) * HASH_1) * HASH


@njit(cache=True)
def remember(past, text, place, recent, byte):
    """The next byte is known, and stands at text[place]."""
    text[place] = byte
    h = past[HISTORY]
    past[HISTORY] = h << np.uint64(8) | np.uint64(byte)
    last, two = h & BYTE, h & np.uint64(0xFFFF)
    recent[0, last] = recent[0, last] << np.uint64(8) | np.uint64(byte)
    recent[1, two] = recent[1, two] << np.uint64(8) | np.uint64(byte)
    for k in range(MATCHES):
        found, length = FOUND + 2 * k, LENGTH + 2 * k
        if past[length]:
            alike = text[np.int64(past[found])] == byte
            past[length] = past[length] + ONE_64 if alike else np.uint64(0)
            past[found] += ONE_64
    letter = byte | 32 if 65 <= byte <= 90 else byte
    small = 97 <= letter <= 122
    if small or letter >= 128 or 48 <= letter <= 57 or letter == 39:
        past[WORD] = (past[WORD] + np.uint64(letter)) * HASH_1 ^ past[WORD] >> np.uint64(13)
        past[WORDS] += np.uint64(past[WORD_LENGTH] == 0)
        past[WORD_LENGTH] = min(past[WORD_LENGTH] + ONE_64, BYTE)
        past[LETTERS] = past[LETTERS] << np.uint64(8) | np.uint64(letter)
    elif past[WORD]:
        past[WORD_2], past[WORD_1] = past[WORD_1], past[WORD]
        past[WORD], past[WORD_LENGTH], past[LETTERS] = np.uint64(0), np.uint64(0), past[LETTERS] << np.uint64(8)
    if byte != 32 and not small:
        past[MARK] = np.uint64(byte)
    kind = np.uint64((97 if byte == letter else 65) if small else byte)
    if kind != 97 or past[SHAPE] & BYTE != kind:              # small letters in a row count once
        past[SHAPE] = past[SHAPE] << np.uint64(8) | kind
    if np.int64(past[LINE]) == place:
        past[FIRST] = np.uint64(byte)
    past[SO_FAR] = (past[SO_FAR] + np.uint64(byte)) * HASH_1
    if byte == 58:
        past[TITLE_1], past[TITLE] = past[TITLE], past[SO_FAR]
    if byte == 10:
        past[LINE_1], past[LINE] = past[LINE], np.uint64(place + 1)
        past[FIRST] = past[SO_FAR] = past[WORDS] = np.uint64(0)


def after_bits():
    """(128,) uint32, entries of `adapt`: the mean of the last bits, behind a leading 1."""
    p = [2 ** 21, 2 ** 21]
    for bits in range(2, 128):
        before = p[bits >> 1]
        p.append(before + (((bits & 1) << 22) - before) * int(SHARES[bits.bit_length() - 2]) // ONE)
    return np.array(p, np.uint32) << 10


# --- lines and slots --------------------------------------------------------------------------------------------------

@njit(cache=True)
def send_for_lines(table, hashes, half):
    """Hash half of a byte as well, and have all lines fetched that `find_lines` looks for.

    half: 0 for the first half of the byte; for the second one a 1, then the bits of the first.
    """
    mask = np.uint64(len(table) - 1)
    for i in range(len(hashes)):
        hashes[i] = (hashes[i] + np.uint64(half)) * HASH
        hashes[i] ^= hashes[i] >> np.uint64(32)
        prefetch(table, np.int64(hashes[i] & mask) * SLOTS)


@njit(cache=True)
def find_lines(table, hashes, found):
    """Write where in table (2^k, SLOTS) uint32 the lines of all contexts are to found (N,) uint64."""
    mask = np.uint64(len(table) - 1)
    for i in range(len(hashes)):
        found[i] = _find(table, hashes[i], mask)


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
# it is, less 1/2, which counts for little where nothing is certain, and for less the fewer bits were met.  The
# second map gives a fourth one.  A context that was never met says nothing: 0.
@njit(cache=True)
def ask_slots(table, lines, node, byte, maps, nodes, places, inputs, stretch):
    """Write 3 or 4 inputs for each context, and the place in maps (N, PAIRS) where it was looked up, or -1.

    byte: its bits so far, behind a leading 1.  nodes: (N, NODES), or (0, NODES) for 3 inputs.

    Return how many of the first ORDERS contexts were met before.
    """
    met, second, at = 0, len(nodes) > 0, 0
    for i in range(len(lines)):
        slot = np.int64(table[lines[i], node] ^ FRESH)
        bits = slot & 127
        if bits:
            x = np.int64(stretch[slot >> 16])
            places[i] = bits << 5 | (min(max(x, -2047), 2047) + 2048) >> 7
            p = np.int64(maps[i, places[i]] >> np.uint32(16))
            inputs[at], inputs[at + 1] = x, stretch[p]
            inputs[at + 2] = (p - ONE // 2) * (min(slot >> 7 & 127, SURE) + 2) >> 10
            if second:
                inputs[at + 3] = stretch[nodes[i, bits << 8 | byte] >> np.uint32(16)]
            met += i < ORDERS
        else:
            places[i] = -1
            for j in range(at, at + 3 + second):
                inputs[j] = 0
        at += 3 + second
    return met


@njit(cache=True)
def tell_slots(table, lines, node, byte, maps, nodes, places, bit, shares):
    for i in range(len(lines)):
        slot = np.int64(table[lines[i], node] ^ FRESH)
        bits, n, p = slot & 127, slot >> 7 & 127, slot >> 14
        if places[i] >= 0:                  # not `if bits`: two contexts may have come to share a line
            adapt(maps, i, places[i], bit, shares)
            if len(nodes):
                adapt(nodes, i, bits << 8 | byte, bit, shares)
        distance = (bit << 18) - p
        if abs(distance) > SURPRISE:
            n >>= 1
        p += distance * shares[n] >> 16
        p = min(max(p, 4), 2 ** 18 - 4)
        bits = max(bits, 1) << 1 | bit
        if bits > 127:
            bits = bits & 63 | 64
        table[lines[i], node] = np.uint32(p << 14 | min(n + 1, MOST_MET) << 7 | bits) ^ FRESH


# --- matches and runs: which byte comes -------------------------------------------------------------------------------

@njit(cache=True)
def find_match(past, k, text, place, seen):
    """The byte that the k-th match expects, plus 256, and the length of the match: 0, 0 if there is none.

    seen (MATCHES, 2^18) int32 has the last place where LEAST[k] bytes of that hash ended.
    """
    least, found, length = LEAST[k], np.int64(past[FOUND + 2 * k]), np.int64(past[LENGTH + 2 * k])
    hashed = (past[HISTORY] << np.uint64(64 - 8 * least)) * HASH >> np.uint64(46)
    if not length:
        found = np.int64(seen[k, hashed])
        while length < min(LONGEST_CHECK, found, place) and text[found - 1 - length] == text[place - 1 - length]:
            length += 1
        length = length if length >= least else 0
    seen[k, hashed] = place
    past[FOUND + 2 * k], past[LENGTH + 2 * k] = np.uint64(found), np.uint64(length)
    return (256 + np.int64(text[found]), length) if length else (0, 0)


@njit(cache=True)
def find_runs(runs, hashes, places, expected, length):
    """The same of each context, behind those of the matches: the byte that came last in it, and how many times in a row.

    runs (N, 2^16) uint16 has both; places (G,) int64 is written, for `tell_runs`.
    """
    for i in range(len(runs)):
        places[i] = np.int64(hashes[i] >> np.uint64(48))
        run = np.int64(runs[i, places[i]])
        expected[MATCHES + i], length[MATCHES + i] = (256 + (run & 255), run >> 8) if run else (0, 0)


@njit(cache=True)
def tell_runs(runs, places, byte):
    for i in range(len(runs)):
        run = np.int64(runs[i, places[i]])
        count = run >> 8 if run & 255 == byte else 0
        runs[i, places[i]] = min(count + 1, 255) << 8 | byte


@njit(cache=True)
def step_of(length):
    """The length of a match in LENGTHS steps, of which the first are of one byte."""
    return length if length < 16 else min(14 + length // 8, LENGTHS - 1)

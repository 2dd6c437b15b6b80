"""Contexts: what may predict the next byte.  A table of them, the past that they are made from, and a hash of each.

The models see the past only through these contexts; histories.py keeps what followed each of them.  Order n is the last n
bytes.  Words, lines and speakers are meant for text; in other data they are contexts like any other.

To add a context, add a line to the table and its value to `hash_contexts`: this makes a new version of the file format.
"""

import numpy as np
from numba import njit

from .histories import MATCH_LENGTH, MATCH_POINTER, MULTIPLIER, SHORT_MATCH

CONTEXTS = []               # (name, reason) of each


def _context(name, reason):
    CONTEXTS.append((name, reason))
    return len(CONTEXTS) - 1


# At the end of each line: by how many bytes the code grows without that context, all else the same, in the mode with all of
# them and no GPT.  For the first 300,000 bytes of tiny Shakespeare (code: 75,053 bytes), for C (perl 5.36.0's inline.h, 105,922
# bytes; 18,097), and for the first 300,000 bytes of an executable (perl 5.36.0 for Debian 12 on x86-64; 46,598):
#     python -m tests.ablation tinyshakespeare.txt 300000;  ... inline.h;  ... /usr/bin/perl 300000
# In fast mode, for the whole of tiny Shakespeare (`--fast`; 274,974), the six: 1,942, 1,914, 1,833, 1,899, 3,177, 4,849.
# Contexts overlap, so two may be worth more together than the sum of what each is worth alone.
#
#                                                                                                   bytes:  text     C  binary
ORDER_1 = _context("order 1", "pairs of bytes")                                                            #     37    26     38
ORDER_2 = _context("order 2", "syllables, fields of 2 bytes")                                              #    278    93     78
ORDER_3 = _context("order 3", "syllables, endings")                                                        #    118    40     36
ORDER_4 = _context("order 4", "short words, machine instructions")                                         #     56     3     39
ORDER_6 = _context("order 6", "words, phrases of code")                                                    #     45    12    535
WORD = _context("word", "the rest of a word, whatever stands before it")                                   #    351    79     34
ORDER_5 = _context("order 5", "fills the gap between orders 4 and 6")                                      #      6    -4     36
ORDER_0 = _context("order 0", "how frequent each byte is")                                                 #    111   106    100
WORD_BIGRAM = _context("word, last word", "which word follows which")                                      #     50    -2      4
WORD_TRIGRAM = _context("word, last 2 words", "phrases")                                                   #     27    29      1
WORD_SKIP = _context("word, second last word", "phrases with any word in the middle")                      #     84    18    152
WORD_MARK = _context("word, last mark", "words after a comma, a full stop, a bracket")                     #     10    27     14
WORD_LINE_START = _context("word, first byte of line", "words in a line of this kind")                     #      8    26      4
LAST_WORD_1 = _context("last word, order 1", "how a word begins after that word")                          #     11     1     14
LAST_WORD_2 = _context("last word, order 2", "how a word goes on after that word")                         #     25    14     24
LETTERS_4 = _context("4 letters", "order 4 in lower case, whatever the punctuation")                       #      3    -2      2
LETTERS_5 = _context("5 letters", "order 5 in lower case, whatever the punctuation")                       #      0    -3      2
LETTERS_3 = _context("3 letters", "order 3 in lower case, whatever the punctuation")                       #     15     8     26
INDIRECT_1 = _context("3 followers of order 1", "what came the last 3 times after this byte")              #     -9    30     94
INDIRECT_2_1 = _context("2 followers of order 2, order 1", "what came the last 2 times after these 2")     #     12    18     28
INDIRECT_2 = _context("3 followers of order 2", "what came the last 3 times after these 2 bytes")          #      5     8    168
COLUMN = _context("column, order 1", "tables, indentation, where lines break")                             #     72    32     15
ABOVE = _context("byte above, word length, order 1", "columns of text, repeated lines")                    #     12    15     41
ABOVE_COLUMN = _context("byte above, column", "tables of fixed width")                                     #     81    48    354
SPARSE_2_3 = _context("bytes 2 and 3 back", "records, instructions whose last byte varies")                #      8     1    120
SPARSE_2_4 = _context("bytes 2 to 4 back", "the same, one byte longer")                                    #      2    -2    163
SPARSE_3_4 = _context("bytes 3 and 4 back", "records of 4 bytes, samples of 2")                            #      4     2    244
HIGH_BITS = _context("order 1, high bits of 5 bytes", "numbers and addresses that nearly recur")           #     43     5     70
SPEAKER_WORD = _context("speaker, word", "a character's favourite words, the values of a key")             #     17    22     10
DIALOGUE = _context("last speaker, order 3", "who answers whom")                                           #      4     9     43
EXPECTED = _context("byte expected by short match", "how far to trust it, by value and length")            #     74    82  1,914
VERSE = _context("words in line, word length, order 1", "where a verse ends")                              #     85    21      7
SHAPES = _context("shape, order 1", "capitals, marks and line breaks, whatever the words")                 #     71   114    140

ALL_CONTEXTS = len(CONTEXTS)            # of text

# For records, in fast mode only: see kinds.py.  The byte above is the one in the same column of the record before.
FIELD = _context("byte above, record column", "fields that recur")
NEAREST = _context("nearest byte, record column", "the upper byte of a number near to that above")
NEAREST_TO_LINE = _context("nearest byte to a line, record column", "the same of a number that goes on as the last two did")
CARRY = _context("byte above, record column, step to the left", "which byte changes if the lower one has wrapped around")

MOST_CONTEXTS = len(CONTEXTS)
FAST_CONTEXTS = 6           # the first ones, used in fast mode
RECORD_CONTEXTS = (ORDER_2, ORDER_3, ORDER_6, INDIRECT_2, SPARSE_2_3, SPARSE_3_4, EXPECTED, FIELD, NEAREST, NEAREST_TO_LINE,
                   CARRY)       # ascending
ORDERS = 5                  # the first ones: how many of them have been seen is a confidence, and selects mixer weights

# The past, (FIELDS,) uint64.  A word is of letters in lower case, digits, apostrophes and bytes beyond ASCII.
(HISTORY,                                   # the last 8 bytes, the latest lowest
 THIS_WORD, LAST_WORD, SECOND_LAST_WORD,    # hashes of the word so far (0: none) and of those before it
 WORD_LENGTH, LETTERS,                      # bytes of the word so far; the last 8 bytes of words, with a 0 between two words
 MARK,                                      # the last byte that is neither an ASCII letter nor a space
 LINE_START, LAST_LINE_START,               # positions where this line and the last one began
 LINE_FIRST_BYTE, LINE_HASH,                # of the line so far
 SPEAKER, LAST_SPEAKER,                     # LINE_HASH at the last colon (in a play, who speaks), and at the one before
 WORD_COUNT,                                # words begun in the line so far
 SHAPE,                                     # the last 8 bytes with every capital as `A` and every run of small letters as `a`
 PERIOD) = range(16)                        # bytes of a record, as kinds.py finds it; 0 in text
FIELDS = 16

SALT = np.uint64(0xD6E8FEB86659FD93)                # gives two contexts with the same value different hashes
EIGHT, SIXTEEN, BYTE_MASK, PAIR_MASK = np.uint64(8), np.uint64(16), np.uint64(0xFF), np.uint64(0xFFFF)


@njit(cache=True)
def hash_contexts(past, text, position, followers, matches, selected, values, hashes):
    """Write the hashes (N,) uint64 of the N `selected` contexts, indices in CONTEXTS, of the byte at text[position].

    followers (2, 2^16) uint64: the last 8 bytes that followed each byte, and each pair; matches: see `find_match`.  values,
    uint64, is a scratch buffer, whose length says what may be selected: FAST_CONTEXTS the first ones, ALL_CONTEXTS those of
    text, MOST_CONTEXTS the first ones and RECORD_CONTEXTS, which need past[PERIOD] > 0.
    """
    h = past[HISTORY]
    order_1, order_2, order_3, word = h & BYTE_MASK, h & PAIR_MASK, h & np.uint64(0xFFFFFF), past[THIS_WORD]
    values[ORDER_1] = order_1
    values[ORDER_2] = order_2
    values[ORDER_3] = order_3
    values[ORDER_4] = h & np.uint64(0xFFFFFFFF)
    values[ORDER_6] = h & np.uint64(0xFFFFFFFFFFFF)
    values[WORD] = word
    if len(values) > ALL_CONTEXTS:
        hash_record_contexts(past, text, position, followers, matches, values)
    elif len(values) > FAST_CONTEXTS:
        last_word, second_last_word = past[LAST_WORD], past[SECOND_LAST_WORD]
        word_length, letters = past[WORD_LENGTH], past[LETTERS]
        after_byte, after_pair = followers[0, order_1], followers[1, order_2]
        bigram = word * MULTIPLIER + last_word
        start, last_start = np.int64(past[LINE_START]), np.int64(past[LAST_LINE_START])
        column, above = np.uint64(min(position - start, 255)), np.uint64(0)
        if last_start + position - start < start:                       # the last line is long enough
            above = np.uint64(text[last_start + position - start])
        expected, match_length = np.uint64(0), matches[SHORT_MATCH, MATCH_LENGTH]
        if match_length:
            expected = np.uint64(256 + text[matches[SHORT_MATCH, MATCH_POINTER]])
        values[ORDER_5] = h & np.uint64(0xFFFFFFFFFF)
        values[ORDER_0] = np.uint64(0)
        values[WORD_BIGRAM] = bigram
        values[WORD_TRIGRAM] = bigram * MULTIPLIER + second_last_word
        values[WORD_SKIP] = word * MULTIPLIER + second_last_word
        values[WORD_MARK] = word * MULTIPLIER + past[MARK]
        values[WORD_LINE_START] = word * MULTIPLIER + past[LINE_FIRST_BYTE]
        values[LAST_WORD_1] = last_word * MULTIPLIER + order_1
        values[LAST_WORD_2] = last_word * MULTIPLIER + order_2
        values[LETTERS_4] = letters & np.uint64(0xFFFFFFFF)
        values[LETTERS_5] = letters & np.uint64(0xFFFFFFFFFF)
        values[LETTERS_3] = letters & np.uint64(0xFFFFFF)
        values[INDIRECT_1] = after_byte & np.uint64(0xFFFFFF)
        values[INDIRECT_2_1] = (after_pair & PAIR_MASK) << EIGHT | order_1
        values[INDIRECT_2] = after_pair & np.uint64(0xFFFFFF)
        values[COLUMN] = column << EIGHT | order_1
        values[ABOVE] = word_length << SIXTEEN | above << EIGHT | order_1
        values[ABOVE_COLUMN] = above << EIGHT | column
        values[SPARSE_2_3] = h & np.uint64(0xFFFF00)
        values[SPARSE_2_4] = h & np.uint64(0xFFFFFF00)
        values[SPARSE_3_4] = h & np.uint64(0xFFFF0000)
        values[HIGH_BITS] = h & np.uint64(0xF8F8F8F8FF)
        values[SPEAKER_WORD] = past[SPEAKER] * MULTIPLIER + word
        values[DIALOGUE] = past[LAST_SPEAKER] * MULTIPLIER + order_3
        values[EXPECTED] = expected << SIXTEEN | np.uint64(min(match_length, 15)) << EIGHT | order_1
        values[VERSE] = past[WORD_COUNT] << SIXTEEN | word_length << EIGHT | order_1
        values[SHAPES] = past[SHAPE] * MULTIPLIER + order_1
    for i in range(len(hashes)):
        context = selected[i]
        hashes[i] = (values[context] + np.uint64(context + 1) * SALT) * MULTIPLIER


@njit(cache=True)
def hash_record_contexts(past, text, position, followers, matches, values):
    """Write the values of RECORD_CONTEXTS, except those of the orders."""
    h, period = past[HISTORY], np.int64(past[PERIOD])
    before, column = np.int64(h & BYTE_MASK), np.uint64(position % period) << SIXTEEN
    above, number, last_number = np.int64(0), np.int64(0), np.int64(0)
    if position > 2 * period:
        above = np.int64(text[position - period])
        number = above << 8 | np.int64(text[position - period - 1])             # as if this byte were the upper half of one
        last_number = np.int64(text[position - 2 * period]) << 8 | np.int64(text[position - 2 * period - 1])
    step, size = before - (number & 255), 0                                     # size: of the step, in bits
    while abs(step) >> size:
        size += 1
    expected, match_length = np.uint64(0), matches[SHORT_MATCH, MATCH_LENGTH]
    if match_length:
        expected = np.uint64(256 + text[matches[SHORT_MATCH, MATCH_POINTER]])
    values[INDIRECT_2] = followers[1, h & PAIR_MASK] & np.uint64(0xFFFFFF)
    values[SPARSE_2_3] = h & np.uint64(0xFFFF00)
    values[SPARSE_3_4] = h & np.uint64(0xFFFF0000)
    values[EXPECTED] = expected << SIXTEEN | np.uint64(min(match_length, 15)) << EIGHT | h & BYTE_MASK
    values[FIELD] = column | np.uint64(above)
    values[NEAREST] = column | np.uint64((number - before + 128 >> 8) & 255)
    values[NEAREST_TO_LINE] = column | np.uint64((2 * number - last_number - before + 128 >> 8) & 255)
    values[CARRY] = column | np.uint64(above << 8 | (8 + size if step >= 0 else 8 - size))


@njit(cache=True)
def update_past(past, text, position, followers, byte):
    """Write the byte to text[position], and update everything that contexts are made from."""
    text[position] = byte
    h, new = past[HISTORY], np.uint64(byte)
    past[HISTORY] = h << EIGHT | new
    order_1, order_2 = h & BYTE_MASK, h & PAIR_MASK
    followers[0, order_1] = followers[0, order_1] << EIGHT | new
    followers[1, order_2] = followers[1, order_2] << EIGHT | new
    lower = byte | 32 if 65 <= byte <= 90 else byte
    is_letter = 97 <= lower <= 122
    if is_letter or lower >= 128 or 48 <= lower <= 57 or lower == 39:
        past[THIS_WORD] = (past[THIS_WORD] + np.uint64(lower)) * SALT ^ past[THIS_WORD] >> np.uint64(13)
        past[WORD_COUNT] += np.uint64(past[WORD_LENGTH] == 0)
        past[WORD_LENGTH] = min(past[WORD_LENGTH] + np.uint64(1), BYTE_MASK)
        past[LETTERS] = past[LETTERS] << EIGHT | np.uint64(lower)
    elif past[THIS_WORD]:
        past[SECOND_LAST_WORD], past[LAST_WORD] = past[LAST_WORD], past[THIS_WORD]
        past[THIS_WORD], past[WORD_LENGTH], past[LETTERS] = np.uint64(0), np.uint64(0), past[LETTERS] << EIGHT
    if byte != 32 and not is_letter:
        past[MARK] = new
    shape = np.uint64((97 if byte == lower else 65) if is_letter else byte)
    if shape != 97 or past[SHAPE] & BYTE_MASK != shape:         # small letters in a row count once
        past[SHAPE] = past[SHAPE] << EIGHT | shape
    if np.int64(past[LINE_START]) == position:
        past[LINE_FIRST_BYTE] = new
    past[LINE_HASH] = (past[LINE_HASH] + new) * SALT
    if byte == 58:                                              # a colon
        past[LAST_SPEAKER], past[SPEAKER] = past[SPEAKER], past[LINE_HASH]
    if byte == 10:                                              # a line break
        past[LAST_LINE_START], past[LINE_START] = past[LINE_START], np.uint64(position + 1)
        past[LINE_FIRST_BYTE] = past[LINE_HASH] = past[WORD_COUNT] = np.uint64(0)

"""The kind of data: text, or records of some number of bytes, as judged by the bytes before.  The file does not store it.

Encoder and decoder look at the last WINDOW bytes now and then, and count:

    control     bytes that are rare in text: 127 or below 32, except tab, line feed and carriage return; runs count once
    broken      violations of UTF-8: no continuation byte where one is due, or one where none is
    equal[p]    bytes that equal the one p before, but not the previous one: runs say nothing about a period

Where control and broken are few, it is text.  Else the period is the shortest that has nearly as many equal bytes as the best
one, both less the mean over all periods, which is due to chance.  Data without a period, such as machine code, is treated as
records of PLAIN bytes, to which most machines align what they store.
"""

import numpy as np
from numba import njit

WINDOW, STEP = 8192, 4096           # bytes that are looked at, and bytes from one look to the next
FIRST_LOOK = 256                    # bytes; then at twice as many each time, up to STEP
LONGEST_PERIOD = 512
PLAIN = 4
MOST_CONTROL, MOST_BROKEN = 32, 4   # text has fewer than one in so many bytes
EVIDENCE = 32                       # a period has to explain one in so many bytes


def next_look(position: int) -> int:
    """The first position after this one at which the kind is determined."""
    return max(FIRST_LOOK, 1 << position.bit_length()) if position < STEP else position - position % STEP + STEP


@njit(cache=True)
def find_period(text, position):
    """The period, in bytes, of the records before text[position], PLAIN if there is none; 0 for text.  text (size,) uint8."""
    start = max(position - WINDOW, 0)
    size, control, broken, expected = position - start, 0, 0, 0
    fresh = np.zeros(size, np.uint8)                        # 1 where a byte differs from the last one
    last = 0
    for i in range(size):
        byte = np.int64(text[start + i])
        fresh[i] = i > 0 and byte != last
        last = byte
        control += fresh[i] and ((byte < 32 and byte != 9 and byte != 10 and byte != 13) or byte == 127)
        if expected > 0 or 128 <= byte < 192:
            is_continuation = 128 <= byte < 192
            broken += is_continuation != (expected > 0)
            expected = expected - 1 if is_continuation and expected > 0 else 0
        if byte >= 192:
            expected = 1 + (byte >= 224) + (byte >= 240)
    if control * MOST_CONTROL < size and broken * MOST_BROKEN < size:
        return 0
    most = min(LONGEST_PERIOD, size // 4)
    equal, total = np.zeros(most + 1, np.int64), 0
    for p in range(2, most + 1):
        equal[p] = count_equal(text[start + p:position], text[start:position - p], fresh[p:])
        total += equal[p]
    mean = total // max(most - 1, 1)
    best = 0
    for p in range(2, most + 1):
        best = max(best, equal[p] - mean)
    if best * EVIDENCE < size:
        return PLAIN
    for p in range(2, most + 1):
        if (equal[p] - mean) * 8 >= best * 7:
            return p
    return PLAIN


@njit(cache=True)
def count_equal(these, those, fresh):
    """The number of places in three arrays (n,) uint8 where these equals those, and fresh is 1."""
    count = np.int32(0)
    for i in range(len(these)):
        count += np.int32(fresh[i] & (these[i] == those[i]))
    return count

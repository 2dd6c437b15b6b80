"""A range coder: arithmetic coding (intervals.py) in integers of 64 bits, a byte at a time.  No float anywhere.

The interval of intervals.py soon needs more digits than any integer has, but its first digits hardly change any more.
So of the interval [low, low + range) only 64 bits are kept.  Renormalisation: whenever the range has become a byte
narrower, the first byte of low is output, and both are shifted up by a byte [Martin 1979; Schindler 1998].  After n bytes
of output, with `code` the integer that they spell, the interval in units of 2^-(64 + 8n) is
    code * 2^64 + [low, low + range)
and between two symbols
    2^56 <= range < 2^64,  0 <= low < 2^64             renormalised as far as possible                  (1)
    code * 2^64 + low + range <= 2^(64 + 8n)           the interval lies inside [0, 1)                  (2)

Carry.  low may grow past 2^64: then 1 is added to the code, although its bytes are output.  By (2) they are not all 0xFF
then, so the carry ends at some byte before it runs off the front.  By (1) low + range < 2^65, so the same code never gets
a second carry.  Hence a byte is carried into at most once, and all carries together cost O(1) a byte.

Limits.  The coder knows a symbol by its start (the sum of the frequencies before it) and size (its frequency), of a total:
    step = floor(range / total),  low += step * start,  range = step * size
It gets size / total of the range, less what the floor drops.  As step > range / total - 1, the new range is at least
1 - total / range >= 1 - total / 2^56 of the exact one, by (1).  With total <= LARGEST_TOTAL = 2^32:
    step >= 2^24                                       a range is never empty; at most 4 bytes a symbol (3)
    loss <= 1.4427 * total / 2^56 < 1e-7 bits a symbol (with total <= 2^24: < 4e-10)                    (4)
That is less than 0.001 % of any symbol that costs 0.01 bits or more, and 500 million cheaper ones lose less than 7
bytes together.  (Up to a total of 2^56 all would still decode, but a symbol could lose a bit or more.)

End.  By (1) the interval holds a multiple of 2^56, which one more byte, or none, names if zeros are read behind it.  So
the code only points into its interval: it takes at most a byte more than the interval asks for, but the decoder must
know where it ends.  A file of several codes stores their lengths too.

Decoder.  At first offset is the first 8 bytes of the code, as a big-endian integer, and range = 2^64 - 1; behind the end of
the code it reads zeros.  A symbol of the known total: step = floor(range / total); it is the one with
start <= floor(offset / step) < start + size.  Then offset -= step * start, range = step * size; and while range < 2^56:
offset = 256 * offset + the next byte, range *= 256.
"""

import numpy as np
from numba import njit

LARGEST_TOTAL = 2 ** 32
REGISTER = 8                            # bytes of low, range and offset
FIRST_RANGE = np.uint64(2 ** 64 - 1)
SMALLEST_RANGE = np.uint64(2 ** 56)
BYTE_SHIFT, TOP_SHIFT = np.uint64(8), np.uint64(56)     # bits: to the next byte, and to the first of a register
LOW, RANGE, LENGTH = 0, 1, 2                    # the encoder's state (3,) uint64; LENGTH: bytes of output
OFFSET, RANGE, STEP, POSITION = 0, 1, 2, 3      # the decoder's state (4,) uint64; POSITION: bytes of the code that were read


# --- one symbol, for models that run in Numba -------------------------------------------------------------------------
# Where uint64 meets int64, Numba infers float64 or int64, depending on its version, and neither will do: so every number
# is made a uint64 first.

@njit(cache=True)
def start_encoding():
    """state, out: the encoder's state and its buffer, for `encode_symbol`."""
    state = np.zeros(3, np.uint64)
    state[RANGE] = FIRST_RANGE
    return state, np.empty(1024, np.uint8)


@njit(cache=True)
def encode_symbol(state, out, start, size, total):
    """Narrow to [start, start + size) of total, integers, and return the buffer: a larger one if need be.

    ValueError unless 0 <= start < start + size <= total <= LARGEST_TOTAL.
    """
    start, size, total = np.uint64(start), np.uint64(size), np.uint64(total)
    if not (start < total <= np.uint64(LARGEST_TOTAL) and np.uint64(1) <= size <= total - start):
        raise ValueError("a symbol needs 0 <= start < start + size <= total <= LARGEST_TOTAL")
    step = state[RANGE] // total
    low, width, length = state[LOW] + step * start, step * size, np.int64(state[LENGTH])
    if low < state[LOW]:                                    # it wrapped around at 2^64
        _carry(out, length)
    if length + REGISTER > len(out):                          # doubled, so that all copying costs O(1) a byte
        out = np.concatenate((out, np.empty_like(out)))
    while width < SMALLEST_RANGE:
        out[length] = low >> TOP_SHIFT
        low, width, length = low << BYTE_SHIFT, width << BYTE_SHIFT, length + 1
    state[LOW], state[RANGE], state[LENGTH] = low, width, length
    return out


@njit(cache=True)
def _carry(out, length):
    """Add 1 to the number that the bytes out[:length] spell."""
    last = length - 1
    while out[last] == 0xFF:                                # not past the front: (2)
        out[last] = 0
        last -= 1
    out[last] += np.uint8(1)


@njit(cache=True)
def finish_encoding(state, out):
    """The code of all symbols so far, a fresh array (bytes,) uint8.  Changes nothing: more symbols may follow."""
    low, length = state[LOW], np.int64(state[LENGTH])
    code = out[:length + 1].copy()                          # out has room: of 8 bytes free, (3) took 4 at most
    end = low + (state[RANGE] - np.uint64(1))               # the last number inside
    if end < low:                                           # 2^64 is inside: the code plus 1, with zeros behind
        _carry(code, length)
    if end < low or not low:
        return code[:length]
    code[length] = end >> TOP_SHIFT                               # the last multiple of 2^56 that is <= end, >= low by (1)
    return code


@njit(cache=True)
def start_decoding(code):
    """The decoder's state, for `decode_target` and `decode_symbol`.  code is an array (bytes,) uint8."""
    state = np.zeros(4, np.uint64)
    state[RANGE] = FIRST_RANGE
    for _ in range(REGISTER):
        _read(state, code)
    return state


@njit(cache=True)
def _read(state, code):
    """Shift the next byte of the code into offset; behind its end there are zeros."""
    at = state[POSITION]
    byte = np.uint64(code[at]) if at < np.uint64(len(code)) else np.uint64(0)
    state[OFFSET], state[POSITION] = state[OFFSET] << BYTE_SHIFT | byte, at + np.uint64(1)


# offset = number - low, with the number that the code names.  As low <= number < low + range,
#     0 <= offset < range                                                                               (5)
# A damaged code may break (5), and offset / step be total or more.  It is clamped to total - 1, so that there always is a
# symbol; everything else wraps around.
@njit(cache=True)
def decode_target(state, total):
    """An integer (uint64) in [0, total): the next symbol is the one with start <= target < start + size.

    ValueError unless 1 <= total <= LARGEST_TOTAL.
    """
    total = np.uint64(total)
    if not np.uint64(1) <= total <= np.uint64(LARGEST_TOTAL):
        raise ValueError("a total must lie in 1..LARGEST_TOTAL")
    state[STEP] = state[RANGE] // total
    return min(state[OFFSET] // state[STEP], total - np.uint64(1))


@njit(cache=True)
def find_symbol(frequencies, target):
    """symbol, start: the one with start <= target < start + frequencies[symbol], and the sum of the frequencies before it.

    frequencies (V,): integers, whose sum exceeds target.
    """
    symbol, start = 0, np.uint64(0)
    while start + np.uint64(frequencies[symbol]) <= target:
        start += np.uint64(frequencies[symbol])
        symbol += 1
    return symbol, start


@njit(cache=True)
def decode_symbol(state, code, start, size):
    """Narrow to the symbol in which the last target fell, as the encoder did.  ValueError if size is 0."""
    state[OFFSET] -= state[STEP] * np.uint64(start)
    state[RANGE] = state[STEP] * np.uint64(size)
    if not state[RANGE]:
        raise ValueError("a symbol needs a size of 1 or more")
    while state[RANGE] < SMALLEST_RANGE:
        state[RANGE] <<= BYTE_SHIFT
        _read(state, code)


def overrun(state: np.ndarray, code: np.ndarray) -> int:
    """How many bytes the decoder read past the end of the code, beyond the REGISTER that it reads ahead.

    More than 0 proves that the code was cut off or damaged.  0 proves nothing: for that, keep a checksum.
    """
    return max(0, int(state[POSITION]) - len(code) - REGISTER)


# --- many symbols, each with frequencies of its own -------------------------------------------------------------------

class Encoder:
    """Symbols, each with a distribution of its own, to one code."""

    def __init__(self):
        self._state, self._out = start_encoding()

    def encode(self, frequencies: np.ndarray, symbols: np.ndarray):
        """Append symbols (N,), any integers, of which the i-th has the frequencies frequencies[i]: (N, V) uint32.

        ValueError, with nothing appended, unless 0 <= symbol < V, each frequency >= 1, each row's sum <= LARGEST_TOTAL.
        """
        frequencies, totals = _checked(frequencies)
        N, V = frequencies.shape
        symbols = np.asarray(symbols)
        if symbols.shape != (N,) or symbols.dtype.kind not in "iu":
            raise ValueError(f"expected {N} integers, a symbol for each row of frequencies, but found an array "
                             f"{symbols.shape} of {symbols.dtype}")
        if N and not 0 <= symbols.min() <= symbols.max() < V:
            raise ValueError(f"symbols must lie in 0..{V - 1}, but go from {symbols.min()} to {symbols.max()}")
        self._out = _encode(self._state, self._out, frequencies, totals, symbols.astype(np.int64))

    @property
    def size(self) -> int:
        """How many bytes of output there are so far; `finish` appends at most one."""
        return int(self._state[LENGTH])

    def finish(self) -> bytes:
        """The code (bytes) of all symbols so far.  Changes nothing: more symbols may follow."""
        return finish_encoding(self._state, self._out).tobytes()


class Decoder:
    """The symbols of a code, from the frequencies that they were encoded with."""

    def __init__(self, code: bytes):
        self._code = np.frombuffer(bytes(code), np.uint8)
        self._state = start_decoding(self._code)

    def decode(self, frequencies: np.ndarray) -> np.ndarray:
        """The next N symbols (int64), from the frequencies (N, V) uint32 that they were encoded with.

        A damaged code gives some symbols, and no error: afterwards see `overrun`, and verify a checksum.
        ValueError where a frequency is 0 or a row's sum exceeds LARGEST_TOTAL.
        """
        return _decode(self._state, self._code, *_checked(frequencies))

    @property
    def overrun(self) -> int:
        """Bytes that were missing so far; more than 0 proves that the code was cut off or damaged."""
        return overrun(self._state, self._code)


def _checked(frequencies):
    """frequencies as a contiguous array, and the sum of each row (N,) uint64."""
    frequencies = np.asarray(frequencies)
    if frequencies.ndim != 2 or frequencies.dtype != np.uint32:
        raise ValueError(f"frequencies must be (N, V) of uint32, not {frequencies.shape} of {frequencies.dtype}")
    frequencies = np.ascontiguousarray(frequencies)
    totals = _totals(frequencies)
    if not totals.all():
        raise ValueError(f"row {np.argmin(totals)} of frequencies cannot be coded with: each frequency must be 1 or "
                         f"more, and their sum at most {LARGEST_TOTAL}")
    return frequencies, totals


@njit(cache=True)
def _totals(frequencies):
    """The sum of each row, or 0 where a frequency is 0 or the sum is more than LARGEST_TOTAL."""
    N, V = frequencies.shape
    totals = np.zeros(N, np.uint64)
    for i in range(N):
        total, least = np.uint64(0), np.uint32(1)
        for f in frequencies[i]:
            total, least = total + np.uint64(f), min(least, f)
        if least and total <= np.uint64(LARGEST_TOTAL):
            totals[i] = total
    return totals


@njit(cache=True)
def _encode(state, out, frequencies, totals, symbols):
    for i in range(len(symbols)):
        start = np.uint64(0)
        for f in frequencies[i, :symbols[i]]:
            start += np.uint64(f)
        out = encode_symbol(state, out, start, frequencies[i, symbols[i]], totals[i])
    return out


@njit(cache=True)
def _decode(state, code, frequencies, totals):
    symbols = np.empty(len(totals), np.int64)
    for i in range(len(symbols)):
        symbol, start = find_symbol(frequencies[i], decode_target(state, totals[i]))
        decode_symbol(state, code, start, frequencies[i, symbol])
        symbols[i] = symbol
    return symbols


# --- one bit, with a probability of 16 bits ---------------------------------------------------------------------------
# A symbol of total 2^16, so that the division is a shift; without checks and without growing the buffer, for speed.
# The bit 1 has the interval [0, p), the bit 0 the rest.

BIT_SHIFT = np.uint64(16)
BIT_TOTAL = np.uint64(2 ** 16)


@njit(cache=True)
def make_room(state, out, count):
    """The buffer, with room for the bits of `count` bytes: each bit outputs at most 2 bytes, as 2^40 <= step * 1."""
    while np.int64(state[LENGTH]) + 16 * count + REGISTER > len(out):
        out = np.concatenate((out, np.empty_like(out)))
    return out


@njit(cache=True)
def encode_bit(state, out, p, bit):
    """Narrow to the bit, which is 1 with probability p / 2^16, 0 < p < 2^16.  The buffer must have room: `make_room`."""
    step, low = state[RANGE] >> BIT_SHIFT, state[LOW]
    width = step * np.uint64(p)
    if not bit:
        low, width = low + width, step * (BIT_TOTAL - np.uint64(p))
        if low < state[LOW]:
            _carry(out, np.int64(state[LENGTH]))
    while width < SMALLEST_RANGE:
        out[np.int64(state[LENGTH])] = low >> TOP_SHIFT
        low, width = low << BYTE_SHIFT, width << BYTE_SHIFT
        state[LENGTH] += np.uint64(1)
    state[LOW], state[RANGE] = low, width


@njit(cache=True)
def decode_bit(state, code, p):
    """The next bit, which is 1 with probability p / 2^16.  A damaged code gives some bit."""
    step = state[RANGE] >> BIT_SHIFT
    split = step * np.uint64(p)
    if state[OFFSET] < split:
        bit, state[RANGE] = 1, split
    else:
        bit, state[RANGE] = 0, step * (BIT_TOTAL - np.uint64(p))
        state[OFFSET] -= split
    while state[RANGE] < SMALLEST_RANGE:
        state[RANGE] <<= BYTE_SHIFT
        _read(state, code)
    return bit

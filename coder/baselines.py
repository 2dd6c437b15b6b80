"""Baselines: adaptive models of order 0, 1 and 2, which predict a byte by its counts in the same context.  Integers only.

Order 0 counts bytes; order 1 counts them after each byte as well, and order 2 after each pair of bytes too.  A longer
context says more but is met less often, so it leans on the shorter one until it has seen enough [Witten, Bell 1991]:

    share_k(byte) = (count_k(byte) + distinct_k * share_(k-1)(byte)) / (n_k + distinct_k),   share_(-1) = 1 / 256

with n_k the bytes counted in this context and distinct_k how many of them differ: the more variety a context has shown,
the likelier is something new.  Through the uniform share_(-1) every byte has a share, so none needs an escape.  Encoder and
decoder both start with no counts, and count each byte once it is coded.
"""

import numpy as np
from numba import njit

from .range_coder import (decode_symbol, decode_target, encode_symbol, find_symbol, finish_encoding, overrun, start_decoding,
                          start_encoding)

ORDERS = 0, 1, 2
LARGEST_COUNT = 1023    # a count that would exceed it halves its context's counts: old statistics fade, and uint16 is enough
WHOLE_SHARE = 2 ** 24   # the shares of all bytes sum to this or a little less


@njit(cache=True)
def _contexts(history, order):
    """The rows of counts for each context of `history`, the last two bytes as one integer, the shortest context first.

    The 256^k contexts of order k begin at row 1 + 256 + ... + 256^(k-1) = (256^k - 1) / 255.
    """
    rows = np.empty(order + 1, np.int64)
    size = 1                                                # 256^k
    for k in range(order + 1):
        rows[k] = (size - 1) // 255 + history % size
        size *= 256
    return rows


@njit(cache=True)
def _predict(counts, rows, frequencies):
    """Write the frequencies (256,) int64, each >= 1, and return their total: at most WHOLE_SHARE + 256, well under 2^32."""
    frequencies[:] = WHOLE_SHARE // 256
    for row in rows:
        n, distinct = 0, 0
        for count in counts[row]:
            n += np.int64(count)
            distinct += count != 0
        if n:                                               # reciprocal: 256 divisions by one number become 1
            reciprocal = 2 ** 32 // (n + distinct)          # share <= WHOLE_SHARE, so share * 2^32 <= 2^56: no overflow
            for byte in range(256):
                share = np.int64(counts[row, byte]) * WHOLE_SHARE + distinct * frequencies[byte]
                frequencies[byte] = share * reciprocal >> 32
    total = 0
    for byte in range(256):
        frequencies[byte] += 1
        total += frequencies[byte]
    return total


@njit(cache=True)
def _update(counts, rows, byte):
    for row in rows:
        if counts[row, byte] == LARGEST_COUNT:
            for other in range(256):                        # rounded up: what was seen stays seen
                counts[row, other] = (np.int64(counts[row, other]) + 1) // 2
        counts[row, byte] += np.uint16(1)


@njit(cache=True)
def _compress(data, counts, order):
    frequencies, history = np.empty(256, np.int64), 0
    state, out = start_encoding()
    for byte in data.astype(np.int64):
        rows = _contexts(history, order)
        total = _predict(counts, rows, frequencies)
        out = encode_symbol(state, out, frequencies[:byte].sum(), frequencies[byte], total)
        _update(counts, rows, byte)
        history = (history << 8 | byte) & 0xFFFF
    return finish_encoding(state, out)


@njit(cache=True)
def _decompress(code, length, counts, order):
    frequencies, history = np.empty(256, np.int64), 0
    state, data = start_decoding(code), np.empty(length, np.uint8)
    for i in range(length):
        rows = _contexts(history, order)
        byte, start = find_symbol(frequencies, decode_target(state, _predict(counts, rows, frequencies)))
        decode_symbol(state, code, start, frequencies[byte])
        _update(counts, rows, byte)
        history = (history << 8 | byte) & 0xFFFF
        data[i] = byte
    return data, state


def compress(data: bytes, order: int) -> bytes:
    """The code (bytes) of data (bytes) under the model of this order, 0, 1 or 2.  The counts of order 2 take 32 MiB."""
    return _compress(np.frombuffer(bytes(data), np.uint8), _no_counts(order), order).tobytes()


def decompress(code: bytes, length: int, order: int) -> bytes:
    """The `length` bytes that were compressed.  ValueError if the code ends too early; other damage goes unnoticed."""
    code = np.frombuffer(bytes(code), np.uint8)
    data, state = _decompress(code, length, _no_counts(order), order)
    if overrun(state, code):
        raise ValueError(f"the code ends too early: {len(code)} bytes do not hold {length} bytes of order {order}")
    return data.tobytes()


def _no_counts(order):
    """A row of counts for each context of `_contexts`.  (NumPy gets zeros from the system, which costs no time.)"""
    if order not in ORDERS:
        raise ValueError(f"order must be one of {ORDERS}, not {order!r}")
    return np.zeros(((256 ** (order + 1) - 1) // 255, 256), np.uint16)

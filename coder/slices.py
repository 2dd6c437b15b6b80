"""How data is cut into slices, what is appended to it, and how all of that is found in a damaged file.

Slice i of the data belongs to code i mod c, one of c codes as parity.py describes them, so that a burst of errors is shared
out among them.  What is appended is a member of a file that a reader may skip (docs/FORMAT.md), whose content is 1 + c k
records.  Integers are unsigned and little-endian:

    4       magic: 89 50 41 52
    8       length of the data, in bytes
    4       bytes in a slice, s
    1       d, the most slices of data that a code has: c = ceil(ceil(length / s) / d)
    1       k
    8       the first bytes of the SHA-256 of the data
    4       number of this record: 0, or 1 + j c + g for slice j of the parity of code g
    6 d     unless the number is 0: the checksums of the slices g, g + c, ... of data, which are those of code g; then zeros
    s       unless the number is 0: the parity; a last slice that is shorter counts as if zeros followed it
    4       CRC-32 of the record

The first fields are the same in every record, so k errors leave one that tells them; and any parity that is left of a code
comes with the checksums of all its slices.

The checksum of Karp and Rabin [1987] is a polynomial in m, its coefficients the bytes of the slice, modulo 2^64 and without
the lowest 16 bits.  To move on by a byte: subtract the first one, add the next, multiply by m.  So one pass over a file finds
slices wherever they lie, and bytes inserted or lost damage only the slices that they touch.  [Tridgell and Mackerras 1996]
"""

import struct
import zlib
from typing import NamedTuple

import numpy as np
from numba import njit

from . import container
from .container import CRC, PARITY, CoderError, number

MAGIC, HEAD = b"\x89PAR", struct.Struct("<4sQIBB8sI")
SIZE = 8                                        # bytes at the end of the member that repeat its size
LEAST = HEAD.size + CRC.size                    # bytes in record 0
M = np.uint64(0x9E3779B97F4A7C15)               # odd: no power of it is 0 modulo 2^64
DROPPED, INDEX = np.uint64(16), np.uint64(28)   # bits: of 64, and then of 48
UNKNOWN = np.uint64(1 << 63)                    # no checksum


class Plan(NamedTuple):
    """How data is cut: what every record tells."""
    length: int
    size: int               # s, bytes in a slice
    d: int
    k: int
    digest: bytes
    slices = property(lambda self: -(-self.length // self.size))                    # of data
    codes = property(lambda self: max(1, -(-self.slices // self.d)))                # c
    records = property(lambda self: 1 + self.codes * self.k)
    record = property(lambda self: LEAST + 6 * self.d + self.size)                  # bytes in each but number 0
    content = property(lambda self: LEAST + (self.records - 1) * self.record)
    begin = property(lambda self: container.MAGIC + bytes([PARITY]) + number(self.content + SIZE))
    end = property(lambda self: (len(self.begin) + self.content + SIZE).to_bytes(SIZE, "little"))

    def place(self, n: int) -> int:
        """The offset of record n in the undamaged file."""
        return self.length + len(self.begin) + (n > 0) * (LEAST + (n - 1) * self.record)

    def cut(self, data: np.ndarray) -> list[np.ndarray]:
        """The slices of data (uint8)."""
        return [data[start:start + self.size] for start in range(0, self.length, self.size)]


def find(file: bytes) -> list[tuple[Plan, dict[int, int]]]:
    """(plan, {number: offset}) of the intact records in a file (or an mmap), in their order.

    Of a file that is joined with itself, the plan comes twice; of a record that is there twice, the first counts.
    """
    found, latest, at = [], {}, file.find(MAGIC)
    while 0 <= at <= len(file) - LEAST:
        _, *fields, n = HEAD.unpack_from(file, at)
        plan, end = Plan(*fields), at + HEAD.size
        if 0 < plan.size <= max(1, plan.length) <= 2 * len(file) and plan.d and plan.k and plan.d + plan.k <= 256:
            end += (n > 0) * (6 * plan.d + plan.size)
            if n < plan.records and end + CRC.size <= len(file) and CRC.unpack_from(file, end)[0] == zlib.crc32(file[at:end]):
                base, half = at - plan.place(n), plan.place(plan.records) // 2
                first, last, records = latest.get(plan, (base - half - 1, n, {}))
                if n <= last and base > first + half:
                    first, records = base, {}
                    found.append((plan, records))
                latest[plan] = first, n, records
                records.setdefault(n, at)
                at = end
        at = file.find(MAGIC, at + 1)
    return found


def unprotected(file: bytes, start: int, stop: int) -> list[bytes]:
    """These bytes of a file, if they are members of their own (then no parity protects them), else nothing."""
    place = start
    try:
        while place < stop:
            place += container.begin(file[place:place + 14])[2]
    except CoderError:
        return []
    return [file[start:stop]] if start < place == stop else []


def checksums(array: np.ndarray, plan: Plan, records: dict[int, int]) -> np.ndarray:
    """(N,) uint64: what the records say of each slice of data; UNKNOWN where a code has no record left."""
    result = np.full(plan.slices, UNKNOWN)
    for n, at in records.items():
        if n:
            table = np.zeros((plan.d, 8), np.uint8)
            table[:, :6] = array[at + HEAD.size:at + HEAD.size + 6 * plan.d].reshape(-1, 6)
            of_code = result[(n - 1) % plan.codes::plan.codes]
            of_code[:] = table.view(np.uint64)[:len(of_code), 0]
    return result


@njit(cache=True)
def checksum(data):
    """The sum of data[t] * m^(len - t) over the bytes (uint8), modulo 2^64 and without its lowest 16 bits."""
    total = np.uint64(0)
    for byte in data:
        total = (total + np.uint64(byte)) * M
    return total >> DROPPED


@njit(cache=True)
def slide(data, size, wanted, before, found):
    """found[n] becomes the offset of `size` bytes of data with the checksum wanted[n]; wanted ascends.

    Of several, it is the first or, if before[n] >= 0, the one right behind found[before[n]]: a match by chance is not there.
    """
    maybe = np.zeros(1 << 20, np.bool_)
    for key in wanted:
        maybe[key >> INDEX] = True
    total, highest = np.uint64(0), np.uint64(1)                             # highest: m^size
    for t in range(size):
        total, highest = (total + np.uint64(data[t])) * M, highest * M
    for start in range(len(data) - size + 1):
        key = total >> DROPPED
        if maybe[key >> INDEX]:
            n = np.searchsorted(wanted, key)
            if n < len(wanted) and wanted[n] == key:
                if found[n] < 0 or before[n] >= 0 and found[before[n]] == start - size:
                    found[n] = start
        if start + size < len(data):
            total = (total + (np.uint64(data[start + size]) - np.uint64(data[start]) * highest)) * M


def locate(data: np.ndarray, checksums: np.ndarray, plan: Plan, base: int) -> np.ndarray:
    """(N,) int64: where each slice lies in data (uint8), or -1 where it is damaged or lost.

    base: where the first one lies if nothing is inserted or lost; but the others are looked for everywhere.  A slice whose
    checksum is UNKNOWN is taken from beside the nearest that is found.
    """
    order = np.arange(plan.slices)
    where, sizes = base + order * plan.size, np.minimum(plan.size, plan.length - order * plan.size)
    for i, (start, size) in enumerate(zip(where, sizes)):
        if start < 0 or start + size > len(data) or checksum(data[start:start + size]) != checksums[i]:
            where[i] = -1
    for window in set(sizes.tolist()):                                      # the last slice may be shorter
        rows = np.flatnonzero((where < 0) & (sizes == window) & (checksums != UNKNOWN))
        if len(rows) and window <= len(data):
            wanted, first, group = np.unique(checksums[rows], return_index=True, return_inverse=True)
            follows = (first > 0) & (rows[first - 1] == rows[first] - 1)
            found = np.full(len(wanted), -1)
            slide(data, window, wanted, np.where(follows, group[first - 1], -1), found)
            where[rows] = found[group]
    known = np.flatnonzero(where >= 0)
    for i in np.flatnonzero(checksums == UNKNOWN):
        start = base + i * plan.size
        if len(known):
            near = known[np.argmin(np.abs(known - i))]
            start = where[near] + (i - near) * plan.size
        where[i] = start if 0 <= start <= len(data) - sizes[i] else -1
    return where

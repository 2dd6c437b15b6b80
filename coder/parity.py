"""Errors on the way: a Reed-Solomon code that mends a damaged file, whatever the file holds.

Compression removes all redundancy, and with it all that could tell a right byte from a wrong one.  So compress first, and then
add redundancy made for the purpose: for long files, to do these apart costs nothing [Shannon 1948].

The field.  A byte is a polynomial over {0, 1}: bit i is the coefficient of x^i.  Multiplied modulo x^8 + x^4 + x^3 + x^2 + 1,
bytes are a field, GF(256): + and - are XOR, and since the powers of x (the byte 2) are all bytes but 0, each of these has an
inverse.

    >>> 2 ^ 3, int(product(2, 128)), int(product(3, inverse([[3]])[0, 0]))
    (1, 29, 1)

The code.  d slices of data stay as they are (the code is systematic), and k slices of parity follow.  Byte by byte,
    parity_j = sum over i of data_i / (a_j + b_i),      where the d + k bytes a_j and b_i all differ: a Cauchy matrix.

Erasures.  Any d of the d + k slices give the data.  Proof: if e slices of data are lost, at least e of parity are left.
Subtract from e of these what the remaining data contributes; that leaves e linear equations for the e lost slices, and their
matrix is a square part of the Cauchy matrix.  Were it singular, there would be v_i, not all 0, such that f(z) = sum of
v_i / (z + b_i) is 0 at e different places a_j.  Over the common denominator, the numerator of f has a degree below e, so with
e roots it is 0, and so is f.  But nothing cancels the pole of v_i / (z + b_i) at b_i, so every v_i is 0, a contradiction.
[Reed and Solomon 1960; Bloemer et al. 1995]

A checksum tells which slices are wrong, and so makes erasures of errors: any k can be mended, without checksums only k / 2.
slices.py says how a file is cut into slices, and how they are found.
"""

import hashlib
import zlib
from typing import NamedTuple

import numpy as np
from numba import njit

from .container import CRC, CoderError
from .slices import HEAD, LEAST, MAGIC, SIZE, Plan, checksum, checksums, find, locate, unprotected

ROWS = 120                              # slices of data that a code has, about
SHARE, FIXED = 1.1, 180                 # what may be appended: 1.1 * percent and 180 bytes; and up to 20 around the records

EXP, LOG = np.zeros(1025, np.uint8), np.full(256, 512)      # to the base x; log 0 leads to the zeros behind EXP[509]
power = 1
for exponent in range(255):
    EXP[[exponent, exponent + 255]], LOG[power] = power, exponent
    power = power << 1 ^ (0x11D if power & 0x80 else 0)


def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a * b in GF(256), element by element."""
    return EXP[LOG[a] + LOG[b]]


def cauchy(k: int, d: int) -> np.ndarray:
    """(k, d) uint8: 1 / (a_j + b_i) where a_j = 255 - j and b_i = i.  These all differ, since d + k <= 256."""
    return EXP[255 - LOG[255 - np.arange(k)[:, None] ^ np.arange(d)]]


def inverse(matrix: np.ndarray) -> np.ndarray:
    """(e, e) uint8, for a square part of a Cauchy matrix.  Its upper left corners are such parts too, so no pivot is 0."""
    rows = np.hstack([matrix, np.eye(len(matrix))]).astype(np.uint8)                    # (e, 2 e)
    for i in range(len(rows)):
        rows[i] = product(rows[i], EXP[255 - LOG[rows[i, i]]])
        rows ^= product(np.where(np.arange(len(rows)) == i, 0, rows[:, i])[:, None], rows[i])
    return np.ascontiguousarray(rows[:, len(rows):])


# Times x is a shift; a byte that loses its highest bit by it, x^8, gets x^4 + x^3 + x^2 + 1 (1D) instead.
@njit(cache=True)
def multiply(matrix, data):
    """(k, w) uint64: the product in GF(256) of a matrix (k, d) uint8 and data (d, w) uint64, eight bytes in a word."""
    total, bits = np.zeros((len(matrix), data.shape[1]), np.uint64), np.empty(8, np.uint64)
    one, seven = np.uint64(1), np.uint64(7)
    highest, back = np.uint64(0x8080808080808080), np.uint64(0x1D1D1D1D1D1D1D1D)
    for i in range(len(data)):
        for j in range(len(matrix)):
            for bit in range(8):
                bits[bit] = -(np.uint64(matrix[j, i]) >> np.uint64(bit) & one)              # all 0 or all 1
            for w in range(data.shape[1]):
                word, terms = data[i, w], np.uint64(0)
                for bit in range(8):
                    terms ^= word & bits[bit]
                    out = word & highest
                    word = (word ^ out) << one ^ (out - (out >> seven)) & back              # 80 - 01 = 7F
                total[j, w] ^= terms
    return total


class Mended(NamedTuple):
    """What was wrong with a file."""
    slices: int             # in all, of data and of parity
    data: int               # slices of data that had to be computed
    moved: int              # others that lay elsewhere, because of bytes inserted or lost
    parity: int             # records of parity that had to be computed
    surplus: int            # bytes that the damaged file has more than the mended one


def protect(data: bytes, percent: float) -> bytes:
    """What to append to data (or an mmap), so that of each code's slices `percent`, from 1 to 100, can be damaged.

    From 5 percent on, it takes at most 1.1 * percent of the data + 200 bytes.
    """
    if not 1 <= percent <= 100:
        raise CoderError(f"parity must be from 1 to 100 percent, but this is {percent:g}")
    array = np.frombuffer(data, np.uint8)
    plan = choose(len(data), percent)._replace(digest=hashlib.sha256(data).digest()[:8])
    return encode(plan.cut(array), plan)


def choose(length: int, percent: float) -> Plan:
    """The largest k that is cheap enough, for it the largest d, and for these the most codes.  Without the digest."""
    budget = SHARE * percent / 100 * length + FIXED
    cheap = ((k, d) for k in range(int(-(-ROWS * percent // 100)), 0, -1) for d in range(int(100 * k / percent), 0, -1)
             if LEAST + k * (LEAST + 6 * d + 1 + length / d) <= budget)
    k, d = next(cheap, (1, int(100 / percent)))
    codes = max(1, int((budget - LEAST - k * length / d) / (k * (LEAST + 6 * d + 1))))
    size = max(1, -(-length // (d * codes)))
    return Plan(length, size, max(1, -(-length // (size * codes))), k, bytes(8))


def encode(slices: list[np.ndarray], plan: Plan) -> bytes:
    """The member to append to these slices of data."""
    bodies = {0: b""}
    for code in range(plan.codes):
        mine = slices[code::plan.codes]
        sums = b"".join(int(checksum(one)).to_bytes(6, "little") for one in mine).ljust(6 * plan.d, b"\0")
        parity = multiply(cauchy(plan.k, len(mine)), words(mine, plan.size)).view(np.uint8)
        bodies.update((1 + j * plan.codes + code, sums + row[:plan.size].tobytes()) for j, row in enumerate(parity))
    records = (HEAD.pack(MAGIC, *plan, number) + bodies[number] for number in range(plan.records))
    return b"".join([plan.begin, *(record + CRC.pack(zlib.crc32(record)) for record in records), plan.end])


def words(slices, size):
    """(d, w) uint64: eight bytes in a word, zeros behind those of a slice, and in the place of one that is None."""
    result = np.zeros((len(slices), -(-size // 8) * 8), np.uint8)
    for row, one in zip(result, slices):
        if one is not None:
            row[:len(one)] = one
    return result.view(np.uint64)


def repair(file: bytes) -> tuple[bytes, Mended]:
    """`pieces`, joined."""
    parts, mended = pieces(file)
    return b"".join(parts), mended


def pieces(file: bytes) -> tuple[list, Mended]:
    """The file as it was, parity included, in pieces that are bytes or arrays of them; and what was wrong with it.

    It may be several files, joined.  CoderError where no record is intact, or too many slices of a code are damaged.
    """
    array, parts, counts, start = np.frombuffer(file, np.uint8), [], np.zeros(4, np.int64), len(file)
    for plan, records in reversed(find(file)):
        number, at = next(iter(records.items()))
        base, order = at - plan.place(number), np.arange(plan.slices) * plan.size
        if base + plan.length // 2 > start:         # it lies inside the data of the file behind it
            continue
        where = locate(array, checksums(array, plan, records), plan, base)
        sizes = np.minimum(plan.size, plan.length - order)
        slices = [array[at:at + size] if at >= 0 else None for at, size in zip(where, sizes)]
        mend(slices, plan, array, records)
        stop = base + plan.place(plan.records) + SIZE
        member = file[max(0, base + plan.length):stop]
        intact = (all(records.get(n) == base + plan.place(n) for n in range(plan.records))
                  and member.startswith(plan.begin) and member.endswith(plan.end))
        parts[:0] = [*slices, member if intact else encode(slices, plan), *unprotected(file, stop, start)]
        moved = (where >= 0) & (where != base + order)
        counts += (plan.slices + plan.records - 1, np.count_nonzero(where < 0), np.count_nonzero(moved),
                   0 if intact else max(1, plan.records - len(records)))
        shifts = np.sort((where - order)[where >= 0])
        start = shifts[len(shifts) // 2] if len(shifts) else base
    if not parts:
        raise CoderError("no intact parity is found in the file")
    parts[:0] = unprotected(file, 0, start)
    return parts, Mended(*counts.tolist(), max(0, len(file) - sum(map(len, parts))))


def mend(slices: list[np.ndarray | None], plan: Plan, array: np.ndarray, records: dict[int, int]) -> None:
    """Compute the slices of data that are None, from the others and the records, which lie at these offsets of the array."""
    for code in range(plan.codes):
        mine = slices[code::plan.codes]
        lost = [i for i, one in enumerate(mine) if one is None]
        left = [j for j in range(plan.k) if 1 + j * plan.codes + code in records]
        if len(lost) > len(left):
            place = f"in code {code + 1} of {plan.codes}, " if plan.codes > 1 else ""
            raise CoderError(f"{place}{len(lost) + plan.k - len(left)} of {len(mine) + plan.k} slices are damaged, but the "
                             f"parity can mend only {plan.k}")
        if lost:
            ends = [records[1 + j * plan.codes + code] + plan.record - CRC.size for j in left[:len(lost)]]
            matrix = cauchy(plan.k, len(mine))[left[:len(lost)]]
            parity = words([array[end - plan.size:end] for end in ends], plan.size) ^ multiply(matrix, words(mine, plan.size))
            for i, row in zip(lost, multiply(inverse(matrix[:, lost]), parity).view(np.uint8)):
                n = code + i * plan.codes
                slices[n] = row[:min(plan.size, plan.length - n * plan.size)]
    sha256 = hashlib.sha256()
    for one in slices:
        sha256.update(one)
    if sha256.digest()[:8] != plan.digest:
        # A code has lost all its parity, and with it the checksums of its slices; and some of them are damaged, too.
        raise CoderError(f"at least {plan.k + 1} slices are damaged, but the parity can mend only {plan.k}")

"""The arithmetic contract in plain NumPy: what `reference.py` computes with, and what the kernels are held against.

IEEE 754 rounds + - * / and sqrt exactly, and NumPy, element by element, computes just these.  It has no fused multiply-add,
and the order of its sums and the last bits of its exp differ from machine to machine: those are written down here.
"""

import zlib

import numpy as np

f32, f64 = np.float32, np.float64
LANES = 16


def fma(a, b, c):
    """a * b + c, rounded once.  The product is exact in float64.  There the sum is rounded to odd, which is to cut it off
    towards zero and to set its last bit if that was inexact: then rounding to float32 cannot meet a false tie.
    [The error of a sum: Knuth's TwoSum.  Rounding to odd: Boldo and Melquiond 2008]"""
    product = np.multiply(a, b, dtype=f64)
    total = product + c
    of_c = total - product
    error = (product - (total - of_c)) + (c - of_c)                 # product + c = total + error
    inexact = np.abs(error) > 0                                     # false for NaN, the error of an infinite sum
    cut_off = total.view(np.int64) - (inexact & ((error < 0) == (total > 0)))
    return (cut_off | inexact).view(f64).astype(f32)


def matmul(a, b, start=f32(0)):
    """start + a (..., N, K) @ b (..., K, M): for each element one chain of fma, k ascending.  Of a Quantised b, the rows of a
    become integers as well."""
    if isinstance(b, Quantised):
        return add_groups(*to_integers(a), *b.columns)
    a, b = a.astype(f64), b.astype(f64)
    for k in range(a.shape[-1]):
        start = fma(a[..., :, k, None], b[..., None, k, :], start)
    return start


class Quantised:
    """A matrix (..., K, M), given as its columns (..., M, K), as integers times scales: for a model that only predicts."""
    def __init__(self, columns):
        self.columns, self.K, self.T = to_integers(columns), columns.shape[-1], self       # T: of a table of these rows

    def __getitem__(self, index):
        integers, scales = (part[index] for part in self.columns)
        return (integers.astype(f32) * scales[..., None]).reshape(len(index), -1)[:, :self.K]


def to_integers(x, most=127, size=64):
    """(integers (..., G, size), scales (..., G)) of groups along the last axis: the largest of a group becomes `most`.
    [Q8_0 of ggml]"""
    x = np.concatenate([x, np.zeros((*x.shape[:-1], -x.shape[-1] % size), f32)], axis=-1).reshape(*x.shape[:-1], -1, size)
    largest, most = np.where(np.isnan(x), f32(0), np.abs(x)).max(axis=-1), f32(most)
    with np.errstate(all="ignore"):
        x = x * np.where(largest > f32(2.0 ** -100), most / largest, f32(0))[..., None]
    x = np.where(x > -most, x, -most)                                               # -most for NaN
    return np.rint(np.where(x < most, x, most)).astype(f64), largest / most


def add_groups(a, a_scales, b, b_scales, start=f32(0)):
    """The product of rows (..., N) and columns (..., M) of integers: in a group a sum of integers, which has no order, over
    the groups a chain of fma."""
    for g in range(a.shape[-2]):
        d = (a[..., g, :] @ b[..., g, :].swapaxes(-1, -2)).astype(f32)
        start = fma(d * b_scales[..., None, :, g], a_scales[..., g, None], start)
    return start


def weigh(weights, v):
    """weights (..., N, T), none negative, @ v (..., T, D) in integers.  Each v has one scale, which multiplies its weight;
    the weights then become integers of 0 .. 255."""
    (v, scales), T = to_integers(v, size=v.shape[-1]), v.shape[-2]
    weights, own = to_integers(weights * scales.swapaxes(-1, -2), 255)
    v = np.concatenate([v[..., 0, :], np.zeros((*v.shape[:-3], -T % 64, v.shape[-1]))], axis=-2).swapaxes(-1, -2)
    return add_groups(weights, own, v.reshape(*v.shape[:-1], -1, 64), np.ones((*v.shape[:-1], weights.shape[-2]), f32))


def lanes(x, fill=0):
    """x (..., n) as parts (..., 16), filled up: lane l holds the elements l, l + 16, l + 32, ..."""
    x = np.concatenate([x, np.full((*x.shape[:-1], -x.shape[-1] % LANES), fill, f32)], axis=-1)
    return np.moveaxis(x.reshape(*x.shape[:-1], x.shape[-1] // LANES, LANES), -2, 0)


def fold(x, operation):
    """Lanes 0-7 with lanes 8-15, the first four with the next four, ...: (..., 16) -> (..., 1)."""
    while (half := x.shape[-1] // 2):
        x = operation(x[..., :half], x[..., half:])
    return x


def row_sum(x):
    total = np.zeros((*x.shape[:-1], LANES), f32)
    for part in lanes(x):
        total = total + part
    return fold(total, np.add)


def row_dot(x, y):
    total = np.zeros((*x.shape[:-1], LANES), f32)
    for a, b in zip(lanes(x), lanes(y)):
        total = fma(a, b, total)
    return fold(total, np.add)


def row_max(x):
    peak = f32(-np.inf)
    for part in lanes(x, -np.inf):
        peak = maximum(part, peak)
    return fold(peak, maximum)


def maximum(x, y):
    return np.where(x > y, x, y)        # passes over NaN


def add_rows(x, start, index=None):
    """start + x[0] + x[1] + ..., or each row added to the row of `start` that index (N,) names."""
    total = start.copy()
    for i, row in enumerate(x):
        total[... if index is None else index[i]] += row
    return total


def sum_of_squares(x):
    """Of an array of any shape: of each 4096 elements, then of these sums in order."""
    x, total = x.reshape(-1), f32(0)
    whole = x.size // 4096 * 4096
    for parts in x[:whole].reshape(-1, 4096), x[whole:][None]:
        for part in row_dot(parts, parts)[:, 0]:
            total = total + part
    return total


def exp(x):
    """2^n * e^r with n = round(x / ln 2): adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits.  e^r, with
    |r| <= ln(2) / 2, by Taylor's polynomial.  0 below -87, e^88 above 88."""
    clipped = np.where(x > 88, f32(88), np.where(x < -87, f32(-87), x))
    shifted = fma(clipped, f32(1.4426950408889634), f32(12582912))
    n = shifted - f32(12582912)
    r = fma(n, f32(2.12194440e-4), fma(n, f32(-0.693359375), clipped))          # ln 2 in two parts: n * the first is exact
    p = f32(1 / 5040)
    for coefficient in 1 / 720, 1 / 120, 1 / 24, 1 / 6, 1 / 2, 1.0, 1.0:
        p = fma(p, r, f32(coefficient))
    power = ((shifted.view(np.int32) << 23) + np.int32(0x3F800000)).view(f32)    # 2^n
    return np.where(x < -87, f32(0), p * power)


def log(x):
    """n * ln 2 + log(m) with x = 2^n * m, sqrt(1/2) <= m < sqrt(2); log(m) = 2 (s + s^3/3 + ...), s = (m - 1) / (m + 1).
    NaN for all but normal positive numbers and infinity."""
    bits = x.view(np.int32)
    n = (bits - np.int32(0x3F3504F3)) >> 23                                     # 0x3F3504F3: sqrt(1/2)
    m = (bits - (n << 23)).view(f32)
    s = (m - f32(1)) / (m + f32(1))
    p = f32(2 / 9)
    for coefficient in 2 / 7, 2 / 5, 2 / 3, 2.0:
        p = fma(p, s * s, f32(coefficient))
    result = fma(n.astype(f32), f32(0.6931471805599453), s * p)
    return np.where((x >= f32(2.0 ** -126)) & (x < np.inf), result, np.where(x == np.inf, x, f32(np.nan)))


def power(x, n):
    """x^n by squaring: `**` belongs to the C library, which rounds as it likes."""
    result = 1.0
    while n:
        result, x, n = result * x if n & 1 else result, x * x, n >> 1
    return result


# --- random numbers: a function of (seed, purpose, step, index), without a hidden state  [Philox4x32-10; Salmon et al. 2011]

def words(seed, purpose, step, count):
    """`count` uint32: the counter (index, step, purpose) encrypted under the key `seed`."""
    index, low = np.arange((count + 3) // 4, dtype=np.uint64), np.uint64(0xFFFFFFFF)
    c0, c1, c2, c3 = index, step & 0xFFFFFFFF, step >> 32, zlib.crc32(purpose.encode())
    c1, c2, c3 = (np.full_like(index, c) for c in (c1, c2, c3))
    for i in range(10):
        k0, k1 = (np.uint64((seed >> 32 * j) + i * c & 0xFFFFFFFF) for j, c in enumerate((0x9E3779B9, 0xBB67AE85)))
        p, q = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
        c0, c1, c2, c3 = (q >> np.uint64(32)) ^ c1 ^ k0, q & low, (p >> np.uint64(32)) ^ c3 ^ k1, p & low
    return np.stack([c0, c1, c2, c3], axis=1).astype(np.uint32).reshape(-1)[:count]


def uniform(seed, purpose, step, count):
    """`count` float32 in [0, 1)."""
    return (words(seed, purpose, step, count) >> np.uint32(8)).astype(f32) * f32(2.0 ** -24)


def integers(seed, purpose, step, count, high):
    """`count` int64 in [0, high)."""
    return (words(seed, purpose, step, count).astype(np.uint64) * np.uint64(high) >> np.uint64(32)).astype(np.int64)


def keep(seed, purpose, step, count, drop):
    """`count` bool, each False with probability `drop`: the lower and the upper half of each word."""
    pairs = words(seed, purpose, step, (count + 1) // 2)
    return np.stack([pairs & np.uint32(0xFFFF), pairs >> np.uint32(16)], axis=1).reshape(-1)[:count] >= int(drop * 65536)


def log64(x):
    """ln x of binary64, x >= 1, as `log` does it: n * ln 2, in two parts of which n times the first is exact, and log(m)."""
    n = 0
    while x > 1.4142135623730951:
        x, n = x / 2, n + 1
    s, series = (x - 1) / (x + 1), 0.0
    for k in range(39, 0, -2):
        series = series * (s * s) + 1 / k
    return n * 0.6931471803691238 + (n * 1.9082149292705877e-10 + 2 * s * series)


def rotary_tables(positions, head_size, theta=10000.0, factors=()):
    """cos and sin (positions, D / 2) of position * theta^(-2i/D), from + - * / of binary64 alone, rounded to float32.
    theta >= 1; factors (D / 2), if there are any, divide the frequencies [Llama 3.1, YaRN: Peng et al. 2023]."""
    exponent = np.arange(head_size // 2) * (-2.0 * log64(theta) / head_size) / 1024.0
    power, term = np.ones_like(exponent), np.ones_like(exponent)
    for n in range(1, 12):
        term = term * exponent / n
        power = power + term
    for _ in range(10):
        power = power * power                                       # (e^(x / 1024))^1024
    power = power / np.array(factors, f64) if len(factors) else power                   # 0 < power <= 1 + 1e-12, for Taylor
    cosine, sine, term = np.zeros_like(power), np.zeros_like(power), np.ones_like(power)
    for n in range(24):                                             # Taylor: 1 + x - x^2/2! - x^3/3! + + - - ...
        sign = 1.0 if n % 4 < 2 else -1.0
        if n % 2:
            sine = sine + sign * term
        else:
            cosine = cosine + sign * term
        term = term * power / (n + 1)
    table = np.empty((2, positions, head_size // 2), f32)
    c, s = np.ones_like(cosine), np.zeros_like(sine)
    for position in range(positions):
        table[0, position], table[1, position] = c, s
        c, s = c * cosine - s * sine, s * cosine + c * sine         # one step further round
    return table

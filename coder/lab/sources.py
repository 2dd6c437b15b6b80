"""Pairs of sequences for the experiment `directed`: for some, the directed information is known in closed form.

Each source is a function of (n, seed, text) that returns a Pair; all its randomness is from rng.  x_t comes before y_t, and so
"X to Y" is the sum of I(x_1..x_t; y_t | y_1..y_(t-1)), "Y to X" that of I(y_1..y_(t-1); x_t | x_1..x_(t-1)) [Massey 1990].
"""

from math import log2
from typing import NamedTuple

import numpy as np

from minigpt import rng

LETTERS = b" abcdefghijklmnopqrstuvwxyz"
DELAY, NOISE = 3, 0.1
BOTH_NOISE = 0.05, 0.2          # of X, which copies Y, and of Y, which copies X
LINEAR = 0.5, 1.0               # y_t = a y_(t-1) + b x_(t-1) + noise of variance 1
LEVELS = np.array([-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5])


class Pair(NamedTuple):
    streams: np.ndarray                     # (2, n) int64: x and y
    widths: tuple[int, int]                 # bits per symbol
    x_to_y: float | None = None             # bits in n symbols, where that is known
    y_to_x: float | None = None
    given: np.ndarray | None = None         # (n,) bits: a third sequence that both come from


def entropy(p: float) -> float:
    """Bits in a toss of a coin that shows heads with probability p."""
    return 0.0 if p in (0, 1) else -p * log2(p) - (1 - p) * log2(1 - p)


def either(p: float, q: float) -> float:
    """The probability that exactly one of two independent errors happens."""
    return p * (1 - q) + q * (1 - p)


def copy(n, seed, text, delay=DELAY, noise=NOISE):
    """Fair bits, and a copy of them: late, with errors."""
    x = rng.integers(seed, "copy", 0, n, 2)
    return Pair(np.stack([x, _late(x, delay, seed, "copy") ^ _errors(n, seed, "copy", noise)]), (1, 1),
                (n - delay) * (1 - entropy(noise)), 0.0)


def instant(n, seed, text):
    """The same without a delay."""
    return copy(n, seed, text, delay=0)


def cause(n, seed, text):
    """X and Y copy the same fair bits, with errors of their own, X at once and Y DELAY later: X does not cause Y."""
    z = rng.integers(seed, "cause", 0, n, 2)
    x = z ^ _errors(n, seed, "cause x", NOISE)
    y = _late(z, DELAY, seed, "cause") ^ _errors(n, seed, "cause y", NOISE)
    return Pair(np.stack([x, y]), (1, 1), (n - DELAY) * (1 - entropy(either(NOISE, NOISE))), 0.0, z)


def independent(n, seed, text):
    """Two Markov chains of bits that have nothing to do with each other."""
    flips = [_errors(n, seed, name, p) for name, p in (("chain x", 0.2), ("chain y", 0.3))]
    return Pair(np.cumsum(flips, axis=1) & 1, (1, 1), 0.0, 0.0)


def both(n, seed, text):
    """Each copies the other's last bit, with errors: x_t = y_(t-1) + errors, y_t = x_(t-1) + errors."""
    p, q = BOTH_NOISE
    errors = np.stack([_errors(n, seed, "both x", p), _errors(n, seed, "both y", q)])
    streams = errors.copy()
    for t in range(1, n):
        streams[:, t] ^= streams[::-1, t - 1]
    # Given its own past alone, y_t is y_(t-2) after two noisy copies; X shows the result of the first.
    return Pair(streams, (1, 1), n * (entropy(either(p, q)) - entropy(q)), n * (entropy(either(p, q)) - entropy(p)))


def linear_numbers(n: int, seed: int, b: float = LINEAR[1]) -> np.ndarray:
    """(2, n) float64: x independent, y_t = a y_(t-1) + b x_(t-1) + noise.  Normal but for the tails: sums of 12 uniforms."""
    uniform = [rng.uniform(seed, name, 0, 12 * n).astype(np.float64).reshape(12, n) for name in ("linear x", "linear y")]
    x, noise = (u.sum(0) - 6 for u in uniform)
    y = noise.copy()
    for t in range(1, n):
        y[t] += LINEAR[0] * y[t - 1] + b * x[t - 1]
    return np.stack([x, y])


def linear(n, seed, text):
    """The linear Gaussian case, Granger's, in eight levels.  The closed form is for the numbers before quantisation."""
    return Pair(np.searchsorted(LEVELS, linear_numbers(n, seed)), (3, 3), n * 0.5 * log2(1 + LINEAR[1] ** 2), 0.0)


def canon(n, seed, text):
    """A melody on eight notes, a random walk, and a second voice: five bars later, a third higher, a note in ten its own."""
    walk = np.cumsum(rng.integers(seed, "canon", 0, n, 3) - 1) % 8
    late = np.concatenate([rng.integers(seed, "canon start", 0, 5, 8), walk[:n - 5]])
    own = _errors(n, seed, "canon", 0.1) == 1
    return Pair(np.stack([walk, np.where(own, rng.integers(seed, "canon own", 0, n, 8), (late + 2) % 8)]), (3, 3), None, 0.0)


def retelling(n, seed, text):
    """A play in lower case, and its retelling in a secret alphabet: DELAY letters later, one in ten wrong."""
    x = np.array([max(0, LETTERS.find(byte)) for byte in text[:2 * n].lower()])
    x = x[(x > 0) | (np.roll(x, 1) > 0)][:n]                                    # no two spaces in a row
    alphabet = np.argsort(rng.words(seed, "alphabet", 0, len(LETTERS)), kind="stable")
    y = np.concatenate([np.zeros(DELAY, np.int64), alphabet[x[:len(x) - DELAY]]])
    wrong = _errors(len(x), seed, "retelling", NOISE) == 1
    return Pair(np.stack([x, np.where(wrong, rng.integers(seed, "wrong", 0, len(x), len(LETTERS)), y)]), (5, 5), None, 0.0)


SOURCES = {"noisy copy, 3 later": copy, "noisy copy, at once": instant, "common cause": cause,
           "independent": independent, "both directions": both, "linear, eight levels": linear,
           "canon of two voices": canon, "play and retelling": retelling}


def _errors(n, seed, purpose, probability):
    """(n,) int64: 1 with that probability."""
    return (rng.uniform(seed, f"errors {purpose}", 0, n) < np.float32(probability)).astype(np.int64)


def _late(x, delay, seed, purpose):
    """x (n,) bits, `delay` later; fair bits before it begins."""
    return np.concatenate([rng.integers(seed, f"start {purpose}", 0, delay, 2), x])[:len(x)]

"""Rotary position embedding: each pair of channels of a head is rotated by an angle proportional to its row's position."""

from numba import njit

from .lanes import LANES, ZERO, load_part, store_part
from .threads import parallel_for


@njit(cache=True)
def rotate(x, cosine, sine, T, heads, y):
    """Rotate each pair (x[d], x[d + D/2]) of every head by the angle of its row's position.  [Su et al. 2021]

    x, y (B * T, H * D); cosine and sine (positions, D / 2); row n is at position n mod T.  The transpose of a rotation is its
    inverse: for the backward pass, pass -sine.  y may be x.
    """
    parallel_for(len(x), _rotate_row, x, cosine, sine, T, heads, y)


@njit
def _rotate_row(n, x, cosine, sine, T, heads, y):
    rotate_row(x, n, cosine, sine, n % T, heads, y)


@njit
def rotate_row(x, n, cosine, sine, position, heads, y):
    """Row n of `rotate`, at `position`."""
    half = x.shape[1] // heads // 2
    for h in range(heads):
        at = n * x.shape[1] + h * 2 * half
        for d in range(0, half, LANES):
            count = half - d
            a, b = load_part(x, at + d, count, ZERO), load_part(x, at + half + d, count, ZERO)
            c, s = load_part(cosine, position * half + d, count, ZERO), load_part(sine, position * half + d, count, ZERO)
            store_part(y, at + d, count, a * c - b * s)
            store_part(y, at + half + d, count, a * s + b * c)

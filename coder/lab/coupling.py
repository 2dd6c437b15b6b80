"""Couplings of least Gromov-Wasserstein cost, for the experiment `gromov`: entropic ones, permutations, and all permutations.

Two sets of n points, each known only by the distances C (n, n) between its own points.  A coupling T (n, n) >= 0, whose rows
and columns sum to 1 / n, says which point of one goes with which of the other, and
    GW(C1, C2) = min over T of  sum_ijkl (C1_ik - C2_jl)^2 T_ij T_kl                        [Memoli 2011]
asks that far apart stay far apart.
"""

from itertools import permutations

import numpy as np


def distances(x: np.ndarray) -> np.ndarray:
    """The Euclidean distances (n, n) between the rows of x (n, d), divided by their root mean square."""
    x = np.asarray(x, np.float64) - np.mean(x, 0)
    square = (x ** 2).sum(1)
    d = np.sqrt(np.maximum(square[:, None] + square - 2 * x @ x.T, 0)) * (1 - np.eye(len(x)))
    return d / np.sqrt((d ** 2).mean())


def cost(C1: np.ndarray, C2: np.ndarray, T: np.ndarray) -> float:
    """The sum above, for any T."""
    p, q = T.sum(1), T.sum(0)
    return float(p @ C1 ** 2 @ p + q @ C2 ** 2 @ q - 2 * (C1 @ T @ C2 * T).sum())


def gradient(C1: np.ndarray, C2: np.ndarray, T: np.ndarray) -> np.ndarray:
    """d cost / dT (n, n), for symmetric C1 and C2."""
    return 2 * ((C1 ** 2 @ T.sum(1))[:, None] + C2 ** 2 @ T.sum(0)) - 4 * C1 @ T @ C2


def sinkhorn(M: np.ndarray, epsilon: float, rounds: int = 500, tolerance: float = 1e-12) -> np.ndarray:
    """The coupling T (n, m) of least <M, T> - epsilon * entropy(T), with uniform marginals.  [Cuturi 2013], in logarithms."""
    n, m = M.shape
    f, g = np.zeros(n), np.zeros(m)

    def soft_min(x, axis):
        least = x.min(axis)
        return least - epsilon * np.log(np.exp(-(x - np.expand_dims(least, axis)) / epsilon).sum(axis))
    for _ in range(rounds):
        f = soft_min(M - g, 1) - epsilon * np.log(n)
        g = soft_min(M - f[:, None], 0) - epsilon * np.log(m)
        T = np.exp((f[:, None] + g - M) / epsilon)
        if np.abs(T.sum(1) - 1 / n).max() < tolerance:
            break
    return T


def entropic(C1: np.ndarray, C2: np.ndarray, epsilon: float, T: np.ndarray | None = None, rounds: int = 200,
             tolerance: float = 1e-12) -> np.ndarray:
    """A local minimum T of cost - epsilon * entropy: Sinkhorn's algorithm on the gradient, repeated.  [Peyre et al. 2016]"""
    T = np.full((len(C1), len(C2)), 1 / len(C1) / len(C2)) if T is None else T
    for _ in range(rounds):
        T, before = sinkhorn(gradient(C1, C2, T), epsilon, tolerance=tolerance), T
        if np.abs(T - before).max() < 1e-10:
            break
    return T


def assignment(M: np.ndarray) -> np.ndarray:
    """j (n,): the permutation of least sum_i M[i, j[i]].  The Hungarian algorithm: n shortest augmenting paths, O(n^3)."""
    n = len(M)
    u, v, row = np.zeros(n + 1), np.zeros(n + 1), np.full(n + 1, -1)        # potentials; the row of each column; n: the start
    for i in range(n):
        row[n], j, least, came, done = i, n, np.full(n, np.inf), np.full(n, n), np.zeros(n + 1, bool)
        while row[j] >= 0:
            done[j] = True
            slack = M[row[j]] - u[row[j]] - v[:n]
            better = ~done[:n] & (slack < least)
            least[better], came[better] = slack[better], j
            following = int(np.where(done[:n], np.inf, least).argmin())
            delta = least[following]
            u[row[done]] += delta
            v[done] -= delta
            least[~done[:n]] -= delta
            j = following
        while j != n:
            row[j], j = row[came[j]], came[j]
    found = np.empty(n, np.int64)
    found[row[:n]] = np.arange(n)
    return found


# For Euclidean distances the cost is concave on the couplings, so that some permutation is a minimum, and each step of the
# conditional gradient goes all the way to one [Maron and Lipman 2018].  The start is Memoli's third lower bound: the distances
# of point i, sorted, beside those of point j, which neither rotation nor renaming changes.
def lower_bound(C1: np.ndarray, C2: np.ndarray) -> tuple[float, np.ndarray]:
    """A lower bound of GW, for n = m, and the permutation that attains that bound."""
    M = ((np.sort(C1, 1)[:, None] - np.sort(C2, 1)) ** 2).mean(2)
    j = assignment(M)
    return float(M[np.arange(len(M)), j].mean()), j


def align(C1: np.ndarray, C2: np.ndarray) -> tuple[float, np.ndarray]:
    """(cost, permutation): the better of two local minima, from the lower bound's permutation and from ever less entropic
    couplings."""
    found, n, smooth = [], len(C1), None
    for epsilon in 0.02, 0.005, 0.002:
        smooth = entropic(C1, C2, epsilon, smooth, rounds=20, tolerance=1e-5 / n)
    for T in np.eye(n)[lower_bound(C1, C2)[1]] / n, np.eye(n)[assignment(-smooth)] / n:
        while True:
            vertex = np.eye(n)[assignment(gradient(C1, C2, T))] / n
            if cost(C1, C2, vertex) >= cost(C1, C2, T) - 1e-12:
                break
            T = vertex
        found.append((cost(C1, C2, T), T.argmax(1)))
    return min(found, key=lambda pair: pair[0])


def exact(C1: np.ndarray, C2: np.ndarray) -> tuple[float, np.ndarray]:
    """(cost, permutation): the best of all n! permutations.  ValueError for n > 8."""
    if len(C1) > 8:
        raise ValueError(f"{len(C1)} points have too many permutations: at most 8")
    every = np.array(list(permutations(range(len(C1)))))
    costs = ((C1 - C2[every[:, :, None], every[:, None, :]]) ** 2).mean((1, 2))
    return float(costs.min()), every[costs.argmin()]

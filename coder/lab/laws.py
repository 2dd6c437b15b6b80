"""Scaling laws for the experiment `scaling`, and their fit.

The held-out loss of networks of N parameters that have learned from D bytes of text is said to follow a power law,
    added     E + (n / N)^a + (d / D)^b             [Hoffmann et al. 2022]
    joined    E + ((n / N)^(a/b) + d / D)^b         [Kaplan et al. 2020, with E = 0]
with E the entropy that no network removes.  p stands for log n, log d, log a, log b and, unless E is 0, log E.
"""

from collections.abc import Callable
from itertools import product

import numpy as np


def added(p: np.ndarray, N: np.ndarray, D: np.ndarray) -> np.ndarray:
    """Hoffmann's law."""
    a, b, *E = np.exp(p[2:])
    return np.exp(a * (p[0] - np.log(N))) + np.exp(b * (p[1] - np.log(D))) + sum(E)


def joined(p: np.ndarray, N: np.ndarray, D: np.ndarray) -> np.ndarray:
    """Kaplan's law."""
    a, b, *E = np.exp(p[2:])
    return np.exp(b * np.logaddexp(a / b * (p[0] - np.log(N)), p[1] - np.log(D))) + sum(E)


def fit(law: Callable, N: np.ndarray, D: np.ndarray, L: np.ndarray, starts: list) -> np.ndarray:
    """The p of least squared error found from any of `starts`.  [Levenberg 1944; Marquardt 1963]"""
    found = []
    for p in starts:
        p, damping = np.array(p, float), 1.0
        best = ((law(p, N, D) - L) ** 2).sum()
        for _ in range(500):
            J = np.stack([(law(p + h, N, D) - law(p - h, N, D)) / 2e-5 for h in 1e-5 * np.eye(len(p))], 1)
            there = p + np.clip(np.linalg.solve(J.T @ J + damping * np.eye(len(p)), J.T @ (L - law(p, N, D))), -1, 1)
            error = ((law(there, N, D) - L) ** 2).sum()
            damping = max(damping / 3, 1e-9) if error < best else damping * 3
            p, best = (there, error) if error < best else (p, best)
            if damping > 1e9:
                break
        found.append((best, *p))
    return np.array(min(found)[1:])


def fitted(law: Callable, entropy: bool, N: np.ndarray, D: np.ndarray, L: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """p fitted to all losses L (n,) in nats, and each loss as predicted by the fit to all others (n,)."""
    starts = [np.log([n, n / 10, a, b, 1][: 4 + entropy]) for n, a, b in product((1e3, 1e5), (0.1, 0.6), (0.1, 0.6))]
    p = fit(law, N, D, L, starts)
    others = ~np.eye(len(L), dtype=bool)
    return p, np.array([law(fit(law, N[o], D[o], L[o], [p]), N[i], D[i]) for i, o in enumerate(others)])

"""10. Johnson-Lindenstrauss: how few random directions keep the geometry of K states.

K points in d dimensions, projected at random to m, keep all squared distances to within a factor of 1 +- eps with positive
probability if m >= 4 ln K / (eps^2 / 2 - eps^3 / 3) [Dasgupta and Gupta 2003], for small eps 8 ln K / eps^2; no map of any
kind needs less than a constant times ln(eps^2 K) / eps^2 [Larsen and Nelson 2017].
"""

import time

import numpy as np

from minigpt import rng

from .depth import states
from .material import bundled, table, text

KINDS = ("gaussian", "signs", "hadamard")
DIMENSIONS = (16, 32, 64, 128, 256, 512)


def normals(seed: int, purpose: str, count: int) -> np.ndarray:
    """`count` standard normal numbers.  [Box and Muller 1958]"""
    u = rng.uniform(seed, purpose, 0, 2 * count).astype(np.float64).reshape(2, -1)
    return np.sqrt(-2 * np.log(1 - u[0])) * np.cos(2 * np.pi * u[1])


def hadamard(x: np.ndarray) -> np.ndarray:
    """x (K, n) times the Walsh-Hadamard matrix, n a power of two, in n log2 n additions a row."""
    K, n = x.shape
    h = 1
    while h < n:
        x = x.reshape(K, -1, 2, h)
        x = np.stack([x[:, :, 0] + x[:, :, 1], x[:, :, 0] - x[:, :, 1]], 2)
        h *= 2
    return x.reshape(K, n)


def project(x: np.ndarray, m: int, kind: str, seed: int = 0) -> np.ndarray:
    """x (K, d) projected to (K, m): squared lengths stay the same on average.

    gaussian, signs: times a random matrix; hadamard: random signs, then m random rows of the Hadamard matrix, whose size is d
    rounded up to a power of two [Ailon and Chazelle 2009; Tropp 2011].  ValueError for another kind, or too large an m.
    """
    d = x.shape[1]
    if kind == "gaussian":
        return x @ normals(seed, "projection", d * m).reshape(d, m) / np.sqrt(m)
    signs = 1.0 - 2 * rng.integers(seed, "signs", 0, d * m if kind == "signs" else d, 2)
    if kind == "signs":
        return x @ signs.reshape(d, m) / np.sqrt(m)
    n = 1 << (d - 1).bit_length()
    if kind != "hadamard" or m > n:
        raise ValueError(f"there is no projection {kind!r} of {d} dimensions to {m}")
    rows = np.argsort(rng.words(seed, "rows", 0, n), kind="stable")[:m]
    return hadamard(np.pad(x * signs, ((0, 0), (0, n - d))))[:, rows] / np.sqrt(m)


def square_distances(x: np.ndarray) -> np.ndarray:
    """(K, K) squared Euclidean distances between the rows of x."""
    lengths = (x ** 2).sum(1)
    return np.maximum(lengths[:, None] + lengths - 2 * x @ x.T, 0)


def distortion(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    """Of y (K, m) against x (K, d): the largest relative error of a squared distance, the largest error of an inner product in
    units of both lengths, and the share of points with the same nearest neighbour.  Rows of x must be distinct, and not 0."""
    above, before, after = np.triu_indices(len(x), 1), square_distances(x), square_distances(y)
    lengths = np.sqrt((x ** 2).sum(1))
    angle = np.abs(y @ y.T - x @ x.T)[above] / np.outer(lengths, lengths)[above]
    neighbours = [(square + np.diag(np.full(len(x), np.inf))).argmin(1) for square in (before, after)]
    return (float(np.abs(after[above] / before[above] - 1).max()), float(angle.max()),
            float((neighbours[0] == neighbours[1]).mean()))


def bound(K: int, m: int) -> float:
    """The least eps with m >= 4 ln K / (eps^2 / 2 - eps^3 / 3), or infinity if none is below 1."""
    low, high = 0.0, 1.0
    if 4 * np.log(K) / (1 / 2 - 1 / 3) > m:
        return np.inf
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if 4 * np.log(K) <= m * (middle ** 2 / 2 - middle ** 3 / 3) else (middle, high)
    return high


def points(held_out: bytes, K: int) -> np.ndarray:
    """(at most K, 3 C) float64: the distinct, nonzero last states of the bundled model's three GPTs, side by side, centred."""
    model = bundled()
    T = model.config.block_size
    ids = np.frombuffer(held_out[:-(-K // T) * T], np.uint8).astype(np.int64).reshape(-1, T)
    last = np.hstack([states(member, ids)[-1][:K] for member in model.members]).astype(np.float64)
    last = np.unique(last - last.mean(0), axis=0)
    return last[(last ** 2).sum(1) > 0]


def run(data=None, K: int = 512) -> dict[str, list[float]]:
    """Returns the worst distortion of a squared distance for each m in DIMENSIONS, of each kind, and the bound."""
    x = points(text(data, least=K + 256)[1], K)
    rows, seconds, worst = [], {}, {kind: [] for kind in (*KINDS, "bound")}
    for m in DIMENSIONS:
        worst["bound"].append(bound(len(x), m))
        cells = []
        for kind in KINDS:
            start = time.perf_counter()
            y = project(x, m, kind)
            seconds[kind] = time.perf_counter() - start
            distance, angle, neighbours = distortion(x, y)
            worst[kind].append(distance)
            cells.append(f"{distance:.2f}, {angle:.2f}, {neighbours:.0%}")
        limit = worst["bound"][-1]
        rows.append((str(m), *cells, f"{limit:.2f}" if limit < 1 else "-", f"{np.sqrt(8 * np.log(len(x)) / m):.2f}"))
    table(("m", *KINDS, "bound of the lemma", "sqrt(8 ln K / m)"), *rows)
    times = ", ".join(f"{kind} {1e3 * seconds[kind]:.0f} ms" for kind in KINDS)
    print(f"""
{len(x)} states of {x.shape[1]} dimensions: worst error of a squared distance, worst of an inner product (of unit vectors),
nearest neighbours kept. The bounds are for distances; -: the lemma promises nothing below 1.
Time to m = {DIMENSIONS[-1]}, with its random numbers, on this machine: {times}.
It shows that the three kinds do alike, that the worst pair keeps inside the bound wherever there is one, and that the short
form, m = 8 ln K / eps^2, promises too much where m is small: it is the bound only in the limit of a small eps. It does not
show that each projection is good (the lemma promises that a good one exists), nor that neighbours survive: many differ by less
than eps. And Hadamard's is no faster here: at this size, random numbers take most of the time.""")
    return worst


def plot(figure, results) -> None:
    axes = figure.subplots()
    for kind, values in results.items():
        axes.loglog(DIMENSIONS, values, "k--" if kind == "bound" else "o-", label=kind)
    axes.set(xlabel="m", ylabel="worst error of a squared distance", title="Johnson-Lindenstrauss")
    axes.legend()

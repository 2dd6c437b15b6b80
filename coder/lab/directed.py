"""8. Directed information, and Granger causality in bytes.

How much of Y does X explain?  I(X to Y) = L(Y) - L(Y || X): two code lengths of real decoders, of which the second knows X,
but of X only what came before (causal.py).  With the delayed I(Y to X) it adds up to the mutual information [Massey, Massey
2005].  And it is a test: if Y does follow the distribution of the first coder, whatever X is,
    P(L(Y) - L(Y || X) >= k bits) <= 2^-k,
since the mean of 2^saving is at most 1 (no hypercompression [Cover and Thomas 2006]): 2^saving is an e-value.
"""

from typing import NamedTuple

import numpy as np

from minigpt import rng

from . import causal, flow, material
from .sources import SOURCES, Pair, independent

LENGTH = 10_000                 # symbols of each sequence
SHUFFLES = 9                    # of X, against Y: the largest saving is what chance brings
NULL_LENGTH, NULL_RUNS = 200, 1000
THRESHOLDS = 0, 0.5, 1, 2, 4, 8


class Measured(NamedTuple):
    x_to_y: float               # bits
    y_to_x: float               # bits, delayed
    joint: float                # L(X) + L(Y) - L(X, Y), of one code of both, in whole bytes
    ahead: float                # L(Y) - L(Y | X known ahead)
    explained: np.ndarray       # (2, n): the bits that y's past saves on x_t, and x_1..x_t on y_t


def saving(pair: Pair, target: int) -> np.ndarray:
    """(n,) bits that the other sequence saves on each symbol of the target: 0 for x, 1 for y."""
    alone, knowing = (causal.encode(pair.streams, pair.widths, (target,), known)[1][target] for known in (False, True))
    return alone - knowing


def measure(pair: Pair) -> Measured:
    """Both directions, and the mutual information in two ways."""
    explained = np.stack([saving(pair, target) for target in (0, 1)])
    sizes = [len(causal.encode(pair.streams, pair.widths, coded, known)[0]) * 8
             for coded, known in (((0,), False), ((1,), False), ((0, 1), True))]
    alone, ahead = (causal.encode(pair.streams, pair.widths, (1,), *known)[1][1].sum() for known in ((False,), (True, True)))
    return Measured(explained[1].sum(), explained[0].sum(), sizes[0] + sizes[1] - sizes[2], alone - ahead, explained)


def given(pair: Pair) -> float:
    """I(X to Y || Z) in bits: L(Y || Z) - L(Y || Z and X), with the third sequence z known to both."""
    x, y = pair.streams
    known = (pair.given, 1), (2 * pair.given + x, 2)
    alone, more = (causal.encode(np.stack([side, y]), (width, 1))[1].sum() for side, width in known)
    return alone - more


def by_chance(pair: Pair, target: int, shuffles: int) -> float:
    """The largest saving in bits after the other sequence has been shuffled, `shuffles` times."""
    best = -np.inf
    for i in range(shuffles):
        streams = pair.streams.copy()
        order = np.argsort(rng.words(1, "shuffle", i, streams.shape[1]), kind="stable")
        streams[1 - target] = streams[1 - target][order]
        best = max(best, saving(pair._replace(streams=streams), target).sum())
    return best


def null_savings(runs: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """(runs,) bits each: where the null is exactly true, and for independent Markov chains, which the coder must learn."""
    exact, chains = np.empty(runs), np.empty(runs)
    for i in range(runs):
        pair = independent(n, i + 2, b"")
        chains[i] = saving(pair, 1).sum()
        noise = rng.words(i, "null", 0, n // 8).astype("<u4").tobytes()         # random bits, decoded, follow the first coder
        y = causal.decode(noise, pair.streams, pair.widths, (1,), False)
        exact[i] = saving(pair._replace(streams=y), 1).sum()
    return exact, chains


def run(data: str | None = None, length: int = LENGTH, shuffles: int = SHUFFLES, runs: int = NULL_RUNS) -> dict:
    """Print both directions for every source, their sum, the test under the null, and what a prompt explains of an answer."""
    seen, held_out = material.text(data, least=2 * length)
    pairs = {name: source(length, 1, held_out) for name, source in SOURCES.items()}
    results = {name: measure(pair) for name, pair in pairs.items()}
    print(f"Bits that one sequence of {length:,} symbols explains of the other (shuffled: the most in {shuffles} shuffles)\n")
    rows = []
    for name, pair in pairs.items():
        (forth, back, *_), chance = results[name], [_show(by_chance(pair, target, shuffles)) for target in (1, 0)]
        rows.append((name, _show(forth), _show(pair.x_to_y), chance[0], _show(back), _show(pair.y_to_x), chance[1]))
    material.table(("source", "X to Y", "in theory", "shuffled", "Y to X", "in theory", "shuffled"), *rows)
    print(f"\nCommon cause, once its bits Z are known: X to Y explains {_show(given(pairs['common cause']))} bits more.\n"
          "\nConservation: the sum of both directions, and the mutual information\n")
    material.table(("source", "sum", "from one code of both", "X known ahead of time"),
                   *((name, _show(m.x_to_y + m.y_to_x), _show(m.joint), _show(m.ahead)) for name, m in results.items()))
    exact, chains = null_savings(runs, NULL_LENGTH)
    print(f"\nHow often chance saves k bits or more, {runs:,} pairs of {NULL_LENGTH} (true null: Y drawn from the coder)\n")
    material.table(("k", "2^-k", "true null", "independent chains"),
                   *((str(k), *(f"{p:.4f}" for p in (2.0 ** -k, np.mean(exact >= k), np.mean(chains >= k))))
                     for k in THRESHOLDS))
    print("\nThis shows that the direction and delay of a dependence can be read off two code lengths, in bits that add up\n"
          "to the mutual information, and that chance does not save more than the bound allows. It does not show a cause: a\n"
          "common cause looks like one until it is known, and a dependence within one step goes to whoever is said to come\n"
          "first. Where the first coder is poor, so that L(Y) is too large, the difference is too large as well.\n")
    return {"directed": results, "null": exact, "flow": flow.run(held_out)}


def plot(figure, results: dict) -> None:
    """Explained bits along the sequences, and how many bits of each character of an answer its prompt explains."""
    left, right = figure.subplots(1, 2)
    for i, (name, measured) in enumerate(results["directed"].items()):
        left.plot(np.cumsum(measured.explained[1]), color=f"C{i}", label=name)
        left.plot(np.cumsum(measured.explained[0]), color=f"C{i}", linestyle=":")
    left.set(xlabel="symbols", ylabel="bits explained (dotted: Y to X)")
    left.legend(fontsize=6)
    flow.plot(right, results["flow"])


def _show(bits):
    return "" if bits is None else "0" if abs(bits) < 0.5 else f"{bits:,.0f}"

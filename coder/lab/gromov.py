"""11. Gromov-Wasserstein: two alphabets aligned by their shape alone.

The Gromov-Wasserstein distance (coupling.py) compares two sets of points by the distances within each.  No coordinates enter,
so rotating or renaming the points changes nothing, and two spaces can be aligned without a dictionary.
"""

import numpy as np

from minigpt import rng

from .coupling import align, cost, distances, lower_bound
from .material import bundled, smollm2, table, text

LOWER, UPPER = b"abcdefghijklmnopqrstuvwxyz", b"ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def bigrams(data: bytes, letters: np.ndarray) -> np.ndarray:
    """(n, 2 n): for each of n letters, the square roots of the probabilities of what follows it, and of what precedes it."""
    place = np.full(256, -1)
    place[letters] = np.arange(len(letters))
    ids = place[np.frombuffer(data, np.uint8)]
    ids = ids[ids >= 0]
    counts = 1 + np.bincount(ids[:-1] * len(letters) + ids[1:], minlength=len(letters) ** 2).reshape(len(letters), -1)
    return np.sqrt(np.hstack([counts / counts.sum(1, keepdims=True), (counts / counts.sum(0)).T]))


def spaces(data: bytes):
    """(name, points, their partners in the same order) for each comparison; letters are bytes that occur at least 100 times."""
    letters = np.flatnonzero(np.bincount(np.frombuffer(data, np.uint8), minlength=256) >= 100)
    members = bundled().members
    heads = [m.head.weight.data.T / np.linalg.norm(m.head.weight.data, axis=0)[:, None] for m in members]
    rotation, noise = (rng.integers(1, name, 0, 192 * 192, 2 ** 24).reshape(192, 192) / 2.0 ** 24 - 0.5 for name in "rn")
    inputs = [m.tokens.weight.data[letters] for m in members]
    yield "head: a rotated, renamed copy", heads[0][letters], heads[0][letters] @ np.linalg.qr(rotation)[0]
    yield "head: seeds 1 and 2", heads[0][letters], heads[1][letters]
    yield "head: seeds 1 and 3", heads[0][letters], heads[2][letters]
    yield "head: beside random points", heads[0][letters], noise[:len(letters)]
    yield "embedding: seeds 1 and 2", inputs[0], inputs[1]
    yield "embedding: beside random points", inputs[0], noise[:len(letters)]
    yield "bigrams: the text's two halves", bigrams(data[:len(data) // 2], letters), bigrams(data[len(data) // 2:], letters)
    pairs = [(a, b) for a, b in zip(LOWER, UPPER) if a in letters and b in letters]
    yield "head: a-z beside A-Z", *(heads[0][list(side)] for side in zip(*pairs))
    if (language := smollm2()) is not None:
        both = [(b, language.tokenizer.vocabulary.index(bytes([b]))) for b in letters.tolist()]
        own, theirs = map(list, zip(*both))
        rows = np.empty((len(theirs), language.model.config.n_embd), np.float32)
        language.model.tokens.weight.rows(np.array(theirs), rows)
        yield "embedding: ours beside SmolLM2's", members[0].tokens.weight.data[own], rows


def run(data=None) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns, by name, the true partners of the points and those found, (n,) each."""
    seen, _ = text(data, least=1000)
    results, rows = {}, []
    for name, x, y in spaces(seen):
        n = len(x)
        renamed = np.argsort(rng.words(1, "names", 0, n), kind="stable")        # the partner of renamed[j] is j
        C1, C2 = distances(x), distances(y[renamed])
        found, j = align(C1, C2)
        results[name] = np.argsort(renamed), j
        true = cost(C1, C2, np.eye(n)[np.argsort(renamed)] / n)
        rows.append((name, str(n), f"{lower_bound(C1, C2)[0]:.4f}", f"{abs(found):.4f}", f"{abs(true):.4f}",
                     f"{(renamed[j] == np.arange(n)).sum()}"))
    table(("two spaces of", "points", "GW is at least", "and at most (found)", "cost of the true partners", "partners found"),
          *rows)
    print(WHAT_IT_SHOWS)
    return results


WHAT_IT_SHOWS = """
Costs of distances with mean square 1; guessing finds one partner on average. It shows that a copy is found exactly, and that
two trainings agree in the shape of their heads, and two halves of a text in that of their bigrams, far enough to tell most
letters. It contradicts the claim for input embeddings: in 192 dimensions all letters are about equally far apart, so that
those of another seed are no closer than random points. And the two alphabets a-z and A-Z of one head do not find each other.
It does not show the least cost: what is found is a local minimum. Where the true partners cost more than those found, the
shape alone does not say who is who; where they cost less, the search has missed them."""


def plot(figure, results) -> None:
    axes = figure.subplots(1, 3)
    for part, name in zip(axes, list(results)[1:8:3]):
        true, found = results[name]
        seen = np.zeros((len(true), len(true)))
        seen[np.arange(len(true)), np.argsort(true)[found]] = 1
        part.imshow(seen, cmap="Greys")
        part.set(title=name, xlabel="partner found", ylabel="letter")
        part.title.set_fontsize(8)

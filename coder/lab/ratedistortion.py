"""9. Rate and distortion, rate and reward.

How many bits does it take to say nearly what comes next?  R(D) is the least mutual information between x and a y whose
mean distortion is at most D [Shannon 1959].  The Blahut-Arimoto algorithm [both 1972] finds points of it: for a slope
s it alternates between
    Q(y | x) = q(y) e^(-s d(x, y)) / Z(x),     q(y) = sum over x of p(x) Q(y | x),
each of which lowers I + s E[d] (in nats), to its minimum.  With a reward r instead of a distortion, and no source to be
told, the same exponential tilts one distribution: q = p e^(r / T) / Z costs D(q || p), and no other q gets its reward for
less.
"""

import numpy as np

from . import material

CONTEXT, CONTEXTS = 64, 32          # bytes before the next one; places in the held-out text
SLOPES = 0.5, 1, 2, 3, 4, 6, 8, 12, 20
TOLERANCE, MOST_STEPS = 1e-7, 2000
TEMPERATURES, TOP_K = (2.0, 1.0, 0.7, 0.5, 0.2), (50, 10, 3, 2, 1)


def blahut_arimoto(p: np.ndarray, distortion: np.ndarray, slope: float) -> tuple[float, float]:
    """(D, R): where the curve of the source p (V,) has the slope -dR/dD, in nats; R is in bits.  distortion is (V, M)."""
    weights = np.exp(-slope * distortion)                                           # (V, M)
    q = np.full(distortion.shape[1], 1 / distortion.shape[1])
    for _ in range(MOST_STEPS):
        growth = p @ (weights / (weights @ q)[:, None])                             # (M,): at the minimum, at most 1
        q = q * growth
        if np.log(growth.max()) < TOLERANCE:            # an upper bound on what is left to gain, in nats
            break
    joint = p[:, None] * q * weights / (weights @ q)[:, None]
    return float((joint * distortion).sum()), information(joint)


def information(joint: np.ndarray) -> float:
    """I(X; Y) in bits of a joint distribution (V, M)."""
    apart = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    there = joint > 1e-200           # where the logarithms are finite
    return float((joint[there] * np.log2(joint[there] / apart[there])).sum())


def divergence(q: np.ndarray, p: np.ndarray) -> float:
    """D(q || p) in bits."""
    there = q > 0
    return float((q[there] * np.log2(q[there] / p[there])).sum())


def temperature(p: np.ndarray, T: float) -> np.ndarray:
    """The distribution that sampling at temperature T draws from: p^(1/T), normalised."""
    q = np.exp(np.log(p / p.max()) / T)
    return q / q.sum()


def top_k(p: np.ndarray, k: int) -> np.ndarray:
    """p with all but the k likeliest symbols removed, normalised."""
    q = np.zeros_like(p)
    best = np.argsort(-p, kind="stable")[:k]
    q[best] = p[best]
    return q / q.sum()


def least_rate(p: np.ndarray, reward: np.ndarray, level: float) -> float:
    """The least D(q || p) in bits of all q whose mean reward is `level`, above that of p, for reward (V,): by bisection."""
    low, high = 0.0, 1e4
    for _ in range(100):
        tilt = (low + high) / 2
        q = p * np.exp(tilt * (reward - reward.max()))
        q /= q.sum()
        low, high = (tilt, high) if q @ reward < level else (low, tilt)
    return divergence(q, p)


def run(data: str | None = None) -> dict:
    """Print the curve of the next byte under the bundled model, and where sampling lies: against it, and by its reward."""
    _, text = material.text(data, least=CONTEXTS * CONTEXT)
    model = material.bundled()
    ids = np.frombuffer(text[:CONTEXTS * CONTEXT], np.uint8).astype(np.int64).reshape(CONTEXTS, CONTEXT)
    logits = model.forward(ids)[:, -1].astype(np.float64)                           # (CONTEXTS, 256)
    sources = np.exp(logits - logits.max(1, keepdims=True))
    sources /= sources.sum(1, keepdims=True)
    member = model.members[0]
    table = member.tokens.weight.data.astype(np.float64)                            # (256, C)
    seen = np.unique(np.frombuffer(text, np.uint8))             # other bytes have no embedding that was learned
    sources = sources[:, seen] / sources[:, seen].sum(1, keepdims=True)
    square = ((table[seen, None] - table[None, seen]) ** 2).sum(-1)
    square /= square[square > 0].mean()                                             # 1: two letters at random
    curve = np.array([np.mean([blahut_arimoto(p, square, slope) for p in sources], axis=0) for slope in SLOPES])
    exact = float(np.mean([-(p * np.log2(p)).sum() for p in sources]))
    print(f"The next byte after {CONTEXTS} contexts: rate in bits (said exactly, {exact:.2f}), and as distortion the\n"
          "squared error of embeddings, in units of that between two bytes at random\n")
    material.table(("slope", "distortion", "rate"), *((f"{s}", f"{d:.3f}", f"{r:.3f}") for s, (d, r) in zip(SLOPES, curve)))
    ways = [(f"temperature {T}", lambda p, T=T: temperature(p, T)) for T in TEMPERATURES]
    ways += [(f"top-k {k}", lambda p, k=k: top_k(p, k)) for k in TOP_K]
    rows = []
    for name, way in ways:
        drawn = [way(p) for p in sources]
        reward = [float(q @ np.log2(p)) for p, q in zip(sources, drawn)]
        cost = [divergence(q, p) for p, q in zip(sources, drawn)]
        base = [float(p @ np.log2(p)) for p in sources]
        least = [least_rate(p, np.log2(p), r) if r > b + 1e-9 else np.nan for p, r, b in zip(sources, reward, base)]
        distortion = np.mean([p @ square @ q for p, q in zip(sources, drawn)])
        rows.append((name, float(distortion), float(np.mean(reward)), float(np.mean(cost)), float(np.mean(least))))
    print("\nSampling, without being told the byte (rate 0 above), by its reward, the log2-probability of what it says\n")
    material.table(("sampling", "distortion", "reward", "divergence from the model", "least for this reward"), *(
        (name, f"{d:.3f}", f"{reward:.3f}", f"{cost:.3f}", "" if np.isnan(least) else f"{least:.3f}")
        for name, d, reward, cost, least in rows))
    print("\nThis shows what nearness saves, and that temperature sampling is the cheapest way to a likelier byte, while\n"
          "top-k pays more. It does not show meaning: the embeddings of letters are no measure of how alike they read, and a\n"
          "likely text is not a good one.")
    return {"curve": curve, "sampling": rows}


def plot(figure, results: dict) -> None:
    """The rate-distortion curve, and rate against reward for both ways to sample."""
    left, right = figure.subplots(1, 2)
    left.plot(*results["curve"].T, "o-")
    left.set(xlabel="distortion", ylabel="rate (bits)")
    for word, mark in ("temperature", "o-"), ("top-k", "s-"):
        points = [(reward, cost) for name, _, reward, cost, _ in results["sampling"] if name.startswith(word)]
        right.plot(*zip(*points), mark, label=word)
    right.set(xlabel="reward: log2-probability", ylabel="D(q || p) (bits)")
    right.legend()

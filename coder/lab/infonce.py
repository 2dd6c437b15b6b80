"""12. InfoNCE: how much a state tells of a letter k steps ahead, bounded by a guessing game.

Of N letters, one of which came k steps after the state z and the others after other states, guess which.  With any score f,
    I(z; x) >= log N - L,   L = -mean over i of log( e^f(z_i, x_i) / sum_j e^f(z_i, x_j) )          [van den Oord et al. 2018]
so that no critic, however good, can show more than log N.  The critic here is f = z^T W phi(x), its gradient derived by hand.
"""

import numpy as np

from minigpt import rng
from minigpt.kernels.matmul import matmul

from .depth import states, windows
from .material import bundled, table, text
from .projections import normals

BETA1, BETA2 = 0.9, 0.99


def info_nce(z: np.ndarray, phi: np.ndarray, W: np.ndarray) -> tuple[float, np.ndarray]:
    """(log N - L in nats, dL/dW (a, b)) of N pairs z (N, a), phi (N, b), and W (a, b)."""
    scores = times(times(z, W), phi.T)                                          # (N, N): row i's partner is column i
    scores = scores - scores.max(1, keepdims=True)
    p = np.exp(scores)
    total = p.sum(1)
    bound = np.log(len(z)) + (np.diag(scores) - np.log(total)).mean()
    # dL/dscores_ij = (softmax_ij - (i == j)) / N, and scores = z W phi^T
    return float(bound), times(z.T, times((p / total[:, None] - np.eye(len(z))) / len(z), phi))


def times(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a @ b (n, m), rounded to float32, with our own kernel: for products this small, BLAS spends most of its threads' time
    waiting for each other."""
    a, b = a.astype(np.float32), b.astype(np.float32)
    return matmul(a, b, np.empty((len(a), b.shape[1]), np.float32)).astype(np.float64)


def learn(z: np.ndarray, phi: np.ndarray, N: int, steps: int, purpose: str, rate: float = 0.01) -> np.ndarray:
    """W (a, b) after that many steps of Adam, each on N random pairs."""
    W = np.zeros((z.shape[1], phi.shape[1]))
    mean, square = np.zeros_like(W), np.zeros_like(W)
    for step in range(steps):
        chosen = rng.integers(1, purpose, step, N, len(z))
        _, gradient = info_nce(z[chosen], phi[chosen], W)
        mean += (1 - BETA1) * (gradient - mean)
        square += (1 - BETA2) * (gradient ** 2 - square)
        direction = mean / (1 - BETA1 ** (step + 1)) / (np.sqrt(square / (1 - BETA2 ** (step + 1))) + 1e-8)
        W -= rate * (1 - step / steps) * direction
    return W


def average(z: np.ndarray, phi: np.ndarray, W: np.ndarray, N: int, purpose: str, rounds: int = 0) -> float:
    """Mean of the bound over batches of N random pairs."""
    rounds = rounds or max(4, 4096 // N)
    chosen = rng.integers(2, purpose, N, rounds * N, len(z)).reshape(rounds, N)
    return float(np.mean([info_nce(z[c], phi[c], W)[0] for c in chosen]))


def gaussian_pairs(count: int, d: int, information: float, purpose: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """z (count, d + 1), phi (count, 2 d) and the best W, for x and y normal in d dimensions, whose channels correlate by r
    with -d / 2 log(1 - r^2) = information (nats).  log p(y|x) - log p(y) = (r x y - r^2 (x^2 + y^2) / 2) / (1 - r^2) + ..., in
    which all that depends on x alone cancels; z = (x, 1) and phi = (y, y^2) can express the rest."""
    r2 = -np.expm1(-2 * information / d)
    x, noise = normals(3, purpose, 2 * count * d).reshape(2, count, d)
    y = np.sqrt(r2) * x + np.sqrt(1 - r2) * noise
    W = np.zeros((d + 1, 2 * d))
    W[:d, :d], W[d, d:] = np.eye(d) * np.sqrt(r2) / (1 - r2), -r2 / (1 - r2) / 2
    return np.hstack([x, np.ones((count, 1))]), np.hstack([y, y ** 2]), W


def run(data=None) -> dict[str, list]:
    """Returns {"N": [(N, bound, log N)], "k": [(k, bound)]}, in nats, for the GPT's states."""
    truths, sizes = (0.5, 2.0, 6.0), (16, 64, 256, 1024)
    rows = []
    for truth in truths:
        z, phi, best = gaussian_pairs(8192, 4, truth, f"pairs {truth}")
        W = learn(z[:4096], phi[:4096], 256, 400, "gaussian", rate=0.1)
        rows.append((f"{truth:.1f}", *(f"{average(z[4096:], phi[4096:], best, N, 'gaussian'):.2f}" for N in sizes),
                     f"{average(z[4096:], phi[4096:], W, 256, 'gaussian'):.2f}"))
    table(("I, in nats", *(f"best critic, N = {N}" for N in sizes), "learned, N = 256"), *rows)
    print("\nNormal pairs of 4 dimensions, whose mutual information is known: bounds in nats, at most log N = "
          + ", ".join(f"{np.log(N):.2f}" for N in sizes) + ".\n")

    seen, held_out = text(data, least=32 * 256 + 1)
    model = bundled().members[0]
    known, new = (windows(part, count, model.config.block_size)[0] for part, count in ((seen, 64), (held_out, 32)))
    every = np.unique(np.frombuffer(seen + held_out, np.uint8))
    letters, sets, results, rows = (every == np.arange(256)[:, None]).astype(float), [], {"N": [], "k": []}, []
    frequencies = np.bincount(known.reshape(-1), minlength=256) + 1.0
    for ids in known, new:
        z = np.concatenate([model.norm.forward(x).astype(np.float64) for x in np.array_split(states(model, ids)[-1], 8)])
        sets.append((ids, np.hstack([z, np.ones((len(z), 1))]).reshape(*ids.shape, -1)))
    for k in (1, 2, 3, 4, 8, 16):
        (z, phi), (z_new, phi_new) = ((states_of[:, :-k].reshape(-1, states_of.shape[2]), letters[ids[:, k:].reshape(-1)])
                                      for ids, states_of in sets)
        W = learn(z, phi, 256, 300, f"ahead {k}")
        bound = average(z_new, phi_new, W, 256, "text")
        results["k"].append((k, bound))
        rows.append((str(k), f"{bound:.2f}"))
        if k == 1:
            head = np.vstack([model.head.weight.data, -np.log(frequencies)])[:, every]
            results["N"] = [(N, average(z_new, phi_new, W, N, "text"), np.log(N)) for N in (2, 4, *sizes)]
            own = average(z_new, phi_new, head, 256, "text")
    table(("N", "bound for k = 1", "log N"), *((str(N), f"{b:.2f}", f"{limit:.2f}") for N, b, limit in results["N"]))
    marginal = -np.log(frequencies / frequencies.sum())[new[:, 1:]].mean()
    loss = model.loss(new[:, :-1], new[:, 1:])
    print()
    table(("k", "bound, N = 256"), *rows)
    print(f"""
Nats between the last state of the first GPT and the letter k ahead, {new.size:,} held-out bytes; critics learned on
{known.size:,} bytes that the model knew. With the model's own head as the critic, k = 1: {own:.2f}; from its loss,
{marginal:.2f} - {loss:.2f} = {marginal - loss:.2f} [Barber and Agakov 2003].
It shows a lower bound that tightens with N, never above log N, and falls fast with k. It does not show the information: a
poor critic and a small N look like ignorance, as the third normal pair does; below 0, the critic has learned accidents.""")
    return results


def plot(figure, results) -> None:
    left, right = figure.subplots(1, 2)
    N, bounds, limits = zip(*results["N"])
    left.semilogx(N, bounds, "o-", label="bound, k = 1")
    left.semilogx(N, limits, "k--", label="log N")
    left.set(xlabel="N", ylabel="nats")
    left.legend()
    right.plot(*zip(*results["k"]), "o-")
    right.set(xlabel="k: letters ahead", ylabel="bound, N = 256 (nats)", ylim=(0, None))

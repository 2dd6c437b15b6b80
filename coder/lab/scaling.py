"""7. Scaling, and memory: what more parameters and text buy, where more parameters hurt, and what they learn by heart.

Three sizes of a network learn from four amounts of text, for equally many steps.  Power laws in both (laws.py) are fitted to
the least held-out loss during training, as early stopping would give, and each loss is predicted from all others.  What
parameters learn by heart is measured on random bytes (memory.py).
"""

from itertools import product
from typing import NamedTuple

import numpy as np

from minigpt import rng
from minigpt.model import GPT, GPTConfig
from minigpt.optimizer import Optimizer, OptimizerConfig

from . import memory
from .laws import added, fitted, joined
from .material import table, text

WIDTHS, AMOUNTS = (16, 32, 64), (2 ** 13, 2 ** 15, 2 ** 17, 2 ** 19)        # channels; bytes
STEPS, BATCH, WINDOW, LOOKS = 600, 8, 64, 10
PIECE = 1024                        # consecutive bytes: an amount of text consists of pieces from all over it
LEARNING = OptimizerConfig(warmup=20)
MEASURED = 2 ** 14                  # bytes, at most, on which a loss is measured


class Run(NamedTuple):
    parameters: int
    amount: int             # bytes
    training: float         # nats per byte, as the next two; after the last step
    held_out: float
    least: float            # held out, of LOOKS evaluations during training
    at: int                 # its step


def nats(model: GPT, pieces: np.ndarray) -> float:
    """Mean loss over adjacent windows of pieces (P, PIECE), in nats per byte."""
    T = model.config.block_size
    windows = np.concatenate([pieces[:, i:i + T + 1] for i in range(0, pieces.shape[1] - T, T)])
    losses = [model.loss(part[:, :-1], part[:, 1:]) * len(part) for part in np.array_split(windows, -(-len(windows) // BATCH))]
    return float(np.sum(losses) / len(windows))


def train(model: GPT, pieces: np.ndarray, held_out: np.ndarray, steps: int) -> Run:
    """Train on random windows of pieces (P, PIECE); both losses on the first MEASURED bytes."""
    optimizer, T, looks = Optimizer(model, LEARNING, steps), model.config.block_size, []
    known, new = (part[:MEASURED // part.shape[1]] for part in (pieces, held_out))
    for step in range(1, steps + 1):
        piece = rng.integers(1, "piece", step, BATCH, len(pieces))
        place = rng.integers(1, "place", step, BATCH, pieces.shape[1] - T)
        windows = pieces[piece[:, None], place[:, None] + np.arange(T + 1)]
        model.loss(windows[:, :-1], windows[:, 1:])
        model.backward()
        optimizer.step()
        if step % (steps // LOOKS) == 0:
            looks.append((nats(model, new), step))
    size = sum(parameter.data.size for parameter in model.parameters().values())
    return Run(size, pieces.size, nats(model, known), looks[-1][0], *min(looks))


def run(data: str | None = None, widths=WIDTHS, amounts=AMOUNTS, steps: int = STEPS) -> dict[str, list]:
    """Print the losses, the laws, and what is learned by heart.  Returns {"runs": [Run], "memory": [memory.Kept]}."""
    seen, held_out = text(data, least=-(-max(amounts) // 9))
    letters, ids = np.unique(np.frombuffer(seen + held_out, np.uint8), return_inverse=True)
    pieces, new = (part[:len(part) // PIECE * PIECE].reshape(-1, PIECE) for part in np.split(ids, [len(seen)]))
    runs = []
    for width, amount in product(widths, amounts):
        chosen = np.arange(amount // PIECE) * len(pieces) // (amount // PIECE)
        model = GPT(GPTConfig(len(letters), WINDOW, n_layer=2, n_head=max(1, width // 16), n_embd=width), seed=1)
        runs.append(train(model, pieces[chosen], new, steps))
    print(f"Nats per byte after {steps:,} steps of {BATCH} windows of {WINDOW} bytes:\n")
    table(("bytes of text", "parameters", "training", "held out", "least held out", "at step"), *(
        (f"{r.amount:,}", f"{r.parameters:,}", f"{r.training:.3f}", f"{r.held_out:.3f}", f"{r.least:.3f}", f"{r.at:,}")
        for r in sorted(runs, key=lambda r: r.amount)))
    N, D, L = (np.array([getattr(r, name) for r in runs], float) for name in ("parameters", "amount", "least"))
    rows = []
    for law, entropy in product((added, joined), (False, True)):
        p, alone = fitted(law, entropy, N, D, L)
        a, b, *E = np.exp(p[2:])
        errors = (np.sqrt(((guess - L) ** 2).mean()) for guess in (law(p, N, D), alone))
        rows.append((law.__name__, *(f"{x:.2f}" for x in (*E, *[0] * (1 - entropy), a, b)), *(f"{x:.3f}" for x in errors)))
    print("\nLaws of the least losses; errors of the fit, and of predicting each from the others (root mean square, nats):\n")
    table(("law", "E", "a", "b", "error of the fit", "error of predictions"), *rows)
    results = {"runs": runs, "memory": memory.run()}
    print(WHAT_IT_SHOWS)
    return results


WHAT_IT_SHOWS = """
This shows that more parameters than bytes of text hurt where training continues: the largest network fits the smallest text
ever better, and predicts other text worse than the smallest network. And that it takes both: where text is short, more
parameters buy nothing, which the joined law says and the added one does not. A parameter keeps about 2 bits, and packed
model and code together are longer than the random bytes, as they must be. It contradicts the claim that there is an E to be
seen: twelve losses do not determine it, since the joined law predicts no better with it than without. It does not show what
longer training would do (it keeps more bits), nor that a law holds beyond what was measured. And the step to stop at was
chosen on the text whose loss is reported."""


def plot(figure, results: dict) -> None:
    """Held-out losses against parameters for each amount of text, and bits kept against random bytes for each size."""
    left, right = figure.subplots(1, 2)
    for i, amount in enumerate(sorted({r.amount for r in results["runs"]})):
        of = [r for r in results["runs"] if r.amount == amount]
        sizes = [r.parameters for r in of]
        left.semilogx(sizes, [r.held_out for r in of], "o-", color=f"C{i}", label=f"{amount:,} bytes of text")
        left.semilogx(sizes, [r.least for r in of], "o:", color=f"C{i}")
    left.set(xlabel="parameters", ylabel="nats per byte held out (dotted: the least)")
    for size in sorted({k.parameters for k in results["memory"]}):
        of = [k for k in results["memory"] if k.parameters == size]
        right.plot([k.size / 1e3 for k in of], [k.bits / 8e3 for k in of], "o-", label=f"{size:,} parameters")
    right.axline((0, 0), slope=1, color="black", linestyle=":", label="all")
    right.set(xlabel="random kB", ylabel="kB kept", ylim=(0, 1.2 * max(k.bits / 8e3 for k in results["memory"])))
    for axes in left, right:
        axes.legend(fontsize=6)

"""6. Model and delta: two-part codes of one text, and a code that sends no model.

A two-part code of a text x sends a model M, and then x as M codes it: L(M) + L(x | M).  Over all models it is least where M
holds all that is regular in x and nothing else, Kolmogorov's minimal sufficient statistic.  How far a model lies above the
least is the randomness deficiency of x under it [Vereshchagin and Vitanyi 2004]: what it fails to explain, or knows besides.
Their structure function, the least L(x | M) of all models of at most so many bytes, cannot be computed; any set of models
bounds it from above.  The prequential code [Dawid 1984] sends no model: it codes each part with what those before it taught.
"""

from typing import NamedTuple

import numpy as np

from minigpt import rng
from minigpt.model import GPT, GPTConfig
from minigpt.optimizer import Optimizer, OptimizerConfig

from ..codec import decode_block, encode_block
from ..packed import pack, unpack
from ..predictor import Learner, Predictor, fast, scratch, static
from .material import table, text

SIZE = 2 ** 17                          # bytes of the text, of which the model learns all
NETWORK = GPTConfig(n_layer=2, n_embd=32)
SEED, BATCH, REPLAYS = 1, 16, 7         # a prequential learner with so many replays takes as many steps in all
LEARNING = OptimizerConfig(warmup=20)
STEPS, FINENESS = (0, 50, 500, 2000), (1, 2, 3, 4, 6, 8, 12, 24)


class Code(NamedTuple):
    steps: int
    fineness: int           # 0 for no model at all, where each byte takes 8 bits
    model: int              # bytes, as the next two
    code: int

    @property
    def sum(self) -> int:
        return self.model + self.code


def checkpoints(data: bytes, steps: tuple[int, ...]) -> dict[int, GPT]:
    """A copy of the network after each of these numbers of steps on windows from anywhere in data."""
    model, ids, T = GPT(NETWORK, SEED), np.frombuffer(data, np.uint8), NETWORK.block_size
    model.tokens.weight.data[np.bincount(ids, minlength=256) == 0] = 0      # never read; zeros cost hardly anything
    optimizer, found = Optimizer(model, LEARNING, max(steps)), {}
    for step in range(max(steps) + 1):
        if step in steps:
            found[step] = model.copy()
        if step < max(steps):
            windows = ids[rng.integers(SEED, "batch", step, BATCH, len(ids) - T)[:, None] + np.arange(T + 1)]
            model.loss(windows[:, :-1], windows[:, 1:])
            model.backward()
            optimizer.step()
    return found


def two_parts(model: GPT, fineness: int, data: bytes) -> tuple[bytes, bytes]:
    """The packed model, and the code of data with what is unpacked from it."""
    file = pack(model, fineness=fineness)
    return file, encode_block(static(unpack(file)[0]), data)


def prequential(size: int) -> Predictor:
    """The same network, untrained, which learns from what has been coded: REPLAYS steps on earlier windows for each on new."""
    model = GPT(NETWORK, SEED)
    return Predictor(model, learner=Learner(model, LEARNING, BATCH, REPLAYS, size // (NETWORK.block_size // 2)))


def lower_hull(points: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The corners of the lower convex hull of points (x, y), x ascending, as far as it falls.  [Andrew 1979]"""
    hull = []
    for x, y in sorted(set(points)):
        while len(hull) > 1 and ((hull[-1][0] - hull[-2][0]) * (y - hull[-2][1])
                                 <= (hull[-1][1] - hull[-2][1]) * (x - hull[-2][0])):
            hull.pop()                          # not below the line from the corner before it to the new point
        if not hull or y < hull[-1][1]:
            hull.append((x, y))
    return hull


def run(data: str | None = None, size: int = SIZE, steps: tuple[int, ...] = STEPS) -> tuple[list[Code], dict[str, int]]:
    """Print the two-part codes of a text, their hull, and the codes that send no model: these two, in bytes, are returned."""
    part = text(data, least=size // 9)[0][:size]
    codes, files = [Code(0, 0, 0, len(part))], {}
    for count, model in checkpoints(part, steps).items():
        for fineness in FINENESS:
            file, code = two_parts(model, fineness, part)
            codes.append(Code(count, fineness, len(file), len(code)))
            files[codes[-1]] = file, code
    least = min(files, key=lambda code: code.sum)
    file, code = files[least]
    if decode_block(static(unpack(file)[0]), code, len(part)) != part:
        raise AssertionError("the shortest two-part code does not decode")
    weights = sum(parameter.data.size for parameter in model.parameters().values())
    print(f"Two-part codes of the first {len(part):,} bytes: a packed model of {weights:,} weights, and the text\n"
          "as it codes it. Sums in bytes, by steps of training and fineness of packing:\n")
    rows = []
    for fineness in FINENESS:
        of = {code.steps: code for code in codes if code.fineness == fineness}
        last = of[max(steps)]
        rows.append((f"{fineness}", *(f"{of[count].sum:,}" for count in steps), f"{last.model:,}", f"{last.code:,}",
                     f"{last.sum - least.sum:,}"))
    table(("fineness", *(f"{count:,} steps" for count in steps), "model", "code", "above the least"), *rows)
    print(f"\n(model, code, above the least: of {max(steps):,} steps.) The least is {least.sum:,}, decoded and compared. "
          "The corners of the lower hull:\n")
    hull = [next(code for code in codes if code[2:] == corner) for corner in lower_hull([code[2:] for code in codes])]
    rows = [(f"{b.steps:,} steps, fineness {b.fineness}" if b.fineness else "no model", *(f"{n:,}" for n in (*b[2:], b.sum)),
             f"{(a.code - b.code) / (b.model - a.model):.2f}" if b.fineness else "-") for a, b in zip([hull[0], *hull], hull)]
    table(("", "model", "code", "sum", "code saved by a byte more of model"), *rows)
    alone = {"the same network, learning as it codes": len(encode_block(prequential(len(part)), part)),
             "scratch: a larger one, mixed with contexts": len(encode_block(scratch(len(part)), part)),
             "fast: contexts alone": len(encode_block(fast(len(part)), part))}
    print("\nCodes that send no model:\n")
    table(("", "bytes", "below the least sum"), *((name, f"{n:,}", f"{least.sum - n:,}") for name, n in alone.items()))
    print(WHAT_IT_SHOWS)
    return codes, alone


WHAT_IT_SHOWS = """
This shows that the sum has its least inside: coarser weights lose what is regular in the text, and finer ones, like a model
that has learned less, spend bytes that the text does not give back. The more a model has learned, the more of its digits are
worth sending. It does not show K(x), nor the least deficiency: each number is an upper bound. A packed model takes nearly as
many bytes after 0 steps as after 2,000, although a seed would describe the first: pack takes random weights for knowledge. And
the same network, learning as it codes, needs fewer bytes than any two parts, since it never spells its weights out [Blier and
Ollivier 2018]. (scratch and fast are other models, and gain by that, too.) The hull bounds the structure function at its
corners only."""


def plot(figure, results) -> None:
    """Model and code of each checkpoint and packing, the hull, and the codes that send no model."""
    codes, alone = results
    axes = figure.subplots()
    for steps in sorted({code.steps for code in codes}):
        points = [code[2:] for code in codes if code.steps == steps and code.fineness]
        axes.plot(*zip(*points), "o:", label=f"{steps:,} steps")
    axes.plot(*zip(*lower_hull([code[2:] for code in codes])), "k-", linewidth=1, label="lower hull")
    for name, size in alone.items():
        axes.plot(0, size, "*", label=name)
    axes.set(xlabel="bytes of the model", ylabel="bytes of the code", title="Two-part codes of one text")
    axes.legend(fontsize=7, loc=(0.57, 0.52))

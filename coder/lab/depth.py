"""14. The bits, block by block: how the code length of a text falls with depth.

After each block the residual stream goes through the network's own last norm and head, as if it ended there (the "logit lens"
[nostalgebraist 2020]).  That head was trained for the last block alone; it is compared with a norm and head trained anew for
each depth, on the text that the model has learned from ("probes" [Alain and Bengio 2016]).
"""

import numpy as np

from minigpt.blocks import make_norm
from minigpt.config import OptimizerConfig
from minigpt.layers import CrossEntropy, Layer, Linear
from minigpt.model import GPT
from minigpt.optimizer import Optimizer

from .material import bundled, table, text

BITS = np.log2(np.e)


class Probe(Layer):
    """A norm and a head, which start as those of the model."""

    def __init__(self, model: GPT):
        super().__init__()
        config = model.config
        self.norm, self.head = make_norm(config), Linear(config.n_embd, config.vocab_size, False, 0)
        self._loss = CrossEntropy()
        self.norm.gain.data[...], self.head.weight.data[...] = model.norm.gain.data, model.head.weight.data

    def loss(self, x: np.ndarray, targets: np.ndarray) -> float:
        """Mean loss in nats of targets (N,), predicted from the states x (N, C)."""
        return self._loss.forward(self.head.forward(self.norm.forward(x)), targets)

    def learn(self, x: np.ndarray, targets: np.ndarray, batch: int = 1024, rounds: int = 3) -> None:
        """Train with Adam on states x (N, C) and targets (N,), in the order in which they come."""
        steps = [(r, i) for r in range(rounds) for i in range(0, len(x) - batch + 1, batch)]
        optimizer = Optimizer(self, OptimizerConfig("adamw", learning_rate=3e-3, weight_decay=0.0, warmup=5), len(steps))
        for _, i in steps:
            for parameter in self.parameters().values():
                parameter.grad.fill(0)
            self.loss(x[i:i + batch], targets[i:i + batch])
            self.norm.backward(self.head.backward(self._loss.backward()))
            optimizer.step()


def states(model: GPT, ids: np.ndarray) -> list[np.ndarray]:
    """The residual stream (B * T, C) after the embedding and after each block, of the windows ids (B, T)."""
    found = [[] for _ in range(model.config.n_layer + 1)]
    for window in ids:
        x = model.tokens.forward(window)
        if model.positions:
            x += model.positions.forward(np.arange(len(window)))
        found[0].append(x.copy())
        for layer, block in enumerate(model.blocks):
            x = block.forward(x, None, len(window))
            found[layer + 1].append(x.copy())
    return [np.concatenate(parts) for parts in found]


def windows(data: bytes, count: int, T: int) -> tuple[np.ndarray, np.ndarray]:
    """ids and targets (count, T) of `count` adjacent windows at the start of data."""
    ids = np.frombuffer(data[:count * T + 1], np.uint8).astype(np.int64)
    return ids[:-1].reshape(count, T), ids[1:].reshape(count, T)


def run(data=None, count: int = 32, learned: int = 192) -> np.ndarray:
    """Returns bits per byte (2, n_layer + 1) at each depth: with the model's own head, and with one trained for that depth."""
    seen, held_out = text(data, least=count * 256 + 1)
    model = bundled().members[0]
    T = model.config.block_size
    (ids, targets), (old, old_targets) = windows(held_out, count, T), windows(seen, learned, T)
    own, anew = [], []
    for x, before in zip(states(model, ids), states(model, old)):
        probe = Probe(model)
        own.append(BITS * probe.loss(x, targets.reshape(-1)))
        probe.learn(before, old_targets.reshape(-1))
        anew.append(BITS * probe.loss(x, targets.reshape(-1)))
    whole = BITS * model.loss(ids[:8], targets[:8])
    partial = BITS * Probe(model).loss(states(model, ids[:8])[-1], targets[:8].reshape(-1))
    if abs(whole - partial) > 1e-6:
        raise RuntimeError(f"the last state gives {partial} bits, but the model {whole}: it is not taken apart rightly")
    table(("after block", "its own head: bits per byte", "a head trained for this depth", "change"),
          *((str(i) if i else "0 (embedding)", f"{a:.3f}", f"{b:.3f}", f"{c:+.3f}" if i else "-")
            for i, (a, b, c) in enumerate(zip(own, anew, np.diff(anew, prepend=anew[0])))))
    print(f"""
The first of the bundled model's three GPTs on {targets.size:,} held-out bytes; the heads learned from {old.size:,} bytes that
the model knew already. With a head of its own at each depth, it shows what a linear reader can take from the state. It does
not show what the state knows: a probe is a lower bound of that, and a block may prepare what only a later one makes legible.
The model's own head above the early blocks says how alike the depths are, not what they know.""")
    return np.array([own, anew])


def plot(figure, results) -> None:
    axes = figure.subplots()
    for bits, label in zip(results, ("the model's own head", "a head trained for each depth")):
        axes.plot(bits, "o-", label=label)
    axes.set(xlabel="blocks", ylabel="bits per byte, held out", title="The code length of a text falls with depth")
    axes.legend()

"""15. The network that this project grew from, and its leak.

It stacked PyTorch's TransformerDecoderLayers and called each as layer(x, x, tgt_mask=mask): the self-attention is causal, but
the cross-attention reads the whole window x as its memory, the future included.  `train_shakespeare.py --preset simple` is
that network without the cross-attention; `Leaky` has it, as commonly written.  Both train on the kernels of minigpt, so that
every figure is the same on every machine; the tests compare both with PyTorch's own layers.
"""

from dataclasses import replace
from functools import partial

import numpy as np

from minigpt.blocks import Attention, Block, Residual, make_norm
from minigpt.config import GPTConfig
from minigpt.kernels import attention
from minigpt.layers import Dropout
from minigpt.model import GPT
from minigpt.tokenizer import CharTokenizer
from minigpt.trainer import Trainer
from train_shakespeare import PRESETS

from ..container import CoderError
from .material import table, text

SHUT = np.float32(-1e4)     # added to a score before scaling, it makes the weight e^(SHUT / sqrt(D)), exactly 0 in float32
EXTRA = 16                  # extra channels in a head; the first of them carries SHUT


class CrossAttention(Attention):
    """Attention of each row to all rows of `memory`, of the same window, whether before it or after it.

    The kernel is causal, so it gets windows of 2 T: first the memory's keys and values, then the queries.  The keys in the
    queries' half are masked by an extra channel.
    """

    def forward(self, x: np.ndarray, memory: np.ndarray, T: int) -> np.ndarray:
        """y (B * T, C) of x and memory (B * T, C)."""
        q, k, v = self.query.forward(x), self.key.forward(memory), self.value.forward(memory)
        self.T, B = T, len(x) // T
        wide = [np.zeros((B, 2 * T, self.n_head, self.head_size + EXTRA), np.float32) for _ in "qkv"]
        wide[0][:, T:, :, self.head_size], wide[1][:, T:, :, self.head_size] = 1, SHUT
        for part, place, y in zip(wide, (slice(T, None), slice(T), slice(T)), (q, k, v)):
            part[:, place, :, :self.head_size] = y.reshape(B, T, self.n_head, -1)
        self.q, self.k, self.v = (part.reshape(2 * len(x), -1) for part in wide)
        self.out, self.peak, self.total = np.empty_like(self.q), *np.empty((2, B * self.n_head, 2 * T), np.float32)
        attention.attention_forward(self.q, self.k, self.v, self.n_head, 2 * T, self.scale, self.out, self.peak, self.total)
        return self.projection.forward(self._narrow(self.out, slice(T, None)), scratch=True)

    def _narrow(self, wide, place):
        return np.ascontiguousarray(self._heads(wide)[:, place, :, :self.head_size]).reshape(len(wide) // 2, -1)

    def _heads(self, wide):
        return wide.reshape(-1, 2 * self.T, self.n_head, self.head_size + EXTRA)

    def backward(self, dy: np.ndarray) -> np.ndarray:
        """dx; afterwards `dmemory` is the derivative with respect to the memory."""
        dout, dq, dk, dv = (np.zeros_like(self.q) for _ in range(4))
        self._heads(dout)[:, self.T:, :, :self.head_size] = self.projection.backward(dy).reshape(-1, self.T, self.n_head,
                                                                                                  self.head_size)
        attention.attention_backward(dout, self.q, self.k, self.v, self.out, self.peak, self.total, self.n_head, 2 * self.T,
                                     self.scale, dq, dk, dv)
        dmemory = self.key.backward(self._narrow(dk, slice(self.T)))
        self.dmemory = self.value.backward(self._narrow(dv, slice(self.T)), dmemory)
        return self.query.backward(self._narrow(dq, slice(self.T, None)))


class LeakyBlock(Block):
    """Self-attention, cross-attention to the block's own input, and the feed-forward layer, each followed by its norm."""

    def __init__(self, config: GPTConfig, name: str):
        super().__init__(config, None, name)
        std = 0.5 / np.sqrt(config.n_embd)
        self.cross = Residual(CrossAttention(config, None, std, std / np.sqrt(config.n_layer)), make_norm(config), False,
                              Dropout(config.dropout, f"dropout {name}.cross"))

    def forward(self, x, draw, T, cache=None, layer=0):
        memory = x
        x = self.attention.forward(x, draw, partial(self.attention.sublayer.forward, T=T))
        x = self.cross.forward(x, draw, partial(self.cross.sublayer.forward, memory=memory, T=T))
        return self.feed_forward.forward(x, draw, self.feed_forward.sublayer.forward)

    def backward(self, dy):
        dx = self.attention.backward(self.cross.backward(self.feed_forward.backward(dy)))
        return dx + self.cross.sublayer.dmemory


class Leaky(GPT):
    """The preset simple with the cross-attention.  It has no `step`: its past changes with each new token."""

    def __init__(self, config: GPTConfig, seed: int | None = 0):
        super().__init__(config, None)
        self.blocks = [LeakyBlock(config, f"blocks.{i}") for i in range(config.n_layer)]
        self._trained = tuple(self.parameters().values())
        if seed is not None:
            for name, parameter in self.parameters().items():
                parameter.initialise(seed, name)


def honest_losses(model: GPT, ids: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Nats (B, T) of each target given only the ids before it: one pass for each length, of which only the last row counts."""
    losses = []
    for t in range(1, ids.shape[1] + 1):
        model.loss(ids[:, :t], targets[:, :t])
        losses.append(model.losses[:, -1])
    return np.stack(losses, 1)


def run(data=None, lengths: tuple[int, ...] = (50, 2000), windows: int = 64) -> dict[tuple[str, int], np.ndarray]:
    """Train both networks for each number of steps.  Returns their training losses (steps,) in nats, by (name, steps)."""
    seen, held_out = text(data, least=32 * windows + 1)
    try:
        tokenizer = CharTokenizer((seen + held_out).decode())
    except UnicodeDecodeError:
        raise CoderError("the text is not UTF-8, so it has no characters to predict") from None
    config, optimizer, train = PRESETS["simple"]
    config, curves, rows = replace(config, vocab_size=tokenizer.vocab_size), {}, []
    for steps in lengths:
        for name, network in ("causal", GPT), ("leaky", Leaky):
            model = network(config, train.seed)
            trainer = Trainer(model, tokenizer, seen + held_out, replace(train, steps=steps), optimizer, ".")
            for _ in range(steps):
                trainer.step()
            chunk = trainer.validation_ids[:32 * windows + 1]
            ids, targets = chunk[:-1].reshape(-1, 32), chunk[1:].reshape(-1, 32)
            changed = ids.copy()
            changed[:, -1] = (changed[:, -1] + 1) % tokenizer.vocab_size
            moved = np.abs(model.forward(ids)[:, :-1] - model.forward(changed)[:, :-1]).max()
            curves[name, steps] = trainer.losses.copy()
            rows.append((name, f"{steps:,}", f"{sum(p.data.size for p in model.parameters().values()):,}",
                         f"{trainer.losses[-50:].mean():.2f}", f"{model.loss(ids, targets):.2f}",
                         f"{honest_losses(model, ids, targets).mean():.2f}", f"{moved:.3f}"))
    table(("network", "steps", "parameters", "training", "held out, whole window", "held out, honest", "leak"), *rows)
    print(f"""
Nats per character. training: mean of the last 50 steps; honest: each character given only those before it in the window; held
out: {windows * 32:,} characters; leak: how far a logit moves, at most, when a later token changes.
It shows that a loss that falls with the leak is no code length: a decoder has no future, and pays the honest one.
It does not show how PyTorch's own initial weights and random numbers would do: only the layers are the same.""")
    return curves


def plot(figure, results) -> None:
    axes = figure.subplots()
    for (name, steps), losses in results.items():
        width = min(25, len(losses))
        axes.plot(np.arange(width, len(losses) + 1), np.convolve(losses, np.ones(width) / width, "valid"),
                  label=f"{name}, {steps:,} steps")
    axes.set(xlabel="step", ylabel="training loss (nats per character)", title="A leak looks like learning")
    axes.legend()

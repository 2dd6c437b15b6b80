"""The whole network, top to bottom.

    ids (B, T) ──▶ token embedding (+ learned positions) ──▶ n_layer blocks ──▶ norm ──▶ head ──▶ logits (B, T, V)

    block, norm first:   x = x + attention(norm(x)),   x = x + feed_forward(norm(x))
"""

import numpy as np

from .blocks import Block, Rotary, make_norm
from .config import GPTConfig
from .incremental import Cache, NetworkWeights, decode_step, pack_weights
from .kernels.threads import threads_for
from .layers import CrossEntropy, Draw, Dropout, Embedding, Layer, Linear, TiedHead

TOKENS_PER_PASS = 512       # that go through the network at once where nothing needs more; bounds the memory


class GPT(Layer):
    """A GPT with initial weights from `seed`; None leaves the matrices at zero, for weights that are loaded next.

    The same config, seed and calls give the same bits on every machine, with any number of threads.
    """

    def __init__(self, config: GPTConfig, seed: int | None = 0):
        super().__init__()
        C, self.config = config.n_embd, config
        self.tokens = Embedding(config.vocab_size, C, 0.02 if config.tied else 0.5)
        self.positions = Embedding(config.block_size, C, 0.02 if config.tied else 0.1) if config.position == "learned" else None
        self._dropout = Dropout(config.dropout, "dropout embedding")
        self.rotary = None
        if config.position == "rotary":
            self.rotary = Rotary(config.block_size, config.head_size, config.rope_theta, config.rope_factors)
        self.blocks = [Block(config, self.rotary, f"blocks.{i}") for i in range(config.n_layer)]
        for block in self.blocks[1:]:
            block.share_buffers(self.blocks[0])
        self.norm = make_norm(config) if config.norm_order != "last" else None      # else the last block has normalised
        self.head = TiedHead(self.tokens) if config.tied else Linear(C, config.vocab_size, config.head_bias, 0.02)
        self._loss = CrossEntropy()
        self.frozen: NetworkWeights | None = None   # the weights packed, if `freeze` did that
        self.quantised = False
        self._latest: dict[str, GPT | None] = {"loss of": None}     # whose `loss` saved the activations; buffers may be shared
        self._trained = tuple(self.parameters().values())       # found once: their memory is ordered by it
        if seed is not None:
            for name, parameter in self.parameters().items():
                parameter.initialise(seed, name)

    @property
    def members(self) -> list["GPT"]:
        """The models that are trained on their own: this one.  (An Ensemble has several.)"""
        return [self]

    def copy(self) -> "GPT":
        """A model with the same config and weights, which can be trained without changing this one."""
        model = GPT(self.config, seed=None)
        for name, parameter in self.parameters().items():
            model.parameters()[name].data[...] = parameter.data
        return model

    def freeze(self) -> "GPT":
        """Keep the matrices only in packed form, as `step` reads them: for a model that only predicts, with the same bits.

        Its caches need no copy of the weights, and all blocks share the buffers of one.  It can no longer be trained
        (`backward` raises RuntimeError), only copied.  Returns the model.
        """
        if self.frozen is None:
            self.frozen = pack_weights(self, release=True, quantised=self.quantised)
            for block in self.blocks[1:]:
                block.share_buffers(self.blocks[0], saved=True)
        return self

    def quantise(self) -> "GPT":
        """Freeze the model with matrices of 8-bit integers, and compute with them: its predictions change a little, and it
        takes a quarter of the memory.  Activations, keys and values are quantised as they are computed (see
        kernels/quantised.py).  It cannot be copied.  Returns the model.  RuntimeError where it was frozen before."""
        if self.frozen is not None and not self.quantised:
            raise RuntimeError("a frozen model cannot be quantised: quantise a copy of it")
        self.quantised = True
        return self.freeze()

    def share_buffers(self, other: "GPT", saved: bool = False) -> None:      # type: ignore[override]
        super().share_buffers(other, saved)
        if saved:
            self._latest = other._latest

    def forward(self, ids: np.ndarray, draw: Draw | None = None, cache: Cache | None = None) -> np.ndarray:
        """Logits (B, T, V) of the windows ids (B, T), T <= block_size: those at t predict the token after ids[:, : t + 1].

        draw (seed, step) turns dropout on.  With a cache from `new_cache`, this is the prefill: the tokens continue those that
        the cache holds, to which they attend, and it receives their keys and values; another `forward` or `step` goes on from
        there.  The bits are those of one pass over the whole.  ValueError where an id or a shape is out of range.
        """
        B, T = self._check(ids, 2, cache)
        logits = np.empty((B, T, self.config.vocab_size), np.float32)
        rows = max(1, TOKENS_PER_PASS // T) if draw is None else B      # dropout's random numbers count through all rows
        for i in range(0, B, rows):
            part = ids[i:i + rows]
            with self._threads(part):
                self._logits(part, draw, cache and cache.of(i, i + rows), logits[i:i + rows].reshape(part.size, -1))
        if cache is not None:
            cache.advance(T)
        return logits

    def _check(self, ids, dimensions, cache=None, name="ids"):
        if ids.ndim != dimensions or ids.size == 0 or ids.dtype.kind not in "iu":
            raise ValueError(f"{name} must be integers of {dimensions} dimensions, none of them 0, but are {ids.dtype} "
                             f"of shape {ids.shape}")
        if dimensions == 2 and ids.shape[1] > self.config.block_size:
            raise ValueError(f"a window of {ids.shape[1]} tokens is longer than block_size, {self.config.block_size}")
        if ids.min() < 0 or ids.max() >= self.config.vocab_size:
            raise ValueError(f"{name} must lie in 0 .. {self.config.vocab_size - 1}, but reach from {ids.min()} to {ids.max()}")
        if cache is not None and cache.sequences != len(ids):
            raise ValueError(f"the cache holds {cache.sequences} sequences, but {name} have shape {ids.shape}")
        if cache is not None:
            cache.check_room(ids.shape[1] if dimensions == 2 else 1)
        return ids.shape

    def _logits(self, ids, draw, cache=None, out=None):
        B, T = ids.shape
        self._latest["loss of"] = None
        if self.quantised and cache is None:                # keys and values are rounded as a cache holds them
            cache = Cache(self, B, T)
        x = self.tokens.forward(ids.reshape(-1).astype(np.int64))               # (N, C)
        if self.positions:
            start = cache.position if cache else 0
            x += self.positions.forward(np.tile(np.arange(start, start + T), B))
        x = self._dropout.forward(x, draw)
        for layer, block in enumerate(self.blocks):
            x = block.forward(x, draw, T, cache, layer)
        if self.norm:
            x = self.norm.forward(x)
        return self.head.forward(x, out=out)                                    # (N, V)

    def loss(self, ids: np.ndarray, targets: np.ndarray, draw: Draw | None = None) -> float:
        """Mean cross-entropy, in nats per token, of targets (B, T) given the windows ids (B, T).

        Afterwards `losses` (B, T) holds the loss of each token.  ValueError where an id or a shape is out of range.
        """
        B, T = self._check(ids, 2)
        if targets.shape != ids.shape:
            raise ValueError(f"targets have shape {targets.shape}, but ids have {ids.shape}")
        self._check(targets, 2, name="targets")
        with self._threads(ids):
            loss = self._loss.forward(self._logits(ids, draw), targets.reshape(-1).astype(np.int64))
        self.losses = self._loss.losses.reshape(B, T).copy()
        self._latest["loss of"] = self
        return loss

    # The lines of _logits from the last to the first.
    def backward(self, batch: int | None = None, accumulate: bool = False) -> None:
        """Set every parameter's grad to the derivative of the last `loss`; with `accumulate`, add it to what is there.

        Gradient accumulation takes a batch a part at a time: `batch` is the number of windows in all parts, over which the mean
        is taken.  The gradients have the bits of the whole batch in one pass, since every sum over rows goes on where it ended;
        but not with tied weights, whose gradient is two such sums, nor with dropout.

        RuntimeError unless `loss` was the last pass through the network (`step` does not count): any other pass overwrites
        the activations that it saved, and between two backward passes the weights may have changed.
        """
        if self.frozen is not None:
            raise RuntimeError("a frozen model cannot be trained: train a copy of it")
        if self._latest["loss of"] is not self:
            raise RuntimeError("backward needs the activations of a loss computed just before it: call loss() again first")
        self._latest["loss of"] = None
        if not accumulate:
            for parameter in self._trained:
                parameter.grad.fill(0)
        with self._threads(self.losses):
            dx = self.head.backward(self._loss.backward(batch and batch * self.losses.shape[1]))
            if self.norm:
                dx = self.norm.backward(dx)
            for block in reversed(self.blocks):
                dx = block.backward(dx)
            dx = self._dropout.backward(dx)
            if self.positions:
                self.positions.backward(dx)
            self.tokens.backward(dx)

    def _threads(self, rows):
        return threads_for(rows.size * self.config.n_embd ** 2)

    def new_cache(self, sequences: int, length: int | None = None) -> Cache:
        """An empty cache for the keys and values of `sequences` sequences (at least 1) that advance in lockstep.

        It has room for `length` tokens of each, 1 .. block_size, by default block_size.  Its steps use the weights as they are
        now, whatever training does to them later.  ValueError where the length is out of range.
        """
        return Cache(self, sequences, length)

    def step(self, ids: np.ndarray, cache: Cache) -> np.ndarray:
        """Decode: logits (S, V) after one more token ids (S,) of each sequence, bit for bit those of the whole window.

        ValueError where an id or a shape is out of range, or the cache is full.
        """
        self._check(ids, 1, cache)
        return decode_step(ids.astype(np.int64), cache)

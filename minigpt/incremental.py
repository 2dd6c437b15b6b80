"""Incremental decoding: the cache of keys and values, and what a decode step reads of a model."""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING

import numpy as np

from .kernels.attention import HeldFloats, hold_floats
from .kernels.decode import ACTIVATIONS, NetworkWeights, step
from .kernels.matmul import WIDTH, matmul_packed, pack, panels_of
from .kernels.threads import threads_for

if TYPE_CHECKING:
    from .kernels.quantised import Quantised
    from .model import GPT

FEW_ROWS, WIDE = 32, 320          # a step of so few rows through a network of so many channels is shared out by columns


class Cache:
    """The keys and values of `held` tokens, for each layer, of S sequences that advance in lockstep.

    And the weights with which the next ones are computed: the model's when the cache was made.

    A new token attends to the tokens held when it comes, and to itself; where several come at once, to the tokens held when
    they come, to those of them that precede it, and to itself.  `position` counts all that have ever come, held or dropped:
    there the next one stands.  Keys are held rotated by their positions, and only the distance matters to a query.
    `kept` holds them: HeldFloats, or HeldIntegers where the model is quantised.
    """

    def __init__(self, model: GPT, sequences: int, length: int | None = None):
        c, length = model.config, model.config.block_size if length is None else length
        if not isinstance(length, int) or not 1 <= length <= c.block_size:
            raise ValueError(f"a cache has room for 1 to block_size ({c.block_size}) tokens, but not for {length!r}")
        self.weights = model.frozen or pack_weights(model)
        self.positions, self.vocab_size = c.block_size, c.vocab_size
        self.held, self.position, self.length = 0, 0, length
        self.first, self.sequences = 0, sequences                               # of those that `kept` has
        hold = hold_floats
        if model.quantised:                         # imported only then: importing these kernels compiles them, for seconds
            from .kernels.quantised_attention import hold_integers as hold
        self.kept = hold(c.n_layer, sequences, c.kv_heads, length, c.head_size)

    def of(self, start: int, stop: int) -> Cache:
        """A view of the sequences [start, stop)."""
        part = copy(self)
        part.first, part.sequences = self.first + start, min(stop, self.sequences) - start
        return part

    def keep(self, sequences: np.ndarray) -> np.ndarray:
        """Go on with these sequences, in ascending order: some may be missing, some there several times, which makes copies.

        Returns their new order, in which as few as possible are moved.  There must be room for as many.
        """
        order = np.full(len(sequences), -1)
        staying = np.flatnonzero((np.diff(sequences, prepend=-1) > 0) & (sequences < len(order)))
        order[sequences[staying]] = staying
        gaps = np.flatnonzero(order < 0)
        order[gaps] = np.setdiff1d(np.arange(len(order)), staying)
        kept = self.kept
        if isinstance(kept, HeldFloats):
            kept = kept.keys[..., :self.held], kept.values[..., :self.held, :]
        for array in kept:
            array[:, self.first + gaps] = array[:, self.first + sequences[order[gaps]]]
        self.sequences = len(order)
        return order

    def restart(self, sequences: int) -> None:
        """Forget all tokens, for so many other sequences: at most those that the cache was made for."""
        self.held, self.position, self.sequences = 0, 0, sequences

    def check_room(self, count: int) -> None:
        """ValueError unless `count` more tokens fit in."""
        if self.position + count > self.positions:
            raise ValueError(f"the window is full: block_size is {self.positions} tokens, {self.position} have come, so "
                             f"{count} more have no position: begin with a new cache")
        if self.held + count > self.length:
            raise ValueError(f"the cache is full: it has room for {self.length} tokens and holds {self.held}, so "
                             f"{count} more do not fit: drop some first")

    def advance(self, count: int) -> None:
        """Count the tokens whose keys and values all layers have appended."""
        self.held, self.position = self.held + count, self.position + count

    def drop(self, count: int, spared: int = 0) -> None:
        """Forget the `count` oldest tokens after the first `spared`.  The others keep their positions, and make room.

        Many models attend to the first token of all when nothing else matters, and predict badly once it is gone: spare it.
        [Xiao et al. 2024, attention sinks]  ValueError if fewer are held.
        """
        if not (0 <= count and 0 <= spared and spared + count <= self.held):
            raise ValueError(f"the cache holds {self.held} tokens, so {count} after {spared} cannot be dropped")
        if isinstance(self.kept, HeldFloats):
            for keys, values in zip(*self.kept):                                # by layers: NumPy copies what overlaps
                keys[..., spared:self.held - count] = keys[..., spared + count:self.held]
                values[:, :, spared:self.held - count] = values[:, :, spared + count:self.held]
        else:
            from .kernels.quantised_attention import move_integers
            move_integers(self.kept, spared + count, self.held, spared)
        self.held -= count


class FrozenMatrix:
    """A parameter that is held only as the kernels read it: the panels of a matrix of that shape, or of its transpose."""

    def __init__(self, panels: np.ndarray | Quantised, shape: tuple[int, int], transposed: bool):
        self.panels, self.shape, self.transposed = panels, shape, transposed

    def data(self) -> np.ndarray:
        """A read-only copy of the matrix.  RuntimeError where it was quantised."""
        if not isinstance(self.panels, np.ndarray):
            raise RuntimeError("a quantised model does not have its weights any more")
        rows, columns = self.shape
        if self.transposed:
            data = self.panels.transpose(0, 2, 1).reshape(-1, columns)[:rows].copy()
        else:
            data = self.panels.transpose(1, 0, 2).reshape(rows, -1)[:, :columns].copy()
        data.flags.writeable = False
        return data

    def times(self, x: np.ndarray, out: np.ndarray) -> np.ndarray:
        """out = x @ what the panels hold.  Returns out."""
        if isinstance(self.panels, np.ndarray):
            return matmul_packed(x, self.panels, out)
        from .kernels.quantised import matmul_quantised
        return matmul_quantised(x, self.panels, out)

    def rows(self, ids: np.ndarray, out: np.ndarray) -> np.ndarray:
        """out (N, C) = the rows ids (N,) of a table, whose transpose the panels hold.  Returns out."""
        if isinstance(self.panels, np.ndarray):
            out[...] = self.panels[ids // WIDTH, :, ids % WIDTH]
        else:
            out[...] = self.panels.columns(ids)[:, :out.shape[1]]
        return out


def decode_step(ids: np.ndarray, cache: Cache) -> np.ndarray:
    """Logits (S, V) that follow the tokens ids (S,) int64; the cache, which must have room, receives their keys and values."""
    S, C = len(ids), cache.weights.attention_norm.shape[1]
    logits = np.empty((S, cache.vocab_size), np.float32)
    by_columns = S <= FEW_ROWS and C >= WIDE
    with threads_for((4 if by_columns else 1) * S * C * C) as threads:
        down, across = (1, threads) if by_columns else (threads, 1)
        step(ids, cache.weights, cache.kept, cache.first, cache.held, cache.position, down, across, logits)
    cache.advance(1)
    return logits


def pack_weights(model: GPT, release: bool = False, quantised: bool = False) -> NetworkWeights:
    """The model's weights as a decode step reads them: those of all blocks in one array each, the matrices packed.

    release: the model then has no other copy of its matrices (see GPT.freeze).  quantised: they become integers of 8 bits.
    """
    config, parameters = model.config, model.parameters()
    if quantised:
        from .kernels.quantised import Quantised, empty, quantise
    none = np.zeros((0, config.n_embd), np.float32)

    def of_blocks(name):
        """The parameters of that name, one for each block, or none."""
        return [parameters[f"blocks.{i}.{name}"] for i in range(config.n_layer) if f"blocks.{i}.{name}" in parameters]

    def vectors(name):
        """(n_layer, C) of a vector that each block has, or length 0."""
        found = of_blocks(name)
        return np.stack([vector.data for vector in found]) if found else none

    def norm(name):
        return vectors(f"{name}.gain"), vectors(f"{name}.bias") if config.bias or config.norm == "rms" else zeros

    def linear(name):
        matrices = of_blocks(f"{name}.weight")
        K, M = matrices[0].shape if matrices else (0, 0)
        return packed(matrices, (K, M)), vectors(f"{name}.bias")

    def packed(matrices, shape, transposed=False):
        """Matrices of that shape (K, M), packed, with the number of the matrix as first axis."""
        n, (K, M) = len(matrices), shape
        stack = empty(shape, n) if quantised else np.empty((n, panels_of(M), K, WIDTH), np.float32)
        for i, matrix in enumerate(matrices):
            data = matrix.data.T if transposed else matrix.data
            own = quantise(data, Quantised(*(a[i] for a in stack))) if quantised else pack(data, stack[i])
            if release:
                matrix.data, matrix.frozen = None, FrozenMatrix(own, matrix.shape, transposed)
        return stack

    zeros = np.zeros((config.n_layer, config.n_embd), np.float32)       # the biases of a LayerNorm without any
    rotary, last_norm, last_norm_bias = model.rotary, none, none
    if model.norm:
        last_norm = model.norm.gain.data[None].copy()
        last_norm_bias = none if config.norm == "rms" else model.norm.bias.data[None].copy() if config.bias else zeros[:1]
    tables = (rotary.cosine, rotary.sine) if rotary else (none, none)
    positions = model.positions.weight.data.copy() if model.positions else none
    tokens = none if config.tied else model.tokens.weight.data if release else model.tokens.weight.data.copy()
    head = model.tokens.weight if config.tied else model.head.weight
    return NetworkWeights(
        tokens, positions, np.float32(config.norm_epsilon), config.norm_order == "first",
        *norm("attention.norm"), *linear("attention.query"), *linear("attention.key"),
        config.kv_heads * config.head_size, *linear("attention.value"),
        vectors("attention.query_norm.gain"), vectors("attention.key_norm.gain"), *tables,
        np.float32(1) / np.sqrt(np.float32(config.head_size)), *linear("attention.projection"),
        *norm("feed_forward.norm"), *linear("feed_forward.gate"), *linear("feed_forward.expand"),
        ACTIVATIONS[config.activation], config.hidden, *linear("feed_forward.contract"), last_norm, last_norm_bias,
        packed([head], (config.n_embd, config.vocab_size), transposed=config.tied),
        model.head.bias.data[None].copy() if config.head_bias else none)

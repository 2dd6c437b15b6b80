"""Incremental decoding: the cache of keys and values, and what a decode step reads of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .kernels.decode import ACTIVATIONS, NetworkWeights, step_by_columns, step_by_rows
from .kernels.matmul import pack
from .kernels.threads import threads_for

if TYPE_CHECKING:
    from .model import GPT

FEW_ROWS, WIDE = 32, 320          # a step of so few rows through a network of so many channels is shared out by columns


class Cache:
    """The keys and values of the tokens before, for each layer, of S sequences that advance in lockstep.

    And the weights with which they were computed and the next ones will be: the model's when the cache was made.
    """

    def __init__(self, model: GPT, sequences: int):
        c, self.weights = model.config, pack_weights(model)
        D, width = c.n_embd // c.n_head, (c.block_size + 15) // 16 * 16         # whole lanes
        self.position, self.sequences = 0, sequences
        self.keys = np.zeros((c.n_layer, sequences, c.n_head, D, width), np.float32)
        self.values = np.zeros((c.n_layer, sequences, c.n_head, c.block_size, D), np.float32)


def decode_step(ids: np.ndarray, cache: Cache) -> np.ndarray:
    """Logits (S, V) that follow the tokens ids (S,) int64; the cache, which must have room, receives their keys and values."""
    (V, C), S = cache.weights.tokens.shape, len(ids)
    logits = np.empty((S, V), np.float32)
    step, work = (step_by_columns, 4 * S * C * C) if S <= FEW_ROWS and C >= WIDE else (step_by_rows, S * C * C)
    with threads_for(work) as threads:
        step(ids, cache.weights, cache.keys, cache.values, cache.position, threads, logits)
    cache.position += 1
    return logits


def pack_weights(model: GPT) -> NetworkWeights:
    """The model's weights as a decode step reads them: those of all blocks in one array each, the matrices packed."""
    config, parameters = model.config, model.parameters()
    D, none = config.n_embd // config.n_head, np.zeros((0, config.n_embd), np.float32)

    def vectors(name):
        """(n_layer, C) of a vector that each block has, or length 0."""
        found = [parameters[f"blocks.{i}.{name}"].data for i in range(config.n_layer) if f"blocks.{i}.{name}" in parameters]
        return np.stack(found) if found else none

    def norm(name):
        return vectors(f"{name}.gain"), vectors(f"{name}.bias") if config.bias or config.norm == "rms" else zeros

    def linear(name):
        matrices = [parameters[f"blocks.{i}.{name}.weight"].data for i in range(config.n_layer)]
        return np.stack([pack(matrix) for matrix in matrices]), vectors(f"{name}.bias")

    zeros = np.zeros((config.n_layer, config.n_embd), np.float32)       # the biases of a LayerNorm without any
    rotary, last_norm, last_norm_bias = model.rotary, none, none
    if model.norm:
        last_norm = model.norm.gain.data[None].copy()
        last_norm_bias = none if config.norm == "rms" else model.norm.bias.data[None].copy() if config.bias else zeros[:1]
    tables = (rotary.cosine, rotary.sine) if rotary else (none, none)
    return NetworkWeights(
        model.tokens.weight.data.copy(), model.positions.weight.data.copy() if model.positions else none, config.norm_order == "first",
        *norm("attention.norm"), *linear("attention.query"), *linear("attention.key"), *linear("attention.value"),
        vectors("attention.query_norm.gain"), vectors("attention.key_norm.gain"), *tables, np.float32(1) / np.sqrt(np.float32(D)),
        *linear("attention.projection"), *norm("feed_forward.norm"), *linear("feed_forward.expand"),
        ACTIVATIONS[config.activation], *linear("feed_forward.contract"), last_norm, last_norm_bias,
        pack(model.tokens.weight.data.T if config.tied else model.head.weight.data))

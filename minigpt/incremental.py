"""Incremental decoding: the cache of keys and values, and what a decode step reads of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .kernels.decode import ACTIVATIONS, NetworkWeights, step_by_columns, step_by_rows
from .kernels.runtime import threads_for

if TYPE_CHECKING:
    from .blocks import Rotary
    from .model import GPT

FEW_ROWS, WIDE = 32, 320          # a step of so few rows through a network of so many channels is shared out by columns


class Cache:
    """The keys and values of the tokens before, for each layer, of S sequences that advance in lockstep."""

    def __init__(self, n_layer: int, n_head: int, head_size: int, block_size: int, sequences: int):
        width = (block_size + 15) // 16 * 16         # whole lanes
        self.position, self.sequences = 0, sequences
        self.keys = np.zeros((n_layer, sequences, n_head, head_size, width), np.float32)
        self.values = np.zeros((n_layer, sequences, n_head, block_size, head_size), np.float32)


def decode_step(ids: np.ndarray, weights: NetworkWeights, cache: Cache) -> np.ndarray:
    """Logits (S, V) that follow the tokens ids (S,) int64; the cache, which must have room, receives their keys and values."""
    (V, C), S = weights.tokens.shape, len(ids)
    logits = np.empty((S, V), np.float32)
    step, work = (step_by_columns, 4 * S * C * C) if S <= FEW_ROWS and C >= WIDE else (step_by_rows, S * C * C)
    with threads_for(work) as threads:
        step(ids, weights, cache.keys, cache.values, cache.position, threads, logits)
    cache.position += 1
    return logits


def stack_weights(model: GPT, rotary: Rotary | None) -> NetworkWeights:
    """The model's weights as a decode step reads them: those of all blocks in one array each.

    The parameters become views of these arrays, so whatever training writes in them, the next step sees.
    """
    config, stacks = model.config, _stack(model.blocks)
    if model.norm:
        stacks.update(_stack([model.norm], "last."))
    zeros = np.zeros((config.n_layer, config.n_embd), np.float32) if config.norm == "layer" else None

    def norm(name):
        return stacks[f"{name}.gain"], stacks.get(f"{name}.bias", zeros)

    def linear(name):
        return stacks[f"{name}.weight"], stacks.get(f"{name}.bias")

    attention_norm, attention_norm_bias = norm("attention.norm")
    query, query_bias = linear("attention.query")
    key, key_bias = linear("attention.key")
    value, value_bias = linear("attention.value")
    projection, projection_bias = linear("attention.projection")
    feed_forward_norm, feed_forward_norm_bias = norm("feed_forward.norm")
    expand, expand_bias = linear("feed_forward.expand")
    contract, contract_bias = linear("feed_forward.contract")
    last_norm, last_norm_bias = norm("last") if model.norm else (None, None)
    return NetworkWeights(
        model.tokens.weight.data, model.positions.weight.data if model.positions else None, config.norm_order == "first",
        attention_norm, attention_norm_bias, query, query_bias, key, key_bias, value, value_bias,
        stacks.get("attention.query_norm.gain"), stacks.get("attention.key_norm.gain"),
        rotary.cosine if rotary else None, rotary.sine if rotary else None, model.blocks[0].attention.sublayer.scale,
        projection, projection_bias, feed_forward_norm, feed_forward_norm_bias, expand, expand_bias,
        ACTIVATIONS[config.activation], contract, contract_bias, last_norm, last_norm_bias,
        model.tokens.weight.data.T if config.tied else model.head.weight.data)


def _stack(layers, prefix=""):
    """Move the parameters of layers of the same form into arrays with the layer's number as first axis: name -> array."""
    stacks = {}
    for name in layers[0].parameters():
        parameters = [layer.parameters()[name] for layer in layers]
        stacks[prefix + name] = np.stack([parameter.data for parameter in parameters])
        for parameter, data in zip(parameters, stacks[prefix + name]):
            parameter.data = data
    return stacks

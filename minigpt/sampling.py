"""Sampling: text from a model, one token at a time."""

import codecs
from collections.abc import Iterator

import numpy as np

from . import rng
from .bpe import BPETokenizer
from .kernels.softmax import softmax_row
from .model import GPT
from .tokenizer import ByteTokenizer, CharTokenizer


def choose(logits: np.ndarray, temperature: float, top_k: int, top_p: float, word: int) -> int:
    """A token id drawn from softmax(logits (V,) / temperature), with the random integer `word` of 64 bits.

    temperature 0 takes the likeliest token.  top_k keeps the k likeliest (0: all); of these, top_p keeps the fewest whose
    probabilities sum to p.  The probabilities are first rounded to integers of 24 bits, so that no sum is inexact.
    """
    if not np.isfinite(logits.max()):
        raise ValueError("the model's logits are not finite numbers: it cannot be sampled from")
    if temperature == 0:
        return int(np.argmax(logits))
    weights = logits - logits.max()
    softmax_row(weights, 0, weights.size, weights.size, np.float32(1.0 / temperature))
    counts = (weights * np.float32(2 ** 24)).astype(np.int64)
    order = np.argsort(-counts, kind="stable")
    if top_k:
        order = order[:top_k]
    cumulative = np.cumsum(counts[order])
    if top_p < 1:
        order = order[:np.searchsorted(cumulative, int(top_p * int(cumulative[-1])), side="left") + 1]
    total = int(cumulative[len(order) - 1])
    return int(order[np.searchsorted(cumulative, word % total, side="right")])


def generate(model: GPT, ids: np.ndarray, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0,
             seed: int = 0) -> Iterator[int]:
    """Token ids that continue ids (n,), n >= 1, without end.

    When the window is full, its second half becomes the context of the next one.
    ValueError where temperature < 0, top_k < 0 or top_p is outside (0, 1].
    """
    if not 0 <= temperature < float("inf") or 0 < temperature < 1e-6:
        raise ValueError(f"temperature must be 0 or from 0.000001 up, but is {temperature}")
    if top_k < 0:
        raise ValueError(f"top-k must be at least 0, but is {top_k}")
    if not 0 < top_p <= 1:
        raise ValueError(f"top-p must be above 0 and at most 1, but is {top_p}")
    block_size = model.config.block_size
    window, cache, count = list(ids[-block_size:]), None, 0
    while True:
        if cache is None or cache.position == block_size:
            if cache is not None:
                window = window[-max(1, block_size // 2):]
            cache = model.new_cache(1)
            logits = model.forward(np.array([window]), cache=cache)[0, -1]
        else:
            logits = model.step(np.array(window[-1:]), cache)[0]
        high, low = rng.words(seed, "sampling", count, 2).tolist()
        token = choose(logits, temperature, top_k, top_p, high << 32 | low)
        yield token
        window.append(token)
        count += 1


def stream(model: GPT, tokenizer: ByteTokenizer | CharTokenizer | BPETokenizer, prompt: str = "", tokens: int = 500,
           stop: str = "", **options) -> Iterator[str]:
    """Pieces of text (str) that follow the prompt, as they are made: at most `tokens` tokens, and none from `stop` on.

    An empty prompt starts as if after a line break, or with the token that starts a text, where the tokenizer has one.  A
    control token ends the text.  ValueError where the tokenizer cannot encode the prompt or a number is out of range.
    """
    if tokens < 0:
        raise ValueError(f"tokens must be at least 0, but is {tokens}")
    if (start := getattr(tokenizer, "start", None)) is not None:
        ids = np.array([start, *tokenizer.encode(prompt)])
    else:
        ids = tokenizer.encode(prompt or "\n") if prompt or "\n" in getattr(tokenizer, "stoi", "\n") else np.zeros(1, np.int64)
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    held = ""                                            # what may turn out to be the beginning of the stop text
    for _, token in zip(range(tokens), generate(model, ids, **options)):
        if not (piece := tokenizer.decode_bytes([token])):
            break
        held += decoder.decode(piece)
        if stop and stop in held:
            yield held[:held.index(stop)]
            return
        keep = next((n for n in range(min(len(stop) - 1, len(held)), 0, -1) if stop.startswith(held[-n:])), 0)
        if len(held) > keep:
            yield held[:len(held) - keep]
            held = held[len(held) - keep:]
    yield held + decoder.decode(b"", final=True)

"""Ensemble averaging: several GPTs that predict the mean of their probabilities.  [Hansen and Salamon 1990]

Each member overfits in its own way to a text that is too short for it; the mean keeps what they agree on.
"""

from collections.abc import Iterable

import numpy as np
from numba import njit

from .kernels.lanes import LANES, ONE, ZERO, load_part, log, maximum, splat, store_part
from .kernels.softmax import softmax_row
from .kernels.threads import parallel_for
from .layers import Parameter
from .model import GPT

SMALLEST_SUM = np.float32(2.0 ** -100)      # of probabilities: keeps the logarithm finite where every member's underflows to 0


class Ensemble:
    """Predicts as a GPT does (forward, new_cache, step).  Its members are trained on their own, one after the other: those with
    the same config share their buffers.

    ValueError unless there are at least two, with the same vocab_size and block_size.
    """

    def __init__(self, members: Iterable[GPT]):
        self.members = list(members)
        sizes = {(member.config.vocab_size, member.config.block_size) for member in self.members}
        if len(self.members) < 2 or len(sizes) > 1:
            raise ValueError("an ensemble needs at least two models, with the same vocab_size and the same block_size")
        self.config = self.members[0].config        # for these two sizes; everything else may differ from member to member
        for member in self.members[1:]:
            if member.config == self.config:
                member.share_buffers(self.members[0], saved=True)

    def copy(self) -> "Ensemble":
        """Copies of the members, which can be trained without changing these."""
        return Ensemble(member.copy() for member in self.members)

    def quantise(self) -> "Ensemble":
        """Quantise the members, as GPT.quantise.  Returns the ensemble."""
        for member in self.members:
            member.quantise()
        return self

    def parameters(self) -> dict[str, Parameter]:
        """Name -> Parameter, of all members."""
        return {f"{i}.{name}": parameter for i, member in enumerate(self.members)
                for name, parameter in member.parameters().items()}

    def forward(self, ids: np.ndarray, cache: list | None = None) -> np.ndarray:
        """Logits (B, T, V) of ids (B, T), as GPT.forward: the logarithms of the sums of the members' probabilities."""
        caches = cache or [None] * len(self.members)
        return _log_of_sum(member.forward(ids, cache=c) for member, c in zip(self.members, caches))

    def new_cache(self, sequences: int, length: int | None = None) -> list:
        """A cache for each member, as GPT.new_cache."""
        return [member.new_cache(sequences, length) for member in self.members]

    def step(self, ids: np.ndarray, cache: list) -> np.ndarray:
        """Logits (S, V) after one more token ids (S,), as GPT.step."""
        return _log_of_sum(member.step(ids, c) for member, c in zip(self.members, cache))


def combine(models: Iterable[GPT]) -> GPT | Ensemble:
    """One model of several, or of one that model itself."""
    models = list(models)
    return models[0] if len(models) == 1 else Ensemble(models)


def _log_of_sum(logits):
    """log of the sum of the softmaxes of logits, an iterable of arrays (..., V)."""
    total = None
    for own in logits:
        total = np.zeros_like(own) if total is None else total
        _add_probabilities(own.reshape(-1, own.shape[-1]), total.reshape(-1, own.shape[-1]))
    _logarithm(total)
    return total


@njit
def _add_row(i, logits, total):
    V = logits.shape[1]
    _, whole = softmax_row(logits, i * V, V, V, ONE)
    for c in range(0, V, LANES):
        p = load_part(logits, i * V + c, V - c, ZERO) / splat(whole)
        store_part(total, i * V + c, V - c, load_part(total, i * V + c, V - c, ZERO) + p)


@njit(cache=True)
def _add_probabilities(logits, total):
    """total (N, V) += softmax(logits (N, V)).  Overwrites logits."""
    parallel_for(len(logits), _add_row, logits, total)


@njit
def _logarithm_of_lanes(i, x):
    at = i * LANES
    store_part(x, at, x.size - at, log(maximum(load_part(x, at, x.size - at, ONE), splat(SMALLEST_SUM))))


@njit(cache=True)
def _logarithm(x):
    """x = log(max(x, SMALLEST_SUM)), any shape."""
    parallel_for((x.size + LANES - 1) // LANES, _logarithm_of_lanes, x)

"""Several GPTs with one voice: the mean of their probabilities.

Each has learned its own accidents from a text that is too short for it; what they agree on is what can be learned.
[Hansen and Salamon 1990]
"""

import numpy as np
from numba import njit, prange

from .kernels.lanes import LANES, ONE, ZERO, load_part, log, maximum, splat, store_part
from .kernels.softmax import softmax_row
from .model import GPT

LEAST = np.float32(2.0 ** -100)      # a probability that no member can tell from 0; its logarithm is finite


class Ensemble:
    """As a model, for whoever asks for predictions.  Its members, GPTs of the same tokens and windows, learn on their own.

    ValueError where there are fewer than two, or where they do not fit together.
    """

    def __init__(self, members):
        self.members = list(members)
        forms = {(member.config.vocab_size, member.config.block_size) for member in self.members}
        if len(self.members) < 2 or len(forms) > 1:
            raise ValueError("an ensemble needs two models or more, with the same number of tokens and the same block_size")
        self.config = self.members[0].config         # for these two; of all else each member has its own

    def parameters(self):
        """Name -> Parameter, of all members."""
        return {f"{i}.{name}": parameter for i, member in enumerate(self.members)
                for name, parameter in member.parameters().items()}

    def forward(self, ids, cache=None):
        """Logits (B, T, V), as GPT.forward: here the logarithms of sums of probabilities."""
        caches = cache or [None] * len(self.members)
        return _together(member.forward(ids, cache=c) for member, c in zip(self.members, caches))

    def new_cache(self, sequences):
        return [member.new_cache(sequences) for member in self.members]

    def step(self, ids, cache):
        """Logits (S, V) after one more token, as GPT.step."""
        return _together(member.step(ids, c) for member, c in zip(self.members, cache))


def members(model):
    """The GPTs that a model consists of."""
    return model.members if isinstance(model, Ensemble) else [model]


def empty(configs):
    """A model with these members, and no weights that are worth anything yet."""
    models = [GPT(config, seed=None) for config in configs]
    return Ensemble(models) if len(models) > 1 else models[0]


def _together(logits):
    """The logarithm of the sum of the members' probabilities, from an iterable of their logits (..., V)."""
    total = None
    for own in logits:
        total = np.zeros_like(own) if total is None else total
        _add_probabilities(own.reshape(-1, own.shape[-1]), total.reshape(-1, own.shape[-1]))
    _logarithm(total)
    return total


@njit(parallel=True, cache=True)
def _add_probabilities(logits, total):
    """total (N, V) += softmax(logits (N, V)), whose rows are used up."""
    V = logits.shape[1]
    for i in prange(len(logits)):
        _, whole = softmax_row(logits, i * V, V, V, ONE)
        for c in range(0, V, LANES):
            p = load_part(logits, i * V + c, V - c, ZERO) / splat(whole)
            store_part(total, i * V + c, V - c, load_part(total, i * V + c, V - c, ZERO) + p)


@njit(parallel=True, cache=True)
def _logarithm(x):
    """x = log(max(x, LEAST)), any shape."""
    for i in prange((x.size + LANES - 1) // LANES):
        at = i * LANES
        store_part(x, at, x.size - at, log(maximum(load_part(x, at, x.size - at, ONE), splat(LEAST))))

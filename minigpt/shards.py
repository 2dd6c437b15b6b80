"""The gradient of a batch as a sum over its shards, in a binary tree that is the same however many processes compute it.

                  +                   Each shard's gradient is computed by itself.  With one process, it adds all of them: that
            ______|______             is gradient accumulation.  With two, each adds those of one half, and they exchange their
           +             +            sums; with four, each computes one shard, exchanges with its neighbour and then with the
        ___|___       ___|___         other half: that is data parallelism.  What is added to what never changes; and as
       0       1     2       3        a + b and b + a have the same bits, both partners end with the same sum.
"""

from collections.abc import Callable
from itertools import accumulate
from typing import Any

import numpy as np

from .layers import Draw
from .model import GPT


class Alone:
    """The processes of a run where there is only this one.  (mpi.py has those of MPI, with the same methods.)"""
    rank, count = 0, 1

    def add(self, array: np.ndarray) -> None:
        """Replace the array by the sum of all processes' arrays, in the order of the tree."""

    def any(self, flag: bool) -> bool:
        """Whether the flag of any process is set."""
        return flag

    def first(self, function: Callable[[], Any]) -> Any:
        """What function() returns on the first process, for which the others wait."""
        return function()

    def check(self, model: GPT) -> None:
        """TrainingError unless all processes hold the same weights."""


class Shards:
    """Cuts batches into `count` shards, a power of two that the number of processes divides; each computes equally many.

    The gradients of all parameters and the loss lie in one array, so that a sum is one addition, and one message.  A process
    with k shards holds log2(k) more such arrays.
    """

    def __init__(self, model: GPT, count: int, processes: Alone):
        self.model, self.count, self.processes = model, count, processes
        self.own = count // processes.count
        parameters = model.parameters().values()
        ends = [*accumulate((parameter.data.size for parameter in parameters), initial=0)]
        self.total = np.zeros(ends[-1] + 1, np.float32)
        for parameter, start, stop in zip(parameters, ends, ends[1:]):
            parameter.grad = self.total[start:stop].reshape(parameter.shape)
        self.halves = [np.empty_like(self.total) for _ in range(self.own.bit_length() - 1)]

    def gradient(self, windows: np.ndarray, seed: int, step: int) -> float:
        """Set every parameter's grad to that of the mean loss of the windows (B, T + 1); returns this loss, in nats per token.

        B is a multiple of the number of shards.  Dropout is addressed by the step and the shard.
        """
        parts = windows.reshape(self.count, -1, windows.shape[1])
        self._add_up(parts, self.own * self.processes.rank, self.own, seed, step)
        self.processes.add(self.total)
        return float(self.total[-1])

    def _add_up(self, parts, first, count, seed, step):
        """Set the total to the sum of shards first .. first + count - 1, which are a subtree."""
        if count > 1:
            half, left = count // 2, self.halves[count.bit_length() - 2]
            self._add_up(parts, first, half, seed, step)
            left[:] = self.total
            self._add_up(parts, first + half, half, seed, step)
            self.total += left
            return
        x, y = parts[first][:, :-1], parts[first][:, 1:]
        loss = self.model.loss(x, y, Draw(seed, step * self.count + first))
        self.model.backward(self.count * len(x))                # its share of the mean over the whole batch
        self.total[-1] = loss / self.count

"""From gradients to weights: AdamW, Muon, gradient clipping and the learning rate's course.

Scalars here are Python floats, binary64 with + - * /, rounded to float32 where they meet an array: as exact, and so as
reproducible, as the kernels.  (`**` and `math` are not: they call the system's library.)
"""

from dataclasses import dataclass

import numpy as np

from .kernels.elementwise import adamw
from .kernels.matmul import matmul
from .kernels.rows import sum_of_squares


@dataclass(frozen=True)
class OptimizerConfig:
    optimizer: str = "muon"           # muon (for the matrices inside the blocks, AdamW for the rest) or adamw
    learning_rate: float = 3e-3       # of AdamW, at its peak
    muon_rate: float = 0.02           # of Muon, at its peak
    weight_decay: float = 0.1         # of matrices, times the learning rate
    beta1: float = 0.9                # AdamW: memory of the mean gradient
    beta2: float = 0.99               # AdamW: memory of its square
    momentum: float = 0.95            # Muon: memory of the mean gradient
    clip: float = 1.0                 # largest norm of the whole gradient; 0: any
    warmup: int = 50                  # steps over which the rates rise from 0
    cooldown: float = 1.0             # last part of the run, over which they fall in a line to 0

    def __post_init__(self):
        if self.optimizer not in ("muon", "adamw"):
            raise ValueError(f"optimizer must be muon or adamw, but is {self.optimizer!r}")
        for name in ("learning_rate", "muon_rate", "weight_decay", "clip"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be a number of at least 0, but is {getattr(self, name)!r}")
        for name in ("beta1", "beta2", "momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, but is {getattr(self, name)!r}")
        if not isinstance(self.warmup, int) or self.warmup < 0:
            raise ValueError(f"warmup must be a whole number of steps, but is {self.warmup!r}")
        if not 0 <= self.cooldown <= 1:
            raise ValueError(f"cooldown must be from 0 to 1, but is {self.cooldown!r}")


def schedule(config, step, steps):
    """The share of the peak learning rate at step 0 .. steps - 1: a rise, a level stretch, a fall towards 0."""
    rise = (step + 1) / config.warmup if step < config.warmup else 1.0
    falling = config.cooldown * steps
    fall = (steps - step) / falling if steps - step < falling else 1.0
    return min(rise, fall)


def orthogonalise(gradient):
    """The matrix gradient = U S V^T with every singular value S brought near 1, so that U V^T is left.

    Newton-Schulz iteration: X <- a X + b (X X^T) X + c (X X^T)^2 X acts on each singular value s as a s + b s^3 + c s^5,
    which from anywhere in (0, 1] lands near 1 in five rounds.  [Jordan et al. 2024, "Muon"]
    """
    wide = gradient.shape[0] <= gradient.shape[1]
    x = np.ascontiguousarray(gradient if wide else gradient.T)
    norm = np.sqrt(np.float32(sum_of_squares(x))) + np.float32(1e-7)        # at least the largest singular value
    x = x / norm
    a, b, c = np.float32(3.4445), np.float32(-4.7750), np.float32(2.0315)
    square, fourth = np.empty((2, len(x), len(x)), np.float32)
    for _ in range(5):
        matmul(x, x.T, square)
        matmul(square, square, fourth)
        x = matmul(b * square + c * fourth, x, a * x, accumulate=True)
    return x if wide else x.T


class Optimizer:
    """AdamW for every parameter; with `optimizer="muon"`, Muon for the matrices inside the blocks.

    `state` (name -> array) and `step_count` are all it remembers: saved with a checkpoint, a run goes on with the same bits.
    """

    def __init__(self, model, config, steps):
        self.config, self.steps, self.step_count = config, steps, 0
        self.parameters = model.parameters()
        self.state = {}
        for name, parameter in self.parameters.items():
            self.state[f"mean.{name}"] = np.zeros_like(parameter.data)
            if not self._uses_muon(name):
                self.state[f"square.{name}"] = np.zeros_like(parameter.data)

    def _uses_muon(self, name):
        return self.config.optimizer == "muon" and name.startswith("blocks.") and self.parameters[name].data.ndim == 2

    def gradient_norm(self):
        """The root of the sum of the squares of all gradients."""
        total = np.float32(0)
        for parameter in self.parameters.values():
            total += np.float32(sum_of_squares(parameter.grad))
        return float(np.sqrt(total))

    def step(self):
        """Update every parameter from its grad; returns the gradient's norm before it was clipped."""
        config, norm = self.config, self.gradient_norm()
        share = schedule(config, self.step_count, self.steps)
        self.step_count += 1
        clip = config.clip / norm if 0 < config.clip < norm else 1.0
        correction1 = 1.0 / (1.0 - _power(config.beta1, self.step_count))
        correction2 = 1.0 / (1.0 - _power(config.beta2, self.step_count))
        for name, parameter in self.parameters.items():
            mean = self.state[f"mean.{name}"]
            if self._uses_muon(name):
                self._muon(parameter, mean, clip, config.muon_rate * share)
                continue
            rate = config.learning_rate * share
            decay = 1.0 - rate * config.weight_decay if parameter.data.ndim == 2 else 1.0
            adamw(*(a.reshape(-1) for a in (parameter.data, parameter.grad, mean, self.state[f"square.{name}"])),
                  *map(np.float32, (clip, rate, decay, config.beta1, config.beta2, correction1, correction2, 1e-8)))
        return norm

    def _muon(self, parameter, mean, clip, rate):
        """weight <- decay * weight - rate * orthogonalise(gradient, smoothed with Nesterov's momentum)"""
        momentum, rest = np.float32(self.config.momentum), np.float32(1 - self.config.momentum)
        gradient = np.float32(clip) * parameter.grad
        mean *= momentum
        mean += rest * gradient
        direction = orthogonalise(rest * gradient + momentum * mean)
        # An update of singular values 1 changes y = x W by |x| at most; a matrix that fans out may do more.
        n_in, n_out = parameter.data.shape
        scale = np.sqrt(np.float32(max(1.0, n_out / n_in)))
        parameter.data *= np.float32(1.0 - rate * self.config.weight_decay)
        parameter.data -= (np.float32(rate) * scale) * direction


def _power(x, n):
    """x^n by squaring."""
    result = 1.0
    while n:
        if n & 1:
            result *= x
        x, n = x * x, n >> 1
    return result

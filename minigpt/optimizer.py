"""The optimiser: AdamW, Muon, gradient clipping and the learning-rate schedule.

Scalars here are Python floats: binary64 with + - * /, rounded to float32 where they enter an array, and so as reproducible as
the kernels.  (`**` and `math` are not: they call the C library.)
"""

import numpy as np

from .config import OptimizerConfig
from .exact import power
from .kernels.elementwise import adamw
from .kernels.muon import orthogonalise
from .kernels.sums import sum_of_squares
from .layers import Layer


def schedule(config: OptimizerConfig, step: int, steps: int) -> float:
    """The learning rate at step 0 .. steps - 1, as a fraction of its peak: linear warm-up, constant, linear cool-down."""
    warmup = (step + 1) / config.warmup if step < config.warmup else 1.0
    falling = config.cooldown * steps
    cooldown = max(steps - step, 0) / falling if steps - step < falling else 1.0
    return min(warmup, cooldown)


class Optimizer:
    """AdamW for every parameter; with `optimizer="muon"`, Muon for the matrices inside the blocks.

    `steps` is the length of the learning-rate schedule.  The moment estimates, `state` (name -> array), and `step_count` are
    all its state: a run resumed with them continues with the same bits.
    """

    def __init__(self, model: Layer, config: OptimizerConfig, steps: int):
        self.config, self.steps, self.step_count = config, steps, 0
        self.parameters = model.parameters()
        self.state = {}
        for name, parameter in self.parameters.items():
            self.state[f"mean.{name}"] = np.zeros_like(parameter.data)
            if not self._uses_muon(name):
                self.state[f"square.{name}"] = np.zeros_like(parameter.data)

    def _uses_muon(self, name):
        return self.config.optimizer == "muon" and name.startswith("blocks.") and self.parameters[name].data.ndim == 2

    def gradient_norm(self) -> float:
        """The Euclidean norm of all gradients together."""
        total = np.float32(0)
        for parameter in self.parameters.values():
            total += np.float32(sum_of_squares(parameter.grad.reshape(-1)))
        return float(np.sqrt(total))

    def step(self) -> float:
        """Update every parameter from its grad; returns the norm of the gradient before clipping."""
        config, norm = self.config, self.gradient_norm()
        fraction = schedule(config, self.step_count, self.steps)
        self.step_count += 1
        clip = config.clip / norm if 0 < config.clip < norm else 1.0
        correction1 = 1.0 / (1.0 - power(config.beta1, self.step_count))
        correction2 = 1.0 / (1.0 - power(config.beta2, self.step_count))
        rate = config.learning_rate * fraction
        shapes: dict[tuple[int, ...], list[str]] = {}
        scalars = tuple(map(np.float32, (config.beta1, config.beta2, correction1, correction2, 1e-8)))
        for name, parameter in self.parameters.items():
            if self._uses_muon(name):
                shapes.setdefault(parameter.data.shape, []).append(name)
                continue
            decay = 1.0 - rate * config.weight_decay if parameter.data.ndim == 2 else 1.0
            mean, square = self.state[f"mean.{name}"], self.state[f"square.{name}"]
            adamw(*(a.reshape(-1) for a in (parameter.data, parameter.grad, mean, square)),
                  np.float32(clip), np.float32(rate), np.float32(decay), *scalars)
        for names in shapes.values():
            self._muon(names, clip, config.muon_rate * fraction)
        return norm

    def _muon(self, names, clip, rate):
        """weight <- decay * weight - rate * orthogonalise(gradient with Nesterov momentum), for matrices (n_in, n_out) of one
        shape, which are shared out among the threads."""
        parameters = [self.parameters[name] for name in names]
        n_in, n_out = parameters[0].data.shape
        directions = np.empty((len(names), n_in, n_out), np.float32)
        momentum, rest = np.float32(self.config.momentum), np.float32(1 - self.config.momentum)
        for name, parameter, direction in zip(names, parameters, directions):
            mean, gradient = self.state[f"mean.{name}"], rest * (np.float32(clip) * parameter.grad)
            mean *= momentum
            mean += gradient
            np.add(gradient, momentum * mean, out=direction)
        orthogonalise(directions)
        # An update with singular values 1 changes y = x W by |x| at most; a matrix with n_out > n_in is allowed more.
        directions *= np.float32(rate) * np.sqrt(np.float32(max(1.0, n_out / n_in)))
        for parameter, direction in zip(parameters, directions):
            parameter.data *= np.float32(1.0 - rate * self.config.weight_decay)
            parameter.data -= direction

"""The training loop: steps on random windows, with a validation and a checkpoint at regular intervals.

All randomness is addressed by (seed, purpose, step), and the checkpoint holds the optimiser's state: a run that was interrupted
and resumed ends with the same bits as one that was not.
"""

import hashlib
import math
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from . import rng
from .checkpoint import load_checkpoint, save_checkpoint
from .config import option
from .corpus import split
from .model import GPT
from .optimizer import Optimizer, OptimizerConfig
from .shards import Alone, Shards
from .tokenizer import ByteTokenizer, CharTokenizer

FILE = "model.safetensors"


class TrainingError(Exception):
    """Training cannot start or continue.  The message is one sentence for a person."""


@dataclass(frozen=True)
class TrainConfig:
    steps: int = option(2000, "optimiser steps")
    batch_size: int = option(12, "windows per step")
    shards: int = option(1, "equal parts of a batch, a power of two, whose gradients are added in a tree; MPI shares them out")
    window: int = option(0, "tokens in a window to train and validate on, at most block_size; 0: block_size")
    seed: int = option(1, "seed of the initial weights, the windows and the dropout")
    validate_every: int = option(500, "steps between validations; 0: only at the end")
    save_every: int = option(500, "steps between checkpoints; 0: only at the end")
    shuffle: bool = option(False, "shuffled epochs, in which each part of the text comes once; no: windows from anywhere")

    def __post_init__(self):
        for name in ("steps", "batch_size", "shards", "window", "seed", "validate_every", "save_every"):
            value, least = getattr(self, name), int(name in ("steps", "batch_size", "shards"))
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2 ** 63:
                raise ValueError(f"{name} must be a whole number of at least {least}, but is {value!r}")
        if self.shards & self.shards - 1 or self.batch_size % self.shards:
            raise ValueError(f"shards must be a power of two that divides batch_size ({self.batch_size}), but is {self.shards}")


class Trainer:
    """Trains a model: `run` continues to the last step, or to Ctrl-C, and saves a checkpoint in the folder `out`.

    text (bytes) is split into 90 % to train on and 10 % to validate on.  TrainingError where it is too short for one window.
    Where there are other `processes`, each computes its shards of every batch, and the first one saves.
    """

    def __init__(self, model: GPT, tokenizer: ByteTokenizer | CharTokenizer, text: bytes, config: TrainConfig,
                 optimizer_config: OptimizerConfig, out: str | Path, processes: Alone = Alone()):
        self.model, self.tokenizer, self.config, self.out, self.processes = model, tokenizer, config, Path(out), processes
        self.text_sha256 = hashlib.sha256(text).hexdigest()
        self.window = config.window or model.config.block_size
        self.train_ids, self.validation_ids = split(tokenizer.encode(text).astype(np.int32))
        if len(self.train_ids) < self.window + 1 or len(self.validation_ids) < 2:
            raise TrainingError(f"the text has {len(text):,} bytes, too few to train on windows of "
                                f"{self.window} tokens and to validate on the rest")
        if config.shards % processes.count:
            raise TrainingError(f"{processes.count} processes cannot share the shards of a batch ({config.shards}) equally: "
                                "their number must divide it")
        self.optimizer = Optimizer(model, optimizer_config, config.steps)
        self.shards = Shards(model, config.shards, processes)
        self.losses = np.zeros(config.steps, np.float32)        # nats per token, of each step's batch
        self.validations: list[tuple[int, float]] = []          # (step, nats per token)

    @property
    def step_count(self) -> int:
        return self.optimizer.step_count

    @property
    def path(self) -> Path:
        """The checkpoint's."""
        return self.out / FILE

    # --- one step, and validation ---

    def batch(self, step: int) -> np.ndarray:
        """The windows (B, T + 1) of the training text that step number `step` learns from."""
        T, size, seed, n = self.window, self.config.batch_size, self.config.seed, len(self.train_ids)
        if self.config.shuffle:
            count = max(1, (n - T) // T)        # windows in an epoch: side by side from a random offset, in random order
            numbers = (divmod(number, count) for number in range(step * size, (step + 1) * size))
            starts = np.array([rng.integers(seed, "offset", epoch, 1, min(T, n - count * T))[0]
                               + T * rng.permutation(seed, "order", epoch, count)[i] for epoch, i in numbers])
        else:
            starts = rng.integers(seed, "batch", step, size, n - T)
        return self.train_ids[starts[:, None] + np.arange(T + 1)]

    def step(self) -> float:
        """Train on one batch; returns its loss in nats per token.  TrainingError if that is not a finite number."""
        step = self.step_count
        loss = self.shards.gradient(self.batch(step), self.config.seed, step)
        if not math.isfinite(loss):
            raise TrainingError(f"the loss of step {step + 1} is {loss}: try a lower learning rate; "
                                "the last checkpoint is unchanged")
        self.optimizer.step()
        self.losses[step] = loss
        return loss

    def validate(self) -> float:
        """Mean cross-entropy, in nats per token, over the whole validation text, in consecutive windows."""
        ids, T, processes = self.validation_ids, self.window, self.processes
        whole = (len(ids) - 1) // T * T
        bounds = [*range(0, whole, self.config.batch_size // self.config.shards * T), whole, len(ids) - 1]   # as much memory as
        losses, sizes = np.zeros(len(bounds) - 1, np.float32), np.diff(bounds)                            # a shard in training
        for i in tqdm(range(processes.rank, len(sizes), processes.count), "validating", leave=False, delay=2):
            x, y = ids[bounds[i]:bounds[i + 1]], ids[bounds[i] + 1:bounds[i + 1] + 1]
            if sizes[i]:
                losses[i] = self.model.loss(x.reshape(-1, min(T, len(x))), y.reshape(-1, min(T, len(x))))
        processes.add(losses)               # each is of one process, and 0 in the others
        total = 0.0
        for loss, size in zip(losses.tolist(), sizes.tolist()):
            total += loss * size
        return total / (len(ids) - 1)

    # --- the loop ---

    def run(self, on_save: Callable[[], None] = lambda: None) -> tuple[float, bool]:
        """Train until the last step or Ctrl-C, and save; call on_save() after each checkpoint.

        Returns the seconds taken, and whether the last step was reached.
        """
        config, start, begun = self.config, time.perf_counter(), self.step_count
        tokens = config.batch_size * self.window

        def save():
            self.processes.check(self.model)
            self.processes.first(lambda: (self.save(), on_save()))
        with _interruptible() as interrupted, tqdm(total=config.steps, initial=begun, unit="step", smoothing=0.05) as bar:
            while self.step_count < config.steps and not self.processes.any(interrupted.is_set()):
                self.step()
                bar.set_postfix_str(f"loss {self._recent_loss():.3f}, "
                                    f"{(self.step_count - begun) * tokens / (time.perf_counter() - start):,.0f} tokens/s",
                                    refresh=False)
                bar.update()
                if self._due(config.validate_every):
                    self._record_validation(bar)
                if self._due(config.save_every):
                    save()
            save()
            if self.step_count == config.steps and (not self.validations or self.validations[-1][0] < config.steps):
                self._record_validation(bar)
                save()
        return time.perf_counter() - start, self.step_count == config.steps

    def _due(self, every):
        return every and self.step_count % every == 0 and self.step_count < self.config.steps

    def _recent_loss(self, steps=50):
        recent = self.losses[max(0, self.step_count - steps):self.step_count]
        return float(recent.sum()) / len(recent)

    def _record_validation(self, bar):
        loss = self.validate()
        if not math.isfinite(loss):
            raise TrainingError(f"the validation loss after step {self.step_count:,} is {loss}: try a lower learning rate")
        self.validations.append((self.step_count, loss))
        bar.write(f"step {self.step_count:,}: training {self._recent_loss():.4f}, "
                  f"validation {self.validations[-1][1]:.4f} nats per token")

    # --- checkpoints ---

    def save(self) -> None:
        """Write the checkpoint.  TrainingError, and the last one is left unchanged, where a weight is not a finite number."""
        if not all(np.isfinite(parameter.data).all() for parameter in self.optimizer.parameters.values()):
            raise TrainingError(f"after step {self.step_count:,} the weights are no longer finite numbers: try a lower "
                                "learning rate; the last checkpoint is unchanged")
        run = {"train": asdict(self.config), "optimizer": asdict(self.optimizer.config), "step": self.step_count,
               "validations": self.validations, "text_sha256": self.text_sha256}
        arrays = {**self.optimizer.state, "losses": self.losses[:self.step_count]}
        save_checkpoint(self.path, self.model, self.tokenizer, run, arrays)

    @classmethod
    def resume(cls, out: str | Path, text: bytes, processes: Alone = Alone()) -> "Trainer":
        """The run whose checkpoint is in `out`, as it stopped.  CheckpointError; TrainingError for another text."""
        path = Path(out) / FILE
        checkpoint = processes.first(lambda: load_checkpoint(path))
        run, sha256 = checkpoint.run, hashlib.sha256(text).hexdigest()
        if not run:
            raise TrainingError(f"{path} is a bare model, without the state of a run to resume")
        try:
            if sha256 != run["text_sha256"]:
                raise TrainingError(f"{path} was trained on another text (SHA-256 {run['text_sha256'][:8]}..., this one "
                                    f"{sha256[:8]}...): pass --data with the same file")
            trainer = cls(checkpoint.model, checkpoint.tokenizer, text, TrainConfig(**run["train"]),
                          OptimizerConfig(**run["optimizer"]), out, processes)
            trainer.optimizer.step_count = run["step"]
            trainer.validations = [tuple(v) for v in run["validations"]]
            losses = checkpoint.arrays.pop("losses")
            trainer.losses[:len(losses)] = losses
            for name, array in trainer.optimizer.state.items():
                array[...] = checkpoint.arrays[name]
        except (KeyError, TypeError, ValueError) as error:
            raise TrainingError(f"{path} does not hold a run that this program can resume: {error}") from None
        return trainer


@contextmanager
def _interruptible():
    """Yields an event that the first Ctrl-C sets (or SIGTERM, SIGHUP, or SIGUSR1, which mpiexec passes on), so that the current
    step can end; the second one acts as usual."""
    interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield interrupted                       # only the main thread may handle signals
        return
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    # Leave alone what is ignored, and None, which is a handler not installed from Python: it could not be restored.
    before = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}

    def handle(number, frame):
        interrupted.set()
        tqdm.write("stopping after this step (again: at once, without saving)", file=sys.stderr)
        for number, handler in before.items():
            signal.signal(number, handler)
    for number in before:
        signal.signal(number, handle)
    try:
        yield interrupted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

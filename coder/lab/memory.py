"""Random bytes learned by heart, for the experiment `scaling`: how many bits a parameter keeps.

Random bytes have no regularity to be found: whatever a model saves of their 8 bits each, it remembers.  Where there are more
of them than it can hold, the bits saved are its capacity [Morris et al. 2025], or as much of it as training has filled.
"""

from itertools import product
from typing import NamedTuple

import numpy as np

from minigpt import rng
from minigpt.model import GPT, GPTConfig
from minigpt.optimizer import Optimizer, OptimizerConfig

from ..frequencies import to_frequencies
from ..packed import pack, unpack
from ..range_coder import Encoder
from .material import table

WIDTHS, AMOUNTS = (16, 32), (2 ** 12, 2 ** 13, 2 ** 14)                     # channels; bytes
STEPS, BATCH, WINDOW = 1000, 64, 16
LEARNING = OptimizerConfig(learning_rate=1e-2, weight_decay=0.0, warmup=20)
FINENESS = 2, 3, 4, 6, 8, 12


class Kept(NamedTuple):
    parameters: int
    size: int               # random bytes
    code: int               # bytes of their code with the model as it is
    packed: int             # bytes of the packed model for which model and code together are shortest
    packed_code: int        # bytes of the code with that one

    @property
    def bits(self) -> int:
        """The bits that the model keeps of the random bytes, at most 8 * size."""
        return 8 * (self.size - self.code)


def random_windows(size: int) -> np.ndarray:
    """(size / WINDOW, WINDOW + 1) int64: `size` random bytes to be learned, each WINDOW of them after one more, their cue."""
    count = size // WINDOW * (WINDOW + 1)
    return rng.words(1, "memory", 0, count).astype(np.uint8).astype(np.int64).reshape(-1, WINDOW + 1)


def code(model: GPT, windows: np.ndarray) -> bytes:
    """The range coder's code of windows (K, WINDOW + 1) without their cues, which are known."""
    encoder = Encoder()
    encoder.encode(to_frequencies(model.forward(windows[:, :-1]).reshape(-1, 256)), windows[:, 1:].reshape(-1))
    return encoder.finish()


def learn(model: GPT, windows: np.ndarray, steps: int) -> None:
    """Train on all windows in random order, again and again."""
    optimizer, batch = Optimizer(model, LEARNING, steps), min(BATCH, len(windows))
    epoch = len(windows) // batch
    for step in range(steps):
        i = step % epoch * batch
        chosen = windows[rng.permutation(1, "order", step // epoch, len(windows))[i:i + batch]]
        model.loss(chosen[:, :-1], chosen[:, 1:])
        model.backward()
        optimizer.step()


def measure(width: int, size: int, steps: int) -> Kept:
    """What a GPT of one block of that width keeps of `size` random bytes, a multiple of WINDOW, after that many steps."""
    windows, model = random_windows(size), GPT(GPTConfig(block_size=WINDOW, n_layer=1, n_head=2, n_embd=width), seed=1)
    learn(model, windows, steps)
    files = [pack(model, fineness=fineness) for fineness in FINENESS]
    packed = min(((len(file), len(code(unpack(file)[0], windows))) for file in files), key=sum)
    parameters = sum(parameter.data.size for parameter in model.parameters().values())
    return Kept(parameters, size, len(code(model, windows)), *packed)


def run(widths=WIDTHS, amounts=AMOUNTS, steps: int = STEPS) -> list[Kept]:
    """Print and return what is kept of each amount of random bytes."""
    results = [measure(width, size, steps) for width, size in product(widths, amounts)]
    print(f"\nRandom bytes after {steps:,} steps, {WINDOW} of them behind each cue:\n")
    table(("parameters", "random bytes", "their code", "bits kept", "of all", "bits per parameter", "packed model + code"), *(
        (f"{k.parameters:,}", f"{k.size:,}", f"{k.code:,}", f"{k.bits:,}", f"{k.bits / k.size / 8:.0%}",
         f"{k.bits / k.parameters:.2f}", f"{k.packed:,} + {k.packed_code:,}") for k in results))
    return results

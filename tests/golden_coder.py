"""A small model that has learned a little, and the file that is there to be decoded for ever.

    python -m tests.golden_coder        make tests/data/license.mgz anew: only together with a new version of the format
"""

from functools import cache
from pathlib import Path

import numpy as np

from coder.compressor import compress
from coder.verify import LICENSE, TEXT
from minigpt.model import GPT, GPTConfig
from minigpt.optimizer import Optimizer, OptimizerConfig

FILE = Path(__file__).with_name("data") / "license.mgz"
TINY = GPTConfig(block_size=16, n_layer=1, n_head=2, n_embd=16)                 # what the tests compress with


@cache
def taught(config=TINY, seed=1):
    """A model that has read the licence a few times, so that it compresses English, a little.  Not to be changed."""
    model, ids = GPT(config, seed), np.frombuffer(LICENSE, np.uint8)
    optimizer = Optimizer(model, OptimizerConfig(learning_rate=0.01, warmup=0, cooldown=0.0), 150)
    windows = np.lib.stride_tricks.sliding_window_view(ids, config.block_size + 1)
    for step in range(150):
        batch = windows[13 * step % 97::97]                 # (11, T + 1)
        model.loss(batch[:, :-1], batch[:, 1:])
        model.backward()
        optimizer.step()
    return model


if __name__ == "__main__":
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_bytes(compress(TEXT, "scratch"))

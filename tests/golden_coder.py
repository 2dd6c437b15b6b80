"""Prints the SHA-256 of codes that must be the same on every machine, as one JSON object.

    python tests/golden_coder.py
    python tests/golden_coder.py --write        make tests/data/license.mgz anew first

tests/test_codec.py holds what it must print.  The file is there to be decoded for ever: it is made anew only together
with a new version of the format.
"""

import hashlib
import json
import sys
from functools import cache
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from coder import codec
from coder.compressor import compress, decompress
from minigpt.model import GPT, GPTConfig
from minigpt.optimizer import Optimizer, OptimizerConfig

FILE = Path(__file__).with_name("data") / "license.mgz"
LICENSE = b"""\
MIT License

Copyright (c) 2026 The minigpt authors

Permission is hereby granted, free of charge, to any person obtaining a copy
of this software and associated documentation files (the "Software"), to deal
in the Software without restriction, including without limitation the rights
to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all
copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
SOFTWARE.
"""
TEXT = (LICENSE + LICENSE)[:-1]         # two streams, of which the second is a symbol shorter

GOLDEN_MODEL = GPTConfig(block_size=27, n_layer=2, n_head=2, n_embd=36)         # fills no tile, no vector, no half window
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


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def digests():
    model = GPT(GOLDEN_MODEL, seed=7)
    return {
        "static: code": sha256(codec.encode_block(codec.static(model), TEXT)),
        "online: code": sha256(codec.encode_block(codec.online(model, len(TEXT)), TEXT)),
        "online, primed: code": sha256(codec.encode_block(codec.online(model, len(TEXT), LICENSE[:500]), TEXT)),
        "fast: code": sha256(codec.encode_block(codec.fast(len(TEXT)), TEXT)),
        "scratch: file": sha256(compress(TEXT, "scratch")),
        "scratch: decoded": sha256(decompress(FILE.read_bytes(), find_model=None)),
    }


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        FILE.parent.mkdir(exist_ok=True)
        FILE.write_bytes(compress(TEXT, "scratch"))
    print(json.dumps(digests(), indent=1))

"""Prints the SHA-256 of everything that must be the same on every machine, as one JSON object.

    python tests/golden.py

tests/test_golden.py holds what it must print, and runs it as if compiled for other processors.
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from minigpt import rng
from minigpt.checkpoint import fingerprint
from minigpt.layers import Draw
from minigpt.model import GPT, GPTConfig
from minigpt.optimizer import Optimizer, OptimizerConfig
from minigpt.sampling import generate

# Between them: every kind of layer, both norm orders and both optimisers, on shapes that fill no tile and no vector.
RUNS = {
    "muon": (GPTConfig(vocab_size=65, block_size=26, n_layer=2, n_head=2, n_embd=72, dropout=0.1),
             OptimizerConfig(optimizer="muon", warmup=1)),
    "adamw": (GPTConfig(vocab_size=65, block_size=26, n_layer=2, n_head=2, n_embd=36, position="learned", norm="layer",
                        norm_order="last", activation="gelu", qk_norm=False, bias=True, tied=True, dropout=0.1),
              OptimizerConfig(optimizer="adamw", warmup=1)),
}
STEPS, BATCH = 4, 3


def sha256(array):
    return hashlib.sha256(array.astype(array.dtype.newbyteorder("<")).tobytes()).hexdigest()


def digests():
    found = {}
    for name, (config, optimizer_config) in RUNS.items():
        model = GPT(config, seed=7)
        optimizer = Optimizer(model, optimizer_config, STEPS)
        ids = rng.integers(7, "golden", 0, BATCH * (config.block_size + 1), config.vocab_size).reshape(BATCH, -1)
        found[f"{name}: initial weights"] = fingerprint(model)
        found[f"{name}: logits"] = sha256(model.forward(ids[:, :-1]))
        for step in range(STEPS):
            model.loss(ids[:, :-1], ids[:, 1:], Draw(7, step))
            model.backward()
            if step == 0:
                found[f"{name}: gradients"] = sha256(np.concatenate([p.grad.ravel() for p in model.parameters().values()]))
            optimizer.step()
        found[f"{name}: weights after {STEPS} steps"] = fingerprint(model)
        tokens = [token for _, token in zip(range(40), generate(model, ids[0, :5], 1.1, top_k=50, top_p=0.95, seed=7))]
        found[f"{name}: sampled tokens"] = sha256(np.array(tokens, np.int64))
    return found


if __name__ == "__main__":
    print(json.dumps(digests(), indent=1))

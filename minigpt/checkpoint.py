"""A model on disk: weights, config and tokenizer, and what a run needs to go on, in one safetensors file.

The file contains no code: it is a JSON header and plain arrays.  A checksum over all of it detects damage.
The fingerprint is of the weights alone, so that two people can tell over the phone whether they hold the same model.
"""

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from .files import write_atomically
from .model import GPT, GPTConfig
from .tokenizer import ByteTokenizer, CharTokenizer, from_json

FORMAT = "minigpt 1"


class CheckpointError(Exception):
    """The file is not a usable checkpoint.  The message is one sentence for a person."""


class Checkpoint(NamedTuple):
    model: GPT
    tokenizer: ByteTokenizer | CharTokenizer
    run: dict           # what a run needs to go on (see trainer.py); empty for a bare model
    arrays: dict        # name -> array: the arrays of that run


def fingerprint(model) -> str:
    """SHA-256, in hexadecimal, over the names, shapes and bytes of the weights."""
    return _digest({name: parameter.data for name, parameter in model.parameters().items()})


def _digest(arrays, text=""):
    sha = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        array = arrays[name]
        sha.update(f"{name} {array.dtype.name} {array.shape}\n".encode())
        sha.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
    return sha.hexdigest()


def save_checkpoint(path: Path | str, model: GPT, tokenizer: ByteTokenizer | CharTokenizer, run: dict | None = None,
                    arrays: dict[str, np.ndarray] | None = None) -> None:
    """Write the checkpoint beside `path` and move it into place when it is whole.  OSError where that fails."""
    tensors = {f"weights.{name}": parameter.data for name, parameter in model.parameters().items()}
    tensors.update({f"run.{name}": array for name, array in (arrays or {}).items()})
    content = json.dumps({"format": FORMAT, "config": model.config.to_json(), "tokenizer": tokenizer.to_json(),
                          "run": run or {}})
    data = save(tensors, {"minigpt": f"{_digest(tensors, content)} {content}"})      # in one entry: several have no order
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        write_atomically(path, data)
    except OSError as error:
        raise OSError(error.errno, f"cannot save the model ({len(data):,} bytes): {error.strerror}", str(path)) from None


def load_checkpoint(path: Path | str) -> Checkpoint:
    """Read a Checkpoint.  CheckpointError says what is wrong with a file that is missing, foreign or damaged."""
    try:
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            if "minigpt" not in metadata:
                raise CheckpointError(f"{path} is a safetensors file, but not a checkpoint of minigpt")
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except FileNotFoundError:
        raise CheckpointError(f"there is no model at {path}: train one with train_shakespeare.py, or name another") from None
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "not a whole safetensors file"
        raise CheckpointError(f"{path} cannot be read as a checkpoint: {reason}") from None
    try:
        checksum, _, content = metadata["minigpt"].partition(" ")
        if checksum != _digest(tensors, content):
            raise CheckpointError(f"{path} is damaged: its checksum does not match its content")
        content = json.loads(content)
        if content["format"] != FORMAT:
            raise CheckpointError(f"{path} has the format {content['format']!r}, but this program reads {FORMAT!r}")
        return _assemble(content, tensors)
    except (KeyError, TypeError, ValueError, MemoryError, RecursionError) as error:
        raise CheckpointError(f"{path} does not describe a model that this program can make: {error}") from None


def _assemble(content, tensors):
    """The Checkpoint; KeyError, TypeError or ValueError where the parts do not fit together."""
    config, tokenizer = GPTConfig(**content["config"]), from_json(content["tokenizer"])
    if tensors["weights.tokens.weight"].shape != (config.vocab_size, config.n_embd) or config.n_layer > len(tensors) \
            or tensors["weights.blocks.0.feed_forward.contract.weight"].shape[0] != config.hidden:
        raise ValueError("the weights are not those of the config")              # found before any memory is taken
    if tokenizer.vocab_size != config.vocab_size:
        raise ValueError(f"the tokenizer has {tokenizer.vocab_size} tokens, the config {config.vocab_size}")
    model = GPT(config, seed=None)
    for name, parameter in model.parameters().items():
        weight = tensors.pop(f"weights.{name}")
        if weight.shape != parameter.data.shape or weight.dtype != np.float32:
            raise ValueError(f"{name} should be {parameter.data.shape} of float32, but is {weight.shape} of {weight.dtype}")
        parameter.data[...] = weight
    arrays = {name.removeprefix("run."): np.array(array) for name, array in tensors.items()}
    return Checkpoint(model, tokenizer, content["run"], arrays)

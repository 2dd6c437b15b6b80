"""A model in a fraction of its size: weights rounded to multiples of a step, and those integers through our own range coder.

    python -m coder.packed out/model.safetensors packed.gpt             pack a trained model,
    python -m coder.packed a/model.safetensors b/model.safetensors ab.gpt       or several, to be an ensemble

    offset  bytes   field
    0       4       magic: 89 4D 47 50
    4       32      SHA-256 of all that follows
    36      4       n: bytes of the description, unsigned, little-endian
    40      n       description, JSON: the config of the model, or of each of several, the SHA-256 of the text that it was
                    trained on (or null), and [name, step, largest] of each array in its order
    40+n            the arrays with step 0 as they are (float32, little-endian), then one code for all others

An array with a step is integers times that step: one multiplication of binary32 each, so the weights are exact, and the
same everywhere.  The integers, from -largest to largest, are coded with frequencies that are counted on the way, anew
for each array.  What the file takes is what knowing the model costs: the first part of a two-part code.
"""

import argparse
import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numba import njit

from minigpt.checkpoint import CheckpointError, fingerprint, load_checkpoint
from minigpt.ensemble import Ensemble, empty, members
from minigpt.kernels.sums import sum_of_squares
from minigpt.model import GPTConfig

from .range_coder import (decode_symbol, decode_target, encode_symbol, finish_encoding, overrun, start_decoding,
                          start_encoding)

MAGIC = b"\x89MGP"
SHIPPED = Path(__file__).with_name("shakespeare.gpt")
FINENESS = 12           # steps to a matrix's root mean square
COUNT = 24              # what each integer adds to its own frequency, which begins at 1


def load(path):
    """(GPT or Ensemble, SHA-256 of the text that it was trained on, or None), from a packed model or a checkpoint.
    CheckpointError where the file is missing, foreign or damaged."""
    try:
        with open(path, "rb") as file:
            if file.read(len(MAGIC)) == MAGIC:
                return unpack(MAGIC + file.read())
    except ValueError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    except OSError:
        pass                                    # load_checkpoint says it better
    checkpoint = load_checkpoint(path)
    return checkpoint.model, checkpoint.run.get("text_sha256")


def pack(model, text_sha256=None, fineness=FINENESS):
    """The packed model (bytes).  Matrices are rounded; vectors, which are few, are kept as they are."""
    described, whole, integers = [], [], []
    for name, parameter in model.parameters().items():
        data, step, largest = parameter.data, 0.0, 0
        if data.ndim == 2 and data.any():
            step = float(np.sqrt(np.float32(sum_of_squares(data)) / np.float32(data.size)) / np.float32(fineness))
            integers.append(np.rint(data / np.float32(step)).astype(np.int64).reshape(-1))
            largest = int(np.abs(integers[-1]).max())
        else:
            whole.append(data.astype("<f4").tobytes())
        described.append([name, step, largest])
    description = json.dumps({"configs": [asdict(member.config) for member in members(model)], "text_sha256": text_sha256,
                              "arrays": described}).encode()
    state, out = start_encoding()
    for values in integers:
        out = _encode(state, out, values, int(np.abs(values).max()))
    rest = len(description).to_bytes(4, "little") + description + b"".join(whole) + finish_encoding(state, out).tobytes()
    return MAGIC + hashlib.sha256(rest).digest() + rest


def unpack(file):
    """(GPT or Ensemble, text_sha256) of a packed model (bytes).  ValueError where it is damaged, cut off or something else."""
    if not file.startswith(MAGIC):
        raise ValueError("this is not a packed model")
    rest = file[36:]
    if hashlib.sha256(rest).digest() != file[4:36]:
        raise ValueError("the packed model is damaged or cut off")
    size = int.from_bytes(rest[:4], "little")
    described, place = json.loads(rest[4:4 + size]), 4 + size
    if "configs" not in described:
        raise ValueError("the packed model was made by another version of this program")
    model = empty([GPTConfig(**config) for config in described["configs"]])
    parameters = model.parameters()
    for name, step, _ in described["arrays"]:
        data = parameters[name].data
        if not step:
            data[...] = np.frombuffer(rest, "<f4", data.size, place).reshape(data.shape)
            place += 4 * data.size
    code = np.frombuffer(rest, np.uint8, offset=place)
    state = start_decoding(code)
    for name, step, largest in described["arrays"]:
        data = parameters[name].data
        if step:
            np.multiply(_decode(state, code, data.size, largest).reshape(data.shape), np.float32(step), out=data)
    if overrun(state, code):
        raise ValueError("the packed model's code ends too early")
    return model, described["text_sha256"]


@njit(cache=True)
def _encode(state, out, values, largest):
    frequencies = np.ones(2 * largest + 1, np.uint64)
    total = np.uint64(len(frequencies))
    for value in values:
        start = np.uint64(0)
        for f in frequencies[:value + largest]:
            start += f
        out = encode_symbol(state, out, start, frequencies[value + largest], total)
        frequencies[value + largest] += np.uint64(COUNT)
        total += np.uint64(COUNT)
    return out


@njit(cache=True)
def _decode(state, code, count, largest):
    values = np.empty(count, np.float32)
    frequencies = np.ones(2 * largest + 1, np.uint64)
    total = np.uint64(len(frequencies))
    for i in range(count):
        target, start, symbol = decode_target(state, total), np.uint64(0), 0
        while start + frequencies[symbol] <= target:
            start += frequencies[symbol]
            symbol += 1
        decode_symbol(state, code, start, frequencies[symbol])
        frequencies[symbol] += np.uint64(COUNT)
        total += np.uint64(COUNT)
        values[i] = symbol - largest
    return values


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m coder.packed", description="Pack a trained model, or several into one that "
                                     "predicts the mean of what they predict.")
    parser.add_argument("models", nargs="+", metavar="MODEL", help="a checkpoint of train_shakespeare.py")
    parser.add_argument("output", metavar="OUT")
    parser.add_argument("--fineness", type=float, default=FINENESS, help="steps to a matrix's root mean square "
                        f"(default: {FINENESS})")
    options = parser.parse_args(arguments)
    try:
        if not 0 < options.fineness <= 2 ** 12:
            raise ValueError(f"the fineness must be above 0 and at most 4096, but is {options.fineness}")
        models, texts = zip(*map(load, options.models))
        file = pack(Ensemble(models) if len(models) > 1 else models[0], texts[0] if len(set(texts)) == 1 else None,
                    options.fineness)
        part = Path(f"{options.output}.{os.getpid()}.part")
        part.write_bytes(file)
        os.replace(part, options.output)
    except (CheckpointError, ValueError, OSError) as error:
        raise SystemExit(f"coder.packed: {error}") from None
    print(f"{options.output}: {len(file):,} bytes, fingerprint {fingerprint(unpack(file)[0])}")


if __name__ == "__main__":
    main()

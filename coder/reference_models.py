"""A model's file read with NumPy alone, for reference.py: a list of (config, name -> weights), one for each GPT in it."""

import hashlib
import json

import numpy as np

from minigpt import reference
from minigpt.config import GPTConfig
from minigpt.exact import f32


def read(file, RangeDecoder):
    """The model of a checkpoint (a safetensors file) or of a packed model, as bytes.  Errors of any kind if it is neither."""
    return unpack(file, RangeDecoder) if file[:4] == b"\x89MGP" else read_checkpoint(file)


def read_checkpoint(file):
    size = int.from_bytes(file[:8], "little")
    header = json.loads(file[8:8 + size])
    content = json.loads(header["__metadata__"]["minigpt"].partition(" ")[2])
    w = {name.removeprefix("weights."): np.frombuffer(file, "<f4", (b - a) // 4, 8 + size + a).reshape(entry["shape"])
         for name, entry in header.items() if name.startswith("weights.") for a, b in [entry["data_offsets"]]}
    return [(GPTConfig(**content["config"]), w)]


def unpack(file, RangeDecoder):
    """A packed model: a description, then the arrays that are kept whole, then one range code of all others: integers, times
    a step."""
    if hashlib.sha256(file[36:]).digest() != file[4:36]:
        raise ValueError("the packed model is damaged or cut off")
    size = int.from_bytes(file[36:40], "little")
    described, place = json.loads(file[40:40 + size]), 40 + size
    model = [(GPTConfig(**config), {}) for config in described["configs"]]
    places = {(f"{i}." if len(model) > 1 else "") + name: (w, name, shape)
              for i, (config, w) in enumerate(model) for name, shape, _, _ in reference.parameters(config)}
    arrays = [(*places[name], step, largest) for name, step, largest in described["arrays"]]
    for w, name, shape, step, _ in arrays:
        if not step:
            w[name] = np.frombuffer(file, "<f4", int(np.prod(shape)), place).reshape(shape)
            place += w[name].nbytes
    decoder = RangeDecoder(file[place:])
    for w, name, shape, step, largest in arrays:
        if step:
            counts, total, values = [1] * (2 * largest + 1), 2 * largest + 1, np.empty(int(np.prod(shape)), f32)
            for i in range(values.size):
                symbol = decoder.decode(counts, total)
                counts[symbol] += 24
                total += 24
                values[i] = symbol - largest
            w[name] = values.reshape(shape) * f32(step)
    return model


def name_of(model):
    """The 8 bytes by which a file names its model: its weights, and what of the config decides how they are used."""
    arrays = {(f"{i}." if len(model) > 1 else "") + name: array for i, (_, w) in enumerate(model) for name, array in w.items()}
    weights = hashlib.sha256()
    for name in sorted(arrays):
        weights.update(f"{name} float32 {arrays[name].shape}\n".encode() + arrays[name].astype("<f4").tobytes())
    configs = [{name: value for name, value in config.to_json().items() if name != "dropout"} for config, _ in model]
    text = " ".join(json.dumps(config, sort_keys=True) for config in configs)
    return hashlib.sha256(f"{weights.hexdigest()} {text}".encode()).digest()[:8]

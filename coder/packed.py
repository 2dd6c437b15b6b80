"""A model in a fraction of its size: weights quantised to multiples of a step, then entropy-coded by our own range coder.

    offset  bytes   field
    0       4       magic: 89 4D 47 50
    4       32      SHA-256 of everything that follows
    36      4       n: bytes of the description, unsigned, little-endian
    40      n       description, a JSON object:
                        configs       a list: the fields of the config of each member, one member unless it is an ensemble
                        text_sha256   of the text that it was trained on, in hexadecimal, or null
                        arrays        [name, step, largest] of each array, in the order of model.parameters(); the
                                      configs give their shapes
    40+n            the arrays with step 0, as they are: row by row, float32, little-endian
                    one code of the range coder (range_coder.py) for all others, one array after the other

An array with a step holds integers q, -largest <= q <= largest, times that step, which is first rounded to binary32: one
multiplication of binary32 each, so the weights are the same everywhere.  The integers are coded row by row with adaptive
frequencies: at the start of an array each of the symbols q + largest, 0 .. 2 * largest, has the frequency 1, and INCREMENT more
after each of its occurrences.  The file's size is what knowing the model costs: the first part of a two-part code.
"""

import hashlib
import json

import numpy as np
from numba import njit

from minigpt.ensemble import Ensemble, combine
from minigpt.kernels.sums import sum_of_squares
from minigpt.model import GPT, GPTConfig

from .range_coder import (decode_symbol, decode_target, encode_symbol, find_symbol, finish_encoding, overrun, start_decoding,
                          start_encoding)

MAGIC = b"\x89MGP"
FINENESS = 12               # quantisation steps to a matrix's root mean square
FINEST = 2 ** 12
LARGEST_INTEGER = 2 ** 24   # no matrix of up to 2^24 weights has a larger one: largest <= sqrt(size) * FINEST
INCREMENT = 24


def pack(model: GPT | Ensemble, text_sha256: str | None = None, fineness: float | None = FINENESS) -> bytes:
    """The packed model.  Matrices are quantised, unless fineness is None; vectors, which are few, are kept as they are."""
    if fineness is not None and not 0 < fineness <= FINEST:
        raise ValueError(f"the fineness must be above 0 and at most {FINEST}, but is {fineness}")
    described, unquantised, integers = [], [], []
    for name, parameter in model.parameters().items():
        data, step, largest = parameter.data, 0.0, 0
        if fineness is not None and data.ndim == 2 and data.any():
            step = float(np.sqrt(np.float32(sum_of_squares(data.reshape(-1))) / np.float32(data.size)) / np.float32(fineness))
            integers.append(np.rint(data / np.float32(step)).astype(np.int64).reshape(-1))
            largest = int(np.abs(integers[-1]).max())
        else:
            unquantised.append(data.astype("<f4").tobytes())
        described.append([name, step, largest])
    description = json.dumps({"configs": [member.config.to_json() for member in model.members], "text_sha256": text_sha256,
                              "arrays": described}).encode()
    state, out = start_encoding()
    for values in integers:
        out = _encode(state, out, values, int(np.abs(values).max()))
    rest = len(description).to_bytes(4, "little") + description + b"".join(unquantised) + finish_encoding(state, out).tobytes()
    return MAGIC + hashlib.sha256(rest).digest() + rest


def unpack(file: bytes) -> tuple[GPT | Ensemble, str | None]:
    """The model of a packed model (bytes), and its text_sha256.

    ValueError where the file is something else, damaged, cut off, or of another version.
    """
    if not file.startswith(MAGIC):
        raise ValueError("this is not a packed model")
    rest = file[36:]
    if hashlib.sha256(rest).digest() != file[4:36]:
        raise ValueError("the packed model is damaged or cut off: SHA-256 mismatch")
    try:
        return _unpack(rest)
    except (ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, TypeError, ValueError) as error:
        raise ValueError("the packed model is not one that this version of the program can read: "
                         f"{type(error).__name__}: {' '.join(str(error).split())}") from None


def _unpack(rest):
    """`unpack` of what follows the SHA-256; all sorts of errors where it is not as the format says."""
    place = 4 + int.from_bytes(rest[:4], "little")
    described = json.loads(rest[4:place])
    configs, arrays = [GPTConfig(**config) for config in described["configs"]], described["arrays"]
    if any(config.n_layer > len(arrays) for config in configs):                 # found before any memory is taken
        raise ValueError("there are more layers than arrays")
    model = combine(GPT(config, seed=None) for config in configs)
    parameters = model.parameters()
    if [name for name, _, _ in arrays] != list(parameters):
        raise ValueError("the arrays are not those of the configs")
    for name, step, largest in arrays:
        data = parameters[name].data
        if not isinstance(step, float) or not isinstance(largest, int) or not 0 <= largest <= LARGEST_INTEGER:
            raise ValueError(f"{name} has the step {step!r} and the largest integer {largest!r}")
        if not step:
            data[...] = np.frombuffer(rest, "<f4", data.size, place).reshape(data.shape)
            place += 4 * data.size
    code = np.frombuffer(rest, np.uint8, offset=place)
    state = start_decoding(code)
    for name, step, largest in arrays:
        data = parameters[name].data
        if step:
            np.multiply(_decode(state, code, data.size, largest).reshape(data.shape), np.float32(step), out=data)
    if overrun(state, code):
        raise ValueError("the code ends too early")
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
        frequencies[value + largest] += np.uint64(INCREMENT)
        total += np.uint64(INCREMENT)
    return out


@njit(cache=True)
def _decode(state, code, count, largest):
    values = np.empty(count, np.float32)
    frequencies = np.ones(2 * largest + 1, np.uint64)
    total = np.uint64(len(frequencies))
    for i in range(count):
        symbol, start = find_symbol(frequencies, decode_target(state, total))
        decode_symbol(state, code, start, frequencies[symbol])
        frequencies[symbol] += np.uint64(INCREMENT)
        total += np.uint64(INCREMENT)
        values[i] = symbol - largest
    return values

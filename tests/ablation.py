"""What each context of the mixing model is worth: the bytes that a file grows by if it is left out, all else the same.

    python -m tests.ablation [--fast] FILE [BYTES]      of the file's first BYTES, or of all
"""

import sys
from pathlib import Path

import numpy as np

from coder.mixing.contexts import ALL_CONTEXTS, CONTEXTS, FAST_CONTEXTS
from coder.mixing.mixer import Mixing, MixingEncoder


def code_length(data, contexts, fast):
    """Of data (bytes), with those of CONTEXTS alone: bytes."""
    encoder = MixingEncoder(Mixing(len(data), fast=fast, contexts=contexts), len(data))
    encoder.encode(np.frombuffer(data, np.uint8).astype(np.int64), 0)
    return len(encoder.finish())


def main(arguments):
    fast = "--fast" in arguments
    path, *limit = (argument for argument in arguments if argument != "--fast")
    data = Path(path).read_bytes()[:int(limit[0]) if limit else None]
    contexts = range(FAST_CONTEXTS if fast else ALL_CONTEXTS)
    whole = code_length(data, contexts, fast)
    print(f"{whole:9,}  all {len(contexts)} contexts, of {len(data):,} bytes", flush=True)
    for omitted in contexts:
        loss = code_length(data, [i for i in contexts if i != omitted], fast) - whole
        print(f"{loss:+9,}  without {CONTEXTS[omitted][0]}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])

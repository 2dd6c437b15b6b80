"""4. The compressor run backwards is the generator: random bits, decoded, are text in the model's style.

A good code wastes hardly any bits, so nearly every sequence of bits is the code of something likely.  To decode random bits is
to sample from the model, and to encode the sample gives the bits back [cf. Cover and Thomas 2006, 5.11].
"""

from collections.abc import Callable
from math import log10
from typing import NamedTuple

import numpy as np

from minigpt import rng

from .. import codec, tokens
from ..container import CoderError
from ..predictor import Predictor, make_predictor
from ..range_coder import POSITION, REGISTER, start_decoding
from ..report import shown
from . import material

BYTES = 48                      # random ones
PRIMER = 2 ** 17                # bytes
PASSAGES, PROMPT, PASSAGE = 3, 64, 192      # passages of each text; bytes that are given, and bytes that follow
MOST = 2 ** 13                  # bytes of a text, at most
TAIL = b"\x80"                  # after the random bytes: the middle of all that may follow them


class Coder(NamedTuple):
    encode: Callable            # bytes -> code
    decode: Callable            # code, number of bytes -> bytes


class Sample(NamedTuple):
    text: bytes
    returned: int               # leading bits of the text's code that are those it was made of


def text_of(code: bytes, coder: Coder) -> bytes:
    """The text that the coder decodes from `code`, just long enough that its own code begins with `code`.

    The text decoded from code + TAIL has an interval around that number.  Once this is shorter than 2^-(8 * len(code) + 1),
    every number in it begins with `code`, and so does the text's own code.  CoderError if that takes more than MOST bytes.
    """
    size = 8 * len(code)
    while not coder.encode(text := coder.decode(code + TAIL + bytes(size), size)).startswith(code):
        if size > MOST // 2:
            raise CoderError(f"the text is too easy to predict: {len(code)} random bytes are more than {size:,} bytes of it")
        size *= 2
    low, high = 1, size
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if coder.encode(text[:middle]).startswith(code) else (middle + 1, high)
    return text[:low]


def equal_bits(a: bytes, b: bytes) -> int:
    """How many leading bits of a equal those of b, which is padded with zeros."""
    b = b[:len(a)].ljust(len(a), b"\0")
    different = np.flatnonzero(np.unpackbits(np.frombuffer(a, np.uint8)) != np.unpackbits(np.frombuffer(b, np.uint8)))
    return int(different[0]) if different.size else 8 * len(a)


def bytewise(make: Callable[[], Predictor]) -> Coder:
    """A Coder with a fresh predictor from make() for each text."""
    return Coder(lambda text: codec.encode_block(make(), text), lambda code, size: codec.decode_block(make(), code, size))


def coders(model, seen: bytes) -> dict[str, Coder]:
    return {"fast, which knows nothing": bytewise(lambda: make_predictor("fast", MOST)),
            f"fast, primed with {PRIMER:,} bytes": bytewise(lambda: make_predictor("fast", MOST, primer=seen[-PRIMER:])),
            "the bundled model": bytewise(lambda: Predictor(model))}


def tokens_of(code: bytes, model: tokens.TokenModel) -> bytes:
    """The text of the tokens that the model decodes from `code`, until it has used all of its bytes."""
    stream, ids, text = np.frombuffer(code + TAIL, np.uint8), np.full(1, model.tokenizer.vocab_size, np.int64), b""
    context, state = tokens.Context(model.model, 1), start_decoding(stream)
    while state[POSITION] < len(code) + REGISTER:
        ids = tokens.decode_tokens(state, stream, context.read(model.inputs(ids)[:, None])[:, 0], model.trie)
        text += model.tokenizer.decode_bytes(ids)
    return text


def recite(model, text: bytes, at: int) -> tuple[float, int, int, bool]:
    """For the passage after the PROMPT bytes at text[at]: its cost in bits given these, how many of its bytes the likeliest
    continuation gets right before the first error, the bytes of its code by itself, and whether that decodes."""
    prompt, passage = text[at:at + PROMPT], text[at + PROMPT:at + PROMPT + PASSAGE]
    bits = -np.log2(material.probabilities(model, prompt + passage)[PROMPT:]).sum()
    likeliest = material.frequencies(model, prompt + passage)[PROMPT:].argmax(1)        # after what is right so far
    right = next((i for i, (a, b) in enumerate(zip(likeliest, passage)) if a != b), len(passage))
    coder = bytewise(lambda: Predictor(model))
    code = coder.encode(passage)
    return float(bits), right, len(code), coder.decode(code, len(passage)) == passage


def run(data: str | None = None, size: int = BYTES, passages: int = PASSAGES) -> tuple[dict[str, Sample], list[tuple]]:
    """Print the texts that `size` random bytes decode to, and how passages are recited."""
    seen, held_out = material.text(data, least=PROMPT + PASSAGE)
    model, smollm2 = material.bundled(), material.smollm2()
    code, samples = rng.words(3, "backwards", 0, size).astype(np.uint8).tobytes(), {}
    for name, coder in coders(model, seen).items():
        text = text_of(code, coder)
        samples[name] = Sample(text, equal_bits(code, coder.encode(text)))
    if smollm2:
        text = tokens_of(code, smollm2)
        samples["SmolLM2, tokens"] = Sample(text, equal_bits(code, tokens.encode_block(smollm2, text)))
    print(f"The same {8 * size} random bits, decoded by:\n")
    material.table(("", "bytes of text", "bits per byte", "bits that its code gives back"),
                   *((name, f"{len(text):,}", f"{8 * size / len(text):.2f}", f"{returned} of {8 * size}")
                     for name, (text, returned) in samples.items()))
    for name, (text, _) in samples.items():
        line = "".join(map(shown, text.decode(errors="surrogateescape"))).replace("\n", "↵").replace("\t", "→")
        print(f"\n{name}:\n", *(line[i:i + 100] for i in range(0, len(line), 100)), sep="\n    ")
    rows = []
    for name, text in {"seen in training": seen, "held out": held_out}.items():
        for at in rng.integers(1, f"passages {name}", 0, passages, len(text) - PROMPT - PASSAGE + 1).tolist():
            rows.append((name, *recite(model, text, at)))
    print(f"\nPassages of {PASSAGE} bytes: after the {PROMPT} bytes before them, and from their own code:\n")
    material.table(("passage", "bits", "sampling recites it once in", "likeliest: right bytes", "code", "decoded"), *(
        (name, f"{bits:.0f}", f"10^{bits * log10(2):.0f}", f"{right}", f"{taken} bytes", "exactly" if exact else "wrongly")
        for name, bits, right, taken, exact in rows))
    print("""
This shows that compressor and generator are one machine: what a model makes of random bits is what it holds to be likely, and
to code that text gives the bits back. And that training loses what use does not: by itself the model recites no passage, but a
few bytes of code select any passage exactly, seen or not.
It does not show that the text means anything. And the bits come back only where a text is coded in one way: SmolLM2 may draw
tokens that its tokenizer would not choose for their bytes; that text has another, shorter or longer code.""")
    return samples, rows


def plot(figure, results):
    """The length of the text that each predictor makes of the same bits."""
    samples, _ = results
    axes = figure.subplots()
    axes.barh(list(samples), [len(sample.text) for sample in samples.values()])
    axes.invert_yaxis()
    axes.set_xlabel("bytes of text made of the same random bits")

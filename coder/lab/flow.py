"""A prompt and its answer, for the experiment `directed`: how many bits of the answer the prompt explains, byte by byte.

Speeches of the held-out text are cut in two.  The bundled GPT codes the second part with and without the first as its
context, and with the first part of another speech, which only shows what kind of text it is."""

import numpy as np

from minigpt.ensemble import Ensemble
from minigpt.model import GPT

from ..codec import START_SYMBOL
from ..frequencies import to_frequencies
from ..range_coder import Decoder, Encoder
from . import material

PART = 100                      # bytes of each part; both, and the start symbol, fit in a window of the bundled model
SPEECHES = 32                   # at most
EVIDENCE = 10                   # bits: chance saves as many once in 2^10 texts
PLACES = 0, 5, 10, 20, 40, 70, 100


def speeches(text: bytes, part: int = PART, most: int = SPEECHES) -> list[tuple[bytes, bytes]]:
    """(prompt, answer) for each speech that is long enough: its first `part` bytes up to a space, and as many after them."""
    pairs = []
    for speech in text.split(b"\n\n"):
        cut = speech.replace(b"\n", b" ").rfind(b" ", 0, part + 1)
        if cut > part // 2 and len(speech) >= cut + part:
            pairs.append((speech[:cut], speech[cut:cut + part]))
    return pairs[:most]


def predict(model: GPT | Ensemble, context: bytes, text: bytes) -> np.ndarray:
    """Frequencies (N, 256) uint32 of each byte of text (N bytes) after context and all of text before it."""
    ids = np.frombuffer(bytes([START_SYMBOL]) + context + text, np.uint8).astype(np.int64)
    return to_frequencies(model.forward(ids[None, :-1])[0, len(context):])


def encode(model: GPT | Ensemble, context: bytes, text: bytes) -> tuple[bytes, np.ndarray]:
    """The code of text for a decoder that knows the context, and what each byte costs: (N,) bits."""
    frequencies, symbols, encoder = predict(model, context, text), np.frombuffer(text, np.uint8), Encoder()
    encoder.encode(frequencies, symbols)
    chosen = frequencies[np.arange(len(text)), symbols]
    return encoder.finish(), np.log2(frequencies.sum(1, dtype=np.float64)) - np.log2(chosen)


def decode(model: GPT | Ensemble, context: bytes, code: bytes, size: int) -> bytes:
    """The `size` bytes of text, decoded byte by byte with a KV cache."""
    decoder, cache, text = Decoder(code), model.new_cache(1), b""
    ids = np.frombuffer(bytes([START_SYMBOL]) + context, np.uint8).astype(np.int64)
    logits = model.forward(ids[None], cache=cache)[:, -1]
    while len(text) < size:
        text += bytes([int(decoder.decode(to_frequencies(logits))[0])])
        if len(text) < size:
            logits = model.step(np.array([text[-1]]), cache)
    return text


def run(text: bytes, model: GPT | Ensemble | None = None) -> dict:
    """Print what prompts explain of their answers in `text`, and of one answer word by word."""
    model = model or material.bundled()
    pairs = speeches(text)
    prompts, answers = zip(*pairs)

    def coded(contexts, texts):
        codes, costs = zip(*(encode(model, context, part) for context, part in zip(contexts, texts)))
        return sum(map(len, codes)), np.stack(costs)
    nothing, others = [b""] * len(pairs), prompts[1:] + prompts[:1]             # the prompt of another speech: the null
    sizes, costs = zip(*(coded(contexts, answers) for contexts in (nothing, others, prompts)))
    costs = dict(zip(("no prompt", "another's prompt", "its own prompt"), costs))
    back = [sum(encode(model, context, prompt)[1].sum() for context, prompt in zip(contexts, prompts)) / len(pairs)
            for contexts in (nothing, answers[1:] + answers[:1], answers)]
    alone = costs["no prompt"].sum(1)
    print(f"Answers of {PART} bytes, {len(pairs)} of them, coded by the bundled model\n")
    material.table(("known", "bytes of code", "bits an answer", "explained", f"{EVIDENCE} bits or more", "backwards"),
                   *((name, f"{size:,}", f"{cost.sum(1).mean():.1f}", f"{(alone - cost.sum(1)).mean():.1f}",
                      f"{np.sum(alone - cost.sum(1) >= EVIDENCE)}", f"{back[0] - row:.1f}")
                     for (name, cost), size, row in zip(costs.items(), sizes, back)))
    print("(backwards: bits that the answer, put before the prompt, explains of the prompt)")
    flow = {name: costs["no prompt"] - costs[name] for name in list(costs)[1:]}
    print("\nThe flow: bits explained per byte, by place in the answer\n")
    material.table(("bytes of the answer", *flow), *(
        (f"{start + 1}-{stop}", *(f"{saved[:, start:stop].mean():.2f}" for saved in flow.values()))
        for start, stop in zip(PLACES, PLACES[1:])))
    meaning = flow["its own prompt"] - flow["another's prompt"]
    best = int(meaning.sum(1).argmax())
    print(f"\nThe answer of which its prompt explains most beyond another's, {meaning[best].sum():.1f} bits, word by word:\n")
    print(f"    {prompts[best].decode(errors='replace')} ...".replace("\n", "\n    "))
    print("    " + " ".join(f"{word} {saved:+.1f}" for word, saved in words(answers[best], meaning[best])))
    print("\nThis shows how much of an answer a prompt explains to this model, and where. It does not show that the\n"
          "prompt caused the answer, nor a relation that this model does not know. \"Backwards\" is no mutual information: a\n"
          "model that has learned to read forwards gives the other order less, although under one distribution\n"
          "both are equal.")
    return {"flow": flow}


def words(text: bytes, saved: np.ndarray) -> list[tuple[str, float]]:
    """(word, bits) for each word of text, with the space before it."""
    spaces = [i for i, byte in enumerate(text) if byte in b" \n" and text[i + 1:i + 2].strip()]
    starts = sorted({0, *spaces})
    return [(text[start:stop].decode(errors="replace").strip(), float(saved[start:stop].sum()))
            for start, stop in zip(starts, [*starts[1:], len(text)])]


def plot(axes, results: dict) -> None:
    """The bits explained up to each byte of the answer: running sums of the means."""
    for name, saved in results["flow"].items():
        axes.plot(np.cumsum(saved.mean(0)), label=name)
    axes.set(xlabel="bytes of the answer", ylabel="bits explained by the prompt")
    axes.legend(fontsize=6)

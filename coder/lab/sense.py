"""5. Sense, order, noise: what a sentence costs, its words shuffled, random words, random letters.

What a model knows of a language shows in what surprises it: letters that form no words, words that form no sentence, and
sentences that nobody would say.  Measured: the cost of each, in bits, under each available model.
"""

import re
from collections.abc import Callable
from copy import copy

import numpy as np

from minigpt import rng
from minigpt.corpus import CorpusError

from .. import tokens
from ..mixing.mixer import Memory, Mixing, MixingEncoder
from ..range_coder import LENGTH, RANGE, start_encoding
from . import material

SENTENCES = 12
PRIMER = 2 ** 17                                        # bytes
LONGEST = 4096                                          # bytes of a sentence
KINDS = "a sentence", "its words shuffled", "random words", "random letters"
CHINESE = dict(zip(KINDS, ("人工智能将重塑未来产业格局", "产业未来将格局人工智能重塑", "猫枕头跳跃蓝色因为星期三")))
LETTERS = "abcdefghijklmnopqrstuvwxyz "
HAN = 0x4E00, 0x9FA5                                    # of Unicode: the first Chinese character, and the last of version 1.1


def bits_of(state: np.ndarray) -> float:
    """The bits that an encoder in this state (3,) has used so far: -log2 of the length of its interval."""
    return 8 * float(state[LENGTH]) + 64 - float(np.log2(float(state[RANGE])))


def gpt_bits(model) -> Callable[[bytes], float]:
    return lambda text: float(-np.log2(material.probabilities(model, text)).sum())


def fast_bits(primer: bytes = b"") -> Callable[[bytes], float]:
    """The cost under context mixing that has learned from the primer, and from nothing else before each text."""
    primed = Mixing(len(primer) + LONGEST, fast=True)
    if primer:
        primed.prime(primer)

    def bits(text):
        mixing = copy(primed)
        mixing.memory = Memory(*map(np.copy, primed.memory))
        encoder = MixingEncoder(mixing, len(text))
        encoder.encode(np.frombuffer(text, np.uint8).astype(np.int64), 0)
        return bits_of(encoder._state)
    return bits


def token_bits(model: tokens.TokenModel) -> Callable[[bytes], float]:
    def bits(text):
        ids, context, (state, out) = model.tokenizer.encode(text), tokens.Context(model.model, 1), start_encoding()
        inputs = model.inputs(np.array([[model.tokenizer.vocab_size, *ids[:-1]]]))
        for t in range(0, len(ids), context.chunk):
            logits = context.read(inputs[:, t:t + context.chunk])
            out = tokens.encode_tokens(state, out, logits[0], np.asarray(ids[t:t + context.chunk], np.int64), model.trie)
        return bits_of(state)
    return bits


def drawn(items, count: int, step: int, purpose: str) -> list:
    """`count` of the items, each drawn uniformly from all of them."""
    return [items[i] for i in rng.integers(1, f"sense {purpose}", step, count, len(items))]


def variants(sentence: str, words: list[str], step: int) -> dict[str, str]:
    """A text of each kind, with as many words or letters as the sentence; words: those to draw from."""
    own = sentence.split()
    order = np.argsort(rng.words(1, "sense shuffled", step, len(own)), kind="stable")
    return dict(zip(KINDS, (sentence, " ".join(own[i] for i in order), " ".join(drawn(words, len(own), step, "words")),
                            "".join(drawn(LETTERS, len(sentence), step, "letters")))))


def sentences(text: bytes, count: int) -> list[str]:
    """Sentences of 8 to 16 words from all over the text."""
    found = [" ".join(s.split()) for s in re.findall(r"[A-Z][^.?!:]+[.?!]", text.decode(errors="ignore"))]
    found = [s for s in found if 8 <= len(s.split()) <= 16]
    return found[::max(1, len(found) // count)][:count]


def run(data: str | None = None, count: int = SENTENCES) -> dict[str, np.ndarray]:
    """Print what the kinds of text cost.  Returns bits (count, 4) of the English ones for each model."""
    seen, held_out = material.text(data, least=1024)
    smollm2 = material.smollm2()
    models = {"bundled GPT": gpt_bits(material.bundled()), "fast": fast_bits(), "fast, primed": fast_bits(seen[-PRIMER:])}
    models |= {"SmolLM2": token_bits(smollm2)} if smollm2 else {}
    words = sorted(set(re.findall(r"[A-Za-z']+", seen.decode(errors="ignore"))))
    english = [variants(sentence, words, i) for i, sentence in enumerate(sentences(held_out, count))]
    if not english:
        raise CorpusError("the held-out part of the text has no English sentence of 8 to 16 words")
    for kind, text in english[0].items():
        print(f"    {kind:<20}{text}")
    sizes = np.array([[len(texts[kind].encode()) for kind in KINDS] for texts in english])
    results = {name: np.array([[bits(texts[kind].encode()) for kind in KINDS] for texts in english])
               for name, bits in models.items()}
    names, columns = list(models), list(enumerate(KINDS))
    print("\nBits of these four:\n")
    material.table(("", *names), *((kind, *(f"{results[name][0, k]:.0f}" for name in names)) for k, kind in columns))
    print(f"\nMean of {len(english)} held-out sentences, and of what was made of them: bits, and bits per byte\n")
    material.table(("", *names), *((kind, *(
        f"{results[name][:, k].mean():.0f}, {results[name][:, k].sum() / sizes[:, k].sum():.2f}" for name in names))
        for k, kind in columns))
    ordered = {name: (np.diff(results[name], axis=1) > 0).all(1).sum() for name in names}
    print("\nSentences of which each kind takes more bits than the one before: " +
          ", ".join(f"{name} {n} of {len(english)}" for name, n in ordered.items()) + ".\n\nChinese, as UTF-8, in bits:\n")
    random_han = "".join(chr(HAN[0] + i) for i in rng.integers(1, "sense han", 0, 13, HAN[1] - HAN[0] + 1))
    chinese = {**CHINESE, "random characters": random_han}
    material.table(("", "", "bytes", *names), *((kind, text, f"{len(text.encode())}", *(
        f"{models[name](text.encode()):.0f}" for name in names)) for kind, text in chinese.items()))
    print("""
This shows that a model which knows the language pays for order as well as for letters, and that one which knows nothing pays
about the same for each byte of all four. It does not show sense apart from form: what a model calls likely is what resembles
its training text. Random words cost more than shuffled ones by the sentence, but hardly by the byte, since the words of a
vocabulary are long. The bundled model has read no byte of Chinese: to it all is equally impossible, at 24 bits a byte, three
times what storing takes.""")
    if smollm2:
        print("SmolLM2, which has read mostly English, tells words from random characters; that it tells a sentence from its\n"
              "own words shuffled does not show here, and three lines could not prove it.")
    return results


def plot(figure, results):
    """Bits of each kind of text, for each model: the mean, and every sentence."""
    axes = figure.subplots()
    for i, (name, bits) in enumerate(results.items()):
        x = np.arange(len(KINDS)) + 0.2 * (i - (len(results) - 1) / 2)
        axes.bar(x, bits.mean(0), 0.18, label=name)
        axes.plot(x, bits.T, ".", color="black", markersize=2)
    axes.set_xticks(range(len(KINDS)), KINDS)
    axes.set_ylabel("bits")
    axes.legend()

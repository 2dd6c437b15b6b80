"""2. Huffman coding with the same predictions: what whole bits cost, beside arithmetic coding.

A Huffman code gives each symbol a whole number of bits, at least one, and no such prefix-free code is shorter on average
[Huffman 1952].  Here each byte of a text has a code of its own, made from the integer frequencies that the range coder gets.
"""

from heapq import heapify, heappop, heapreplace
from typing import NamedTuple

import numpy as np

from ..range_coder import Encoder
from . import material

SIZE = 8192
CLASSES = 0, 0.01, 0.1, 0.5, 0.9, 0.99, 1.0             # the byte's probability
SOURCES = (1, 1), (4, 2, 1, 1), (16, 8, 4, 2, 1, 1), (1, 1, 1), (40, 20, 20, 10, 10), (95, 5), (9999, 1)        # weights


class Results(NamedTuple):
    """For each of N positions, in bits."""
    entropy: np.ndarray         # (N,) H, of the prediction
    expected: np.ndarray        # (N,) L, the Huffman code's mean length under the prediction
    ideal: np.ndarray           # (N,) -log2 of the probability that the byte had
    huffman: np.ndarray         # (N,) int64: the length of the byte's codeword
    largest: np.ndarray         # (N,) the probability of the likeliest byte


def code_lengths(weights: np.ndarray) -> np.ndarray:
    """(V,) int64: the length in bits of each symbol's codeword, for weights (V,), integers >= 1; V >= 2."""
    V = len(weights)
    heap, parent, depth = [(int(weight), i) for i, weight in enumerate(weights)], [0] * (2 * V - 1), [0] * (2 * V - 1)
    heapify(heap)                                       # among equal weights, the older node: the answer is unique
    for node in range(V, 2 * V - 1):
        weight, i = heappop(heap)
        parent[i] = parent[heap[0][1]] = node
        heapreplace(heap, (weight + heap[0][0], node))
    for node in reversed(range(2 * V - 2)):             # a parent is younger than its children
        depth[node] = depth[parent[node]] + 1
    return np.array(depth[:V])


def codewords(lengths: np.ndarray) -> list[str]:
    """The canonical prefix-free code with these lengths (V,): shorter codewords first, equally long ones in symbol order."""
    words, code, last = [""] * len(lengths), -1, 0
    for symbol in np.argsort(lengths, kind="stable"):
        code, last = (code + 1) << int(lengths[symbol]) - last, int(lengths[symbol])
        words[symbol] = format(code, f"0{last}b")
    return words


def encode(lengths: np.ndarray, data: bytes) -> str:
    """The code of data, as a string of 0s and 1s; byte i has its codeword in the code with lengths[i], of lengths (N, 256)."""
    return "".join(codewords(row)[byte] for row, byte in zip(lengths, data))


def decode(lengths: np.ndarray, code: str) -> bytes:
    data, at = bytearray(), 0
    for row in lengths:
        symbols, end = {word: symbol for symbol, word in enumerate(codewords(row))}, at + 1
        while code[at:end] not in symbols:
            end += 1
        data.append(symbols[code[at:end]])
        at = end
    return bytes(data)


def compare(frequencies: np.ndarray, symbols: np.ndarray) -> tuple[Results, np.ndarray]:
    """The Results for symbols (N,) with frequencies (N, V), and the lengths (N, V) of all codewords."""
    lengths = np.array([code_lengths(row) for row in frequencies])
    p, at = frequencies / frequencies.sum(1, keepdims=True, dtype=np.float64), np.arange(len(symbols))
    return Results(-(p * np.log2(p)).sum(1), (p * lengths).sum(1), -np.log2(p[at, symbols]), lengths[at, symbols],
                   p.max(1)), lengths


def run(data: str | None = None, size: int = SIZE) -> Results:
    """Print the comparison for `size` held-out bytes."""
    _, held_out = material.text(data, least=1024)
    part = held_out[:size]
    print("Sources of which everything is known, in bits per symbol:\n")
    rows = []
    for weights in SOURCES:
        own, _ = compare(np.array([weights]), np.zeros(1, int))
        rows.append((" : ".join(map(str, weights)), f"{own.entropy[0]:.4f}", f"{own.expected[0]:.4f}",
                     f"{own.expected[0] - own.entropy[0]:.4f}"))
    material.table(("probabilities as", "entropy H", "Huffman L", "L - H"), *rows)
    frequencies, symbols = material.frequencies(material.bundled(), part), np.frombuffer(part, np.uint8).astype(np.int64)
    results, lengths = compare(frequencies, symbols)
    code = encode(lengths, part)
    if decode(lengths, code) != part:
        raise AssertionError("the Huffman code does not decode")
    encoder = Encoder()
    encoder.encode(frequencies, symbols)
    redundancy = results.expected - results.entropy
    print(f"\nThe first {len(part):,} held-out bytes, with the bundled model's prediction of each:\n")
    totals = {"mean entropy H of the predictions": results.entropy.sum(),
              "mean length L, if the predictions were true": results.expected.sum(),
              "-log2 of the probability of each byte": results.ideal.sum(),
              "range coder": 8 * len(encoder.finish()), "Huffman code, decoded and compared": len(code)}
    material.table(("", "bits per byte", "bytes"),
                   *((name, f"{bits / len(part):.4f}", f"{-(-bits // 8):,.0f}") for name, bits in totals.items()))
    print(f"\nL - H goes from {redundancy.min():.4f} to {redundancy.max():.4f}, with H <= L < H + 1 at "
          f"{np.mean((redundancy > -1e-9) & (redundancy < 1)):.2%} of the positions.\n")
    rows, p, loss = [], 2.0 ** -results.ideal, results.huffman - results.ideal
    for low, high in zip(CLASSES, CLASSES[1:]):
        these = (p > low) & (p <= high)
        if these.any():
            rows.append((f"{low:g} to {high:g}", f"{these.mean():.1%}", f"{results.ideal[these].mean():.3f}",
                         f"{results.huffman[these].mean():.3f}", f"{loss[these].sum() / len(part):+.4f}"))
    material.table(("probability of the byte", "of all bytes", "-log2 p", "Huffman bits", "loss, bits per byte"), *rows)
    cost = loss.sum() / results.ideal.sum()
    print(f"""
This shows that a prediction is worth only what the code makes of it: a byte of probability 0.95 carries 0.07 bits, and a
code of whole bits takes 1. The better the model predicts, the more such bytes there are; here whole bits cost {cost:.1%} more.
It does not show that Huffman coding is bad: no code that spells each symbol by itself is shorter, and where all probabilities
are powers of 1/2, L is H. Codes for n symbols at once come within 1 / n of H a symbol, but need 256^n codewords.""")
    return results


def plot(figure, results):
    """L - H against the probability of the likeliest byte."""
    axes = figure.subplots()
    axes.plot(results.largest, results.expected - results.entropy, ".", markersize=2)
    axes.axhline(1, color="tab:red", linewidth=1)
    axes.set(xlabel="probability of the likeliest byte", ylabel="L - H (bits)", ylim=(0, 1.05))
    axes.grid(alpha=0.3)

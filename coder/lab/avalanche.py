"""3. The avalanche: one wrong bit in a text, in gzip's file and in ours, and what checksums and parity make of it.

A compressed file stores only what does not follow from what came before, so after a wrong bit everything is read in the light
of a wrong past.  "Checks off" is the code alone, without header and checksums.
"""

import zlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from minigpt import rng

from .. import codec
from ..compressor import compress, decompress, salvage
from ..container import CoderError
from ..parity import protect, repair
from ..predictor import make_predictor
from ..report import shown
from . import material
from .channel import PARITY, PROTECTED, channel, flip, print_channel

SIZE, FLIPS, BLOCK_BITS = 8192, 6, 12
BEFORE, BEHIND, REST = 24, 72, 512                      # bytes shown before and after the error; bytes whose cost is shown


class Damaged(NamedTuple):
    data: bytes             # the decoder's output; missing bytes are 0
    refused: bool


class Method(NamedTuple):
    name: str
    file: bytes
    decode: Callable        # bytes -> Damaged
    order: np.ndarray       # (size,): the positions of the text in the order in which they are coded


def methods(text: bytes, model, block_bits: int = BLOCK_BITS) -> list[Method]:
    size, straight = len(text), np.arange(len(text))

    def deflate(text, window_bits):
        packer = zlib.compressobj(9, zlib.DEFLATED, window_bits)
        return packer.compress(text) + packer.flush()

    def inflate(code):
        decoder, data, refused = zlib.decompressobj(-15), b"", False
        try:
            for byte in code:                           # one by one, so that what comes before an error is kept
                data += decoder.decompress(bytes([byte]))
        except zlib.error:
            refused = True
        return Damaged(data[:size].ljust(size, b"\0"), refused)

    def unchecked(mode):                                # zeros appended, so that no code is too short
        return lambda code: Damaged(codec.decode_block(make_predictor(mode, size, model), code + bytes(size), size), False)

    def checked(decoder):
        def decode(file):
            try:
                return Damaged(decoder(file), False)
            except (CoderError, zlib.error):
                return Damaged(bytes(size), True)
        return decode

    def mended(damaged):                                # a file that is whole again decodes to the text, as checked below
        whole, _ = repair(damaged)
        return text if whole == protected else decompress(whole[:len(file)], lambda _: model)

    def saved(file):
        try:
            data, missing = salvage(file, lambda _: model)
        except CoderError:
            return Damaged(bytes(size), True)
        for start, stop in missing:
            data = data[:start] + bytes(stop - start) + data[start:]
        return Damaged(data, bool(missing))

    places = codec.lay_out(make_predictor("static", size, model), text).places()
    file = compress(text, "static", model, block_bits=block_bits)
    protected = file + protect(file, PARITY)
    codes = {mode: codec.encode_block(make_predictor(mode, size, model), text) for mode in ("fast", "static")}
    return [Method("the text itself", text, lambda file: Damaged(file, False), straight),
            Method("gzip -9, checks off", deflate(text, -15), inflate, straight),
            Method("fast, checks off", codes["fast"], unchecked("fast"), straight),
            Method("static, checks off", codes["static"], unchecked("static"), places),
            Method("gzip -9", deflate(text, 31), checked(lambda file: zlib.decompress(file, 31)), straight),
            Method("static", file, checked(lambda file: decompress(file, lambda _: model)), straight),
            Method("static, --salvage", file, saved, straight),
            Method(PROTECTED, protected, checked(mended), straight)]


def all_flips(method: Method, text: bytes) -> tuple[int, int]:
    """Of all files with one wrong bit, how many are not refused, and how many of these decode to another text."""
    answers = [method.decode(flip(method.file, bit)) for bit in range(8 * len(method.file))]
    return sum(not answer.refused for answer in answers), sum(answer.data != text for answer in answers if not answer.refused)


def run(data: str | None = None, size: int = SIZE, flips: int = FLIPS, block_bits: int = BLOCK_BITS) -> dict[str, np.ndarray]:
    """Print what one wrong bit does to `size` held-out bytes; return which are right, (flips, size) bool, for each method."""
    text, model = material.text(data, least=2048)[1][:size], material.bundled().members[0]    # one of three: faster
    rows, results, samples, every = [], {}, [], []
    for method in methods(text, model, block_bits):
        name, file, decode, order = method
        if decode(file) != Damaged(text, False):
            raise AssertionError(f"{name} does not decode")
        right, refused, first = np.empty((flips, len(text)), bool), 0, []
        for i, u in enumerate([0.5, *rng.uniform(1, "avalanche", 0, flips - 1).tolist()]):
            damaged = decode(flip(file, int(u * 8 * len(file))))
            right[i] = np.frombuffer(damaged.data, np.uint8) == np.frombuffer(text, np.uint8)
            refused += damaged.refused
            first.append(int(np.argmin(right[i][order])) if not right[i].all() else len(text))
            if i == 0 and "off" in name:
                samples.append((name, damaged.data, int(order[first[0]])))
        results[name] = right
        behind = np.concatenate([right[i][order][first[i] + 1:] for i in range(flips)])
        rows.append((name, f"{len(file):,}", f"{refused} of {flips}", f"{np.mean(first) / len(text):.1%}",
                     f"{behind.mean():.1%}" if len(behind) else "", f"{(~right).sum(1).mean():,.0f}"))
        if name in ("gzip -9", "static", PROTECTED):
            every.append((name, 8 * len(file), *all_flips(method, text)))
    print(f"One wrong bit, in {flips} places of each file in turn (the first {len(text):,} held-out bytes; gzip by zlib "
          f"{zlib.ZLIB_RUNTIME_VERSION}):\n")
    material.table(("", "bytes", "refused", "before the first wrong byte", "right behind it", "wrong or missing bytes"), *rows)
    print("\nThe rest, with the wrong bit in the middle of the file:\n")
    for name, damaged, at in [("the original", text, samples[-1][2]), *samples]:
        part = damaged[at:at + REST]
        cost = -np.log2(material.probabilities(model, part)).mean() if part else 0
        around = damaged[max(0, at - BEFORE):at], damaged[at:at + BEHIND]
        print(f"    {name}, {cost:.2f} bits per byte to the model:\n        " + " >>> ".join(
            "".join(shown(c) for c in piece.decode(errors="surrogateescape")).replace("\n", "↵") for piece in around))
    print("\nEvery file with one wrong bit:\n")
    material.table(("", "files", "not refused", "of these, another text"),
                   *((name, *(f"{count:,}" for count in counts)) for name, *counts in every))
    print_channel(channel(compress(text, "static", model, block_bits=block_bits)))
    print("""
This shows that a good compressor leaves nothing by which to tell an error: behind the wrong bit the model writes a text in
its own style, which surprises it no more than a real one; gzip, which copies and spells, recovers its step. So checksums are
needed, small blocks bound the loss, parity mends it. (gzip's unnoticed bits are in its header, and harmless.) On the channel,
parity is far from the capacity: one wrong bit costs it a slice, as much as a burst does.""")
    return results


def plot(figure, results):
    """Which bytes are right, for each method and place of the wrong bit."""
    for axes, (name, right) in zip(figure.subplots(len(results), 1, sharex=True), results.items()):
        axes.imshow(right, aspect="auto", cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes.set_yticks([])
        axes.set_ylabel(name.replace(", ", ",\n"), rotation=0, ha="right", va="center", fontsize=7)
    axes.set_xlabel("byte of the text (black: wrong or missing)")

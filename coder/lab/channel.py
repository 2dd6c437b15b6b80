"""Transmission errors, for the experiment `avalanche`: one wrong bit, and a binary symmetric channel.

On that channel each bit is flipped with probability p, independently of the others.  No code carries more than 1 - H(p) bits
per bit sent, and long ones come as close to that as one likes [Shannon 1948].  Parity is no such code: it is made for bursts.
"""

from typing import NamedTuple

import numpy as np

from minigpt import rng

from ..container import CoderError
from ..parity import protect, repair
from . import material
from .sources import entropy

PARITY = 5                              # percent, for one wrong bit
PROTECTED = f"static, parity {PARITY} %"
PARITIES = 0, 5, 20, 50, 100            # percent, for the channel
RUNS = 20                               # how often a file is sent
STEPS = 44                              # p goes up from 2^(-STEPS / 2)


class Sent(NamedTuple):
    percent: float          # of parity
    rate: float             # bits of the file per bit sent
    mended: float           # the largest p tried at which, as at all smaller ones, all of RUNS arrived; 0 if there is none
    limit: float            # the p at which the capacity is the rate: no code of this rate arrives beyond


def flip(file: bytes, bit: int) -> bytes:
    """The file with one bit inverted, 0 <= bit < 8 * len(file)."""
    return file[:bit >> 3] + bytes([file[bit >> 3] ^ 1 << (bit & 7)]) + file[(bit >> 3) + 1:]


def capacity(p: float) -> float:
    """Bits that the binary symmetric channel can carry per bit sent."""
    return 1 - entropy(p)


def send(file: bytes, p: float, run: int) -> bytes:
    """The file as it leaves the channel."""
    wrong = np.packbits(rng.uniform(1, f"channel {p}", run, 8 * len(file)) < np.float32(p))
    return (np.frombuffer(file, np.uint8) ^ wrong).tobytes()


def channel(file: bytes) -> list[Sent]:
    """How a file fares, with each of PARITIES, on worse and worse channels."""
    def arrives(sent, p, run):
        try:
            received = send(sent, p, run)
            return received == sent or sent != file and repair(received)[0] == sent
        except CoderError:
            return False
    results = []
    for percent in PARITIES:
        sent = file + protect(file, percent) if percent else file
        mended, low, high = 0.0, 0.0, 0.5
        for p in (2 ** (step / 2) for step in range(-STEPS, 0)):
            if not all(arrives(sent, p, run) for run in range(RUNS)):
                break
            mended = p
        for _ in range(50):
            middle = (low + high) / 2
            low, high = (middle, high) if capacity(middle) > len(file) / len(sent) else (low, middle)
        results.append(Sent(percent, len(file) / len(sent), mended, low))
    return results


def print_channel(results: list[Sent]) -> None:
    print("\nThe file of static with parity, on a channel in which each bit is wrong with probability p:\n")
    material.table(("parity", "rate", f"arrives {RUNS} times of {RUNS} up to p", "1 - H(p) there", "p where 1 - H(p) = rate"),
                   *((f"{sent.percent} %", f"{sent.rate:.3f}", f"{sent.mended:.1e}", f"{capacity(sent.mended):.5f}",
                      f"{sent.limit:.1e}") for sent in results))

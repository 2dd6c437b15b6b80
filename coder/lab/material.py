"""What the experiments share: a text, the models, and tables."""

import hashlib
import re
from collections.abc import Sequence
from unicodedata import east_asian_width

import numpy as np

from minigpt import corpus
from minigpt.ensemble import Ensemble
from minigpt.model import GPT
from minigpt.pretrained import SMOLLM2

from .. import models
from ..codec import lay_out
from ..predictor import Predictor
from ..tokens import TokenModel

NUMBER = re.compile(r"-|([<>+-]? ?\d[\d.,]*(e[+-]?\d+)?( ?%| \w+)?)?")


def text(data: str | None = None, least: int = 1) -> tuple[bytes, bytes]:
    """The first nine tenths of a text and the held-out last tenth: of tiny Shakespeare, or of the file `data`.

    The bundled model has learned from the first nine tenths of tiny Shakespeare.  CorpusError where there is no such text, or
    its last tenth has less than `least` bytes.
    """
    name, whole = corpus.load(data)
    seen, held_out = corpus.split(whole)
    if len(held_out) < least:
        raise corpus.CorpusError(f"{name} has {len(whole):,} bytes, but this needs a text of {10 * least:,} or more")
    tiny = corpus.CORPORA["shakespeare"]
    known = hashlib.sha256(whole).hexdigest() == tiny.sha256
    print(f"text: {tiny.title if known else name}, {len(whole):,} bytes, of which the last {len(held_out):,} are held out"
          f"{'' if known else ' (the figures in docs/LAB.md are those of tiny Shakespeare)'}\n", flush=True)
    return seen, held_out


def bundled() -> Ensemble | GPT:
    """The byte-level model that comes with the coder."""
    return models.load()[0]


def smollm2() -> TokenModel | None:
    """SmolLM2-135M-Instruct if it is cached, else None: an experiment does not fetch 93 MB."""
    return models.load("smollm2")[0] if corpus.cached(corpus.cache_folder(None), SMOLLM2) else None


def frequencies(model: GPT | Ensemble, data: bytes) -> np.ndarray:
    """(N, 256) uint32: the frequencies with which the range coder codes each byte of data, as one stream.  N >= 1."""
    predictor = Predictor(model)
    block = lay_out(predictor, data)
    return np.concatenate(predictor.predict(block.grid, list(predictor.windows(block.length))))


def probabilities(model: GPT | Ensemble, data: bytes) -> np.ndarray:
    """(N,) float64: the probability with which each byte of data is coded, its share of its `frequencies`."""
    rows = frequencies(model, data)
    return rows[np.arange(len(data)), np.frombuffer(data, np.uint8)] / rows.sum(1, dtype=np.float64)


def table(header: Sequence[str], *rows: Sequence[str]) -> None:
    """Print cells as a table in Markdown.  A column of numbers, with or without a unit, is aligned to the right."""
    right = [all(NUMBER.fullmatch(cell) for cell in column) for column in zip(*rows)]
    widths = [max(3, *map(width, column)) for column in zip(header, *rows)]
    rule = ["-" * (w - 1) + ":" if r else "-" * w for w, r in zip(widths, right)]
    for row in (header, rule, *rows):
        spaces = [" " * (w - width(cell)) for w, cell in zip(widths, row)]
        print("| " + " | ".join(space + cell if r else cell + space for cell, space, r in zip(row, spaces, right)) + " |")


def width(text: str) -> int:
    """How many terminal columns the text takes: a Chinese character takes two."""
    return sum(2 if east_asian_width(character) in "WF" else 1 for character in text)

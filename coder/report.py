"""The cost of each character of a text in bits, shown in colours: in the terminal, and as a page for the browser."""

import tempfile
from bisect import bisect_right
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minigpt.ensemble import Ensemble
from minigpt.files import write_atomically
from minigpt.model import GPT

from .codec import lay_out
from .compressor import BLOCK_BITS
from .container import CoderError
from .frequencies import to_frequencies
from .predictor import TOKENS_PER_PASS, static

PLACES, APART, AROUND = 20, 12, (28, 12)    # surprises: how many at most, characters between two, characters before and after
WIDTH = 96                                  # of a line in the terminal
VISIBLE = {"\n": "↵", "\t": "→"}


# --- the costs --------------------------------------------------------------------------------------------------------

class Costs(NamedTuple):
    ideal: np.ndarray       # (N,) bits of each byte: -log2 of the GPT's own probability, softmax and all in float64
    integer: np.ndarray     # (N,) bits of each byte, by the integer frequencies that the range coder gets
    guesses: np.ndarray     # (N,) uint8: the byte to which the GPT gave the highest probability
    fresh: np.ndarray       # (N,) bool: the first byte of a stream, predicted without context


def costs(model: GPT | Ensemble, data: bytes, progress: Callable = lambda count: None) -> Costs:
    """The Costs of data (at least one byte) as static codes it: the same blocks, streams and windows."""
    size = 1 << BLOCK_BITS
    parts = [_block_costs(static(model), data[start:start + size], progress) for start in range(0, len(data), size)]
    return Costs(*map(np.concatenate, zip(*parts)))


def _block_costs(predictor, data, progress):
    block = lay_out(predictor, data)
    inputs, symbols = block.grid[:-1], block.grid[1:]                           # (length, S)
    ideal, integer = np.empty(symbols.shape), np.empty(symbols.shape)
    guesses, fresh = np.empty(symbols.shape, np.uint8), np.zeros(symbols.shape, bool)
    fresh[0] = True
    for start, first, stop in predictor.windows(block.length):
        streams = max(1, TOKENS_PER_PASS // (stop - start))
        for s in range(0, block.S, streams):
            new = slice(start + first, stop), slice(s, s + streams)
            logits = predictor.model.forward(inputs[start:stop, s:s + streams].T)[:, first:].swapaxes(0, 1)    # (new, S, 256)
            integer[new] = _bits(to_frequencies(logits.reshape(-1, 256)).reshape(logits.shape).astype(np.float64), symbols[new])
            guesses[new] = logits.argmax(-1)
            logits = logits.astype(np.float64)
            ideal[new] = _bits(np.exp(logits - logits.max(-1, keepdims=True)), symbols[new])
        progress(block.S * (stop - start - first))
    order = np.argsort(block.places())                                          # of the block, among those coded
    return tuple(array.reshape(-1)[:len(data)][order] for array in (ideal, integer, guesses, fresh))


def _bits(weights, symbols):
    """-log2 of each symbol's share of its row of weights (T, S, 256)."""
    return np.log2(weights.sum(-1)) - np.log2(np.take_along_axis(weights, symbols[..., None], -1)[..., 0])


class Character(NamedTuple):
    text: str               # the character; a byte that is not UTF-8 is a lone surrogate (errors="surrogateescape")
    bits: float             # the cost of all its bytes
    expected: str           # the likeliest by the model
    fresh: bool             # the first of a stream


def characters(data: bytes, costs: Costs, bits: np.ndarray) -> list[Character]:
    """The Characters of data as UTF-8, in order; a byte that is not part of any is a Character of its own.

    bits: (N,), costs.ideal or costs.integer.
    """
    result, end = [], 0
    for text in data.decode(errors="surrogateescape"):
        start, end = end, end + len(text.encode(errors="surrogateescape"))
        guess = costs.guesses[start:end].tobytes().decode(errors="surrogateescape")[0]
        result.append(Character(text, float(bits[start:end].sum()), guess, bool(costs.fresh[start:end].any())))
    return result


def shown(text: str) -> str:
    """A character as it can be printed anywhere: itself if it is printable, else an escape."""
    if text.isprintable() or text in "\n\t":
        return text
    code = ord(text)
    if 0xDC80 <= code <= 0xDCFF or code < 0x80:                                 # a byte
        return f"\\x{code & 0xFF:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


# --- the colours ------------------------------------------------------------------------------------------------------

class Level(NamedTuple):
    threshold: float        # bits from which on a character is of this level
    light: tuple            # background and text colour, on a light page
    dark: tuple             # on a dark page
    terminal: tuple         # in the 256 colours of terminals


LEVELS = (
    Level(0, ("#ffffff", "#1d2129"), ("#15181e", "#c9ced8"), (231, 16)),
    Level(0.5, ("#fff6d0", "#1d2129"), ("#2a2519", "#d8d3c4"), (230, 16)),
    Level(1, ("#ffe9a0", "#1d2129"), ("#45371a", "#ece4cf"), (229, 16)),
    Level(2, ("#ffd166", "#1d2129"), ("#664a14", "#fbf1da"), (221, 16)),
    Level(4, ("#fca94a", "#1d2129"), ("#8a560f", "#ffffff"), (215, 16)),
    Level(6, ("#f27b4b", "#16110d"), ("#d97b1c", "#14110b"), (209, 16)),
    Level(8, ("#cc3340", "#ffffff"), ("#fb9f45", "#14110b"), (160, 231)),
    Level(12, ("#7a1046", "#ffffff"), ("#ffe29a", "#14110b"), (89, 231)),
)
THRESHOLDS = [level.threshold for level in LEVELS]


def level_of(bits: float) -> int:
    return bisect_right(THRESHOLDS, bits) - 1


def labels() -> list[str]:
    """The range of bits of each level, as text."""
    numbers = [f"{bits:g}" for bits in THRESHOLDS]
    return [f"{low} – {high}" for low, high in zip(numbers, numbers[1:])] + [f"{numbers[-1]} and more"]


def excerpt(chars: list[Character], colour: bool) -> str:
    """The characters as lines for a terminal.  Without colour, below each line its costs: one digit a character."""
    lines = [[]]
    for char in chars:
        cell = VISIBLE.get(char.text) or shown(char.text)
        if sum(len(cell) for cell, _ in lines[-1]) + len(cell) > WIDTH:
            lines.append([])
        lines[-1].append((cell, char.bits))
        if char.text == "\n":
            lines.append([])
    lines = [line for line in lines if line]
    if not colour:
        return "\n".join("".join(cell for cell, _ in line) + "\n" +
                         "".join(f"{min(9, round(bits)):<{len(cell)}}" for cell, bits in line) for line in lines)
    legend = " ".join(_painted(f" {label} ", level) for level, label in enumerate(labels()))
    return "\n".join(["".join(_painted(cell, level_of(bits)) for cell, bits in line) for line in lines] + [f"bits: {legend}"])


def _painted(text, level):
    paper, ink = LEVELS[level].terminal
    return f"\x1b[48;5;{paper}m\x1b[38;5;{ink}m{text}\x1b[0m"


# --- the page ---------------------------------------------------------------------------------------------------------

HEAD = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>What each character costs"""
STYLE = """
:root { color-scheme: light dark; --page: #f3f4f6; --rule: #d5d9e0; --faint: #5a6270; --link: #0b57a4; LIGHT }
@media (prefers-color-scheme: dark) { :root { --page: #0c0e12; --rule: #333945; --faint: #9aa3b2; --link: #8fbcf5; DARK } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 1.5rem; max-width: 80rem; background: var(--page); color: var(--ink0);
       font: 1rem/1.5 system-ui, sans-serif }
h1 { margin: 0; font-size: 1.6rem; line-height: 1.25 }
h2 { margin: 0 0 .4rem; font-size: 1rem }
header p { margin: .3rem 0 1.2rem; max-width: 60rem; overflow-wrap: anywhere }
main { display: grid; grid-template-columns: minmax(0, 1fr) 25rem; gap: 1.5rem; align-items: start }
section { background: var(--paper0); border: 1px solid var(--rule); border-radius: .5rem; padding: 1rem 1.2rem;
          margin: 0 0 1.5rem }
section p { margin: .6rem 0 0; color: var(--faint); font-size: .875rem }
aside { position: sticky; top: 1rem }
#text, li, table { font-family: ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace }
#text { white-space: break-spaces; overflow-wrap: anywhere; tab-size: 4; font-size: .95rem; line-height: 1.65 }
i { font-style: normal; padding: .12em 0 }
i.n::before { content: "↵"; opacity: .55 }
i:hover, i:target { outline: 2px solid var(--link); border-radius: 2px }
table { border-spacing: 0; font-size: .85rem; width: 100% }
th { color: var(--faint); font-weight: normal; text-align: right }
td { text-align: right; padding: .1rem 0 }
td:first-child { text-align: center; border-radius: .25rem; width: 8.5rem }
ol { margin: 0; padding: 0; list-style: none; max-height: 55vh; overflow-y: auto; font-size: .8rem }
li { padding: .3rem 0; border-top: 1px solid var(--rule) }
li:first-child { border: 0 }
li a { display: block; color: inherit; text-decoration: none; white-space: pre; overflow: hidden; text-overflow: ellipsis }
li a:hover { color: var(--link) }
li small { color: var(--faint) }
@media (max-width: 60rem) {
    main { grid-template-columns: minmax(0, 1fr) }
    aside { order: -1; position: static }
    ol { max-height: 16rem }
}
"""


def page(name: str, chars: list[Character], summary: str) -> str:
    """The HTML page: the text called name in its colours, a legend, and the most surprising places.

    summary: a sentence about text, model and code.  Everything is escaped here.
    """
    places = surprises(chars)
    style = STYLE
    for theme in "light", "dark":
        colours = enumerate(getattr(level, theme) for level in LEVELS)
        style = style.replace(theme.upper(), " ".join(f"--paper{i}: {paper}; --ink{i}: {ink};" for i, (paper, ink) in colours))
    style += "\n".join(f".l{i} {{ background: var(--paper{i}); color: var(--ink{i}) }}" for i in range(len(LEVELS)))
    return f"""{HEAD}: {_escaped(name)}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>{style}
</style>
<header>
<h1>What each character costs</h1>
<p>{_escaped(summary)}</p>
</header>
<main>
<section id="text">{"".join(_inked(char, i, i in places) for i, char in enumerate(chars))}</section>
<aside>
<section>
<h2>Bits</h2>
{_legend(chars)}
<p>n bits: the model gave it a probability of 1 in 2<sup>n</sup>. An uncompressed byte takes 8.
Point at a character to see its cost.</p>
</section>
<section>
<h2>The most surprising places</h2>
<ol>
{"".join(_surprise(chars, i) for i in places)}</ol>
</section>
</aside>
</main>
</html>
"""


def surprises(chars: list[Character]) -> list[int]:
    """The indices of the costliest characters, the costliest first; of neighbours only the costliest."""
    chosen = []
    for i in sorted(range(len(chars)), key=lambda i: -chars[i].bits):
        if all(abs(i - other) >= APART for other in chosen):
            chosen.append(i)
        if len(chosen) == PLACES:
            break
    return chosen


def _legend(chars):
    levels = [level_of(char.bits) for char in chars]
    total = sum(char.bits for char in chars) or 1.0
    rows = []
    for level, label in enumerate(labels()):
        bits = sum(char.bits for char, its in zip(chars, levels) if its == level)
        rows.append(f'<tr><td class="l{level}">{label}</td><td>{levels.count(level) / len(chars):.1%}</td>'
                    f"<td>{bits / total:.1%}</td></tr>")
    return "<table>\n<tr><th></th><th>characters</th><th>of all bits</th></tr>\n" + "\n".join(rows) + "\n</table>"


def _inked(char, i, target):
    newline = " n" if char.text == "\n" else ""
    return (f'<i class="l{level_of(char.bits)}{newline}"' + f' id="c{i}"' * target +
            f' title="{_named(char.text)}: {_said(char)}">{_escaped(char.text)}</i>')


def _surprise(chars, i):
    before, after = AROUND
    around = [VISIBLE.get(char.text) or _escaped(char.text) for char in chars[max(0, i - before):i + after + 1]]
    here = min(i, before)
    around[here] = f'<i class="l{level_of(chars[i].bits)}">{around[here]}</i>'
    return (f'<li><a href="#c{i}">{" " * (before - here)}{"".join(around)}</a>'
            f"<small>{_said(chars[i])}</small></li>\n")


def _said(char):
    guess = "as expected" if char.expected == char.text else f"expected {_named(char.expected)}"
    return f"{char.bits:.2f} bits, {guess}" + ", at the start of a stream, without any context" * char.fresh


def _named(text):
    return {" ": "space", "\n": "line break", "\t": "tab"}.get(text) or _escaped(text)


def _escaped(text):
    return escape("".join(map(shown, text)))


def claim(path: str | Path, head: str = HEAD):
    """CoderError unless a page can be written to path: better now than in a minute.  Only a page that begins with `head`, as
    ours do, is overwritten."""
    path = Path(path)
    try:
        if path.exists() and not (path.is_file() and path.read_bytes().startswith(head.encode())):
            raise CoderError(f"{path} exists and is not a page of this script: name another with --html")
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise CoderError(f"{path} cannot be written: {error.strerror}") from None


def save(path: str | Path, page: str):
    """Write the page whole or not at all.  OSError where that fails."""
    write_atomically(path, page.encode("utf-8"))

"""The pictures in README and docs, as SVG files beside this one, with colours for light and dark pages.  Every number in them is
the model's.

    python docs/pictures.py                         flow.svg, passage.svg, attention.svg: of the bundled model
    python docs/pictures.py out/model.safetensors   and loss.svg: of a run of train_shakespeare.py
"""

import math
import sys
from html import escape
from pathlib import Path

import numpy as np

from coder import models, report
from coder.codec import START_SYMBOL
from coder.compressor import compress
from coder.container import read
from coder.predictor import static
from minigpt.checkpoint import CheckpointError
from minigpt.files import write_atomically
from minigpt.look import forward, load, training

FOLDER = Path(__file__).parent
SENTENCE, BYTE = b"Good night, good reader; the file is shorter than the tale.", 18     # those of WALKTHROUGH.md
PASSAGE = b"""Good morrow, gentle reader. Here thou seest
A tale wherein each letter hath its price:
What any man might guess is cheap as air,
And what surprises thee is dearly bought.
My cousin Python keeps a quartz xylophone;
The zebra in the kitchen wept for joy."""
ATTENDING, BLOCK, HEAD = b"A merry heart, a merry tale", 4, 1
MONO = "ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace"
STYLE = """svg{--page:#ffffff;--ink:#1d2129;--faint:#5a6270;--box:#f3f4f6;--rule:#c3c9d3;--mark:#c2410c;--line:#0b57a4;--tint:11,87,164}
@media(prefers-color-scheme:dark){svg{--page:#0d1117;--ink:#dfe4ec;--faint:#9aa3b2;--box:#1a2029;--rule:#3d4654;--mark:#fb9f45;
--line:#8fbcf5;--tint:143,188,245}}
text{font-family:system-ui,-apple-system,'Segoe UI',sans-serif;font-size:13px;fill:var(--ink)}
.m{font-family:%s}.f{fill:var(--faint)}.s{font-size:11px}.k{fill:var(--mark);font-weight:600}.b{font-weight:600}
.box{fill:var(--box);stroke:var(--rule)}.line{fill:none;stroke:var(--faint);stroke-width:1.4}""" % MONO


def svg(width, height, title, body, style=""):
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">'
            f'\n<title>{escape(title)}</title>\n<style>{STYLE}{style}</style>\n'
            f'<rect width="{width}" height="{height}" rx="8" style="fill:var(--page)"/>\n' + "\n".join(body) + "\n</svg>\n")


def text(x, y, words, classes="", anchor="start"):
    return f'<text x="{x:g}" y="{y:g}" class="{classes}" text-anchor="{anchor}" xml:space="preserve">{words}</text>'


def arrow(*points):
    """A line through points (x, y), with a head at the last; its last part is horizontal or vertical."""
    (x0, y0), (x, y) = points[-2:]
    dx, dy = np.sign(x - x0), np.sign(y - y0)
    head = f"M{x - 6 * dx - 4 * dy:g} {y - 6 * dy - 4 * dx:g}L{x:g} {y:g}L{x - 6 * dx + 4 * dy:g} {y - 6 * dy + 4 * dx:g}"
    return f'<path class="line" d="M{"L".join(f"{x:g} {y:g}" for x, y in points)}{head}"/>'


# --- the flow ---------------------------------------------------------------------------------------------------------

def flow(model):
    """A byte of SENTENCE from the text to the file and back, with its numbers."""
    n, byte = BYTE - 1, SENTENCE[BYTE - 1]
    before, after = SENTENCE[:n][-5:].decode(), SENTENCE[n + 1:][:6].decode()
    inputs = np.array([START_SYMBOL, *SENTENCE[:-1]], np.int64)[:, None]
    f = static(model).predict(inputs, [(0, 0, len(SENTENCE))])[0][n].astype(np.int64)
    code = read(compress(SENTENCE, "static", model))[1][0].payload
    places = 0, 178, 306, 506, 684
    widths = 148, 98, 170, 148, 148
    titles = "text", "GPT", "integer frequencies", "range coder", "compressed file"
    body = []
    for y, name in (44, "compress"), (196, "decompress"):
        body.append(text(20, y - 14, name, "b f"))
        for x, width, title in zip(places, widths, titles):
            body.append(f'<rect class="box" x="{x + 20}" y="{y}" width="{width}" height="96" rx="6"/>')
            body.append(text(x + 30, y + 20, "range decoder" if name == "decompress" and title == "range coder" else title, "b"))
        for i, word in enumerate(("bytes", "logits")):
            body.append(arrow((places[i] + widths[i] + 22, y + 52), (places[i + 1] + 18, y + 52)))
        body.append(arrow((places[2] + widths[2] + 22, y + 52), (places[3] + 18, y + 52)))
        body.append(text(places[1] + 30, y + 46, "3 networks", "f s") + text(places[1] + 30, y + 62, "of 6 blocks", "f s"))
        order = np.argsort(-f, kind="stable")[:4].tolist()
        for i, symbol in enumerate([*order, byte]):
            bar = 64 * int(f[symbol]) / int(f.max())
            tint = "var(--mark)" if symbol == byte else "rgba(var(--tint),.6)"
            body.append(text(places[2] + 30, y + 38 + 13 * i, escape(chr(symbol)), "m s" + " k" * (symbol == byte)))
            body.append(f'<rect x="{places[2] + 44}" y="{y + 30 + 13 * i}" width="{bar:.1f}" height="8" style="fill:{tint}"/>')
            body.append(text(places[2] + 180, y + 38 + 13 * i, f"{f[symbol]:,}", "m s" + (" k" if symbol == byte else " f"), "end"))
        body.append(text(places[4] + 30, y + 46, code[:6].hex(" ").upper(), "m s"))
        body.append(text(places[4] + 30, y + 62, code[6:12].hex(" ").upper(), "m s"))
    y, bits = 44, math.log2(int(f.sum()) / int(f[byte]))
    body.append(text(30, y + 52, f'{before}<tspan class="k">{chr(byte)}</tspan>{after}', "m"))
    body.append(text(30, y + 82, f"{len(SENTENCE)} bytes", "f s"))
    body.append(text(places[3] + 30, y + 42, f"{chr(byte)}: {int(f[byte]) / int(f.sum()):.2%}", "m s k"))
    body.append(text(places[3] + 30, y + 60, f"-log2 p = {bits:.2f} bits", "m s k"))
    body.append(text(places[3] + 30, y + 82, "low, range: 64 bits", "f s"))
    body.append(text(places[4] + 30, y + 82, f"{len(code)} bytes and a header", "f s"))
    body.append(arrow((places[3] + widths[3] + 22, y + 52), (places[4] + 18, y + 52)))
    y = 196
    body.append(text(30, y + 52, f'{before}<tspan class="k">?</tspan>', "m"))
    body.append(text(30, y + 82, "the bytes found so far", "f s"))
    body.append(text(places[3] + 30, y + 42, "whose share holds", "s") + text(places[3] + 30, y + 58, "the code's number?", "s"))
    body.append(text(places[3] + 30, y + 82, f"{chr(byte)}", "m k"))
    body.append(arrow((places[4] + 18, y + 52), (places[3] + widths[3] + 22, y + 52)))
    body.append(arrow((places[3] + 94, y + 98), (places[3] + 94, y + 120), (94, y + 120), (94, y + 100)))
    body.append(text(places[2] + 20, y + 114, "the next byte", "f s"))
    body.append(text(places[1] + 20 + (widths[1] + widths[2] + 30) / 2, y - 24,
                     "the same bits on both sides, on every machine", "s b", "middle"))
    for x in places[1] + 69, places[2] + 105:
        body.append(f'<path class="line" stroke-dasharray="2 3" d="M{x} {y - 54}V{y - 38}M{x} {y - 17}V{y - 2}"/>')
    return svg(852, 330, "A byte from a text through the GPT and the range coder to the compressed file, and back", body)


# --- the passage ------------------------------------------------------------------------------------------------------

def passage(model):
    """PASSAGE, each character in the colour of its bits."""
    costs = report.costs(model, PASSAGE)
    chars = report.characters(PASSAGE, costs, costs.ideal)
    style = "".join(f".l{i}{{fill:{paper}}}.t{i}{{fill:{ink}}}" for i, (paper, ink) in enumerate(l.light for l in report.LEVELS))
    style += "@media(prefers-color-scheme:dark){" + "".join(
        f".l{i}{{fill:{paper}}}.t{i}{{fill:{ink}}}" for i, (paper, ink) in enumerate(l.dark for l in report.LEVELS)) + "}"
    w, h, body, lines = 15.2, 30, [], [[]]
    for char in chars:
        lines[-1].append(char)
        if char.text == "\n":
            lines.append([])
    for y, line in enumerate(lines):
        for x, char in enumerate(line):
            level, left, top = report.level_of(char.bits), 20 + w * x, 20 + h * y
            body.append(f'<rect class="l{level}" x="{left:.1f}" y="{top}" width="{w + .3:.1f}" height="{h - 4}"/>')
            if char.text != " ":
                ink = f"m t{level}" + " g" * (char.text == "\n")
                body.append(text(round(left + w / 2, 1), top + 19, escape(report.VISIBLE.get(char.text, char.text)), ink, "middle"))
    top, total = 20 + h * len(lines) + 14, costs.ideal.sum()
    body.append(text(20, top + 14, "bits", "f"))
    for level, label in enumerate(report.labels()):
        left = 62 + 68 * level
        body.append(f'<rect class="l{level}" x="{left}" y="{top}" width="{62 + 24 * (level == 7)}" height="20" rx="3" '
                    f'style="stroke:var(--rule)"/>')
        body.append(text(left + 31 + 12 * (level == 7), top + 14, label.replace(" – ", "–"), f"s t{level}", "middle"))
    body.append(text(20, top + 42, f"{len(PASSAGE)} bytes; the model needs {total:.0f} bits, {total / 8:.0f} bytes, "
                     f"{total / len(PASSAGE):.2f} bits per byte", "f"))
    return svg(714, top + 58, "A passage, each character coloured by the bits that it costs", body, ".m{font-size:17px}.g{opacity:.5}" + style)


# --- attention --------------------------------------------------------------------------------------------------------

def attention(model):
    """A head's attention over ATTENDING: row t, from where it looks; column, what it looks at."""
    ids = np.array([START_SYMBOL, *ATTENDING])
    rows = forward(model.members[0], ids, list(range(model.members[0].config.n_head)), BLOCK)["layers"][BLOCK - 1]
    rows, side, left, top, body = rows["attention"][HEAD - 1], 18, 46, 66, []
    names = ["↵", *("␣" if c == " " else c for c in ATTENDING.decode())]
    body.append(text(20, 26, f"Attention: block {BLOCK}, head {HEAD} of the bundled model", "b"))
    for t, (name, row) in enumerate(zip(names, rows)):
        body.append(text(left - 8, top + side * t + 13, name, "m s", "end"))
        body.append(text(left + side * t + side / 2, top - 8, name, "m s", "middle"))
        body.append(f'<rect class="box" x="{left}" y="{top + side * t}" width="{side * (t + 1)}" height="{side}" stroke-width=".5"/>')
        for column, weight in enumerate(row):
            if weight >= 0.005:
                body.append(f'<rect x="{left + side * column + 1}" y="{top + side * t + 1}" width="{side - 2}" height="{side - 2}" '
                            f'style="fill:rgba(var(--tint),{weight:.2f})"/>')
    x = left + side * 16
    for i, words in enumerate(["Row by row: where a byte", "looks for what comes next.", "No row looks ahead, and the", "weights of a row add up to 1."]):
        body.append(text(x, top + 20 + 17 * i, words, "f"))
    size = side * len(names)
    return svg(left + size + 20, top + size + 20, "An attention map of the bundled model", body)


# --- the loss ---------------------------------------------------------------------------------------------------------

def loss(path):
    """The losses of a run, beside what simpler models need."""
    subject = load(path)
    run, V = training(subject), subject.model.config.vocab_size
    losses, width, height, most = subject.losses, 760, 400, 6.0
    left, right, top, bottom = 56, width - 130, 34, height - 52
    steps = len(losses)

    def x(step):
        return left + (right - left) * step / steps

    def y(nats):
        return top + (bottom - top) * (1 - min(nats, most) / most)
    body = [text((left + right) / 2, height - 10, "training steps", "f", "middle"), text(20, 20, "loss (nats per byte)", "f")]
    for nats in range(int(most) + 1):
        body.append(f'<path d="M{left} {y(nats):.1f}H{right}" style="stroke:var(--rule);stroke-width:.6"/>')
        body.append(text(left - 8, y(nats) + 4, str(nats), "f s", "end"))
    for step in range(0, steps + 1, 500):
        body.append(text(x(step), bottom + 18, f"{step:,}", "f s", "middle"))
    rivals, lowest = {"uniform": math.log(V), **{name: bits * math.log(2) for name, bits in run["rivals"].items()}}, 0
    for name, nats in sorted(rivals.items(), key=lambda rival: -rival[1]):
        lowest = max(y(nats) + 4, lowest + 13)          # labels do not overlap
        body.append(f'<path d="M{left} {y(nats):.1f}H{right}" style="stroke:var(--faint);stroke-dasharray:5 4"/>')
        body.append(text(right + 8, lowest, f"{name}: {nats:.2f}", "f s"))
    mean = np.convolve(np.asarray(losses, np.float64), np.ones(20) / 20, "valid")
    points = [(i + 20, mean[i]) for i in range(0, len(mean), 5)]
    line = "L".join(f"{x(step):.1f} {y(value):.1f}" for step, value in points)
    body.append(f'<path d="M{line}" style="fill:none;stroke:var(--line);stroke-width:1.3"/>')
    for step, value in run["validations"]:
        body.append(f'<circle cx="{x(step):.1f}" cy="{y(value):.1f}" r="4" style="fill:var(--mark)"/>')
    step, value = run["validations"][-1]
    body.append(text(right + 8, y(value) + 4, f"held out: {value:.2f}", "s k"))
    body.append(text(right + 8, y(mean[-1]) + 18, f"training: {mean[-1]:.2f}", "s"))
    return svg(width, height, "The loss of a run of 2,000 steps, beside gzip and models of order 0 and 2", body)


def main(arguments):
    model = models.load()[0]
    pictures = {"flow": flow(model), "passage": passage(model), "attention": attention(model)}
    if arguments:
        pictures["loss"] = loss(arguments[0])
    for name, picture in pictures.items():
        path = FOLDER / f"{name}.svg"
        write_atomically(path, picture.encode())
        print(f"{path}: {len(picture.encode()):,} bytes")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (CheckpointError, OSError, ValueError) as error:
        sys.exit(f"pictures: {error}")

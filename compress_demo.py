"""Show how predictions become a compressed file, and how much smaller they make it.

    python compress_demo.py                     Shakespeare, or this project's README; some minutes
    python compress_demo.py FILE                a file of yours
    python compress_demo.py --html page.html    and a page that shows what each character costs
"""

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)        # until `main`: Ctrl-C during these imports ends without a traceback

import argparse
import hashlib
import importlib
import lzma
import os
import sys
import time
from contextlib import contextmanager
from fractions import Fraction
from functools import partial
from math import ceil, floor
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from coder import baselines, models, report
from coder.codec import START_SYMBOL
from coder.compressor import compress, decompress
from coder.container import MODES, PREDICTING, CoderError, read
from coder.intervals import WHOLE, bits, decode, shortest_code, steps
from coder.lab import avalanche, channel
from coder.predictor import static
from minigpt import corpus, rng
from minigpt.checkpoint import CheckpointError
from minigpt.exits import one_sentence

SENTENCE = b"To be, or not to be"
FIRST_BYTES = 8 * 1024      # of a longer text
WARM_UP = 1024              # bytes that each method compresses before it is timed: compilation is not part of its time
EXCERPT = 320               # characters
REST = 48                   # characters of what a wrong bit has made of a text
SENT = 4096                 # bytes of the text in whose files a bit is wrong
BAR_WIDTH = 24              # characters, for a whole interval
GENERAL = (                 # name, module, options; the second zstd is for Python before 3.14
    ("gzip -9", "gzip", {"compresslevel": 9}),
    ("bzip2 -9", "bz2", {"compresslevel": 9}),
    ("xz -9e", "lzma", {"preset": 9 | lzma.PRESET_EXTREME}),
    ("zstd -22", "compression.zstd", {"level": 22}),
    ("zstd -22", "zstandard", {"level": 22}),
    ("brotli -11", "brotli", {"quality": 11}),
)


def main(arguments=None):
    options = parse(arguments)
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:               # else it is ignored, as by nohup, or handled
        signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.stdout.reconfigure(errors="replace")
    with one_sentence("compress_demo", CoderError, CheckpointError, FloatingPointError,
                      interrupted="\ncompress_demo: interrupted"):
        run(options)


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", metavar="FILE", help="default: the validation split of the corpus that "
                        "train_shakespeare.py has fetched, else README.md")
    parser.add_argument("--bytes", type=int, default=FIRST_BYTES, metavar="N",
                        help=f"take only the first N bytes of a longer text (default: {FIRST_BYTES:,})")
    parser.add_argument("--model", metavar="FILE", help="a checkpoint or a packed model (default: the bundled model)")
    parser.add_argument("--html", metavar="OUT", help="write a page that colours each character by its cost in bits")
    options = parser.parse_args(arguments)
    if options.bytes < 1:
        parser.error("--bytes must be at least 1")
    return options


def run(options):
    if options.html:
        report.claim(options.html)
    model, size, trained_on = load(options.model)
    name, data = choose_text(options, trained_on)
    narrowing(model)
    results = measure(methods(model, size), {"the text": data, "shuffled": shuffled(data), "noise": noise(len(data))})
    sizes(results)
    texts = [row["the text"] for row in results.values()]
    accounts(texts)
    with bar("what each character costs", len(data)) as progress:
        costs = report.costs(model, data, progress)
    ideal(costs, next(result.file for result in texts if result.method.name == "GPT static"))
    errors(data[:SENT], model.members[0])
    chars = report.characters(data, costs, costs.ideal)
    excerpt(chars)
    if options.html:
        total = costs.ideal.sum()
        report.save(options.html, report.page(name, chars, f"{name}: {len(data):,} bytes, and what surprises the GPT "
                    f"in them: {total / 8:,.0f} bytes, {total / len(data):.3f} bits per byte."))
        print(f"\npage: {options.html}")


# --- texts, models and methods ---------------------------------------------------------------------------------------

def load(path):
    """The model, how many bytes carry it, and the SHA-256 of the text that it was trained on, or None."""
    model, trained_on = models.load(path)
    path = path or models.BUNDLED
    if model.config.vocab_size != 256:
        raise CoderError(f"{path} predicts {model.config.vocab_size} characters, but files are made of bytes: pass another "
                         "with --model, or train one with train_shakespeare.py --tokenizer bytes")
    weights = sum(parameter.data.size for parameter in model.parameters().values())
    sizes = " and ".join(f"{member.config.n_layer} layers of width {member.config.n_embd}" for member in model.members)
    print(f"model: {path}, {sizes}, windows of {model.config.block_size}: {weights:,} weights")
    return model, min(os.path.getsize(path), 4 * weights), trained_on       # a checkpoint holds more than weights


def choose_text(options, trained_on):
    """The name of the text, and its first bytes; of a text that the model was trained on, those of the validation split."""
    cached = next((c for c in corpus.CORPORA.values() if c.sha256 == trained_on), corpus.CORPORA["shakespeare"])
    if options.file:
        name, data = options.file, Path(options.file).read_bytes()
        if not data:
            raise CoderError(f"{name} is empty: there is nothing to predict")
    elif data := corpus.cached(corpus.cache_folder(None), cached):
        name = cached.title
    else:
        path = next(path for path in (Path(__file__).with_name("README.md"), Path(__file__)) if path.exists())
        name, data = path.name, path.read_bytes()
    if hashlib.sha256(data).hexdigest() == (trained_on if options.file else cached.sha256):
        name, data = f"{name}, the validation split", corpus.split(data)[1]
    part = f"the first {options.bytes:,} of its" if len(data) > options.bytes else "all"
    print(f"text: {name}, {part} {len(data):,} bytes")
    return name, data[:options.bytes]


def shuffled(data):
    order = np.argsort(rng.words(1, "shuffle", 0, len(data)), kind="stable")
    return np.frombuffer(data, np.uint8)[order].tobytes()


def noise(size):
    return rng.words(1, "noise", 0, size).astype(np.uint8).tobytes()


class Method(NamedTuple):
    name: str
    compress: Callable      # data -> file
    decompress: Callable    # file, len(data) -> data
    model: int = 0          # bytes of the model that both sides must have

    @property
    def shared(self):
        return f"model {self.model / 1e6:.1f} MB" if self.model else "nothing"


def methods(model, size):
    """Every compressor that is installed here, and ours: [Method, ...]."""
    found = {}
    for name, module, options in GENERAL:
        try:
            library = importlib.import_module(module)
        except ImportError:
            continue
        found[name] = Method(name, partial(library.compress, **options), lambda file, _, its=library: its.decompress(file))
    for order in 0, 2:
        name = f"order {order}"
        found[name] = Method(name, partial(baselines.compress, order=order), partial(baselines.decompress, order=order))
    ours = [our_method(mode, *(model, size) if MODES[mode].needs_model else ()) for mode in reversed(PREDICTING)]
    return [*found.values(), *ours]


def our_method(mode, model=None, size=0):
    name = "fast" if mode == "fast" else f"GPT {mode}"

    def pack(data):
        with bar(f"{name}, compressing", len(data)) as progress:
            return compress(data, mode, model, lambda count, taken: progress(count))

    def unpack(file, size):
        with bar(f"{name}, decompressing", size) as progress:
            return decompress(file, lambda fingerprint: model, progress)
    return Method(name, pack, unpack, size)


# --- the interval -----------------------------------------------------------------------------------------------------

def narrowing(model):
    """Encode a sentence in exact fractions, and show where each symbol's share of the interval lies."""
    predict = gpt(model)
    heading(f"How the interval narrows: {SENTENCE.decode()!r}, predicted by the GPT")
    print(f"{'':5}{'probability':>12}{'bits':>7}  {'share of the interval':{BAR_WIDTH}}  interval, after its settled digits")
    total, before = 0.0, WHOLE
    for symbol, probability, now in steps(SENTENCE, predict):
        total += bits(probability)
        settled, low, high = digits(now)
        print(f"{chr(symbol)!r:>5}{float(probability):12.6f}{bits(probability):7.2f}  {share(before, now)}  "
              f"{bold(settled)}[{low}, {high})")
        before = now
    code = shortest_code(before)
    print(f"\nsum of the bits          {total:.2f}; uncompressed, the sentence takes {8 * len(SENTENCE)}"
          f"\nshortest complete code   {len(code)}: {code}"
          f"\ndecoded by stretching    {bytes(decode(code, len(SENTENCE), predict)).decode()}")


def gpt(model):
    """A model for intervals.py: the GPT's probabilities, in the integers that the range coder gets."""
    predictor = static(model)

    def predict(past):
        window = np.array([START_SYMBOL, *past][-model.config.block_size:])
        return exact(predictor.prefill(window[:, None])[0].tolist())
    return predict


def exact(frequencies):
    return {byte: Fraction(f, sum(frequencies)) for byte, f in enumerate(frequencies)}


def share(before, now):
    """The interval before as a bar, in which the interval now is filled."""
    scale = BAR_WIDTH / (before[1] - before[0])
    low = floor((now[0] - before[0]) * scale)
    high = ceil((now[1] - before[0]) * scale)
    return "·" * low + "█" * (high - low) + "·" * (BAR_WIDTH - high)


def digits(interval):
    """The ends in decimal digits, rounded outwards: (the first digits, which they share, the rest of low, of high)."""
    low, high = interval
    n = 0
    while (high - low) * 10 ** n < 100:
        n += 1
    ends = [f"{k // 10 ** n}.{k % 10 ** n:0{n}d}" for k in (floor(low * 10 ** n), ceil(high * 10 ** n))]
    settled = os.path.commonprefix(ends)
    return settled, *(end[len(settled):] for end in ends)


# --- the sizes --------------------------------------------------------------------------------------------------------

class Result(NamedTuple):
    method: Method
    size: int               # of the original, in bytes
    file: bytes
    seconds: float          # to compress and decompress


def measure(methods, texts):
    """{name of the method: {name of the text: Result}}.  CoderError where one does not give back what it was given."""
    results = {}
    for method in methods:
        first = next(iter(texts.values()))[:WARM_UP]
        method.decompress(method.compress(first), len(first))
        results[method.name] = {name: round_trip(method, name, data) for name, data in texts.items()}
    return results


def round_trip(method, name, data):
    start = time.perf_counter()
    file = method.compress(data)
    back = method.decompress(file, len(data))
    seconds = time.perf_counter() - start
    if hashlib.sha256(back).digest() != hashlib.sha256(data).digest():
        raise CoderError(f"{method.name} does not give {name} back: SHA-256 mismatch")
    return Result(method, len(data), file, seconds)


def sizes(results):
    heading("Compressed sizes of the text, of its letters shuffled, and of noise of the same length")
    names = list(next(iter(results.values())))
    print(f"{'':12}{'both sides':>15}" + "".join(f"{name:>28}" for name in names))
    print(f"{'':12}{'share':>15}" + f"{'bytes':>10}{'bits/byte':>10}{'seconds':>8}" * len(names))
    for name, row in results.items():
        shared = next(iter(row.values())).method.shared
        print(f"{name:12}{shared:>15}" +
              "".join(f"{len(r.file):10,}{8 * len(r.file) / r.size:10.3f}{r.seconds:8.2f}" for r in row.values()))
    print(f"\nAll {len(results) * len(names)} decompress to the original (SHA-256). In the shuffled text only the frequency of"
          "\neach letter can be predicted: order 0 is the best possible. Noise cannot be predicted, and is stored as it is."
          "\nThe modes online and scratch mix the GPT's predictions with those of many contexts, static does not;"
          "\nfast mixes contexts without a GPT.")


def accounts(texts):
    """The code alone, and the code with the model that it needs; and from what length of text on the model pays for itself."""
    best = min((r for r in texts if not r.method.name.startswith("GPT")), key=lambda r: len(r.file))
    heading("Two accounts: do both sides have the model already, or is it part of the message?")
    print(f"{'':12}{'code alone':>13}{'code + model':>15}   the model pays for itself")
    for r in [best] + [r for r in texts if r.method.name.startswith("GPT")]:
        size = pays_from(r.method.model, len(best.file) / r.size, len(r.file) / r.size)
        said = f"from {float(f'{size:.3g}'):,.0f} bytes of such text on" if size else f"never: {best.method.name} is better"
        if not r.method.model:
            said = "no model: the best of the others" if r is best else "no model: it learns from the text"
        print(f"{r.method.name:12}{len(r.file):13,}{len(r.file) + r.method.model:15,}   {said}")
    print("\nThe model counts as its packed file, or as 4 bytes a weight: an upper bound on K(M), the size of its shortest"
          "\ndescription. The last column takes these rates for any length, though the others improve with it.")


def pays_from(model, rate, gpt_rate):
    """The bytes of text from which on model + gpt_rate * bytes <= rate * bytes, with the model's size in bytes; None: never."""
    return model / (rate - gpt_rate) if gpt_rate < rate else None


def ideal(costs, file):
    """The sizes of code and file, beside the ideal code length of the model's probabilities."""
    heading("The ideal code length, and what was written: GPT static, the text")
    blocks, least = read(file)[1], costs.ideal.sum() / 8
    stored = any(block.stored for block in blocks)
    lines = {"ideal: the sum of -log2 p, the model's own p": least,
             "p in integers, as the range coder gets them": costs.integer.sum() / 8,
             "what the range coder wrote": sum(len(block.payload) for block in blocks),
             f"the file, {'stored as it is' if stored else 'with header and checksums'}": len(file)}
    if stored:
        del lines["what the range coder wrote"]
    for name, size in lines.items():
        print(f"{name:46}{size:12,.2f} bytes {size - least:+12,.2f}{size / least - 1:+12.4%}")
    print("\nWhere it is less than the ideal: the code need only point into its interval, since the file says where it\n"
          "ends; and a frequency is at least 1, so that the coder charges less for what the model holds all but impossible.")


# --- errors on the way ------------------------------------------------------------------------------------------------

def errors(text, model):
    """One wrong bit in the middle of several files, and many in one file on a noisy channel."""
    heading(f"One wrong bit in the middle of each file, of the first {len(text):,} bytes")
    print(f"{'':22}{'bytes':>8}   {'wrong or missing bytes':24}from there on")
    for method in avalanche.methods(text, model):
        if method.name in ("the text itself", "gzip -9", "static, checks off", channel.PROTECTED):
            damaged = method.decode(channel.flip(method.file, 4 * len(method.file)))
            wrong = np.frombuffer(damaged.data, np.uint8) != np.frombuffer(text, np.uint8)
            first = int(method.order[np.argmax(wrong[method.order])])       # in the order in which they are coded
            rest = damaged.data[first:first + REST].decode(errors="surrogateescape")
            said = "".join(map(report.shown, rest)).replace("\n", "↵")
            print(f"{method.name:22}{len(method.file):8,}   {np.count_nonzero(wrong):<24,}"
                  f"{'' if not wrong.any() else 'refused: a checksum is wrong' if damaged.refused else said}")
    print("\nWith the checks off, the model goes on in its own style: nothing in the code tells that it is wrong.")
    heading("Many wrong bits, and the capacity of the channel: 1 - H(p)")
    channel.print_channel(channel.channel(compress(text, "static", model)))
    print("\nThe best code of this rate would arrive up to the last p. Ours is made for bursts, cuts and lost bytes: one wrong"
          "\nbit costs it a whole slice of the file.")


# --- on the screen ----------------------------------------------------------------------------------------------------

def excerpt(chars):
    heading("What each character costs, GPT static" + ("" if has_colours() else
            ": below it its bits, rounded, 9 for 9 or more"))
    lines = [i + 1 for i, char in enumerate(chars[:EXCERPT]) if char.text == "\n"]
    print(report.excerpt(chars[:lines[-1] if lines else EXCERPT], has_colours()))


def heading(text):
    print(f"\n{bold(text)}\n", flush=True)


def bold(text):
    return f"\x1b[1m{text}\x1b[0m" if has_colours() else text


def has_colours():
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


@contextmanager
def bar(name, total):
    """progress(count) of a bar over `total` bytes, which appears after two seconds."""
    with tqdm(total=total, desc=name, unit="B", unit_scale=True, leave=False, delay=2, disable=None) as it:
        yield it.update


if __name__ == "__main__":
    main()

"""python -m minigpt look: one page that shows what happens to a text inside a network, with the network's own numbers.

The text goes through the layers of model.py one at a time, and what each of them makes is kept.  The page is look.html, into
which these numbers are put as JSON, each float32 with the digits that tell it from every other: what is read out of the page
is what the network computed, bit for bit.  This is a wing: it reads `coder` too, and nothing in `minigpt` needs it.
"""

import gzip
import hashlib
import json
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from coder import baselines, models, packed, report
from coder.container import CoderError
from coder.frequencies import BITS, to_frequencies
from coder.intervals import WHOLE, bits, steps
from coder.range_coder import LARGEST_TOTAL, LENGTH, LOW, RANGE, encode_symbol, finish_encoding, start_encoding
from coder.tokens import encode_tokens, make_trie

from . import corpus, pretrained
from .bpe import BPETokenizer
from .checkpoint import fingerprint, load_checkpoint
from .exact import matmul, row_dot
from .layers import CrossEntropy
from .model import GPT
from .reference import softmax_parts
from .tokenizer import ByteTokenizer, CharTokenizer

TEMPLATE = Path(__file__).with_name("look.html")
HEAD = "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<title>Inside the network"
SAMPLES = "samples.json"                # beside a checkpoint: what its model wrote while it was trained
LONGEST = 64                            # rows: the start symbol and the tokens of the text
ATTENTION, STREAM = 75_000, 40_000      # weights and channels on a page, at most: it stays below 2 MB
BLOCKS = 6                              # of a language model
NEIGHBOURS, NEURONS, RAISED, LIKELIEST = 6, 6, 4, 10
LOSSES = 4000                           # points of the curve, at most
READ, PREDICTED = 2 ** 20, 2 ** 17      # bytes of the text that the models to compare with read first, and then predict


class Subject(NamedTuple):
    model: GPT
    tokenizer: ByteTokenizer | CharTokenizer | BPETokenizer
    name: str
    note: str                           # what of the file this is, if not all
    run: dict                           # of a checkpoint
    losses: np.ndarray                  # (steps,) nats per token
    folder: Path | None                 # where the checkpoint lies


def load(name: str | None) -> Subject:
    """The model to look at: a checkpoint, a packed model, or a published one; by default the bundled one, and of an ensemble
    the first.  CheckpointError, PretrainedError or CoderError where there is none."""
    none = np.zeros(0, np.float32)
    if name == "smollm2" or name and (name.endswith(".gguf") or Path(name).is_dir()):
        model, tokenizer, title = pretrained.load(name)
        return Subject(model, tokenizer, title, "here in float32; the coder rounds it to 8 bits", {}, none, None)
    path = Path(name or models.BUNDLED)
    if path.is_file() and path.open("rb").read(len(packed.MAGIC)) == packed.MAGIC:
        members = models.load(path)[0].members
        tokenizer = ByteTokenizer()
        if members[0].config.vocab_size != tokenizer.vocab_size:
            raise CoderError(f"{path} is a packed model of {members[0].config.vocab_size} characters, without their names: "
                             "pass the checkpoint that it was made of")
        note = f"the first of its {len(members)} GPTs, whose predictions the coder averages" if len(members) > 1 else ""
        return Subject(members[0], tokenizer, path.name, note, {}, none, None)
    model, tokenizer, run, arrays = load_checkpoint(path)
    return Subject(model, tokenizer, path.name, "", run, arrays.get("losses", none), path.parent)


def write(text: str, name: str | None, path: str, head: int = 1) -> str:
    """Write the page about text and the model of that name (see `load`).  Returns a sentence about it.

    head: 1 .. n_head, the one shown first, and the only one where all are too many.  ValueError in one sentence where the text
    or the page cannot be; or as `load`.
    """
    try:
        report.claim(path, HEAD)
        page = render(inspect(load(name), text, head))
        report.save(path, page)
    except CoderError as error:
        raise ValueError(str(error)) from None
    except OSError as error:
        raise ValueError(f"{error.filename or path}: {error.strerror or error}") from None
    return f"{path}: {len(page.encode()):,} bytes; open it in a browser"


def render(data: dict[str, Any]) -> str:
    """The page that shows what `inspect` found."""
    template = TEMPLATE.read_text("utf-8")
    content = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return template.replace("{{DATA}}", content.replace("<", "\\u003c"), 1)


def inspect(subject: Subject, text: str, head: int = 1) -> dict[str, Any]:
    """All that the page shows: numbers as in the network, in the shapes that the comments say.

    The network reads a start symbol and then the text, so that row t predicts token t of the text, and the last row what would
    come next.  ValueError where the text is empty, too long, or unknown to the tokenizer, or the head is not there.
    """
    model, tokenizer, config = subject.model, subject.tokenizer, subject.model.config
    if not 1 <= head <= config.n_head:
        raise ValueError(f"--head must be from 1 to {config.n_head}, the heads of this model, but is {head}")
    try:
        encoded = tokenizer.encode(text).tolist()
    except UnicodeEncodeError:
        raise ValueError("the text is not UTF-8") from None
    most = min(LONGEST, config.block_size) - 1
    if not 1 <= len(encoded) <= most:
        raise ValueError(f"the text has {len(encoded)} tokens, but a page about this model shows from 1 to {most}")
    if max(encoded) >= config.vocab_size:
        raise ValueError("the text has bytes that are no token of this model")
    ids = np.array([start_symbol(tokenizer), *encoded], np.int64)
    T = len(ids)
    chosen, shown = heads_and_blocks(subject, T, head)
    seen = forward(model, ids, chosen, shown)
    mentioned = {*ids.tolist(), *seen.pop("mentioned")}
    neighbours = {i: nearest(model.tokens.weight.data, i) for i in sorted(set(ids.tolist()))}
    mentioned |= {other for pairs in neighbours.values() for other, _ in pairs}
    logits = seen.pop("logits")
    return {
        "model": {"name": subject.name, "note": subject.note, "fingerprint": fingerprint(model),
                  "parameters": sum(parameter.data.size for parameter in model.parameters().values()),
                  "config": {**config.to_json(), "hidden": config.hidden}},
        "text": text, "unit": {ByteTokenizer: "byte", CharTokenizer: "character"}.get(type(tokenizer), "token"),
        "tokenizer": type(tokenizer).__name__,
        "ids": ids.tolist(),                                        # (T,)
        "head": head, "heads": [h + 1 for h in chosen], "blocks": shown,
        "neighbours": neighbours,                                   # id -> [(id, cosine), ...]
        **seen,
        "coding": coding(logits[:-1], encoded, tokenizer),
        "training": training(subject),
        "labels": {i: label(tokenizer, i) for i in sorted(mentioned)},
    }


def start_symbol(tokenizer) -> int:
    """What the network reads before a text: as in sampling.py, and for bytes the coder's START_SYMBOL."""
    if (start := getattr(tokenizer, "start", None)) is not None:
        return start
    return int(tokenizer.encode("\n")[0]) if "\n" in getattr(tokenizer, "stoi", "\n") else 0


def heads_and_blocks(subject, T, head):
    """(the indices of the heads, the number of blocks) of which a page can hold the attention maps."""
    config, one = subject.model.config, T * (T + 1) // 2
    published = isinstance(subject.tokenizer, BPETokenizer)
    heads = list(range(config.n_head))
    if published or config.n_layer * config.n_head * one > ATTENTION:
        heads = [head - 1]
    return heads, min(config.n_layer, BLOCKS if published else config.n_layer, max(1, ATTENTION // (len(heads) * one)))


# --- the network, taken apart -----------------------------------------------------------------------------------------

def forward(model: GPT, ids: np.ndarray, heads: list[int], blocks: int) -> dict[str, Any]:
    """model.forward of the one window ids (T,), a layer at a time, and what is to be seen of each."""
    T, C = len(ids), model.config.n_embd
    channels = min(C, max(1, STREAM // (T * (1 + 2 * blocks))))
    x = model.tokens.forward(ids).copy()                            # (T, C)
    if model.positions:
        x = x + model.positions.forward(np.arange(T))
    stream, rms_of, added, found, mentioned = [numbers(x[:, :channels])], [rms(x)], [], [], set()
    depths = [lens(model, x, ids)]
    for i, block in enumerate(model.blocks):
        attention, feed_forward = block.attention.sublayer, block.feed_forward.sublayer
        parts = (block.attention, partial(attention.forward, T=T)), (block.feed_forward, feed_forward.forward)
        for residual, sublayer in parts:
            outputs = []

            def keep(z):
                outputs.append(sublayer(z).copy())
                return outputs[0]
            x = residual.forward(x, None, keep).copy()
            if i < blocks:
                stream.append(numbers(x[:, :channels]))
                rms_of.append(rms(x))
                added.append(rms(outputs[0]))
        if i < blocks:
            neurons = strongest(model, feed_forward)
            mentioned |= {symbol for neuron in neurons for symbol in neuron["raises"]}
            weights = attention_weights(attention, T)
            found.append({"attention": [[numbers(row[:t + 1]) for t, row in enumerate(weights[h])] for h in heads],
                          "neurons": neurons})
        depths.append(lens(model, x, ids))
    logits, probabilities, _, _ = depths[-1]
    if not np.isfinite(logits).all():
        raise ValueError("the model's logits are not finite numbers: there is nothing to see")
    likeliest = np.argsort(-probabilities, axis=1, kind="stable")[:, :LIKELIEST]
    mentioned |= {*likeliest.reshape(-1).tolist(), *(guess for _, _, _, guesses in depths for guess in guesses.tolist())}
    after = [*ids[1:].tolist(), None]                               # what row t has to predict
    return {
        "layers": found,                        # of each block: attention [head][row][column <= row], neurons
        "stream": stream,                       # [1 + 2 blocks][T][channels]: after the embedding and each sublayer
        "rms": rms_of, "added": added,          # [1 + 2 blocks][T], [2 blocks][T]: root mean squares of the stream, of outputs
        "lens": [{"nats": numbers(losses[:-1]), "guess": guesses.tolist()} for _, _, losses, guesses in depths],
        "final": [[[i, *numbers(row[[i]])] for i in dict.fromkeys([*order, *([] if target is None else [target])])]
                  for row, order, target in zip(probabilities, likeliest.tolist(), after)],     # [T]: [(id, probability), ...]
        "mentioned": mentioned, "logits": logits}


def attention_weights(attention, T: int) -> np.ndarray:
    """softmax(q k^T / sqrt(D)) (H, T, T) of the window that went through the layer last: what `reference.attend` computes."""
    q, k = (y.reshape(T, -1, attention.head_size).transpose(1, 0, 2) for y in (attention.q, attention.k))
    k = np.repeat(k, len(q) // len(k), axis=0)
    scores = np.where(np.tri(T, dtype=bool), matmul(q, k.swapaxes(1, 2)) * attention.scale, np.float32(-np.inf))
    e, _, total = softmax_parts(scores)
    return e / total


def strongest(model: GPT, feed_forward) -> list[dict]:
    """The neurons with the largest activations for the text: on each of its tokens, and which symbols they make likelier."""
    active = feed_forward.contract.x                                # (T, n_hidden), of which the start symbol's do not count
    order = np.argsort(-np.abs(active[1:]).max(0), kind="stable")[:NEURONS]
    found = [{"neuron": n, "active": numbers(active[:, n])} for n in order.tolist()]
    signs = np.where(np.abs(active).max(0) > active.max(0), np.float32(-1), np.float32(1))
    rows = feed_forward.contract.weight.data[order] * signs[order, None]
    for neuron, logits in zip(found, predict(model, rows)):
        neuron["raises"] = np.argsort(-logits, kind="stable")[:RAISED].tolist()
    return found


def predict(model: GPT, x: np.ndarray) -> np.ndarray:
    """Logits (N, V) of the residual stream x (N, C), as if the network ended there: the last lines of GPT.forward."""
    return model.head.forward(model.norm.forward(x) if model.norm else x).copy()


def lens(model: GPT, x: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(logits (T, V), probabilities (T, V), nats (T,), likeliest (T,)) of the tokens after ids (T,), predicted from x (T, C);
    the last row has no such token, and its nats no meaning.  [The logit lens: nostalgebraist 2020]"""
    logits, loss = predict(model, x), CrossEntropy()
    loss.forward(logits, np.append(ids[1:], 0))
    return logits, loss.probabilities, loss.losses, logits.argmax(1)


def rms(x: np.ndarray) -> list[float]:
    """The root mean square of each row of x (N, C), in the order in which `reference.norm` adds."""
    return numbers(np.sqrt(row_dot(x, x) / np.float32(x.shape[1]))[:, 0])


def nearest(table: np.ndarray, i: int) -> list[tuple[int, float]]:
    """The rows of an embedding table (V, C) most like row i: their ids and the cosine of the angle between the two."""
    lengths = np.maximum(np.sqrt(row_dot(table, table)), np.float32(1e-30))                     # (V, 1)
    cosines = (row_dot(table, table[i:i + 1]) / (lengths * lengths[i]))[:, 0]
    order = np.argsort(-cosines, kind="stable")
    order = order[order != i][:NEIGHBOURS]
    return list(zip(order.tolist(), numbers(cosines[order])))


def numbers(x: np.ndarray):
    """x as lists of floats that JSON writes with the fewest digits that tell a float32 from all others."""
    return [numbers(part) for part in x] if x.ndim else float(str(x[()]))


def label(tokenizer, i: int) -> str:
    """The token as it can be shown in a line."""
    text = bytes(tokenizer.decode_bytes([i])).decode(errors="surrogateescape")
    return "".join({**report.VISIBLE, " ": "\u2423"}.get(c) or report.shown(c) for c in text) or f"#{i}"


# --- the code ---------------------------------------------------------------------------------------------------------

def coding(logits: np.ndarray, ids: list[int], tokenizer) -> dict[str, Any]:
    """How ids (n,), predicted by logits (n, V), narrow the interval, and the bytes that leave the range coder."""
    (state, out), rows, before = start_encoding(), [], WHOLE
    exact, V = [], logits.shape[1]
    if V * (2 ** BITS + 1) <= LARGEST_TOTAL:
        frequencies = to_frequencies(logits)
        totals = [sum(row.tolist()) for row in frequencies]
        exact = [current for _, _, current in steps(ids, lambda past: {
            i: Fraction(f, totals[len(past)]) for i, f in enumerate(frequencies[len(past)].tolist())})]
    else:                                                           # a token is several symbols: see coder/tokens.py
        trie = make_trie([bytes(tokenizer.decode_bytes([i])) for i in range(V)])
    for t, i in enumerate(ids):
        if exact:
            out = encode_symbol(state, out, sum(frequencies[t, :i].tolist()), int(frequencies[t, i]), totals[t])
            now = exact[t]
        else:
            out = encode_tokens(state, out, logits[t:t + 1], np.array([i]), trie)
            now = held(state, out)
        length = before[1] - before[0]
        rows.append({"share": [float((end - before[0]) / length) for end in now], "bits": bits((now[1] - now[0]) / length),
                     "total": bits(now[1] - now[0]), "ends": digits(now), "out": out[:int(state[LENGTH])].tobytes().hex()})
        before = now
    return {"exact": bool(exact), "steps": rows, "code": finish_encoding(state, out).tobytes().hex(),
            "bytes": len(tokenizer.decode_bytes(ids))}


def held(state, out):
    """The interval that the range coder's state stands for: see (1) and (2) in coder/range_coder.py."""
    n, low, width = (int(state[field]) for field in (LENGTH, LOW, RANGE))
    low += int.from_bytes(out[:n].tobytes(), "big") << 64
    return Fraction(low, 1 << 64 + 8 * n), Fraction(low + width, 1 << 64 + 8 * n)


def digits(interval) -> list[str]:
    """Both ends as hexadecimal digits behind the point, two for each byte, rounded outwards: as many as tell them apart."""
    low, high = interval
    n = 2
    while (high - low) * 16 ** n < 64:
        n += 1
    ends = low.numerator * 16 ** n // low.denominator, -(-high.numerator * 16 ** n // high.denominator)
    return [f"{end:0{n}x}" for end in ends]             # 1, the end of the whole, has one digit more


# --- the training -----------------------------------------------------------------------------------------------------

def training(subject: Subject) -> dict[str, Any] | None:
    """The losses of the run, in nats per token, the samples it kept, and what other models need; None without a run."""
    run, losses = subject.run, subject.losses
    if not run or not len(losses):
        return None
    kept = {}
    try:
        kept = json.loads((subject.folder / SAMPLES).read_text("utf-8"))
        samples = [{"step": int(s["step"]), "text": str(s["text"])} for s in kept["samples"] if s["step"] <= len(losses)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        samples = []                                                # none were kept, or the file is something else
    text = find_text(run.get("text_sha256"), kept.get("data") if isinstance(kept, dict) else None)
    every = -(-len(losses) // LOSSES)
    return {"every": every, "losses": numbers(losses[::every]),     # of the steps 1, 1 + every, ...
            "validations": run.get("validations", []), "samples": samples,
            "rivals": rivals(text, subject.tokenizer) if text else {}}


def find_text(sha256: str | None, path: str | None) -> bytes | None:
    """The text with that SHA-256: in the file of that path, or among the cached corpora."""
    try:
        if path and hashlib.sha256(text := Path(path).read_bytes()).hexdigest() == sha256:
            return text
    except OSError:
        pass
    known = next((known for known in corpus.CORPORA.values() if known.sha256 == sha256), None)
    return known and corpus.cached(corpus.cache_folder(None), known)


def rivals(text: bytes, tokenizer) -> dict[str, float]:
    """Bits per token of the validation text that other models need, once they have read the training text."""
    first, last = corpus.split(text)
    first, last = first[-READ:], last[:PREDICTED]
    tokens = len(tokenizer.encode(last.decode(errors="ignore") if isinstance(tokenizer, CharTokenizer) else last))
    compressors = {"order 0": partial(baselines.compress, order=0), "order 2": partial(baselines.compress, order=2),
                   "gzip -9": gzip.compress}
    return {name: 8 * (len(compress(first + last)) - len(compress(first))) / tokens for name, compress in compressors.items()}

"""Bytes through the GPT, the mixing model and the range coder, and back.

A stream of bytes moves through windows of T = block_size tokens, and the second half of a window is the first half, the
context, of the next:

    stream    ─────────────────────────────────────────▶
    window 1  [ new    new  ]
    window 2         [ known  new ]
    window 3                [ known  new ]

The decoder must see what the encoder saw.  The encoder has all symbols and runs many windows at once, as far as to the next
step of learning; the decoder gets them one by one and asks the model's cached step.  That both arrive at the same integers is
what the kernels' fixed order is for.

In the mode static the GPT's frequencies go to the range coder as they are, and a block is cut into S streams that advance in
lockstep, so that one pass of the model serves S symbols; the range coder takes the streams in turn.  In the other modes
there is one stream: contexts and matches are mixed in (in fast there is nothing else), and they live on what came before.
"""

from itertools import groupby

import numpy as np

from minigpt import rng
from minigpt.ensemble import empty, members
from minigpt.model import GPT, GPTConfig
from minigpt.optimizer import Optimizer, OptimizerConfig

from .frequencies import to_frequencies
from .mixing.mixer import Mixer, Mixing
from .range_coder import Decoder, Encoder

START = 10                  # what a stream is said to follow: a line break
TOGETHER = 4096             # tokens that go through the model at once when encoding; bounds the memory
NO_END = 2 ** 62            # steps of an optimiser whose rates never fall
CHUNK = 2 ** 16             # symbols between two calls of progress where there is no GPT

# Part of the format: both sides must cut and learn alike.
STREAMS = 64                # of static, at most
LEARNED = 16                # rows of a step of learning
ONLINE = OptimizerConfig(optimizer="muon", learning_rate=3e-4, muon_rate=2e-3, weight_decay=0.0, warmup=0, cooldown=0.0)
SCRATCH = GPTConfig(vocab_size=256, block_size=64, n_layer=3, n_head=4, n_embd=128)
SCRATCH_REPLAYS = 3         # a text is short for a model that begins with nothing: it reads each window again, later
SCRATCH_SEED = 1
SCRATCH_LEARNING = OptimizerConfig(optimizer="muon", learning_rate=3e-3, warmup=20, cooldown=1.0)
SPARE = 64                  # steps: with them the rates do not fall to 0, not even where a file is short


class Predictor:
    """A GPT that is asked for the next symbols' frequencies and told what they were; or none, and only a mixing model.

    With `learning` it goes on learning: from each `rows` windows that have passed, full ones, and then `replays` times from as
    many that have passed at some time, at rates that fall while about so many `windows` pass.  The same calls on both sides
    leave the same model.
    """

    def __init__(self, model, most_streams=1, mixing=None, learning=None, rows=LEARNED, replays=0, windows=NO_END):
        if model and model.config.vocab_size != 256:
            raise ValueError(f"the model must predict bytes (256 tokens), but it knows {model.config.vocab_size} tokens")
        self.model, self.most_streams, self.mixing, self.rows, self.replays = model, most_streams, mixing, rows, replays
        steps = windows * (1 + replays) // rows
        self.optimizers = [Optimizer(member, learning, steps) for member in members(model)] if learning else []
        self._new, self._past = [], []          # rows (inputs, targets) to learn from, and those learned from

    def streams(self, size):
        """S: how many streams a block of `size` bytes is cut into."""
        return max(1, min(size // 1024, self.most_streams))

    def windows(self, length):
        """Those of `windows` that streams of that length are coded in."""
        return windows(length, self.model.config.block_size if self.model else CHUNK)

    def together(self, S):
        """How many windows of S streams the encoder takes at once: as many as pass before the next step of learning."""
        most = max(1, TOGETHER // (S * self.model.config.block_size)) if self.model else 1
        return min(most, -(-(self.rows - len(self._new)) // S)) if self.optimizers else most

    def predict(self, inputs, spans):
        """For each of the windows `spans`: frequencies (stop - start - first, S, 256) of what follows inputs (S, length)."""
        if not self.model:
            return [None] * len(spans)
        frequencies = [np.empty((stop - start - first, len(inputs), 256), np.uint32) for start, first, stop in spans]
        rows = [(row[start:stop], first, frequencies[w][:, s])
                for w, (start, first, stop) in enumerate(spans) for s, row in enumerate(inputs)]
        for length, alike in groupby(rows, lambda row: len(row[0])):
            alike, most = list(alike), max(1, TOGETHER // length)
            for i in range(0, len(alike), most):
                ids, firsts, outs = zip(*alike[i:i + most])
                for logits, first, out in zip(self.model.forward(np.stack(ids)), firsts, outs):
                    out[...] = to_frequencies(logits[first:])
        return frequencies

    def open(self, inputs):
        """Begin a window with inputs (S, t): frequencies (S, 256) of what follows the last of them."""
        self._cache = self.model.new_cache(len(inputs))
        return to_frequencies(np.ascontiguousarray(self.model.forward(inputs, cache=self._cache)[:, -1]))

    def step(self, symbols):
        """Go on with symbols (S,) in the window that was opened: frequencies (S, 256) of what follows them."""
        return to_frequencies(self.model.step(symbols, self._cache))

    def told(self, inputs, targets):
        """A window has passed: its inputs (S, T) and what followed each of them.  If it is full, learn from it, now or later."""
        if not self.optimizers or inputs.shape[1] < self.model.config.block_size:
            return
        self._new += zip(inputs.astype(np.uint8), targets.astype(np.uint8))
        if len(self._new) < self.rows:
            return
        self._learn(self._new)
        if self.replays:
            self._past += self._new
        self._new = []
        for _ in range(self.replays):
            chosen = rng.integers(SCRATCH_SEED, "replay", self.optimizers[0].step_count, self.rows, len(self._past))
            self._learn([self._past[i] for i in chosen])

    def _learn(self, rows):
        inputs, targets = (np.stack(ids).astype(np.int64) for ids in zip(*rows))
        for member, optimizer in zip(members(self.model), self.optimizers):
            member.loss(inputs, targets)
            member.backward()
            optimizer.step()


def static(model):
    """Predict with a trained model as it is."""
    return Predictor(model, STREAMS)


def online(model, size, primer=b""):
    """Predict `size` bytes by mixing, with a trained model that goes on learning from them.  The model given is not changed.

    primer: bytes that the mixing model learns from before; the GPT does not.
    """
    if model.config.vocab_size == 256:              # else Predictor refuses it
        copy = empty([member.config for member in members(model)])
        for name, parameter in model.parameters().items():
            copy.parameters()[name].data[...] = parameter.data
        model = copy
    return Predictor(model, 1, primed(size, primer, gpt=True), ONLINE, learned(size))


def scratch(size, primer=b""):
    """Predict by mixing, with a GPT that knows nothing but its seed, and learns: nothing is shared but this program."""
    rows, new = learned(size), SCRATCH.block_size // 2
    return Predictor(GPT(SCRATCH, SCRATCH_SEED), 1, primed(size, primer, gpt=True), SCRATCH_LEARNING, rows, SCRATCH_REPLAYS,
                     size // new + SPARE * rows)


def fast(size, primer=b""):
    """Predict by mixing alone, with fewer contexts."""
    return Predictor(None, mixing=primed(size, primer, fast=True))


def learned(size):
    """How many rows make a step of learning: fewer in a short file, so that there are some steps."""
    return max(1, min(size // 1024, LEARNED))


def primed(size, primer, **options):
    mixing = Mixing(size + len(primer), **options)
    if primer:
        mixing.prime(primer)
    return mixing


def windows(length, T):
    """(start, first, stop) of each window over streams of that length: its inputs are [start, stop), new from `first` on."""
    start, first = 0, 0
    while True:
        stop = min(start + T, length)
        yield start, first, stop
        if stop == length:
            return
        first = T // 2                          # known from the window before
        start = stop - first


class Streams:
    """The layout of a block: S streams of equal length, but the first `longer` ones have one symbol more."""

    def __init__(self, size, S):
        self.S, self.length, self.longer = S, -(-size // S), size % S or S
        lengths = np.full(S, self.length)
        lengths[self.longer:] -= 1
        self.starts = np.cumsum(lengths) - lengths

    def active(self, t):
        """How many streams have a symbol at place t."""
        return self.S if t < self.length - 1 else self.longer

    def count(self, start, stop):
        """How many symbols stand at the places [start, stop)."""
        return self.S * (stop - start) - (self.S - self.longer) * (stop == self.length)

    def places(self, size):
        """(S, length): where in the block each symbol stands; a place past a stream's end repeats one near it."""
        return np.minimum(self.starts[:, None] + np.arange(self.length), size - 1)


def lay_out(predictor, data):
    """The Streams of a block (bytes), and (S, length) each: what the model is given, and what follows, its symbols."""
    layout = Streams(len(data), predictor.streams(len(data)))
    symbols = np.frombuffer(data, np.uint8)[layout.places(len(data))].astype(np.int64)
    return layout, np.concatenate([np.full((layout.S, 1), START), symbols[:, :-1]], axis=1), symbols


class Plain:
    """The symbols of one block, coded with the GPT's own frequencies: as mixer.Mixer, but nothing is mixed."""

    def __init__(self, layout, code=None):
        self.layout, self.coder = layout, Encoder() if code is None else Decoder(code)
        self.decoding, self.finish = code is not None, getattr(self.coder, "finish", None)

    def code(self, symbols, start, stop, frequencies):
        for t in range(start, stop):
            active = self.layout.active(t)
            if self.decoding:
                symbols[:active, t] = self.coder.decode(frequencies[t - start, :active])
            else:
                self.coder.encode(frequencies[t - start, :active], symbols[:active, t])

    def __len__(self):
        return len(self.coder)

    @property
    def overrun(self):
        return self.coder.overrun


def coder_of(predictor, layout, size, code=None):
    """The encoder of a block of `size` bytes, or the decoder of its code."""
    return Mixer(predictor.mixing, size, code) if predictor.mixing else Plain(layout, code)


def encode_block(predictor, data, progress=lambda count, taken: None):
    """The code (bytes) of data (bytes, at least one).  progress(symbols, bytes) is called after each window: how many
    symbols it had, and how long the code is by now."""
    layout, inputs, symbols = lay_out(predictor, data)
    encoder = coder_of(predictor, layout, len(data))
    spans = list(predictor.windows(layout.length))
    while spans:
        count = predictor.together(layout.S)
        now, spans = spans[:count], spans[count:]
        for (start, first, stop), frequencies in zip(now, predictor.predict(inputs, now)):
            encoder.code(symbols, start + first, stop, frequencies)
            if stop < layout.length:
                predictor.told(inputs[:, start:stop], symbols[:, start:stop])
            progress(layout.count(start + first, stop), len(encoder))
    return encoder.finish()


def decode_block(predictor, code, size, progress=lambda count: None):
    """The `size` bytes that `encode_block` made the code of.  A damaged code gives some other bytes, or ValueError."""
    layout = Streams(size, predictor.streams(size))
    decoder = coder_of(predictor, layout, size, code)
    symbols = np.zeros((layout.S, layout.length), np.int64)
    inputs = np.concatenate([np.full((layout.S, 1), START), symbols], axis=1)               # one place ahead of symbols
    for start, first, stop in predictor.windows(layout.length):
        if not predictor.model:
            decoder.code(symbols, start + first, stop)
        for t in range(start + first, stop if predictor.model else 0):
            frequencies = predictor.open(inputs[:, start:t + 1]) if t == start + first else predictor.step(inputs[:, t])
            decoder.code(symbols, t, t + 1, frequencies[None])
            active = layout.active(t)
            inputs[:active, t + 1] = symbols[:active, t]
        if decoder.overrun:
            raise ValueError("the code ends too early")
        if stop < layout.length:                # at the block's end some streams may be one symbol short
            predictor.told(inputs[:, start:stop], symbols[:, start:stop])
        progress(layout.count(start + first, stop))
    return np.concatenate([stream[:layout.length - (s >= layout.longer)] for s, stream in enumerate(symbols)]
                          ).astype(np.uint8).tobytes()

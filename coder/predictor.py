"""Who predicts the next byte: a GPT as it is, a GPT that goes on learning from what has been coded, or no GPT at all.

A stream's inputs, the start symbol and then all of its bytes but the last, move through windows of T = block_size tokens.  A
window is as long as the rest of the inputs allows; of the next, the first floor(T / 2) tokens are the last of this one, its
context.  Token 0 of a window is at position 0 of the model.

    inputs    ─────────────────────────────────────────▶
    window 1  [ new    new  ]
    window 2         [ known  new ]
    window 3                [ known  new ]

The decoder must see what the encoder saw.  The encoder has all symbols, and runs many windows at once (`predict`), as far as to
the next training step; the decoder gets them one by one, and runs the model token by token from its KV cache (`prefill`,
`step`).  Both arrive at the same integers, because the kernels' order of summation does not depend on the batch.

The modes' numbers and properties are facts of the file format, and so stand in container.py, which needs no network to read a
file; how each mode makes its predictor stands here, in MAKERS.
"""

from collections.abc import Iterator
from itertools import groupby

import numpy as np

from minigpt import rng
from minigpt.ensemble import Ensemble
from minigpt.model import TOKENS_PER_PASS, GPT, GPTConfig
from minigpt.optimizer import Optimizer, OptimizerConfig

from .container import MODES
from .frequencies import to_frequencies
from .mixing.mixer import Mixing

WITHOUT_GPT = 2 ** 16       # symbols of a window where there is no GPT: between two calls of progress
UNLIMITED = 2 ** 62         # windows to learn from, at rates that never fall

# Part of the format: both sides must cut and learn alike.
STREAMS = 64                # of static, at most
BATCH = 16                  # windows in a training step, at most
ONLINE_LEARNING = OptimizerConfig(optimizer="muon", learning_rate=3e-4, muon_rate=2e-3, weight_decay=0.0, warmup=0,
                                  cooldown=0.0)
SCRATCH = GPTConfig(vocab_size=256, block_size=64, n_layer=3, n_head=4, n_embd=128)
SCRATCH_SEED = 1            # of its weights, and of the choice of windows to replay
SCRATCH_LEARNING = OptimizerConfig(optimizer="muon", learning_rate=3e-3, warmup=20, cooldown=1.0)
SCRATCH_REPLAYS = 3         # training steps on earlier windows after each on new ones: a file is a short text to start from
SPARE_STEPS = 64            # with them the learning rates do not fall to 0, not even at the end of a short file


class Learner:
    """Trains each member of `model` on the windows that have been coded: one step for every `batch` of them.

    After each of these steps come `replays` steps on windows drawn from all those before.  The learning rates follow their
    schedule over `expected` windows.  The same updates leave the same weights on both sides.
    """

    def __init__(self, model: GPT | Ensemble, config: OptimizerConfig, batch: int, replays: int = 0, expected: int = UNLIMITED):
        self.model, self.batch, self.replays = model, batch, replays
        steps = expected * (1 + replays) // batch
        self.optimizers = [Optimizer(member, config, steps) for member in model.members]
        self._new, self._learned = [], []           # windows (T + 1,) uint8 that wait for their step, and those to replay

    @property
    def missing(self) -> int:
        """How many windows are missing before the next training step."""
        return self.batch - len(self._new)

    def update(self, window: np.ndarray):
        """Learn from a full window (T + 1,) and what followed its last symbol: now, or once a batch is complete."""
        self._new.append(window.astype(np.uint8))
        if self.missing:
            return
        self._train(self._new)
        if self.replays:
            self._learned += self._new
        self._new = []
        for _ in range(self.replays):
            chosen = rng.integers(SCRATCH_SEED, "replay", self.optimizers[0].step_count, self.batch, len(self._learned))
            self._train([self._learned[i] for i in chosen])

    def _train(self, windows):
        windows = np.stack(windows).astype(np.int64)                            # (batch, T + 1)
        for member, optimizer in zip(self.model.members, self.optimizers):
            size = len(windows) if member.config.tied else max(1, TOKENS_PER_PASS // member.config.block_size)
            for i in range(0, len(windows), size):                              # in parts, of the same bits: see `backward`
                part = windows[i:i + size]
                member.loss(part[:, :-1], part[:, 1:])
                member.backward(len(windows), accumulate=i > 0)
            optimizer.step()
            for parameter in member.parameters().values():
                del parameter.grad                                              # the memory is for the next member's


class Predictor:
    """Predicts the symbols of one block after the other.

    model: gives the frequencies; None where the mixing model predicts alone.  most_streams: S of a long block.
    mixing: combines the frequencies with the predictions of contexts.  learner: trains the model.  Both only with one stream.
    ValueError where the model's tokens are not bytes.
    """

    def __init__(self, model: GPT | Ensemble | None, most_streams: int = 1, mixing: Mixing | None = None,
                 learner: Learner | None = None):
        if model and model.config.vocab_size != 256:
            raise ValueError(f"the model must predict bytes (256 tokens), but it knows {model.config.vocab_size} tokens")
        self.model, self.most_streams, self.mixing, self.learner = model, most_streams, mixing, learner

    def streams(self, size: int) -> int:
        """S: how many streams a block of `size` bytes is cut into."""
        return max(1, min(size // 1024, self.most_streams))

    def windows(self, length: int) -> Iterator[tuple[int, int, int]]:
        """Those of `windows` in which streams of that length are coded."""
        return windows(length, self.model.config.block_size if self.model else WITHOUT_GPT)

    def windows_at_once(self, S: int) -> int:
        """How many windows of S streams the encoder may predict at once: not beyond the next training step."""
        if not self.model:
            return 1
        most = max(1, TOKENS_PER_PASS // (S * self.model.config.block_size))
        return min(most, self.learner.missing) if self.learner else most

    def predict(self, inputs: np.ndarray, spans: list[tuple[int, int, int]]) -> list[np.ndarray | None]:
        """Of each of the windows `spans` over inputs (length, S), the frequencies of what follows its new places.

        An array (new * S, 256) uint32 for each: time by time, and stream by stream at each time.  Without a GPT, None.
        """
        if not self.model:
            return [None] * len(spans)
        S = inputs.shape[1]
        frequencies = [np.empty((stop - start - first, S, 256), np.uint32) for start, first, stop in spans]
        sequences = [(inputs[start:stop, s], first, frequencies[w][:, s])
                     for w, (start, first, stop) in enumerate(spans) for s in range(S)]
        for _, group in groupby(sequences, lambda sequence: len(sequence[0])):         # the last window may be shorter
            ids, firsts, outs = zip(*group)
            for logits, first, out in zip(self.model.forward(np.stack(ids)), firsts, outs):
                out[...] = to_frequencies(logits[first:])
        return [array.reshape(-1, 256) for array in frequencies]

    def prefill(self, inputs: np.ndarray) -> np.ndarray:
        """Begin a window with inputs (t, S): the frequencies (S, 256) of what follows the last of them."""
        self._cache = self.model.new_cache(inputs.shape[1])
        return to_frequencies(self.model.forward(np.ascontiguousarray(inputs.T), cache=self._cache)[:, -1])

    def step(self, symbols: np.ndarray) -> np.ndarray:
        """Extend the window that `prefill` began by symbols (S,): the frequencies (S, 256) of what follows them."""
        return to_frequencies(self.model.step(symbols, self._cache))

    def update(self, window: np.ndarray):
        """Learn, where the predictor learns, from a window that has been coded: window (T + 1, S), its inputs and, one place
        later, what followed each of them."""
        if self.learner and len(window) == self.model.config.block_size + 1:
            self.learner.update(window[:, 0])


def windows(length: int, T: int) -> Iterator[tuple[int, int, int]]:
    """(start, first, stop) of each window over streams of that length: it covers [start, stop), new from start + first on."""
    start, first = 0, 0
    while True:
        stop = min(start + T, length)
        yield start, first, stop
        if stop == length:
            return
        first = T // 2                              # known from the window before
        start = stop - first


# --- one maker for each mode ------------------------------------------------------------------------------------------

def make_predictor(mode: str, size: int, model: GPT | Ensemble | None = None, primer: bytes = b"",
                   version: int | None = None) -> Predictor:
    """The predictor of a segment of `size` bytes, the same on both sides.  mode: of container.PREDICTING.

    primer: bytes that the mixing model learns from first; the GPT does not.  version: of the mode, by default its latest.
    ValueError where the model's tokens are not bytes.
    """
    return MAKERS[mode, version or MODES[mode].versions[-1]](model, size, primer)


def static(model: GPT | Ensemble) -> Predictor:
    """A trained model as it is."""
    return Predictor(model, STREAMS)


def online(model: GPT | Ensemble, size: int, primer: bytes = b"") -> Predictor:
    """A trained model that goes on learning, mixed with contexts.  The model given is not changed."""
    model = model.copy()
    return Predictor(model, 1, _primed(size, primer, gpt=True), Learner(model, ONLINE_LEARNING, batch_of(size)))


def scratch(size: int, primer: bytes = b"") -> Predictor:
    """A GPT that knows nothing but its seed, and learns, mixed with contexts: nothing is shared but this program."""
    model, batch, new = GPT(SCRATCH, SCRATCH_SEED), batch_of(size), SCRATCH.block_size // 2
    learner = Learner(model, SCRATCH_LEARNING, batch, SCRATCH_REPLAYS, size // new + SPARE_STEPS * batch)
    return Predictor(model, 1, _primed(size, primer, gpt=True), learner)


def fast(size: int, primer: bytes = b"", kinds: bool = True) -> Predictor:
    """Contexts alone, and fewer of them.  kinds: others where the data is no text."""
    return Predictor(None, mixing=_primed(size, primer, fast=True, kinds=kinds))


# (mode, version): whatever changes what a maker's predictor predicts is a new version, beside the old one.
MAKERS = {
    ("static", 1): lambda model, size, primer: static(model),
    ("online", 1): online,
    ("scratch", 1): lambda model, size, primer: scratch(size, primer),
    ("fast", 1): lambda model, size, primer: fast(size, primer, kinds=False),
    ("fast", 2): lambda model, size, primer: fast(size, primer),
}


def batch_of(size: int) -> int:
    """How many windows make a training step: fewer in a short file, so that there are some steps."""
    return max(1, min(size // 1024, BATCH))


def _primed(size, primer, **options):
    mixing = Mixing(size + len(primer), **options)
    if primer:
        mixing.prime(primer)
    return mixing

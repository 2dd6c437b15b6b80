"""How fast it is: our figures beside NumPy's and PyTorch's, and beside what the machine can do.  Not a test.

    python -m tests.benchmark                  every case; the machine should have nothing else to do
    python -m tests.benchmark train forward    these cases; --help names them all
    python -m tests.benchmark --isa avx2       as on a processor without AVX-512: both sides may use AVX2 at most
    python -m tests.benchmark --quick          does it run?  The figures mean nothing

A line holds our figure, the reference's, and their ratio: how many times as fast we are, or how many times as little memory
we take.  "of sgemm" is our share of the FLOP/s that OpenBLAS reaches on one large product in the same run.

- Both sides compute the same: PyTorch gets our weights, and the losses of three training steps, or the logits, must agree to
  1e-4.  `--model nanogpt`: learned positions, layer norm, GELU; `--model ours`: rotary positions, RMS norm, normalised
  queries and keys, squared ReLU.  Neither has biases, dropout, a tied head or clipped gradients.
- PyTorch runs eagerly in its best form: one product for q, k and v, fused attention, fused AdamW, inference mode.
- Each side has a process of its own with 2 threads, and sleeps on a pipe until it is asked.  They take turns: A, B, large
  product, A, B, ...  A turn is one call that wakes the threads, uncounted, then as many as fit, and gives their median; the
  table shows the median turn, and the median ratio of a round +- half of its middle half.  Between turns is a pause: threads
  that have worked still spin, OpenBLAS's for 30 ms, PyTorch's for 8.  (In one process they would share a libgomp, too.)
- `busy` compares a turn beside a process that keeps a core busy with a turn alone.  They last 0.9 s and give the mean, not
  the median: a call is preempted for milliseconds or not at all, and the median of short calls would not see it.
- Encoding and decoding are held against our forward pass over the same windows, in the same batches.  They overlap by half:
  two tokens for a byte.
- Memory is what training adds, at its peak, to a process that has just trained a tiny model: weights, gradients, state of
  AdamW, buffers.  Startup is a process from its start to the end of the first training step, Python and imports included.
- What each library says it uses stands above the cases.  `--isa avx2` ends the run there if one of them uses anything else.
"""

import argparse
import ctypes
import gc
import gzip
import importlib.util
import json
import multiprocessing
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
import zlib
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

THREADS = 2
for library in "OMP", "OPENBLAS", "MKL", "NUMBA":
    os.environ[f"{library}_NUM_THREADS"] = str(THREADS)             # before NumPy is loaded

import numpy as np                                                  # noqa: E402

from tests import kinds, scale                                      # noqa: E402

umath = (np._core if hasattr(np, "_core") else np.core)._multiarray_umath
AVX2 = {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "", "OPENBLAS_CORETYPE": "Haswell", "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "NPY_DISABLE_CPU_FEATURES": ",".join(name for name in umath.__cpu_dispatch__ if re.search("512|V4", name))}
AVX2_NAMES = {"haswell", "Haswell", "AVX2", "X86_V3", "unnamed"}     # unnamed: MKL may not tell on AMD's processors
OTHER_SWITCHES = "OPENBLAS_L2_SIZE", "DNNL_MAX_CPU_ISA", "MKL_CBWR"


class Shape(NamedTuple):
    layers: int
    width: int
    heads: int
    batch: int
    window: int
    vocab: int

    def __str__(self):
        return f"{self.layers} x {self.width}, {self.batch} x {self.window}, V {self.vocab}"


TINY, BASE = Shape(1, 32, 1, 2, 16, 65), Shape(4, 128, 4, 8, 64, 256)
SHAPES = [Shape(3, 128, 4, 8, 32, 65), Shape(4, 128, 4, 12, 64, 65), Shape(4, 128, 4, 32, 128, 256),
          Shape(6, 384, 6, 16, 256, 65)]
ROWS = [Shape(*size, rows, window, 256) for *size, window in ((4, 128, 4, 64), (6, 384, 6, 256)) for rows in (1, 16, 64)]
SWEEPS = {"batch": (2, 4, 8, 16, 32, 64), "window": (32, 64, 128, 256, 512), "width": (64, 128, 256, 512),
          "vocab": (64, 256, 1024, 4096)}
BUSY = [("forward", SHAPES[3]._replace(batch=1, window=128)), ("forward", SHAPES[3]), ("train", SHAPES[1]), ("cached", ROWS[4])]
LAYOUTS = "x W", "dy W^T", "x^T dy"
LM = (576, 576), (576, 192), (576, 1536), (1536, 576), (576, 49152)       # (K, M) in a language model of 135 M parameters
FORMS = {"nanogpt": dict(position="learned", norm="layer", activation="gelu", qk_norm=False),
         "ours": dict(position="rotary", norm="rms", activation="relu2", qk_norm=True)}
NETWORK = 1e10                  # bits per second between machines
AS_ROOT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
RATE, STILL = 1e-3, 1e-6        # AdamW's, while both sides are compared, and then, so that each step is the same work
GOALS = {       # without and with AVX-512, of each line: the least ratio; of startup: the most seconds, warm and cold
    "train": ((1.5, 1.5, 1.5, 1.2), (1.9, 2.0, 2.3, 2.0)),
    "forward": ((1.3, 1.4, 1.4, 1.2), (1.8, 2.0, 2.3, 2.0)),
    "cached": ((3.0, 2.0, 1.2, 3.0, 2.0, 1.4), (3.0, 2.0, 1.2, 4.0, 2.0, 1.8)),
    "coder": ((0.92, 0.65), (0.93, 0.65)),
    "startup": ((0.6, 15), (0.5, 12))}


SMOLLM2 = dict(vocab_size=49152, block_size=8192, n_layer=30, n_head=9, n_kv_head=3, n_embd=576, n_hidden=1536)
HELD, NEW_TOKENS = 1024, np.random.default_rng(0).integers(0, 49152, (4, 64))


def settings(shape, form):
    """What GPTConfig is made of."""
    return dict(vocab_size=shape.vocab, block_size=shape.window, n_layer=shape.layers, n_head=shape.heads,
                n_embd=shape.width, **FORMS[form])


def flops(shape, rows=None, keys=None):
    """Operations of a forward pass, or of `rows` tokens that look at `keys` tokens each; a third of those of training."""
    rows, keys = rows or shape.batch * shape.window, keys or (shape.window + 1) / 2
    return rows * (shape.layers * (24 * shape.width ** 2 + 4 * shape.width * keys) + 2 * shape.width * shape.vocab)


def batch(shape):
    return np.random.default_rng(1).integers(shape.vocab, size=(2, shape.batch, shape.window))       # ids, targets


def operands(layout, N, K, M):
    """The factors of a linear layer's products, as the layer holds them."""
    random = np.random.default_rng(1)
    x, W, dy = (random.uniform(-1, 1, size).astype(np.float32) for size in ((N, K), (K, M), (N, M)))
    return ((x, W), (dy, W.T), (x.T, dy))[LAYOUTS.index(layout)]


# --- the sides: a method returns functions to be timed, and numbers in which the sides must agree ---------------------

class NumPy:
    matmul = staticmethod(np.matmul)

    def targets(self):
        """{library: the processor, or the instructions, that it says it uses}"""
        used = [name for name in umath.__cpu_dispatch__ if umath.__cpu_features__[name]]
        found = {"NumPy": used[-1] if used else "its baseline", "OpenBLAS": "unknown"}
        for path in Path(np.__file__).parents[1].glob("numpy.libs/*openblas*"):
            for prefix in "", "scipy_":
                if corename := getattr(ctypes.CDLL(str(path)), f"{prefix}openblas_get_corename64_", None):
                    corename.restype = ctypes.c_char_p
                    found["OpenBLAS"] = corename().decode()
        return found

    def packed(self):
        """(a function that multiplies by packed weights, one that packs them)"""
        return self.matmul, np.asarray

    def products(self, sizes, packed=False):
        """sizes: (layout, N, K, M) of each.  packed: the second factor may be packed beforehand."""
        multiply, pack = self.packed() if packed else (self.matmul, np.asarray)
        pairs = (operands(*size) for size in sizes)
        calls = [partial(multiply, a, pack(b), np.empty((len(a), b.shape[1]), np.float32)) for a, b in pairs]
        return calls, [call()[0, :4] for call in calls]

    def functions(self):
        """What the rules do not leave to a library: softmax, a sum of squares, random numbers."""
        x = operands("x W", 768, 256, 1)[0]
        generator = np.random.Generator(np.random.Philox(1))

        def softmax():
            e = np.exp(x - x.max(1, keepdims=True))
            return e / e.sum(1, keepdims=True)
        calls = [softmax, lambda: np.dot(x.reshape(-1), x.reshape(-1)), lambda: generator.random(x.size, np.float32)]
        return calls, [softmax()[0, 0], calls[1]() / x.size]

    def memory(self, shape, form, weights, tiny_weights):
        """Bytes that training adds at its peak, or NaN where the system does not tell."""
        def status(name):
            lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
            return int(lines[name].split()[0]) * 1024
        self.train(TINY, form, tiny_weights)                        # loads the code
        gc.collect()
        try:
            ctypes.CDLL(None).malloc_trim(0)                        # gives back what is free
            Path("/proc/self/clear_refs").write_text("5")           # the peak is counted from here
            before = status("VmRSS")
            self.train(shape, form, weights)
            return status("VmHWM") - before
        except (OSError, AttributeError):
            return float("nan")


class Ours(NumPy):
    def __init__(self):
        from minigpt import model, optimizer
        from minigpt.kernels.matmul import matmul
        self.model, self.optimizer, self.matmul = model, optimizer, matmul

    def targets(self):
        from numba.core.registry import cpu_target
        _, processor, features = cpu_target.target_context.codegen().magic_tuple()
        return {"ours": processor + (" with AVX-512" if "+avx512f" in features else "")}

    def packed(self):
        from minigpt.kernels.matmul import matmul_packed, pack
        return matmul_packed, pack

    def functions(self):
        from minigpt import rng
        from minigpt.kernels.softmax import cross_entropy_forward
        from minigpt.kernels.sums import sum_of_squares
        x = operands("x W", 768, 256, 1)[0]
        targets, probabilities, losses = np.zeros(len(x), np.int64), np.empty_like(x), np.empty(len(x), np.float32)

        def softmax():
            cross_entropy_forward(x, targets, probabilities, losses)
        calls = [softmax, lambda: sum_of_squares(x), lambda: rng.uniform(1, "benchmark", 0, x.size)]
        softmax()
        return calls, [probabilities[0, 0], calls[1]() / x.size]

    def gpt(self, shape, form):
        return self.model.GPT(self.model.GPTConfig(**settings(shape, form)), seed=1)

    def weights(self, shape, form):
        return {name: parameter.data for name, parameter in self.gpt(shape, form).parameters().items()}

    def train(self, shape, form, weights=None, optimizer="adamw", steps=3):
        (ids, targets), model = batch(shape), self.gpt(shape, form)
        optimizer = self.optimizer.Optimizer(model, self.optimizer.OptimizerConfig(
            optimizer=optimizer, learning_rate=RATE, clip=0.0, warmup=0, cooldown=0.0), 2 ** 62)

        def step():
            loss = model.loss(ids, targets)
            model.backward()
            optimizer.step()
            return loss
        losses = [step() for _ in range(steps)]
        optimizer.config = replace(optimizer.config, learning_rate=STILL, muon_rate=STILL)
        return [step, optimizer.step], losses

    def forward(self, shape, form, weights=None):
        call = partial(self.gpt(shape, form).forward, batch(shape)[0])
        return [call], call()[:, -1]

    def cached(self, shape, form, weights=None):
        ids, model, half = batch(shape)[0], self.gpt(shape, form), shape.window // 2
        cache = model.new_cache(shape.batch)
        model.forward(ids[:, :half], cache=cache)

        def step():
            cache.held = cache.position = half
            return model.step(ids[:, half], cache)
        return [step], step()

    def language_model(self):
        config, ids = self.model.GPTConfig(**SMOLLM2, tied=True, qk_norm=False, activation="swiglu"), NEW_TOKENS
        model = self.model.GPT(config, seed=1).quantise()
        cache = model.new_cache(len(ids), 2 * HELD)
        for _ in range(HELD // ids.shape[1]):
            model.forward(ids, cache=cache)

        def again(call, *arguments, **options):
            cache.held = cache.position = HELD
            return call(*arguments, **options)
        return [partial(again, model.forward, ids, cache=cache), partial(again, model.step, ids[:, 0], cache)], None

    def sweep(self, shapes, form):
        return [self.train(shape, form, steps=1)[0][0] for shape in shapes], None

    def code(self, data):
        from coder import codec, predictor as predictors
        model = self.model.GPT(self.model.GPTConfig(), seed=1)
        predictor, T = predictors.static(model), model.config.block_size
        block = codec.lay_out(predictor, data)
        streams = max(1, predictors.TOKENS_PER_PASS // T)

        def forward():
            for start, _, stop in predictors.windows(block.length, T):
                for s in range(0, block.S, streams):
                    model.forward(block.grid[start:stop, s:s + streams].T)
        encode = partial(codec.encode_block, predictor, data)
        decode = partial(codec.decode_block, predictor, encode(), len(data))
        return [encode, decode, forward], list(decode())

    def messages(self, lines):
        """(bytes of the messages in all, seconds to compress and to decompress them), with the bundled model."""
        import coder
        coder.decompress_messages(coder.compress_messages(lines[:2]))
        start = time.perf_counter()
        messages = coder.compress_messages(lines)
        middle = time.perf_counter()
        if coder.decompress_messages(messages) != lines:
            sys.exit("benchmark: decompressing gave other lines than were compressed")
        return sum(map(len, messages)), middle - start, time.perf_counter() - middle


class Torch(NumPy):
    def __init__(self):
        import torch
        torch.set_num_threads(THREADS)
        self.torch, self.F = torch, torch.nn.functional

    def targets(self):
        """MKL and oneDNN tell it only on standard output."""
        torch, stdout, found = self.torch, os.dup(1), {"PyTorch": self.torch.backends.cpu.get_cpu_capability()}
        for name, library in ("MKL", torch.backends.mkl), ("oneDNN", torch.backends.mkldnn):
            if library.is_available():
                with tempfile.TemporaryFile() as file:
                    os.dup2(file.fileno(), 1)
                    with library.verbose(1):
                        self.F.gelu(torch.ones(64, 64) @ torch.ones(64, 64))
                    ctypes.CDLL(None).fflush(None)
                    os.dup2(stdout, 1)
                    file.seek(0)
                    said = re.search(r"AVX[- ]?\d[\d.]*", file.read().decode())
                found[name] = said.group() if said else "unnamed"
        os.close(stdout)
        return found

    def load(self, shape, form, weights):
        """Our weights, each matrix as PyTorch likes it (out, in)."""
        torch, D = self.torch, shape.width // shape.heads
        self.shape, self.form, self.D = shape, FORMS[form], D
        tables = "tokens.weight", "positions.weight"
        w = self.w = {name: torch.from_numpy(array.copy() if name in tables else np.ascontiguousarray(array.T))
                      for name, array in weights.items()}
        for i in range(shape.layers):
            at = f"blocks.{i}.attention"
            w[f"{at}.qkv.weight"] = torch.cat([w.pop(f"{at}.{part}.weight") for part in ("query", "key", "value")])
        angle = torch.outer(torch.arange(shape.window), 10000 ** -(torch.arange(0, D, 2) / D)).repeat(1, 2)
        self.cosine, self.sine = angle.cos(), angle.sin()

    def norm(self, x, name):
        gain = self.w[f"{name}.gain"]
        if self.form["norm"] == "layer":
            return self.F.layer_norm(x, gain.shape, gain, None, 1e-5)
        return self.F.rms_norm(x, gain.shape, gain, 1e-5)

    def rotate(self, x, first, T):
        a, b = x.chunk(2, dim=-1)
        return x * self.cosine[first:first + T] + self.torch.cat([-b, a], dim=-1) * self.sine[first:first + T]

    def logits(self, ids, cache=None, first=0):
        """(B, T, V) of ids (B, T), which stand at `first`.  cache: for each layer keys and values (B, H, block_size, D)."""
        w, F, form, H, (B, T) = self.w, self.F, self.form, self.shape.heads, ids.shape
        x = F.embedding(ids, w["tokens.weight"])
        if form["position"] == "learned":
            x = x + w["positions.weight"][first:first + T]
        for i in range(self.shape.layers):
            at = f"blocks.{i}.attention"
            y = F.linear(self.norm(x, f"{at}.norm"), w[f"{at}.qkv.weight"])
            q, k, v = y.view(B, T, 3 * H, self.D).transpose(1, 2).split(H, dim=1)                    # (B, H, T, D)
            if form["qk_norm"]:
                q, k = self.norm(q, f"{at}.query_norm"), self.norm(k, f"{at}.key_norm")
            if form["position"] == "rotary":
                q, k = self.rotate(q, first, T), self.rotate(k, first, T)
            if cache is not None:
                keys, values = cache[i]
                keys[:, :, first:first + T], values[:, :, first:first + T] = k, v
                k, v = keys[:, :, :first + T], values[:, :, :first + T]
            y = F.scaled_dot_product_attention(q, k, v, is_causal=T > 1)
            x = x + F.linear(y.transpose(1, 2).reshape(B, T, -1), w[f"{at}.projection.weight"])
            at = f"blocks.{i}.feed_forward"
            y = F.linear(self.norm(x, f"{at}.norm"), w[f"{at}.expand.weight"])
            y = F.gelu(y, approximate="tanh") if form["activation"] == "gelu" else F.relu(y).square()
            x = x + F.linear(y, w[f"{at}.contract.weight"])
        return F.linear(self.norm(x, "norm"), w["head.weight"])

    def train(self, shape, form, weights, steps=3):
        self.load(shape, form, weights)
        ids, targets = map(self.torch.from_numpy, batch(shape))
        groups = [dict(params=[w.requires_grad_() for w in self.w.values() if w.ndim == n], weight_decay=decay)
                  for n, decay in ((1, 0.0), (2, 0.1))]
        optimizer = self.torch.optim.AdamW(groups, RATE, betas=(0.9, 0.99), eps=1e-8, fused=True)

        def step():
            optimizer.zero_grad()
            loss = self.F.cross_entropy(self.logits(ids).flatten(0, 1), targets.flatten())
            loss.backward()
            optimizer.step()
            return loss.item()
        losses = [step() for _ in range(steps)]
        for group in optimizer.param_groups:
            group["lr"] = STILL
        return [step, optimizer.step], losses

    def no_grad(self, *arguments):
        with self.torch.inference_mode():
            return self.logits(*arguments)

    def forward(self, shape, form, weights):
        self.load(shape, form, weights)
        call = partial(self.no_grad, self.torch.from_numpy(batch(shape)[0]))
        return [call], call()[:, -1].numpy()

    def cached(self, shape, form, weights):
        self.load(shape, form, weights)
        ids, half = self.torch.from_numpy(batch(shape)[0]), shape.window // 2
        cache = [self.torch.zeros(2, shape.batch, shape.heads, shape.window, self.D).unbind() for _ in range(shape.layers)]
        self.no_grad(ids[:, :half], cache)
        call = partial(self.no_grad, ids[:, half:half + 1], cache, half)
        return [call], call()[:, 0].numpy()

    def language_model(self):
        from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM
        warnings.filterwarnings("ignore", "`past_key_values` is deprecated")        # what takes its place, older versions lack
        c, ids, cache = SMOLLM2, self.torch.from_numpy(NEW_TOKENS), DynamicCache()
        model = LlamaForCausalLM(LlamaConfig(
            vocab_size=c["vocab_size"], hidden_size=c["n_embd"], intermediate_size=c["n_hidden"],
            num_hidden_layers=c["n_layer"], num_attention_heads=c["n_head"], num_key_value_heads=c["n_kv_head"],
            max_position_embeddings=c["block_size"], tie_word_embeddings=True)).eval()

        def call(ids):
            with self.torch.inference_mode():
                model(ids, past_key_values=cache)
            cache.crop(-ids.shape[1])
        with self.torch.inference_mode():
            model(ids.repeat(1, HELD // ids.shape[1]), past_key_values=cache)
        return [partial(call, ids), partial(call, ids[:, :1])], None


# --- their processes --------------------------------------------------------------------------------------------------

def begin(side):
    global SIDE, CALLS
    SIDE, CALLS = side(), []


def make(method, *arguments):
    """Prepare what `turn` measures; returns what both sides must agree in."""
    CALLS.clear()                                   # their memory first
    calls, answer = getattr(SIDE, method)(*arguments)
    CALLS.extend(calls)
    return answer


def turn(count, seconds, average=np.median):
    """The average time of each of the first `count` functions, each in that many seconds, but at least two calls."""
    averages = []
    for call in CALLS[:count]:
        times, start = [], time.perf_counter()
        while len(times) < 2 or time.perf_counter() - start < seconds:
            before = time.perf_counter()
            call()
            times.append(time.perf_counter() - before)
        averages.append(average(times[1:]))
    return averages


def tell(method, *arguments):
    return getattr(SIDE, method)(*arguments)


def ask(worker, function, *arguments):
    return worker.submit(function, *arguments).result()


# --- the cases --------------------------------------------------------------------------------------------------------

class Benchmark:
    def __init__(self, options):
        self.options, self.form, self.difference, self.sgemm = options, options.model, 0.0, []
        self.ours, self.numpy, self.limit = map(self.worker, (Ours, NumPy, NumPy))
        self.torch = self.worker(Torch) if importlib.util.find_spec("torch") else None
        self.large = 512 if options.quick else 2048
        ask(self.limit, make, "products", [("x W", *[self.large] * 3)])
        workers = filter(None, (self.ours, self.numpy, self.torch))
        self.targets = {name: target for worker in workers for name, target in ask(worker, tell, "targets").items()}
        self.goals = {case: goals["AVX-512" in self.targets["ours"]] for case, goals in GOALS.items()}

    def worker(self, side):
        spawn = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(1, spawn, begin, (side,))

    def measure(self, count, *workers, seconds=None):
        """Seconds (count, rounds) of each worker, and the FLOP/s of the large product beside them."""
        workers = [worker for worker in (*workers, self.limit) if worker]
        times = {worker: [] for worker in workers}
        for _ in range(self.options.rounds):
            for worker in workers:
                times[worker].append(ask(worker, turn, count, self.options.seconds if seconds is None else seconds))
                time.sleep(self.options.pause)
        *times, limit = (np.array(times[worker]).T for worker in workers)
        self.sgemm.append(2 * self.large ** 3 / np.median(limit))
        return *times, self.sgemm[-1]

    def make(self, workers, *question):
        """Prepare the same on all of them, and see that they compute the same."""
        first, *others = (np.array(ask(worker, make, *question)) for worker in workers if worker)
        for other in others:
            self.difference = max(self.difference, np.abs(first - other).max() / max(1, np.abs(other).max()))
            if not self.difference <= 1e-4:
                sys.exit(f"benchmark: the two sides compute different things, they differ by {self.difference:.1e}")

    def make_with_torch(self, method, shape):
        weights = ask(self.ours, tell, "weights", shape, self.form)
        self.make((self.ours, self.torch), method, shape, self.form, weights)

    def against_torch(self, method, shape, count=1):
        """Seconds (count, rounds) of ours and PyTorch's (or Nones), FLOP/s."""
        self.make_with_torch(method, shape)
        ours, *theirs, limit = self.measure(count, self.ours, self.torch)
        return ours, theirs[0] if theirs else [None] * count, limit

    def matmul(self):
        """matrix products of the model's sizes in three layouts, against NumPy"""
        shapes = [(shape.batch * shape.window, shape.width, shape.vocab) for shape in SHAPES[:self.options.shapes]]
        self.products("products of x (N, K), W (K, M), dy (N, M)", 0.95, [
            [(layout, N, *KM) for KM in ((C, C), (C, 4 * C), (4 * C, C), (C, V)) for layout in LAYOUTS] for N, C, V in shapes])

    def lm(self):
        """matrix products of a small language model, many rows and few, with packed weights, against NumPy"""
        self.products("products of x (N, K), packed W (K, M)", 0.9, [
            [("x W", N, *KM) for KM in LM] for N in (512, 16, 1)], True)

    def products(self, title, goal, groups, *packed):
        head(title, "NumPy @")
        ratios = []
        for sizes in groups:
            self.make((self.ours, self.numpy), "products", sizes, *packed)
            ours, theirs, limit = self.measure(len(sizes), self.ours, self.numpy, seconds=self.options.seconds / 10)
            for (layout, N, K, M), *times in zip(sizes, ours, theirs):
                ratios.append(row(f"{layout:6}  {N:4} {K:4} {M:5}", *times, goal, 2 * N * K * M, limit))
        print(f"{sum(ratio >= goal for ratio in ratios)} of {len(ratios)} met the goal; the worst ratio is {min(ratios):.2f}")

    def rules(self):
        """what else the rules take from the library, against NumPy"""
        head("768 x 256 numbers", "NumPy")
        self.make((self.ours, self.numpy), "functions")
        ours, theirs, _ = self.measure(3, self.ours, self.numpy)
        names = "softmax of each row (ours: and its loss)", "sum of squares", "random numbers, Philox"
        for name, *times in zip(names, ours, theirs):
            row(name, *times, None)

    def train(self):
        """training steps: forward, loss, backward, AdamW"""
        self.network("train", "training step (layers x width, windows x tokens)", SHAPES, lambda shape: 3 * flops(shape))

    def forward(self):
        """forward passes"""
        self.network("forward", "forward pass", SHAPES, flops)

    def cached(self):
        """one more token from the cache, in the middle of a window"""
        self.network("cached", "cached step (layers x width, rows x window)", ROWS,
                     lambda shape: flops(shape, shape.batch, shape.window // 2 + 1))

    def llm(self):
        """a language model of SmolLM2's shape, in integers, against transformers on PyTorch, in floats"""
        if not self.torch or not importlib.util.find_spec("transformers"):
            print("llm: needs PyTorch and transformers")
            return
        head(f"{len(NEW_TOKENS)} streams, each with {HELD:,} tokens in the cache", "PyTorch")
        for worker in self.ours, self.torch:
            ask(worker, make, "language_model")
        ours, theirs, _ = self.measure(2, self.ours, self.torch)
        for name, *times in zip((f"{NEW_TOKENS.shape[1]} tokens more of each", "one token more of each"), ours, theirs):
            row(name, *times, 1.1)

    def network(self, method, title, shapes, work):
        head(title, "PyTorch")
        for shape, goal in zip(shapes[:self.options.shapes], self.goals[method]):
            ours, theirs, limit = self.against_torch(method, shape)
            row(shape, ours[0], theirs[0], goal, work(shape), limit)

    def busy(self):
        """what is lost beside a process that keeps a core busy: ours, and PyTorch"""
        head("beside a busy process, and alone", "alone", "busy")
        sides = [("ours", self.ours, 0.67), ("PyTorch", self.torch, None)][:2 if self.torch else 1]
        for method, shape in BUSY:
            self.make_with_torch(method, shape)
            rounds = [[[self.beside(neighbours, worker) for neighbours in (1, 0)] for _, worker, _ in sides]
                      for _ in range(self.options.rounds)]
            for (name, _, goal), times in zip(sides, np.transpose(rounds, (1, 2, 0))):
                row(f"{name:7} {method:7} {shape}", *times, goal)

    def beside(self, neighbours, worker):
        """The mean time of a call, in a turn of 0.9 s with so many busy processes beside it."""
        others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(neighbours)]
        try:
            time.sleep(self.options.pause)      # until they have started, and the threads of the last turn sleep
            return ask(worker, turn, 1, 3 * self.options.seconds, np.mean)[0]
        finally:
            for other in others:
                other.kill()
                other.wait()

    def coder(self):
        """static encoding and decoding, against our own forward pass"""
        words = b"the of and to in is that was he for it with as his on be at by had not are but from or have an".split()
        made_up = b" ".join(words[i] for i in np.random.default_rng(1).zipf(1.3, 30000) % len(words))
        data = Path(self.options.text).read_bytes() if self.options.text else made_up
        data = data[:2 ** 13 if self.options.quick else 2 ** 16]
        head(f"coder, static, {len(data):,} bytes, default model", "our forward")
        if bytes(ask(self.ours, make, "code", data)) != data:
            sys.exit("benchmark: decoding gave other bytes than were encoded")
        times, _ = self.measure(3, self.ours)
        for name, seconds, goal in zip(("encode", "decode"), times, self.goals["coder"]):
            row(name, seconds, times[2], goal, unit=lambda seconds: f"{len(data) / seconds / 1e3:,.1f} kB/s")

    def messages(self):
        """lines of a text as messages, each alone, and as other compressors make them"""
        from minigpt import corpus
        train, held_out = corpus.split(corpus.load(self.options.text).data)
        lines = [line for line in held_out.split(b"\n") if line][:20 if self.options.quick else 1000]
        print(f"\n{f'{len(lines):,} lines, each alone: {sum(map(len, lines)):,} bytes':50} {'bytes':>10}")
        for name, compress in rivals(train).items():
            print(f"{name:50} {sum(len(compress(line)) for line in lines) if compress else 'missing':>10}", flush=True)
        size, *seconds = ask(self.ours, tell, "messages", lines)
        print(f"{'coder.compress_messages, the bundled model':50} {size:>10}")
        for name, taken in zip(("compress_messages", "decompress_messages"), seconds):
            print(f"{name:50} {len(lines) / taken:>10.0f} messages/s")

    def memory(self):
        """peak memory of training"""
        head("peak memory of a training step", "PyTorch")
        for shape in SHAPES[:self.options.shapes]:
            ours, theirs = (side and [self.memory_of(side, shape)] for side in (Ours, self.torch and Torch))
            row(shape, ours, theirs, 0.7, unit=megabytes)

    def memory_of(self, side, shape):
        weights = [ask(self.ours, tell, "weights", s, self.form) for s in (shape, TINY)]
        worker = self.worker(side)
        size = ask(worker, tell, "memory", shape, self.form, *weights)
        worker.shutdown()
        return size

    def startup(self):
        """start, imports and first training step; with --cold, also where Numba has to compile everything"""
        head(f"startup and first step ({SHAPES[1]})", "PyTorch")
        times = [[side and self.first_step(side) for side in (Ours, self.torch and Torch)] for _ in range(4)]
        ours, theirs = zip(*times[1:])              # the first has loaded files and filled Numba's cache
        warm, cold = self.goals["startup"]
        row("warm cache", ours, self.torch and theirs, most=warm)
        if self.options.cold:
            with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, NUMBA_CACHE_DIR=folder):
                row("cold cache", [self.first_step(Ours)], most=cold)

    def first_step(self, side):
        weights = ask(self.ours, tell, "weights", SHAPES[1], self.form)
        start = time.perf_counter()
        worker = self.worker(side)
        ask(worker, make, "train", SHAPES[1], self.form, weights, *(["adamw"] if side is Ours else []), 1)
        seconds = time.perf_counter() - start
        worker.shutdown()
        return seconds

    def shards(self):
        """two processes of one thread (MPI) against one of two, and by that the efficiency of 64 machines"""
        launcher = shutil.which("mpiexec", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
        if not launcher or not importlib.util.find_spec("mpi4py"):
            print('shards: needs an MPI: pip install ".[mpi]"')
            return
        head("training step of a preset, 2 shards", "one", "two")
        found = {}
        for preset, steps in (("default", 20), ("large", 6), ("english", 3))[:1 if self.options.quick else 3]:
            one, two = (json.loads(subprocess.run(
                [*words, sys.executable, "-m", "tests.benchmark", "--a-process-of-shards", preset, str(steps)],
                stdout=subprocess.PIPE, check=True, env={**os.environ, **AS_ROOT}).stdout)
                for words in ([], [launcher, "-n", "2"]))
            row(preset, two["step"], one["step"])
            print(f"{'':11}of which gradients {duration(one['gradient'])} and {duration(two['gradient'])}, optimiser "
                  f"{duration(one['optimizer'])} and {duration(two['optimizer'])}, exchange {duration(two['exchange'])} of "
                  f"{megabytes(4 * one['parameters'])}, an addition {duration(one['addition'])}")
            found[preset] = one
        counts = [2 ** i for i in range(7)]
        for title, law in (("its own batch", self_sized), (f"an equal part of {counts[-1]} windows", fixed)):
            columns = "".join(f"{count:7}" for count in counts)
            print(f"\n{f'efficiency by calculation, each machine takes {title}':62}{columns}")
            for preset, one in found.items():
                print(f"{preset:62}" + "".join(f"{law(one, count, counts[-1]):7.0%}" for count in counts), flush=True)

    def optimizer(self):
        """AdamW alone, and the share of a training step that AdamW and Muon take"""
        head("optimiser alone", "PyTorch")
        for shape in SHAPES[1::2][:self.options.shapes - 1]:
            ours, theirs, _ = self.against_torch("train", shape, 2)
            row(f"AdamW  {shape}, {np.median(ours[1] / ours[0]):.1%} of step", ours[1], theirs[1])
            self.make([self.ours], "train", shape, self.form, None, "muon")
            ours, _ = self.measure(2, self.ours)
            row(f"Muon   {shape}, {np.median(ours[1] / ours[0]):.1%} of step", ours[1])

    def scaling(self):
        """how time and memory of training grow with batch, window, width and vocabulary"""
        for name, sizes in SWEEPS.items():
            sizes = sizes[:3] if self.options.quick else sizes
            shapes = [BASE._replace(**{name: n}, **(dict(heads=n // 32) if name == "width" else {})) for n in sizes]
            self.make([self.ours], "sweep", shapes, self.form)
            seconds = np.median(self.measure(len(shapes), self.ours)[0], axis=1)
            memory = [self.memory_of(Ours, shape) for shape in shapes]
            print(f"\ntraining step; else {BASE}\n{name:>8} {'tokens/s':>10} {'time':>11} {'memory':>10}")
            for n, shape, t, m in zip(sizes, shapes, seconds, memory):
                print(f"{n:8} {shape.batch * shape.window / t:10,.0f} {duration(t):>11} {megabytes(m):>10}")
            laws = ("time", seconds, slope(sizes, [flops(shape) for shape in shapes])), \
                   ("memory", memory, 2 if name == "width" else 1)         # at most: the highest power of the size in it
            for what, values, law in laws:
                seen = slope(sizes, values)
                verdict = "WORSE" if seen > law + 0.1 else "as it should be"
                print(f"    {what:6} ~ {name}^{seen:.2f}, by the mathematics ^{law:.2f}: {verdict}", flush=True)


# How training in shards scales, on paper: n machines exchange the whole gradient log2(n) times, over a network that does
# nothing else and reaches its speed at once, and add as often.  Left out: latency, waiting for the slowest, validation and
# checkpoints, that a few windows at once take longer each, and that a backward pass could go on while gradients are being sent.

def exchange(one, count):
    """Seconds that `count` machines take to add up a gradient."""
    return (count.bit_length() - 1) * (8 * 4 * one["parameters"] / NETWORK + one["addition"])


def self_sized(one, count, _):
    """The efficiency where the batch grows with the machines: the time of one of them alone, divided by the time of all."""
    alone = one["gradient"] + one["optimizer"]
    return alone / (alone + exchange(one, count))


def fixed(one, count, windows):
    """The efficiency where the batch is of that many windows, shared out: time alone, divided by time and number of all."""
    gradient = one["gradient"] * windows / one["windows"]
    return (gradient + one["optimizer"]) / (count * (gradient / count + one["optimizer"] + exchange(one, count)))


def a_process_of_shards(preset, steps):
    """One of the processes that train a preset in two shards; the first prints median seconds of a step's parts, as JSON."""
    from minigpt import model, tokenizer, trainer
    from train_shakespeare import PRESETS, processes
    model_config, optimizer_config, train_config = PRESETS[preset]
    taken = {name: [] for name in ("step", "optimizer", "exchange", "addition")}

    def timed(name, function):
        def call(*arguments):
            start = time.perf_counter()
            result = function(*arguments)
            taken[name].append(time.perf_counter() - start)
            return result
        return call
    with processes() as ranks:
        text = np.random.default_rng(1).integers(32, 127, 100_000, np.uint8).tobytes()
        run = trainer.Trainer(model.GPT(model_config, seed=1), tokenizer.ByteTokenizer(), text,
                              replace(train_config, steps=10 ** 6, shards=2), optimizer_config, "", ranks)
        ranks.add, run.optimizer.step = timed("exchange", ranks.add), timed("optimizer", run.optimizer.step)
        other, add = np.zeros_like(run.shards.total), timed("addition", np.add)
        for _ in range(steps + 1):                                      # the first is not counted
            timed("step", run.step)()
            add(other, run.shards.total, other)
        medians = {name: float(np.median(seconds[1:])) for name, seconds in taken.items()}
        medians["gradient"] = medians["step"] - medians["optimizer"] - medians["exchange"]
        print(json.dumps({**medians, "parameters": run.shards.total.size - 1, "windows": train_config.batch_size}))


def slope(sizes, values):
    """The exponent p of values ~ sizes^p."""
    return np.polyfit(np.log(sizes), np.log(values), 1)[0]


def rivals(train):
    """{a compressor of short texts, which may know `train`: its function, or None where it is not installed}"""
    def deflate(line):
        compressor = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zdict=train[-2 ** 15:])
        return compressor.compress(line) + compressor.flush()
    found = {"gzip -9": partial(gzip.compress, compresslevel=9), "brotli -11": None,
             "zstd -19, a dictionary trained on the other 90 %": None, "raw deflate, the last 32 kB of them": deflate}
    with suppress(ImportError):
        import brotli
        found["brotli -11"] = partial(brotli.compress, quality=11)
    with suppress(ImportError):
        import zstandard
        dictionary = zstandard.train_dictionary(112640, train.splitlines(True))
        options = zstandard.ZstdCompressionParameters.from_level(
            19, format=zstandard.FORMAT_ZSTD1_MAGICLESS, write_content_size=0, write_checksum=0,
            write_dict_id=0)
        found["zstd -19, a dictionary trained on the other 90 %"] = zstandard.ZstdCompressor(
            dict_data=dictionary, compression_params=options).compress
    return found


# --- what is printed --------------------------------------------------------------------------------------------------

def head(title, reference, figure="ours"):
    print(f"\n{title:50} {figure:>10} {reference:>11} {'ratio':>13} {'goal':>7} {'':6} {'GFLOP/s':>8} {'of sgemm':>8}")


def row(case, ours, theirs=None, goal=None, work=0, limit=0, unit=None, most=None):
    """Prints a line; returns its ratio.

    ours and theirs: a figure a round.  goal: the least ratio; most: the most seconds.  work: FLOP; limit: FLOP/s.
    """
    unit, figure, ratio, spread, verdict = unit or duration, np.median(ours), np.nan, 0, ""
    if theirs is not None:
        low, ratio, high = np.percentile(np.divide(theirs, ours), (25, 50, 75))
        spread, theirs = (high - low) / 2, unit(np.median(theirs))
    if most or goal and theirs:
        verdict = "met" if (figure <= most if most else ratio >= goal) else "MISSED"
    aim = f"<= {most} s" if most else f"{goal:g} x" if goal else ""
    share = f"{work / figure / 1e9:8.1f} {work / figure / limit:8.0%}" if work else ""
    print(f"{case!s:50} {unit(figure):>10} {theirs or '':>11} {f'{ratio:.2f} +- {spread:.2f}' if theirs else '':>13}"
          f" {aim:>7} {verdict:6} {share}".rstrip(), flush=True)
    return ratio


def duration(seconds):
    factor, name = (1, "s") if seconds >= 1 else (1e3, "ms") if seconds >= 1e-3 else (1e6, "us")
    return f"{seconds * factor:.2f} {name}"


def size(text):
    """A number of bytes, as in 512M or 2G: decimal."""
    factor = {"K": 10 ** 3, "M": 10 ** 6, "G": 10 ** 9}.get(text[-1:].upper(), 1)
    return int(float(text if factor == 1 else text[:-1]) * factor)


def megabytes(size):
    return f"{size / 1e6:.1f} MB"


CASES = {name: getattr(Benchmark, name) for name in ("matmul", "lm", "train", "forward", "cached", "llm", "busy", "coder",
                                                     "messages", "memory", "startup", "optimizer", "rules", "scaling",
                                                     "shards")}
CASES |= {"scale": scale.scale, "parity": scale.parity, "kinds": kinds.report}


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.benchmark", formatter_class=argparse.RawDescriptionHelpFormatter,
                                     epilog="\n".join(f"{name:10} {case.__doc__}" for name, case in CASES.items()))
    parser.add_argument("cases", nargs="*", metavar="case", help="which ones (default: all)")
    parser.add_argument("--model", choices=FORMS, default="nanogpt", help="what both sides compute (default: nanogpt)")
    parser.add_argument("--isa", choices=["avx2"], help="hold both sides to these instructions (default: this processor's)")
    parser.add_argument("--text", metavar="FILE", help="of coder (default: made-up words) and messages (tiny Shakespeare)")
    parser.add_argument("--bytes", type=size, default=scale.LARGE, metavar="N", help="scale: compare the peak memory of so "
                        f"much input, as in 2G, and of a {scale.TIMES}nd of it (default: {scale.LARGE:,})")
    parser.add_argument("--cold", action="store_true", help="startup: also with an empty cache")
    parser.add_argument("--quick", action="store_true", help="one round of few calls, on the smallest shapes")
    options = parser.parse_args()
    if unknown := set(options.cases) - set(CASES):
        parser.error(f"no such case: {', '.join(unknown)}; there are {', '.join(CASES)}")
    options.rounds, options.seconds, options.pause, options.shapes = (1, 0.0, 0.0, 2) if options.quick else (7, 0.3, 0.1, 6)
    for switch in (*AVX2, *OTHER_SWITCHES):     # the processes of the sides inherit them
        os.environ.pop(switch, None)
    if options.isa:
        if not umath.__cpu_features__.get("AVX2"):
            sys.exit("benchmark: --isa avx2 needs a processor with AVX2, and this one has none; run it without that option")
        os.environ |= AVX2
    benchmark = Benchmark(options)
    print(f"{platform.machine()}, {os.cpu_count()} cores, {THREADS} threads, NumPy {np.__version__}, model {options.model}")
    print(", ".join(f"{name} {target}" for name, target in benchmark.targets.items()))
    if options.isa and not set(benchmark.targets.values()) <= AVX2_NAMES:
        sys.exit("benchmark: not all of them use AVX2, as --isa avx2 asks for")
    if not benchmark.torch:
        print("PyTorch is missing, and with it its columns: pip install \".[reference]\"")
    if (load := os.getloadavg()[0]) > 0.3:
        print(f"The machine is busy (load {load:.1f}): these figures are no measurement.")
    start = time.perf_counter()
    for name in options.cases or CASES:
        CASES[name](benchmark)
    if benchmark.sgemm:
        print(f"\nOpenBLAS sgemm, {benchmark.large}^3: {np.median(benchmark.sgemm) / 1e9:.1f} GFLOP/s, over the run "
              f"{min(benchmark.sgemm) / 1e9:.1f} to {max(benchmark.sgemm) / 1e9:.1f}", end="")
    print(f"\nlargest difference between the sides: {benchmark.difference:.1e}; {time.perf_counter() - start:.0f} s in all")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--a-process-of-shards"]:
        a_process_of_shards(sys.argv[2], int(sys.argv[3]))
    else:
        main()

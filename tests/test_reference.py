"""minigpt/reference.py, the specification in plain NumPy, and the fast network: equal in every bit, for every option.

That the specification itself is right is shown in float64: its logits and gradients by `tests/float64.py`, and the
fused multiply-add, exp and log by exact fractions.
"""

import subprocess
import sys
from fractions import Fraction
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt import exact, rng, verify
from minigpt import reference as plain
from minigpt.blocks import Rotary
from minigpt.checkpoint import fingerprint
from minigpt.kernels import activations, attention, norms, softmax, sums
from minigpt.kernels.matmul import matmul
from minigpt.kernels.muon import orthogonalise
from minigpt.layers import Draw
from minigpt.model import GPT, GPTConfig
from minigpt.optimizer import Optimizer, OptimizerConfig
from minigpt.sampling import generate
from minigpt.tokenizer import ByteTokenizer
from minigpt.trainer import TrainConfig, Trainer
from tests import float64

SPECIAL = np.array([0.0, -0.0, 1e-45, -1e-40, 1.17549435e-38, 3.4028235e38, -3e38, np.inf, -np.inf, np.nan], np.float32)
# Edge shapes of the network: one token, a head of odd or single width, rows past a vector, a tile, a block of attention.
SIZES = {"small": {}, "one token": dict(block_size=1), "past every edge": dict(block_size=27, n_layer=1, n_head=2, n_embd=36)}


def same(x, y):
    """Bit for bit, but one NaN is as good as another."""
    x, y = np.asarray(x), np.asarray(y)
    return x.shape == y.shape and x.dtype == y.dtype and np.array_equal(x, y, equal_nan=True) and (
        np.signbit(x)[~np.isnan(x)] == np.signbit(y)[~np.isnan(y)]).all()


def random(*shape, seed=0, size=1.0, special=False):
    x = (size * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)
    if special:                                 # in some rows, extreme values
        flat = x.reshape(-1)
        flat[3::29] = np.resize(SPECIAL, flat[3::29].shape)
    return x


# --- arithmetic -------------------------------------------------------------------------------------------------------

finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(finite, finite, finite)
@settings(max_examples=2000, deadline=None)
def test_fma_is_the_exact_result_rounded_once(a, b, c):
    exactly = Fraction(a) * Fraction(b) + Fraction(c)
    with np.errstate(over="ignore"):
        result = exact.fma(np.float32(a), np.float32(b), np.float32(c))
    if not np.isfinite(result):
        assert abs(exactly) >= Fraction(2) ** 128 - Fraction(2) ** 103
        return
    below, above = (Fraction(float(np.nextafter(result, np.float32(to)))) if abs(result) < 3.4e38 else None
                    for to in (-np.inf, np.inf))
    error = abs(exactly - Fraction(float(result)))
    assert all(error <= abs(exactly - other) for other in (below, above) if other is not None)


# (1 + 2^-12)^2 = 1 + 2^-11 + 2^-24 lies half-way between two floats; c, far below the last bit of float64, breaks the tie.
@pytest.mark.parametrize("c, expected", [(2.0 ** -60, 1 + 2.0 ** -11 + 2.0 ** -23), (-2.0 ** -60, 1 + 2.0 ** -11)])
def test_fma_is_not_fooled_by_a_tie_that_rounding_twice_makes(c, expected):
    a, c = np.float32(1 + 2.0 ** -12), np.float32(c)
    assert exact.fma(a, a, c) == np.float32(expected)
    assert exact.fma(-a, a, -c) == -np.float32(expected)


def test_rounding_twice_would_be_noticed():
    a, c = np.float32(1 + 2.0 ** -12), np.float32(2.0 ** -60)
    assert (a.astype(np.float64) * a + c).astype(np.float32) != exact.fma(a, a, c)


@pytest.mark.parametrize("function, name", [(exact.exp, "exp"), (exact.log, "log")])
def test_exp_and_log_are_the_kernels(function, name):
    from numba import njit

    from minigpt.kernels.lanes import LANES, load, store
    lane_function = getattr(__import__("minigpt.kernels.lanes", fromlist=[name]), name)

    @njit
    def kernel(x, y):
        for i in range(0, x.size, LANES):
            store(y, i, lane_function(load(x, i)))
    x = rng.words(5, "any float", 0, 2 ** 18).view(np.float32)          # all magnitudes, and NaN
    x[:len(SPECIAL)] = SPECIAL
    y = np.empty_like(x)
    kernel(x, y)
    with np.errstate(all="ignore"):
        assert same(function(x), y)


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("N, K, M", [(1, 1, 1), (3, 0, 5), (5, 17, 19), (25, 300, 33), (1, 70, 130), (17, 31, 65)])
def test_matmul_is_the_kernel(N, K, M, special):
    a, b, start = (random(*shape, seed=seed, special=special) for seed, shape in enumerate(((N, K), (K, M), (N, M))))
    with np.errstate(all="ignore"):
        assert same(exact.matmul(a, b, np.zeros((N, M), np.float32)), matmul(a, b, np.empty((N, M), np.float32)))
        assert same(exact.matmul(a, b, start), matmul(a, b, start.copy(), accumulate=True))


@pytest.mark.parametrize("shape", [(1, 1), (2, 15), (3, 16), (5, 33), (70, 65), (64, 128), (100, 129)])
def test_sums_are_the_kernels(shape):
    x, total = random(*shape), random(shape[1], seed=1)
    added = total.copy()
    sums.add_column_sums(x, added)
    assert same(exact.add_rows(x, total), added)
    assert exact.sum_of_squares(x) == np.float32(sums.sum_of_squares(x))


@pytest.mark.parametrize("seed, step, count", [(0, 0, 1), (7, 2 ** 33 + 5, 999), (2 ** 64 - 1, 2 ** 64 - 1, 10)])
def test_random_numbers_are_those_of_rng(seed, step, count):
    assert same(exact.words(seed, "any purpose", step, count), rng.words(seed, "any purpose", step, count))
    assert same(exact.integers(seed, "any", step, count, 1000), rng.integers(seed, "any", step, count, 1000))


# --- layers, with extreme values ------------------------------------------------------------------------------------------

def weights_of_norm(C, seed=5):
    return {"n.gain": random(C, seed=seed), "n.bias": random(C, seed=seed + 1)}


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("N, C", [(1, 1), (4, 15), (7, 16), (9, 36)])
@pytest.mark.parametrize("epsilon", [1e-5, 1e-6])
def test_norms_are_the_kernels(N, C, special, epsilon):
    x, dy, w = random(N, C, special=special), random(N, C, seed=1), weights_of_norm(C)
    y, dx, mean, rstd = np.empty_like(x), np.empty_like(x), np.empty(N, np.float32), np.empty(N, np.float32)
    for kind in "layer", "rms":
        names = ("n.gain", "n.bias") if kind == "layer" else ("n.gain",)
        g, grads = ({name: np.zeros(C, np.float32) for name in names} for _ in range(2))
        with np.errstate(all="ignore"):
            found, backward = plain.norm(x, {name: w[name] for name in names}, g, "n", kind, epsilon)
            dx_found = backward(dy)
        if kind == "layer":
            norms.layer_norm_forward(x, w["n.gain"], w["n.bias"], np.float32(epsilon), y, mean, rstd)
            norms.layer_norm_backward(dy, x, w["n.gain"], mean, rstd, dx, grads["n.gain"], grads["n.bias"])
        else:
            norms.rms_norm_forward(x, w["n.gain"], np.float32(epsilon), y, rstd)
            norms.rms_norm_backward(dy, x, w["n.gain"], rstd, dx, grads["n.gain"])
        assert same(found, y) and same(dx_found, dx) and all(same(g[name], grads[name]) for name in names)


@pytest.mark.parametrize("size", [1.0, 30.0])
@pytest.mark.parametrize("B, H, Hkv, T, D", [(1, 1, 1, 1, 1), (2, 3, 3, 5, 4), (1, 2, 2, 30, 17), (1, 1, 1, 53, 8),
                                             (1, 2, 1, 30, 17), (2, 6, 2, 27, 4)])
def test_attention_is_the_kernel(B, H, Hkv, T, D, size):
    q, k, v, dout = (random(B * T, heads * D, seed=seed, size=size) for seed, heads in enumerate((H, Hkv, Hkv, H)))
    out, dq, dk, dv = (np.empty_like(x) for x in (q, q, k, v))
    peak, total = np.empty((2, B * H, T), np.float32)
    scale = np.float32(1) / np.sqrt(np.float32(D))
    attention.attention_forward(q, k, v, H, T, scale, out, peak, total)
    attention.attention_backward(dout, q, k, v, out, peak, total, H, T, scale, dq, dk, dv)

    def heads(x):
        return x.reshape(B, T, -1, D).transpose(0, 2, 1, 3)
    found, backward = plain.attend(heads(q), heads(k), heads(v))
    assert same(found, heads(out)) and all(map(same, backward(heads(dout)), map(heads, (dq, dk, dv))))


@pytest.mark.parametrize("kind, forward, backward", [
    ("relu", activations.relu_forward, activations.relu_backward),
    ("relu2", activations.squared_relu_forward, activations.squared_relu_backward),
    ("gelu", activations.gelu_forward, activations.gelu_backward)])
def test_activations_are_the_kernels(kind, forward, backward):
    x, dy = random(3000, size=4, special=True), random(3000, seed=1)
    y, dx = np.empty_like(x), np.empty_like(x)
    forward(x, y)
    backward(dy, x, dx)
    with np.errstate(all="ignore"):
        found, back = plain.activation(x, kind)
        assert same(found, y) and same(back(dy), dx)


def test_swiglu_is_the_kernel():
    z, x, dy = random(3000, size=4, special=True), random(3000, seed=2, special=True)[::-1].copy(), random(3000, seed=1)
    y, dz, dx = (np.empty_like(x) for _ in range(3))
    activations.swiglu_forward(z, x, y)
    activations.swiglu_backward(dy, z, x, dz, dx)
    with np.errstate(all="ignore"):
        found, back = plain.gated(z, x)
        assert same(found, y) and all(map(same, back(dy), (dz, dx)))


def test_softmax_is_the_kernel_with_extreme_logits():
    logits = random(40, 67, size=5, special=True)
    probabilities, losses = np.empty_like(logits), np.empty(40, np.float32)
    softmax.cross_entropy_forward(logits, np.zeros(40, np.int64), probabilities, losses)
    with np.errstate(all="ignore"):
        e, peak, total = plain.softmax_parts(logits)
        assert same(e / total, probabilities)
        assert same(exact.log(total)[:, 0] - (logits[:, 0] - peak[:, 0]), losses)


@pytest.mark.parametrize("shape", [(1, 1), (5, 5), (12, 48), (48, 12), (70, 33)])
def test_orthogonalisation_is_the_kernel(shape):
    matrix = random(*shape)
    found = plain.orthogonalise(matrix)
    orthogonalise(matrix[None])
    assert same(found, matrix)


# --- the network ----------------------------------------------------------------------------------------------------------

def models(name, sizes):
    config = float64.make_config(name, **SIZES[sizes])
    model = float64.make_model(config, seed=3)
    return config, model, {name: parameter.data.copy() for name, parameter in model.parameters().items()}


every_option = [pytest.mark.parametrize("name", float64.CONFIGS), pytest.mark.parametrize("sizes", SIZES)]


def for_every_option(test):
    for mark in every_option:
        test = mark(test)
    return test


@for_every_option
def test_logits_loss_and_every_gradient_are_the_same(name, sizes):
    config, model, w = models(name, sizes)
    ids = float64.make_ids(config, 3, config.block_size + 1)
    x, y = ids[:, :-1], ids[:, 1:]
    logits, _ = plain.forward(config, w, x)
    assert same(logits.reshape(*x.shape, -1), model.forward(x))
    loss, g = plain.loss_and_gradients(config, w, x, y, (5, 9))
    assert loss == model.loss(x, y, Draw(5, 9))
    model.backward()
    gradients = {name: parameter.grad for name, parameter in model.parameters().items()}
    assert list(gradients) == list(g)
    assert not [name for name in g if not same(g[name], gradients[name])]


@for_every_option
def test_token_by_token_the_logits_are_the_same(name, sizes):
    config, _, w = models(name, sizes)
    ids, past = float64.make_ids(config, 2, config.block_size), {}
    whole = plain.forward(config, w, ids)[0].reshape(*ids.shape, -1)
    assert all(same(plain.forward(config, w, ids[:, t:t + 1], past=past)[0], whole[:, t]) for t in range(ids.shape[1]))


@for_every_option
def test_a_window_in_chunks_while_tokens_are_dropped_is_the_same(name, sizes):
    config, model, w = models(name, sizes)
    ids, cache, past = float64.make_ids(config, 2, config.block_size), model.new_cache(2), {}
    for start in range(0, config.block_size, 4):
        if start >= 8:
            cache.drop(3)
            plain.drop(past, 3)
        part = ids[:, start:start + 4]
        assert same(plain.forward(config, w, part, past=past)[0].reshape(*part.shape, -1), model.forward(part, cache=cache))


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("name", float64.CONFIGS)
@pytest.mark.parametrize("sizes", ["past every edge", *(pytest.param(sizes, marks=pytest.mark.slow)
                                                        for sizes in ("small", "one token"))])
def test_weights_and_optimizer_state_are_the_same_after_three_steps(name, sizes, optimizer):
    config, model, w = models(name, sizes)
    settings = OptimizerConfig(optimizer=optimizer, warmup=2, cooldown=0.6)
    fast, state = Optimizer(model, settings, 3), {}
    for step in range(3):
        ids = float64.make_ids(config, 2, config.block_size + 1, seed=step)
        model.loss(ids[:, :-1], ids[:, 1:], Draw(5, step))
        model.backward()
        fast.step()
        _, g = plain.loss_and_gradients(config, w, ids[:, :-1], ids[:, 1:], (5, step))
        plain.optimizer_step(settings, w, g, state, step, 3)
    assert state.keys() == fast.state.keys()
    assert not [name for name in state if not same(state[name], fast.state[name])]
    assert not [name for name, parameter in model.parameters().items() if not same(w[name], parameter.data)]


@pytest.mark.parametrize("name", float64.CONFIGS)
def test_initial_weights_are_the_same(name):
    config = float64.make_config(name)
    w, model = plain.initial_weights(config, 11), GPT(config, 11)
    assert list(w) == list(model.parameters())
    assert all(same(w[name], parameter.data) for name, parameter in model.parameters().items())


@pytest.mark.parametrize("name", float64.CONFIGS)
@pytest.mark.parametrize("options", [dict(), dict(temperature=0.0), dict(temperature=0.7, top_k=4, top_p=0.8)])
def test_sampled_tokens_are_the_same(name, options):
    config, model, w = models(name, "small")
    start = [3, 1, 4]
    fast = list(islice(generate(model, start, seed=2, **options), 25))          # past the window's end, twice
    assert list(islice(plain.generate(config, w, start, seed=2, **options), 25)) == fast


@pytest.mark.parametrize("start", [9, 12])
def test_a_full_window_moves_on_in_the_same_way(start):
    config, model, w = models("default", "small")
    ids = list(range(8)) + [1, 2, 3, 4]
    fast = list(islice(generate(model, ids[:start], seed=2), 8))
    assert list(islice(plain.generate(config, w, ids[:start], seed=2), 8)) == fast


def test_rotary_tables_of_any_length_agree_with_cosine_and_sine():
    cosine, sine = exact.rotary_tables(500, 24)
    angle = np.arange(500)[:, None] * 10000.0 ** (-np.arange(12) / 12)
    assert np.abs(cosine - np.cos(angle)).max() < 1e-6 and np.abs(sine - np.sin(angle)).max() < 1e-6
    assert same(Rotary(500, 24).cosine, cosine)


@pytest.mark.parametrize("theta, factors", [(100000.0, ()), (500000.0, (1.0, 1.5, 8.0, 8.0)), (1e6, ()), (1.0, ())])
def test_rotary_tables_of_any_base_agree_with_cosine_and_sine(theta, factors):
    cosine, sine = exact.rotary_tables(9000, 8, theta, factors)
    angle = np.arange(9000)[:, None] * theta ** (-np.arange(4) / 4) / (np.array(factors) if factors else 1)
    assert np.abs(cosine - np.cos(angle)).max() < 1e-6 and np.abs(sine - np.sin(angle)).max() < 1e-6


def test_the_logarithm_of_the_base_is_right_to_the_last_place():
    assert exact.log64(10000.0) == 9.210340371976184        # the constant of all models before there was a choice
    for x in (1.0, 1.5, 2.0, 3.7, 1e5, 5e5, 1e6, 1e12):
        assert abs(exact.log64(x) - float(np.log(x))) <= np.spacing(np.log(x))


def test_training_is_that_of_the_trainer(tmp_path):
    text = b"To be, or not to be, that is the question: whether 'tis nobler in the mind to suffer " * 4
    config = GPTConfig(block_size=16, n_layer=1, n_head=2, n_embd=16, dropout=0.1)
    settings, train = OptimizerConfig(warmup=2), TrainConfig(steps=4, batch_size=3, seed=9)
    trainer = Trainer(GPT(config, 9), ByteTokenizer(), text, train, settings, tmp_path)
    losses = [trainer.step() for _ in range(4)]
    found = list(plain.train(config, settings, trainer.train_ids, 4, 3, 9))
    assert [loss for loss, _ in found] == losses
    w = found[-1][1]
    assert all(same(w[name], parameter.data) for name, parameter in trainer.model.parameters().items())
    assert fingerprint(trainer.model)


@pytest.mark.parametrize("name", verify.RUNS)
def test_the_published_hashes_are_those_of_the_specification(name):
    config, _ = verify.RUNS[name]
    w, found = plain.initial_weights(config, 7), {}
    ids = exact.integers(7, "golden", 0, verify.BATCH * (config.block_size + 1), config.vocab_size).reshape(verify.BATCH, -1)
    logits, _ = plain.forward(config, w, ids[:, :-1])
    _, g = plain.loss_and_gradients(config, w, ids[:, :-1], ids[:, 1:], (7, 0))
    found[f"{name}: logits"] = verify.sha256(logits)
    found[f"{name}: gradients"] = verify.sha256(np.concatenate([gradient.ravel() for gradient in g.values()]))
    assert found == {line: verify.EXPECTED[line] for line in found}


# --- the file ---------------------------------------------------------------------------------------------------------------

def test_nothing_below_it_imports_numba():
    code = "import sys, minigpt.reference; sys.exit('numba' in sys.modules or 'llvmlite' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0

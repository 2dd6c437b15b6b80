"""A quantised model: a product of integers is what its definition says, and a row has the same bits however it is computed."""

import numpy as np
import pytest

from minigpt import exact, reference
from minigpt.ensemble import Ensemble
from minigpt.kernels.quantised import matmul_quantised, quantise
from minigpt.kernels.threads import get_num_threads, set_num_threads
from minigpt.model import GPT, GPTConfig

f32 = np.float32
CONFIGS = {
    "odd": GPTConfig(block_size=27, n_layer=2, n_head=2, n_embd=36),
    "llama": GPTConfig(vocab_size=300, block_size=40, n_layer=2, n_head=6, n_kv_head=2, n_embd=96, n_hidden=130,
                       activation="swiglu", qk_norm=False, tied=True),
    "wide": GPTConfig(block_size=12, n_layer=1, n_head=5, n_embd=320),          # steps by columns
    "long": GPTConfig(block_size=150, n_layer=1, n_head=1, n_embd=80, position="learned", norm="layer", bias=True),
}


def product(x, w):
    return exact.matmul(x, exact.Quantised(np.ascontiguousarray(w.T)))


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(f32)


@pytest.mark.parametrize("N, K, M", [(1, 1, 1), (5, 65, 33), (8, 576, 192), (23, 100, 70), (4, 64, 64), (17, 192, 256),
                                     (3, 63, 97)])
def test_a_product_is_what_its_definition_says(N, K, M):
    x, w = numbers(N, K), numbers(K, M, seed=1)
    x[0, 0], w[:, 0], w[-1] = 1e30, 0, 1e-42                            # an outlier, a column of zeros, subnormal numbers
    assert matmul_quantised(x, quantise(w), np.empty((N, M), f32)).tobytes() == product(x, w).tobytes()


def test_no_sum_of_integers_overflows():
    x, w = np.full((3, 4096), 5, f32), np.full((4096, 40), -7, f32)
    assert np.array_equal(matmul_quantised(x, quantise(w), np.empty((3, 40), f32)), product(x, w))
    assert np.allclose(product(x, w), -5 * 7 * 4096, rtol=1e-5)


def test_a_row_is_the_same_alone_and_on_any_number_of_threads():
    x, matrix = numbers(65, 130), quantise(numbers(130, 200, seed=1))
    whole, threads = matmul_quantised(x, matrix, np.empty((65, 200), f32)), get_num_threads()
    try:
        set_num_threads(1)
        assert matmul_quantised(x, matrix, np.empty((65, 200), f32)).tobytes() == whole.tobytes()
    finally:
        set_num_threads(threads)
    assert matmul_quantised(x[7:8].copy(), matrix, np.empty((1, 200), f32)).tobytes() == whole[7].tobytes()


def test_what_a_product_would_misread_is_refused():
    matrix = quantise(numbers(64, 40))
    for x, out in ((numbers(2, 65), (2, 40)), (numbers(2, 64), (3, 40)), (numbers(2, 64), (2, 140)),
                   (numbers(64, 2).T, (2, 40)), (numbers(2, 64).astype(np.float64), (2, 40))):
        with pytest.raises(ValueError, match="matmul_quantised"):
            matmul_quantised(x, matrix, np.empty(out, f32))


def test_numbers_that_are_not_finite_give_what_the_definition_gives():
    x = numbers(5, 64)
    x[0, 1], x[1, 2], x[2, 3], x[3] = np.nan, np.inf, -np.inf, np.nan
    with np.errstate(all="ignore"):
        found, expected = matmul_quantised(x, quantise(x.T.copy()), np.empty((5, 5), f32)), product(x, x.T)
    assert np.array_equal(found, expected, equal_nan=True) and np.isfinite(found[4, 4]) and np.isnan(found[1, 2])


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_quantised_model_equals_the_reference_in_every_bit(config):
    model = GPT(config, seed=3)
    model.parameters()["blocks.0.attention.query.weight"].data[:] *= 30            # attention to few tokens, and to many
    weights = {name: parameter.data.copy() for name, parameter in model.parameters().items()}
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (2, config.block_size))
    expected, _ = reference.forward(config, reference.quantise(config, weights), ids)
    assert model.quantise().forward(ids).tobytes() == expected.tobytes()


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_quantised_model_predicts_the_same_in_a_window_and_token_by_token(config):
    model = GPT(config, seed=3)
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (3, config.block_size))
    before = model.forward(ids)
    whole = model.quantise().forward(ids)
    assert 0 < np.abs(whole - before).max() < 0.05 * np.abs(before).max()
    cache = model.new_cache(3)
    steps = np.stack([model.step(ids[:, t], cache) for t in range(config.block_size)], axis=1)
    assert steps.tobytes() == whole.tobytes()
    cache = model.new_cache(3)
    parts = [model.forward(part, cache=cache) for part in np.array_split(ids, [5, 11], axis=1)]
    assert np.concatenate(parts, axis=1).tobytes() == whole.tobytes()
    assert model.forward(ids[1:2]).tobytes() == whole[1].tobytes()


def test_a_quantised_cache_forgets_what_is_dropped():
    config = GPTConfig(vocab_size=300, block_size=400, n_layer=2, n_head=2, n_kv_head=1, n_embd=80)
    model, ids = GPT(config, seed=3).quantise(), np.random.default_rng(0).integers(0, 300, (2, 200))
    weights = {name: parameter.data.copy() for name, parameter in GPT(config, seed=3).parameters().items()}
    together, apart, past = model.new_cache(2, 210), model.new_cache(2, 210), {}
    model.forward(ids, cache=together)
    for t in range(200):
        model.step(ids[:, t], apart)
    quantised = reference.quantise(config, weights)
    reference.forward(config, quantised, ids, past=past)
    for cache in together, apart:
        cache.drop(77)
    reference.drop(past, 77)
    for _ in range(2):
        expected, _ = reference.forward(config, quantised, ids[:, :1], past=past)
        assert model.step(ids[:, 0], together).tobytes() == expected.tobytes()
        assert model.forward(ids[:, :1], cache=apart).tobytes() == expected.tobytes()
    together.drop(11, spared=3)
    apart.drop(11, spared=3)
    assert model.step(ids[:, 0], together).tobytes() == model.forward(ids[:, :1], cache=apart).tobytes()
    assert together.held == 115


def test_an_ensemble_is_quantised_member_by_member():
    def members():
        return GPT(CONFIGS["odd"], seed=1), GPT(CONFIGS["odd"], seed=2)
    ids = np.arange(20).reshape(2, 10)
    ensemble = Ensemble(members()).quantise()
    assert ensemble.forward(ids).tobytes() == Ensemble(m.quantise() for m in members()).forward(ids).tobytes()


def test_a_quantised_model_is_not_taken_for_another():
    model = GPT(CONFIGS["odd"], seed=3)
    frozen = model.copy().freeze()
    with pytest.raises(RuntimeError, match="quantise a copy"):
        frozen.quantise()
    with pytest.raises(RuntimeError, match="its weights any more"):
        model.quantise().copy()
    with pytest.raises(RuntimeError, match="frozen"):
        model.backward()
    assert model.quantise() is model

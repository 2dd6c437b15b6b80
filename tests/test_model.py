"""What GPTConfig and GPT accept and refuse, how a model starts, and that it learns."""

import dataclasses
import json
import math
import tracemalloc
from functools import partial
from itertools import product

import numpy as np
import pytest

import minigpt.model
from minigpt.layers import CrossEntropy, Draw, LayerNorm, Linear, RMSNorm
from minigpt.model import GPT, GPTConfig
from minigpt.optimizer import Optimizer, OptimizerConfig
from tests import float64

# --- GPTConfig --------------------------------------------------------------------------------------------------------

WRONG = [
    *product(["vocab_size", "block_size", "n_layer", "n_head", "n_embd"], [0, -4, 8.0, True, "8", None]),
    *product(["position", "norm", "norm_order", "activation"], ["other", "", None, 1]),
    *product(["n_kv_head", "n_hidden"], [-4, 8.0, True, "8", None]),
    *product(["qk_norm", "bias", "tied", "qkv_bias", "head_bias"], [0, 1, "yes", None]),
    *product(["dropout"], [-0.1, 1, 1.5, math.nan, math.inf, "0.1", None]),
    *product(["rope_theta"], [0.5, 0, -10000.0, math.nan, math.inf, True, "1", None]),
    *product(["norm_epsilon"], [0, -1e-5, 2, math.nan, math.inf, "0.1", None]),
    *product(["rope_factors"], [1.0, "1", None, (0.5,), (1.0, math.nan), (math.inf,), ("1",), (True,)]),
]


@pytest.mark.parametrize("field, value", WRONG)
def test_a_wrong_field_is_refused_by_name_and_value(field, value):
    with pytest.raises(ValueError) as error:
        GPTConfig(**{field: value})
    assert str(error.value).startswith(f"{field} ") and str(error.value).endswith(repr(value))


def test_every_field_is_checked():
    assert {field.name for field in dataclasses.fields(GPTConfig)} == {field for field, _ in WRONG}


def test_heads_that_do_not_divide_the_channels_are_refused():
    with pytest.raises(ValueError, match=r"n_embd \(10\).*n_head \(3\)"):
        GPTConfig(n_embd=10, n_head=3)


@pytest.mark.parametrize("kv_heads", [3, 5, 8])
def test_key_value_heads_that_do_not_divide_the_heads_are_refused(kv_heads):
    with pytest.raises(ValueError, match=rf"n_head \(4\) must be a multiple of n_kv_head \({kv_heads}\)"):
        GPTConfig(n_head=4, n_kv_head=kv_heads)


def test_there_must_be_a_rope_factor_for_each_frequency():
    with pytest.raises(ValueError, match="one for each of 4 frequencies, but are 3"):
        GPTConfig(n_embd=16, n_head=2, rope_factors=(1.0, 2.0, 4.0))


def test_a_config_goes_through_json_and_old_ones_look_as_they_did():
    old = GPTConfig()
    assert list(old.to_json()) == ["vocab_size", "block_size", "n_layer", "n_head", "n_embd", "position", "norm", "norm_order",
                                   "activation", "qk_norm", "bias", "tied", "dropout"]
    new = GPTConfig(n_embd=16, n_kv_head=2, n_hidden=24, rope_theta=500000, norm_epsilon=1e-6, qkv_bias=True,
                    rope_factors=[1, 8], head_bias=True)
    assert len(new.to_json()) == len(dataclasses.fields(GPTConfig))
    for config in old, new:
        assert GPTConfig(**json.loads(json.dumps(config.to_json()))) == config
    assert json.dumps(GPTConfig(rope_theta=500000).to_json()) == json.dumps(GPTConfig(rope_theta=500000.0).to_json())


def test_a_tied_head_has_no_bias_of_its_own():
    with pytest.raises(ValueError, match="a tied head has no bias"):
        GPTConfig(tied=True, head_bias=True)


def test_rotary_positions_need_heads_of_even_size():
    with pytest.raises(ValueError, match="a head has 3"):
        GPTConfig(n_embd=9, n_head=3)
    GPTConfig(n_embd=9, n_head=3, position="learned")


# --- what a model refuses ---------------------------------------------------------------------------------------------

@pytest.fixture
def model():
    return GPT(GPTConfig(vocab_size=11, block_size=6, n_layer=1, n_head=2, n_embd=8))


GOOD = np.zeros((2, 6), int)
WIDE = GPTConfig(block_size=8, n_layer=2, n_head=2, n_embd=64)
WRONG_WINDOWS = {
    "too long": (np.zeros((2, 7), int), "7 tokens is longer than block_size, 6"),
    "negative": (GOOD - 1, "0 .. 10, but reach from -1"),
    "one id too high": (np.where(np.arange(6) == 3, 11, GOOD), "0 .. 10, but reach from 0 to 11"),
    "one dimension": (GOOD[0], r"shape \(6,\)"),
    "three dimensions": (GOOD[None], r"shape \(1, 2, 6\)"),
    "no token": (GOOD[:, :0], r"shape \(2, 0\)"),
    "no row": (GOOD[:0], r"shape \(0, 6\)"),
}


@pytest.mark.parametrize("ids, message", WRONG_WINDOWS.values(), ids=WRONG_WINDOWS)
def test_a_wrong_window_is_refused(model, ids, message):
    with pytest.raises(ValueError, match=message):
        model.forward(ids)
    with pytest.raises(ValueError, match=message):
        model.forward(ids, cache=model.new_cache(2))
    with pytest.raises(ValueError, match=message):
        model.loss(ids, GOOD)


@pytest.mark.parametrize("targets", [GOOD[:, :5], GOOD[:1], GOOD[0], GOOD - 1, GOOD + 11],
                         ids=["shorter", "fewer", "one dimension", "negative", "too high"])
def test_wrong_targets_are_refused(model, targets):
    with pytest.raises(ValueError):
        model.loss(GOOD, targets)


WRONG_STEPS = {
    "negative": (np.array([0, -1]), "0 .. 10, but reach from -1"),
    "too high": (np.array([0, 11]), "0 .. 10, but reach from 0 to 11"),
    "two dimensions": (GOOD[:, :1], r"shape \(2, 1\)"),
    "no sequence": (GOOD[0, :0], r"shape \(0,\)"),
    "fewer sequences": (GOOD[0, :1], r"holds 2 sequences.*shape \(1,\)"),
    "more sequences": (GOOD[0, :3], r"holds 2 sequences.*shape \(3,\)"),
}


@pytest.mark.parametrize("ids, message", WRONG_STEPS.values(), ids=WRONG_STEPS)
def test_a_wrong_step_is_refused_and_leaves_the_cache_alone(model, ids, message):
    cache, untouched = model.new_cache(2), model.new_cache(2)
    for t in range(3):
        with pytest.raises(ValueError, match=message):
            model.step(ids, cache)
        assert np.array_equal(model.step(GOOD[:, t], cache), model.step(GOOD[:, t], untouched))


@pytest.mark.parametrize("rows", [1, 3])
def test_a_window_is_refused_by_a_cache_of_another_number_of_sequences(model, rows):
    cache = model.new_cache(2)
    with pytest.raises(ValueError, match="sequences"):
        model.forward(np.zeros((rows, 4), int), cache=cache)
    assert cache.position == 0


def test_a_full_cache_takes_no_more_tokens(model):
    cache = model.new_cache(2)
    model.forward(GOOD[:, :5], cache=cache)
    model.step(GOOD[:, 5], cache)
    with pytest.raises(ValueError, match="full: block_size is 6"):
        model.step(GOOD[:, 0], cache)
    with pytest.raises(ValueError, match="full: block_size is 6"):
        model.forward(GOOD[:, :1], cache=cache)
    assert (cache.held, cache.position) == (6, 6)


def test_a_cache_takes_no_more_tokens_than_it_has_room_for_and_drops_none_that_it_has_not(model):
    cache = model.new_cache(2, 4)
    model.forward(GOOD[:, :3], cache=cache)
    with pytest.raises(ValueError, match="room for 4 tokens and holds 3, so 2 more do not fit"):
        model.forward(GOOD[:, :2], cache=cache)
    for count in (4, -1):
        with pytest.raises(ValueError, match="holds 3 tokens, so"):
            cache.drop(count)
    cache.drop(2)
    model.forward(GOOD[:, :2], cache=cache)
    assert (cache.held, cache.position) == (3, 5)
    with pytest.raises(ValueError, match="block_size is 6"):
        model.forward(GOOD[:, :2], cache=cache)


@pytest.mark.parametrize("length", [0, 7, -1, 2.0])
def test_a_cache_of_another_length_than_there_are_positions_is_refused(model, length):
    with pytest.raises(ValueError, match="room for 1 to block_size"):
        model.new_cache(2, length)


# --- backward belongs to the loss before it -----------------------------------------------------------------------------

def one_step(model):
    model.step(GOOD[:, 0], model.new_cache(2))


def grads(model):
    return b"".join(parameter.grad.tobytes() for parameter in model.parameters().values())


@pytest.mark.parametrize("between", [
    lambda model: model.forward(GOOD[:1, :3]), lambda model: model.forward(GOOD, cache=model.new_cache(2)),
    lambda model: model.backward()], ids=["forward", "forward with a cache", "backward"])
def test_backward_is_refused_once_the_activations_of_the_loss_are_gone(model, between):
    model.loss(GOOD, GOOD)
    between(model)
    with pytest.raises(RuntimeError, match=r"call loss\(\) again first"):
        model.backward()
    model.loss(GOOD, GOOD)
    model.backward()


def test_backward_is_refused_without_a_loss(model):
    with pytest.raises(RuntimeError, match=r"call loss\(\)"):
        model.backward()


def test_backward_is_refused_after_a_loss_that_failed(model):
    model.loss(GOOD, GOOD)
    model._loss.forward = lambda logits, targets: 1 / 0
    with pytest.raises(ZeroDivisionError):
        model.loss(GOOD, GOOD)
    with pytest.raises(RuntimeError):
        model.backward()


def test_a_cached_step_between_loss_and_backward_changes_nothing(model):
    found = []
    for between in (lambda model: None, one_step):
        model.loss(GOOD, GOOD)
        between(model)
        model.backward()
        found.append(grads(model))
    assert found[0] == found[1]


def test_the_losses_of_a_call_stay_what_they_were(model):
    model.loss(GOOD, GOOD)
    losses, before = model.losses, model.losses.copy()
    model.loss(GOOD, GOOD + 3)
    assert np.array_equal(losses, before) and not np.array_equal(model.losses, before)


# --- frozen -----------------------------------------------------------------------------------------------------------

def test_a_frozen_model_cannot_be_trained_but_its_copy_can(model):
    copy = model.freeze().copy()
    for one, trained in (model, False), (copy, True):
        one.loss(GOOD, GOOD)
        if trained:
            one.backward()
        else:
            with pytest.raises(RuntimeError, match="a frozen model cannot be trained"):
                one.backward()


def test_a_frozen_matrix_cannot_be_changed(model):
    for parameter in model.freeze().parameters().values():
        if parameter.data.ndim == 2 and parameter is not model.tokens.weight:
            with pytest.raises(ValueError, match="read-only"):
                parameter.data[...] = 0


# --- memory -----------------------------------------------------------------------------------------------------------

def allocated(call):
    """Bytes that are allocated by call() and still are, once its result is gone."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


def test_gradients_take_no_memory_before_there_are_any():
    models = []
    weights = sum(parameter.data.nbytes for parameter in GPT(WIDE).parameters().values())
    assert allocated(lambda: models.append(GPT(WIDE, seed=None))) < 1.2 * weights
    ids = np.zeros((1, 8), np.int64)
    assert allocated(lambda: models[0].forward(ids)) < 0.2 * weights
    models[0].loss(ids, ids)
    assert allocated(models[0].backward) > weights


def test_a_forward_pass_of_many_windows_takes_the_buffers_of_few(monkeypatch):
    monkeypatch.setattr(minigpt.model, "TOKENS_PER_PASS", 16)
    few, many = (allocated(partial(GPT(WIDE).forward, np.zeros((windows, 8), np.int64))) for windows in (2, 64))
    assert many < 1.2 * few


def test_a_frozen_model_and_its_caches_take_the_memory_of_the_weights_alone():
    kept = []
    weights = sum(parameter.data.nbytes for parameter in GPT(WIDE).parameters().values())
    assert allocated(lambda: kept.append(GPT(WIDE).freeze())) < 1.3 * weights
    assert allocated(lambda: kept.append(kept[0].new_cache(1, 1))) < 0.1 * weights


# --- what a layer refuses -----------------------------------------------------------------------------------------------

def ones(*shape):
    return np.ones(shape, np.float32)


WRONG_ROWS = {"float64": np.ones((3, 8)), "too narrow": ones(3, 7), "one dimension": ones(8),
              "every other column": ones(3, 16)[:, ::2], "transposed": ones(8, 3).T}


@pytest.mark.parametrize("x", WRONG_ROWS.values(), ids=WRONG_ROWS)
@pytest.mark.parametrize("layer", [Linear(8, 8, True, 0.1), LayerNorm(8, False), RMSNorm(8)], ids=lambda x: type(x).__name__)
def test_a_layer_refuses_rows_that_its_kernel_would_misread(layer, x):
    good = ones(3, 8)
    if not (isinstance(layer, Linear) and x.shape == good.shape and x.dtype == good.dtype):     # these may have any strides
        with pytest.raises(ValueError):
            layer.forward(x)
    layer.forward(good)
    with pytest.raises(ValueError, match="dy must be contiguous float32"):
        layer.backward(x)


def test_cross_entropy_refuses_fewer_targets_than_rows():
    with pytest.raises(ValueError, match="as many targets as rows"):
        CrossEntropy().forward(ones(3, 8), np.zeros(2, np.int64))


def test_a_layer_norm_without_bias_keeps_nothing_of_a_backward_pass():
    layer = LayerNorm(8, bias=False)

    def memory():
        return {name: value.copy() for name, value in vars(layer).items() if isinstance(value, np.ndarray)}
    layer.forward(ones(3, 8))
    before = memory()
    layer.backward(ones(3, 8))
    assert all(np.array_equal(value, before[name]) for name, value in memory().items())


# --- how it starts ----------------------------------------------------------------------------------------------------

def weights(model):
    return {name: parameter.data for name, parameter in model.parameters().items()}


def test_a_model_has_the_parameters_that_the_formula_counts():
    V, T, L, H, C = 37, 20, 3, 2, 16
    attention, feed_forward = 4 * (C * C + C), 8 * C * C + 5 * C
    block = attention + feed_forward + 2 * 2 * C + 2 * C // H            # two layer norms; a gain for queries, one for keys
    config = GPTConfig(V, T, L, H, C, position="learned", norm="layer", bias=True)
    assert sum(data.size for data in weights(GPT(config)).values()) == V * C + T * C + L * block + 2 * C + C * V


def test_a_tied_head_has_no_weights_of_its_own():
    tied, untied = (weights(GPT(float64.make_config("default", tied=tied))) for tied in (True, False))
    assert untied.keys() - tied.keys() == {"head.weight"}


@pytest.mark.parametrize("name", float64.CONFIGS)
def test_an_untrained_model_knows_nothing(name):
    config = float64.make_config(name, vocab_size=65, block_size=64, n_embd=64)
    ids, targets = float64.make_ids(config, 8, 64, 1), float64.make_ids(config, 8, 64, 2)
    assert GPT(config).loss(ids, targets) == pytest.approx(math.log(65), abs=0.05)


def test_the_same_seed_gives_the_same_weights():
    config = float64.make_config("gpt-2")
    ours, theirs = weights(GPT(config, seed=5)), weights(GPT(config, seed=5))
    assert all(ours[name].tobytes() == theirs[name].tobytes() for name in ours)


def test_another_seed_gives_other_matrices():
    config = float64.make_config("gpt-2")
    ours, theirs = weights(GPT(config, seed=5)), weights(GPT(config, seed=6))
    assert all((ours[name] != theirs[name]).mean() > 0.99 for name in ours if ours[name].ndim == 2)


def test_no_two_matrices_start_alike():
    matrices = [data.reshape(-1) for data in weights(GPT(float64.make_config("default"))).values() if data.ndim == 2]
    starts = {(matrix[:8] / matrix[0]).tobytes() for matrix in matrices}
    assert len(starts) == len(matrices)


# --- dropout ----------------------------------------------------------------------------------------------------------

def test_without_a_draw_nothing_is_dropped():
    ids = float64.make_ids(float64.make_config("default"), 2, 9)
    with_dropout, without = (GPT(float64.make_config("default", dropout=p)) for p in (0.5, 0.0))
    assert with_dropout.forward(ids).tobytes() == without.forward(ids).tobytes()


def test_dropout_depends_on_the_seed_and_the_step_alone():
    config = float64.make_config("dropout")
    model, ids = GPT(config), float64.make_ids(config, 2, 9)
    first = model.forward(ids, Draw(1, 1))
    assert not np.array_equal(model.forward(ids, Draw(1, 2)), first)
    assert not np.array_equal(model.forward(ids, Draw(2, 1)), first)
    assert model.forward(ids, Draw(1, 1)).tobytes() == first.tobytes()


# --- that it learns ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_small_model_learns_a_text_by_heart(optimizer):
    text = np.frombuffer(b"To be, or not to be, that is the question: " * 2, np.uint8)
    windows = np.stack([text[start:start + 33] for start in range(43)])
    ids, targets = windows[:, :-1], windows[:, 1:]
    model = GPT(GPTConfig(vocab_size=128, block_size=32, n_layer=2, n_head=2, n_embd=64))
    training = Optimizer(model, OptimizerConfig(optimizer=optimizer, learning_rate=0.01, warmup=5), steps=60)
    for _ in range(60):
        model.loss(ids, targets)
        model.backward()
        training.step()
    assert model.loss(ids, targets) < 0.1          # what the first letters of a window leave open is 0.04

"""The optimiser against the same formulas in float64."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, strategies as st

from minigpt.kernels import muon
from minigpt.layers import Parameter
from minigpt.model import GPT, GPTConfig
from minigpt.optimizer import Optimizer, OptimizerConfig, schedule

SHAPES = {"tokens.weight": (7, 4), "blocks.0.norm.gain": (4,), "blocks.0.query.weight": (4, 4),
          "blocks.0.expand.weight": (4, 9), "blocks.0.contract.weight": (9, 4), "blocks.0.contract.bias": (4,),
          "head.weight": (4, 7)}


class Model:
    """The parameters of a small GPT, and nothing else; the tests prescribe the gradients."""

    def __init__(self, shapes=SHAPES):
        self._parameters = {name: Parameter(shape) for name, shape in shapes.items()}
        for name, weight in gradients(-1, shapes).items():
            self._parameters[name].data[:] = weight

    def parameters(self):
        return self._parameters

    def weights(self):
        return {name: parameter.data.copy() for name, parameter in self._parameters.items()}


def gradients(step, shapes=SHAPES, size=1.0):
    rng = np.random.default_rng(step + 1)
    return {name: (size * rng.standard_normal(shape)).astype(np.float32) for name, shape in shapes.items()}


def take(optimizer, gradient):
    """One step with the gradients given; returns what `step` returns."""
    for name, parameter in optimizer.parameters.items():
        parameter.grad[:] = gradient[name]
    return optimizer.step()


def same_bits(one, other):
    return one.keys() == other.keys() and all(one[name].tobytes() == other[name].tobytes() for name in one)


def agrees(got, want, tolerance):
    return got.keys() == want.keys() and all(np.abs(got[name] - want[name]).max() <= tolerance for name in want)


# --- configuration ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name, value", (
    ("optimizer", "sgd"), ("learning_rate", -1e-3), ("learning_rate", float("nan")), ("muon_rate", float("inf")),
    ("weight_decay", -0.1), ("clip", -1.0), ("beta1", 1.0), ("beta1", -0.1), ("beta2", 1.5), ("beta2", float("nan")),
    ("momentum", 1.0), ("warmup", -1), ("warmup", 2.5), ("cooldown", 1.01), ("cooldown", -0.5), ("cooldown", float("nan"))))
def test_a_wrong_setting_is_named_with_its_value(name, value):
    with pytest.raises(ValueError) as error:
        OptimizerConfig(**{name: value})
    assert str(error.value).startswith(name) and repr(value) in str(error.value)


@pytest.mark.parametrize("settings", (
    {"learning_rate": 0.0}, {"clip": 0.0}, {"weight_decay": 0.0}, {"beta1": 0.0, "beta2": 0.0, "momentum": 0.0},
    {"warmup": 0, "cooldown": 0.0}, {"cooldown": 1.0}, {"optimizer": "adamw"}))
def test_the_ends_of_each_range_are_allowed(settings):
    OptimizerConfig(**settings)


# --- the learning rate's course ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("warmup, cooldown, shares", (
    (0, 0.0, [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
    (4, 0.0, [1 / 4, 2 / 4, 3 / 4, 1, 1, 1, 1, 1, 1, 1]),
    (0, 0.5, [1, 1, 1, 1, 1, 1, 4 / 5, 3 / 5, 2 / 5, 1 / 5]),
    (2, 0.4, [1 / 2, 1, 1, 1, 1, 1, 1, 3 / 4, 2 / 4, 1 / 4]),
    (0, 1.0, [1, 9 / 10, 8 / 10, 7 / 10, 6 / 10, 5 / 10, 4 / 10, 3 / 10, 2 / 10, 1 / 10]),
    (5, 1.0, [1 / 5, 2 / 5, 3 / 5, 7 / 10, 6 / 10, 5 / 10, 4 / 10, 3 / 10, 2 / 10, 1 / 10]),
    (20, 0.0, [n / 20 for n in range(1, 11)])))
def test_the_rate_rises_stays_and_falls(warmup, cooldown, shares):
    config = OptimizerConfig(warmup=warmup, cooldown=cooldown)
    assert [schedule(config, step, 10) for step in range(10)] == pytest.approx(shares, rel=1e-15)


@given(st.integers(0, 300), st.floats(0, 1), st.integers(1, 200))
def test_every_step_has_a_positive_share_of_the_rate_that_never_rises_again(warmup, cooldown, steps):
    shares = [schedule(OptimizerConfig(warmup=warmup, cooldown=cooldown), step, steps) for step in range(steps)]
    assert all(0 < share <= 1 for share in shares)
    peak = shares.index(max(shares))
    assert all(a <= b for a, b in pairwise(shares[:peak + 1])) and all(a >= b for a, b in pairwise(shares[peak:]))


# --- orthogonalise ----------------------------------------------------------------------------------------------------

MATRICES = ((1, 1), (1, 9), (9, 1), (8, 8), (5, 20), (20, 5), (33, 17), (64, 64), (50, 101), (97, 96))


def orthogonalise(matrix):
    result = np.stack([np.ones_like(matrix), matrix])      # a matrix has the same bits beside others
    muon.orthogonalise(result)
    return result[1]


def matrix(rows, columns, largest=1.0):
    """A matrix U S V^T and its U and V; its singular values S reach down to a twentieth of the largest."""
    rng, rank = np.random.default_rng(rows * columns), min(rows, columns)
    u, v = (np.linalg.qr(rng.standard_normal((n, rank)))[0] for n in (rows, columns))
    return (u * np.linspace(largest, largest / 20, rank) @ v.T).astype(np.float32), u, v


def newton_schulz(x):
    """The iteration of Muon, as published, in float64."""
    x = x.astype(np.float64) if x.shape[0] <= x.shape[1] else x.T.astype(np.float64)
    result = x / (np.linalg.norm(x) + 1e-7)
    for _ in range(5):
        square = result @ result.T
        result = 3.4445 * result + (-4.7750 * square + 2.0315 * square @ square) @ result
    return result


@pytest.mark.parametrize("rows, columns", MATRICES)
@pytest.mark.parametrize("largest", (1e-3, 1.0, 1e6))
def test_orthogonalise_brings_the_singular_values_near_1_and_keeps_the_vectors(rows, columns, largest):
    gradient, u, v = matrix(rows, columns, largest)
    core = u.T @ orthogonalise(gradient).astype(np.float64) @ v
    assert 0.65 < np.diagonal(core).min() and np.diagonal(core).max() < 1.2
    assert np.abs(core - np.diag(np.diagonal(core))).max() < 1e-5


@pytest.mark.parametrize("rows, columns", MATRICES)
def test_orthogonalise_agrees_with_float64(rows, columns):
    gradient, _, _ = matrix(rows, columns)
    want = newton_schulz(gradient)
    assert np.abs(orthogonalise(gradient) - (want if rows <= columns else want.T)).max() < 4e-6     # some 60 roundings


@pytest.mark.parametrize("rows, columns", MATRICES)
def test_orthogonalise_leaves_zero_at_zero(rows, columns):
    direction = orthogonalise(np.zeros((rows, columns), np.float32))
    assert direction.shape == (rows, columns) and (direction == 0).all()


# --- one step ---------------------------------------------------------------------------------------------------------

def in_float64(config, steps, weights, course):
    """AdamW [Loshchilov and Hutter 2019] and Muon [Jordan et al. 2024] as published: the weights after all of `course`."""
    weights = {name: weight.astype(np.float64) for name, weight in weights.items()}
    mean, square = ({name: 0.0 for name in weights} for _ in range(2))
    for step, gradient in enumerate(course):
        norm = np.sqrt(sum(np.sum(g.astype(np.float64) ** 2) for g in gradient.values()))
        clip = config.clip / norm if 0 < config.clip < norm else 1.0
        for name, g in gradient.items():
            g, matrix = clip * g.astype(np.float64), g.ndim == 2
            if config.optimizer == "muon" and matrix and "blocks" in name:
                rate, beta = config.muon_rate * schedule(config, step, steps), config.momentum
                mean[name] = beta * mean[name] + (1 - beta) * g
                nesterov = beta * mean[name] + (1 - beta) * g
                update = newton_schulz(nesterov)
                update = update if update.shape == g.shape else update.T
                update = update * max(1.0, g.shape[1] / g.shape[0]) ** 0.5
            else:
                rate, beta1, beta2 = config.learning_rate * schedule(config, step, steps), config.beta1, config.beta2
                mean[name] = beta1 * mean[name] + (1 - beta1) * g
                square[name] = beta2 * square[name] + (1 - beta2) * g ** 2
                update = mean[name] / (1 - beta1 ** (step + 1)) / (np.sqrt(square[name] / (1 - beta2 ** (step + 1))) + 1e-8)
            weights[name] = weights[name] * (1 - rate * config.weight_decay * matrix) - rate * update
    return weights


@pytest.mark.parametrize("size", (1.0, 1e-7))             # 1e-7: small enough to see epsilon
@pytest.mark.parametrize("settings", ({}, {"clip": 0.0}, {"clip": 0.01, "weight_decay": 0.0}, {"beta1": 0.0, "warmup": 0}))
def test_ten_steps_of_adamw_agree_with_float64(settings, size):
    config = OptimizerConfig(**{"optimizer": "adamw", "warmup": 4, "cooldown": 0.5, **settings})
    model, course = Model(), [gradients(step, size=size) for step in range(10)]
    want = in_float64(config, 10, model.weights(), course)
    optimizer = Optimizer(model, config, 10)
    for gradient in course:
        take(optimizer, gradient)
    assert agrees(model.weights(), want, 1e-6)         # roundings of a weight between 2 and 4 are up to 1.2e-7


@pytest.mark.parametrize("size", (1.0, 1e-7))             # 1e-7: small enough to see epsilon
@pytest.mark.parametrize("settings", ({}, {"clip": 0.0}, {"momentum": 0.0}, {"weight_decay": 1.0}))
def test_ten_steps_of_muon_agree_with_float64(settings, size):
    config = OptimizerConfig(**{"warmup": 4, "cooldown": 0.5, **settings})
    model, course = Model(), [gradients(step, size=size) for step in range(10)]
    want = in_float64(config, 10, model.weights(), course)
    optimizer = Optimizer(model, config, 10)
    for gradient in course:
        take(optimizer, gradient)
    assert agrees(model.weights(), want, 1e-6)


def test_muon_takes_the_matrices_inside_the_blocks_and_adamw_the_rest():
    model = GPT(GPTConfig(vocab_size=5, block_size=4, n_layer=1, n_head=1, n_embd=4, bias=True, position="learned"))
    state = Optimizer(model, OptimizerConfig(), 10).state
    for name in model.parameters():
        by_muon = name.startswith("blocks.0.") and name.endswith("weight")
        assert f"mean.{name}" in state
        assert (f"square.{name}" in state) != by_muon


@pytest.mark.parametrize("optimizer", ("adamw", "muon"))
def test_only_matrices_decay(optimizer):
    config, model = OptimizerConfig(optimizer=optimizer, warmup=0, cooldown=0.0), Model()
    before = model.weights()
    assert take(Optimizer(model, config, 10), {name: 0 for name in SHAPES}) == 0.0
    for name, weight in model.weights().items():
        rate = config.muon_rate if optimizer == "muon" and "blocks" in name else config.learning_rate
        factor = np.float32(1 - rate * config.weight_decay) if weight.ndim == 2 else np.float32(1)
        assert (weight == before[name] * factor).all()


# --- the gradient's norm ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("shapes", ({"a": (1,)}, SHAPES, {"a": (100, 83), "b": (4097,), "c": (1, 3)}))
def test_the_norm_of_the_gradient_agrees_with_float64(shapes):
    model, gradient = Model(shapes), gradients(3, shapes)
    for name, parameter in model.parameters().items():
        parameter.grad[:] = gradient[name]
    want = np.sqrt(sum(np.sum(g.astype(np.float64) ** 2) for g in gradient.values()))
    norm = Optimizer(model, OptimizerConfig(), 1).gradient_norm()
    assert isinstance(norm, float) and norm == pytest.approx(want, rel=4 * 2.0 ** -24)


def stepped(gradient, **settings):
    """The state and weights after one step, and what it returned."""
    model = Model()
    optimizer = Optimizer(model, OptimizerConfig(**settings), 10)
    norm = take(optimizer, gradient)
    return optimizer.state, model.weights(), norm


@pytest.mark.parametrize("optimizer", ("adamw", "muon"))
def test_a_gradient_is_cut_to_the_largest_norm_allowed(optimizer):
    gradient = gradients(0)
    state, _, norm = stepped(gradient, optimizer=optimizer, clip=0.5, beta1=0.0, momentum=0.0)
    assert norm > 0.5
    for name, g in gradient.items():              # without memory, the mean is the gradient itself
        assert np.abs(state[f"mean.{name}"] - g * (0.5 / norm)).max() < 4 * 2.0 ** -24 * 0.5


@pytest.mark.parametrize("optimizer", ("adamw", "muon"))
def test_beyond_the_largest_norm_a_gradient_1024_times_as_long_makes_the_same_step(optimizer):
    gradient = gradients(0)
    state, weights, norm = stepped(gradient, optimizer=optimizer)
    long_state, long_weights, long_norm = stepped({name: 1024 * g for name, g in gradient.items()}, optimizer=optimizer)
    assert long_norm == 1024 * norm
    assert same_bits(long_state, state) and same_bits(long_weights, weights)


@pytest.mark.parametrize("clip", (0.0, 1e3))
def test_a_shorter_gradient_stays_and_clip_0_cuts_none(clip):
    gradient = gradients(0)
    state, _, _ = stepped(gradient, clip=clip, beta1=0.0, momentum=0.0)
    assert same_bits(state | {f"mean.{name}": g for name, g in gradient.items()}, state)


# --- going on ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("optimizer", ("adamw", "muon"))
def test_an_optimizer_from_copied_state_goes_on_with_the_same_bits(optimizer):
    config = OptimizerConfig(optimizer=optimizer, warmup=3)
    first, second = Optimizer(Model(), config, 10), Optimizer(Model(), config, 10)
    for step in range(5):
        take(first, gradients(step))
    for name, parameter in first.parameters.items():
        second.parameters[name].data[:] = parameter.data
    second.state = {name: array.copy() for name, array in first.state.items()}
    second.step_count = first.step_count
    for step in range(5, 10):
        assert take(first, gradients(step)) == take(second, gradients(step))
    assert same_bits(first.state, second.state)
    assert same_bits(*({name: p.data for name, p in each.parameters.items()} for each in (first, second)))

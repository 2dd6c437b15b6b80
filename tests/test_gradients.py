"""Every derivative, against differences of the float64 model in float64.py.

A central difference with h = 1e-7 errs by some 1e-9, mostly from the rounding of float64.  A larger h would push some
input of a ReLU over its kink; as the seeds are fixed and the bits the same everywhere, what is far enough from it here is
so on every machine.  The tolerances leave room for the layers' own float32 alone, whose rounding error is 6e-8 of a sum:
a layer stays within a few of them, and a chain of layers multiplies that by a small number.
"""

from typing import NamedTuple

import numpy as np
import pytest

from minigpt.blocks import Attention, FeedForward, Residual, Rotary
from minigpt.layers import CrossEntropy, Draw, Dropout, Embedding, LayerNorm, Linear, RMSNorm, TiedHead
from tests import float64

H = 1e-7
DRAW = Draw(seed=7, step=3)
B, T, C, V = 3, 9, 12, 11
N = B * T
IDS = float64.random_array(N, 5).argsort() % (V - 1)       # some tokens often, the last one never


def slope(f, x, direction):
    """The derivative of f() along `direction` at x, an array that f reads; x is left as it was."""
    start = x.copy()
    x[...] = start + H * direction
    above = f()
    x[...] = start - H * direction
    below = f()
    x[...] = start
    return (above - below) / (2 * H)


def unit(shape, index):
    direction = np.zeros(shape)
    direction.flat[index] = 1
    return direction


# --- each layer alone -------------------------------------------------------------------------------------------------

class Case(NamedTuple):
    """A layer beside its specification."""
    parameters: dict              # as they are called in the specification's weights
    forward: callable             # x -> y
    backward: callable            # dy -> dx
    plain: callable               # x, weights -> y, in float64


def linear(bias):
    layer = Linear(C, 7, bias, std=0)
    return Case(layer.parameters("layer."), layer.forward, layer.backward, lambda x, w: float64.linear(x, w, "layer"))


def norm(kind, bias=False, epsilon=1e-5):
    layer = LayerNorm(C, bias, epsilon) if kind == "layer" else RMSNorm(C, epsilon)
    config = float64.make_config("default", norm=kind, norm_epsilon=epsilon)
    return Case(layer.parameters("layer."), layer.forward, layer.backward,
                lambda x, w: float64.normalise(x, config, w, "layer"))


def embedding():
    layer = Embedding(V, C, std=0)
    return Case(layer.parameters(), lambda x: layer.forward(IDS), layer.backward, lambda x, w: w["weight"][IDS])


def tied_head():
    table = Embedding(V, C, std=0)
    layer = TiedHead(table)
    return Case(table.parameters(), layer.forward, layer.backward, lambda x, w: x @ w["weight"].T)


def rotary():
    layer = Rotary(T, C // 2)

    def plain(x, w):
        heads = x.reshape(B, T, 2, C // 2).swapaxes(1, 2)                      # (B, H, T, D)
        return float64.rotate(heads).swapaxes(1, 2).reshape(N, C)
    return Case({}, lambda x: layer.forward(x.copy(), T), lambda dy: layer.backward(dy.copy(), T), plain)


def attention(**choices):
    config = float64.make_config("default", n_head=3, **choices)
    rotary = Rotary(T, C // 3, config.rope_theta, config.rope_factors) if config.position == "rotary" else None
    layer = Attention(config, rotary, std=0, std_out=0)
    return Case(layer.parameters("layer."), lambda x: layer.forward(x, T), layer.backward,
                lambda x, w: float64.attention(x.reshape(B, T, C), config, w, "layer").reshape(N, C))


def feed_forward(activation, bias, n_hidden=0):
    config = float64.make_config("default", activation=activation, bias=bias, n_hidden=n_hidden)
    layer = FeedForward(config, std=0, std_out=0)
    return Case(layer.parameters("layer."), layer.forward, layer.backward,
                lambda x, w: float64.feed_forward(x, config, w, "layer"))


def dropout():
    layer = Dropout(0.25, "here")
    return Case({}, lambda x: layer.forward(x, DRAW), layer.backward,
                lambda x, w: x * float64.dropout_mask(DRAW, "here", x.shape, 0.25))


def residual(norm_order):
    config = float64.make_config("default", norm_order=norm_order, activation="gelu")
    layer = Residual(FeedForward(config, 0, 0), RMSNorm(C), norm_order == "first", Dropout(0.25, "here"))
    return Case(layer.parameters("layer."), lambda x: layer.forward(x, DRAW, layer.sublayer.forward), layer.backward,
                lambda x, w: float64.residual(x, config, w, "layer", float64.feed_forward,
                                                float64.dropout_mask(DRAW, "here", x.shape, 0.25)))


def cross_entropy():
    layer = CrossEntropy()
    return Case({}, lambda x: np.float32(layer.forward(x, IDS)), lambda dy: dy * layer.backward(),
                lambda x, w: float64.cross_entropy(x, IDS))


LAYERS = {
    "linear": lambda: linear(bias=True), "linear without bias": lambda: linear(bias=False),
    "layer norm": lambda: norm("layer", bias=True), "layer norm without bias": lambda: norm("layer"),
    "rms norm": lambda: norm("rms"), "rms norm, another epsilon": lambda: norm("rms", epsilon=0.01),
    "embedding": embedding, "tied head": tied_head, "rotary": rotary, "dropout": dropout, "cross-entropy": cross_entropy,
    "attention": lambda: attention(position="learned", qk_norm=False, bias=True),
    "attention, rotary": lambda: attention(qk_norm=False),
    "attention, qk norm": lambda: attention(position="learned", bias=True),
    "attention, rotary, qk norm": lambda: attention(),
    "attention, grouped": lambda: attention(n_kv_head=1, qkv_bias=True),
    "attention, another base": lambda: attention(rope_theta=500.0, rope_factors=(1.0, 4.0), norm_epsilon=0.01),
    "relu": lambda: feed_forward("relu", bias=True), "relu2": lambda: feed_forward("relu2", bias=False),
    "swiglu": lambda: feed_forward("swiglu", bias=True), "swiglu, narrow": lambda: feed_forward("swiglu", False, 17),
    "gelu": lambda: feed_forward("gelu", bias=True),
    "residual, norm first": lambda: residual("first"), "residual, norm last": lambda: residual("last"),
}


@pytest.fixture(params=LAYERS)
def layer(request):
    case = LAYERS[request.param]()
    float64.shake(case.parameters, amount=0.5)
    return case


X = float64.random_array((N, C), 1)


def assert_close(got, want, name=""):
    np.testing.assert_allclose(got, want, rtol=0, atol=5e-7 + 1e-6 * np.abs(want).max(), err_msg=name)


def test_a_layer_computes_what_the_mathematics_says(layer):
    assert_close(layer.forward(X), layer.plain(X.astype(np.float64), float64.weights_of(layer.parameters)))


def test_a_layers_backward_is_the_slope_of_its_forward(layer):
    """Of the sum of dy * y, by each element of x and of every parameter."""
    dy = float64.random_array(np.shape(layer.forward(X)), 2)
    x, weights = X.astype(np.float64), float64.weights_of(layer.parameters)
    dx = layer.backward(dy)
    got = {"x": np.zeros_like(X) if dx is None else dx, **{name: p.grad for name, p in layer.parameters.items()}}
    for name, array in {"x": x, **weights}.items():
        want = [slope(lambda: np.sum(dy * layer.plain(x, weights)), array, unit(array.shape, i)) for i in range(array.size)]
        assert_close(got[name].reshape(-1), want, name)


def test_a_layer_adds_to_the_gradients_that_are_there(layer):
    dy = float64.random_array(np.shape(layer.forward(X)), 2)
    layer.backward(dy)
    once = {name: parameter.grad.copy() for name, parameter in layer.parameters.items()}
    layer.forward(X)
    layer.backward(dy)
    for name, parameter in layer.parameters.items():
        assert_close(parameter.grad, 2 * once[name], name)


# --- the whole model --------------------------------------------------------------------------------------------------

@pytest.fixture(params=float64.CONFIGS)
def config(request):
    return float64.make_config(request.param)


def batch(config):
    """ids, targets (B, T), the draw and the specification's masks; the window is shorter than block_size."""
    ids, targets = float64.make_ids(config, 3, 8, seed=1), float64.make_ids(config, 3, 8, seed=2)
    draw = DRAW if config.dropout else None
    return ids, targets, draw, float64.dropout_masks(config, draw, 3, 8) if draw else None


def test_loss_and_logits_are_those_of_the_specification(config):
    model, (ids, targets, draw, masks) = float64.make_model(config), batch(config)
    loss, logits = float64.loss(float64.weights_of(model.parameters()), config, ids, targets, masks)
    assert model.loss(ids, targets, draw) == pytest.approx(loss, abs=1e-6)
    assert model.losses.mean(dtype=np.float64) == pytest.approx(loss, abs=1e-6)
    np.testing.assert_allclose(model.forward(ids, draw), logits, rtol=0, atol=3e-6)


def test_every_gradient_is_the_slope_of_the_loss(config):
    """Of each parameter: by some of its elements, and along one random direction through all of them."""
    model, (ids, targets, draw, masks) = float64.make_model(config), batch(config)
    weights = float64.weights_of(model.parameters())
    model.loss(ids, targets, draw)
    model.backward()
    largest = max(np.abs(parameter.grad).max() for parameter in model.parameters().values())
    random = np.random.default_rng(3)
    for name, parameter in model.parameters().items():
        grad = parameter.grad.astype(np.float64)
        directions = [unit(grad.shape, i) for i in random.permutation(grad.size)[:12]] + [random.uniform(-1, 1, grad.shape)]
        for direction in directions:
            direction /= np.linalg.norm(direction)
            want = slope(lambda: float64.loss(weights, config, ids, targets, masks)[0], weights[name], direction)
            # The second term: sums that cancel, such as a bias of all keys, which changes nothing if keys stay unturned.
            allowed = 4e-6 * np.sqrt(np.mean(grad ** 2)) + 1e-7 * largest
            assert np.sum(grad * direction) == pytest.approx(want, rel=0, abs=allowed), name

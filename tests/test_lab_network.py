"""The experiments that take a network apart, and the network that this project grew from, beside PyTorch's layers."""

import numpy as np
import pytest

from coder.lab import autoregression, depth, seed
from minigpt.model import GPT
from tests import float64
from train_shakespeare import PRESETS

SMALL = dict(vocab_size=19, block_size=24, n_layer=2, n_head=2, n_embd=32)


@pytest.mark.parametrize("name", ["default", "learned-qk-norm", "llama"])
def test_attention_is_the_sum_of_its_coefficients(name):
    model = float64.make_model(float64.make_config(name, **SMALL))
    if model.positions:
        model.positions = None                      # `forward` is of models without learned positions
    looked = []

    def look(layer, attention, x, out):
        A = autoregression.coefficients(attention, len(x))
        np.testing.assert_allclose(A.sum(-1), 1)
        assert (np.triu(A, 1) == 0).all()
        np.testing.assert_allclose(autoregression.autoregression(attention, A, x.astype(np.float64)), out, atol=2e-5)
        looked.append(layer)
    autoregression.forward(model, float64.make_ids(model.config, 1, 24)[0], {}, look)
    assert looked == [0, 1]


def test_a_window_frozen_at_its_own_coefficients_is_the_model_itself():
    model = float64.make_model(float64.make_config("default", **SMALL))
    ids, own = float64.make_ids(model.config, 1, 24), {}
    logits = autoregression.forward(model, ids[0], {}, lambda layer, a, x, out: own.update(
        {layer: autoregression.coefficients(a, len(x))}))
    np.testing.assert_array_equal(logits, model.forward(ids)[0])
    np.testing.assert_allclose(autoregression.forward(model, ids[0], own), logits, atol=1e-4)


def test_the_last_state_through_the_head_is_the_models_loss_and_learning_lowers_a_probes():
    model = float64.make_model(float64.make_config("default", **SMALL))
    ids, targets = float64.make_ids(model.config, 64, 24), float64.make_ids(model.config, 64, 24, 1)
    found, probe = depth.states(model, ids), depth.Probe(model)
    assert len(found) == 3 and probe.loss(found[-1], targets.reshape(-1)) == pytest.approx(model.loss(ids, targets), abs=1e-6)
    targets = ids.reshape(-1)                       # which a reader of the embedding can know
    before = probe.loss(found[0], targets)
    probe.learn(found[0], targets, batch=128)
    assert probe.loss(found[0], targets) < before - 1


# --- the network that this project grew from --------------------------------------------------------------------------

def count(model):
    return sum(parameter.data.size for parameter in model.parameters().values())


def simple(network, **sizes):
    config = PRESETS["simple"][0]
    model = network(type(config)(**{**vars(config), "vocab_size": 65, **sizes}), None)
    float64.shake(model.parameters(), amount=0.1)
    return model


def pytorchs(model):
    """PyTorch's layers with the weights of ours, and ids -> logits as the text generator computed them."""
    torch = pytest.importorskip("torch")
    config, w = model.config, {name: torch.tensor(p.data) for name, p in model.parameters().items()}
    leaky = isinstance(model, seed.Leaky)
    kind = torch.nn.TransformerDecoderLayer if leaky else torch.nn.TransformerEncoderLayer
    layers = [kind(config.n_embd, config.n_head, config.hidden, 0.0, batch_first=True) for _ in range(config.n_layer)]

    def fill(module, name, part):
        weights = [w[f"{name}.{x}.weight"].T for x in part]
        module["weight"].copy_(torch.cat(weights))
        module["bias"].copy_(torch.cat([w[f"{name}.{x}.bias"] for x in part]))

    with torch.no_grad():
        for i, layer in enumerate(layers):
            attentions = [("self_attn", "attention")] + [("multihead_attn", "cross")] * leaky
            for theirs, ours in attentions:
                module = getattr(layer, theirs)
                inputs = {"weight": module.in_proj_weight, "bias": module.in_proj_bias}
                fill(inputs, f"blocks.{i}.{ours}", ["query", "key", "value"])
                fill(dict(module.out_proj.named_parameters()), f"blocks.{i}.{ours}", ["projection"])
            fill(dict(layer.linear1.named_parameters()), f"blocks.{i}.feed_forward", ["expand"])
            fill(dict(layer.linear2.named_parameters()), f"blocks.{i}.feed_forward", ["contract"])
            for k, ours in enumerate([name for _, name in attentions] + ["feed_forward"], 1):
                norm = getattr(layer, f"norm{k}")
                norm.weight.copy_(w[f"blocks.{i}.{ours}.norm.gain"])
                norm.bias.copy_(w[f"blocks.{i}.{ours}.norm.bias"])

    def logits(ids):
        T = ids.shape[1]
        mask = torch.triu(torch.full((T, T), -torch.inf), 1)
        x = w["tokens.weight"][torch.tensor(ids)] + w["positions.weight"][:T]
        for layer in layers:
            x = layer(x, x, tgt_mask=mask) if leaky else layer(x, src_mask=mask)
        x = torch.nn.functional.layer_norm(x, x.shape[-1:], w["norm.gain"], w["norm.bias"])
        return (x @ w["head.weight"] + w["head.bias"]).detach().numpy()
    size = sum(p.numel() for layer in layers for p in layer.parameters())
    return logits, size + sum(w[name].numel() for name in w if not name.startswith("blocks."))


@pytest.mark.parametrize("network, parameters", [(GPT, 739_777), (seed.Leaky, 938_689)])
def test_both_networks_are_pytorchs_layers(network, parameters):
    model = simple(network)
    logits, size = pytorchs(model)
    assert count(model) == size == parameters
    ids = float64.make_ids(model.config, 3, 32)
    np.testing.assert_allclose(model.forward(ids), logits(ids), atol=1e-4)


def test_pytorchs_layer_as_commonly_written_sees_the_future():
    model = simple(seed.Leaky)
    logits, _ = pytorchs(model)
    ids = float64.make_ids(model.config, 1, 32)
    changed = ids.copy()
    changed[0, -1] = (ids[0, -1] + 1) % 65
    for predict in logits, model.forward:
        assert np.abs(predict(ids) - predict(changed))[0, :-1].max(-1).min() > 1e-4         # at each place before it
    causal = simple(GPT)
    np.testing.assert_array_equal(causal.forward(ids)[0, :-1], causal.forward(changed)[0, :-1])


def test_the_gradients_of_the_leaky_network_are_those_of_finite_differences():
    model = simple(seed.Leaky, n_embd=16, n_head=2, n_layer=2, block_size=8, dropout=0.0, vocab_size=11)
    ids, targets = float64.make_ids(model.config, 4, 8), float64.make_ids(model.config, 4, 8, 1)
    for _ in range(2):                                      # the second pass must not find what the first has left
        model.loss(ids, targets)
        model.backward()
    grads = {name: parameter.grad.copy() for name, parameter in model.parameters().items()}
    for name, parameter in model.parameters().items():
        direction = float64.random_array(parameter.data.shape, 7)
        start, losses = parameter.data.copy(), []
        for sign in 1, -1:
            parameter.data[...] = start + np.float32(sign * 1e-3) * direction
            losses.append(model.loss(ids, targets))
        parameter.data[...] = start
        assert (losses[0] - losses[1]) / 2e-3 == pytest.approx((grads[name] * direction).sum(), rel=0.03, abs=3e-3), name


def test_the_honest_loss_is_the_loss_of_a_causal_network_and_not_of_a_leaky_one():
    for network, same in (GPT, True), (seed.Leaky, False):
        model = simple(network)
        ids, targets = float64.make_ids(model.config, 4, 12), float64.make_ids(model.config, 4, 12, 1)
        honest = seed.honest_losses(model, ids, targets)
        model.loss(ids, targets)
        assert np.array_equal(honest, model.losses) is same
        np.testing.assert_array_equal(honest[:, -1], model.losses[:, -1])

"""The same network in PyTorch, in float64: logits, loss, gradients and training agree with ours."""

import numpy as np
import pytest

from minigpt.optimizer import Optimizer, OptimizerConfig, schedule
from tests import float64

torch = pytest.importorskip("torch")
from torch.nn import functional as F                                            # noqa: E402

CONFIGS = ["default", "gpt-2", "transformer", "seed", "learned-qk-norm", "llama", "grouped"]


def torch_loss(w, config, ids, targets):
    """Mean nats and logits (B, T, V), from w: name -> tensor."""
    (B, T), D = ids.shape, config.n_embd // config.n_head

    def linear(x, name):
        return F.linear(x, w[f"{name}.weight"].T, w.get(f"{name}.bias"))

    def norm(x, name):
        gain = w[f"{name}.gain"]
        if config.norm == "rms" or name.endswith(("query_norm", "key_norm")):
            return F.rms_norm(x, gain.shape, gain, eps=config.norm_epsilon)
        return F.layer_norm(x, gain.shape, gain, w.get(f"{name}.bias"), eps=config.norm_epsilon)

    def rotate(x):                                                              # (B, H, T, D)
        frequencies = config.rope_theta ** -(torch.arange(0, D, 2, dtype=x.dtype) / D)
        angle = torch.outer(torch.arange(T, dtype=x.dtype), frequencies).repeat(1, 2)
        a, b = x.chunk(2, dim=-1)
        return x * angle.cos() + torch.cat([-b, a], dim=-1) * angle.sin()

    def attention(x, name):
        q, k, v = (linear(x, f"{name}.{part}").view(B, T, -1, D).transpose(1, 2) for part in ("query", "key", "value"))
        if config.qk_norm:
            q, k = norm(q, f"{name}.query_norm"), norm(k, f"{name}.key_norm")
        if config.position == "rotary":
            q, k = rotate(q), rotate(k)
        k, v = (x.repeat_interleave(config.n_head // x.shape[1], dim=1) for x in (k, v))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return linear(out.transpose(1, 2).reshape(B, T, -1), f"{name}.projection")

    def feed_forward(x, name):
        if config.activation == "swiglu":
            return linear(F.silu(linear(x, f"{name}.gate")) * linear(x, f"{name}.expand"), f"{name}.contract")
        activate = {"relu": F.relu, "gelu": lambda x: F.gelu(x, approximate="tanh"), "relu2": lambda x: F.relu(x).square()}
        return linear(activate[config.activation](linear(x, f"{name}.expand")), f"{name}.contract")

    x = F.embedding(ids, w["tokens.weight"])
    if config.position == "learned":
        x = x + w["positions.weight"][:T]
    for i in range(config.n_layer):
        for name, sublayer in (f"blocks.{i}.attention", attention), (f"blocks.{i}.feed_forward", feed_forward):
            if config.norm_order == "first":
                x = x + sublayer(norm(x, f"{name}.norm"), name)
            else:
                x = norm(x + sublayer(x, name), f"{name}.norm")
    if config.norm_order != "last":
        x = norm(x, "norm")
    logits = F.linear(x, w["tokens.weight"]) if config.tied else linear(x, "head")
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten()), logits


@pytest.fixture(params=CONFIGS)
def pair(request):
    """Our model, and the same weights as float64 tensors."""
    config = float64.make_config(request.param, vocab_size=37, block_size=30, n_head=2, n_embd=40)
    model = float64.make_model(config)
    weights = {name: torch.tensor(array, requires_grad=True)
               for name, array in float64.weights_of(model.parameters()).items()}
    return model, weights


def batch(config, seed):
    return float64.make_ids(config, 4, 30, (seed, 0)), float64.make_ids(config, 4, 30, (seed, 1))


def test_logits_and_loss_are_those_of_pytorch(pair):
    model, weights = pair
    ids, targets = batch(model.config, 0)
    loss, logits = torch_loss(weights, model.config, torch.tensor(ids), torch.tensor(targets))
    assert model.loss(ids, targets) == pytest.approx(loss.item(), abs=2e-6)
    np.testing.assert_allclose(model.forward(ids), logits.detach(), rtol=0, atol=5e-6)


def test_every_gradient_is_that_of_pytorch(pair):
    model, weights = pair
    ids, targets = batch(model.config, 0)
    torch_loss(weights, model.config, torch.tensor(ids), torch.tensor(targets))[0].backward()
    model.loss(ids, targets)
    model.backward()
    largest = max(weight.grad.abs().max().item() for weight in weights.values())
    for name, parameter in model.parameters().items():
        want = weights[name].grad.numpy()
        allowed = 3e-6 * np.abs(want).max() + 1e-7 * largest       # rounding of the sum, and of sums that cancel
        np.testing.assert_allclose(parameter.grad, want, rtol=0, atol=allowed, err_msg=name)


@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_training_with_adamw_follows_pytorch(pair, clip):
    """Ten steps: the distance between the two weights is nothing beside the way that both have come."""
    model, weights = pair
    config = OptimizerConfig(optimizer="adamw", learning_rate=0.01, beta2=0.95, clip=clip, warmup=4)
    ours = Optimizer(model, config, steps=10)
    matrices, vectors = ([w for w in weights.values() if (w.ndim == 2) is wanted] for wanted in (True, False))
    groups = [dict(params=matrices, weight_decay=config.weight_decay), dict(params=vectors, weight_decay=0)]
    theirs = torch.optim.AdamW(groups, betas=(config.beta1, config.beta2), eps=1e-8)
    start = {name: weight.detach().clone() for name, weight in weights.items()}
    for step in range(10):
        ids, targets = batch(model.config, step)
        for group in theirs.param_groups:
            group["lr"] = config.learning_rate * schedule(config, step, 10)
        theirs.zero_grad()
        torch_loss(weights, model.config, torch.tensor(ids), torch.tensor(targets))[0].backward()
        norm = torch.nn.utils.clip_grad_norm_(weights.values(), clip or float("inf"))
        theirs.step()
        model.loss(ids, targets)
        model.backward()
        assert ours.step() == pytest.approx(norm.item(), rel=1e-4)
    for name, parameter in model.parameters().items():
        if name.endswith("key.bias") and model.config.position == "learned" and not model.config.qk_norm:
            continue         # a bias of all keys changes nothing: its gradient is rounding, and AdamW scales that up
        want = weights[name].detach()
        assert (torch.tensor(parameter.data) - want).norm() < 1e-4 * (want - start[name]).norm(), name

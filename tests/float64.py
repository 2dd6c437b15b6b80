"""A GPT in float64, as plain as the mathematics: what gradients are checked against; and small models for the tests.

`weights` maps the names of `GPT.parameters()` to float64 arrays.  Letters as everywhere: B batch, T time, C channels,
H heads, D = C / H, V vocabulary.
"""

import numpy as np

from minigpt import rng
from minigpt.model import GPT, GPTConfig

# Together they make every choice that GPTConfig offers, and each choice beside different others.
CONFIGS = {
    "default": dict(),
    "gpt-2": dict(position="learned", norm="layer", activation="gelu", qk_norm=False, bias=True, tied=True),
    "transformer": dict(position="learned", norm="layer", norm_order="last", activation="relu", qk_norm=False, bias=True),
    "llama-like": dict(activation="gelu", qk_norm=False, tied=True),
    "seed": dict(position="learned", norm="layer", norm_order="last-final", activation="relu", qk_norm=False, bias=True,
                 head_bias=True),
    "last-rms": dict(norm_order="last", bias=True, tied=True),
    "learned-qk-norm": dict(position="learned", norm="layer", activation="relu", bias=True, n_head=1),
    "llama": dict(n_kv_head=1, activation="swiglu", n_hidden=20, rope_theta=1000.0, norm_epsilon=1e-4, qkv_bias=True,
                  qk_norm=False, tied=True),
    "grouped": dict(n_head=4, n_kv_head=2, position="learned", norm="layer", norm_order="last", activation="swiglu", bias=True,
                    norm_epsilon=1e-3),
    "dropout": dict(norm="layer", dropout=0.25),
    "dropout-last": dict(position="learned", norm_order="last", activation="gelu", bias=True, tied=True, dropout=0.5),
}


def make_config(name, **sizes):
    return GPTConfig(**{**dict(vocab_size=11, block_size=9, n_layer=2, n_head=2, n_embd=12), **sizes, **CONFIGS[name]})


def random_array(shape, seed=0, bound=1.0):
    return np.random.default_rng(seed).uniform(-bound, bound, shape).astype(np.float32)


def shake(parameters, seed=0, amount=0.3):
    """Move every weight a little, so that none is 0 or 1 and none can be forgotten without a trace."""
    for i, parameter in enumerate(parameters.values()):
        parameter.data += random_array(parameter.data.shape, (seed, i), amount)


def make_model(config, seed=0):
    model = GPT(config, seed)
    shake(model.parameters(), seed)
    return model


def make_ids(config, B, T, seed=0):
    return np.random.default_rng(seed).integers(0, config.vocab_size, (B, T))


def weights_of(parameters):
    return {name: parameter.data.astype(np.float64) for name, parameter in parameters.items()}


# --- the layers -------------------------------------------------------------------------------------------------------

def linear(x, weights, name):
    return np.einsum("...i,ij->...j", x, weights[f"{name}.weight"]) + weights.get(f"{name}.bias", 0)


def layer_norm(x, gain, epsilon, bias=0):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred ** 2).mean(-1, keepdims=True) + epsilon) * gain + bias


def rms_norm(x, gain, epsilon):
    return x / np.sqrt((x ** 2).mean(-1, keepdims=True) + epsilon) * gain


def normalise(x, config, weights, name):
    if config.norm == "rms":
        return rms_norm(x, weights[f"{name}.gain"], config.norm_epsilon)
    return layer_norm(x, weights[f"{name}.gain"], config.norm_epsilon, weights.get(f"{name}.bias", 0))


def rotate(x, theta=10000.0, factors=()):
    """x (..., T, D): channels i and i + D/2 are one complex number, turned by t * theta^(-2i/D) / factor."""
    T, half = x.shape[-2], x.shape[-1] // 2
    frequencies = theta ** (-np.arange(half) / half) / (np.array(factors) if factors else 1)
    turn = np.exp(1j * np.arange(T)[:, None] * frequencies)
    turned = (x[..., :half] + 1j * x[..., half:]) * turn
    return np.concatenate([turned.real, turned.imag], axis=-1)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def attention(x, config, weights, name):
    B, T, C = x.shape
    q, k, v = (linear(x, weights, f"{name}.{part}").reshape(B, T, -1, C // config.n_head).transpose(0, 2, 1, 3)
               for part in ("query", "key", "value"))                                                   # (B, H, T, D)
    if config.qk_norm:
        q, k = (rms_norm(x, weights[f"{name}.{part}_norm.gain"], config.norm_epsilon) for x, part in ((q, "query"), (k, "key")))
    if config.position == "rotary":
        q, k = (rotate(x, config.rope_theta, config.rope_factors) for x in (q, k))
    k, v = (np.repeat(x, config.n_head // x.shape[1], axis=1) for x in (k, v))      # the heads of a group share them
    scores = np.einsum("bhid,bhjd->bhij", q, k) / np.sqrt(C / config.n_head)
    future = np.arange(T)[None, :] > np.arange(T)[:, None]
    out = np.einsum("bhij,bhjd->bihd", softmax(np.where(future, -np.inf, scores)), v)
    return linear(out.reshape(B, T, C), weights, f"{name}.projection")


def activation(x, kind):
    if kind == "gelu":
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x ** 3)))
    return np.maximum(x, 0) ** (2 if kind == "relu2" else 1)


def feed_forward(x, config, weights, name):
    if config.activation == "swiglu":
        gate = linear(x, weights, f"{name}.gate")
        return linear(gate / (1 + np.exp(-gate)) * linear(x, weights, f"{name}.expand"), weights, f"{name}.contract")
    return linear(activation(linear(x, weights, f"{name}.expand"), config.activation), weights, f"{name}.contract")


def cross_entropy(logits, targets):
    """Mean nats."""
    return -np.log(np.take_along_axis(softmax(logits), targets[..., None], -1)).mean()


def residual(x, config, weights, name, function, mask=1):
    """A sublayer, its norm and the way around both; mask is what dropout multiplies with."""
    if config.norm_order == "first":
        return x + mask * function(normalise(x, config, weights, f"{name}.norm"), config, weights, name)
    return normalise(x + mask * function(x, config, weights, name), config, weights, f"{name}.norm")


# --- the network ------------------------------------------------------------------------------------------------------

def dropout_mask(draw, purpose, shape, p):
    """0 with probability p, else 1 / (1 - p): the same elements that the model drops."""
    return rng.keep(draw.seed, purpose, draw.step, int(np.prod(shape)), p).reshape(shape) / (1 - p)


def dropout_masks(config, draw, B, T):
    places = ["embedding"] + [f"blocks.{i}.{part}" for i in range(config.n_layer) for part in ("attention", "feed_forward")]
    return {place: dropout_mask(draw, f"dropout {place}", (B, T, config.n_embd), config.dropout) for place in places}


def loss(weights, config, ids, targets, masks=None):
    """Mean cross-entropy in nats, and the logits (B, T, V)."""
    masks = masks or {}
    x = weights["tokens.weight"][ids]                                                                   # (B, T, C)
    if config.position == "learned":
        x = x + weights["positions.weight"][:ids.shape[1]]
    x = x * masks.get("embedding", 1)
    for i in range(config.n_layer):
        for part, function in (f"blocks.{i}.attention", attention), (f"blocks.{i}.feed_forward", feed_forward):
            x = residual(x, config, weights, part, function, masks.get(part, 1))
    if config.norm_order != "last":
        x = normalise(x, config, weights, "norm")
    head = weights["tokens.weight"].T if config.tied else weights["head.weight"]
    logits = np.einsum("btc,cv->btv", x, head) + weights.get("head.bias", 0)
    return cross_entropy(logits, targets), logits

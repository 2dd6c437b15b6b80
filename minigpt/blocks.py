"""A Transformer block: causal self-attention and the feed-forward pair, each with a norm and a residual connection."""

from collections.abc import Callable
from functools import partial

import numpy as np

from .exact import rotary_tables
from .incremental import Cache
from .kernels import activations, attention
from .kernels.rotary import rotate
from .layers import Draw, Dropout, Layer, LayerNorm, Linear, RMSNorm


class Rotary(Layer):
    """Rotary position embedding: pair i of a head's channels in q and k is rotated by position * 10000^(-2i/D).

    The product of a query and a key then depends on their positions only through the distance.  [Su et al. 2021]
    """

    def __init__(self, positions: int, n_head: int, head_size: int):
        super().__init__()
        self.n_head = n_head
        self.cosine, self.sine = rotary_tables(positions, head_size)

    def forward(self, x: np.ndarray, T: int) -> np.ndarray:
        """Rotate x (B * T, C) in place."""
        rotate(x, self.cosine, self.sine, T, self.n_head, x)
        return x

    # The transpose of a rotation is its inverse.
    def backward(self, dy: np.ndarray, T: int) -> np.ndarray:
        rotate(dy, self.cosine, -self.sine, T, self.n_head, dy)
        return dy


class Attention(Layer):
    """Causal self-attention with n_head heads: out = softmax(q k^T / sqrt(D)) v, then a projection.

    q, k and v are linear in x; q and k may be normalised (QK norm) and rotated, head by head.
    """

    def __init__(self, config, rotary: Rotary | None, std: float, std_out: float):
        super().__init__()
        C, D = config.n_embd, config.n_embd // config.n_head
        self.n_head, self.head_size = config.n_head, D
        self.scale = np.float32(1) / np.sqrt(np.float32(D))
        self.query = Linear(C, C, config.bias, std)
        self.key = Linear(C, C, config.bias, std)
        self.value = Linear(C, C, config.bias, std)
        self.query_norm = RMSNorm(D) if config.qk_norm else None
        self.key_norm = RMSNorm(D) if config.qk_norm else None
        self._rotary = rotary
        self.projection = Linear(C, C, config.bias, std_out)

    def forward(self, x: np.ndarray, T: int, cache: Cache | None = None, layer: int = 0) -> np.ndarray:
        """y (B * T, C) of x (B * T, C); a cache, if given, receives the keys and values as those of block number `layer`."""
        q, k, v = self.query.forward(x), self.key.forward(x), self.value.forward(x)
        if self.query_norm:
            q = self.query_norm.forward(q.reshape(-1, self.head_size)).reshape(x.shape)
            k = self.key_norm.forward(k.reshape(-1, self.head_size)).reshape(x.shape)
        if self._rotary:
            q, k = self._rotary.forward(q, T), self._rotary.forward(k, T)
        self.T, self.q, self.k, self.v = T, q, k, v
        self.out = self.saved("out", *x.shape)
        self.peak = self.saved("peak", len(x) // T * self.n_head, T)
        self.total = self.saved("total", len(x) // T * self.n_head, T)
        attention.attention_forward(q, k, v, self.n_head, T, self.scale, self.out, self.peak, self.total)
        if cache is not None:
            split = (-1, T, self.n_head, self.head_size)
            cache.keys[layer, :, :, :, :T] = k.reshape(split).transpose(0, 2, 3, 1)       # (B, H, D, T)
            cache.values[layer, :, :, :T] = v.reshape(split).transpose(0, 2, 1, 3)        # (B, H, T, D)
        return self.projection.forward(self.out, scratch=True)

    # The chain rule backwards through the lines of forward; derived in kernels/attention.py.
    def backward(self, dy: np.ndarray) -> np.ndarray:
        dout = self.projection.backward(dy)
        dq, dk, dv = (self.scratch(name, *dy.shape) for name in ("dq", "dk", "dv"))
        attention.attention_backward(dout, self.q, self.k, self.v, self.out, self.peak, self.total, self.n_head, self.T,
                                     self.scale, dq, dk, dv)
        if self._rotary:
            dq, dk = self._rotary.backward(dq, self.T), self._rotary.backward(dk, self.T)
        if self.query_norm:
            dq = self.query_norm.backward(dq.reshape(-1, self.head_size)).reshape(dy.shape)
            dk = self.key_norm.backward(dk.reshape(-1, self.head_size)).reshape(dy.shape)
        dx = self.query.backward(dq)
        return self.value.backward(dv, self.key.backward(dk, dx))


class FeedForward(Layer):
    """y = act(x W1) W2, with 4 C hidden channels."""

    ACTIVATIONS = {
        "relu": (activations.relu_forward, activations.relu_backward),
        "gelu": (activations.gelu_forward, activations.gelu_backward),
        "relu2": (activations.squared_relu_forward, activations.squared_relu_backward),
    }

    def __init__(self, config, std: float, std_out: float):
        super().__init__()
        self.activate, self.activate_backward = self.ACTIVATIONS[config.activation]
        self.expand = Linear(config.n_embd, 4 * config.n_embd, config.bias, std)
        self.contract = Linear(4 * config.n_embd, config.n_embd, config.bias, std_out)

    def forward(self, x: np.ndarray) -> np.ndarray:
        self.hidden = self.expand.forward(x)
        return self.contract.forward(self._active(), scratch=True)

    def _active(self):
        active = self.scratch("active", *self.hidden.shape)
        self.activate(self.hidden, active)
        return active

    def backward(self, dy: np.ndarray) -> np.ndarray:
        self.contract.x = self._active()            # recomputed rather than saved: the largest activation, and cheap
        dhidden = self.contract.backward(dy)
        self.activate_backward(dhidden, self.hidden, dhidden)
        return self.expand.backward(dhidden)


class Residual(Layer):
    """A sublayer f with its norm and residual connection: pre-norm y = x + f(norm(x)), or post-norm y = norm(x + f(x))."""

    def __init__(self, sublayer: Layer, norm: Layer, norm_first: bool, dropout: Dropout):
        super().__init__()
        self.norm, self.sublayer, self._norm_first, self._dropout = norm, sublayer, norm_first, dropout

    def parameters(self, prefix=""):
        return {**self.norm.parameters(prefix + "norm."), **self.sublayer.parameters(prefix)}

    def forward(self, x: np.ndarray, draw: Draw | None, sublayer: Callable) -> np.ndarray:
        """y (N, C) of x (N, C); `sublayer` is the sublayer's forward as a function of x alone."""
        y = sublayer(self.norm.forward(x) if self._norm_first else x)
        total = np.add(x, self._dropout.forward(y, draw), out=self.saved("sum", *x.shape))
        return total if self._norm_first else self.norm.forward(total)

    # y = x + f(x):  dx = dy + J^T dy with J the Jacobian of f: the gradient passes through both branches and adds up.
    def backward(self, dy: np.ndarray) -> np.ndarray:
        if not self._norm_first:
            dy = self.norm.backward(dy)
        dx = self.sublayer.backward(self._dropout.backward(dy))
        if self._norm_first:
            dx = self.norm.backward(dx)
        return np.add(dx, dy, out=self.scratch("dx", *dy.shape))


class Block(Layer):
    """Attention, then the feed-forward pair, each in a Residual."""

    def __init__(self, config, rotary: Rotary | None, name: str):
        super().__init__()
        C, norm_first = config.n_embd, config.norm_order == "first"
        std, std_out = 0.5 / np.sqrt(C), 0.5 / (np.sqrt(C) * np.sqrt(config.n_layer))

        def residual(sublayer, part):
            norm = LayerNorm(C, config.bias) if config.norm == "layer" else RMSNorm(C)
            return Residual(sublayer, norm, norm_first, Dropout(config.dropout, f"dropout {name}.{part}"))

        self.attention = residual(Attention(config, rotary, std, std_out), "attention")
        self.feed_forward = residual(FeedForward(config, std, std_out / 2), "feed_forward")

    def forward(self, x: np.ndarray, draw: Draw | None, T: int, cache: Cache | None = None, layer: int = 0) -> np.ndarray:
        x = self.attention.forward(x, draw, partial(self.attention.sublayer.forward, T=T, cache=cache, layer=layer))
        return self.feed_forward.forward(x, draw, self.feed_forward.sublayer.forward)

    def backward(self, dy: np.ndarray) -> np.ndarray:
        return self.attention.backward(self.feed_forward.backward(dy))

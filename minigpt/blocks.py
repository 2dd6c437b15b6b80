"""A Transformer block: causal self-attention and the feed-forward layer, each with a norm and a residual connection."""

from collections.abc import Callable
from functools import partial

import numpy as np

from .config import GPTConfig
from .exact import rotary_tables
from .incremental import Cache
from .kernels import activations, attention, elementwise
from .kernels.rotary import rotate
from .layers import Draw, Dropout, Layer, LayerNorm, Linear, RMSNorm


class Rotary(Layer):
    """Rotary position embedding: pair i of a head's channels in q and k is rotated by position * theta^(-2i/D) / factor.

    The product of a query and a key then depends on their positions only through the distance.  [Su et al. 2021]
    """

    def __init__(self, positions: int, head_size: int, theta: float = 10000.0, factors: tuple[float, ...] = ()):
        super().__init__()
        self.head_size = head_size
        self.cosine, self.sine = rotary_tables(positions, head_size, theta, factors)

    def forward(self, x: np.ndarray, T: int, start: int = 0) -> np.ndarray:
        """Rotate x (B * T, heads * D) in place, where each sequence begins at position `start`."""
        rotate(x, self.cosine[start:], self.sine[start:], T, x.shape[1] // self.head_size, x)
        return x

    # The transpose of a rotation is its inverse.
    def backward(self, dy: np.ndarray, T: int) -> np.ndarray:
        rotate(dy, self.cosine, -self.sine, T, dy.shape[1] // self.head_size, dy)
        return dy


class Attention(Layer):
    """Causal self-attention with n_head heads: out = softmax(q k^T / sqrt(D)) v, then a projection.

    q, k and v are linear in x; q and k may be normalised (QK norm) and rotated, head by head.  k and v may have fewer heads,
    each for a group of those of q.
    """

    def __init__(self, config, rotary: Rotary | None, std: float, std_out: float):
        super().__init__()
        C, D, bias = config.n_embd, config.head_size, config.bias or config.qkv_bias
        self.n_head, self.head_size = config.n_head, D
        self.scale = np.float32(1) / np.sqrt(np.float32(D))
        self.query = Linear(C, C, bias, std)
        self.key = Linear(C, config.kv_heads * D, bias, std)
        self.value = Linear(C, config.kv_heads * D, bias, std)
        self.query_norm = RMSNorm(D, config.norm_epsilon) if config.qk_norm else None
        self.key_norm = RMSNorm(D, config.norm_epsilon) if config.qk_norm else None
        self._rotary = rotary
        self.projection = Linear(C, C, config.bias, std_out)

    def forward(self, x: np.ndarray, T: int, cache: Cache | None = None, layer: int = 0) -> np.ndarray:
        """y (B * T, C) of x (B * T, C).  With a cache, x continues its tokens, and it receives the keys and values of block
        number `layer`."""
        q, k, v = self.query.forward(x), self.key.forward(x), self.value.forward(x)
        if self.query_norm:
            q = self.query_norm.forward(q.reshape(-1, self.head_size)).reshape(q.shape)
            k = self.key_norm.forward(k.reshape(-1, self.head_size)).reshape(k.shape)
        if self._rotary:
            start = cache.position if cache else 0
            q, k = self._rotary.forward(q, T, start), self._rotary.forward(k, T, start)
        self.T, self.q, self.k, self.v = T, q, k, v
        self.out = self.saved("out", *x.shape)
        if cache is None:
            self.peak = self.saved("peak", len(x) // T * self.n_head, T)
            self.total = self.saved("total", len(x) // T * self.n_head, T)
            attention.attention_forward(q, k, v, self.n_head, T, self.scale, self.out, self.peak, self.total)
        else:
            attention.attention_continued(q, k, v, self.n_head, cache.kept, layer, cache.first, cache.held, T, self.scale,
                                          self.out)
        return self.projection.forward(self.out, scratch=True)

    # The chain rule backwards through the lines of forward; derived in kernels/attention.py.
    def backward(self, dy: np.ndarray) -> np.ndarray:
        dout = self.projection.backward(dy)
        dq, dk, dv = (self.scratch(name, *y.shape) for name, y in (("dq", self.q), ("dk", self.k), ("dv", self.v)))
        attention.attention_backward(dout, self.q, self.k, self.v, self.out, self.peak, self.total, self.n_head, self.T,
                                     self.scale, dq, dk, dv)
        if self._rotary:
            dq, dk = self._rotary.backward(dq, self.T), self._rotary.backward(dk, self.T)
        if self.query_norm:
            dq = self.query_norm.backward(dq.reshape(-1, self.head_size)).reshape(dq.shape)
            dk = self.key_norm.backward(dk.reshape(-1, self.head_size)).reshape(dk.shape)
        dx = self.query.backward(dq)
        return self.value.backward(dv, self.key.backward(dk, dx))


class FeedForward(Layer):
    """y = act(x W1) W2, or with SwiGLU y = (silu(x Wg) * (x W1)) W2 [Shazeer 2020], with n_hidden channels between."""

    ACTIVATIONS = {
        "relu": (activations.relu_forward, activations.relu_backward),
        "gelu": (activations.gelu_forward, activations.gelu_backward),
        "relu2": (activations.squared_relu_forward, activations.squared_relu_backward),
    }

    def __init__(self, config, std: float, std_out: float):
        super().__init__()
        self.activate, self.activate_backward = self.ACTIVATIONS.get(config.activation, (None, None))
        self.gate = Linear(config.n_embd, config.hidden, config.bias, std) if config.activation == "swiglu" else None
        self.expand = Linear(config.n_embd, config.hidden, config.bias, std)
        self.contract = Linear(config.hidden, config.n_embd, config.bias, std_out)

    def forward(self, x: np.ndarray) -> np.ndarray:
        if self.gate:
            self.gates = self.gate.forward(x)
        self.hidden = self.expand.forward(x)
        return self.contract.forward(self._active(), scratch=True)

    def _active(self):
        active = self.scratch("active", *self.hidden.shape)
        if self.gate:
            activations.swiglu_forward(self.gates, self.hidden, active)
        else:
            self.activate(self.hidden, active)
        return active

    # dx = (act'(x W1) * dy W2^T) W1^T; with a gate, x went into two matrices, so dx is the sum of what both send back.
    def backward(self, dy: np.ndarray) -> np.ndarray:
        self.contract.x = self._active()            # recomputed rather than saved: the largest activation, and cheap
        dhidden = self.contract.backward(dy)
        if self.gate:
            dgates = self.scratch("dgates", *self.hidden.shape)
            activations.swiglu_backward(dhidden, self.gates, self.hidden, dgates, dhidden)
            return self.expand.backward(dhidden, self.gate.backward(dgates))
        self.activate_backward(dhidden, self.hidden, dhidden)
        return self.expand.backward(dhidden)


def make_norm(config: GPTConfig) -> LayerNorm | RMSNorm:
    """A norm of the residual stream."""
    if config.norm == "layer":
        return LayerNorm(config.n_embd, config.bias, config.norm_epsilon)
    return RMSNorm(config.n_embd, config.norm_epsilon)


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
        total = elementwise.add(x, self._dropout.forward(y, draw), self.saved("sum", *x.shape))
        return total if self._norm_first else self.norm.forward(total)

    # y = x + f(x):  dx = dy + J^T dy with J the Jacobian of f: the gradient passes through both branches and adds up.
    def backward(self, dy: np.ndarray) -> np.ndarray:
        if not self._norm_first:
            dy = self.norm.backward(dy)
        dx = self.sublayer.backward(self._dropout.backward(dy))
        if self._norm_first:
            dx = self.norm.backward(dx)
        return elementwise.add(dx, dy, self.scratch("dx", *dy.shape))


class Block(Layer):
    """Attention, then the feed-forward layer, each in a Residual."""

    def __init__(self, config, rotary: Rotary | None, name: str):
        super().__init__()
        std, root = 0.5 / np.sqrt(config.n_embd), np.sqrt(config.n_layer)

        def residual(sublayer, part):
            dropout = Dropout(config.dropout, f"dropout {name}.{part}")
            return Residual(sublayer, make_norm(config), config.norm_order == "first", dropout)

        self.attention = residual(Attention(config, rotary, std, 0.5 / (np.sqrt(config.n_embd) * root)), "attention")
        self.feed_forward = residual(FeedForward(config, std, 0.5 / (np.sqrt(config.hidden) * root)), "feed_forward")

    def forward(self, x: np.ndarray, draw: Draw | None, T: int, cache: Cache | None = None, layer: int = 0) -> np.ndarray:
        x = self.attention.forward(x, draw, partial(self.attention.sublayer.forward, T=T, cache=cache, layer=layer))
        return self.feed_forward.forward(x, draw, self.feed_forward.sublayer.forward)

    def backward(self, dy: np.ndarray) -> np.ndarray:
        return self.attention.backward(self.feed_forward.backward(dy))

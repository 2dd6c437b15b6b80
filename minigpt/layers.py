"""The layers of a GPT, each with its way forward and its way back.

x is (N, C): N = B * T rows, one for each token of each sequence, C channels.  `forward` keeps what `backward` needs;
`backward` takes dy, the derivative of the loss with respect to the output, returns dx and adds to the gradients of the
layer's parameters.  What they return lies in buffers that the layer's next call uses again.
"""

from typing import NamedTuple

import numpy as np

from . import rng
from .kernels import attention, elementwise, rows
from .kernels.matmul import matmul


class Draw(NamedTuple):
    """The address of a step's dropout; None in its place means evaluation, where nothing is dropped."""
    seed: int
    step: int


class Parameter:
    """An array that is trained, and the gradient of the loss with respect to it."""

    def __init__(self, shape, std=0.0, value=0.0):
        self.data = np.full(shape, value, np.float32)
        self.grad = np.zeros(shape, np.float32)
        self.std = std               # of the initial values around `value`

    def initialise(self, seed, name):
        """Add to the data uniform random numbers of standard deviation std: their bound is sqrt(3) * std."""
        if self.std:
            bound = np.float32(1.7320508075688772 * self.std)
            u = rng.uniform(seed, "initial " + name, 0, self.data.size).reshape(self.data.shape)
            self.data += bound * (u + u - np.float32(1))


class Layer:
    def __init__(self):
        self._buffers = {}

    def buffer(self, name, *shape):
        """Uninitialised memory that this layer uses again at its next call; it only ever grows."""
        size = int(np.prod(shape))
        if name not in self._buffers or self._buffers[name].size < size:
            self._buffers[name] = np.empty(size, np.float32)
        return self._buffers[name][:size].reshape(shape)

    def parameters(self, prefix=""):
        """Name -> Parameter, of this layer and the layers in it, in the order in which they were made."""
        found = {}
        for name, value in vars(self).items():
            if isinstance(value, Parameter):
                found[prefix + name] = value
            elif isinstance(value, Layer) and not name.startswith("_"):
                found.update(value.parameters(f"{prefix}{name}."))
            elif isinstance(value, list):
                for i, layer in enumerate(value):
                    found.update(layer.parameters(f"{prefix}{name}.{i}."))
        return found


class Linear(Layer):
    """y = x W + b, with W (n_in, n_out) and b (n_out,) or no b."""

    def __init__(self, n_in, n_out, bias, std):
        super().__init__()
        self.weight = Parameter((n_in, n_out), std)
        self.bias = Parameter((n_out,)) if bias else None

    def forward(self, x):
        self.x = x
        y = matmul(x, self.weight.data, self.buffer("y", len(x), self.weight.data.shape[1]))
        if self.bias:
            y += self.bias.data
        return y

    # dL/dx[n,i] = sum_j dy[n,j] W[i,j],  dL/dW[i,j] = sum_n x[n,i] dy[n,j],  dL/db[j] = sum_n dy[n,j]
    def backward(self, dy, dx=None):
        """Return dx = dy W^T, added to `dx` where one is given."""
        matmul(self.x.T, dy, self.weight.grad, accumulate=True)
        if self.bias:
            rows.add_column_sums(dy, self.bias.grad)
        out = self.buffer("dx", *self.x.shape) if dx is None else dx
        return matmul(dy, self.weight.data.T, out, accumulate=dx is not None)


class LayerNorm(Layer):
    """Each row to mean 0 and variance 1, then times gain, plus bias (or no bias).  Derived in kernels/rows.py."""

    def __init__(self, n, bias):
        super().__init__()
        self.gain = Parameter((n,), value=1.0)
        self.bias = Parameter((n,)) if bias else None
        self._no_bias = np.zeros((2, n), np.float32)

    def forward(self, x):
        self.x, self.mean, self.rstd = x, self.buffer("mean", len(x)), self.buffer("rstd", len(x))
        y, bias = self.buffer("y", *x.shape), self.bias.data if self.bias else self._no_bias[0]
        rows.layer_norm_forward(x, self.gain.data, bias, y, self.mean, self.rstd)
        return y

    def backward(self, dy):
        dx, dbias = self.buffer("dx", *dy.shape), self.bias.grad if self.bias else self._no_bias[1]
        rows.layer_norm_backward(dy, self.x, self.gain.data, self.mean, self.rstd, dx, self.gain.grad, dbias)
        return dx


class RMSNorm(Layer):
    """Each row divided by its root mean square, times gain."""

    def __init__(self, n):
        super().__init__()
        self.gain = Parameter((n,), value=1.0)

    def forward(self, x):
        self.x, self.rstd = x, self.buffer("rstd", len(x))
        y = self.buffer("y", *x.shape)
        rows.rms_norm_forward(x, self.gain.data, y, self.rstd)
        return y

    def backward(self, dy):
        dx = self.buffer("dx", *dy.shape)
        rows.rms_norm_backward(dy, self.x, self.gain.data, self.rstd, dx, self.gain.grad)
        return dx


class Embedding(Layer):
    """Row ids[n] of a table (n_rows, C), for each n."""

    def __init__(self, n_rows, n_embd, std):
        super().__init__()
        self.weight = Parameter((n_rows, n_embd), std)

    def forward(self, ids):
        self.ids = ids
        return np.take(self.weight.data, ids, axis=0, out=self.buffer("y", len(ids), self.weight.data.shape[1]), mode="clip")

    # A row was copied to every n with ids[n] = row, so their derivatives add up in it.
    def backward(self, dy):
        rows.add_rows_at(dy, self.ids, self.weight.grad)


class Dropout(Layer):
    """Training: each element is 0 with probability p, else divided by 1 - p, so that its mean stays.  [Srivastava 2014]"""

    def __init__(self, p, purpose):
        super().__init__()
        self.p, self.purpose = p, purpose
        self.scale = np.float32(1) / np.float32(1 - p)

    def forward(self, x, draw):
        self.keep = None
        if draw is None or self.p == 0:
            return x
        self.keep = rng.keep(draw.seed, self.purpose, draw.step, x.size, self.p)
        return self._apply(x, "y")

    # The derivative of a product with a constant is that constant: the same mask.
    def backward(self, dy):
        return dy if self.keep is None else self._apply(dy, "dx")

    def _apply(self, x, name):
        y = self.buffer(name, *x.shape)
        elementwise.apply_mask(x.reshape(-1), self.keep, self.scale, y.reshape(-1))
        return y


class Rotary(Layer):
    """Turns each pair of channels of q and k by an angle that grows with the position: pair i by position * 10000^(-2i/D).

    A query and a key then meet at an angle that depends on their distance alone.  [Su et al. 2021]
    """

    def __init__(self, positions, n_head, head_size):
        super().__init__()
        self.n_head = n_head
        self.cosine, self.sine = rotary_tables(positions, head_size)

    def forward(self, x, T, first=0):
        elementwise.rotate(x, self.cosine, self.sine, T, first, self.n_head, x)
        return x

    # A rotation's transpose is the rotation back.
    def backward(self, dy, T):
        elementwise.rotate(dy, self.cosine, -self.sine, T, 0, self.n_head, dy)
        return dy


def rotary_tables(positions, head_size):
    """cos and sin (positions, D / 2) of position * 10000^(-2i/D), from + - * / alone, in binary64, rounded to float32."""
    exponent = np.arange(head_size // 2) * (-2.0 * 9.210340371976184 / head_size) / 1024.0        # ln 10000
    power, term = np.ones_like(exponent), np.ones_like(exponent)
    for n in range(1, 12):
        term = term * exponent / n
        power = power + term
    for _ in range(10):
        power = power * power                                       # (e^(x / 1024))^1024
    cosine, sine, term = np.zeros_like(power), np.zeros_like(power), np.ones_like(power)
    for n in range(24):                                             # Taylor: 1 + x - x^2/2! - x^3/3! + + - - ...
        sign = 1.0 if n % 4 < 2 else -1.0
        if n % 2:
            sine = sine + sign * term
        else:
            cosine = cosine + sign * term
        term = term * power / (n + 1)
    table = np.empty((2, positions, head_size // 2), np.float32)
    c, s = np.ones_like(cosine), np.zeros_like(sine)
    for position in range(positions):
        table[0, position], table[1, position] = c, s
        c, s = c * cosine - s * sine, s * cosine + c * sine         # one step further round
    return table


class Cache:
    """Keys and values of the tokens seen so far, of S sequences that advance in lockstep, for each layer."""

    def __init__(self, n_layer, n_head, head_size, block_size, sequences):
        width = (block_size + 15) // 16 * 16         # whole lanes
        self.position, self.sequences = 0, sequences
        self.keys = np.zeros((n_layer, sequences, n_head, head_size, width), np.float32)
        self.values = np.zeros((n_layer, sequences, n_head, block_size, head_size), np.float32)


class Attention(Layer):
    """Causal self-attention with n_head heads: out = softmax(q k^T / sqrt(D)) v, then a projection.

    q, k and v are linear in x; q and k may be normalised and rotated, head by head.
    """

    def __init__(self, config, position, std, std_out):
        super().__init__()
        C, D = config.n_embd, config.n_embd // config.n_head
        self.n_head, self.head_size = config.n_head, D
        self.scale = np.float32(1) / np.sqrt(np.float32(D))
        self.query = Linear(C, C, config.bias, std)
        self.key = Linear(C, C, config.bias, std)
        self.value = Linear(C, C, config.bias, std)
        self.query_norm = RMSNorm(D) if config.qk_norm else None
        self.key_norm = RMSNorm(D) if config.qk_norm else None
        self._rotary = position
        self.projection = Linear(C, C, config.bias, std_out)

    def _query_key_value(self, x, T, first):
        q, k, v = self.query.forward(x), self.key.forward(x), self.value.forward(x)
        if self.query_norm:
            q = self.query_norm.forward(q.reshape(-1, self.head_size)).reshape(x.shape)
            k = self.key_norm.forward(k.reshape(-1, self.head_size)).reshape(x.shape)
        if self._rotary:
            q, k = self._rotary.forward(q, T, first), self._rotary.forward(k, T, first)
        return q, k, v

    def forward(self, x, T, cache=None, layer=0):
        """x (B * T, C); a cache, where one is given, receives the keys and values."""
        self.T = T
        self.q, self.k, self.v = q, k, v = self._query_key_value(x, T, 0)
        self.out = self.buffer("out", *x.shape)
        self.peak = self.buffer("peak", len(x) // T * self.n_head, T)
        self.total = self.buffer("total", len(x) // T * self.n_head, T)
        attention.attention_forward(q, k, v, self.n_head, T, self.scale, self.out, self.peak, self.total)
        if cache is not None:
            split = (-1, T, self.n_head, self.head_size)
            cache.keys[layer, :, :, :, :T] = k.reshape(split).transpose(0, 2, 3, 1)       # (B, H, D, T)
            cache.values[layer, :, :, :T] = v.reshape(split).transpose(0, 2, 1, 3)        # (B, H, T, D)
        return self.projection.forward(self.out)

    # The chain rule backwards through the lines of forward; derived in kernels/attention.py.
    def backward(self, dy):
        dout = self.projection.backward(dy)
        dq, dk, dv = (self.buffer(name, *dy.shape) for name in ("dq", "dk", "dv"))
        attention.attention_backward(dout, self.q, self.k, self.v, self.out, self.peak, self.total, self.n_head, self.T,
                                     self.scale, dq, dk, dv)
        if self._rotary:
            dq, dk = self._rotary.backward(dq, self.T), self._rotary.backward(dk, self.T)
        if self.query_norm:
            dq = self.query_norm.backward(dq.reshape(-1, self.head_size)).reshape(dy.shape)
            dk = self.key_norm.backward(dk.reshape(-1, self.head_size)).reshape(dy.shape)
        dx = self.query.backward(dq)
        return self.value.backward(dv, self.key.backward(dk, dx))

    def step(self, x, cache, layer):
        """x (S, C), one more token of each sequence: the row that `forward` would give it, bit for bit."""
        q, k, v = self._query_key_value(x, 1, cache.position)
        out = self.buffer("out", *x.shape)
        attention.attend_one(q, k, v, cache.keys[layer], cache.values[layer], cache.position, self.scale, out)
        return self.projection.forward(out)


class FeedForward(Layer):
    """y = act(x W1) W2, with 4 C channels between."""

    ACTIVATIONS = {
        "relu": (elementwise.relu_forward, elementwise.relu_backward),
        "gelu": (elementwise.gelu_forward, elementwise.gelu_backward),
        "relu2": (elementwise.squared_relu_forward, elementwise.squared_relu_backward),
    }

    def __init__(self, config, std, std_out):
        super().__init__()
        self.activate, self.activate_backward = self.ACTIVATIONS[config.activation]
        self.expand = Linear(config.n_embd, 4 * config.n_embd, config.bias, std)
        self.contract = Linear(4 * config.n_embd, config.n_embd, config.bias, std_out)

    def forward(self, x):
        self.hidden = self.expand.forward(x)
        active = self.buffer("active", *self.hidden.shape)
        self.activate(self.hidden, active)
        return self.contract.forward(active)

    def backward(self, dy):
        dhidden = self.contract.backward(dy)
        self.activate_backward(dhidden, self.hidden, dhidden)
        return self.expand.backward(dhidden)


class Residual(Layer):
    """A sublayer with a way around it.  Norm first: y = x + f(norm(x)); norm last, as first published: norm(x + f(x))."""

    def __init__(self, sublayer, norm, norm_first, dropout):
        super().__init__()
        self.norm, self.sublayer, self._norm_first, self._dropout = norm, sublayer, norm_first, dropout

    def parameters(self, prefix=""):
        return {**self.norm.parameters(prefix + "norm."), **self.sublayer.parameters(prefix)}

    def forward(self, x, draw, call):
        """`call` is what computes the sublayer: its forward or step with all arguments but x."""
        y = call(self.norm.forward(x) if self._norm_first else x)
        total = np.add(x, self._dropout.forward(y, draw), out=self.buffer("sum", *x.shape))
        return total if self._norm_first else self.norm.forward(total)

    # d(x + f(x)) = dy + f'(dy): the gradient goes both ways and adds up.
    def backward(self, dy):
        if not self._norm_first:
            dy = self.norm.backward(dy)
        dx = self.sublayer.backward(self._dropout.backward(dy))
        if self._norm_first:
            dx = self.norm.backward(dx)
        dx += dy
        return dx


class TiedHead(Layer):
    """logits = x E^T, with the token embedding E (V, C) as its weight."""

    def __init__(self, embedding):
        super().__init__()
        self._embedding = embedding

    def forward(self, x):
        self.x = x
        return matmul(x, self._embedding.weight.data.T, self.buffer("y", len(x), len(self._embedding.weight.data)))

    # As for Linear, with W = E^T.
    def backward(self, dy):
        matmul(dy.T, self.x, self._embedding.weight.grad, accumulate=True)
        return matmul(dy, self._embedding.weight.data, self.buffer("dx", *self.x.shape))


class CrossEntropy(Layer):
    """The mean over all rows of -log softmax(logits)[target], in nats."""

    def forward(self, logits, targets):
        self.targets = targets
        self.losses, self.probabilities = self.buffer("losses", len(logits)), self.buffer("p", *logits.shape)
        rows.cross_entropy_forward(logits, targets, self.probabilities, self.losses)
        total = np.zeros(1, np.float32)
        rows.add_column_sums(self.losses.reshape(-1, 1), total)
        return float(total[0] / np.float32(len(logits)))

    def backward(self):
        dloss = np.float32(1) / np.float32(len(self.targets))
        dlogits = self.buffer("dlogits", *self.probabilities.shape)
        rows.cross_entropy_backward(dloss, self.probabilities, self.targets, dlogits)
        return dlogits

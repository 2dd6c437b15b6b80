"""The simple layers of a GPT, each with its way forward and its way back.

x is (N, C): N = B * T rows, one for each token of each sequence, C channels.  `forward` keeps what `backward` needs;
`backward` takes dy, the derivative of the loss with respect to the output, returns dx and adds to the gradients of the
layer's parameters.  What they return lies in memory that is used again: at the layer's next call, or, where it was only
passing by, by the same layer of the next block.
"""

from typing import NamedTuple

import numpy as np

from . import rng
from .kernels import elementwise, norms, softmax, sums
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
        self._kept, self._passing = {}, {}

    def kept(self, name, *shape):
        """Uninitialised memory whose content `backward` needs.  The next call uses it again; it only ever grows."""
        return _room(self._kept, name, shape)

    def passing(self, name, *shape):
        """Uninitialised memory for what the next layer, or the layer before, uses up at once (see `share`)."""
        return _room(self._passing, name, shape)

    def share(self, other):
        """Take the same memory as `other`, a layer of the same form, for all that is only passing by."""
        self._passing = other._passing
        for (_, mine), (_, others) in zip(self.children(), other.children()):
            mine.share(others)

    def children(self):
        """(name, Layer) of those in this one, in the order in which they were made.  Those named _... have no weights."""
        for name, value in vars(self).items():
            if isinstance(value, Layer):
                yield name, value
            elif isinstance(value, list):
                yield from ((f"{name}.{i}", layer) for i, layer in enumerate(value))

    def parameters(self, prefix=""):
        """Name -> Parameter, of this layer and the layers in it, in the order in which they were made."""
        found = {prefix + name: value for name, value in vars(self).items() if isinstance(value, Parameter)}
        for name, layer in self.children():
            if not name.startswith("_"):
                found.update(layer.parameters(f"{prefix}{name}."))
        return found


def _room(memory, name, shape):
    size = int(np.prod(shape))
    if name not in memory or memory[name].size < size:
        memory[name] = np.empty(size, np.float32)
    return memory[name][:size].reshape(shape)


def _check(name, x, columns):
    """Refuse what a kernel would misread: it computes addresses as if x were contiguous float32 of shape (N, columns)."""
    if x.dtype != np.float32 or x.ndim != 2 or x.shape[1] != columns or not x.flags.c_contiguous:
        kind = "contiguous" if x.flags.c_contiguous else "not contiguous"
        raise ValueError(f"{name} must be contiguous float32 of shape (N, {columns}), but is {x.dtype} of shape {x.shape}, {kind}")


class Linear(Layer):
    """y = x W + b, with W (n_in, n_out) and b (n_out,) or no b."""

    def __init__(self, n_in, n_out, bias, std):
        super().__init__()
        self.weight = Parameter((n_in, n_out), std)
        self.bias = Parameter((n_out,)) if bias else None

    def forward(self, x, passing=False):
        """`passing` says that y is used up at once, and needed by no other layer's backward."""
        self.x = x
        room = self.passing if passing else self.kept
        y = matmul(x, self.weight.data, room("y", len(x), self.weight.data.shape[1]))
        if self.bias:
            y += self.bias.data
        return y

    # dL/dx[n,i] = sum_j dy[n,j] W[i,j],  dL/dW[i,j] = sum_n x[n,i] dy[n,j],  dL/db[j] = sum_n dy[n,j]
    def backward(self, dy, dx=None):
        """Return dx = dy W^T, added to `dx` where one is given."""
        _check("dy", dy, self.weight.data.shape[1])
        matmul(self.x.T, dy, self.weight.grad, accumulate=True)
        if self.bias:
            sums.add_column_sums(dy, self.bias.grad)
        out = self.passing("dx", *self.x.shape) if dx is None else dx
        return matmul(dy, self.weight.data.T, out, accumulate=dx is not None)


class LayerNorm(Layer):
    """Each row to mean 0 and variance 1, then times gain, plus bias (or no bias).  Derived in kernels/norms.py."""

    def __init__(self, n, bias):
        super().__init__()
        self.gain = Parameter((n,), value=1.0)
        self.bias = Parameter((n,)) if bias else None
        self._zeros = np.zeros(n, np.float32)       # where there is no bias

    def forward(self, x):
        _check("x", x, len(self.gain.data))
        self.x, self.mean, self.rstd = x, self.kept("mean", len(x)), self.kept("rstd", len(x))
        y = self.kept("y", *x.shape)
        norms.layer_norm_forward(x, self.gain.data, self.bias.data if self.bias else self._zeros, y, self.mean, self.rstd)
        return y

    def backward(self, dy):
        _check("dy", dy, len(self.gain.data))
        dx, dbias = self.passing("dx", *dy.shape), self.bias.grad if self.bias else np.zeros(dy.shape[1], np.float32)
        norms.layer_norm_backward(dy, self.x, self.gain.data, self.mean, self.rstd, dx, self.gain.grad, dbias)
        return dx


class RMSNorm(Layer):
    """Each row divided by its root mean square, times gain."""

    def __init__(self, n):
        super().__init__()
        self.gain = Parameter((n,), value=1.0)

    def forward(self, x):
        _check("x", x, len(self.gain.data))
        self.x, self.rstd = x, self.kept("rstd", len(x))
        y = self.kept("y", *x.shape)
        norms.rms_norm_forward(x, self.gain.data, y, self.rstd)
        return y

    def backward(self, dy):
        _check("dy", dy, len(self.gain.data))
        dx = self.passing("dx", *dy.shape)
        norms.rms_norm_backward(dy, self.x, self.gain.data, self.rstd, dx, self.gain.grad)
        return dx


class Embedding(Layer):
    """Row ids[n] of a table (n_rows, C), for each n."""

    def __init__(self, n_rows, n_embd, std):
        super().__init__()
        self.weight = Parameter((n_rows, n_embd), std)

    def forward(self, ids):
        self.ids = ids
        return np.take(self.weight.data, ids, axis=0, out=self.kept("y", len(ids), self.weight.data.shape[1]), mode="clip")

    # A row was copied to every n with ids[n] = row, so their derivatives add up in it.
    def backward(self, dy):
        _check("dy", dy, self.weight.data.shape[1])
        sums.add_rows_at(dy, self.ids, self.weight.grad)


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
        y = self.passing(name, *x.shape)
        elementwise.apply_mask(x.reshape(-1), self.keep, self.scale, y.reshape(-1))
        return y


class TiedHead(Layer):
    """logits = x E^T, with the token embedding E (V, C) as its weight."""

    def __init__(self, embedding):
        super().__init__()
        self._embedding = embedding

    def forward(self, x):
        self.x = x
        return matmul(x, self._embedding.weight.data.T, self.kept("y", len(x), len(self._embedding.weight.data)))

    # As for Linear, with W = E^T.
    def backward(self, dy):
        matmul(dy.T, self.x, self._embedding.weight.grad, accumulate=True)
        return matmul(dy, self._embedding.weight.data, self.passing("dx", *self.x.shape))


class CrossEntropy(Layer):
    """The mean over all rows of -log softmax(logits)[target], in nats."""

    def forward(self, logits, targets):
        if targets.shape != logits.shape[:1]:
            raise ValueError(f"logits of shape {logits.shape} need as many targets as rows, but they have shape {targets.shape}")
        self.targets = targets
        self.losses, self.probabilities = self.kept("losses", len(logits)), self.kept("p", *logits.shape)
        softmax.cross_entropy_forward(logits, targets, self.probabilities, self.losses)
        total = np.zeros(1, np.float32)
        sums.add_column_sums(self.losses.reshape(-1, 1), total)
        return float(total[0] / np.float32(len(logits)))

    def backward(self):
        dloss = np.float32(1) / np.float32(len(self.targets))
        dlogits = self.passing("dlogits", *self.probabilities.shape)
        softmax.cross_entropy_backward(dloss, self.probabilities, self.targets, dlogits)
        return dlogits

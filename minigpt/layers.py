"""The simple layers of a GPT, each with its forward and its backward pass.

x is (N, C): N = B * T rows, one for each token of each sequence, C channels.  `forward` saves the activations that `backward`
needs; `backward` takes dy, the derivative of the loss with respect to the output, returns dx and adds to the gradients of the
layer's parameters.  Both return arrays whose memory is reused: saved activations by the layer's next call, scratch buffers
already by the same layer of another block.
"""

from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

import numpy as np

from . import rng
from .kernels import elementwise, norms, softmax, sums
from .kernels.matmul import matmul


class Draw(NamedTuple):
    """The seed and step that address the random numbers of dropout; None in its place turns dropout off."""
    seed: int
    step: int


class Parameter:
    """A trainable array, `data`, and the gradient of the loss with respect to it, `grad`."""

    def __init__(self, shape: tuple[int, ...], std: float = 0.0, value: float = 0.0):
        self._data, self.frozen = np.full(shape, value, np.float32), None       # a FrozenMatrix in its place: see GPT.freeze
        self.shape, self.std = shape, std       # std: standard deviation of the initial values around `value`

    @property
    def data(self) -> np.ndarray:
        """The array; of a frozen matrix a read-only copy, made anew each time, and of one of integers a RuntimeError."""
        return self._data if self.frozen is None else self.frozen.data()

    @data.setter
    def data(self, data: np.ndarray):
        self._data = data

    def times(self, x: np.ndarray, out: np.ndarray, transposed: bool = False) -> np.ndarray:
        """out = x @ data or, transposed, x @ data.T (of a frozen matrix the one or the other).  Returns out."""
        return matmul(x, self.data.T if transposed else self.data, out) if self.frozen is None else self.frozen.times(x, out)

    def rows(self, ids: np.ndarray, out: np.ndarray) -> np.ndarray:
        """out (N, C) = the rows ids (N,) of a table (V, C), which is frozen, if at all, as its transpose.  Returns out."""
        return np.take(self.data, ids, axis=0, out=out, mode="clip") if self.frozen is None else self.frozen.rows(ids, out)

    @cached_property
    def grad(self) -> np.ndarray:
        """Allocated when it is first used: a model that only predicts needs no memory for it."""
        return np.zeros(self.data.shape, np.float32)

    def initialise(self, seed: int, name: str) -> None:
        """Add to the data uniform random numbers of standard deviation std: their bound is sqrt(3) * std."""
        if self.std:
            bound = np.float32(1.7320508075688772 * self.std)
            u = rng.uniform(seed, "initial " + name, 0, self.data.size).reshape(self.data.shape)
            self.data += bound * (u + u - np.float32(1))


class Layer:
    """What layers have in common: their buffers, and the parameters of the layers inside them."""

    def __init__(self):
        self._saved, self._scratch = {}, {}

    def saved(self, name: str, *shape: int) -> np.ndarray:
        """An uninitialised buffer for a saved activation, valid until the layer's next forward pass; it only ever grows."""
        return _buffer(self._saved, name, shape)

    def scratch(self, name: str, *shape: int) -> np.ndarray:
        """An uninitialised scratch buffer, for a result that the neighbouring layer consumes at once (see `share_buffers`)."""
        return _buffer(self._scratch, name, shape)

    def share_buffers(self, other: "Layer", saved: bool = False) -> None:
        """Use the scratch buffers of `other`, a layer of the same form.

        saved: share those of saved activations as well, which then are valid only until the next forward pass of either.
        """
        self._scratch = other._scratch
        if saved:
            self._saved = other._saved
        for (_, mine), (_, others) in zip(self.children(), other.children()):
            mine.share_buffers(others, saved)

    def children(self) -> Iterator[tuple[str, "Layer"]]:
        """(name, Layer) of each layer inside this one, in order of creation.  Those named _... have no parameters."""
        for name, value in vars(self).items():
            if isinstance(value, Layer):
                yield name, value
            elif isinstance(value, list):
                yield from ((f"{name}.{i}", layer) for i, layer in enumerate(value))

    def parameters(self, prefix: str = "") -> dict[str, Parameter]:
        """Name -> Parameter, of this layer and the layers inside it, in order of creation."""
        found = {prefix + name: value for name, value in vars(self).items() if isinstance(value, Parameter)}
        for name, layer in self.children():
            if not name.startswith("_"):
                found.update(layer.parameters(f"{prefix}{name}."))
        return found


def _buffer(buffers, name, shape):
    size = 1                    # np.prod takes 5 us
    for length in shape:
        size *= length
    if name not in buffers or buffers[name].size < size:
        buffers[name] = np.empty(size, np.float32)
    return buffers[name][:size].reshape(shape)


def _check(name, x, columns):
    """Refuse what a kernel would misread: it computes addresses as if x were contiguous float32 of shape (N, columns)."""
    if x.dtype != np.float32 or x.ndim != 2 or x.shape[1] != columns or not x.flags.c_contiguous:
        raise ValueError(f"{name} must be contiguous float32 of shape (N, {columns}), but is {x.dtype} of shape {x.shape} "
                         f"and strides {x.strides}")


class Linear(Layer):
    """y = x W + b, with W (n_in, n_out) and b (n_out,) or no b."""

    def __init__(self, n_in: int, n_out: int, bias: bool, std: float):
        super().__init__()
        self.weight = Parameter((n_in, n_out), std)
        self.bias = Parameter((n_out,)) if bias else None

    def forward(self, x: np.ndarray, scratch: bool = False, out: np.ndarray | None = None) -> np.ndarray:
        """y (N, n_out) of x (N, n_in); in `out`, if given, or in a scratch buffer if no other layer's backward pass needs y."""
        self.x = x
        buffer = self.scratch if scratch else self.saved
        y = self.weight.times(x, buffer("y", len(x), self.weight.shape[1]) if out is None else out)
        if self.bias:
            y += self.bias.data
        return y

    # dL/dx[n,i] = sum_j dy[n,j] W[i,j],  dL/dW[i,j] = sum_n x[n,i] dy[n,j],  dL/db[j] = sum_n dy[n,j]
    def backward(self, dy: np.ndarray, dx: np.ndarray | None = None) -> np.ndarray:
        """dx = dy W^T (N, n_in), added to `dx` if one is given."""
        _check("dy", dy, self.weight.data.shape[1])
        matmul(self.x.T, dy, self.weight.grad, accumulate=True)
        if self.bias:
            sums.add_column_sums(dy, self.bias.grad)
        out = self.scratch("dx", *self.x.shape) if dx is None else dx
        return matmul(dy, self.weight.data.T, out, accumulate=dx is not None)


class LayerNorm(Layer):
    """Each row normalised to mean 0 and variance 1, times gain, plus bias (or no bias).  Derived in kernels/norms.py."""

    def __init__(self, n: int, bias: bool, epsilon: float = 1e-5):
        super().__init__()
        self.epsilon = np.float32(epsilon)
        self.gain = Parameter((n,), value=1.0)
        self.bias = Parameter((n,)) if bias else None
        self._zeros = np.zeros(n, np.float32)       # where there is no bias

    def forward(self, x: np.ndarray) -> np.ndarray:
        _check("x", x, len(self.gain.data))
        self.x, self.mean, self.rstd = x, self.saved("mean", len(x)), self.saved("rstd", len(x))
        y = self.saved("y", *x.shape)
        bias = self.bias.data if self.bias else self._zeros
        norms.layer_norm_forward(x, self.gain.data, bias, self.epsilon, y, self.mean, self.rstd)
        return y

    def backward(self, dy: np.ndarray) -> np.ndarray:
        _check("dy", dy, len(self.gain.data))
        dx, dbias = self.scratch("dx", *dy.shape), self.bias.grad if self.bias else np.zeros(dy.shape[1], np.float32)
        norms.layer_norm_backward(dy, self.x, self.gain.data, self.mean, self.rstd, dx, self.gain.grad, dbias)
        return dx


class RMSNorm(Layer):
    """Each row divided by its root mean square, times gain.  Derived in kernels/norms.py."""

    def __init__(self, n: int, epsilon: float = 1e-5):
        super().__init__()
        self.epsilon = np.float32(epsilon)
        self.gain = Parameter((n,), value=1.0)

    def forward(self, x: np.ndarray) -> np.ndarray:
        _check("x", x, len(self.gain.data))
        self.x, self.rstd = x, self.saved("rstd", len(x))
        y = self.saved("y", *x.shape)
        norms.rms_norm_forward(x, self.gain.data, self.epsilon, y, self.rstd)
        return y

    def backward(self, dy: np.ndarray) -> np.ndarray:
        _check("dy", dy, len(self.gain.data))
        dx = self.scratch("dx", *dy.shape)
        norms.rms_norm_backward(dy, self.x, self.gain.data, self.rstd, dx, self.gain.grad)
        return dx


class Embedding(Layer):
    """Row ids[n] of a table (n_rows, C), for each n."""

    def __init__(self, n_rows: int, n_embd: int, std: float):
        super().__init__()
        self.weight = Parameter((n_rows, n_embd), std)

    def forward(self, ids: np.ndarray) -> np.ndarray:
        self.ids = ids
        return self.weight.rows(ids, self.saved("y", len(ids), self.weight.shape[1]))

    # A row was copied to every n with ids[n] = row, so its gradient is the sum of their derivatives.
    def backward(self, dy: np.ndarray) -> None:
        _check("dy", dy, self.weight.data.shape[1])
        sums.add_rows_at(dy, self.ids, self.weight.grad)


class Dropout(Layer):
    """Training: each element is 0 with probability p, else divided by 1 - p, which preserves its mean.

    `purpose` names its random numbers (see rng.py).  [Srivastava et al. 2014]
    """

    def __init__(self, p: float, purpose: str):
        super().__init__()
        self.p, self.purpose = p, purpose
        self.scale = np.float32(1) / np.float32(1 - p)

    def forward(self, x: np.ndarray, draw: Draw | None) -> np.ndarray:
        self.keep = None
        if draw is None or self.p == 0:
            return x
        self.keep = rng.keep(draw.seed, self.purpose, draw.step, x.size, self.p)
        return self._apply(x, "y")

    # y = mask * x with a constant mask:  dx = mask * dy.
    def backward(self, dy: np.ndarray) -> np.ndarray:
        return dy if self.keep is None else self._apply(dy, "dx")

    def _apply(self, x, name):
        y = self.scratch(name, *x.shape)
        elementwise.apply_mask(x.reshape(-1), self.keep, self.scale, y.reshape(-1))
        return y


class TiedHead(Layer):
    """logits = x E^T, with the token embedding E (V, C) as its weight."""

    def __init__(self, embedding: Embedding):
        super().__init__()
        self._embedding = embedding

    def forward(self, x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """logits (N, V) of x (N, C); in `out`, if given."""
        self.x, weight = x, self._embedding.weight
        return weight.times(x, self.saved("y", len(x), weight.shape[0]) if out is None else out, transposed=True)

    # As for Linear, with W = E^T.
    def backward(self, dy: np.ndarray) -> np.ndarray:
        matmul(dy.T, self.x, self._embedding.weight.grad, accumulate=True)
        return matmul(dy, self._embedding.weight.data, self.scratch("dx", *self.x.shape))


class CrossEntropy(Layer):
    """The mean over all rows of -log softmax(logits)[target], in nats."""

    def forward(self, logits: np.ndarray, targets: np.ndarray) -> float:
        """The loss of targets (N,) int64 given logits (N, V); `losses` (N,) holds that of each row."""
        if targets.shape != logits.shape[:1]:
            raise ValueError(f"logits {logits.shape} need as many targets as rows, but those have shape {targets.shape}")
        self.targets = targets
        self.losses, self.probabilities = self.saved("losses", len(logits)), self.saved("p", *logits.shape)
        softmax.cross_entropy_forward(logits, targets, self.probabilities, self.losses)
        total = np.zeros(1, np.float32)
        sums.add_column_sums(self.losses.reshape(-1, 1), total)
        return float(total[0] / np.float32(len(logits)))

    def backward(self, rows: int | None = None) -> np.ndarray:
        """dlogits (N, V) of the mean over `rows` rows, of which the N may be a part; by default over the N."""
        dloss = np.float32(1) / np.float32(rows or len(self.targets))
        dlogits = self.scratch("dlogits", *self.probabilities.shape)
        softmax.cross_entropy_backward(dloss, self.probabilities, self.targets, dlogits)
        return dlogits

"""13. Attention is a nonlinear, time-varying vector autoregression.

With x_j the normalised input at position j, W_h = Wv_h Wo_h (C, C) for head h, and A_h(x) the softmax of the scores (T, T),
    out_i = sum_h sum_j<=i  A_h,ij(x)  x_j W_h  (+ a constant where there are biases):
an autoregression of a vector on its past, whose coefficients the window itself sets.  Here A is read from a trained model, the
sum compared with the layer, and A then frozen at its mean over other windows: what is left is linear, with constant
coefficients.
"""

import numpy as np

from minigpt.layers import CrossEntropy
from minigpt.model import GPT

from .material import bundled, table, text

BITS = np.log2(np.e)


def coefficients(attention, T: int) -> np.ndarray:
    """A (H, T, T), float64, of the single window that last went through the layer: row i weights the positions j <= i."""
    q, k = (np.asarray(y, np.float64).reshape(T, -1, attention.head_size).transpose(1, 0, 2)
            for y in (attention.q, attention.k))
    k = np.repeat(k, len(q) // len(k), axis=0)
    scores = np.where(np.tri(T, dtype=bool), attention.scale * q @ k.transpose(0, 2, 1), -np.inf)
    A = np.exp(scores - scores.max(-1, keepdims=True))
    return A / A.sum(-1, keepdims=True)


def autoregression(attention, A: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The sum above (T, C) for x (T, C), in float64."""
    D, out = attention.head_size, 0.0
    values, weight = attention.value, attention.projection.weight.data.astype(np.float64)
    group = len(A) * D // values.weight.shape[1]                # heads that share a value head
    for h in range(len(A)):
        of_values = slice(h // group * D, h // group * D + D)
        constant = 0 if values.bias is None else values.bias.data[of_values]
        v = x @ values.weight.data[:, of_values].astype(np.float64) + constant
        out = out + A[h] @ v @ weight[h * D:h * D + D]
    return out + (0 if attention.projection.bias is None else attention.projection.bias.data)


def forward(model: GPT, ids: np.ndarray, frozen: dict[int, np.ndarray], seen=None) -> np.ndarray:
    """Logits (T, V) of one window ids (T,) of a pre-norm model, where the layers in `frozen` use those coefficients.

    seen(layer, attention, x, out) is called with each other layer's input and output.
    """
    T, x = len(ids), model.tokens.forward(ids).copy()
    for layer, block in enumerate(model.blocks):
        attention, normed = block.attention.sublayer, block.attention.norm.forward(x)
        if layer in frozen:
            out = autoregression(attention, frozen[layer][:, :T, :T], normed).astype(np.float32)
        else:
            out = attention.forward(normed, T)
            if seen:
                seen(layer, attention, normed, out)
        x = block.feed_forward.forward(x + out, None, block.feed_forward.sublayer.forward)
    return model.head.forward(model.norm.forward(x))


def run(data=None, count: int = 24, learned: int = 48) -> np.ndarray:
    """Returns the coefficients (n_layer, 64, 64) for the first 64 held-out bytes: the mean of A over the heads."""
    seen, held_out = text(data, least=count * 256 + 1)
    model = bundled().members[0]
    T, layers, heads = model.config.block_size, model.config.n_layer, model.config.n_head
    means, squares, errors, sizes = (np.zeros((layers, heads, T, T)), np.zeros(layers), np.zeros(layers), np.zeros(layers))

    def look(layer, attention, x, out):
        A = coefficients(attention, T)
        means[layer] += A / learned
        squares[layer] += (A ** 2).sum() / learned
        errors[layer] = max(errors[layer], np.abs(autoregression(attention, A, x.astype(np.float64)) - out).max())
        sizes[layer] = max(sizes[layer], np.abs(out).max())
    for i in range(learned):
        forward(model, np.frombuffer(seen, np.uint8, T, i * (len(seen) // learned)).astype(np.int64), {}, look)
    if (errors > 1e-4 * sizes).any():
        raise RuntimeError(f"the sum is not the layer's output: it is off by {errors}")

    loss = CrossEntropy()

    def bits(frozen):
        total = 0.0
        for i in range(count):
            window = np.frombuffer(held_out, np.uint8, T + 1, i * T).astype(np.int64)
            total += loss.forward(forward(model, window[:-1], frozen), window[1:])
        return BITS * total / count
    whole, rows = bits({}), []
    for layer in range(layers):
        constant, frozen = (means[layer] ** 2).sum() / squares[layer], bits({layer: means[layer]})
        rows.append((f"block {layer + 1}", "yes" if errors[layer] <= 1e-5 * sizes[layer] else "to 4 digits", f"{constant:.2f}",
                     f"{frozen:.3f}", f"{frozen - whole:+.3f}"))
    everything = bits(dict(enumerate(means)))
    rows += [("all blocks", "-", "-", f"{everything:.3f}", f"{everything - whole:+.3f}"),
             ("none", "-", "-", f"{whole:.3f}", "+0.000")]
    table(("coefficients frozen in", "sum = layer, to 5 digits", "mean's share of A^2", "bits per byte", "more"), *rows)
    print(f"""
The first of the bundled model's three GPTs, {count * T:,} held-out bytes; means over {learned} windows of text it knew.
It shows that the sum is the layer, and what is lost where its coefficients no longer depend on the text: that is the
nonlinear part. It does not show what a model trained with constant coefficients could do (this one was not made for it), nor
causes: a coefficient says how a state enters a sum, not that the letter mattered. The input x_j is a state, not a letter, and
nonlinear in the text itself from the second block on.""")
    pictures = []
    forward(model, np.frombuffer(held_out, np.uint8, 64).astype(np.int64), {},
            lambda layer, attention, x, out: pictures.append(coefficients(attention, 64).mean(0)))
    return np.array(pictures)


def plot(figure, results) -> None:
    figure.suptitle("Coefficients, mean of the heads: the first 64 held-out bytes")
    for layer, (A, axes) in enumerate(zip(results, figure.subplots(2, (len(results) + 1) // 2).flat)):
        axes.imshow(np.sqrt(A), cmap="magma")
        axes.set_title(f"block {layer + 1}", fontsize=8)

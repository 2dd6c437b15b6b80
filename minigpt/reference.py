"""The whole GPT in plain NumPy, forward and backward: the specification that the fast network equals in every bit.

    python -m minigpt.reference [FILE]      train a very small GPT on a text, within a minute, and let it write

Read this file first.  It holds the complete algorithm (network, gradients, optimisers, sampling); all else in this package
is efficiency.  Every operation stands in the order that the arithmetic contract prescribes, so what is computed here is not
close to what `model.py`, `optimizer.py` and `sampling.py` compute: it is the same, to the last bit, for every option.

Letters: B batch, T time, N = B * T rows, C channels, H heads (Hkv of keys and values), D = C / H, V vocabulary.  x is (N, C):
a row for each token.  `w` maps the names of the parameters to float32 arrays, `g` to their gradients.  A layer returns its
output and the function `backward`, which takes dy, the derivative of the loss with respect to that output, adds to `g`, and
returns dx.
"""

import sys
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np

from .config import GPTConfig, OptimizerConfig
from .exact import (Quantised, add_rows, exp, f32, fma, integers, keep, log, matmul, maximum, power, rotary_tables, row_dot,
                    row_max, row_sum, sum_of_squares, uniform, weigh, words)


# --- linear layers and embeddings -----------------------------------------------------------------------------------------

def linear(x, w, g, name):
    """y = x W + b: (N, n_in) -> (N, n_out)."""
    weight, bias = f"{name}.weight", f"{name}.bias"
    y = matmul(x, w[weight])
    if bias in w:
        y = y + w[bias]

    # y[n,j] = sum_i x[n,i] W[i,j] + b[j], so with dy[n,j] = dL/dy[n,j] the chain rule gives
    #   dL/dx[n,i] = sum_j dy[n,j] W[i,j],   dL/dW[i,j] = sum_n x[n,i] dy[n,j],   dL/db[j] = sum_n dy[n,j]
    def backward(dy, dx=f32(0)):                # dx: what other layers that read the same x have contributed already
        g[weight] = matmul(x.T, dy, g[weight])
        if bias in w:
            g[bias] = add_rows(dy, g[bias])
        return matmul(dy, w[weight].T, dx)
    return y, backward


def tied_head(x, w, g):
    """logits = x E^T with the embedding E (V, C).  The table is used twice: two gradients, here and in `embedding`, add up."""
    def backward(dy):                                               # as in `linear`, with W = E^T
        g["tokens.weight"] = matmul(dy.T, x, g["tokens.weight"])
        return matmul(dy, w["tokens.weight"])
    return matmul(x, w["tokens.weight"].T), backward


def embedding(ids, w, g, name):
    """Row ids[n] of the table: (N,) -> (N, C)."""
    # The row was copied to every n with ids[n] = row, so there the derivatives add up.  Of learned positions, whose ids are
    # 0 .. T-1 for each sequence, that is a sum over the batch.
    def backward(dy):
        g[f"{name}.weight"] = add_rows(dy, g[f"{name}.weight"], ids)
    return w[f"{name}.weight"][ids], backward


# --- norms ------------------------------------------------------------------------------------------------------------------

def norm(x, w, g, name, kind, epsilon=1e-5):
    """layer: each row to mean 0 and variance 1, times gain, plus bias [Ba et al. 2016].
    rms: each row over its root mean square, times gain [Zhang and Sennrich 2019]."""
    gain, bias, C = w[f"{name}.gain"], w.get(f"{name}.bias", f32(0)), f32(x.shape[-1])
    mean = row_sum(x) / C if kind == "layer" else f32(0)                        # (N, 1)
    centred = x - mean
    rstd = f32(1) / np.sqrt(row_dot(centred, centred) / C + f32(epsilon))         # (N, 1): one over the standard deviation
    n = centred * rstd
    y = fma(n, gain, bias) if kind == "layer" else n * gain

    # With h = dy * gain = dL/dn, and n_i = (x_i - mean) * rstd, where
    #   dmean/dx_j = 1/C,   drstd/dx_j = -rstd^3 * (x_j - mean) / C = -rstd^2 * n_j / C:
    #   dn_i/dx_j = rstd * (i == j)  -  rstd / C  -  (x_i - mean) * rstd^2 * n_j / C
    #             = rstd * ((i == j) - 1/C - n_i * n_j / C)
    #   dx_j = sum_i h_i * dn_i/dx_j = rstd * (h_j - mean(h) - n_j * mean(h * n))
    # Without a mean (rms) the term of dmean is missing.  dgain = sum over the rows of dy * n, dbias of dy.
    def backward(dy):
        h = dy * gain
        mean_h = row_sum(h) / C if kind == "layer" else f32(0)
        for row, n_row in zip(dy, n):
            g[f"{name}.gain"] = fma(row, n_row, g[f"{name}.gain"])
        if f"{name}.bias" in w:
            g[f"{name}.bias"] = add_rows(dy, g[f"{name}.bias"])
        return rstd * fma(n, -(row_dot(h, n) / C), h - mean_h)
    return y, backward


# --- attention --------------------------------------------------------------------------------------------------------------

def softmax_parts(x):
    """(e^(x - peak), peak, total) of each row of x (..., n).  The peak cancels in the quotient; without it exp overflows."""
    e = exp(x - (peak := row_max(x)))
    return e, peak, row_sum(e)


def attend(q, k, v, quantised=False):
    """softmax(q k^T / sqrt(D), over the row's own and earlier positions) v, for each head.  k and v are (B, Hkv, T, D);
    q (B, H, t, D) stands at the last t of their positions, in training at all of them.  Each head of k and v serves a group of
    G = H / Hkv heads of q [Ainslie et al. 2023]: one after the other, their rows are so many more queries, G * t of them."""
    shape, (B, Hkv, T, D) = q.shape, k.shape
    G, t, scale = shape[1] // Hkv, shape[2], f32(1) / np.sqrt(f32(D))
    q, seen = q.reshape(B, Hkv, G * t, D), np.tile(np.tri(t, T, T - t, dtype=bool), (G, 1))
    scores = matmul(q, Quantised(k) if quantised else k.swapaxes(2, 3))                     # (B, Hkv, G * t, T)
    scores = np.where(seen, scores * scale, f32(-np.inf))
    e, peak, total = softmax_parts(scores)
    out = ((weigh if quantised else matmul)(e, v) + f32(0)) / total     # + 0: a zero's sign must not depend on the masked keys

    # out = P v with P = e / total, so dv = P^T dout and dP = dout v^T.  Of the softmax P_j = e^S_j / sum_m e^S_m, in a row,
    #   dP_j/dS_i = P_j * ((i == j) - P_i), hence dS_i = sum_j dP_j * dP_j/dS_i = P_i * (dP_i - sum_j P_j dP_j),
    # where sum_j P_j dP_j = sum_j P_j (dout . v_j) = dout . out needs no P.  And S = scale * q k^T, so
    #   dq = scale * dS k,   dk = scale * dS^T q,   where the rows of P, S, dout and q are those of the whole group
    def backward(dout):
        dout = dout.reshape(out.shape)
        P = exp(scores - peak) * (f32(1) / total)
        dP = matmul(dout, v.swapaxes(2, 3))
        dS = np.where(seen, P * (dP - row_dot(dout, out)) * scale, f32(0))
        return matmul(dS, k).reshape(shape), matmul(dS.swapaxes(2, 3), q), matmul(P.swapaxes(2, 3), dout)
    return out.reshape(shape), backward


def rotate(x, cosine, sine):
    """Channels i and i + D/2 of x (B, H, T, D) are a point of the plane, turned by the angle of its position.  So a query and
    a key meet at an angle that depends on their distance alone.  [Su et al. 2021]  The transpose of a rotation turns back."""
    a, b = np.split(x, 2, axis=3)
    return np.concatenate([a * cosine - b * sine, a * sine + b * cosine], axis=3)


def attention(x, config, w, g, name, T, start=0, past=None):
    """(N, C) -> (N, C): q, k and v are linear in x; q and k may be normalised, and rotated, head by head.  For generating,
    past[name] holds the keys and values of tokens before x, the first of which stands at position `start`."""
    D, parts = config.head_size, ("query", "key", "value")
    (q, q_back), (k, k_back), (v, v_back) = (linear(x, w, g, f"{name}.{part}") for part in parts)
    if config.qk_norm:
        (q, q_norm_back), (k, k_norm_back) = (norm(y.reshape(-1, D), w, g, f"{name}.{part}_norm", "rms", config.norm_epsilon)
                                              for y, part in zip((q, k), parts))
    q, k, v = (y.reshape(len(x) // T, T, -1, D).transpose(0, 2, 1, 3) for y in (q, k, v))   # (B, H, T, D), (B, Hkv, T, D)
    if config.position == "rotary":
        cosine, sine = (table[start:] for table in rotary_tables(start + T, D, config.rope_theta, config.rope_factors))
        q, k = rotate(q, cosine, sine), rotate(k, cosine, sine)
    if past is not None:
        if name in past:
            k, v = (np.concatenate(pair, axis=2) for pair in zip(past[name], (k, v)))
        past[name] = k, v
    out, attend_back = attend(q, k, v, isinstance(w[f"{name}.query.weight"], Quantised))
    y, projection_back = linear(out.transpose(0, 2, 1, 3).reshape(x.shape), w, g, f"{name}.projection")

    # The lines above from the last to the first.  x went into three projections, so dx is the sum of what they send back.
    def backward(dy):
        dq, dk, dv = attend_back(projection_back(dy).reshape(len(x) // T, T, -1, D).transpose(0, 2, 1, 3))
        if config.position == "rotary":
            dq, dk = rotate(dq, cosine, -sine), rotate(dk, cosine, -sine)
        dq, dk, dv = (d.transpose(0, 2, 1, 3).reshape(len(x), -1) for d in (dq, dk, dv))    # (N, C), (N, Hkv * D)
        if config.qk_norm:
            dq, dk = (back(d.reshape(-1, D)).reshape(d.shape) for d, back in ((dq, q_norm_back), (dk, k_norm_back)))
        return v_back(dv, k_back(dk, q_back(dq)))
    return y, backward


# --- the feed-forward layer, dropout, and the residual connection around both ------------------------------------------------

def activation(x, kind):
    """relu: max(x, 0).  relu2: its square [So et al. 2021].  gelu: 0.5 x (1 + tanh(u)), u = sqrt(2/pi) (x + 0.044715 x^3)
    [Hendrycks and Gimpel 2016], which is x * gate with gate = 1 / (1 + e^(-2u))."""
    if kind == "gelu":
        gate = f32(1) / (f32(1) + exp(x * fma(x * x, f32(0.044715), f32(1)) * f32(-1.5957691216057308)))
        # dgate/du = 2 gate (1 - gate),  2 du/dx = 2 sqrt(2/pi) (1 + 3 * 0.044715 x^2) = slope:
        #   d(x * gate)/dx = gate + x * gate * (1 - gate) * slope
        slope = fma(x * x, f32(3) * f32(0.044715), f32(1)) * f32(1.5957691216057308)
        return x * gate, lambda dy: dy * fma(x * gate * (f32(1) - gate), slope, gate)
    positive = maximum(x, f32(0))
    if kind == "relu":                                                          # slope 1 above 0, and 0 below
        return positive, lambda dy: np.where(x > 0, dy, f32(0))
    return positive * positive, lambda dy: (positive + positive) * dy           # d(p^2) = 2 p dp


def gated(z, x):
    """silu(z) * x, where z opens or closes the gate for x [Shazeer 2020]; silu(z) = z s with s = 1 / (1 + e^-z)."""
    s = f32(1) / (f32(1) + exp(-z))
    # ds/dz = s (1 - s), so silu'(z) = s + z s (1 - s):   dz = dy * x * silu'(z),   dx = dy * silu(z)
    return z * s * x, lambda dy: (dy * x * fma(z * s, f32(1) - s, s), dy * (z * s))


def feed_forward(x, config, w, g, name):
    """y = act(x W1) W2, or with SwiGLU (silu(x Wg) * (x W1)) W2: (N, C) -> (N, n_hidden) -> (N, C)."""
    if config.activation == "swiglu":
        gate, gate_back = linear(x, w, g, f"{name}.gate")
    hidden, expand_back = linear(x, w, g, f"{name}.expand")
    active, activation_back = gated(gate, hidden) if config.activation == "swiglu" else activation(hidden, config.activation)
    y, contract_back = linear(active, w, g, f"{name}.contract")

    # dx = (act'(x W1) * dy W2^T) W1^T; x that went into two matrices gets the sum of what both send back.
    def backward(dy):
        dhidden = activation_back(contract_back(dy))
        if config.activation == "swiglu":
            dgate, dhidden = dhidden
            return expand_back(dhidden, gate_back(dgate))
        return expand_back(dhidden)
    return y, backward


def dropout(x, p, purpose, draw):
    """In training each element is 0 with probability p, else divided by 1 - p, so that its mean stays [Srivastava 2014].
    draw: (seed, step), or None: nothing is dropped.  The mask is a constant factor, so backward is the same product."""
    if draw is None or p == 0:
        return x, lambda dy: dy
    mask, scale = keep(draw[0], purpose, draw[1], x.size, p).reshape(x.shape), f32(1) / f32(1 - p)
    return np.where(mask, scale * x, f32(0)), lambda dy: np.where(mask, scale * dy, f32(0))


def residual(x, config, w, g, name, sublayer, draw):
    """Norm first: x + f(norm(x)).  Norm last, as first published: norm(x + f(x))."""
    first = config.norm_order == "first"
    inner, norm_back = norm(x, w, g, f"{name}.norm", config.norm, config.norm_epsilon) if first else (x, None)
    y, sublayer_back = sublayer(inner, config, w, g, name)
    y, dropout_back = dropout(y, config.dropout, f"dropout {name}", draw)
    y = x + y
    if not first:
        y, norm_back = norm(y, w, g, f"{name}.norm", config.norm, config.norm_epsilon)

    # y = x + f(x) with the Jacobian J of f:  dx = dy + J^T dy.  The gradient has a way around every sublayer.
    def backward(dy):
        if not first:
            dy = norm_back(dy)
        dx = sublayer_back(dropout_back(dy))
        return (norm_back(dx) if first else dx) + dy
    return y, backward


# --- the network ------------------------------------------------------------------------------------------------------------

def parameters(config):
    """(name, shape, standard deviation of the initial values, mean) of every parameter, in order."""
    C, std, kv = config.n_embd, 0.5 / np.sqrt(config.n_embd), config.kv_heads * config.head_size

    def linear(name, n_in, n_out, std, bias=config.bias):
        return [(f"{name}.weight", (n_in, n_out), std, 0)] + [(f"{name}.bias", (n_out,), 0, 0)] * bias

    def std_out(n_in):
        return 0.5 / (np.sqrt(n_in) * np.sqrt(config.n_layer))

    def norm(name, n=C, kind=config.norm):
        return [(f"{name}.gain", (n,), 0, 1)] + [(f"{name}.bias", (n,), 0, 0)] * (config.bias and kind == "layer")

    yield "tokens.weight", (config.vocab_size, C), 0.02 if config.tied else 0.5, 0
    if config.position == "learned":
        yield "positions.weight", (config.block_size, C), 0.02 if config.tied else 0.1, 0
    for i in range(config.n_layer):
        name = f"blocks.{i}.attention"
        yield from norm(f"{name}.norm")
        yield from (p for part, n_out in (("query", C), ("key", kv), ("value", kv))
                    for p in linear(f"{name}.{part}", C, n_out, std, config.bias or config.qkv_bias))
        if config.qk_norm:
            yield from (p for part in ("query", "key") for p in norm(f"{name}.{part}_norm", config.head_size, "rms"))
        yield from linear(f"{name}.projection", C, C, std_out(C))
        name = f"blocks.{i}.feed_forward"
        yield from norm(f"{name}.norm")
        if config.activation == "swiglu":
            yield from linear(f"{name}.gate", C, config.hidden, std)
        yield from linear(f"{name}.expand", C, config.hidden, std)
        yield from linear(f"{name}.contract", config.hidden, C, std_out(config.hidden))
    if config.norm_order != "last":
        yield from norm("norm")
    if not config.tied:
        yield from linear("head", C, config.vocab_size, 0.02, config.head_bias)


def initial_weights(config, seed):
    """name -> float32 array: uniform random numbers of the standard deviation asked for; their bound is sqrt(3) times that."""
    w = {}
    for name, shape, std, mean in parameters(config):
        w[name] = np.full(shape, mean, f32)
        if std:
            u = uniform(seed, f"initial {name}", 0, w[name].size).reshape(shape)
            w[name] += f32(1.7320508075688772 * std) * (u + u - f32(1))
    return w


def quantise(config, w):
    """The weights of a network that only predicts, in integers (see exact.py): all matrices but tables, which are looked up."""
    tables = ("positions.weight",) if config.tied else ("positions.weight", "tokens.weight")
    return {name: array if array.ndim == 1 or name in tables else Quantised(array if name == "tokens.weight" else array.T)
            for name, array in w.items()}


def forward(config, w, ids, draw=None, g=None, past=None):
    """logits (B * T, V) of the windows ids (B, T), and `backward`, which takes their derivative and fills g.  For generating,
    past ({} at first) remembers the keys and values, so that ids are only the tokens that have come since; and, as "position",
    how many came before, be they still remembered or not (see `drop`)."""
    (B, T), start = ids.shape, past.get("position", 0) if past else 0
    x, tokens_back = embedding(ids.reshape(-1), w, g, "tokens")                             # (N, C)
    if config.position == "learned":
        positions, positions_back = embedding(np.tile(np.arange(start, start + T), B), w, g, "positions")
        x = x + positions
    x, back = dropout(x, config.dropout, "dropout embedding", draw)
    backs = [back]
    for i in range(config.n_layer):
        for part, sublayer in ("attention", partial(attention, T=T, start=start, past=past)), ("feed_forward", feed_forward):
            x, back = residual(x, config, w, g, f"blocks.{i}.{part}", sublayer, draw)
            backs.append(back)
    if config.norm_order != "last":
        x, back = norm(x, w, g, "norm", config.norm, config.norm_epsilon)
        backs.append(back)
    logits, back = tied_head(x, w, g) if config.tied else linear(x, w, g, "head")           # (N, V)
    backs.append(back)
    if past is not None:
        past["position"] = start + T

    def backward(dx):
        for back in reversed(backs):
            dx = back(dx)
        if config.position == "learned":
            positions_back(dx)                                      # of a sum, both parts get the same derivative
        tokens_back(dx)
    return logits, backward


def drop(past, count):
    """Forget the oldest `count` tokens: those that come attend to the others, which keep their positions."""
    for name, (k, v) in [item for item in past.items() if item[0] != "position"]:
        past[name] = k[:, :, count:], v[:, :, count:]


def loss_and_gradients(config, w, ids, targets, draw=None):
    """Mean cross-entropy in nats per token of targets (B, T), and name -> gradient."""
    g = {name: np.zeros_like(array) for name, array in w.items()}
    logits, backward = forward(config, w, ids, draw, g)
    e, peak, total = softmax_parts(logits)
    rows, targets = np.arange(len(logits)), targets.reshape(-1)
    losses = log(total)[:, 0] - (logits[rows, targets] - peak[:, 0])            # -log(e^(logit - peak) / total)
    loss = add_rows(losses, np.zeros(1, f32))[0] / f32(len(logits))

    # loss = log(sum_j e^logit_j) - logit_target, so dloss/dlogit_i = softmax_i - (i == target)
    hot = np.zeros_like(logits)
    hot[rows, targets] = 1
    backward(f32(1) / f32(len(logits)) * (e / total - hot))
    return float(loss), g


# --- the optimisers: AdamW [Loshchilov and Hutter 2019] and Muon [Jordan et al. 2024] ------------------------------------

def optimizer_step(config, w, g, state, step, steps):
    """Change w by step number 0 .. steps - 1.  state: name -> array, {} at first; the moment estimates."""
    total = f32(0)
    for gradient in g.values():
        total = total + sum_of_squares(gradient)
    length = float(np.sqrt(total))
    clip = config.clip / length if 0 < config.clip < length else 1.0
    rise = (step + 1) / config.warmup if step < config.warmup else 1.0                      # the learning-rate schedule
    falling = config.cooldown * steps
    share = min(rise, (steps - step) / falling if steps - step < falling else 1.0)
    for name, gradient in g.items():
        mean = state.setdefault(f"mean.{name}", np.zeros_like(gradient))
        if config.optimizer == "muon" and name.startswith("blocks.") and gradient.ndim == 2:
            rate, (n_in, n_out) = config.muon_rate * share, gradient.shape
            gradient = f32(1 - config.momentum) * (f32(clip) * gradient)
            mean[...] = f32(config.momentum) * mean + gradient
            direction = orthogonalise(gradient + f32(config.momentum) * mean)               # Nesterov's momentum
            direction *= f32(rate) * np.sqrt(f32(max(1.0, n_out / n_in)))
            w[name] = f32(1 - rate * config.weight_decay) * w[name] - direction
            continue
        # The moving averages begin at 0, so that after t steps they hold 1 - beta^t of all weight: they are divided by that.
        square, rate = state.setdefault(f"square.{name}", np.zeros_like(gradient)), config.learning_rate * share
        correction1, correction2 = (f32(1 / (1 - power(beta, step + 1))) for beta in (config.beta1, config.beta2))
        beta1, beta2 = f32(config.beta1), f32(config.beta2)
        gradient = f32(clip) * gradient
        mean[...] = beta1 * mean + (f32(1) - beta1) * gradient
        square[...] = beta2 * square + (f32(1) - beta2) * (gradient * gradient)
        update = mean * correction1 / (np.sqrt(square * correction2) + f32(1e-8))
        decay = f32(1 - rate * config.weight_decay) if gradient.ndim == 2 else f32(1)
        w[name] = decay * w[name] - f32(rate) * update


def orthogonalise(matrix):
    """X <- a X + b (X X^T) X + c (X X^T)^2 X.  With the singular value decomposition X = U S V^T, X X^T = U S^2 U^T, so U and
    V stay and each singular value s becomes a s + b s^3 + c s^5: from anywhere in (0, 1] it is near 1 after five rounds."""
    tall = len(matrix) > matrix.shape[1]
    x = np.ascontiguousarray(matrix.T if tall else matrix)
    x = x / (np.sqrt(sum_of_squares(x)) + f32(1e-7))                # the root is at least the largest singular value
    for _ in range(5):
        square = matmul(x, x.T)
        square = f32(-4.7750) * square + f32(2.0315) * matmul(square, square)
        x = matmul(square, x, f32(3.4445) * x)
    return x.T if tall else x


# --- training and sampling ------------------------------------------------------------------------------------------------

def train(config, optimizer, ids, steps, batch_size, seed):
    """Yield (loss, w) after each step on `batch_size` random windows of ids (n,)."""
    w, state, T = initial_weights(config, seed), {}, config.block_size
    for step in range(steps):
        starts = integers(seed, "batch", step, batch_size, len(ids) - T)
        windows = ids[starts[:, None] + np.arange(T + 1)]
        loss, g = loss_and_gradients(config, w, windows[:, :-1], windows[:, 1:], (seed, step))
        optimizer_step(optimizer, w, g, state, step, steps)
        yield loss, w


def generate(config, w, ids, temperature=1.0, top_k=0, top_p=1.0, seed=0):
    """Token ids that follow ids, without end: each drawn from softmax(logits / temperature), of the top_k likeliest (0: all)
    and of the fewest that together have the share top_p.  Integers of 24 bits stand for the probabilities."""
    window, new, past, count = list(ids[-config.block_size:]), list(ids[-config.block_size:]), {}, 0
    while True:
        logits = forward(config, w, np.array([new]), past=past)[0][-1]
        token = int(np.argmax(logits))
        if temperature > 0:
            e, _, _ = softmax_parts((logits - logits.max()) * f32(1 / temperature))
            counts = (e * f32(2 ** 24)).astype(np.int64)
            order = np.argsort(-counts, kind="stable")[:top_k or None]
            cumulative = np.cumsum(counts[order])
            if top_p < 1:
                cumulative = cumulative[:np.searchsorted(cumulative, int(top_p * int(cumulative[-1]))) + 1]
            high, low = words(seed, "sampling", count, 2).tolist()
            token = int(order[np.searchsorted(cumulative, (high << 32 | low) % int(cumulative[-1]), side="right")])
        yield token
        window, new = window + [token], [token]
        if len(window) > config.block_size:                         # full: its second half is the next one's context
            window = new = window[-max(1, config.block_size // 2):]
            past = {}
        count += 1


def main():
    """Train on a text, or else on this file itself, and write a few lines in its style."""
    text = np.frombuffer(Path(sys.argv[1] if len(sys.argv) > 1 else __file__).read_bytes(), np.uint8)
    config, optimizer, steps = GPTConfig(block_size=32, n_layer=1, n_head=2, n_embd=32), OptimizerConfig(warmup=10), 150
    for step, (loss, w) in enumerate(train(config, optimizer, text, steps, batch_size=4, seed=1), 1):
        if step % 10 == 1 or step == steps:
            print(f"step {step:4}   loss {loss:.3f} nats per byte", flush=True)
    for token in islice(generate(config, w, [10], temperature=0.8, seed=1), 200):
        print(bytes([token]).decode("latin-1"), end="", flush=True)
    print()


if __name__ == "__main__":
    main()

"""python -m minigpt verify: does this machine compute the published bits?

Everything that the promise covers is computed from integers and hashed: each kernel by itself, then random numbers and
tables, then whole models as they train and write.  A line stands on the lines above it; so where bits differ, the first
line that differs names the place.

Every kernel is also given what floating point has besides ordinary numbers: zeros of both signs, subnormal numbers, the
largest number, infinities and NaN.  That a result is NaN is part of the promise; which NaN (its sign and payload) is
not, because processors do differ there, and the hash takes all of them as one.
"""

import hashlib
import json
import platform
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numba
import numpy as np
from llvmlite import binding
from numba import njit
from numba.core.registry import cpu_target

from . import rng
from .checkpoint import fingerprint
from .exact import rotary_tables
from .incremental import WIDE
from .kernels import activations, attention, elementwise, norms, rotary, softmax, sums
from .kernels.lanes import exp, fma, lane_sum, load, log, splat, sqrt, store
from .kernels.matmul import matmul
from .kernels.muon import orthogonalise
from .kernels.quantised import matmul_quantised, quantise
from .kernels.quantised_attention import hold_integers
from .kernels.threads import check_arithmetic, get_num_threads
from .layers import Draw
from .model import GPT, GPTConfig
from .optimizer import Optimizer, OptimizerConfig
from .sampling import generate
from .shards import Alone, Shards

# Written down when x86-64 (compiled for generic, nehalem, haswell, skylake-avx512 and the machine itself) and aarch64
# agreed on them.  A change here is a new order of operations: every model and every compressed file is affected.
EXPECTED = {
    "random integers": "b8de4b8d2d30242153c8496010169ac1f27c7fe347e00c94db0bc4881087f8d8",
    "x + y": "fe6c286692f8b8a82829d1307b4b4daad4f7638991c1a4a89f8dcafad49bf6bf",
    "x - y": "27b584e84e2ca04da1e835afde01e1a4c1c0a5e44b8f042c0ddd39b17993ea25",
    "x * y": "421916c82035d76ab8c2c903f2df65eac0a964d1355003dcd4ff62d51109e631",
    "x / y": "342b6bc9848ac983194e62e9ebee33d8534e26d3d09feccd347f56ad2a7e16b0",
    "square root": "78e429934b64959c60dccf670215cfb0d4f4d50af892e47c69560bbaca083367",
    "fma": "4028b0fb67b9db63b8f82d7a771e27a087b94d20d86238d31945fe0e4f223abd",
    "exp": "2246ba69c0d5993275a1118160467dbd2f68ca6d7c19ab4c60ba86dbabd9dd57",
    "log": "e8f6c87a97c3f3b3301a0f2fb1c1eb8abd254b38f92fc4a74387f69f749d035c",
    "sum of lanes": "f507ce8bb02862a9c62832c969a4e4b4110317ace3658e688b90d5f44e555dd4",
    "sum of squares": "c9e02bebe08f6ed8bfddeb9802f2631251d3c99b152b23356e8058966481e645",
    "matmul: x W": "d82225ef7933046fd520e1acbe32c7504e56e8875b47a878b09b7eb60079b60f",
    "matmul: dy W^T": "1ff1974d745780fe7afc14da2e7ce5974a776502efe9ea8f1a39b699a19e65f0",
    "matmul: += x^T dy": "b27a9678647cec29fab8c72c46f6b3ea672054e12c011f5f543cb2d1a3b98ca6",
    "product of integers": "f14bd5d6a1b255f31d07bdfde94e20dd7810e783416ab19ae7cc0dcca3f00dc4",
    "layer norm": "543c74d4c19ff49ec5cff0c938894803bf7c9ae27ff527c70c01adf5c6981842",
    "layer norm, backward": "47357bd35f1a269e4dd498f7be5ef0678f1cc451c00fa600b83ebccd753ba492",
    "RMS norm": "bad16bbd278b40dad562cfaceca8682aa62efe88de24342a19e3ded3825bb5d5",
    "RMS norm, backward": "cbbca23c06df98b215b2daadd2e069cb4511325ee0a1cf9c79587b14c39d7352",
    "sums of columns, sums by index": "7acb8a0c09930eb860fb1a1bbebb9e5cab76f8c9c53085abdc225c0f25fd738a",
    "softmax and cross-entropy": "d7b9901690994ad6fac68738888762981c083ea8af2ff121ca1a60351999de60",
    "cross-entropy, backward": "c9c03064e1c982ed40fe60f15ad5fe9e8d4e4194bd44abb40d161dc82f838858",
    "attention": "b4646a944fbcd2187a18862a4ffc29b1ec51d177a6e2af8e8769e412a48df0ce",
    "attention, backward": "6b79afd86b64c319fb89ddb69e982652e7fd89ced85d8ad64ec6bc0032350322",
    "attention, one more token": "e07ec8ba9ecfc732705b501d90a1ac8d0841d929d783b13ad44159b8a1b8d334",
    "attention, one more token in integers": "e321eaf0ddd29ebdfb2a098985ec5c062fcf7c09c1bd33e0cf2adfd40158498a",
    "ReLU and backward": "fbcf1ea5cdf9e68e7bc53e129851f40584dafafd706001582ea62308ea6a142b",
    "squared ReLU and backward": "ba85cdf95fa2e386ceccd1fce3f90faae0c8aafd7d941809ff201db0036a3598",
    "GELU and backward": "1905a3ceabb4ea81ac9a374294fdf4c40368343ab6c5b86a9063419b2b7ccc57",
    "dropout": "3a9200e5a7e5b6c3904a170d4c46c50080fb21e62ac06e360eaeaf7f403186ed",
    "rotary positions": "9a8ec6348b9632e5ec016afd31b18641de7ce6c7afdaf444816823d2eccf07c6",
    "AdamW": "446eee17d22e94c28f30c6e0128e5984ae8092ea737ca7b7904ec905829e3abd",
    "Muon's orthogonalisation": "ca0ca7e0017afc827e4c1165acb8ad2c5d76f22ef1a205bc634941929f724a09",
    "muon: initial weights": "1708dc7f328f56a1b15c57c3ee3109ef226c662e279c3d9ddb81b53fe96c7e8a",
    "muon: logits": "91d0c173128d3bc97865f05ce69cdf14c120fc4676dd1b79865c2212c31c1a68",
    "muon: logits, token by token": "91d0c173128d3bc97865f05ce69cdf14c120fc4676dd1b79865c2212c31c1a68",
    "muon: gradients": "2be7859ec8a32ff068f85d13e76fd51c7cb0461c242d5255e66e9d49c0e68f5c",
    "muon: weights after 4 steps": "88925bfa3112d9398ea80ed53e439500870d7d3c0652c8052b549a1a9ca6a095",
    "muon: sampled tokens": "565a91de8cce9b1e164214e683cd0544653bba868f905645e41ead608694bcfa",
    "adamw: initial weights": "63832676114befca912dca4f8ea42a5157b9152ff3d3d77b23a7569d65e0ee75",
    "adamw: logits": "87e8fd7dc0eb5b03c585a8864ba43d899915218691ddb95d9f8544cab1ffa211",
    "adamw: logits, token by token": "87e8fd7dc0eb5b03c585a8864ba43d899915218691ddb95d9f8544cab1ffa211",
    "adamw: gradients": "aef8c143256e155a54c6967def2c413fbcf40f22af76e664913f91f8f210749d",
    "adamw: weights after 4 steps": "6826323c24c902e1ba44dc8146ca0ba033594544c1b0c9391b9601d493be7e15",
    "adamw: sampled tokens": "384a05d9dca53ffaf6c60bcb1e7cc1f897c57a9f79ae4cfa73f0eb496cfcc370",
    "llama: initial weights": "c872464f77c88e899d00c1e4e6c85a8111f1b0fbaf929155f5701817e6a704a3",
    "llama: logits": "9ad243aab1f9c61f03efceef2095e5288a311821b228f1ccfa5ef5581f91df11",
    "llama: logits, token by token": "9ad243aab1f9c61f03efceef2095e5288a311821b228f1ccfa5ef5581f91df11",
    "llama: gradients": "75e262a1bc32a58e260e66c1a2fb15aa4949d0e1538a16d494ddf5523a7a9517",
    "llama: weights after 4 steps": "df7adff44852dc69e206cca323a376bd14920c87488d017cec35816ba3ffb2f3",
    "llama: sampled tokens": "0f316f6031154ae110289644412b4abef3255f849db3ace8b2bd0022e75b2875",
    "wide: logits, token by token": "67b6869c66b801470485759c8ae8fb52699732544e4dce0fbcb79628e0c33220",
    "4 shards: weights after 4 steps": "0a5662cd2ed1973fb58ae00138e6d961149277e2c4561ccb98066ffdd2070a9e",
}

# Between them: every kind of layer, both norm orders and both optimisers, on shapes that fill no tile and no vector.
RUNS = {
    "muon": (GPTConfig(vocab_size=65, block_size=26, n_layer=2, n_head=2, n_embd=72, dropout=0.1),
             OptimizerConfig(optimizer="muon", warmup=1)),
    "adamw": (GPTConfig(vocab_size=65, block_size=26, n_layer=2, n_head=2, n_embd=36, position="learned", norm="layer",
                        norm_order="last", activation="gelu", qk_norm=False, bias=True, tied=True, dropout=0.1),
              OptimizerConfig(optimizer="adamw", warmup=1)),
    "llama": (GPTConfig(vocab_size=65, block_size=26, n_layer=2, n_head=4, n_embd=72, activation="swiglu", qk_norm=False,
                        tied=True, n_kv_head=2, n_hidden=100, rope_theta=100000.0, norm_epsilon=1e-6, qkv_bias=True),
              OptimizerConfig(optimizer="muon", warmup=1)),
}
STEPS, BATCH, EPSILON = 4, 3, np.float32(1e-5)
SPECIAL = np.array([0.0, -0.0, 1e-45, -1e-40, 1.17549435e-38, 3.4028235e38, np.inf, -np.inf, np.nan], np.float32)


def sha256(*arrays: np.ndarray) -> str:
    """SHA-256, in hexadecimal, of the arrays' bytes, little-endian, with every NaN the same."""
    digest = hashlib.sha256()
    for array in arrays:
        array = np.asarray(array)
        if array.dtype.kind == "f":
            array = np.where(np.isnan(array), array.dtype.type(np.nan), array)
        digest.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()


# --- kernels ----------------------------------------------------------------------------------------------------------

def numbers(name, *shape, special=False):
    """float32 of that shape, evenly from [-2, 2); or with a special number somewhere in every third row."""
    x = rng.uniform(0, "verify " + name, 0, int(np.prod(shape))).reshape(shape) * np.float32(4) - np.float32(2)
    if special:
        for i, row in enumerate(x[::3]):
            row[7 * i % len(row)] = SPECIAL[i % len(SPECIAL)]
    return x


def outputs(*shapes):
    return [np.zeros(shape, np.float32) for shape in shapes]


@njit(cache=True)
def _on_lanes(x, y, z, results):
    """Each operation on lanes, over flat arrays (n,) of whole lanes; results (8, n)."""
    for i in range(0, x.size, 16):
        a, b, c = load(x, i), load(y, i), load(z, i)
        for row, value in enumerate((a + b, a - b, a * b, a / b, sqrt(a), fma(a, b, c), exp(a * splat(np.float32(40))),
                                     log(a))):
            store(results, row * x.size + i, value)


@njit(cache=True)
def _lane_sums(x, results):
    for i in range(results.size):
        results[i] = lane_sum(load(x, 16 * i))


def lanes():
    names = ("x + y", "x - y", "x * y", "x / y", "square root", "fma", "exp", "log")
    each_with_each = np.array([(a, b) for a in SPECIAL for b in SPECIAL], np.float32)
    x, y = (np.concatenate([column, numbers(f"lanes {i}", 2047 - 80)]) for i, column in enumerate(each_with_each.T))
    z, (results, sums) = numbers("lanes 2", x.size), outputs((8, x.size), x.size // 16)
    _on_lanes(x, y, z, results)
    _lane_sums(z, sums)
    yield from zip(names, map(sha256, results))
    yield "sum of lanes", sha256(sums)


def kernels():
    """(name, hash) of one kernel after the other.  No shape fills a tile or a vector."""
    N, C, T, H = 78, 72, 26, 2                                      # three sequences of T tokens
    x, dy, odd = numbers("x", N, C), numbers("dy", N, C), numbers("odd", N, C, special=True)
    gain, bias = numbers("gain", 2, C)
    yield "sum of squares", sha256(sums.sum_of_squares(numbers("squares", 9999)))
    W, (y, dx) = numbers("W", C, 300), outputs((N, 300), (N, C))    # 300: more than one panel
    yield "matmul: x W", sha256(matmul(odd, W, y))
    integers = matmul_quantised(odd, quantise(W), np.empty((N, 300), np.float32))
    yield "matmul: dy W^T", sha256(matmul(y, W.T, dx))
    yield "matmul: += x^T dy", sha256(matmul(x.T, numbers("y", N, 300), W, accumulate=True))
    yield "product of integers", sha256(integers)

    y, mean, rstd, dx, dgain, dbias = outputs((N, C), N, N, (N, C), C, C)
    norms.layer_norm_forward(odd, gain, bias, EPSILON, y, mean, rstd)
    yield "layer norm", sha256(y, mean, rstd)
    norms.layer_norm_forward(x, gain, bias, EPSILON, y, mean, rstd)
    norms.layer_norm_backward(dy, x, gain, mean, rstd, dx, dgain, dbias)
    yield "layer norm, backward", sha256(dx, dgain, dbias)
    norms.rms_norm_forward(odd, gain, EPSILON, y, rstd)
    yield "RMS norm", sha256(y, rstd)
    norms.rms_norm_forward(x, gain, EPSILON, y, rstd)
    norms.rms_norm_backward(dy, x, gain, rstd, dx, dgain)
    yield "RMS norm, backward", sha256(dx, dgain)
    total, table = outputs(C, (7, C))
    sums.add_column_sums(x, total)
    sums.add_rows_at(x, rng.integers(0, "verify rows", 0, N, 7), table)
    yield "sums of columns, sums by index", sha256(total, table)
    targets, (probabilities, losses, dlogits) = rng.integers(0, "verify targets", 0, N, C), outputs((N, C), N, (N, C))
    softmax.cross_entropy_forward(odd, targets, probabilities, losses)
    yield "softmax and cross-entropy", sha256(probabilities, losses)
    softmax.cross_entropy_backward(np.float32(1 / N), probabilities, targets, dlogits)
    yield "cross-entropy, backward", sha256(dlogits)

    k, v, scale = numbers("k", N, C), numbers("v", N, C), np.float32(1 / 6)
    y, peak, total, dq, dk, dv = outputs((N, C), (N // T * H, T), (N // T * H, T), *[(N, C)] * 3)
    attention.attention_forward(odd, k, v, H, T, scale, y, peak, total)
    yield "attention", sha256(y, peak, total)
    attention.attention_forward(x, k, v, H, T, scale, y, peak, total)
    attention.attention_backward(dy, x, k, v, y, peak, total, H, T, scale, dq, dk, dv)
    yield "attention, backward", sha256(dq, dk, dv)
    for name, hold in ("", attention.hold_floats), (" in integers", hold_integers):
        held, one = hold(1, 3, H, T, C // H), np.empty((3, C), np.float32)
        for t in range(T):
            for pair in range(3 * H):
                attention.attend_one(x[t::T].copy(), k[t::T].copy(), v[t::T].copy(), held, 0, 0, pair // H, pair % H, t, scale,
                                     one)
        yield f"attention, one more token{name}", sha256(one)

    for name, forward, backward in (("ReLU", activations.relu_forward, activations.relu_backward),
                                    ("squared ReLU", activations.squared_relu_forward, activations.squared_relu_backward),
                                    ("GELU", activations.gelu_forward, activations.gelu_backward)):
        forward(odd, y)
        backward(dy, odd, dx)
        yield name + " and backward", sha256(y, dx)
    elementwise.apply_mask(odd.reshape(-1), rng.keep(0, "verify mask", 0, odd.size, 0.3), np.float32(1.25), y.reshape(-1))
    yield "dropout", sha256(y)
    rotary.rotate(odd, *rotary_tables(T, C // H), T, H, y)
    yield "rotary positions", sha256(y)
    weight, square = x.copy().reshape(-1), np.abs(numbers("square", N * C))
    elementwise.adamw(weight, odd.reshape(-1), dy.reshape(-1), square,
                      *map(np.float32, (0.5, 1e-3, 1.0, 0.9, 0.99, 2.0, 3.0, 1e-8)))
    yield "AdamW", sha256(weight, dy, square)
    orthogonalise(W[None])
    yield "Muon's orthogonalisation", sha256(W)


# --- models -----------------------------------------------------------------------------------------------------------

def models():
    """(name, hash) of what a model goes through: its beginning, its logits, its gradients, some steps, some text."""
    for name, (config, optimizer_config) in RUNS.items():
        model = GPT(config, seed=7)
        optimizer = Optimizer(model, optimizer_config, STEPS)
        ids = rng.integers(7, "golden", 0, BATCH * (config.block_size + 1), config.vocab_size).reshape(BATCH, -1)
        yield f"{name}: initial weights", fingerprint(model)
        yield f"{name}: logits", sha256(model.forward(ids[:, :-1]))
        cache = model.new_cache(BATCH)
        yield f"{name}: logits, token by token", sha256(np.stack([model.step(i, cache) for i in ids[:, :-1].T], axis=1))
        for step in range(STEPS):
            model.loss(ids[:, :-1], ids[:, 1:], Draw(7, step))
            model.backward()
            if step == 0:
                yield f"{name}: gradients", sha256(np.concatenate([p.grad.ravel() for p in model.parameters().values()]))
            optimizer.step()
        yield f"{name}: weights after {STEPS} steps", fingerprint(model)
        tokens = [token for _, token in zip(range(40), generate(model, ids[0, :5], 1.1, top_k=50, top_p=0.95, seed=7))]
        yield f"{name}: sampled tokens", sha256(np.array(tokens, np.int64))
    wide = GPT(GPTConfig(vocab_size=65, block_size=8, n_layer=1, n_head=5, n_embd=WIDE), seed=7)
    cache = wide.new_cache(2)
    yield "wide: logits, token by token", sha256(np.stack([wide.step(i, cache) for i in ids[:2, :8].T], axis=1))
    config, optimizer_config = RUNS["muon"]
    model = GPT(config, seed=7)
    optimizer, shards = Optimizer(model, optimizer_config, STEPS), Shards(model, 4, Alone())
    windows = rng.integers(7, "golden", 0, 8 * (config.block_size + 1), config.vocab_size).reshape(8, -1)
    for step in range(STEPS):
        shards.gradient(windows, 7, step)
        optimizer.step()
    yield f"4 shards: weights after {STEPS} steps", fingerprint(model)


def results() -> Iterator[tuple[str, str]]:
    """(name, hash) of everything, in the order of EXPECTED.  FloatingPointError where this process cannot compute it."""
    check_arithmetic(get_num_threads())
    yield "random integers", sha256(rng.words(7, "verify", 2 ** 33, 999))
    yield from lanes()
    yield from kernels()
    yield from models()


# --- the report -------------------------------------------------------------------------------------------------------

def machine() -> list[tuple[str, str]]:
    """[(what, which)] of all that might make a difference, and must not."""
    target, cpu, features = cpu_target.target_context.codegen().magic_tuple()
    sets = [name for name in ("sse2", "sse4.2", "avx", "fma", "avx2", "avx512f", "neon", "sve") if f"+{name}" in features]
    return [("machine", f"{platform.machine()}, {platform.system()}"),
            ("processor", _processor()),
            ("compiled for", f"{cpu} ({' '.join(sets) or target})"),
            ("versions", f"Python {platform.python_version()}, NumPy {np.__version__}, Numba {numba.__version__}, "
                         f"LLVM {'.'.join(map(str, binding.llvm_version_info))}"),
            ("threads", str(get_num_threads()))]


def _processor():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return (names or [platform.processor() or "unknown"])[0] + f" (LLVM: {binding.get_host_cpu_name()})"


def report(results: Iterable[tuple[str, str]], expected: dict[str, str], as_json: bool = False) -> bool:
    """Print the results, pairs (name, hash), beside those expected.  Returns whether all are the same."""
    start, found, differing = time.perf_counter(), {}, []
    if not as_json:
        print(f"{'':42} {'expected':18} found")
    for name, value in results:
        found[name] = value
        if value != expected[name]:
            differing.append(name)
        if not as_json:
            print(f"{name:42} {expected[name][:16]}   {value[:16]}   {'same' if value == expected[name] else 'DIFFERENT'}",
                  flush=True)
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        print()
        for what, which in machine():
            print(f"{what:13} {which}")
        print(f"\n{len(found) - len(differing)} of {len(found)} are the same, in {time.perf_counter() - start:.0f} s.")
        if differing:
            print(f"The first to differ is: {differing[0]}.  What stands below it may rest on it.")
    return not differing

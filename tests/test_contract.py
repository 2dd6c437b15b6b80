"""Guards the arithmetic contract, on which "the same bits on every machine" rests, so that no later change breaks it unseen.

The first guard reads the source: in minigpt/ and coder/ only exact operations (+ - * /, square root, fma), and orders of
addition that are written down.  The second reads what Numba makes of it: LLVM code in which nothing may be fused, reordered
or left to a library.  One machine cannot show that another computes the same; its code can show why it does.
"""

import ast
import importlib
import json
import math         # noqa: F401 (a kernel at the end calls it)
import os
import pkgutil
import re
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import ANY

import numpy as np
import pytest
from llvmlite import binding, ir
from numba import njit, types
from numba.core.bytecode import FunctionIdentity
from numba.core.codegen import CPUCodeLibrary
from numba.core.dispatcher import Dispatcher
from numba.extending import intrinsic

ROOT = Path(__file__).parents[1]

# --- the source -------------------------------------------------------------------------------------------------------

FORBIDDEN = {name: why for why, names in {
    "the library chooses the order of addition": """
        sum mean average median quantile percentile var std prod cumsum cumprod cumulative_sum cumulative_prod trace nansum
        nanmean nanvar nanstd nanprod nancumsum nancumprod nanmedian dot vdot inner matmul matvec vecmat vecdot tensordot
        einsum einsum_path linalg fft convolve correlate cov corrcoef trapz trapezoid reduce reduceat accumulate""",
    "the library chooses how to round": """
        exp exp2 expm1 log log2 log10 log1p logaddexp logaddexp2 sin cos tan arcsin arccos arctan arctan2 asin acos atan
        atan2 sinh cosh tanh arcsinh arccosh arctanh asinh acosh atanh sinc i0 hypot cbrt power float_power pow degrees
        radians deg2rad rad2deg linspace logspace geomspace interp polyval""",
    "random numbers come from rng.py": "random default_rng RandomState standard_normal",
    "all is binary32, tables binary64": "float16 half bfloat16 longdouble float128 clongdouble complex64 complex128",
}.items() for name in names.split()}
BUILTINS = {"sum", "pow"}
LIBRARIES = {"math", "cmath", "random", "statistics", "scipy", "torch"}
KEYWORDS = {        # of njit, and of llvmlite's operations
    "fastmath": "the compiler may reorder and fuse", "flags": "the compiler may reorder and fuse",
    "parallel": "Numba chooses the order of sums: threads.py shares out loops"}

# Where the guard is mistaken: file, function, operation, and why it is safe there.
ALLOWED = [
    ("minigpt/exact.py", "add_groups", "@", "of integers, whose sums are exact in binary64 in any order"),
    ("minigpt/exhaustive.py", "examine", "np.exp", "in float64, only to measure the error of ours"),
    ("minigpt/exhaustive.py", "examine", "np.log", "in float64, only to measure the error of ours"),
    ("minigpt/model.py", "GPT._threads", "**", "integers"),
    ("minigpt/plot.py", "draw_losses", "np.convolve", "only a picture"),
    ("minigpt/reference.py", "generate", "np.cumsum", "integers: that is what they were made for"),
    ("minigpt/sampling.py", "choose", "np.cumsum", "integers: that is what they were made for"),
    ("minigpt/trainer.py", "Trainer.step", "math.isfinite", "a question"),
    ("minigpt/trainer.py", "Trainer._record_validation", "math.isfinite", "a question"),
    ("minigpt/trainer.py", "Trainer._recent_loss", ".sum", "only shown to a person"),
    ("minigpt/verify.py", "numbers", "np.prod", "integers: an array's sizes"),
    ("coder/__main__.py", "run_info", "sum", "integers: a count"),
    ("coder/__main__.py", "lost", "sum", "integers: a count"),
    ("coder/__main__.py", "original_size", "sum", "integers: a count"),
    ("coder/baselines.py", "_compress", ".sum", "integers: frequencies"),
    ("coder/baselines.py", "_no_counts", "**", "integers"),
    ("coder/frequencies.py", "", "**", "integers: a constant"),
    ("coder/intervals.py", "", "math.ceil", "of exact fractions"),
    ("coder/intervals.py", "", "math.log2", "only shown to a person"),
    ("coder/intervals.py", "shortest_code", "**", "integers"),
    ("coder/intervals.py", "decode", "**", "integers"),
    ("coder/mixing/logistic.py", "_tables", ".exp", "of decimals, whose every digit is prescribed"),
    ("coder/mixing/mixer.py", "Mixing.__init__", "np.cumsum", "integers: where each mixer's weights begin"),
    ("coder/mixing/mixer.py", "Mixing._for_records", "np.cumsum", "integers: where each mixer's weights begin"),
    ("coder/online_tokens.py", "OnlineTokens.__init__", ".cumsum", "integers: where each token's bytes begin"),
    ("coder/parity.py", "pieces", "sum", "integers: a count"),
    ("coder/reference.py", "RangeDecoder.decode", "sum", "integers: frequencies"),
    ("coder/reference_models.py", "unpack", "np.prod", "integers: an array's sizes"),
    ("coder/retrieve.py", "fit", "sum", "integers: places in a file"),
    ("coder/mgz.py", "list_sizes", "sum", "integers: a count"),
    ("coder/lab/causal.py", "_run", "np.log2", "only shown to a person: the code is made of + - * /"),
    ("coder/walk.py", ANY, "sum", "integers: frequencies"),
    ("coder/report.py", ANY, ANY, "only shown to a person: nothing it computes goes into a file that is decoded"),
    ("minigpt/look.py", ANY, ANY, "only shown to a person: the network's numbers come from the kernels and exact.py"),
]


class Guard(ast.NodeVisitor):
    """Collects in `found` what a source text does and the contract forbids: (function, operation, line, why)."""

    def __init__(self, source):
        self.scope, self.found = [], []
        self.visit(ast.parse(source))

    def report(self, node, operation, why):
        self.found.append((".".join(self.scope), operation, node.lineno, why))

    def taken(self, node, module, name):
        """`name` is taken out of `module`, such as np, numpy.random or math."""
        first, *parts = *module.split("."), name
        if first in LIBRARIES:
            self.report(node, f"{module}.{name}", FORBIDDEN["exp"])
        for part in FORBIDDEN.keys() & parts if first in ("np", "numpy") else ():
            self.report(node, f"np.{part}", FORBIDDEN[part])

    def visit_Import(self, node):
        for alias in node.names:
            module, _, name = alias.name.rpartition(".")
            if module or alias.asname:          # a bare `import math` does nothing yet
                self.taken(node, module or name, name if module else "*")

    def visit_ImportFrom(self, node):
        for alias in node.names if node.level == 0 else ():
            self.taken(node, node.module, alias.name)

    def visit_Attribute(self, node):
        if isinstance(node.value, ast.Name):
            self.taken(node, node.value.id, node.attr)
        self.generic_visit(node)

    def visit_Call(self, node):
        function, known = node.func, LIBRARIES | {"np", "numpy"}
        if isinstance(function, ast.Name) and function.id in BUILTINS:
            self.report(node, function.id, FORBIDDEN[function.id])
        if isinstance(function, ast.Attribute) and getattr(function.value, "id", "") not in known:
            if function.attr in FORBIDDEN:
                self.report(node, f".{function.attr}", FORBIDDEN[function.attr])
        for keyword in node.keywords:
            if keyword.arg in KEYWORDS:
                self.report(node, f"{keyword.arg}=", KEYWORDS[keyword.arg])
        self.generic_visit(node)

    def visit_BinOp(self, node):
        if isinstance(node.op, ast.MatMult):
            self.report(node, "@", FORBIDDEN["matmul"])
        if isinstance(node.op, ast.Pow) and not (isinstance(node, ast.BinOp) and _is_exact_power(node.left, node.right)):
            self.report(node, "**", FORBIDDEN["pow"])
        self.generic_visit(node)

    visit_AugAssign = visit_BinOp

    def visit_FunctionDef(self, node):
        self.scope.append(node.name)
        self.generic_visit(node)
        self.scope.pop()

    visit_ClassDef = visit_FunctionDef


def _is_exact_power(base, exponent):
    """Of two literals: a power of two, or one of integers.  Of names the source does not say whether they are integers."""
    try:
        base, exponent = ast.literal_eval(base), ast.literal_eval(exponent)
    except ValueError:
        return False
    return isinstance(exponent, int) and (base == 2 or isinstance(base, int) and exponent >= 0)


def test_source_does_only_what_the_contract_allows():
    used, wrong = set(), []
    for path in sorted(path for room in ("minigpt", "coder") for path in (ROOT / room).rglob("*.py")):
        file = path.relative_to(ROOT).as_posix()
        if file.startswith("coder/lab/") and path.name != "causal.py":      # experiments: no file depends on what they print
            continue
        for function, operation, line, why in Guard(path.read_text("utf-8")).found:
            entries = [i for i, entry in enumerate(ALLOWED) if entry[:3] == (file, function, operation)]
            used.update(entries)
            if not entries:
                wrong.append(f"{file}:{line}: {operation} in {function or 'the module'}: {why}")
    assert not wrong, "\n".join(["the contract forbids:", *wrong])
    assert not (stale := [entry for i, entry in enumerate(ALLOWED) if i not in used]), f"needed no more in ALLOWED: {stale}"


@pytest.mark.parametrize("source", [
    "x @ w", "x @= w", "np.dot(x, w)", "x.dot(w)", "numpy.inner(x, y)", "np.linalg.norm(x)", "x.sum(-1)", "x[0].mean()",
    "sum(x)", "np.add.reduce(x)", "np.exp(x)", "f = np.tanh", "from numpy import log", "math.exp(x)", "from math import exp",
    "from math import *", "import math as m", "import numpy.random", "from numpy.random import normal", "x ** 2", "2 ** x",
    "10.0 ** 3", "10 ** -3", "x **= 2", "pow(x, y)", "@njit(fastmath=True)\ndef f(): pass", "njit(fastmath={'nnan'})(f)",
    "builder.fadd(x, y, flags=['fast'])", "np.random.default_rng(1)", "import random\nrandom.random()", "np.float16(1)",
    "@njit(parallel=True)\ndef f(): pass",
])
def test_source_guard_catches(source):
    assert Guard(source).found


@pytest.mark.parametrize("source", [
    "a * b + c - d / np.sqrt(e)", "2 ** 32 + 2.0 ** -24 + 256 ** 2", "exp(x) + log(x)", "self.mean[i] + model.std",
    "import math", "from .kernels.lanes import exp, log", "rng.uniform(seed, 'x', 0, 9)", "np.where(a > b, a, x.max())",
    "parallel_for(9, f, x)",
])
def test_source_guard_lets_pass(source):
    assert not Guard(source).found


# --- what Numba makes of it -------------------------------------------------------------------------------------------

INEXACT = re.compile(r"^  .*\b(?:f\w+|call|select|phi) (?:fast|nnan|ninf|nsz|arcp|contract|afn|reassoc) .*"
                     r"|^  .*(?:= frem |(?<![\w.$%-])(?:half|bfloat|fp128|x86_fp80|ppc_fp128)\b).*"
                     r'|"[\w-]*fp-math(?:-f32)?"="(?!false|ieee)[\w,-]*"'
                     r"|^  store .* poison,.*|^  .* getelementptr .*ptr null,.*|^  .*\binttoptr\b.*", re.MULTILINE)
DEFINITION = re.compile(r'^define [^@\n]*@("[^"]+"|[\w.$-]+)\(', re.MULTILINE)
CALL = re.compile(r'^  [^"\n]*?\b(?:call|invoke)\b([^"\n]*?)([@%](?:"[^"\n]+"|[\w.$-]+))\((.*)', re.MULTILINE)
FLOAT = re.compile(r"\b(?:float|double)\b")

# What may be called with floats, besides functions of the same library, which are examined themselves.
EXACT_CALLS = re.compile(r"llvm\.(fma|sqrt|rint|fabs|copysign|is\.fpclass)\.|sqrtf?$"  # rounded exactly, by any library
                         r"|llvm\.masked\.(load|store|gather|scatter)\."
                         r"|llvm\.vector\.(insert|extract|reverse|splice|interleave2|deinterleave2)\."   # changes of place
                         r"|(minigpt|coder)\.[\w.]+$"                             # linked (linking.py), so examined on its own
                         r"|llvm\.(log10|floor)\.f64$"             # how Numba writes an integer into the message of an error
                         r"|PyFloat_(AsDouble|FromDouble)$")                            # a scalar comes from Python, or goes


@contextmanager
def compiled():
    """{library: its LLVM code} of all that Numba compiles meanwhile: kernels, the bodies of their parallel loops, what they
    call.  What comes from Numba's cache on disk is not compiled, and so is missing."""
    found, finalize = {}, CPUCodeLibrary.finalize

    def finalize_and_keep(library):
        finalize(library)
        found[library] = library.get_llvm_str()
    CPUCodeLibrary.finalize = finalize_and_keep
    try:
        yield found
    finally:
        CPUCodeLibrary.finalize = finalize


def inexact(found):
    """(library, line of its code) wherever the contract leaves a result open."""
    for library, code in found.items():
        yield from ((library.name, match[0].strip()) for match in INEXACT.finditer(code))
        examined = {"@" + function for function in DEFINITION.findall(code)}
        for match in CALL.finditer(code):
            result, callee, arguments = match.groups()
            if callee not in examined and FLOAT.search(result + arguments):
                if not EXACT_CALLS.match(callee[1:]):
                    yield library.name, match[0].strip()


def overlooked(found):
    """(kernel, sentence) for each whose code is not among that found."""
    modules = [info.name for room in ("minigpt", "coder") for info in pkgutil.walk_packages([str(ROOT / room)], room + ".")]
    for module in map(importlib.import_module, (name for name in modules if not name.endswith("__main__"))):
        for name, kernel in vars(module).items():
            if isinstance(kernel, Dispatcher):
                codes = [" ".join(DEFINITION.findall(found.get(code.library, ""))) for code in kernel.overloads.values()]
                if not all(codes or [""]):
                    yield f"{module.__name__}.{name}", "not all of its code was seen: let `examine` call it"


@contextmanager
def told_apart():
    """Yields the set of our functions' names that Numba was given for more than one function, while it compiles.

    It tells them apart by a number that it counts in each process anew.  But the linker goes by names: of two tiles, or two
    operators, one that comes from the cache could take the place of the other.
    """
    seen, twice, original = {}, set(), FunctionIdentity.__dict__["from_function"]

    def from_function(cls, function):
        identity = original.__func__(cls, function)
        function = identity.func
        made_of = function.__code__, [cell.cell_contents for cell in function.__closure__ or ()]
        name = f"{function.__module__}.{function.__qualname__}"
        if name.startswith(("minigpt.", "coder.")) and seen.setdefault(name, made_of) != made_of:
            twice.add((name, "several functions have this name: see `named` in lanes.py"))
        return identity
    FunctionIdentity.from_function = classmethod(from_function)
    yield twice
    FunctionIdentity.from_function = original


def examine():
    """Compile and run every kernel; returns what is wrong with its code, and the hashes of what it computed."""
    wrong, hashes = set(), {}
    with compiled() as found, told_apart() as twice:
        from coder import baselines, messages, packed, parity, range_coder, tokens
        from coder import verify as verify_coder
        from minigpt import exhaustive, verify
        from minigpt.kernels import matmul
        from tests import golden_coder
        try:
            hashes |= verify.results()
            panels = matmul.pack(np.ones((3, 4), np.float32))
            matmul.matmul_packed(np.ones((2, 3), np.float32), panels, np.ones((2, 4), np.float32))
            exhaustive.examine(0)
            hashes |= verify_coder.results()
            baselines.decompress(baselines.compress(b"abab", 2), 4, 2)
            packed.unpack(packed.pack(golden_coder.taught()))
            trie, logits = tokens.make_trie([b"a", b"b", b"ab"]), np.zeros((2, 3), np.float32)
            state, out = range_coder.start_encoding()
            code = range_coder.finish_encoding(state, tokens.encode_tokens(state, out, logits, np.array([2, 3 + 255]), trie))
            tokens.decode_tokens(range_coder.start_decoding(code), code, logits, trie)
            from tests import test_quantised, test_tokens
            for config in test_quantised.CONFIGS.values():
                test_quantised.test_a_quantised_model_predicts_the_same_in_a_window_and_token_by_token(config)
            test_quantised.test_a_quantised_cache_forgets_what_is_dropped()
            texts = [b"a line", b"two\nlines"]
            model = golden_coder.taught()
            assert messages.decompress_messages(messages.compress_messages(texts, model), model) == texts
            protected = golden_coder.LICENSE + parity.protect(golden_coder.LICENSE, 20)
            assert parity.repair(b"inserted" + protected[:99] + b"?" + protected[100:])[0] == protected
            for size in 1, 40:
                test_tokens.test_bytes_come_back_online(b"a" * size)
            from coder.lab import causal
            causal.encode(np.array([[0, 1, 1], [1, 0, 1]]), (1, 1))
        except Exception as error:          # wrong arithmetic may break what rests on it
            wrong.add(("while it ran", repr(error)))
    return {"wrong": sorted({*wrong, *inexact(found), *overlooked(found), *twice}), "hashes": hashes}


# Both kinds of processor, whichever this is: tiles, and so functions, differ between AVX-512 and AVX2.
@pytest.mark.slow
@pytest.mark.parametrize("processor", ["this one", pytest.param("haswell", marks=pytest.mark.skipif(
    not binding.get_host_cpu_features().get("avx2"), reason="this machine has no AVX2"))])
def test_compiled_code_does_only_what_the_contract_allows_and_computes_the_golden_bits(processor, tmp_path):
    # An empty cache, so that everything is compiled; and two threads, since some code is only for more than one.
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "NUMBA_NUM_THREADS": "2"}
    if processor != "this one":
        environment |= {"NUMBA_CPU_NAME": processor, "NUMBA_CPU_FEATURES": ""}
    command = [sys.executable, "-m", "tests.test_contract"]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    from coder import verify as coder       # here, since `examine` must see everything compiled, the imports' part as well
    from minigpt import verify as network
    assert not found["wrong"], "\n".join(["the contract forbids:", *map(": ".join, found["wrong"])])
    assert found["hashes"] == {**network.EXPECTED, **coder.EXPECTED}


# --- is the second guard awake? ---------------------------------------------------------------------------------------

@intrinsic
def fmuladd(typing, x, y, z):
    def generate(context, builder, sig, args):
        function = ir.FunctionType(ir.FloatType(), [ir.FloatType()] * 3)
        return builder.call(builder.module.declare_intrinsic("llvm.fmuladd", [ir.FloatType()], function), args)
    return types.float32(types.float32, types.float32, types.float32), generate


def kernel_of(line, **options):
    """That line as a kernel, compiled for a float32 array x, in a loop over i that is shared out among threads."""
    scope = {**vars(importlib.import_module("minigpt.kernels.lanes")), **globals()}
    exec(f"def body(i, x):\n    {line}\ndef kernel(x):\n    parallel_for(x.size, body, x)", scope)
    scope["parallel_for"] = importlib.import_module("minigpt.kernels.threads").parallel_for
    scope["body"] = njit(**options)(scope["body"])
    return njit(types.void(types.Array(types.float32, 1, "C")))(scope["kernel"])


ONE = np.float32(1)
SUM, FMA = "x[i] = x[i] * x[0] + x[1]", "store(x, i, fma(load(x, 0), load(x, 16), load(x, 32)))"


@pytest.mark.parametrize("line, options", [
    (SUM, {"fastmath": True}), (SUM, {"fastmath": {"contract"}}), ("x[i] = fmuladd(x[i], x[0], x[1])", {}),
    ("x[i] = math.exp(x[i])", {}), ("x[i] = np.exp(x[i])", {}), ("x[i] = x[i] ** x[0]", {}),
    ("x[i] = x[i] % x[0]", {}), ("x[i] = math.tanh(x[i])", {}), ("x[i] = math.hypot(x[i], x[0])", {}),
])
def test_code_guard_catches(line, options):
    with compiled() as found:
        kernel_of(line, **options)
    assert list(inexact(found))


@pytest.mark.parametrize("line", [SUM, FMA, "x[i] = abs(x[i] / x[0] - x[1]) if x[i] > x[2] else np.sqrt(x[i] + ONE)"])
def test_code_guard_lets_pass(line):
    with compiled() as found:
        kernel_of(line)
    assert found and not list(inexact(found))


def test_processor_fuses_only_what_is_asked_for_by_name():
    """The last step, from LLVM's code to the processor's, could fuse fmul with fadd as well: Numba's does not let it."""
    fused = re.compile(r"^\s+v?fn?m(?:add|sub|la|ls)", re.MULTILINE)            # vfmadd213ps, fmadd, fmla, ...
    asked, not_asked = (next(iter(kernel_of(line).inspect_asm().values())) for line in (FMA, SUM))
    if not fused.search(asked):
        pytest.skip("this processor has no fused multiply-add")
    assert not fused.search(not_asked)


if __name__ == "__main__":
    print(json.dumps(examine()))

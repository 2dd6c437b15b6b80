"""Computes the published hashes in many environments, and says where they are the same.  Prints Markdown tables.

    python tests/matrix.py                                 # ours: processors to compile for, threads
    python tests/matrix.py --others                        # the same question to NumPy's and PyTorch's own arithmetic
    python tests/matrix.py --python PATH ...               # and a row for each of these: other versions, or an emulator
    python tests/matrix.py --brief --python PATH ...       # only the first row and these

Each row is a process of its own.  The first row compiles, and so does each with another processor or interpreter, which
takes minutes; --cache FOLDER keeps what was compiled.  The exit code is 1 if a row of ours differs.

A PATH is whatever runs Python with NumPy, Numba and what else setup.cfg asks for.
"""

import argparse
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = (["-m", "minigpt", "verify", "--json"], ["-m", "coder", "verify", "--json"])     # each prints {name: SHA-256}
PROCESSORS = {"generic": "sse2", "nehalem": "sse4.2", "haswell": "avx2", "skylake-avx512": "avx512f"}   # and what they need
SWITCHES = ("NUMBA_", "OPENBLAS_", "OMP_", "GOMP_", "MKL_", "NPY_", "ATEN_", "ONEDNN_", "DNNL_")


class NotRun(Exception):
    pass


def child(python, arguments, environment, timeout):
    """Runs Python with these switches and no others.  Returns (the JSON object that it printed, its exit code)."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(SWITCHES)}
    path = os.pathsep.join([str(ROOT), *filter(None, [inherited.get("PYTHONPATH")])])
    environment = {**inherited, **environment, "PYTHONPATH": path}
    try:
        run = subprocess.run([python, *arguments], cwd=ROOT, env=environment, timeout=timeout,
                             capture_output=True, text=True)
        return json.loads(run.stdout), run.returncode
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotRun(error) from None
    except ValueError:
        raise NotRun((run.stderr.strip() or f"exit code {run.returncode}").splitlines()[-1]) from None


def print_row(*cells):
    print("|", " | ".join(str(cell).replace("|", "/") for cell in cells), "|", flush=True)


def print_head(*cells):
    print_row(*cells)
    print("|" + "---|" * len(cells))


# --- ours -------------------------------------------------------------------------------------------------------------

def describe():
    """What this process compiles for, and with which versions."""
    import numba
    import numpy

    from minigpt.kernels.threads import get_num_threads
    from llvmlite import binding
    from numba.core.registry import cpu_target
    _, processor, features = cpu_target.target_context.codegen().magic_tuple()
    widest = [name for name in ("avx512f", "avx2", "sse4.2", "neon") if f"+{name}," in features + ","][:1]
    umath = (numpy._core if hasattr(numpy, "_core") else numpy.core)._multiarray_umath
    return {"processor": ", ".join([f"{platform.machine()} {processor}", *widest]), "threads": get_num_threads(),
            "python": platform.python_version(), "numpy": numpy.__version__, "numba": numba.__version__,
            "numpy's sets": umath.__cpu_dispatch__,
            "machine's sets": [name for name, there in binding.get_host_cpu_features().items() if there]}


def our_environments(pythons, brief):
    """(interpreter, threads, processor or "") of each row; the first is what the others are held against."""
    yield sys.executable, 1, ""
    if not brief:
        yield from ((sys.executable, threads, "") for threads in (2, 3, 8))
        if platform.machine() in ("x86_64", "AMD64"):
            yield from ((sys.executable, 1, processor) for processor in PROCESSORS)
    yield from ((python, 1, "") for python in pythons)


def forget_stale_code(folder):
    """Numba compiles a function anew when its own file changes, but not when one that it calls in another file does."""
    newest = max(path.stat().st_mtime for room in ("minigpt", "coder") for path in (ROOT / room).rglob("*.py"))
    for path in Path(folder).rglob("*.nbi"):
        if path.stat().st_mtime < newest:
            path.unlink()


def ours(pythons, brief, cache, timeout):
    """Prints the table.  Returns whether all that could run is the same, and as expected."""
    forget_stale_code(cache)
    sets = child(sys.executable, [__file__, "--child", "describe"], {}, timeout)[0]["machine's sets"]
    first, rows, good = None, 0, True
    print_head("compiled for", "threads", "Python", "NumPy", "Numba", "seconds", "SHA-256 of all", "the same?")
    for python, threads, processor in our_environments(pythons, brief):
        about = {"processor": processor or "this machine", "threads": threads,
                 "python": Path(python).name, "numpy": "", "numba": ""}
        folder = Path(cache) / re.sub(r"\W+", "-", f"{python} {processor}").strip("-")
        environment = {"NUMBA_NUM_THREADS": str(threads), "NUMBA_CACHE_DIR": str(folder)}
        if processor:
            environment |= {"NUMBA_CPU_NAME": processor, "NUMBA_CPU_FEATURES": ""}
        seconds, whole, found, codes = "", "", {}, []
        try:
            if processor and PROCESSORS[processor] not in sets:
                raise NotRun(f"this machine has no {PROCESSORS[processor]}")
            about = child(python, [__file__, "--child", "describe"], environment, timeout)[0]
            start = time.perf_counter()
            for command in COMMANDS:
                hashes, code = child(python, command, environment, timeout)
                found |= hashes
                codes.append(code)
        except NotRun as reason:
            verdict = f"not run: {reason}"
            good = good and not about["numpy"] and python not in pythons      # to be left out is no failure, to break off is
        else:
            first, rows = first or found, rows + 1
            differing = [name for name in {**first, **found} if first.get(name) != found.get(name)]
            seconds = f"{time.perf_counter() - start:.0f}"
            whole = f"`{hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:16]}`"
            verdict = f"**no: {differing[0]}**" if differing else "**not as expected**" if any(codes) else "yes"
            good = good and verdict == "yes"
        columns = ("processor", "threads", "python", "numpy", "numba")
        print_row(*(about[column] for column in columns), seconds, whole, verdict)
    print(f"\n{rows} environments, {len(first or {})} hashes each.  The seconds include compiling, where a row has to.")
    return good


# --- the others -------------------------------------------------------------------------------------------------------

def fixed(*shape):
    """float32 of that shape from [-1, 1): integers, scrambled and scaled, so that every machine has exactly these."""
    import numpy as np
    i = np.arange(1, np.prod(shape) + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    i = (i ^ (i >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    return ((i >> np.uint64(40)).astype(np.float32) * np.float32(2 ** -23) - np.float32(1)).reshape(shape)


def short_hash(array):
    return hashlib.sha256(array.tobytes()).hexdigest()[:8]


def equal_rows(a, b):
    """Of rows (..., C), how many have the same bits in both."""
    same = (a == b).all(-1)
    return f"{int(same.sum())} of {same.size}"


def numpy_results():
    import numpy as np
    x, W, v = fixed(256, 384), fixed(384, 256), fixed(1_000_000)
    return {"version": f"NumPy {np.__version__}", "x @ W": short_hash(x @ W),
            "its rows, each alone": equal_rows(np.concatenate([row[None] @ W for row in x]), x @ W),
            "exp": short_hash(np.exp(8 * v)), "exp, float64": short_hash(np.exp(8 * v.astype(np.float64))),
            "tanh": short_hash(np.tanh(4 * v)), "sum": short_hash(v.sum()),
            "sums of columns": short_hash(v.reshape(1000, -1).sum(0))}


def torch_results():
    """Single operations, and a GPT of two layers: whole windows at once, each alone, and token by token from a cache."""
    import torch
    from torch.nn import functional
    torch.use_deterministic_algorithms(True)
    B, T, C, H, V = 8, 64, 128, 4, 256
    shapes = {"tokens": (V, C), "positions": (T, C), "head": (V, C)}
    for i in range(2):
        shapes |= {f"qkv {i}": (3 * C, C), f"out {i}": (C, C), f"up {i}": (4 * C, C), f"down {i}": (C, 4 * C)}
    weight = {name: (torch.from_numpy(fixed(*shape)) / 8).requires_grad_() for name, shape in shapes.items()}
    gain = [torch.ones(C, requires_grad=True) for _ in range(5)]
    bias = {name: (torch.from_numpy(fixed(shape[0])) / 8).requires_grad_() for name, shape in shapes.items()}

    def linear(x, name):
        return functional.linear(x, weight[name], bias[name])

    def norm(x, i):
        return functional.layer_norm(x, (C,), gain[i])

    def gpt(ids, start=0, past=None):
        x = weight["tokens"][ids] + weight["positions"][start:start + ids.shape[1]]
        for i in range(2):
            q, k, v = linear(norm(x, i), f"qkv {i}").view(*ids.shape, 3, H, C // H).permute(2, 0, 3, 1, 4)   # (B, H, T, D)
            if past:
                past[i].append((k, v))
                k, v = (torch.cat(parts, 2) for parts in zip(*past[i]))
            attended = functional.scaled_dot_product_attention(q, k, v, is_causal=not past)
            x = x + linear(attended.transpose(1, 2).reshape(x.shape), f"out {i}")
            x = x + linear(functional.gelu(linear(norm(x, i + 2), f"up {i}")), f"down {i}")
        return linear(norm(x, 4), "head")

    ids, past = (torch.arange(B * T) * 7919 % 251).view(B, T), ([], [])
    x, W, v = (torch.from_numpy(fixed(*shape)) for shape in ((256, 384), (384, 256), (1_000_000,)))
    logits = gpt(ids)
    functional.cross_entropy(logits[:, :-1].reshape(-1, V), ids[:, 1:].reshape(-1)).backward()
    gradients = torch.cat([p.grad.ravel() for p in (*weight.values(), *bias.values(), *gain) if p.grad is not None])
    with torch.no_grad():
        alone = torch.cat([gpt(window[None]) for window in ids])
        stepwise = torch.cat([gpt(ids[:, t:t + 1], t, past) for t in range(T)], 1)
    logits = logits.detach().numpy()
    return {"version": f"PyTorch {torch.__version__}", "x @ W": short_hash((x @ W).numpy()),
            "its rows, each alone": equal_rows(torch.cat([row[None] @ W for row in x]).numpy(), (x @ W).numpy()),
            "exp": short_hash(torch.exp(8 * v).numpy()), "tanh": short_hash(torch.tanh(4 * v).numpy()),
            "sum": short_hash(v.sum().numpy()),
            "logits of a GPT": short_hash(logits), "its gradients": short_hash(gradients.numpy()),
            "each window alone": equal_rows(alone.numpy(), logits), "token by token": equal_rows(stepwise.numpy(), logits)}


def other_environments(library, sets):
    """The switches of each row, as one would write them in a shell.  Where they do not say otherwise: one thread."""
    if library == "numpy":
        return ["", "OMP_NUM_THREADS=2", "OPENBLAS_CORETYPE=SkylakeX", "OPENBLAS_CORETYPE=Haswell",
                "OPENBLAS_CORETYPE=Haswell OMP_NUM_THREADS=2", "OPENBLAS_CORETYPE=Nehalem",
                "NPY_DISABLE_CPU_FEATURES=" + ",".join(name for name in sets if re.search("512|V4", name)),
                "NPY_DISABLE_CPU_FEATURES=" + ",".join(sets)]
    return ["", "OMP_NUM_THREADS=2", "ATEN_CPU_CAPABILITY=avx2", "ATEN_CPU_CAPABILITY=default", "ONEDNN_MAX_CPU_ISA=AVX2",
            "ONEDNN_MAX_CPU_ISA=SSE41", "MKL_CBWR=COMPATIBLE", "MKL_CBWR=COMPATIBLE OMP_NUM_THREADS=2",
            "MKL_CBWR=COMPATIBLE ATEN_CPU_CAPABILITY=default"]


def others(pythons, brief, timeout):
    """Prints a table for NumPy and one for PyTorch: bold is what differs from the first row."""
    sets = child(sys.executable, [__file__, "--child", "describe"], {}, timeout)[0]["numpy's sets"]
    for library in ("numpy", "torch"):
        found, left_out = [], []
        rows = [(sys.executable, switches) for switches in other_environments(library, sets)][:1 if brief else None]
        for python, switches in rows + [(python, "") for python in pythons]:
            environment = {"OMP_NUM_THREADS": "1", **dict(switch.split("=") for switch in switches.split())}
            try:
                found.append(child(python, [__file__, "--child", library], environment, timeout)[0])
            except NotRun as reason:
                left_out.append(f"Not run: {python} {switches}: {reason}")
                continue
            machine = ", ".join(found[-1].pop(word) for word in ("machine", "version"))
            if len(found) == 1:
                print_head("machine", "switches", *found[0])
            print_row(machine, switches and f"`{switches}`", *(
                value if value == found[0][name] else f"**{value}**" for name, value in found[-1].items()))
        if found:
            print_row("", "how many different", *(len({row[name] for row in found}) for name in found[0]))
        print("", *left_out, sep="\n")


def main():
    parser = argparse.ArgumentParser(description="Our hashes, or NumPy's and PyTorch's, in many environments.")
    parser.add_argument("--others", action="store_true", help="NumPy's and PyTorch's arithmetic instead of ours")
    parser.add_argument("--python", nargs="+", default=[], metavar="PATH", help="other interpreters, a row each")
    parser.add_argument("--brief", action="store_true", help="only the first row and those of --python")
    parser.add_argument("--cache", metavar="FOLDER", help="where to keep what was compiled")
    parser.add_argument("--timeout", type=float, default=3600, metavar="SECONDS", help="for each process")
    parser.add_argument("--child", choices=("describe", "numpy", "torch"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        results = {"describe": describe, "numpy": numpy_results, "torch": torch_results}[options.child]()
        print(json.dumps({"machine": f"{platform.machine()}, Python {platform.python_version()}", **results}))
    elif options.others:
        others(options.python, options.brief, options.timeout)
    else:
        with tempfile.TemporaryDirectory() as folder:
            sys.exit(not ours(options.python, options.brief, options.cache or folder, options.timeout))


if __name__ == "__main__":
    main()

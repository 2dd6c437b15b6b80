"""The promise itself: kernels, weights, logits, gradients and samples have the published bits, on whatever runs this test."""

import hashlib
import json
import os
import platform
import subprocess
import sys

import numpy as np
import pytest

from minigpt import __main__, exhaustive, verify
from minigpt.kernels import cache

# Sets the modes of this thread's arithmetic, as a library in the process might: through the C library's environment.
SET_MODE = """
import ctypes, platform
libm, environment = ctypes.CDLL("libm.so.6"), (ctypes.c_uint32 * 16)()
def set_mode(**bits):
    libm.fegetenv(environment)
    environment[7 if platform.machine() == "x86_64" else 0] ^= bits[platform.machine()]
    libm.fesetenv(environment)
"""
MODES = {                                   # bits of MXCSR and of FPCR
    "flush results to zero": "x86_64=1 << 15, aarch64=1 << 24",
    "read small numbers as zero": "x86_64=1 << 6, aarch64=1 << 24",
    "round down": "x86_64=1 << 13, aarch64=2 << 22",
    "round up": "x86_64=2 << 13, aarch64=1 << 22",
    "round towards zero": "x86_64=3 << 13, aarch64=3 << 22",
}
needs_glibc = pytest.mark.skipif(platform.system() != "Linux" or platform.machine() not in ("x86_64", "aarch64")
                                 or platform.libc_ver()[0] != "glibc", reason="sets modes through glibc's fenv_t")


CHUNK = 1016             # inputs a little below 1


def run(code, **environment):
    return subprocess.run([sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True)


def test_this_machine_computes_the_golden_bits():
    assert dict(verify.results()) == verify.EXPECTED


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="names of x86-64 processors")
def test_code_for_the_oldest_processor_computes_the_golden_bits(tmp_path):
    """Without fused multiply-add, and four lanes at a time.  (tests/test_contract.py does it for one with eight.)"""
    environment = {**os.environ, "NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": "", "NUMBA_CACHE_DIR": str(tmp_path)}
    found = subprocess.run([sys.executable, "-m", "minigpt", "verify", "--json"], env=environment, capture_output=True,
                           text=True)
    assert json.loads(found.stdout) == verify.EXPECTED and found.returncode == 0


# --- exp and log of every number --------------------------------------------------------------------------------------

def test_exp_and_log_of_a_chunk_are_as_exact_as_of_all():
    exponentials, of_exp, logarithms, of_log = exhaustive.examine(CHUNK)
    assert of_exp <= 1 and of_log <= 3 and exponentials != logarithms


def test_the_same_check_tells_numpys_exp_from_ours(monkeypatch):
    """A check that cannot fail shows nothing."""
    ours = exhaustive.examine(CHUNK)[0]

    def numpys(x, exponentials, logarithms):
        exponentials[:], logarithms[:] = np.exp(x), 0
    monkeypatch.setattr(exhaustive, "exp_and_log", numpys)
    assert exhaustive.examine(CHUNK)[0] != ours


def test_the_exhaustive_report_tells_equal_hashes_from_others(monkeypatch, capsys):
    monkeypatch.setattr(exhaustive, "CHUNKS", 2)
    monkeypatch.setattr(exhaustive, "examine", lambda chunk: (f"{chunk}", 0.5, f"{chunk + 1}", 0.25 + chunk))
    monkeypatch.setattr(exhaustive, "EXPECTED", {name: hashlib.sha256(text).hexdigest() for name, text in
                                                 (("exp", b"01"), ("log", b"12"))})
    assert exhaustive.report()
    assert "same, error at most 1.250" in capsys.readouterr().out
    exhaustive.EXPECTED["log"] = "0" * 64
    assert not exhaustive.report()
    assert "DIFFERENT" in capsys.readouterr().out


# --- what verify says -------------------------------------------------------------------------------------------------

RESULTS = [("a", "1" * 64), ("b", "2" * 64), ("c", "3" * 64)]


def test_report_of_equal_bits(capsys):
    assert verify.report(RESULTS, dict(RESULTS))
    said = capsys.readouterr().out
    assert said.count(" same\n") == 3 and "DIFFERENT" not in said and "3 of 3" in said and platform.python_version() in said


def test_report_names_the_first_that_differs(capsys):
    assert not verify.report(RESULTS, {**dict(RESULTS), "b": "0" * 64, "c": "0" * 64})
    said = capsys.readouterr().out
    assert said.count("DIFFERENT") == 2 and "1 of 3" in said and "first to differ is: b" in said


def test_report_as_json(capsys):
    assert not verify.report(RESULTS, {**dict(RESULTS), "b": "0" * 64}, as_json=True)
    assert json.loads(capsys.readouterr().out) == dict(RESULTS)


@pytest.mark.parametrize("changed, code", [({}, 0), ({"a": "0" * 64}, 1)])
def test_exit_code(changed, code, monkeypatch, capsys):
    monkeypatch.setattr(verify, "results", lambda: iter(RESULTS))
    monkeypatch.setattr(verify, "EXPECTED", {**dict(RESULTS), **changed})
    with pytest.raises(SystemExit) as exit:
        __main__.main(["verify"])
    assert exit.value.code == code


def test_a_wrong_bit_in_a_kernel_is_found_there(monkeypatch):
    def wrong(x, y, **options):
        right(x, y, **options)
        y.reshape(-1).view("uint32")[5] ^= 1
    right = verify.activations.gelu_forward
    monkeypatch.setattr(verify.activations, "gelu_forward", wrong)
    differing = [name for name, value in verify.kernels() if value != verify.EXPECTED[name]]
    assert differing == ["GELU and backward"]


def test_every_nan_hashes_alike_and_zeros_do_not():
    nans = np.array([0x7FC00000, 0xFFC00000, 0x7F800001], np.uint32).view(np.float32)
    assert len({verify.sha256(nans[i:i + 1]) for i in range(3)}) == 1
    assert verify.sha256(np.float32([0.0])) != verify.sha256(np.float32([-0.0]))


# --- modes of the processor in which the bits would be others ---------------------------------------------------------

@needs_glibc
@pytest.mark.parametrize("mode", MODES)
def test_a_mode_that_changes_results_is_refused(mode):
    code = SET_MODE + f"""
from minigpt.kernels.threads import threads_for
with threads_for(1): pass
set_mode({MODES[mode]})
try:
    with threads_for(1): pass
except FloatingPointError as error:
    set_mode({MODES[mode]})
    print("refused:", error)
with threads_for(1): pass
"""
    result = run(code)
    assert result.stdout.startswith("refused: something") and not result.stderr


@needs_glibc
def test_such_a_mode_in_a_thread_that_computes_for_this_one_is_refused():
    code = SET_MODE + f"""
from minigpt.kernels.threads import _begin, threads_for
set_mode({MODES["flush results to zero"]})
_begin()                                        # starts other workers, which inherit the mode
set_mode({MODES["flush results to zero"]})
with threads_for(1): print("alone: fine")
with threads_for(2 ** 40): pass
"""
    result = run(code, NUMBA_NUM_THREADS="2")
    assert result.stdout == "alone: fine\n" and "FloatingPointError: something in this process" in result.stderr


@needs_glibc
@pytest.mark.parametrize("program", ["minigpt.__main__ verify", "minigpt.__main__ sample", "train_shakespeare",
                                     "coder.__main__ compress"])
def test_the_programs_say_so_in_one_sentence(program, tmp_path):
    module, *arguments = program.split()
    if module == "train_shakespeare":
        (tmp_path / "text").write_text("To be, or not to be. " * 100)
        arguments = ["--preset", "quick", "--data", str(tmp_path / "text"), "--out", str(tmp_path)]
    elif arguments == ["sample"]:
        from minigpt.checkpoint import save_checkpoint
        from minigpt.model import GPT, GPTConfig
        from minigpt.tokenizer import ByteTokenizer
        save_checkpoint(tmp_path / "model", GPT(GPTConfig(n_layer=1, n_embd=8, n_head=1)), ByteTokenizer())
        arguments += ["--model", str(tmp_path / "model")]
    elif arguments == ["compress"]:
        (tmp_path / "text").write_text("To be, or not to be. " * 100)
        arguments += ["--mode", "scratch", str(tmp_path / "text")]
    mode = MODES["flush results to zero"]
    result = run(SET_MODE + f"import {module} as program\nset_mode({mode})\nprogram.main({arguments})")
    assert result.returncode == 1 and "flush small numbers" in result.stderr.splitlines()[-1], result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "text.mgz").exists()


# --- compiled code that its source has left behind --------------------------------------------------------------------

@pytest.mark.parametrize("place", ["beside the source", "NUMBA_CACHE_DIR"])
def test_stale_code_is_forgotten(place, tmp_path, monkeypatch):
    source, compiled = tmp_path / "package", tmp_path / "cache"
    monkeypatch.setenv("NUMBA_CACHE_DIR", "" if place == "beside the source" else str(compiled))
    folder = source / "__pycache__" if place == "beside the source" else compiled / "package_0123"
    folder.mkdir(parents=True), source.mkdir(exist_ok=True), (source / "a.py").touch()
    for name, age in (("old.nbi", -9), ("new.nbi", 9), ("old.pyc", -9)):
        (folder / name).touch()
        written = os.stat(source / "a.py").st_mtime
        os.utime(folder / name, (written + age, written + age))
    cache.forget_stale_code(source)
    assert sorted(path.name for path in folder.iterdir()) == ["new.nbi", "old.pyc"]

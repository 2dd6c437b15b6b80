"""The promise itself: weights, logits, gradients and samples have these bits, on whatever runs this test."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from llvmlite import binding

from tests.golden import digests

# Written down when x86-64 (compiled for generic, nehalem, haswell, skylake-avx512 and the machine itself) and aarch64
# agreed on them.  A change here is a new order of operations: every model and every compressed file is affected.
EXPECTED = {
    "muon: initial weights": "1708dc7f328f56a1b15c57c3ee3109ef226c662e279c3d9ddb81b53fe96c7e8a",
    "muon: logits": "91d0c173128d3bc97865f05ce69cdf14c120fc4676dd1b79865c2212c31c1a68",
    "muon: gradients": "2be7859ec8a32ff068f85d13e76fd51c7cb0461c242d5255e66e9d49c0e68f5c",
    "muon: weights after 4 steps": "88925bfa3112d9398ea80ed53e439500870d7d3c0652c8052b549a1a9ca6a095",
    "muon: sampled tokens": "565a91de8cce9b1e164214e683cd0544653bba868f905645e41ead608694bcfa",
    "adamw: initial weights": "63832676114befca912dca4f8ea42a5157b9152ff3d3d77b23a7569d65e0ee75",
    "adamw: logits": "87e8fd7dc0eb5b03c585a8864ba43d899915218691ddb95d9f8544cab1ffa211",
    "adamw: gradients": "aef8c143256e155a54c6967def2c413fbcf40f22af76e664913f91f8f210749d",
    "adamw: weights after 4 steps": "6826323c24c902e1ba44dc8146ca0ba033594544c1b0c9391b9601d493be7e15",
    "adamw: sampled tokens": "384a05d9dca53ffaf6c60bcb1e7cc1f897c57a9f79ae4cfa73f0eb496cfcc370",
}


def test_this_machine_computes_the_golden_bits():
    assert digests() == EXPECTED


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="names of x86-64 processors")
@pytest.mark.parametrize("processor", ["generic", "haswell"])
def test_code_for_another_processor_computes_the_golden_bits(processor, tmp_path):
    features = binding.get_host_cpu_features()
    needed = {"generic": "sse2", "haswell": "avx2"}[processor]
    if not features.get(needed):
        pytest.skip(f"this machine has no {needed}")
    environment = {**os.environ, "NUMBA_CPU_NAME": processor, "NUMBA_CPU_FEATURES": "", "NUMBA_CACHE_DIR": str(tmp_path)}
    script = Path(__file__).with_name("golden.py")
    run = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=True)
    assert json.loads(run.stdout) == EXPECTED

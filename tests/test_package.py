"""What is installed: one version, under every name."""

import configparser
import re
import subprocess
import sys
from pathlib import Path

import pytest

import coder.__main__
import coder.mgz
import minigpt.__main__

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    "main, name",
    [(minigpt.__main__.main, "minigpt"), (coder.__main__.main, "coder (minigpt)"), (coder.mgz.main, "mgz (minigpt)")],
)
def test_a_command_prints_the_version(main, name, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"{name} {minigpt.__version__}\n"


def test_the_version_is_a_semantic_one_and_stands_in_one_place():
    """CITATION.cff, which is read by programs that run none of ours, says it again."""
    assert re.fullmatch(r"\d+\.\d+\.\d+(-[0-9a-z.]+)?", minigpt.__version__)
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert setup["metadata"]["version"] == "attr: minigpt.__version__"
    assert f"\nversion: {minigpt.__version__}\n" in (ROOT / "CITATION.cff").read_text("utf-8")


def test_what_coder_offers_is_found_when_it_is_used():
    for name in coder.__all__:
        assert getattr(coder, name).__module__ in ("coder.library", "coder.messages", "coder.container")


@pytest.mark.parametrize("program", ["minigpt.trainer", "minigpt.__main__", "coder.__main__"])
def test_the_integer_kernels_are_imported_and_so_compiled_only_where_they_are_used(program):
    code = f"import sys, {program}; print([name for name in sys.modules if name.startswith('minigpt.kernels.quantised')])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert run.stdout == "[]\n"

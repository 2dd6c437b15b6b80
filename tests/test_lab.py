"""The laboratory: its command line, its limits, and that its chapter tells of every experiment."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from coder.lab import __main__ as command_line
from coder.lab import material
from coder.lab.__main__ import experiments, main
from minigpt import corpus

ROOT = Path(__file__).parents[1]
CHAPTER = (ROOT / "docs/LAB.md").read_text("utf-8")


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """An experiment `fake`, the only one, whose source is what is passed."""
    def make(source):
        (tmp_path / "fake.py").write_text(source)
        monkeypatch.setattr(command_line, "FOLDER", tmp_path)
        monkeypatch.setattr("coder.lab.__path__", [str(tmp_path)])
        monkeypatch.delitem(sys.modules, "coder.lab.fake", raising=False)
    return make


def says(*words):
    """The one line with which it exits with 1."""
    with pytest.raises(SystemExit) as caught:
        main(list(words))
    assert isinstance(caught.value.code, str) and re.fullmatch("lab: .+", caught.value.code)      # . is no line break
    return caught.value.code


# --- the rules --------------------------------------------------------------------------------------------------------

def test_a_file_of_the_lab_is_short():
    lengths = {path.name: len(path.read_text("utf-8").splitlines()) for path in (ROOT / "coder/lab").glob("*.py")}
    assert {name: length for name, length in lengths.items() if length > 150} == {}


def test_nothing_outside_the_lab_imports_it():
    for room in "minigpt", "coder":
        for path in (ROOT / room).rglob("*.py"):
            if path.parent.name != "lab":
                for node in ast.walk(ast.parse(path.read_bytes())):
                    names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                    names += [alias.name for alias in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
                    assert not any("lab" in name.split(".") for name in names), path


def test_the_chapter_has_a_section_for_every_experiment_in_order_and_no_other():
    sections = re.split(r"^### ", CHAPTER, flags=re.MULTILINE)[1:]
    told = [re.match(r"(\d+)\. `(\w+)`: \S", section).groups() for section in sections]
    assert told == [(title.partition(".")[0], name) for name, title in experiments().items()]
    assert [int(number) for number, _ in told] == list(range(1, len(told) + 1))
    for (_, name), section in zip(told, sections):
        places = [section.find(part) for part in ("**Claim.**", "**Experiment.**", f"\n    python -m coder.lab {name}\n",
                                                  "**Result.**", "**What it does not show.**")]
        assert -1 not in places and places == sorted(places), name


def test_every_experiment_runs_and_can_be_drawn():
    for name in experiments():
        tree = ast.parse((ROOT / f"coder/lab/{name}.py").read_bytes())
        functions = {node.name: node.args for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert {"run", "plot"} <= set(functions)
        assert len(functions["run"].args) == len(functions["run"].defaults), name         # the command passes none, or `data`
        assert [argument.arg for argument in functions["plot"].args] == ["figure", "results"], name


# --- the command line -------------------------------------------------------------------------------------------------

def test_the_list_takes_no_numba():
    code = "import sys, coder.lab.__main__ as lab; lab.main([]); sys.exit('numba' in sys.modules or 'numpy' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "")
    assert [line.split()[0] for line in run.stdout.splitlines()] == list(experiments())


def test_experiments_are_listed_by_number(tmp_path, monkeypatch, capsys):
    for name, docstring in {"b": "2. Second.", "a": "10. Tenth.\n\nMore.", "helper": "Not an experiment."}.items():
        (tmp_path / f"{name}.py").write_text(f'"""{docstring}"""\nimport nowhere\n')
    monkeypatch.setattr(command_line, "FOLDER", tmp_path)
    main([])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(maxsplit=1) for line in lines] == [["b", "2. Second."], ["a", "10. Tenth."]]


def test_an_unknown_name_is_one_sentence_that_names_the_known(fake):
    fake('"""1. Fake."""')
    assert says("helper") == "lab: there is no experiment 'helper': choose one of fake"


def test_a_run_gets_the_data_and_is_drawn(fake, tmp_path):
    fake('"""1. Fake."""\n'
         "def run(data=None): return [1, len(data)]\n"
         "def plot(figure, results): figure.subplots().plot(results)\n")
    pytest.importorskip("matplotlib")
    main(["fake", "--data", "four", "--plot", str(tmp_path / "f.png")])
    assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")


def test_data_for_an_experiment_without_a_text_is_one_sentence(fake):
    fake('"""1. Fake."""\ndef run(): return None')
    assert "leave out --data" in says("fake", "--data", "x")


@pytest.mark.parametrize("path", ["nowhere/x.png", "picture", "x.doc", "."])
def test_a_plot_that_cannot_be_written_is_refused_before_the_run(fake, tmp_path, monkeypatch, path):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    fake('"""1. Fake."""\ndef run(): raise AssertionError')
    assert path in says("fake", "--plot", path)


def test_without_matplotlib_a_plot_is_refused(fake, monkeypatch):
    fake('"""1. Fake."""\ndef run(): raise AssertionError')
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert "matplotlib" in says("fake", "--plot", "x.png")


@pytest.mark.parametrize("error", ["coder.container:CoderError", "minigpt.checkpoint:CheckpointError",
                                   "minigpt.corpus:CorpusError"])
def test_a_missing_model_or_text_is_one_sentence(fake, error):
    module, name = error.split(":")
    fake(f'"""1. Fake."""\nfrom {module} import {name}\ndef run(): raise {name}("there is none")')
    assert says("fake") == "lab: there is none"


def test_a_missing_file_is_one_sentence(tmp_path):
    with pytest.raises(corpus.CorpusError, match="nothing"):
        material.text(str(tmp_path / "nothing"))


def test_ctrl_c_is_130(fake):
    fake('"""1. Fake."""\ndef run(): raise KeyboardInterrupt')
    with pytest.raises(SystemExit) as caught:
        main(["fake"])
    assert caught.value.code == 130


# --- material ---------------------------------------------------------------------------------------------------------

def test_the_held_out_text_is_the_last_tenth_and_a_foreign_text_is_named(tmp_path, capsys):
    (tmp_path / "text").write_bytes(bytes(range(100)))
    assert material.text(str(tmp_path / "text")) == (bytes(range(90)), bytes(range(90, 100)))
    assert "the last 10 are held out (the figures in docs/LAB.md are those of tiny Shakespeare)" in capsys.readouterr().out


def test_a_text_that_is_too_short_is_one_sentence(tmp_path):
    (tmp_path / "text").write_bytes(bytes(100))
    with pytest.raises(corpus.CorpusError, match="has 100 bytes, but this needs a text of 110 or more"):
        material.text(str(tmp_path / "text"), least=11)


def test_a_table_is_aligned_whatever_it_holds(capsys):
    material.table(("text", "bits"), ("春天", "7.5"), ("a", "-12.25"))
    assert capsys.readouterr().out == "| text |   bits |\n| ---- | -----: |\n| 春天 |    7.5 |\n| a    | -12.25 |\n"


def test_smollm2_is_not_fetched(monkeypatch, tmp_path):
    monkeypatch.setenv("MINIGPT_CACHE", str(tmp_path))
    assert material.smollm2() is None

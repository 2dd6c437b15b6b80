"""mgz does what gzip does: names, exit codes, what is kept and what is removed."""

import gzip
import io
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from coder import __main__ as command_line
from coder import mgz, models
from coder.container import read
from coder.verify import LICENSE
from minigpt.checkpoint import save_checkpoint
from minigpt.tokenizer import ByteTokenizer
from tests.golden_coder import taught


@pytest.fixture(autouse=True)
def surroundings(monkeypatch, tmp_path):
    """A folder with two texts in it, and, elsewhere, a bundled model that reads English."""
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("MINIGPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path / "here")
    save_checkpoint(tmp_path / "bundled", taught(), ByteTokenizer())
    monkeypatch.setattr(models, "BUNDLED", tmp_path / "bundled")
    Path("text").write_bytes(LICENSE)
    Path("other").write_bytes(LICENSE[:500])
    before = {name: signal.signal(name, signal.default_int_handler) for name in (signal.SIGINT, signal.SIGTERM)}
    yield
    for name, handler in before.items():
        signal.signal(name, handler)


def run(*words):
    """The exit code."""
    with pytest.raises(SystemExit) as caught:
        mgz.main([str(word) for word in words])
    return caught.value.code


def contents():
    return {path.name: path.read_bytes() for path in Path().iterdir() if path.is_file()}


def test_files_are_replaced_and_come_back(capsys):
    before = contents()
    assert run("-1", "text", "other") == 0 and set(contents()) == {"text.mgz", "other.mgz"}
    assert run("-d", "text.mgz", "other.mgz") == 0 and contents() == before
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("words, mode", [([], "static"), (["-1"], "fast"), (["-3"], "fast"), (["-6"], "static"),
                                         (["-9"], "online"), (["--best"], "online"), (["--fast"], "fast"),
                                         (["--model", "../bundled"], "static")])
def test_a_level_stands_for_a_mode(words, mode):
    assert run("-k", *words, "text") == 0
    assert read(Path("text.mgz").read_bytes())[0].mode == mode and Path("text").exists()
    Path("text").unlink()
    assert run("-dk", "text.mgz") == 0 and Path("text").read_bytes() == LICENSE and Path("text.mgz").exists()


@pytest.fixture
def pipe(monkeypatch, capsysbinary):
    def call(data, *words):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        assert run(*words) == 0
        return capsysbinary.readouterr().out
    return call


def test_without_files_it_is_a_filter(pipe):
    file = pipe(LICENSE, "-1")
    assert pipe(file, "-d") == pipe(file, "-dc", "-") == LICENSE
    before = contents()
    assert pipe(b"", "-c1", "text", "other") == pipe(LICENSE, "-1") + pipe(LICENSE[:500], "-1")
    assert contents() == before


def test_a_terminal_gets_no_compressed_data(monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert run("-c", "text") == 1 and "-f forces it" in capsys.readouterr().err


def test_t_checks_and_writes_nothing(capsys):
    run("-1", "text")
    before = contents()
    assert run("-t", "text.mgz") == 0 and contents() == before and capsys.readouterr().err == ""
    assert run("-tv", "text.mgz") == 0 and capsys.readouterr().err == "mgz: text.mgz: OK\n"
    file = before["text.mgz"]
    Path("text.mgz").write_bytes(file[:-9] + b"?" + file[-8:])
    assert run("-t", "text.mgz") == 1
    said = capsys.readouterr().err
    assert said.startswith("mgz: text.mgz: block 1 of 1") and said.count("\n") == 1
    assert "; python -m coder decompress --salvage " in said                # an option that mgz has not


def test_l_lists_sizes(capsys):
    run("-1", "text", "other")
    capsys.readouterr()
    assert run("-l", "text.mgz", "other.mgz") == 0
    head, first, second = capsys.readouterr().out.splitlines()
    size = Path("text.mgz").stat().st_size
    assert head.split() == ["compressed", "uncompressed", "ratio", "uncompressed_name"]
    assert first.split() == [str(size), "1076", f"{100 - 100 * size / 1076:.1f}%", "text"]
    assert second.split()[1::2] == ["500", "other"]


def test_v_says_what_was_done(capsys):
    run("-1v", "text")
    said = capsys.readouterr().err
    assert said.startswith("mgz: text: 1,076 bytes, ") and said.endswith("% -- text.mgz\n")


# --- exit codes: 1 for an error, 2 for a warning, and the other files are done all the same --------------------------------

def exists():
    Path("text.mgz").write_bytes(b"precious")


@pytest.mark.parametrize("words, make, code, says", [
    (["missing"], None, 1, "missing: No such file"),
    (["-d", "text"], None, 2, "unknown suffix"),
    (["text.mgz"], exists, 2, "already has the suffix"),
    (["text"], exists, 2, "exists already"),
    ([".."], None, 2, "is a folder"),
    (["-d", "text.mgz"], exists, 2, "exists already"),
    (["-dc", "text.mgz"], exists, 1, "not a compressed file of this program"),
    (["-t", "text.mgz"], exists, 1, "not a compressed file of this program"),
    (["-l", "text.mgz"], exists, 1, "not a compressed file of this program"),
    (["-l"], None, 1, "cannot be listed"),
    (["/dev/null"], None, 2, "not a regular file"),
])
def test_what_cannot_be_done_is_one_line(words, make, code, says, capsys):
    if make:
        make()
    before = contents()
    assert run(*words) == code
    said = capsys.readouterr().err
    assert says in said and said.startswith("mgz: ") and said.count("\n") == 1 and contents() == before


@pytest.mark.parametrize("words", [["missing"], ["-d", "text"], [".."], ["text"], ["-d", "text.gz"], ["-t", "text"]])
def test_the_exit_codes_are_those_of_gzip(words):
    if not shutil.which("gzip"):
        pytest.skip("no gzip here")
    Path("text.gz").write_bytes(gzip.compress(LICENSE)), run("-1k", "text")
    theirs = subprocess.run(["gzip", *words], stdin=subprocess.DEVNULL, capture_output=True).returncode
    assert run(*(word.replace(".gz", ".mgz") for word in words)) == theirs


@pytest.mark.parametrize("number", ["-1", "two", "1.5"])
def test_a_number_of_workers_is_a_number(number, capsys):
    assert run(f"--workers={number}", "text") == 2 and f"must be a number from 1 on, not {number}" in capsys.readouterr().err


def test_one_bad_file_does_not_stop_the_others(capsys):
    assert run("-1", "missing", "text", "..", "other") == 1
    assert set(contents()) == {"text.mgz", "other.mgz"} and capsys.readouterr().err.count("\n") == 2
    assert run("-1q", "..") == 2 and capsys.readouterr().err == ""


def test_f_overwrites_and_follows_links(capsys):
    exists()
    assert run("-1f", "text") == 0 and read(Path("text.mgz").read_bytes())[0].length == 1076
    os.symlink("other", "link")
    assert run("-1", "link") == 2 and "not a regular file" in capsys.readouterr().err
    assert run("-1fk", "link") == 0 and Path("link.mgz").exists()


def test_times_and_mode_go_with_it():
    os.utime("text", ns=(10 ** 18, 10 ** 18))
    os.chmod("text", 0o640)
    run("-1", "text")
    assert Path("text.mgz").stat().st_mtime_ns == 10 ** 18 and Path("text.mgz").stat().st_mode & 0o777 == 0o640


def test_an_error_while_it_writes_leaves_the_input(monkeypatch, capsys):
    before = contents()
    monkeypatch.setattr(os, "fsync", lambda number: os.kill(os.getpid(), signal.SIGINT))
    assert run("-1", "text") == 1 and contents() == before and "interrupted" in capsys.readouterr().err


@pytest.mark.slow
def test_as_a_process_in_a_pipe():
    environment = {**os.environ, "PYTHONPATH": str(Path(command_line.__file__).parents[1])}
    packed = subprocess.run([sys.executable, "-m", "coder.mgz", "-1"], input=LICENSE, env=environment, capture_output=True)
    back = subprocess.run([sys.executable, "-m", "coder.mgz", "-d"], input=packed.stdout, env=environment, capture_output=True)
    assert (packed.returncode, back.returncode, back.stdout, back.stderr) == (0, 0, LICENSE, b"")

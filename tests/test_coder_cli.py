"""What a person does with python -m coder: compress, decompress, look, be told what is wrong, and stop."""

import errno
import hashlib
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from coder import __main__ as command_line
from coder import codec, engines, models, packed
from coder import predictor as predictors
from coder.compressor import compress
from coder.container import read
from coder.models import short_fingerprint
from coder.verify import LICENSE
from minigpt.checkpoint import save_checkpoint
from minigpt.model import GPT
from minigpt.tokenizer import ByteTokenizer, CharTokenizer
from tests.golden_coder import TINY, taught
from tests.test_container import header_size

TEXT = 2 * LICENSE
REAL_BUNDLED = models.BUNDLED
SHORT = b"Good morrow, cousin. What news? The king is dead, my lord."
modes = pytest.mark.parametrize("mode", ["static", "online", "scratch", "fast"])


@pytest.fixture(autouse=True)
def surroundings(monkeypatch, tmp_path):
    """A folder with a text in it, and, elsewhere, a bundled model that reads English; signals as in a terminal; one process, as
    test_engines.py has several."""
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("MINIGPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(predictors, "SCRATCH", TINY)
    monkeypatch.setattr(models, "BUNDLED", save(tmp_path / "bundled", taught()))
    monkeypatch.setattr(engines, "cores", lambda: 1)
    Path("text").write_bytes(LICENSE)
    Path("out").mkdir()
    before = {name: signal.signal(name, signal.default_int_handler) for name in (signal.SIGINT, signal.SIGTERM)}
    yield
    for name, handler in before.items():
        signal.signal(name, handler)


def save(path, model):
    save_checkpoint(path, model, ByteTokenizer())
    return path


def coder(*words):
    command_line.main([str(word) for word in words])


def says(*words):
    """The one line with which it exits with 1."""
    with pytest.raises(SystemExit) as caught:
        coder(*words)
    assert isinstance(caught.value.code, str)               # sys.exit(sentence) prints it and exits with 1
    assert re.fullmatch("coder: .+", caught.value.code)     # . is no line break
    return caught.value.code


def contents():
    """Path -> bytes of all files in the folder."""
    return {str(path): path.read_bytes() for path in Path().rglob("*") if path.is_file()}


@pytest.fixture
def untouched():
    """Nothing in the folder may change from now on, or from when it is called."""
    before = contents()
    yield lambda: before.clear() or before.update(contents())
    assert contents() == before


def header(path):
    return read(Path(path).read_bytes())[0]


def name_of(model):
    return short_fingerprint(model).hex()


# --- there and back ---------------------------------------------------------------------------------------------------

@modes
def test_a_file_comes_back(mode):
    coder("compress", "text", "--mode", mode)
    Path("text").unlink()
    coder("decompress", "text.mgz")
    assert Path("text").read_bytes() == LICENSE and header("text.mgz").mode == mode
    assert Path("text.mgz").stat().st_size < len(LICENSE)


def test_the_input_is_kept():
    coder("compress", "text")
    coder("decompress", "text.mgz", "-o", "again")
    assert set(contents()) == {"text", "text.mgz", "again"} and Path("text").read_bytes() == LICENSE


@pytest.mark.parametrize("data, words, mode", [
    (LICENSE, [], "static"),                                        # the model has read it
    (b"<p>%d</p>\n" * 40 % tuple(range(40)), [], "fast"),           # but nothing like this
    (b"<p>%d</p>\n" * 40 % tuple(range(40)), ["--model", "model"], "stored"),      # static, and to no use
    (LICENSE, ["--prime", "text"], "fast"),
])
def test_the_mode_follows_the_file_and_what_else_is_named(data, words, mode):
    Path("file").write_bytes(data)
    save("model", taught())
    coder("compress", "file", *words)
    assert header("file.mgz").mode == mode


@pytest.mark.parametrize("data", [b"", b"\0", b"\xff\xfe" * 300], ids=["empty", "one byte", "not text"])
def test_a_file_of_any_kind_comes_back(data):
    Path("file").write_bytes(data)
    coder("compress", "file")
    coder("decompress", "file.mgz", "-o", "again")
    assert Path("again").read_bytes() == data


@pytest.mark.parametrize("name", ["with space", "-dash", "名字", "a.mgz", "x" * 240,
                                  b"not\xffutf8".decode(errors="surrogateescape")])
def test_a_file_of_any_name_comes_back(name):
    Path(name).write_bytes(LICENSE)
    coder("compress", "--mode", "fast", "--", name)
    Path(name).unlink()
    coder("decompress", "--", name + ".mgz")
    assert Path(name).read_bytes() == LICENSE


def test_a_file_of_the_longest_name_comes_back():
    Path("x" * 251).write_bytes(LICENSE)
    coder("compress", "x" * 251)


def test_the_output_goes_where_o_says():
    Path("there").mkdir()
    coder("compress", "text", "-o", "there/packed")
    coder("decompress", "there/packed", "-o", "there/unpacked")
    assert Path("there/unpacked").read_bytes() == LICENSE and not Path("text.mgz").exists()


def test_times_and_mode_of_the_input_go_with_it():
    os.utime("text", ns=(10 ** 18 + 1, 10 ** 18 + 123_456_789))
    os.chmod("text", 0o640)
    coder("compress", "text")
    coder("decompress", "text.mgz", "-o", "again")
    for path in map(Path, ("text.mgz", "again")):
        assert path.stat().st_mtime_ns == 10 ** 18 + 123_456_789 and path.stat().st_mode & 0o7777 == 0o640


def test_what_others_may_not_read_they_cannot_read_in_between_either(monkeypatch):
    os.chmod("text", 0o600)
    seen = []
    monkeypatch.setattr(os, "fsync", lambda number: seen.append(os.fstat(number).st_mode & 0o077))
    coder("compress", "text")
    assert seen == [0]


# --- standard input and output ----------------------------------------------------------------------------------------

@pytest.fixture
def pipe(monkeypatch, capsysbinary):
    """pipe(data, ...): what the command writes to standard output when it reads data from standard input."""
    def call(data, *words):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        coder(*words)
        return capsysbinary.readouterr().out
    return call


def test_a_dash_is_standard_input_and_output(pipe, untouched):
    file = pipe(LICENSE, "compress", "-")
    assert read(file)[0].length == len(LICENSE)
    assert pipe(file, "decompress", "-") == LICENSE


def test_only_the_input_may_be_a_dash(pipe):
    pipe(LICENSE, "compress", "-", "-o", "packed")
    coder("decompress", "packed", "-o", "again")
    assert Path("again").read_bytes() == LICENSE


def test_only_the_output_may_be_a_dash(pipe, untouched):
    file = pipe(b"", "compress", "text", "-o", "-")
    assert pipe(file, "decompress", "-", "-o", "-") == LICENSE


def test_compressed_data_is_not_for_a_terminal(monkeypatch, untouched):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert "-f" in says("compress", "text", "-o", "-")


def test_a_terminal_can_be_forced(monkeypatch, capsysbinary):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    coder("compress", "text", "-o", "-", "-f")
    assert read(capsysbinary.readouterr().out)[0].length == len(LICENSE)


@pytest.mark.parametrize("name, words", [("stdin", ["-", "-o", "x"]), ("stdout", ["text", "-o", "-"]), ("stderr", ["text"])])
def test_a_closed_stream_is_no_traceback(name, words, monkeypatch):
    monkeypatch.setattr(sys, name, None)
    try:
        coder("compress", *words)
    except SystemExit as exit:
        assert isinstance(exit.code, str)


def test_a_device_is_written_to_not_replaced():
    coder("compress", "text", "-o", "/dev/null", "-f")
    assert Path("/dev/null").is_char_device()


# --- what is said -----------------------------------------------------------------------------------------------------

def test_all_is_quiet_where_nobody_asks(capsys):
    coder("compress", "text")
    coder("decompress", "text.mgz", "-f")
    assert capsys.readouterr() == ("", "")


def test_verbose_says_sizes_and_time(capsys):
    coder("compress", "text", "-v")
    coder("decompress", "text.mgz", "-f", "-v")
    size = Path("text.mgz").stat().st_size
    first, second = capsys.readouterr().err.splitlines()
    sizes = f"1,076 bytes, {size} compressed, {8 * size / 1076:.3f} bits per byte"
    assert first.startswith(f"text: {sizes}") and second.startswith(f"text.mgz: {sizes}") and first.endswith(" s")


def test_verbose_says_no_rate_of_an_empty_file(capsys):
    Path("empty").touch()
    coder("compress", "empty", "-v")
    assert re.fullmatch(r"empty: 0 bytes, 21 compressed, \d+\.\d s\n", capsys.readouterr().err)


@pytest.mark.parametrize("terminal, words, shown", [(True, [], True), (True, ["-q"], False), (False, [], False)])
def test_a_progress_bar_is_for_a_terminal(terminal, words, shown, monkeypatch):
    made, tqdm = [], command_line.tqdm
    monkeypatch.setattr(command_line, "tqdm", lambda **options: made.append(options) or tqdm(**options))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    coder("compress", "text", *words)
    assert (made[0]["total"], made[0]["disable"]) == (len(LICENSE), not shown)


def test_info_says_what_is_in_a_file(capsys):
    coder("compress", "text", "--mode", "online")
    coder("info", "text.mgz")
    said = capsys.readouterr().out
    for what in ("online", "1,076 bytes", f"{Path('text.mgz').stat().st_size} bytes", name_of(taught()),
                 "1 of 262,144 bytes, 0 stored", header("text.mgz").check.hex(), "0 damaged", "online, version 1"):
        assert what in said


@pytest.mark.parametrize("data", [bytes(range(128, 200)), pytest.param(b"")])
def test_info_of_a_stored_file_names_no_model(data, capsys):
    Path("stored").write_bytes(data)
    coder("compress", "stored")
    coder("info", "stored.mgz")
    assert re.search(r"model +none", capsys.readouterr().out)


def test_info_of_a_damaged_file_says_which_block_and_exits_with_1(capsys):
    coder("compress", "text")
    Path("text.mgz").write_bytes(Path("text.mgz").read_bytes()[:-1])
    with pytest.raises(SystemExit) as caught:
        coder("info", "text.mgz")
    assert caught.value.code == 1 and "1 damaged: 1" in capsys.readouterr().out


# --- models -----------------------------------------------------------------------------------------------------------

def test_the_default_is_the_bundled_model():
    coder("compress", "text", "--mode", "online")
    assert header("text.mgz").fingerprint == short_fingerprint(taught())


def characters():
    model = GPT(replace(TINY, vocab_size=2), 1)
    save_checkpoint("out/model.safetensors", model, CharTokenizer("ab"))


def bytes_too():
    save("out/model.safetensors", GPT(TINY, seed=5))


@pytest.mark.parametrize("train", [characters, bytes_too])
@pytest.mark.parametrize("words", [[], ["--mode", "static"], ["--mode", "online"], ["--mode", "fast"]])
def test_a_model_that_was_trained_in_this_folder_changes_nothing(words, train):
    coder("compress", "text", *words)
    before = Path("text.mgz").read_bytes()
    train()
    coder("compress", "text", *words, "-f")
    assert Path("text.mgz").read_bytes() == before
    coder("decompress", "text.mgz", "-f")
    assert Path("text").read_bytes() == LICENSE


def test_model_names_the_model():
    other = save("other", GPT(TINY, seed=5))
    coder("compress", "text", "--mode", "online", "--model", other)
    assert header("text.mgz").fingerprint == short_fingerprint(GPT(TINY, seed=5))
    coder("decompress", "text.mgz", "-f", "--model", other)
    assert Path("text").read_bytes() == LICENSE


def test_the_model_that_is_really_bundled_compresses_and_decompresses(monkeypatch):
    monkeypatch.setattr(models, "BUNDLED", REAL_BUNDLED)
    Path("text").write_bytes(SHORT)
    coder("compress", "text")
    assert header("text.mgz").mode == "static"
    assert header("text.mgz").fingerprint == short_fingerprint(models.load(REAL_BUNDLED)[0])
    Path("text").unlink()
    coder("decompress", "text.mgz")
    assert Path("text").read_bytes() == SHORT


def test_a_packed_model_can_be_named():
    Path("packed").write_bytes(packed.pack(GPT(TINY, seed=5)))
    coder("compress", "text", "--mode", "online", "--model", "packed")
    coder("decompress", "text.mgz", "-f", "--model", "packed")
    assert Path("text").read_bytes() == LICENSE


def test_a_damaged_packed_model_is_one_sentence(untouched):
    file = packed.pack(taught())
    Path("packed").write_bytes(file[:-1])
    untouched()
    assert "packed cannot be read" in says("compress", "text", "--model", "packed")


def test_without_the_model_that_a_file_needs_the_sentence_names_it_and_says_what_to_pass(untouched):
    other = save("other", GPT(TINY, seed=5))
    coder("compress", "text", "--mode", "online", "--model", other)
    untouched()
    shutil.rmtree(models.cache_folder(None))
    said = says("decompress", "text.mgz", "-f")
    assert f"needs the model with the fingerprint {name_of(GPT(TINY, seed=5))}" in said
    assert f"the bundled model has {name_of(taught())}" in said and "--model FILE" in said


def test_a_wrong_model_that_was_passed_is_told_by_its_path_and_both_fingerprints():
    coder("compress", "text", "--mode", "online")
    other = GPT(TINY, seed=5)
    said = says("decompress", "text.mgz", "-f", "--model", save("other", other))
    assert f"fingerprint {name_of(taught())}" in said and f"other has {name_of(other)}" in said


@pytest.mark.slow
def test_scratch_needs_no_model(monkeypatch):
    monkeypatch.setattr(models, "load", None)
    coder("compress", "text", "--mode", "scratch")
    coder("decompress", "text.mgz", "-f")


def test_fast_needs_no_model(capsys, monkeypatch):
    monkeypatch.setattr(models, "load", None)
    coder("compress", "text", "--mode", "fast")
    coder("decompress", "text.mgz", "-f")
    coder("info", "text.mgz")
    said = capsys.readouterr().out
    assert re.search(r"mode +fast", said) and re.search(r"model +none", said) and re.search(r"primer +none", said)


# --- models by fingerprint, and in the file ---------------------------------------------------------------------------------

def test_a_model_of_ones_own_is_kept_under_its_fingerprint_and_found_again(capsys):
    other = save("other", GPT(TINY, seed=5))
    coder("compress", "text", "--mode", "online", "--model", other)
    said, name = capsys.readouterr().err, name_of(GPT(TINY, seed=5))
    assert re.fullmatch(f"coder: text.mgz needs the model {name} to be decompressed; .*gpt keeps it .*\n", said)
    Path(other).unlink()
    coder("decompress", "text.mgz", "-o", "again")
    assert Path("again").read_bytes() == LICENSE
    kept = models.find_kept(short_fingerprint(GPT(TINY, seed=5)))
    assert packed.unpack(kept.read_bytes())[0].config == TINY and kept.parent.parent == models.cache_folder(None)


def test_a_damaged_copy_is_not_taken_for_the_model():
    coder("compress", "text", "--mode", "online", "--model", save("other", GPT(TINY, seed=5)))
    kept = models.find_kept(short_fingerprint(GPT(TINY, seed=5)))
    kept.write_bytes(packed.pack(GPT(TINY, seed=6), None, None))
    assert f"has {name_of(GPT(TINY, seed=6))}" in says("decompress", "text.mgz", "-o", "again")
    kept.write_bytes(b"\x89MGP damaged")
    assert "cannot be read" in says("decompress", "text.mgz", "-o", "again")


def test_where_no_copy_can_be_kept_the_file_is_written_all_the_same(monkeypatch, capsys):
    monkeypatch.setenv("MINIGPT_CACHE", "text/nowhere")
    coder("compress", "text", "--mode", "online", "--model", save("other", GPT(TINY, seed=5)))
    assert "needs the model" in capsys.readouterr().err and Path("text.mgz").exists()


@pytest.mark.parametrize("words", [[], ["--mode", "online"]])
def test_a_file_with_its_model_in_it_opens_with_nothing_else(words, monkeypatch, capsys):
    coder("compress", "text", "--embed", "--model", save("other", taught()), *words)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(models, "load", None)
    coder("decompress", "text.mgz", "-o", "again")
    coder("info", "text.mgz")
    model = len(packed.pack(taught()))
    assert Path("again").read_bytes() == LICENSE
    said = capsys.readouterr().out
    found = re.search(r"compressed +([\d,]+) bytes.*: ([\d,]+) of the model in it, ([\d,]+) of the rest", said)
    whole, of_model, rest = (int(number.replace(",", "")) for number in found.groups())
    assert whole == Path("text.mgz").stat().st_size == of_model + rest and model < of_model < model + 20


def test_a_mode_without_a_model_embeds_none(untouched):
    assert "leave out --embed" in says("compress", "text", "--mode", "fast", "--embed")


def test_a_model_that_was_released_is_named_by_its_release(monkeypatch):
    other = GPT(TINY, seed=5)
    monkeypatch.setitem(models.RELEASED, name_of(other), "coder/shakespeare.gpt of version 0.0")
    coder("compress", "text", "--mode", "online", "--model", save("other", other))
    shutil.rmtree(models.cache_folder(None))
    assert "(coder/shakespeare.gpt of version 0.0)" in says("decompress", "text.mgz", "-f")


def test_the_bundled_model_is_in_the_list_of_those_that_were_released():
    assert short_fingerprint(models.load(REAL_BUNDLED)[0]).hex() in models.RELEASED


# --- segments -----------------------------------------------------------------------------------------------------------

def test_a_file_is_cut_into_segments_of_the_size_asked_for(capsys):
    coder("compress", "text", "--segment", "0.5K", "--mode", "fast")
    coder("decompress", "text.mgz", "-o", "again")
    coder("info", "text.mgz")
    said = capsys.readouterr().out
    assert Path("again").read_bytes() == LICENSE and re.search(r"segments +3\n", said)
    assert [int(words.split()[3]) for words in said.splitlines()[-3:]] == [512, 512, 52]
    assert hashlib.sha256(LICENSE).hexdigest() in said


@pytest.mark.parametrize("text, start, stop", [("500:600", 500, 600), (":3", 0, 3), ("1000:", 1000, None), (":", 0, None)])
def test_a_range_of_the_original_is_written(text, start, stop, pipe):
    coder("compress", "text", "--segment", "300", "--mode", "fast")
    coder("decompress", "text.mgz", "--range", text, "-o", "part")
    assert Path("part").read_bytes() == LICENSE[start:stop]
    assert pipe(Path("text.mgz").read_bytes(), "decompress", "-", "--range", text) == LICENSE[start:stop]


def test_a_range_that_is_not_there_is_one_sentence(untouched):
    coder("compress", "text")
    untouched()
    assert "the original has 1,076 bytes" in says("decompress", "text.mgz", "-o", "part", "--range", "9:1077")


@pytest.mark.parametrize("words", [["compress", "text", "--segment", "0"], ["compress", "text", "--segment", "2G"],
                                   ["compress", "text", "--segment", "many"], ["decompress", "x.mgz", "--range", "5"],
                                   ["decompress", "x.mgz", "--range", "a:b"],
                                   ["decompress", "x.mgz", "--range", "1:2", "--salvage"]])
def test_a_size_or_range_that_is_none_shows_the_usage(words, capsys, untouched):
    with pytest.raises(SystemExit) as caught:
        coder(*words)
    assert caught.value.code == 2 and capsys.readouterr().err.startswith("usage: ")


def test_joined_files_come_back(pipe):
    coder("compress", "text", "--segment", "500", "--mode", "fast")
    coder("compress", "text", "-o", "second")
    assert pipe(Path("text.mgz").read_bytes() + Path("second").read_bytes(), "decompress", "-") == 2 * LICENSE


def test_salvage_reads_standard_input_too(pipe):
    coder("compress", "text", "--segment", "500", "--mode", "fast")
    assert pipe(Path("text.mgz").read_bytes(), "decompress", "-", "--salvage") == LICENSE


def test_info_of_a_file_that_is_cut_off_between_segments_exits_with_1(capsys):
    coder("compress", "text", "--segment", "500", "--mode", "fast")
    file = Path("text.mgz").read_bytes()
    Path("text.mgz").write_bytes(file[:file.rindex(b"\x89GZ\6")])
    with pytest.raises(SystemExit) as caught:
        coder("info", "text.mgz")
    assert caught.value.code == 1 and "cut off" in capsys.readouterr().out


# --- primers ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("mode", ["online", pytest.param("scratch", marks=pytest.mark.slow), "fast"])
def test_prime_names_a_text_that_both_sides_have(mode, capsys):
    Path("like it").write_bytes(LICENSE[:800])
    coder("compress", "text", "--mode", mode, "-o", "alone")
    coder("compress", "text", "--mode", mode, "--prime", "like it")
    Path("text").unlink()
    coder("decompress", "text.mgz", "--prime", "like it")
    assert Path("text").read_bytes() == LICENSE and Path("text.mgz").stat().st_size + 50 < Path("alone").stat().st_size
    coder("info", "text.mgz")
    assert header("text.mgz").primer.hex() in capsys.readouterr().out


@pytest.mark.parametrize("words, says_so", [([], "--prime"), (["--prime", "other"], "that of this one begins with")])
def test_a_missing_or_wrong_primer_is_one_sentence_and_leaves_nothing(words, says_so):
    Path("like it").write_bytes(LICENSE[:800])
    Path("other").write_bytes(LICENSE[:801])
    coder("compress", "text", "--mode", "fast", "--prime", "like it")
    said = says("decompress", "text.mgz", "-o", "again", *words)
    assert says_so in said and header("text.mgz").primer.hex() in said and not Path("again").exists()


@pytest.mark.parametrize("words, says_so", [
    (["--mode", "static", "--prime", "text"], "static"), (["--mode", "fast", "--prime", "missing"], "missing"),
    (["--mode", "fast", "--prime", "out"], "out"), (["--mode", "fast", "--prime", "empty"], "empty"),
])
def test_a_primer_that_cannot_be_used_is_one_sentence(words, says_so):
    Path("empty").touch()
    before = contents()
    assert says_so in says("compress", "text", *words)
    assert contents() == before


def test_what_is_stored_needs_no_model(monkeypatch):
    Path("noise").write_bytes(os.urandom(500))
    coder("compress", "noise")
    monkeypatch.setattr(models, "load", None)
    coder("decompress", "noise.mgz", "-f")


@pytest.mark.parametrize("path", ["nothing", "text", "out", "text/x", "/dev/null"])
def test_a_model_that_is_none_is_one_sentence(path, untouched):
    assert path in says("compress", "text", "--model", path)


def test_a_model_of_characters_is_refused(untouched):
    save_checkpoint("characters", GPT(replace(TINY, vocab_size=2), 1), CharTokenizer("ab"))
    untouched()
    assert "2 tokens" in says("compress", "text", "--model", "characters")


# --- wrong inputs -----------------------------------------------------------------------------------------------------

def make_bad_inputs():
    coder("compress", "text")
    file = Path("text.mgz").read_bytes()
    for name, data in {"empty": b"", "foreign": b"PK\3\4" + bytes(100), "a text": LICENSE, "cut in the header": file[:30],
                       "newer": file[:3] + b"\xff" + file[4:], "header damaged": file[:24] + b"??" + file[26:],
                       "cut": file[:-7], "damaged": file[:-9] + b"?" + file[-8:], "longer": file + b"\n"}.items():
        Path(name + ".mgz").write_bytes(data)


@pytest.mark.parametrize("name, what", [
    ("empty", "empty"), ("foreign", "not a compressed file of this program"), ("a text", "not a compressed file"),
    ("cut in the header", "cut off"), ("newer", "newer program"), ("header damaged", "header of the file is damaged"),
    ("cut", "block 1 of 1"), ("damaged", "block 1 of 1"), ("longer", "no part of a compressed file"),
    ("missing", "No such file"),
])
def test_a_file_that_cannot_be_decompressed_is_one_sentence(name, what, untouched):
    make_bad_inputs()
    untouched()
    assert what in says("decompress", f"{name}.mgz")
    assert what in says("decompress", f"{name}.mgz", "-o", "out/new")


@pytest.mark.parametrize("name", ["empty", "foreign", "a text", "cut in the header", "newer", "header damaged", "longer",
                                  "missing"])
def test_info_of_what_is_no_compressed_file_is_one_sentence(name):
    make_bad_inputs()
    says("info", f"{name}.mgz")


def test_a_damaged_file_leaves_what_was_there_before():
    make_bad_inputs()
    Path("precious").write_bytes(b"precious")
    says("decompress", "damaged.mgz", "-o", "precious", "-f")
    assert Path("precious").read_bytes() == b"precious"


def test_a_suffix_that_is_unknown_asks_for_a_name(untouched):
    said = says("decompress", "text")
    assert ".mgz" in said and "-o" in said


@pytest.mark.parametrize("command", ["compress", "decompress", "info"])
@pytest.mark.parametrize("name", ["out", ".", "", "nowhere/text", "text/x"])
def test_an_input_that_is_no_file_is_one_sentence(command, name, untouched):
    says(command, name, *(["-o", "new"] if command != "info" else []))


def test_salvage_writes_what_is_intact_and_names_what_is_not():
    file = bytearray(compress(TEXT, "static", taught(), block_bits=10))
    file[header_size(bytes(file)) + len(read(bytes(file))[1][0].payload) + 20] ^= 1
    Path("torn.mgz").write_bytes(file)
    said = says("decompress", "torn.mgz", "--salvage")
    assert "1,128 of 2,152 bytes" in said and "1,024 to 2,047" in said
    assert Path("torn").read_bytes() == TEXT[:1024] + TEXT[2048:]


def test_bytes_behind_the_end_do_not_hinder_salvage():
    coder("compress", "text")
    Path("longer.mgz").write_bytes(Path("text.mgz").read_bytes() + b"\n")
    coder("decompress", "longer.mgz", "--salvage")
    assert Path("longer").read_bytes() == LICENSE


def test_salvage_of_a_whole_file_is_a_decompression():
    coder("compress", "text")
    coder("decompress", "text.mgz", "--salvage", "-f")
    assert Path("text").read_bytes() == LICENSE


@pytest.mark.parametrize("words", [[], ["compress"], ["compress", "a", "b"], ["squeeze", "a"],
                                   ["compress", "text", "--mode", "x"], ["info", "text", "-o", "x"]])
def test_a_wrong_command_line_shows_the_usage(words, capsys, untouched):
    with pytest.raises(SystemExit) as caught:
        coder(*words)
    assert caught.value.code == 2 and capsys.readouterr().err.startswith("usage: ")


# --- wrong outputs ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("command, words", [("compress", ["text"]), ("decompress", ["text.mgz", "-o", "text"])])
def test_nothing_is_overwritten_without_f(command, words, untouched):
    coder("compress", "text")
    untouched()
    said = says(command, *words)
    assert "exists" in said and "-f" in said


def test_with_f_it_is_overwritten():
    Path("text.mgz").write_bytes(b"old")
    coder("compress", "text", "-f")
    Path("text").write_bytes(b"changed")
    coder("decompress", "text.mgz", "-f")
    assert Path("text").read_bytes() == LICENSE


def test_what_appears_while_it_works_is_not_overwritten(monkeypatch):
    original = command_line.compress
    monkeypatch.setattr(command_line, "compress", lambda *arguments, **options:
                        Path("text.mgz").write_bytes(b"precious") and original(*arguments, **options))
    assert "exists" in says("compress", "text")
    assert Path("text.mgz").read_bytes() == b"precious"


@pytest.mark.parametrize("target", ["out", ".", "text/x", "nowhere/x", "/proc/x", "y" * 300])
@pytest.mark.parametrize("force", [[], ["-f"]])
def test_an_output_that_cannot_be_is_one_sentence(target, force, untouched):
    says("compress", "text", "-o", target, *force)


def test_a_part_that_another_one_writes_is_left_alone():
    """In containers every process may have the same number."""
    theirs = Path(f".{os.getpid()}.part")
    theirs.write_bytes(b"theirs")
    try:
        coder("compress", "text")
    except SystemExit:
        pass
    assert theirs.read_bytes() == b"theirs"


@pytest.mark.parametrize("function", ["os.fsync", "os.replace", "shutil.copystat"])
@pytest.mark.parametrize("existing", [None, b"precious"])
def test_a_full_disk_leaves_what_was_there_before(function, existing, monkeypatch, untouched):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if existing:
        Path("text.mgz").write_bytes(existing)
    untouched()
    monkeypatch.setattr(function, full)
    assert "No space left" in says("compress", "text", "-f")


def test_no_memory_is_one_sentence(monkeypatch, untouched):
    def hungry(*arguments, **options):
        raise MemoryError
    monkeypatch.setattr(command_line, "compress", hungry)
    assert says("compress", "text") == "coder: not enough memory"


@pytest.mark.parametrize("name", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_while_it_works_leaves_nothing(name, monkeypatch, untouched):
    original = codec.encode_block
    monkeypatch.setattr(codec, "encode_block", lambda *arguments: os.kill(os.getpid(), name) or original(*arguments))
    assert "interrupted" in says("compress", "text")


@pytest.mark.parametrize("name", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_while_it_writes_leaves_nothing(name, monkeypatch, untouched):
    monkeypatch.setattr(os, "fsync", lambda number: os.kill(os.getpid(), name))
    assert "interrupted" in says("compress", "text")


# --- as a process -----------------------------------------------------------------------------------------------------

def start(*words, **options):
    """Signals as in a terminal, and output through a buffer as in a pipe, whatever runs these tests."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    environment["PYTHONPATH"] = str(Path(command_line.__file__).parents[1])
    return subprocess.Popen([sys.executable, "-m", "coder", *words], env=environment, stderr=subprocess.PIPE,
                            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), **options)


def end(process):
    """(exit status, what it said)"""
    said = process.stderr.read().decode()
    process.stderr.close()
    return process.wait(), said


@pytest.mark.slow
def test_a_pipeline_in_processes():
    packing = start("compress", "-", stdin=open("text", "rb"), stdout=subprocess.PIPE)
    unpacking = start("decompress", "-", stdin=packing.stdout, stdout=subprocess.PIPE)
    packing.stdout.close()
    with unpacking.stdout as stream:
        assert stream.read() == LICENSE
    assert end(packing) == end(unpacking) == (0, "")


@pytest.mark.slow
@pytest.mark.parametrize("words", [["decompress", "text", "-o", "x"], ["compress", "nothing"], ["info", "text"]])
def test_an_error_is_one_line_and_1(words, untouched):
    status, said = end(start(*words))
    assert status == 1 and re.fullmatch("coder: .+\n", said)


@pytest.mark.slow
@pytest.mark.parametrize("name", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_in_a_process_is_one_line_and_leaves_nothing(name):
    before = contents()
    os.mkfifo("pipe")
    process = start("compress", "pipe", "--mode", "scratch", "-o", "packed")
    with open("pipe", "wb") as pipe:                        # waits until the other side reads
        pipe.write(os.urandom(3 * 10 ** 6))                 # minutes of work
    os.remove("pipe")
    time.sleep(1)
    process.send_signal(name)
    assert end(process) == (1, "coder: interrupted, nothing written\n")
    assert contents() == before and "packed" not in before


@pytest.mark.slow
@pytest.mark.parametrize("script", [["-m", "coder", "info", "text"], ["-m", "compress_demo", "text"]])
def test_ctrl_c_while_python_imports_is_no_traceback(script):
    """Wherever it comes: numba stands for whatever takes long to import."""
    Path("numba.py").write_text("print(flush=True)\nimport time\ntime.sleep(60)")
    root = str(Path(command_line.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path().absolute()), root])}
    process = subprocess.Popen([sys.executable, *script], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    with process.stdout as stream:
        stream.readline()                                   # now it imports numba
        process.send_signal(signal.SIGINT)
        assert end(process) == (-signal.SIGINT, "")         # which a shell reports as 130


@pytest.mark.slow
@pytest.mark.parametrize("words", [
    ["compress", "text", "-o", "-"],
    pytest.param(["info", "text.mgz"]),
])
def test_a_reader_that_has_gone_is_one_line(words):
    coder("compress", "text")
    reading, writing = os.pipe()
    os.close(reading)
    process = start(*words, stdout=writing)
    os.close(writing)
    assert end(process) == (1, "coder: the reader closed the output\n")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("words", [["compress", "text", "-o", "-"], ["info", "text.mgz"]])
def test_a_full_disk_behind_standard_output_is_one_line(words):
    coder("compress", "text")
    with open("/dev/full", "wb") as full:
        assert end(start(*words, stdout=full)) == (1, "coder: output: No space left on device\n")

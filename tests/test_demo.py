"""compress_demo.py: its figures are those of the real functions, its page shows the whole text, its errors are sentences."""

import bz2
import gzip
import io
import lzma
import os
import re
import socket
import sys
from contextlib import redirect_stdout
from fractions import Fraction
from html.parser import HTMLParser
from math import log
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import compress_demo
from coder import baselines, codec, models, packed, report
from coder import predictor as predictors
from coder.compressor import compress
from coder.container import CoderError, read
from coder.intervals import bits, decode, interval
from minigpt import corpus
from minigpt.checkpoint import fingerprint, load_checkpoint, save_checkpoint
from minigpt.model import GPT, GPTConfig
from minigpt.optimizer import OptimizerConfig
from minigpt.tokenizer import ByteTokenizer, CharTokenizer
from minigpt.trainer import TrainConfig, Trainer

CONFIG = GPTConfig(block_size=16, n_layer=1, n_head=2, n_embd=16)
TEXT = "".join(f'<b>KING &amp; {i} "Romeos"</b>: naïve “news” 多少\n' for i in range(60)).encode()
SHORT = b"Good morrow, cousin. What news? The king is dead, my lord."
ODD = b"a\xffb \xe2\x80 \x1b[31m\r\n\ttab \xc2\x85 " + "é多\U0001f600\u202e".encode() + b"<script>alert('&')</script>"


@pytest.fixture(scope="module", autouse=True)
def tiny_scratch():
    """Learning from scratch, with less of a model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predictors, "SCRATCH", CONFIG)
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a model in run/ that has seen some of TEXT."""
    folder = tmp_path_factory.mktemp("trained")
    trainer = Trainer(GPT(CONFIG, 1), ByteTokenizer(), TEXT, TrainConfig(steps=60, batch_size=8), OptimizerConfig(warmup=5),
                      folder / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "matplotlib", None)
        trainer.run()
    return folder


@pytest.fixture(scope="module")
def model(trained):
    return load_checkpoint(trained / "run/model.safetensors").model


def demo(folder, *options):
    """What the script prints when it runs in this folder, where nothing can connect to anything and nothing is cached."""
    said = io.TextIOWrapper(io.BytesIO(), "utf-8")
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(said):
        patch.chdir(folder)
        patch.setenv("MINIGPT_CACHE", str(folder / "cache"))
        patch.setattr(socket.socket, "connect", lambda *_: pytest.fail("the network was asked"))
        compress_demo.main([str(option) for option in options])
    said.seek(0)
    return said.read()


@pytest.fixture(scope="module")
def file(trained):
    path = trained / "text"
    path.write_bytes(TEXT[:600])
    return path


@pytest.fixture(scope="module")
def said(trained, file):
    return demo(trained, file, "--html", trained / "page.html", "--model", trained / "run/model.safetensors")


def row(said, name):
    return next(line for line in said.splitlines() if line.startswith(f"{name} "))


def number(word):
    return float(word.replace(",", ""))


def exit_with(folder, *options):
    with pytest.raises(SystemExit) as caught:
        demo(folder, *options)
    return caught.value.code


# --- the figures ------------------------------------------------------------------------------------------------------

def texts():
    data = TEXT[:600]
    return data, compress_demo.shuffled(data), compress_demo.noise(600)


REAL = {
    "gzip -9": lambda data, model: gzip.compress(data, 9),
    "bzip2 -9": lambda data, model: bz2.compress(data, 9),
    "xz -9e": lambda data, model: lzma.compress(data, preset=9 | lzma.PRESET_EXTREME),
    "order 0": lambda data, model: baselines.compress(data, 0),
    "order 2": lambda data, model: baselines.compress(data, 2),
    "GPT static": lambda data, model: compress(data, "static", model),
    "GPT online": lambda data, model: compress(data, "online", model),
    "GPT scratch": lambda data, model: compress(data, "scratch"),
    "fast": lambda data, model: compress(data, "fast"),
}


@pytest.mark.parametrize("name", REAL)
def test_each_row_has_the_sizes_of_the_real_functions(name, said, model):
    shared = "model 0.0 MB" if name in ("GPT static", "GPT online") else "nothing"
    found = row(said, name).removeprefix(name).strip().removeprefix(shared).split()
    sizes = [len(REAL[name](data, model)) for data in texts()]
    assert [number(size) for size in found[0::3]] == sizes
    assert found[1::3] == [f"{8 * size / 600:.3f}" for size in sizes]


@pytest.mark.parametrize("name, module", [("zstd -22", "zstandard"), ("brotli -11", "brotli")])
def test_what_is_not_in_the_standard_library_has_a_row_where_it_is_installed(name, module, model):
    pytest.importorskip(module)
    method = next(m for m in compress_demo.methods(model, 1) if m.name == name)
    assert method.decompress(method.compress(TEXT), len(TEXT)) == TEXT
    assert len(method.compress(TEXT)) < len(gzip.compress(TEXT, 9))


def test_it_works_where_they_are_not_installed(monkeypatch):
    for module in ("compression.zstd", "zstandard", "brotli"):
        monkeypatch.setitem(sys.modules, module, None)
    assert [m.name for m in compress_demo.methods(None, 1)] == [
        "gzip -9", "bzip2 -9", "xz -9e", "order 0", "order 2", "fast", "GPT scratch", "GPT online", "GPT static"]


@pytest.mark.parametrize("data", [b"x", TEXT[:400], ODD * 3], ids=["one byte", "text", "odd"])
def test_every_method_gives_every_text_back(data, model):
    for method in compress_demo.methods(model, 1):
        assert method.decompress(method.compress(data), len(data)) == data


def test_a_method_that_gives_something_else_back_is_found_out():
    liar = compress_demo.Method("liar", lambda data: b"", lambda file, size: bytes(size))
    with pytest.raises(CoderError, match="liar does not give the text back: SHA-256 mismatch"):
        compress_demo.measure([liar], {"the text": b"truth"})


def test_shuffled_has_the_same_letters_and_noise_all_bytes_always_alike():
    data, shuffled, noise = texts()
    assert sorted(shuffled) == sorted(data) and shuffled != data
    assert len(noise) == 600 and len(set(noise)) > 200 and len(lzma.compress(noise)) > 600
    assert (shuffled, noise) == texts()[1:]


def test_the_model_pays_from_where_both_ways_take_as_much():
    size = compress_demo.pays_from(1_000_000, 0.5, 0.3)
    assert 1_000_000 + 0.3 * size == pytest.approx(0.5 * size)
    assert compress_demo.pays_from(1_000_000, 0.3, 0.3) is None
    assert compress_demo.pays_from(1_000_000, 0.3, 0.5) is None


def account(said, name):
    return next(line for line in said.split("Two accounts")[1].splitlines() if line.startswith(name)).removeprefix(name)


def test_the_second_account_adds_the_weights_where_there_are_any(said, model):
    size = sum(4 * parameter.data.size for parameter in model.parameters().values())
    for name in ("GPT static", "GPT online", "GPT scratch"):
        code, both = map(number, account(said, name).split()[:2])
        assert code == number(re.search(r"(?:nothing|MB) +([\d,]+)", row(said, name))[1])
        assert both == code + size * (name != "GPT scratch")


def test_the_model_is_measured_by_the_best_of_the_others(capsys):
    rows = [("xz -9e", 0, 500), ("order 2", 0, 400), ("GPT static", 10_000, 300), ("GPT online", 10_000, 401),
            ("GPT scratch", 0, 450)]
    compress_demo.accounts([compress_demo.Result(compress_demo.Method(name, None, None, weights), 1000, bytes(size), 0.0)
                            for name, weights, size in rows])
    assert [line for line in capsys.readouterr().out.splitlines() if line[:3] in ("xz ", "ord", "GPT")] == [
        "order 2               400            400   no model: the best of the others",
        "GPT static            300         10,300   from 100,000 bytes of such text on",
        "GPT online            401         10,401   never: order 2 is better",
        "GPT scratch           450            450   no model: it learns from the text"]


def test_ideal_and_written_are_what_they_are_called(said, model):
    data = TEXT[:600]
    logits_bits, file = report.costs(model, data).ideal.sum() / 8, compress(data, "static", model)
    lines = [line for line in said.splitlines() if " bytes " in line and line.endswith("%")]
    sizes = [number(re.search(r"([\d,.]+) bytes", line)[1]) for line in lines]
    assert sizes == [pytest.approx(logits_bits, abs=0.006), pytest.approx(logits_bits, rel=1e-3),
                     len(read(file)[1][0].payload), len(file)]
    for line, size in zip(lines, sizes):
        difference, percent = line.split()[-2:]
        assert number(difference) == pytest.approx(size - logits_bits, abs=0.006)
        assert float(percent[:-1]) == pytest.approx(100 * (size / logits_bits - 1), abs=2e-3)


def test_what_is_stored_is_not_called_code(model, capsys):
    data = compress_demo.noise(600)
    compress_demo.ideal(report.costs(model, data), compress(data, "static", model))
    said = capsys.readouterr().out
    assert "the file, stored as it is" in said and "the range coder wrote" not in said


# --- what each character costs ----------------------------------------------------------------------------------------

@pytest.mark.parametrize("size", [1, 15, 600, 3001])
def test_the_integer_costs_are_what_the_coder_writes(size, model):
    data = (TEXT * 2)[:size]
    costs, code = report.costs(model, data), codec.encode_block(predictors.static(model), data)
    assert len(costs.integer) == size
    assert abs(8 * len(code) - costs.integer.sum()) < 9


def test_blocks_follow_each_other_as_in_a_file(model, monkeypatch):
    monkeypatch.setattr(report, "BLOCK_BITS", 10)
    costs = report.costs(model, TEXT[:2500])
    _, blocks = read(compress(TEXT[:2500], "static", model, block_bits=10))
    for i, block in enumerate(blocks):
        assert abs(8 * len(block.payload) - costs.integer[1024 * i:1024 * (i + 1)].sum()) < 9
    assert np.flatnonzero(costs.fresh).tolist() == [0, 1024, 2048]


def test_the_ideal_costs_are_the_losses_of_the_model(model):
    ids = np.frombuffer(TEXT[:16], np.uint8).astype(np.int64)
    model.loss(np.append(codec.START_SYMBOL, ids[:-1])[None], ids[None])
    assert report.costs(model, TEXT[:16]).ideal == pytest.approx(model.losses[0] / log(2), rel=1e-5)


def test_each_cost_stands_at_its_own_byte(model):
    data = TEXT[:3001]                                      # two streams, of which one is longer
    costs = report.costs(model, data)
    second = report.costs(model, data[1501:])
    assert costs.ideal[1501:] == pytest.approx(second.ideal) and (costs.guesses[1501:] == second.guesses).all()
    assert np.flatnonzero(costs.fresh).tolist() == [0, 1501]


def chars_of(data, model):
    costs = report.costs(model, data)
    return report.characters(data, costs, costs.ideal)


@pytest.mark.parametrize("data", [TEXT[:500], ODD, bytes(range(256))], ids=["text", "odd", "all bytes"])
def test_the_characters_spell_the_data_and_their_bits_add_up_to_the_ideal(data, model):
    chars = chars_of(data, model)
    assert "".join(char.text for char in chars).encode(errors="surrogateescape") == data
    assert sum(char.bits for char in chars) == pytest.approx(report.costs(model, data).ideal.sum())


def test_a_character_of_several_bytes_is_one_with_the_sum_of_their_costs():
    data = "a多é".encode() + b"\xff"
    guesses = np.frombuffer("b少 \xa9!".encode()[:6].replace(b"\xc2", b"\xa9") + b"!", np.uint8)
    costs = report.Costs(np.array([1, 2, 3, 4, 5, 6, 7.0]), None, guesses, np.zeros(7, bool))
    chars = report.characters(data, costs, costs.ideal)
    assert [(char.text, char.bits) for char in chars] == [("a", 1), ("多", 9), ("é", 11), ("\udcff", 7)]
    assert [char.expected for char in chars] == ["b", "少", " ", "!"]


@pytest.mark.parametrize("text, shown", [
    ("a", "a"), ("é", "é"), ("\n", "\n"), ("\x1b", "\\x1b"), ("\0", "\\x00"), ("\udcff", "\\xff"), ("\x85", "\\u0085"),
    ("\u202e", "\\u202e"), ("\U000e0001", "\\U000e0001")])
def test_what_has_no_shape_is_shown_as_an_escape(text, shown):
    assert report.shown(text) == shown


def test_a_wrong_bit_spoils_a_code_and_parity_mends_it(said):
    wrong = {name: number(row(said, name).removeprefix(name).split()[1])
             for name in ("the text itself", "static, checks off", "static, parity 5 %")}
    assert wrong["the text itself"] == 1 and wrong["static, parity 5 %"] == 0
    assert wrong["static, checks off"] > 50


# --- the page ---------------------------------------------------------------------------------------------------------

class Page(HTMLParser):
    """The text of <section id=text>, what its characters say when pointed at, all tags, and where links lead."""

    def __init__(self, page):
        super().__init__()
        self.depth, self.text, self.titles, self.tags, self.ids, self.links = 0, "", [], set(), set(), set()
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.add(tag)
        self.ids.add(attributes.get("id"))
        self.links.add(attributes.get("href", "")[1:])
        if tag == "section":
            self.depth = attributes.get("id") == "text"
        elif tag == "i" and self.depth:
            self.titles.append(attributes["title"])

    def handle_endtag(self, tag):
        self.depth = self.depth and tag != "section"

    def handle_data(self, data):
        self.text += data * self.depth


@pytest.mark.parametrize("data", [TEXT[:500], ODD, bytes(range(256))], ids=["text", "odd", "all bytes"])
def test_the_page_shows_every_character_in_order_and_no_markup_of_the_text(data, model):
    chars = chars_of(data, model)
    page = Page(report.page("<i>name</i>", chars, "<script>"))
    assert page.text == "".join(report.shown(char.text) for char in chars)
    known = "html meta title style header h1 p main section i aside h2 table tr th td sup ol li a small"
    assert page.tags <= set(known.split())
    assert page.links - {""} == page.ids - {None, "text"}


def test_the_page_says_of_each_character_what_it_costs(model):
    chars = chars_of(TEXT[:500], model)
    titles = Page(report.page("name", chars, "")).titles
    assert [float(re.search(r": ([\d.]+) bits, (as expected|expected .+)", title, re.DOTALL)[1]) for title in titles] == [
        pytest.approx(char.bits, abs=0.0051) for char in chars]


def test_the_page_needs_nothing_from_elsewhere(said, trained):
    page = (trained / "page.html").read_text("utf-8")
    assert not re.search(r"<script|<link|<img|@import|url\(|https?:", page)
    assert page.startswith("<!doctype html>")


def test_the_page_of_a_run_is_the_page_of_its_text(said, trained, model):
    page = Page((trained / "page.html").read_text("utf-8"))
    assert page.text == "".join(map(report.shown, TEXT[:600].decode(errors="surrogateescape")))
    assert f"page: {trained / 'page.html'}\n" in said


def test_surprises_are_the_costliest_and_stand_apart():
    costly = {3: 9.0, 5: 20.0, 40: 15.0, 46: 14.0, 90: 1.0}
    chars = [report.Character("x", costly.get(i, 0.1), "y", False) for i in range(100)]
    places = report.surprises(chars)
    assert places[:3] == [5, 40, 90]
    assert all(abs(a - b) >= report.APART for a in places for b in places if a != b)


def brightness(colour):
    """Relative luminance, as WCAG 2 defines it."""
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
               for c in (int(colour[i:i + 2], 16) / 255 for i in (1, 3, 5)))
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def xterm(index):
    """The colour of this number, 16 .. 231, in the 256 of terminals: a cube of six steps a side."""
    steps = (0, 95, 135, 175, 215, 255)
    r, g, b = (steps[(index - 16) // n % 6] for n in (36, 6, 1))
    return f"#{r:02x}{g:02x}{b:02x}"


@pytest.mark.parametrize("level", report.LEVELS, ids=report.labels())
def test_the_text_is_legible_on_every_colour(level):
    for paper, ink in level.light, level.dark, map(xterm, level.terminal):
        dark, light = sorted((brightness(paper), brightness(ink)))
        assert (light + 0.05) / (dark + 0.05) >= 4.5        # WCAG 2, level AA


def test_costs_fall_into_the_level_that_the_legend_names():
    assert [report.level_of(bits) for bits in (0, 0.49, 0.5, 1.5, 3, 8, 11.99, 12, 500)] == [0, 0, 1, 2, 3, 6, 6, 7, 7]
    assert report.labels()[0] == "0 – 0.5" and report.labels()[-1] == "12 and more"


# --- the terminal -----------------------------------------------------------------------------------------------------

def test_without_colours_the_bits_stand_below_the_characters():
    chars = [report.Character(text, bits, "", False) for text, bits in zip("To be\xff\n", (3.4, 9.6, 0, 1.5, 2.6, 33, 0.7))]
    chars[5] = chars[5]._replace(text="\udcff")
    assert report.excerpt(chars, False) == "To be\\xff↵\n390239   1"


def test_with_colours_there_is_a_legend_and_nothing_is_left_coloured():
    said = report.excerpt([report.Character(text, 7, "", False) for text in "colour\nful"], True)
    assert re.sub(r"\x1b\[[\d;]*m", "", said).split("\n")[:2] == ["colour↵", "ful"]
    assert all(label in said for label in report.labels())
    assert all(line.endswith("\x1b[0m") for line in said.split("\n"))


def test_long_lines_are_wrapped():
    said = report.excerpt([report.Character("x", 1, "", False)] * 1000, False)
    assert max(map(len, said.split("\n"))) == report.WIDTH and said.count("x") == 1000


@pytest.mark.parametrize("terminal, variable, colours", [(True, "", True), (True, "1", False), (False, "", False)])
def test_colours_are_for_terminals_and_for_those_who_want_them(terminal, variable, colours, monkeypatch):
    monkeypatch.setenv("NO_COLOR", variable)
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal, raising=False)
    compress_demo.heading("x")
    assert ("\x1b" in sys.stdout.getvalue()) == colours


# --- the interval -----------------------------------------------------------------------------------------------------

def test_the_sentence_comes_back_from_its_code(said, model):
    sentence = compress_demo.SENTENCE
    total = float(re.search(r"^sum of the bits +([\d.]+);", said, re.MULTILINE)[1])
    size, code = re.search(r"^shortest complete code +(\d+): ([01]+)$", said, re.MULTILINE).groups()
    assert bytes(decode(code, len(sentence), compress_demo.gpt(model))) == sentence
    assert total == pytest.approx(report.costs(model, sentence).integer[:16].sum() +
                                  sum(later_bits(model, sentence)), abs=0.01)
    assert total - 0.01 <= int(size) == len(code) < total + 2
    assert f"decoded by stretching    {sentence.decode()}\n" in said


def later_bits(model, sentence):
    """What the symbols beyond the first window cost where the window moves on by one symbol at a time."""
    predict = compress_demo.gpt(model)
    return [bits(predict(tuple(sentence[:i]))[sentence[i]]) for i in range(16, len(sentence))]


def test_each_line_shows_the_interval_of_what_came_so_far(said, model):
    sentence, predict = compress_demo.SENTENCE, compress_demo.gpt(model)
    lines = re.findall(r"^ +('.+'|\".+\") +([\d.]+) +([\d.]+)  [·█]+  ([\d.]*)\[([\d.]+), ([\d.]+)\)$", said, re.MULTILINE)
    assert [eval(symbol) for symbol, *_ in lines] == list(sentence.decode())
    for i, (_, _, _, settled, low, high) in enumerate(lines):
        owned = interval(sentence[:i + 1], predict)
        assert Fraction(settled + low) <= owned[0] < owned[1] <= Fraction(settled + high)


fractions = st.fractions(0, 1, max_denominator=10 ** 9)


@given(fractions, fractions)
def test_the_digits_hold_the_interval_closely(a, b):
    if a == b:
        return
    low, high = sorted((a, b))
    settled, low_digits, high_digits = compress_demo.digits((low, high))
    around = Fraction(settled + low_digits), Fraction(settled + high_digits)
    assert around[0] <= low < high <= around[1]
    assert around[1] - around[0] <= (high - low) * Fraction("1.02")
    assert low_digits[0] != high_digits[0]


@given(fractions, fractions)
def test_the_bar_has_always_one_length_and_something_in_it(a, b):
    if a == b:
        return
    bar = compress_demo.share((Fraction(0), Fraction(1)), sorted((a, b)))
    assert len(bar) == compress_demo.BAR_WIDTH and re.fullmatch("·*█+·*", bar)


# --- models and texts -------------------------------------------------------------------------------------------------

@pytest.fixture
def bundled(tmp_path, model, monkeypatch):
    """A small model in place of the bundled one."""
    path = tmp_path / "elsewhere/in/packed.gpt"
    path.parent.mkdir(parents=True)
    path.write_bytes(packed.pack(model))
    monkeypatch.setattr(models, "BUNDLED", path)
    return path


def test_without_model_it_takes_the_bundled_one(tmp_path, bundled):
    (tmp_path / "text").write_bytes(TEXT[:100])
    said, size = demo(tmp_path, "text"), bundled.stat().st_size
    assert f"model: {bundled}, 1 layers of width 16, windows of 16: " in said
    assert f"model {size / 1e6:.1f} MB" in row(said, "GPT static")
    code = len(compress(TEXT[:100], "static", models.load(bundled)[0]))
    assert list(map(number, account(said, "GPT static").split()[:2])) == [code, code + size]
    assert f"decoded by stretching    {compress_demo.SENTENCE.decode()}\n" in said


def test_the_bundled_model_is_known_by_its_path_size_and_text(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model, size, trained_on = compress_demo.load(None)
    assert capsys.readouterr().out.startswith(f"model: {models.BUNDLED}, {model.config.n_layer} layers of width ")
    assert fingerprint(model) == fingerprint(models.load()[0])
    assert size == models.BUNDLED.stat().st_size and trained_on == corpus.CORPORA["shakespeare"].sha256
    method = next(m for m in compress_demo.methods(model, size) if m.name == "GPT static")
    assert method.shared == f"model {size / 1e6:.1f} MB"
    file = method.compress(SHORT)
    assert method.decompress(file, len(SHORT)) == SHORT and len(file) < len(method.compress(SHORT[::-1]))


def test_a_model_that_was_trained_in_this_folder_is_not_taken_unless_it_is_named(trained, monkeypatch, bundled, capsys):
    monkeypatch.chdir(trained)
    compress_demo.load(None)
    assert capsys.readouterr().out.startswith(f"model: {bundled}, ")
    model, size, trained_on = compress_demo.load("run/model.safetensors")
    assert fingerprint(model) == fingerprint(load_checkpoint(trained / "run/model.safetensors").model)
    assert size == sum(4 * parameter.data.size for parameter in model.parameters().values())
    assert trained_on == compress_demo.hashlib.sha256(TEXT).hexdigest()


@pytest.mark.slow
def test_any_file_will_do(trained):
    (trained / "binary").write_bytes(ODD * 4 + compress_demo.noise(300))
    said = demo(trained, "binary", "--html", trained / "binary.html", "--model", "run/model.safetensors")
    assert row(said, "GPT online") and "\x1b" not in said
    assert "\\x1b[31m" in Page((trained / "binary.html").read_text("utf-8")).text


def options(**given):
    return compress_demo.parse([f"--{name}={value}" if name != "file" else str(value) for name, value in given.items()])


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache that keeps a corpus, which is TEXT."""
    kept = corpus.Corpus("King's News", "news.txt", len(TEXT), compress_demo.hashlib.sha256(TEXT).hexdigest())
    monkeypatch.setitem(corpus.CORPORA, "shakespeare", kept)
    monkeypatch.setenv("MINIGPT_CACHE", str(tmp_path))
    return tmp_path / kept.file


def test_the_text_is_the_validation_part_of_the_cached_corpus(cache, capsys):
    cache.write_bytes(TEXT)
    assert compress_demo.choose_text(options(), None)[1] == TEXT[len(TEXT) * 9 // 10:]
    assert "text: King's News, the validation split, all" in capsys.readouterr().out


def test_where_none_is_cached_or_it_is_damaged_the_text_is_the_readme(cache):
    readme = Path(compress_demo.__file__).with_name("README.md").read_bytes()[:compress_demo.FIRST_BYTES]
    assert compress_demo.choose_text(options(), None) == ("README.md", readme)
    cache.write_bytes(TEXT[1:])
    assert compress_demo.choose_text(options(), None) == ("README.md", readme)


def test_of_a_file_that_the_model_was_trained_on_it_takes_the_part_for_validation(trained, tmp_path, capsys):
    (tmp_path / "text").write_bytes(TEXT)
    _, _, trained_on = compress_demo.load(trained / "run/model.safetensors")
    assert compress_demo.choose_text(options(file=tmp_path / "text"), trained_on)[1] == TEXT[len(TEXT) * 9 // 10:]
    (tmp_path / "text").write_bytes(TEXT + b"more")
    assert compress_demo.choose_text(options(file=tmp_path / "text"), trained_on)[1] == TEXT + b"more"


def test_of_a_long_text_it_takes_the_first_part_and_says_so(file, capsys):
    name, data = compress_demo.choose_text(options(file=file, bytes=10), None)
    assert data == TEXT[:10]
    assert capsys.readouterr().out == f"text: {file}, the first 10 of its 600 bytes\n"


# --- what goes wrong --------------------------------------------------------------------------------------------------

def characters_only(folder):
    config = GPTConfig(vocab_size=2, block_size=4, n_layer=1, n_head=1, n_embd=8)
    save_checkpoint(folder / "c", GPT(config), CharTokenizer("ab"))


WRONG = {
    "missing": (["missing"], lambda folder: None, "missing: No such file or directory"),
    "a folder": ([".."], lambda folder: None, "..: Is a directory"),
    "empty": (["empty"], lambda folder: (folder / "empty").touch(), "empty is empty: there is nothing to predict"),
    "no folder for the page": (["--html", "no/page.html"], lambda folder: None, "no/page.html cannot be written: No such file"),
    "a folder as page": (["--html", "."], lambda folder: None, "is not a page of this script"),
    "the text as page": (["--html", "text"], lambda folder: (folder / "text").write_text("mine"), "text exists and is not"),
    "no model": (["--model", "missing"], lambda folder: None, "there is no model at missing"),
    "no checkpoint": (["--model", "text"], lambda folder: (folder / "text").write_text("mine"),
                      "cannot be read as a checkpoint"),
    "characters": (["--model", "c"], characters_only, "c predicts 2 characters, but files are made of bytes"),
}


@pytest.mark.parametrize("arguments, prepare, sentence", WRONG.values(), ids=WRONG)
def test_what_cannot_be_done_is_said_in_a_sentence(arguments, prepare, sentence, tmp_path):
    prepare(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    said = exit_with(tmp_path, *arguments)                  # sys.exit prints a str and exits with 1
    assert said.startswith("compress_demo: ") and sentence in said and "\n" not in said
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_bytes_must_be_one_or_more(tmp_path, capsys):
    assert exit_with(tmp_path, "--bytes", "0") == 2
    assert "--bytes must be at least 1" in capsys.readouterr().err


def test_a_page_gives_way_to_a_page(tmp_path):
    for text in "one", "two":
        report.claim(tmp_path / "page.html")
        report.save(tmp_path / "page.html", report.page(text, [report.Character("x", 1.0, "y", True)], text))
    assert "two" in (tmp_path / "page.html").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_a_page_that_cannot_be_finished_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError):
        report.save(tmp_path / "page.html", "page")
    assert not list(tmp_path.iterdir())


def test_ctrl_c_is_one_line(trained, monkeypatch, bundled):
    def interrupted(*_):
        raise KeyboardInterrupt
    monkeypatch.setattr(compress_demo, "measure", interrupted)
    assert exit_with(trained, "text") == "\ncompress_demo: interrupted"

"""The page that `python -m minigpt look` writes: its numbers are the network's, and it works in a browser."""

import ast
import importlib
import json
import re
import shutil
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import train_shakespeare
from coder.frequencies import to_frequencies
from coder.intervals import bits, steps
from coder.range_coder import Decoder, start_decoding
from coder.tokens import decode_tokens, make_trie
from minigpt import __main__ as command_line
from minigpt import bpe, look, reference
from minigpt.checkpoint import load_checkpoint
from minigpt.exact import log
from minigpt.model import GPT, GPTConfig
from minigpt.optimizer import OptimizerConfig
from minigpt.tokenizer import ByteTokenizer
from minigpt.trainer import FILE, TrainConfig, Trainer
from train_shakespeare import KeepingTrainer

ROOT = Path(__file__).parents[1]
TEXT = "To be, or not to be"
SMALL = dict(block_size=32, n_layer=2, n_head=2, n_embd=32)
CONFIGS = {
    "default": GPTConfig(**SMALL),
    "grouped, gated, tied": GPTConfig(block_size=32, n_layer=2, n_head=4, n_kv_head=2, n_embd=32, activation="swiglu",
                                      n_hidden=40, tied=True),
    "post-norm, learned positions": GPTConfig(**SMALL, position="learned", norm="layer", norm_order="last", activation="gelu",
                                              qk_norm=False, bias=True, head_bias=True),
}
LARGE = GPTConfig(block_size=256, n_layer=6, n_head=6, n_embd=192)


def subject(model, tokenizer=None):
    return look.Subject(model, tokenizer or ByteTokenizer(), "model", "", {}, np.zeros(0, np.float32), None)


def read(page):
    """The data in a page."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL).group(1))


def float32(numbers):
    return np.array(numbers, np.float32)


# --- the numbers ------------------------------------------------------------------------------------------------------

@pytest.fixture(params=CONFIGS)
def both(request, monkeypatch):
    """What a page holds about a model and TEXT, and what the layers of reference.py return for it."""
    model = GPT(CONFIGS[request.param], 3)
    for parameter in model.parameters().values():               # gains of 1 and biases of 0 would hide a mistake
        if len(parameter.shape) == 1:
            parameter.data += np.float32(0.1) * np.cos(np.arange(parameter.data.size, dtype=np.float32))
    page = read(look.render(look.inspect(subject(model), TEXT)))
    seen = {"weights": [], "x": [], "added": [], "active": []}

    def watch(name, keep):
        original = getattr(reference, name)

        def watched(*arguments, **options):
            result = original(*arguments, **options)
            keep(result, *arguments)
            return result
        monkeypatch.setattr(reference, name, watched)

    watch("softmax_parts", lambda result, scores: seen["weights"].append(result[0] / result[2]))
    watch("linear", lambda result, x, w, g, name: seen["active"].append(x) if name.endswith("contract") else None)
    watch("dropout", lambda result, x, p, purpose, draw: seen["x" if purpose.endswith("embedding") else "added"].append(x))
    watch("residual", lambda result, *rest: seen["x"].append(result[0]))
    w = {name: parameter.data for name, parameter in model.parameters().items()}
    seen["logits"] = reference.forward(model.config, w, np.array([page["ids"]]))[0]
    monkeypatch.undo()
    return page, seen, model, w


def test_attention_weights_are_the_references_bits(both):
    page, seen, model, _ = both
    for layer, weights in zip(page["layers"], seen["weights"], strict=True):
        for head, of_page in zip(weights.reshape(model.config.n_head, len(page["ids"]), -1), layer["attention"], strict=True):
            for t, row in enumerate(of_page):
                assert float32(row).tobytes() == head[t, :t + 1].tobytes() and not head[t, t + 1:].any()


def test_the_residual_stream_is_the_references_bits(both):
    page, seen, model, _ = both
    for of_page, x in zip(page["stream"], seen["x"], strict=True):
        assert float32(of_page).tobytes() == np.ascontiguousarray(x[:, :len(of_page[0])]).tobytes()
    for name, found in ("rms", seen["x"]), ("added", seen["added"]):
        sizes = [np.sqrt((x.astype(np.float64) ** 2).mean(1)) for x in found]
        np.testing.assert_allclose(page[name], sizes, rtol=1e-6)


def test_neurons_are_the_references_and_the_strongest(both):
    page, seen, _, _ = both
    for layer, active in zip(page["layers"], seen["active"], strict=True):
        peaks = np.abs(active[1:]).max(0)
        chosen = [neuron["neuron"] for neuron in layer["neurons"]]
        assert min(peaks[chosen]) >= np.delete(peaks, chosen).max()
        for neuron in layer["neurons"]:
            assert float32(neuron["active"]).tobytes() == np.ascontiguousarray(active[:, neuron["neuron"]]).tobytes()


def test_the_logit_lens_and_the_prediction_are_the_references_bits(both):
    page, seen, model, w = both
    config, targets = model.config, page["ids"][1:]
    for of_page, x in zip(page["lens"], seen["x"][::2], strict=True):
        if config.norm_order == "first":
            x, _ = reference.norm(x, w, {}, "norm", config.norm, config.norm_epsilon)
        logits, _ = reference.tied_head(x, w, {}) if config.tied else reference.linear(x, w, {}, "head")
        e, peak, total = reference.softmax_parts(logits)
        nats = (log(total)[:, 0] - (logits[range(len(logits)), [*targets, 0]] - peak[:, 0]))[:-1]
        assert float32(of_page["nats"]).tobytes() == nats.tobytes()
        assert of_page["guess"] == logits.argmax(1).tolist()
    assert logits.tobytes() == seen["logits"].tobytes()
    for row, of_page, target in zip(e / total, page["final"], [*targets, None], strict=True):
        assert all(np.float32(p) == row[i] for i, p in of_page) and (target is None or target in dict(of_page))
        assert of_page[0][1] == pytest.approx(row.max())


def test_neighbours_have_the_largest_cosines():
    model = GPT(CONFIGS["default"], 3)
    table = model.tokens.weight.data.astype(np.float64)
    unit = table / np.sqrt((table ** 2).sum(1, keepdims=True))
    for i, found in look.inspect(subject(model), TEXT)["neighbours"].items():
        cosines = unit @ unit[i]
        cosines[i] = -2
        assert [j for j, _ in found] == np.argsort(-cosines)[:len(found)].tolist()
        np.testing.assert_allclose([c for _, c in found], cosines[[j for j, _ in found]], atol=1e-6)


@pytest.mark.parametrize("kind", ["bytes", "tokens"])
def test_the_code_on_the_page_decodes_and_its_intervals_are_nested(kind):
    tokenizer = ByteTokenizer() if kind == "bytes" else bpe.train(TEXT.encode() * 3, 262)
    vocabulary = 256 if kind == "bytes" else 2000               # too many for frequencies of one symbol
    if kind == "tokens":
        rest = [b"x%d" % i for i in range(vocabulary - 262)]
        tokenizer = bpe.BPETokenizer(tokenizer.vocabulary + rest, tokenizer.merges, "gpt2")
    model = GPT(GPTConfig(vocab_size=vocabulary, **SMALL), 3)
    page = look.inspect(subject(model, tokenizer), TEXT)
    ids, coding = page["ids"][1:], page["coding"]
    assert coding["exact"] == (kind == "bytes") and tokenizer.decode(ids) == TEXT and coding["bytes"] == len(TEXT)
    logits, code = model.forward(np.array([page["ids"]]))[0, :-1], bytes.fromhex(coding["code"])
    if kind == "bytes":
        assert Decoder(code).decode(to_frequencies(logits)).tolist() == ids
    else:
        array = np.frombuffer(bytearray(code), np.uint8)
        assert decode_tokens(start_decoding(array), array, logits, make_trie(tokenizer.vocabulary)).tolist() == ids
    rows = to_frequencies(logits).tolist()
    exact = steps(ids, lambda past: {i: Fraction(f, sum(rows[len(past)])) for i, f in enumerate(rows[len(past)])})
    number, total = Fraction(int(coding["code"], 16), 256 ** len(code)), 0.0
    for step, row, i in zip(coding["steps"], logits.astype(np.float64), ids, strict=True):
        unit = Fraction(1, 16 ** len(step["ends"][0]))
        low, high = (int(end, 16) * unit for end in step["ends"])
        if kind == "bytes":                                     # rounded outwards to digits
            _, probability, (start, stop) = next(exact)
            assert low <= start < low + unit and high - unit < stop <= high and step["bits"] == bits(probability)
        else:                                                   # of the range coder itself, whose code is inside
            assert 0 <= low <= number < high <= 1
        total += step["bits"]
        assert step["total"] == pytest.approx(total)
        assert step["bits"] == pytest.approx(np.log2(np.exp(row - row[i]).sum()), abs=2e-3)     # by the logits themselves
        assert step["share"][1] - step["share"][0] == pytest.approx(2 ** -step["bits"])
    before, after = step["out"], coding["code"]
    assert int(after[:len(before)], 16) - int(before, 16) in (0, 1) and len(after) <= len(before) + 2       # 1: a last carry


# --- the page ---------------------------------------------------------------------------------------------------------

def test_the_longest_page_is_below_2_mb():
    model = GPT(LARGE, 3)
    page = look.render(look.inspect(subject(model), "x" * (look.LONGEST - 1)))
    assert 1_000_000 < len(page.encode()) < 2_000_000
    deep = GPT(GPTConfig(block_size=64, n_layer=12, n_head=12, n_embd=48), 3)
    data = look.inspect(subject(deep), "x" * 63, head=5)
    assert data["heads"] == [5] and data["blocks"] == 12
    assert len(look.render(data).encode()) < 2_000_000


def test_of_a_language_model_a_page_shows_one_head_of_the_first_blocks():
    tokenizer = bpe.train(TEXT.encode() * 3, 262)
    model = GPT(GPTConfig(vocab_size=262, block_size=32, n_layer=8, n_head=2, n_embd=16), 3)
    data = look.inspect(subject(model, tokenizer), TEXT, head=2)
    assert data["heads"] == [2] and len(data["layers"]) == look.BLOCKS == 6 and len(data["lens"]) == 9
    assert all(len(layer["attention"]) == 1 for layer in data["layers"])


def test_a_text_cannot_leave_its_place_in_the_page():
    text = "</script><!--\u2028 é"
    page = look.render(look.inspect(subject(GPT(CONFIGS["default"], 3)), text))
    assert read(page)["text"] == text and page.count("</script>") == 2


def test_the_page_needs_nothing_from_elsewhere():
    template = look.TEMPLATE.read_text("utf-8")
    assert template.startswith(look.HEAD)
    assert set(re.findall(r"url\([^)]*\)|https?://[^\s\"')]+|\b(?:src|href)=|@import|\bimport\b", template)) == \
        {"url(#hatch)", "http://www.w3.org/2000/svg"}           # the latter a name, not a place
    assert len(template.splitlines()) <= 700


def test_every_formula_names_a_function_that_exists():
    formulas = re.findall(r'data-functions="([^"]+)"', look.TEMPLATE.read_text("utf-8"))
    names = " ".join(formulas).split()
    assert len(formulas) > 12 and len(set(names)) > 20 and look.TEMPLATE.read_text("utf-8").count('class="formula"') == 10
    for name in names:
        module = re.match(r"(\w+\.)*[a-z_]+(?=\.(_?[a-z]\w*|[A-Z]\w*\.\w+)$)", name).group()
        found = importlib.import_module(module)
        for part in name.removeprefix(module + ".").split("."):
            found = getattr(found, part)
        assert callable(found), name


def test_only_this_wing_of_minigpt_imports_the_coder():
    for path in (ROOT / "minigpt").rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text("utf-8"))))
        names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
        roots = {name.split(".")[0] for name in names}
        assert ("coder" in roots) == (path.name == "look.py"), path


# --- the command ------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a run on a text, with characters as tokens."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "text").write_text("".join(f"{i} bottles of beer on the wall, \n" for i in range(90)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_shakespeare, "draw_losses", lambda *arguments: None)
        patch.setattr("sys.argv", ["train_shakespeare.py"])
        options = "--n-layer 1 --n-head 2 --n-embd 16 --block-size 16 --batch-size 2 --warmup 2 --steps 12"
        train_shakespeare.main([*options.split(), "--tokenizer", "characters",
                                "--data", str(folder / "text"), "--out", str(folder)])
    return folder


@pytest.fixture
def command(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return partial(run, str(trained / FILE))


def run(model, text, *options):
    command_line.main(["look", text, *([] if "--model" in options else ["--model", model]), *options])


def test_the_command_writes_the_page(command, capsys):
    command("2 bottles", "--html", "page.html")
    page = Path("page.html").read_text("utf-8")
    assert capsys.readouterr().out == f"page.html: {len(page.encode()):,} bytes; open it in a browser\n"
    data = read(page)
    assert data["unit"] == "character" and [data["labels"][str(i)] for i in data["ids"]] == list("↵2␣bottles")
    command("3 bottles", "--html", "page.html")                 # a page of ours is overwritten
    assert read(Path("page.html").read_text("utf-8"))["text"] == "3 bottles"


def test_the_default_is_the_bundled_model_and_of_its_three_the_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command_line.main(["look", "To be"])
    data = read(Path("look.html").read_text("utf-8"))
    assert data["model"]["name"] == "shakespeare.gpt" and "first of its 3 GPTs" in data["model"]["note"]
    assert data["training"] is None and len(data["layers"]) == 6


@pytest.mark.parametrize("text, options, sentence", [
    ("", "", "the text has 0 tokens, but a page about this model shows from 1 to 15"),
    ("bottles of beer on", "", "the text has 18 tokens, but a page about this model shows from 1 to 15"),
    ("Zebra", "", "the character 'Z' at position 0 is not one of the"),
    ("\udcff", "", "the character '\\udcff' at position 0 is not one of the"),
    ("beer", "--head 0", "--head must be from 1 to 2, the heads of this model, but is 0"),
    ("beer", "--head 3", "--head must be from 1 to 2"),
    ("beer", "--model nothing", "there is no model at nothing"),
    ("beer", "--model foreign", "foreign cannot be read as a checkpoint"),
    ("beer", "--model .", "cannot read config.json"),
    ("beer", "--html foreign", "foreign exists and is not a page"),
    ("beer", "--html nowhere/page.html", "nowhere/page.html cannot be written"),
], ids=str)
def test_what_cannot_be_is_refused_in_a_sentence(text, options, sentence, command, capsys):
    Path("foreign").write_text("mine")
    with pytest.raises(SystemExit) as caught:
        command(text, *options.split())
    assert caught.value.code.startswith("minigpt: ") and sentence in caught.value.code and "\n" not in caught.value.code
    assert Path("foreign").read_text() == "mine" and capsys.readouterr().out == ""


def test_a_text_that_is_not_utf_8_is_refused():
    with pytest.raises(ValueError, match="not UTF-8"):
        look.inspect(subject(GPT(CONFIGS["default"], 3)), "\udcff")


def test_a_model_that_predicts_nothing_finite_is_refused():
    model = GPT(CONFIGS["default"], 3)
    model.head.weight.data[...] = np.inf
    with pytest.raises(ValueError, match="not finite"):
        look.inspect(subject(model), TEXT)


# --- the training -----------------------------------------------------------------------------------------------------

def test_training_is_shown_as_it_was(trained):
    shown, saved = look.inspect(look.load(str(trained / FILE)), "2 bottles")["training"], load_checkpoint(trained / FILE)
    assert float32(shown["losses"]).tobytes() == saved.arrays["losses"].tobytes() and shown["every"] == 1
    assert shown["validations"] == saved.run["validations"]
    assert [sample["step"] for sample in shown["samples"]] == [0, 10, 12]
    assert shown["samples"][-1]["text"] != shown["samples"][0]["text"]
    assert 0 < shown["rivals"]["order 2"] < shown["rivals"]["order 0"] < 8 > shown["rivals"]["gzip -9"] > 0


def test_another_text_is_not_taken_for_the_runs_own(trained, tmp_path):
    for name in FILE, look.SAMPLES:
        shutil.copy(trained / name, tmp_path)
    kept = json.loads((tmp_path / look.SAMPLES).read_text())
    (tmp_path / "text").write_text("another text")
    (tmp_path / look.SAMPLES).write_text(json.dumps({**kept, "data": str(tmp_path / "text")}))
    assert look.training(look.load(str(tmp_path / FILE)))["rivals"] == {}
    for nonsense in ("[]", "{", '{"samples": 3}', '{"samples": [{}]}', "\xff"):
        (tmp_path / look.SAMPLES).write_text(nonsense, "latin-1")
        assert look.training(look.load(str(tmp_path / FILE)))["samples"] == []


def test_a_long_run_is_thinned_out():
    many = look.Subject(None, ByteTokenizer(), "", "", {"validations": []}, np.arange(9001, dtype=np.float32), Path("nowhere"))
    shown = look.training(many)
    assert shown["every"] == 3 and shown["losses"] == [float(i) for i in range(0, 9001, 3)]


def test_keeping_samples_changes_no_bit_of_the_training(tmp_path):
    files = []
    for kind in Trainer, KeepingTrainer:
        (folder := tmp_path / kind.__name__).mkdir()
        trainer = kind(GPT(GPTConfig(**SMALL, dropout=0.1), 1), ByteTokenizer(), TEXT.encode() * 40,
                       TrainConfig(steps=11, batch_size=2), OptimizerConfig(), folder)
        trainer.run()
        files.append(trainer.path.read_bytes())
    assert files[0] == files[1]
    assert (tmp_path / "KeepingTrainer" / look.SAMPLES).exists() and not (tmp_path / "Trainer" / look.SAMPLES).exists()


def test_a_resumed_run_keeps_the_samples_of_one_that_was_not_interrupted(tmp_path):
    kept, text, steps = [], TEXT.encode() * 40, TrainConfig(steps=31, batch_size=2)
    for stop in None, 20:
        folder = tmp_path / str(stop)
        folder.mkdir()
        trainer = KeepingTrainer(GPT(GPTConfig(**SMALL), 1), ByteTokenizer(), text, steps, OptimizerConfig(), folder)
        if stop:
            for _ in range(stop):
                trainer.step()
            trainer.save()
            trainer = KeepingTrainer.resume(folder, text)
        trainer.run()
        kept.append((folder / look.SAMPLES).read_text())
    assert kept[0] == kept[1] and [s["step"] for s in json.loads(kept[0])["samples"]] == [0, 10, 30]


def test_a_sample_that_cannot_be_kept_does_not_end_a_run(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(train_shakespeare, "write_atomically", full)
    trainer = KeepingTrainer(GPT(GPTConfig(**SMALL), 1), ByteTokenizer(), TEXT.encode() * 40, TrainConfig(steps=1),
                             OptimizerConfig(), tmp_path)
    trainer.step()
    assert trainer.step_count == 1


# --- in a browser -----------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="the extra `browser` is not installed")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("there is no Chromium on this machine")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])     # root has no sandbox
        yield started
        started.close()


@pytest.fixture(scope="module")
def pages(trained, tmp_path_factory):
    """Pages about a run, about models of bytes with a long and the shortest text, and about a language model."""
    folder = tmp_path_factory.mktemp("pages")
    tokenizer = bpe.train(TEXT.encode() * 3, 262)
    subjects = {"run": (look.load(str(trained / FILE)), "2 bottles of"), "long": (subject(GPT(LARGE, 3)), "<b>" + TEXT * 3),
                "short": (subject(GPT(CONFIGS["default"], 3)), "a"),
                "language": (subject(GPT(GPTConfig(vocab_size=262, **SMALL), 3), tokenizer), TEXT)}
    for name, (model, text) in subjects.items():
        (folder / f"{name}.html").write_text(look.render(look.inspect(model, text)), "utf-8")
    return folder


@pytest.fixture
def open_page(browser, pages):
    """open_page(name, width): the page, which must have asked for nothing and said nothing on the console in the end."""
    said, opened = [], []

    def open_(name, width=1280, scheme="light"):
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion="reduce")
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: said.append(request.url) if not request.url.startswith("file:") else None)
        opened.append(page)
        page.goto((pages / f"{name}.html").as_uri())
        page.data = read((pages / f"{name}.html").read_text("utf-8"))
        return page
    yield open_
    for page in opened:
        page.close()
    assert said == []


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 768, 390])
@pytest.mark.parametrize("name", ["run", "long", "short", "language"])
def test_it_fits_any_screen(name, width, scheme, open_page):
    page = open_page(name, width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.evaluate("[...document.querySelectorAll('section')].every(s => s.querySelectorAll('*').length > 5)")
    colours = page.evaluate("[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
                            ".map(c => c.match(/\\d+/g).map(Number).reduce((a, b) => a + b))")
    assert (colours[0] < colours[1]) == (scheme == "light") and abs(colours[0] - colours[1]) > 400


@pytest.mark.slow
def test_pointing_at_a_weight_shows_all_its_digits_and_its_row(open_page):
    page = open_page("run")
    map_ = page.data["layers"][0]["attention"][0]
    for t, s in (3, 1), (9, 9), (0, 0):
        page.hover(f"#map [data-r='{t}'][data-c='{s}']")
        assert page.text_content("#map-out").endswith(f": {map_[t][s]!r}") or map_[t][s] == 1
        shown = page.eval_on_selector_all("#looks span:nth-child(3n)", "spans => spans.map(span => span.textContent)")
        assert [float(number) for number in shown] == sorted(map_[t], reverse=True)[:12] or \
            sorted(map(float, shown)) == sorted(sorted(map_[t])[-12:])
    assert page.locator("#map [data-r='3'][data-c='4']").count() == 0           # the future


@pytest.mark.slow
def test_each_number_on_the_page_has_the_digits_of_the_data(open_page):
    page = open_page("run")
    told = " ".join(page.eval_on_selector_all("[data-tip]", "marks => marks.map(mark => mark.dataset.tip)"))
    found = {float(number) for number in re.findall(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e-?\d+)?(?![\w.])", told)}
    t, data = len(page.data["ids"]) - 2, page.data
    for numbers in (*data["layers"][0]["attention"][0], *(x[t] for x in data["stream"]), [rms[t] for rms in data["rms"]],
                    *(line["nats"] for line in data["lens"]), *(n["active"][1:] for n in data["layers"][0]["neurons"]),
                    *(step["share"] for step in data["coding"]["steps"]), data["training"]["rivals"].values()):
        assert found.issuperset(numbers)


@pytest.mark.slow
def test_the_keyboard_reaches_places_blocks_heads_and_marks(open_page):
    page = open_page("long")
    chosen = "[...document.querySelectorAll('#tokens button')].findIndex(b => b.getAttribute('aria-pressed') === 'true')"
    start = page.evaluate(chosen)
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowRight")
    assert page.evaluate(chosen) == start - 1
    page.keyboard.press("b")
    page.keyboard.press("h")
    pressed = "[aria-pressed=true]"
    assert page.text_content(f"#blocks-a {pressed}") == "2" and page.text_content(f"#heads {pressed}") == "head 2"
    page.focus("#map")
    for key in "ArrowRight", "ArrowDown", "ArrowDown", "ArrowRight":
        page.keyboard.press(key)
    weight = page.data["layers"][1]["attention"][1][2][1]
    assert page.text_content("#map-out") == f"o (2) attends to T (1): {weight!r}".replace("o (2)", f"{mark(page, 2)}").replace(
        "T (1)", mark(page, 1))
    assert page.evaluate(chosen) == start - 1                   # the arrows were the figure's
    page.keyboard.press("Tab")
    assert page.text_content("#map-out").startswith("shade:")


def mark(page, t):
    return f"{page.data['labels'][str(page.data['ids'][t])]} ({t})"


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", ["run", "long", "short", "language"])
def test_the_tour_is_a_dozen_questions_and_shows_what_it_speaks_of(name, width, open_page):
    page = open_page(name, width)
    page.keyboard.press("g")
    for number in range(1, 13):
        assert page.text_content("#guide-count") == f"{number} of 12"
        assert page.text_content("#guide-text .ask").count("?") == 1
        assert page.locator("section.now").count() == 1
        assert page.evaluate("document.activeElement.id") == "guide-next"
        figure, ribbon, guide = (page.evaluate(f"$({id}).getBoundingClientRect().toJSON()")
                                 for id in ("TOUR[step][0]", "'ribbon'", "'guide'"))
        assert ribbon["bottom"] - 1 <= figure["top"] and min(figure["bottom"], figure["top"] + 60) <= guide["top"]
        text = page.text_content("#guide-text")
        assert "undefined" not in text and "NaN" not in text and not re.search(r" -\d", text)
        page.keyboard.press("Enter")
    assert page.is_hidden("#guide")
    page.keyboard.press("g")
    page.keyboard.press("Escape")
    assert page.is_hidden("#guide") and page.locator("section.now").count() == 0


@pytest.mark.slow
def test_the_slider_shows_the_samples(open_page):
    page = open_page("run")
    samples = page.data["training"]["samples"]
    page.focus("#sample-row input")
    assert page.text_content("#sample") == samples[-1]["text"]
    page.keyboard.press("Home")
    assert page.text_content("#sample") == samples[0]["text"] and "after step 0" in page.text_content("#sample-row")

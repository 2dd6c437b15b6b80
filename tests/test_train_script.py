"""What a person does at the command line: train, be told what is wrong, stop, go on, and have the model write."""

import math
import os
import re
import shlex
import signal
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

import train_shakespeare
from minigpt import __main__ as command_line
from minigpt import corpus, sampling
from minigpt.checkpoint import fingerprint, load_checkpoint
from minigpt.model import GPTConfig
from minigpt.optimizer import OptimizerConfig
from minigpt.trainer import FILE, TrainConfig, Trainer

SCRIPT = Path(train_shakespeare.__file__)
TEXT = "".join(f"KING: What news, {i} Romeos? To be or not to be, HAMLET; 多少楼台烟雨中\n" for i in range(40))
TINY = "--n-layer 1 --n-head 2 --n-embd 16 --block-size 16 --batch-size 2 --warmup 2 --steps 4".split()


@pytest.fixture(autouse=True)
def surroundings(monkeypatch, tmp_path):
    """A folder with a text, no curve (it takes longer than these runs), and Ctrl-C as in a terminal."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train_shakespeare.py"])
    monkeypatch.setattr(train_shakespeare, "draw_losses", lambda *arguments: None)
    Path("text").write_text(TEXT)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def train(*options):
    train_shakespeare.main(["--data", "text", *TINY, *options])


def resume(*options):
    train_shakespeare.main(["--data", "text", "--resume", *options])


def sample(*options):
    command_line.main(["sample", *options])


@pytest.fixture
def exits(capsys):
    """exits(code, function, ...): what the call says on stderr before it exits, which is no traceback."""
    def call(code, function, *arguments):
        with pytest.raises(SystemExit) as caught:
            function(*arguments)
        said = capsys.readouterr().err
        if isinstance(caught.value.code, str):              # sys.exit(sentence) prints it and exits with 1
            said, status = said + caught.value.code, 1
        else:
            status = caught.value.code
        assert status == code
        assert "Traceback" not in said
        return said
    return call


def last_line(said):
    return re.split(r"[\r\n]", said.strip())[-1]


def interrupt_at(step, monkeypatch):
    original = Trainer.step

    def interrupted(self):
        if self.step_count == step - 1:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self)
    monkeypatch.setattr(Trainer, "step", interrupted)


# --- a run ------------------------------------------------------------------------------------------------------------

def test_it_says_what_it_trained_and_what_came_of_it(capsys):
    train("--out", "run")
    said = capsys.readouterr().out
    for line in (rf"^text: text, {len(TEXT.encode()):,} bytes$",
                 "^model: 1 layers, 2 heads, width 16, windows of 16, 256 tokens",
                 "^run: 4 steps of 2 windows, ", r"^validation loss   \d\.\d{4} nats per token$",
                 r"^ +\d\.\d{4} bits per character$", r"^perplexity +\d+\.\d{3} per token$",
                 "^training          128 tokens",
                 f"^saved             run/{FILE}$"):
        assert re.search(line, said, re.MULTILINE), line
    saved = load_checkpoint(f"run/{FILE}")
    assert f"\nfingerprint       {fingerprint(saved.model)}\n" in said
    assert saved.run["step"] == 4


@pytest.mark.parametrize("tokenizer", ["bytes", "characters"])
def test_it_shows_three_samples_of_the_saved_model(tokenizer, capsys):
    train("--tokenizer", tokenizer)
    said = capsys.readouterr().out
    saved = load_checkpoint(f"out/{FILE}")
    assert said.count("\n--- temperature ") == 3
    for prompt, temperature, top_k in train_shakespeare.SAMPLES:
        try:
            options = dict(temperature=temperature, top_k=top_k, seed=42)
            text = "".join(sampling.stream(saved.model, saved.tokenizer, prompt, 200, **options))
        except ValueError as error:
            text = f"\n({error})"
        assert f"\n--- temperature {temperature}, top-k {top_k}\n{prompt}{text}\n" in said


def test_a_prompt_that_characters_cannot_spell_is_explained(capsys):
    train("--tokenizer", "characters")
    assert "(the character 'J' at position 0 is not one of the" in capsys.readouterr().out


@pytest.mark.parametrize("tokenizer", ["bytes", "characters"])
def test_bits_per_character_count_characters(tokenizer, capsys):
    train("--tokenizer", tokenizer)
    nats, bits = map(float, re.search(r"loss +(\S+) nats per token\s+(\S+) bits", capsys.readouterr().out).groups())
    validation = TEXT.encode()[len(TEXT.encode()) * 9 // 10 + 1:]
    bytes_per_character = len(validation) / len(validation.decode(errors="replace"))
    assert bytes_per_character > 1.1
    expected = nats / math.log(2) * (bytes_per_character if tokenizer == "bytes" else 1)
    assert bits == pytest.approx(expected, abs=2e-4)


def test_the_same_options_give_the_same_model_and_another_seed_another():
    prints = []
    for out, seed in ("a", "5"), ("b", "5"), ("c", "6"):
        train("--out", out, "--seed", seed)
        prints.append(fingerprint(load_checkpoint(f"{out}/{FILE}").model))
    assert prints[0] == prints[1] != prints[2]


# --- options ----------------------------------------------------------------------------------------------------------

OPTIONS = [field for config in (GPTConfig, OptimizerConfig, TrainConfig) for field in fields(config)
           if field.name not in ("vocab_size", "rope_factors")]


@pytest.mark.parametrize("name", [field.name.replace("_", "-") for field in OPTIONS])
def test_every_field_is_an_option_that_help_explains(name, capsys):
    with pytest.raises(SystemExit) as caught:
        train_shakespeare.main(["--help"])
    assert caught.value.code == 0
    said, helps = capsys.readouterr().out, [field.metadata["help"] for field in OPTIONS if field.name == name.replace("-", "_")]
    assert re.search(rf"^  --{name} \S+\s+{helps[0].split()[0]}", said, re.MULTILINE)


@pytest.mark.parametrize("field", OPTIONS, ids=lambda field: field.name)
def test_every_option_reaches_its_field(field):
    value = {"position": "learned", "norm": "layer", "norm_order": "last", "activation": "gelu", "optimizer": "adamw",
             "dropout": 0.25, "n_embd": 24, "n_head": 2, "n_kv_head": 1, "rope_theta": 500.0, "shards": 2}.get(field.name)
    if value is None:
        value = not field.default if field.type is bool else 0.5 if field.type is float else 3
    word = {True: "yes", False: "no"}.get(value, str(value)) if field.type is bool else str(value)
    options = train_shakespeare.parse([*TINY, f"--{field.name.replace('_', '-')}", word])
    trainer = train_shakespeare.start(options, TEXT.encode())
    configs = trainer.model.config, trainer.optimizer.config, trainer.config
    assert value in [getattr(config, field.name) for config in configs if hasattr(config, field.name)]
    assert value != field.default


@pytest.mark.parametrize("preset", train_shakespeare.PRESETS)
def test_an_option_changes_its_preset_in_nothing_else(preset):
    options = train_shakespeare.parse(["--preset", preset, "--steps", "7", "--n-layer", "1"])
    trainer = train_shakespeare.start(options, TEXT.encode() * 9)
    model, optimizer, run = train_shakespeare.PRESETS[preset]
    assert vars(trainer.model.config) == {**vars(model), "n_layer": 1, "vocab_size": trainer.tokenizer.vocab_size}
    assert trainer.optimizer.config == optimizer
    assert vars(trainer.config) == {**vars(run), "steps": 7}


@pytest.mark.parametrize("options, code, sentence", [
    ("--n-embd 15", 1, r"n_embd \(15\) must be a multiple of n_head \(2\)"),
    ("--n-embd 6", 1, "rotary positions turn pairs of channels"),
    ("--n-layer 0", 1, "n_layer must be a whole number of at least 1, but is 0"),
    ("--block-size -3", 1, "block_size must be"),
    ("--dropout 1", 1, "dropout must be"),
    ("--dropout nan", 1, "dropout must be"),
    ("--steps 0", 1, "steps must be"),
    ("--shards 4", 1, r"shards must be a power of two that divides batch_size \(2\), but is 4"),
    ("--batch-size 3 --shards 3", 1, "shards must be a power of two"),
    ("--seed -1", 1, "seed must be"),
    ("--learning-rate -0.1", 1, "learning_rate must be"),
    ("--learning-rate inf", 1, "learning_rate must be"),
    ("--beta1 1", 1, "beta1 must be"),
    ("--cooldown 2", 1, "cooldown must be"),
    ("--warmup -1", 1, "warmup must be"),
    ("--norm batch", 2, "invalid choice: 'batch'"),
    ("--bias maybe", 2, "yes or no"),
    ("--n-layer two", 2, "invalid int value: 'two'"),
    ("--tokenizer words", 2, "invalid choice: 'words'"),
    ("--frobnicate", 2, "unrecognized arguments: --frobnicate"),
    pytest.param("--steps 100000000000000", 1, ".")], ids=str)
def test_an_option_out_of_range_is_refused_in_a_sentence(options, code, sentence, exits):
    assert re.search(rf"^train_shakespeare(\.py: error)?: .*{sentence}", last_line(exits(code, train, *options.split())))
    assert os.listdir() == ["text"]


# --- texts ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("content, options, sentence", [
    (None, "", "cannot read data .No such file or directory.: pass --data"),
    (b"", "", "data is empty"),
    (b"too short", "", "9 bytes, too few"),
    (b"\xff" * 500, "--tokenizer characters", "not UTF-8.*pass --tokenizer bytes")])
def test_a_text_that_will_not_do_is_refused_in_a_sentence(content, options, sentence, exits):
    if content is not None:
        Path("data").write_bytes(content)
    said = exits(1, train_shakespeare.main, ["--data", "data", *TINY, *options.split()])
    assert re.search(f"^train_shakespeare: .*{sentence}", said)


def test_any_bytes_will_do():
    Path("data").write_bytes(bytes(range(256)) * 3)
    train_shakespeare.main(["--data", "data", *TINY])
    assert Path("out", FILE).exists()


# --- the folder -------------------------------------------------------------------------------------------------------

def test_a_run_is_not_overwritten_unless_forced(exits):
    train()
    before = Path("out", FILE).read_bytes()
    assert "--resume continues that run, --force replaces it" in exits(1, train, "--steps", "5")
    assert Path("out", FILE).read_bytes() == before
    train("--steps", "5", "--force")
    assert load_checkpoint(f"out/{FILE}").run["step"] == 5


def test_a_folder_that_cannot_be_is_refused_before_the_first_step(exits, monkeypatch):
    Path("taken").touch()
    monkeypatch.setattr(Trainer, "step", lambda self: pytest.fail("it trained, and would lose the model"))
    assert "taken" in exits(1, train, "--out", "taken")


# --- stop and go on ---------------------------------------------------------------------------------------------------

def test_ctrl_c_says_how_to_go_on_and_the_end_is_the_same(exits, monkeypatch, capsys):
    train("--out", "whole")
    interrupt_at(2, monkeypatch)
    capsys.readouterr()
    with pytest.raises(SystemExit, match="130"):
        train("--out", "cut")
    assert last_line(capsys.readouterr().out) == ("stopped after step 2; to resume: "
                                                  "python train_shakespeare.py --resume --out cut --data text")
    resume("--out", "cut")
    assert fingerprint(load_checkpoint(f"cut/{FILE}").model) == fingerprint(load_checkpoint(f"whole/{FILE}").model)


@pytest.mark.parametrize("options", [["--corpus", "complete"], ["--data", "my text"], ["--out", "my run"]], ids=str)
def test_the_line_that_says_how_to_go_on_does_go_on(options, monkeypatch, capsys):
    Path("my text").write_text(TEXT)
    texts = {"complete": TEXT.encode(), "shakespeare": TEXT.encode() * 2}
    monkeypatch.setattr(corpus, "load",
                        lambda path, name: corpus.Text("", Path(path).read_bytes() if path else texts[name]))
    interrupt_at(2, monkeypatch)
    with pytest.raises(SystemExit, match="130"):
        train_shakespeare.main([*options, *TINY])
    words = shlex.split(last_line(capsys.readouterr().out))
    train_shakespeare.main(words[words.index("train_shakespeare.py") + 1:])
    assert "fingerprint" in capsys.readouterr().out


@pytest.mark.parametrize("options", [
    "--n-layer 2", "--steps 9", "--bias no", "--preset quick", "--n-layer 1 --seed 1",
    pytest.param("--tokenizer characters"), pytest.param("--force")])
def test_a_run_goes_on_under_its_own_options_alone(options, exits):
    train()
    before = Path("out", FILE).read_bytes()
    assert "--resume continues with the run's own options" in last_line(exits(2, resume, *options.split()))
    assert Path("out", FILE).read_bytes() == before


def test_options_are_named_as_they_are_typed(exits):
    assert last_line(exits(2, resume, "--n-layer", "2", "--qk-norm", "no")).endswith("leave out --n-layer, --qk-norm")


def test_a_run_that_is_not_there_cannot_go_on(exits):
    assert f"train_shakespeare: there is no model at nowhere/{FILE}" in exits(1, resume, "--out", "nowhere")


def test_a_run_does_not_go_on_with_another_text(exits):
    train()
    Path("text").write_text(TEXT + "!")
    assert "was trained on another text" in exits(1, resume)


def test_ctrl_c_before_the_first_step_is_no_traceback(exits, monkeypatch):
    monkeypatch.setattr(corpus, "load", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    assert "stopped without saving" in exits(1, train)


def test_ctrl_c_in_the_samples_is_no_traceback(monkeypatch):
    monkeypatch.setattr(train_shakespeare.KeepingTrainer, "keep_sample", lambda self: None)     # those shown at the end
    monkeypatch.setattr(train_shakespeare, "stream", lambda *_, **__: os.kill(os.getpid(), signal.SIGINT))
    try:
        train()
    except SystemExit as stop:
        assert stop.code
    except KeyboardInterrupt:
        pytest.fail("a traceback")


def test_a_model_that_is_worth_nothing_is_no_traceback(monkeypatch, capsys):
    monkeypatch.setattr(Trainer, "validate", lambda self: 1000.0)
    train()
    assert "perplexity" in capsys.readouterr().out


# --- python -m minigpt sample -----------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The path of a small trained model."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "text").write_text(TEXT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_shakespeare, "draw_losses", lambda *arguments: None)
        files = ["--data", str(folder / "text"), "--out", str(folder)]
        train_shakespeare.main([*files, "--tokenizer", "characters", *TINY])
    return str(folder / FILE)


def written(capsys, *options):
    sample(*options)
    return capsys.readouterr().out


def test_a_sample_begins_with_its_prompt_and_has_so_many_tokens(trained, capsys):
    text = written(capsys, "--model", trained, "--prompt", "What 烟", "--tokens", "30")
    assert text.startswith("What 烟") and len(text) == len("What 烟") + 30 + len("\n")


def test_the_seed_decides_the_sample(trained, capsys):
    texts = [written(capsys, "--model", trained, "--seed", str(seed)) for seed in (1, 1, 2, 2 ** 64 - 1)]
    assert texts[0] == texts[1] and len(set(texts)) == 3


def test_a_sample_ends_at_the_stop_text(trained, capsys):
    whole = written(capsys, "--model", trained, "--tokens", "50")
    stop = whole[20:23]
    assert written(capsys, "--model", trained, "--tokens", "50", "--stop", stop) == whole[:whole.index(stop)] + "\n"


@pytest.mark.parametrize("options, code, sentence", [
    ("--model nothing", 1, "there is no model at nothing"),
    ("--model .", 1, "cannot read config.json"),
    ("--model text", 1, "text cannot be read as a checkpoint: not a whole safetensors file"),
    ("--prompt J", 1, "the character 'J' at position 0 is not one of the"),
    ("--temperature -1", 1, "temperature must be"),
    ("--top-k -1", 1, "top-k must be"),
    ("--top-p 0", 1, "top-p must be"),
    ("--seed -1", 1, "seed must be"),
    (f"--seed {2 ** 64}", 1, "seed must be"),
    ("--temperature hot", 2, "argument --temperature: invalid float value: 'hot'"),
    pytest.param("--tokens -5", 1, "tokens")], ids=str)
def test_a_sample_that_cannot_be_is_explained(options, code, sentence, trained, exits):
    words = options.split() if "--model" in options else ["--model", trained, *options.split()]
    assert re.search(f"^(minigpt|python -m minigpt sample: error): .*{sentence}", last_line(exits(code, sample, *words)))


@pytest.mark.parametrize("options", [["--temperature", "-1"], ["--prompt", "JJ"]], ids=str)
def test_a_sample_that_cannot_be_prints_no_text(options, trained, capsys):
    with pytest.raises(SystemExit):
        sample("--model", trained, "--prompt", "KING", *options)
    assert capsys.readouterr().out == ""


# --- from outside -----------------------------------------------------------------------------------------------------

def start(*words, **variables):
    """One thread: the bits are the same, and on a busy machine two would wait for each other."""
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parent), "NUMBA_NUM_THREADS": "1", **variables}
    return subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)


@pytest.mark.slow
def test_a_reader_that_has_had_enough_is_no_traceback(trained):
    """python -m minigpt sample | head -c 10"""
    process = start("-m", "minigpt", "sample", "--model", trained, "--tokens", "5000")
    process.stdout.read(10)
    process.stdout.close()
    said = process.stderr.read().decode()
    process.stderr.close()
    process.wait()
    assert said == ""


@pytest.mark.slow
def test_a_terminal_without_unicode_is_no_hindrance(trained):
    process = start("-m", "minigpt", "sample", "--model", trained, "--tokens", "200", "--temperature", "3",
                    PYTHONIOENCODING="ascii")
    out, said = process.communicate()
    assert (process.returncode, said) == (0, b"") and len(out) >= 200


@pytest.mark.parametrize("words", [[str(SCRIPT), "--help"], ["-m", "minigpt", "verify", "--help"]], ids=["train", "minigpt"])
def test_ctrl_c_during_the_imports_is_no_traceback(words, tmp_path):
    """An argparse that is interrupted stands for any of the imports."""
    (tmp_path / "argparse.py").write_text("raise KeyboardInterrupt")
    process = start(*words, PYTHONPATH=os.pathsep.join([str(tmp_path), str(SCRIPT.parent)]))
    out, said = process.communicate()
    assert (process.returncode, out, said) == (130, b"", b"")


@pytest.mark.slow
def test_ctrl_c_in_a_terminal_stops_and_resume_ends_with_the_same_bits():
    options = "--data text --n-layer 1 --n-embd 16 --n-head 2 --batch-size 8 --dropout 0.1 --steps 150".split()
    process = start(str(SCRIPT), "--out", "cut", *options)
    said = b""
    while not re.search(rb"[1-9]\d*/150 \[", said):         # until it has got somewhere
        piece = os.read(process.stderr.fileno(), 4096)
        assert piece, said
        said += piece
    process.send_signal(signal.SIGINT)
    out, rest = process.communicate()
    assert process.returncode == 130 and b"Traceback" not in rest
    command = shlex.split(re.search(r"to resume: python (.*)", out.decode()).group(1))
    assert b"fingerprint" in start(*command).communicate()[0]
    assert load_checkpoint(f"cut/{FILE}").run["step"] == 150

    train_shakespeare.main([*options, "--out", "whole"])
    assert fingerprint(load_checkpoint(f"cut/{FILE}").model) == fingerprint(load_checkpoint(f"whole/{FILE}").model)

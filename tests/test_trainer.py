"""The training loop: interrupted or not, a run ends with the same bits; and it loses nothing on its way."""

import math
import os
import signal
import sys
import threading

import numpy as np
import pytest

from minigpt import trainer as trainer_module
from minigpt.checkpoint import CheckpointError, fingerprint, load_checkpoint, save_checkpoint
from minigpt.model import GPT, GPTConfig
from minigpt.optimizer import OptimizerConfig
from minigpt.plot import draw_losses
from minigpt.tokenizer import ByteTokenizer, CharTokenizer
from minigpt.trainer import FILE, TrainConfig, Trainer, TrainingError

TEXT = "".join(f"{i} green bottles hanging on the wall, 春眠不觉晓\n" for i in range(40)).encode()


@pytest.fixture(autouse=True)
def surroundings(monkeypatch):
    """As if matplotlib were not installed, with Ctrl-C as in a terminal."""
    for name in [name for name in sys.modules if name.startswith("matplotlib.")] + ["matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def make_trainer(out, text=TEXT, tokenizer=ByteTokenizer(), model={}, optimizer={}, **train):
    config = GPTConfig(**{**dict(vocab_size=tokenizer.vocab_size, block_size=16, n_layer=1, n_head=2, n_embd=16,
                                 dropout=0.1), **model})
    train = TrainConfig(**{**dict(steps=8, batch_size=2, validate_every=3, save_every=2), **train})
    optimizer = OptimizerConfig(**{**dict(warmup=2), **optimizer})
    return Trainer(GPT(config, train.seed), tokenizer, text, train, optimizer, out)


def before_step(trainer, number, act):
    """Have `act` happen at the beginning of step `number`, counted from 1."""
    step = trainer.step

    def instead():
        if trainer.step_count == number - 1:
            act()
        return step()
    trainer.step = instead


def send(number):
    return lambda: os.kill(os.getpid(), number)


def fail():
    raise OSError("the power is gone")


def memory(trainer):
    """All that a run is."""
    return {"weights": fingerprint(trainer.model), "losses": trainer.losses.tobytes(), "step": trainer.step_count,
            "validations": trainer.validations,
            **{name: array.tobytes() for name, array in trainer.optimizer.state.items()}}


# --- interrupted and resumed ------------------------------------------------------------------------------------------

@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("number, interruption, resumed_after", [
    (1, send(signal.SIGINT), 1), (5, send(signal.SIGINT), 5), (6, send(signal.SIGTERM), 6), (6, fail, 4)],
    ids=["Ctrl-C at 1", "Ctrl-C at 5", "SIGTERM at 6", "crash at 6"])
def test_a_run_that_was_interrupted_ends_with_the_same_bits(number, interruption, resumed_after, optimizer, tmp_path):
    whole = make_trainer(tmp_path / "whole", optimizer={"optimizer": optimizer})
    assert whole.run()[1]

    cut = make_trainer(tmp_path / "cut", optimizer={"optimizer": optimizer})
    before_step(cut, number, interruption)
    try:
        assert not cut.run()[1]
    except OSError:
        pass
    resumed = Trainer.resume(tmp_path / "cut", TEXT)
    assert resumed.step_count == resumed_after
    assert resumed.run()[1]
    assert memory(resumed) == memory(whole)
    assert memory(Trainer.resume(tmp_path / "cut", TEXT)) == memory(whole)


def test_a_run_that_stopped_at_every_step_ends_with_the_same_bits(tmp_path):
    whole = make_trainer(tmp_path / "whole")
    whole.run()
    current = make_trainer(tmp_path / "cut")
    for number in range(1, 9):
        before_step(current, number, send(signal.SIGINT))
        assert current.run()[1] == (number == 8)        # interrupted in its last step, a run is done all the same
        current = Trainer.resume(tmp_path / "cut", TEXT)
    assert memory(current) == memory(whole)


def test_a_run_that_is_done_has_nothing_to_go_on_with(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.run()
    again = Trainer.resume(tmp_path, TEXT)
    before_step(again, 9, fail)
    assert again.run()[1] and memory(again) == memory(trainer)


def test_the_second_ctrl_c_interrupts_and_the_last_save_stays(tmp_path):
    trainer = make_trainer(tmp_path)
    before_step(trainer, 6, lambda: (send(signal.SIGINT)(), send(signal.SIGINT)()))
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert Trainer.resume(tmp_path, TEXT).step_count == 4


@pytest.mark.parametrize("end", ["done", "interrupted", "crashed"])
def test_signals_do_afterwards_what_they_did_before(end, tmp_path):
    trainer = make_trainer(tmp_path, steps=2)
    before_step(trainer, 1, {"done": lambda: None, "interrupted": send(signal.SIGTERM), "crashed": fail}[end])
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        trainer.run()
    except OSError:
        pass
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_handler_that_was_not_installed_from_python_is_left_alone(tmp_path, monkeypatch):
    get, installed = signal.getsignal, []
    monkeypatch.setattr(signal, "getsignal", lambda number: None if number == signal.SIGTERM else get(number))
    monkeypatch.setattr(signal, "signal", lambda number, handler: installed.append(number))
    assert make_trainer(tmp_path, steps=1).run()[1]
    assert signal.SIGINT in installed and signal.SIGTERM not in installed


def test_a_run_in_another_thread_has_the_same_bits(tmp_path):
    here, there = make_trainer(tmp_path / "here", steps=3), make_trainer(tmp_path / "there", steps=3)
    here.run()
    thread = threading.Thread(target=there.run)
    thread.start()
    thread.join()
    assert memory(there) == memory(here)


# --- what is resumed --------------------------------------------------------------------------------------------------

@pytest.fixture
def saved(tmp_path):
    trainer = make_trainer(tmp_path, tokenizer=CharTokenizer(TEXT.decode()), steps=2)
    trainer.run()
    return tmp_path


@pytest.mark.parametrize("text", [
    pytest.param(TEXT + b"1", id="longer"),
    pytest.param(TEXT.decode()[::-1].encode(), id="reversed"),
    pytest.param(TEXT + b"X", id="unknown character"),
    pytest.param(b"\xff" * 999, id="not UTF-8"),
    pytest.param(b"green", id="too short"),
    pytest.param(b"", id="empty")])
def test_another_text_is_refused(text, saved):
    with pytest.raises(TrainingError, match="was trained on another text.*--data"):
        Trainer.resume(saved, text)


@pytest.mark.parametrize("run", [{"step": 1}, {"train": {"laps": 1}, "optimizer": {}, "step": 1}], ids=str)
def test_the_run_of_another_program_is_refused(run, tmp_path):
    save_checkpoint(tmp_path / FILE, make_trainer(tmp_path).model, ByteTokenizer(), run)
    with pytest.raises((CheckpointError, TrainingError)):
        Trainer.resume(tmp_path, TEXT)


def test_a_bare_model_is_refused(tmp_path):
    save_checkpoint(tmp_path / FILE, make_trainer(tmp_path).model, ByteTokenizer())
    with pytest.raises(TrainingError, match="bare model"):
        Trainer.resume(tmp_path, TEXT)


@pytest.mark.parametrize("content", [None, b"", b"something else"])
def test_no_checkpoint_is_refused(content, tmp_path):
    if content is not None:
        (tmp_path / FILE).write_bytes(content)
    with pytest.raises(CheckpointError):
        Trainer.resume(tmp_path, TEXT)


def test_a_resumed_run_has_its_own_options(saved):
    original = make_trainer(saved, tokenizer=CharTokenizer(TEXT.decode()), steps=2)
    resumed = Trainer.resume(saved, TEXT)
    assert resumed.config == original.config
    assert resumed.optimizer.config == original.optimizer.config
    assert resumed.model.config == original.model.config
    assert resumed.tokenizer.itos == original.tokenizer.itos


# --- what is learned from, and how good it is -------------------------------------------------------------------------

def test_batches_are_windows_of_the_training_text_alone(tmp_path):
    text = bytes(range(200)) + bytes(range(200, 222))                   # each byte once: 199 to train
    trainer = make_trainer(tmp_path, text, batch_size=5)
    windows = np.concatenate([trainer.batch(step) for step in range(200)])
    assert windows.shape == (1000, 17)
    assert (np.diff(windows) == 1).all()
    assert set(windows[:, 0]) == set(range(199 - 16))                   # from the first window to the last


def test_in_shuffled_epochs_each_token_is_predicted_once_an_epoch(tmp_path):
    text = bytes(range(250)) + bytes(28)                                # 250 to train: 14 windows of 16 tokens an epoch
    trainer = make_trainer(tmp_path, text, batch_size=5, shuffle=True)
    windows = np.concatenate([trainer.batch(step) for step in range(14)]).reshape(5, 14, 17)
    assert (np.diff(windows) == 1).all()
    epochs = [sorted(epoch[:, 1:].reshape(-1)) for epoch in windows]
    assert all((np.diff(epoch) == 1).all() for epoch in epochs)         # side by side
    assert len({epoch[0] for epoch in epochs}) > 1                      # from another offset each time
    assert not any((np.diff(epoch[:, 0]) == 16).all() for epoch in windows)


@pytest.mark.parametrize("size", [19, 30, 31, 32, 33, 34, 35, 36, 37])  # bytes; 17 to 33 of them to train, in windows of 17
def test_shuffled_epochs_of_a_short_text(size, tmp_path):
    trainer = make_trainer(tmp_path, bytes(range(size)), batch_size=3, shuffle=True)
    windows = np.concatenate([trainer.batch(step) for step in range(50)])
    assert (np.diff(windows) == 1).all() and windows.max() < size * 9 // 10


# Nine tenths, rounded down, are to train: 16 and 2 tokens of 18, 17 and 2 of 19; 9 and 1 of 10, 9 and 2 of 11.
@pytest.mark.parametrize("block_size, shortest", [(16, 19), (1, 11)])
def test_a_text_must_fill_one_window_and_leave_two_tokens_to_validate(block_size, shortest, tmp_path):
    assert make_trainer(tmp_path, TEXT[:shortest], model={"block_size": block_size}, steps=1).run()[1]
    with pytest.raises(TrainingError, match=f"{shortest - 1} bytes, too few"):
        make_trainer(tmp_path, TEXT[:shortest - 1], model={"block_size": block_size})


def plain_validation(trainer):
    """Mean nats per token, in float64, one window after another."""
    ids, T, total = trainer.validation_ids, trainer.model.config.block_size, 0.0
    for start in range(0, len(ids) - 1, T):
        x, y = ids[start:start + T][:len(ids) - 1 - start], ids[start + 1:start + T + 1]
        logits = trainer.model.forward(x[None])[0].astype(np.float64)
        total += sum(math.log(sum(np.exp(row - row.max()))) + row.max() - row[target] for row, target in zip(logits, y))
    return total / (len(ids) - 1)


@pytest.mark.parametrize("tokens", [2, 3, 16, 17, 18, 32, 33, 34, 100])
@pytest.mark.parametrize("windows_at_a_time", [1, 2, 64])
def test_validation_covers_every_token_of_the_split(tokens, windows_at_a_time, tmp_path):
    trainer = make_trainer(tmp_path, TEXT[-10 * tokens:], batch_size=windows_at_a_time)
    trainer.validation_ids = trainer.validation_ids[:tokens]
    assert trainer.validate() == pytest.approx(plain_validation(trainer), rel=1e-6)


def test_validation_drops_nothing_out_and_changes_nothing(tmp_path):
    trainer = make_trainer(tmp_path, model={"dropout": 0.5})
    before = memory(trainer)
    assert trainer.validate() == trainer.validate()
    assert memory(trainer) == before


def test_each_step_has_a_dropout_of_its_own_and_validation_has_none(tmp_path):
    trainer, draws = make_trainer(tmp_path, steps=4, seed=5), []
    loss = trainer.model.loss
    trainer.model.loss = lambda ids, targets, draw=None: draws.append(draw) or loss(ids, targets, draw)
    for _ in range(3):
        trainer.step()
    trainer.validate()
    assert draws[:3] == [(5, 0), (5, 1), (5, 2)] and set(draws[3:]) == {None}


def test_training_learns(tmp_path):
    trainer = make_trainer(tmp_path, model={"dropout": 0.0}, steps=60, batch_size=8, validate_every=0, save_every=0)
    first = trainer.validate()
    trainer.run()
    assert first == pytest.approx(math.log(256), rel=0.05)              # an untrained model knows nothing
    assert trainer.validations[-1][1] < 0.7 * first


# --- when it validates and saves --------------------------------------------------------------------------------------

@pytest.mark.parametrize("steps, validate_every, save_every, validated, saved", [
    (5, 0, 0, [5], [5]), (5, 1, 2, [1, 2, 3, 4, 5], [2, 4, 5]), (6, 2, 3, [2, 4, 6], [3, 6]),
    (5, 5, 5, [5], [5]), (5, 9, 9, [5], [5]), (1, 1, 1, [1], [1])])
def test_it_validates_and_saves_every_so_many_steps_and_at_the_end(steps, validate_every, save_every, validated,
                                                                   saved, tmp_path, monkeypatch):
    saves = []
    monkeypatch.setattr(trainer_module, "save_checkpoint", lambda *arguments: saves.append(arguments[3]["step"]))
    trainer = make_trainer(tmp_path, steps=steps, validate_every=validate_every, save_every=save_every)
    trainer.run()
    assert [step for step, _ in trainer.validations] == validated
    assert sorted(set(saves)) == saved          # the end is saved before it is validated, and after


def test_on_save_is_called_after_each_checkpoint(tmp_path):
    trainer, steps = make_trainer(tmp_path, save_every=3), []
    trainer.run(lambda: steps.append((trainer.step_count, load_checkpoint(trainer.path).run["step"])))
    assert steps == [(3, 3), (6, 6), (8, 8), (8, 8)]                # of the last two, one is with the last validation


def test_each_validation_is_said_in_a_line(tmp_path, capsys):
    trainer = make_trainer(tmp_path, steps=4, validate_every=3)
    trainer.run()
    (_, third), (_, fourth) = trainer.validations
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["step 3", "step 4"]
    assert f"validation {third:.4f} nats" in lines[0] and f"validation {fourth:.4f} nats" in lines[1]


# --- what goes wrong --------------------------------------------------------------------------------------------------

def spoil(trainer):
    for parameter in trainer.model.parameters().values():
        parameter.data[...] = np.nan


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_the_last_checkpoint(tmp_path):
    trainer = make_trainer(tmp_path, save_every=2)
    before_step(trainer, 6, lambda: spoil(trainer))
    with pytest.raises(TrainingError, match="the loss of step 6 is nan: try a lower learning rate"):
        trainer.run()
    assert load_checkpoint(trainer.path).run["step"] == 4
    assert math.isfinite(Trainer.resume(tmp_path, TEXT).validate())


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_an_absurd_learning_rate_ends_the_run(optimizer, tmp_path):
    rates = dict(optimizer=optimizer, learning_rate=1e30, muon_rate=1e30, warmup=0)
    with pytest.raises(TrainingError, match="try a lower learning rate"):
        make_trainer(tmp_path, optimizer=rates, save_every=0).run()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("steps", [3, 8], ids=["at the end", "on the way"])
def test_weights_that_are_lost_are_never_saved(steps, tmp_path):
    trainer = make_trainer(tmp_path, steps=steps, save_every=1, validate_every=0)
    step = trainer.optimizer.step
    trainer.optimizer.step = lambda: (step(), spoil(trainer) if trainer.step_count == 3 else None)
    with pytest.raises(TrainingError):
        trainer.run()
    assert math.isfinite(Trainer.resume(tmp_path, TEXT).validate())


def test_a_save_that_fails_ends_the_run_and_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, save_every=2)
    before_step(trainer, 4, lambda: monkeypatch.setattr(os, "replace", lambda *_: fail()))
    with pytest.raises(OSError):
        trainer.run()
    monkeypatch.undo()
    assert os.listdir(tmp_path) == [FILE]
    assert Trainer.resume(tmp_path, TEXT).step_count == 2


@pytest.mark.parametrize("name, value", [
    ("steps", 0), ("steps", -1), ("steps", 1.5), ("steps", "9"), ("steps", None), ("steps", True), ("batch_size", 0),
    ("seed", -1), ("seed", 2 ** 63), ("validate_every", -1), ("save_every", -1), ("save_every", 2.0)])
def test_an_option_out_of_range_is_refused(name, value):
    with pytest.raises(ValueError, match=f"^{name} must be .* but is {value!r}"):
        TrainConfig(**{name: value})


# --- the loss curve ---------------------------------------------------------------------------------------------------

@pytest.fixture
def pyplot(monkeypatch):
    monkeypatch.undo()                                  # matplotlib is there again
    pytest.importorskip("matplotlib")


@pytest.mark.parametrize("steps, validations", [(60, [(30, 2.0), (60, 1.5)]), (1, []), (0, [])])
def test_the_curve_is_drawn(steps, validations, pyplot, tmp_path):
    draw_losses(tmp_path / "loss.png", np.linspace(5, 1, steps, dtype=np.float32), validations)
    assert os.listdir(tmp_path) == ["loss.png"]
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG\r\n")


def test_without_matplotlib_there_is_no_curve_and_no_harm(tmp_path):
    draw_losses(tmp_path / "loss.png", np.ones(3, np.float32), [])
    assert os.listdir(tmp_path) == []


def test_a_curve_that_cannot_be_written_does_no_harm(pyplot, tmp_path):
    (tmp_path / "loss.png").mkdir()
    draw_losses(tmp_path / "loss.png", np.ones(3, np.float32), [])
    assert os.listdir(tmp_path) == ["loss.png"]

"""A batch in shards: one tree of additions, whoever computes it, so any number of MPI processes ends with the same bits."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import train_shakespeare
from minigpt import mpi
from minigpt.checkpoint import fingerprint, load_checkpoint
from minigpt.layers import Draw
from minigpt.model import GPT, GPTConfig
from minigpt.shards import Alone, Shards
from minigpt.trainer import FILE, Trainer, TrainingError
from tests.test_trainer import TEXT, make_trainer, memory

ROOT = str(Path(__file__).parents[1])
CONFIG = GPTConfig(vocab_size=65, block_size=12, n_layer=2, n_head=2, n_embd=16, dropout=0.2)
WINDOWS = np.random.default_rng(5).integers(0, 65, (8, 13))
SEED, STEP = 3, 7


def gradients(model):
    return np.concatenate([parameter.grad.reshape(-1) for parameter in model.parameters().values()])


def leaf(shard, count, windows=WINDOWS):
    """The gradient of the mean loss of a shard, and this loss, without anything of shards.py."""
    model, (x,) = GPT(CONFIG, seed=1), np.split(windows, count)[shard:shard + 1]
    loss = model.loss(x[:, :-1], x[:, 1:], Draw(SEED, STEP * count + shard))
    model.backward()
    return np.append(gradients(model), np.float32(loss))


# --- one process ------------------------------------------------------------------------------------------------------

def test_the_gradients_of_shards_are_added_as_a_tree():
    model = GPT(CONFIG, seed=1)
    loss = Shards(model, 4, Alone()).gradient(WINDOWS, SEED, STEP)
    a, b, c, d = (leaf(i, 4) for i in range(4))
    expected = ((a + b) + (c + d)) / np.float32(4)
    assert np.array_equal(np.append(gradients(model), np.float32(loss)), expected)
    chain = (((a + b) + c) + d) / np.float32(4)
    assert not np.array_equal(expected, chain) and np.allclose(expected, chain, rtol=1e-3, atol=1e-6)    # so this test can fail


def test_one_shard_is_the_batch():
    model = GPT(CONFIG, seed=1)
    loss = Shards(model, 1, Alone()).gradient(WINDOWS, SEED, STEP)
    assert np.array_equal(np.append(gradients(model), np.float32(loss)), leaf(0, 1))


def test_each_shard_of_each_step_has_a_dropout_of_its_own():
    draws, model = [], GPT(CONFIG, seed=1)
    loss, shards = model.loss, Shards(model, 4, Alone())
    model.loss = lambda ids, targets, draw: draws.append(draw) or loss(ids, targets, draw)
    for step in range(3):
        shards.gradient(WINDOWS, SEED, step)
    assert draws == [(SEED, i) for i in range(12)]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_run_in_shards_that_was_interrupted_ends_with_the_same_bits(optimizer, tmp_path):
    options = dict(optimizer={"optimizer": optimizer}, batch_size=8, shards=4, steps=4)
    whole = make_trainer(tmp_path / "whole", **options)
    whole.run()
    cut = make_trainer(tmp_path / "cut", **options)
    cut.step(), cut.step()
    cut.save()
    resumed = Trainer.resume(tmp_path / "cut", TEXT)
    resumed.run()
    assert resumed.config.shards == 4
    assert memory(resumed)["weights"] == memory(whole)["weights"] and np.array_equal(resumed.losses, whole.losses)


# --- processes that are threads ---------------------------------------------------------------------------------------

class Given(Alone):
    """A process of several, which finds the others' arrays in a list."""

    def __init__(self, rank, count, others):
        self.rank, self.count, self.others = rank, count, others

    def add(self, array):
        for other in self.others:
            array += other


@pytest.mark.parametrize("count, shards", [(2, 1), (8, 4), (3, 4), (6, 4)])
def test_processes_that_cannot_share_the_shards_are_refused(count, shards, tmp_path):
    sentence = f"^{count} processes cannot share the shards of a batch .{shards}. equally: their number must divide it$"
    saved = make_trainer(tmp_path, batch_size=8, shards=shards)
    saved.save()
    with pytest.raises(TrainingError, match=sentence):
        Trainer(saved.model, saved.tokenizer, TEXT, saved.config, saved.optimizer.config, tmp_path, Given(0, count, []))
    with pytest.raises(TrainingError, match=sentence):
        Trainer.resume(tmp_path, TEXT, Given(0, count, []))


def test_a_process_computes_its_own_subtree():
    models = [GPT(CONFIG, seed=1) for _ in range(3)]
    Shards(models[0], 8, Alone()).gradient(WINDOWS, SEED, STEP)
    right = Shards(models[1], 8, Given(1, 2, []))
    right.gradient(WINDOWS, SEED, STEP)
    Shards(models[2], 8, Given(0, 2, [right.total])).gradient(WINDOWS, SEED, STEP)
    assert np.array_equal(gradients(models[0]), gradients(models[2]))


# --- MPI --------------------------------------------------------------------------------------------------------------

TINY = ("--data text --n-layer 1 --n-head 2 --n-embd 16 --block-size 16 --dropout 0.1 --batch-size 8 --shards 4 --warmup 2 "
        "--steps 4 --validate-every 2").split()


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("text").write_bytes(TEXT)


def mpiexec(count, *words, program=(train_shakespeare.__file__,)):
    """train_shakespeare.py in so many processes."""
    pytest.importorskip("mpi4py", reason="MPI is missing: pip install '.[mpi]'")
    launcher = shutil.which("mpiexec", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if not launcher:
        pytest.skip("MPI is missing: there is no mpiexec")
    environment = {**os.environ, "PYTHONPATH": ROOT, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
                   "OMPI_MCA_rmaps_base_oversubscribe": "1", "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe"}
    return subprocess.Popen([launcher, "-n", str(count), sys.executable, *program, *words], env=environment,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def outcome(run, seconds=120):
    """(exit status, standard output, standard error) of a run that does not hang."""
    try:
        out, said = run.communicate(timeout=seconds)
    finally:
        run.kill()
    assert "Traceback" not in said, said
    return run.returncode, out, said


def alone(*words):
    """The fingerprint of the run in this process."""
    train_shakespeare.main([*TINY, "--out", "alone", *words])
    return state("alone")


def state(out):
    """What a run that has ended is: fingerprint, losses, validations, the optimiser's state."""
    found = load_checkpoint(f"{out}/{FILE}")
    return fingerprint(found.model), found.run, {name: array.tobytes() for name, array in found.arrays.items()}


def saved(run, out, since=0.0):
    """Wait until the run has written a checkpoint; returns when it did."""
    path = Path(out, FILE)
    while not path.exists() or path.stat().st_mtime == since:
        assert run.poll() is None, run.stderr.read()
        time.sleep(0.05)
    return path.stat().st_mtime


@pytest.fixture(autouse=True)
def no_curve(monkeypatch):
    monkeypatch.setattr(train_shakespeare, "draw_losses", lambda *arguments: None)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer, counts", [("muon", (1, 2, 4)), ("adamw", (4,))])
def test_any_number_of_processes_ends_with_the_same_bits(optimizer, counts, capsys):
    expected = alone("--optimizer", optimizer)
    said = capsys.readouterr().out
    for count in counts:
        status, out, error = outcome(mpiexec(count, *TINY, "--optimizer", optimizer, "--out", str(count)))
        assert status == 0, error
        assert state(str(count)) == expected
        assert out.count("\nfingerprint       " + expected[0]) == 1                 # the first one prints, and prints the same
        losses = re.compile("^step .*|^validation .*", re.MULTILINE)
        assert losses.findall(out) == losses.findall(said)


STOP_ONE = """import os, signal, train_shakespeare as program
class Trainer(program.KeepingTrainer):
    def step(self):
        if self.step_count == 2 and self.processes.rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().step()
program.KeepingTrainer = Trainer
program.main()
"""


@pytest.mark.slow
def test_interrupted_with_two_processes_and_resumed_with_four_it_ends_with_the_same_bits():
    """A signal that reaches one process stops all of them after the same step."""
    expected = alone()
    status, out, said = outcome(mpiexec(2, *TINY, "--out", "cut", program=("-c", STOP_ONE)))
    assert status == 130, said
    assert re.search("\nstopped after step 3; to resume: mpiexec -n 2 python .*--resume --out cut --data text\n", out), out
    status, _, said = outcome(mpiexec(4, "--resume", "--out", "cut", "--data", "text"))
    assert status == 0, said
    assert state("cut") == expected


@pytest.mark.slow
def test_stopped_by_a_signal_to_mpiexec_and_ended_by_a_process_that_is_killed():
    """mpiexec passes SIGUSR1 on.  (Open MPI's answers Ctrl-C by killing its processes, MPICH's by passing it on, too.)"""
    run = mpiexec(2, *TINY, "--steps", "1000000", "--validate-every", "0", "--save-every", "20", "--out", "cut")
    saved(run, "cut")
    run.send_signal(signal.SIGUSR1)
    status, out, said = outcome(run)
    assert status == 130 and said.count("stopping after this step") == 1 and out.count("stopped after step") == 1, said
    run, stopped = mpiexec(2, "--resume", "--out", "cut", "--data", "text"), Path("cut", FILE).stat().st_mtime
    saved(run, "cut", stopped)
    ranks = [int(path.parent.name) for path in Path("/proc").glob("[0-9]*/cmdline")
             if path.read_bytes().split(b"\0")[1:2] == [train_shakespeare.__file__.encode()]
             and os.path.realpath(path.parent / "cwd") == os.getcwd()]
    assert len(ranks) == 2
    os.kill(max(ranks), signal.SIGKILL)
    status, _, said = outcome(run, 30)
    assert status != 0 and re.search(r"[Ss]ignal[: ]+9|signal 9|cannot be reached", said), said
    assert Trainer.resume("cut", TEXT).step_count % 20 == 0


@pytest.mark.slow
@pytest.mark.parametrize("words, sentence", [
    (["--shards", "1"], r"train_shakespeare: 2 processes cannot share the shards of a batch \(1\) equally: "),
    (["--data", "nothing"], r"train_shakespeare: cannot read nothing \(No such file or directory\)"),
    (["--frobnicate"], "train_shakespeare.py: error: unrecognized arguments")])
def test_what_is_wrong_is_said_once(words, sentence):
    status, _, said = outcome(mpiexec(2, *TINY, *words))
    assert status != 0 and len(re.findall(f"^{sentence}", said, re.MULTILINE)) == 1, said


def test_a_process_with_other_weights_is_named():
    processes = object.__new__(mpi.Processes)
    processes.comm = SimpleNamespace(allgather=lambda value: [value, value + "*"])
    processes.mpi = SimpleNamespace(Get_processor_name=lambda: "host")
    with pytest.raises(TrainingError, match=r"^process 1, on host\*, has other weights than process 0: "):
        processes.check(GPT(CONFIG, seed=1))
    processes.comm.allgather = lambda value: [value, value]
    processes.check(GPT(CONFIG, seed=1))


def test_without_mpi_there_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(TrainingError, match=r"pip install \"\.\[mpi\]\""):
        mpi.Processes()


def test_training_alone_loads_nothing_of_mpi():
    code = ("import sys, train_shakespeare as t; t.processes(); "
            "print([m for m in ('mpi4py', 'minigpt.mpi') if m in sys.modules])")
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ROOT})
    assert run.stdout == "[]\n", run.stderr

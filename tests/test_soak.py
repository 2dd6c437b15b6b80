"""It survives thousands of damaged and forged files, kills, a full disk, folders that cannot be written to, closed pipes."""

import io
import os
import random
import resource
import signal
import sys
import time
import traceback
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from coder import __main__ as command_line
from coder import predictor as predictors
from coder.archive import compress, decompress, members, skippable
from coder.compressor import compress as compress_segment
from coder.container import INDEX, MODES, NAMES, PARITY, CoderError
from coder.retrieve import salvage
from coder.tokens import TokenModel
from coder.verify import LICENSE
from minigpt.bpe import train
from minigpt.model import GPT
from tests.golden_coder import TINY, taught
from tests.test_container import Parts, mutated, repaired

pytestmark = pytest.mark.slow
MUTATIONS = 10_000
TEXT = LICENSE[:220]
SECONDS, BYTES = 30, 1.5 * 2 ** 30      # for one file, beside other work: a claim of 2^60 bytes would take years


@pytest.fixture(autouse=True)
def scratch_is_tiny(monkeypatch):
    monkeypatch.setattr(predictors, "SCRATCH", TINY)


def tokens():
    tokenizer = train(LICENSE, 300)
    return TokenModel(GPT(replace(TINY, vocab_size=tokenizer.vocab_size), 1), tokenizer, b"tokens 8")


def files():
    """mode -> (a file of two segments, and something to skip; the models that it may need)."""
    reads = tokens()
    for mode in MODES:
        model = reads if MODES[mode].tokens else taught() if MODES[mode].needs_model else None
        out, data = io.BytesIO(), TEXT if mode != "stored" else np.random.default_rng(1).bytes(220)
        compress(io.BytesIO(data), out, "fast" if mode == "stored" else mode, model, segment=150)
        yield mode, data, out.getvalue() + skippable(PARITY, b"some parity"), model


def forged(member, rng):
    """A segment with random fields, and right sizes and checksums."""
    parts = Parts(member)
    changes = {}
    for _ in range(rng.choice((1, 1, 2, 3))):
        name = rng.choice(("kind", "version", "flags", "length", "check", "blocks", "table"))
        if name == "kind":
            changes[name] = rng.choice(list(NAMES))
        elif name == "version":
            changes[name] = rng.choice((0, 1, 2, 255))
        elif name == "flags":
            changes[name] = parts.flags ^ 1 << rng.randrange(8)
            changes["model"] = (parts.model or rng.randbytes(8)) if changes[name] & 32 else b""
            changes["primer"] = rng.randbytes(8) if changes[name] & 64 else b""
        elif name == "length":
            changes[name] = rng.choice((0, 1, parts.length + 1, 2 ** rng.randrange(8, 19), 2 ** 30, 2 ** 60))
        elif name == "check":
            changes[name] = rng.randbytes(8)
        elif name == "blocks" and parts.blocks:
            block = mutated(parts.blocks[0], rng)
            changes["blocks"], changes["table"] = [block], [(2 * len(block) + rng.randrange(2), 0)]
        elif parts.table:
            changes["table"] = [(rng.choice((0, 1, 2 ** 40, taken ^ 1)), crc) for taken, crc in parts.table]
    return repaired(parts.joined(**changes))


def made_of(found, parts):
    """Whether it is these parts, as often as you like: a forged flag makes a whole file of a segment, which may be doubled."""
    while found:
        fits = [part for part in parts if found.startswith(part)]
        if not fits:
            return False
        found = found[len(fits[0]):]
    return True


def mutant(file, parts, rng):
    kind = rng.randrange(10)
    if kind < 6:
        return mutated(file, rng)
    if kind == 6:                                                               # members exchanged, doubled, left out
        return b"".join(rng.choices(parts, k=rng.randrange(1, 5)))
    if kind == 7:                                                               # a damaged member with right checksums
        i = rng.randrange(2)
        return b"".join([*parts[:i], repaired(mutated(parts[i], rng)), *parts[i + 1:]])
    i = rng.randrange(2)
    return b"".join([*parts[:i], forged(parts[i], rng), *parts[i + 1:]])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_ten_thousand_files_that_nobody_made_are_the_original_or_one_sentence():
    rng, tried, opened, before = random.Random(17), 0, 0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cases = [(mode, data, file, [m.data or file[m.place:m.place + m.size] for m in members(io.BytesIO(file))], model)
             for mode, data, file, model in files()]
    assert all(parts[-2][4] == INDEX and len(parts) == 4 for _, _, _, parts, _ in cases)
    while tried < MUTATIONS:
        mode, data, file, parts, model = cases[tried % len(cases)]
        found, tried, start = mutant(file, parts, rng), tried + 1, time.perf_counter()
        out = io.BytesIO()
        try:
            decompress(io.BytesIO(found), out, lambda name: model)
            opened += 1
            assert made_of(out.getvalue(), (data[:150], data[150:])), found.hex()
        except CoderError as error:
            assert str(error) and "\n" not in str(error)
        if tried % 10 == 0:
            try:
                salvage(found, io.BytesIO(), lambda name: model)
            except CoderError as error:
                assert str(error) and "\n" not in str(error)
        assert time.perf_counter() - start < SECONDS, found.hex()
    assert opened < MUTATIONS / 4
    assert 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) < BYTES


# --- in processes that share what this one has compiled --------------------------------------------------------------------

def start(work):
    """Run work() in a forked process.  Its number."""
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        work()
        code = 0
    except SystemExit as exit:
        if isinstance(exit.code, str):
            print(exit.code, file=sys.__stderr__, flush=True)
        code = exit.code if isinstance(exit.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def ended(child):
    """Its exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINIGPT_CACHE", str(tmp_path / "cache"))
    Path("text").write_bytes(LICENSE * 30)
    return tmp_path


WORDS = ["compress", "text", "-o", "packed", "-f", "--mode", "fast", "--segment", "4K", "--workers", "1"]


def test_a_kill_at_any_moment_leaves_the_old_file_or_the_new_one(folder):
    command_line.main(WORDS)
    new, old = Path("packed").read_bytes(), b"the old file"
    begun = time.perf_counter()
    assert ended(start(lambda: command_line.main(WORDS))) == 0
    seconds, rng, seen = time.perf_counter() - begun, random.Random(5), {}
    for _ in range(50):
        Path("packed").write_bytes(old)
        child = start(lambda: command_line.main(WORDS))
        time.sleep(rng.uniform(0, 1.2 * seconds))
        os.kill(child, signal.SIGKILL)
        code, found = ended(child), Path("packed").read_bytes()
        assert found in (old, new) and (code != 0 or found == new)
        seen[found == new] = seen.get(found == new, 0) + 1
    assert seen.get(False)


def said(work, capfd):
    """(exit code, what it printed) of a forked process."""
    capfd.readouterr()
    code = ended(start(work))
    return code, capfd.readouterr().err


def test_a_disk_that_is_full_leaves_what_was_there(folder, capfd):
    Path("packed").write_bytes(b"the old file")

    def work():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
        command_line.main(WORDS)
    code, line = said(work, capfd)
    assert code == 1 and line == "coder: output: File too large\n"
    assert Path("packed").read_bytes() == b"the old file" and sorted(os.listdir()) == ["packed", "text"]


def test_a_folder_that_cannot_be_written_to_is_one_sentence(folder, capfd):
    os.chmod("text", 0o644)
    for path in (folder, *folder.parents[:2]):
        os.chmod(path, 0o755)
    os.chmod(".", 0o555)

    def work():
        if os.getuid() == 0:
            os.setuid(65534)
        command_line.main(WORDS)
    try:
        code, line = said(work, capfd)
    finally:
        os.chmod(".", 0o755)
    assert code == 1 and line.startswith("coder: ") and "Permission denied" in line and line.count("\n") == 1
    assert os.listdir() == ["text"]


def test_a_pipe_that_closes_is_one_sentence(folder, capfd):
    reading, writing = os.pipe()

    def work():
        os.close(reading)
        sys.stdout = os.fdopen(writing, "w")
        command_line.main([*WORDS[:3], "-", *WORDS[4:]])
    capfd.readouterr()
    child = start(work)
    os.close(writing)
    assert os.read(reading, 10)[:4] == b"\x89GZ\6"                             # some output, before the pipe closes
    os.close(reading)
    code = ended(child)
    line = capfd.readouterr().err
    assert (code, line) in ((1, "coder: the reader closed the output\n"), (0, ""))


def test_an_input_that_is_forged_asks_for_no_more_memory_than_the_largest_segment(folder):
    """2^30 bytes of stored blocks that do not come: what is claimed is not taken."""
    part = Parts(compress_segment(LICENSE[:90], "fast"))
    file = part.joined(length=2 ** 30, flags=24, table=[(2 * 2 ** 24 + 1, 0)] * 64, blocks=[])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CoderError):
        decompress(io.BytesIO(file), io.BytesIO(), None)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2 ** 17       # KiB

"""One byte's walk through the network and the coder: docs/WALKTHROUGH.md quotes it, and every number in it is the real one."""

import re
import shlex
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from coder import reference as decoder
from coder.__main__ import main
from coder.walk import walk
from minigpt import reference
from minigpt.checkpoint import save_checkpoint
from minigpt.ensemble import Ensemble
from minigpt.model import GPT, GPTConfig
from minigpt.tokenizer import ByteTokenizer, CharTokenizer

CHAPTER = (Path(__file__).parents[1] / "docs/WALKTHROUGH.md").read_text("utf-8")
TEXT = b"abracadabra " * 3
SMALL = dict(block_size=64, n_layer=2, n_head=2, n_embd=32)


def test_the_chapter_quotes_what_its_command_prints(capsys):
    command = re.search(r"^    python -m coder (walk .*)$", CHAPTER, re.MULTILINE).group(1)
    main(shlex.split(command))
    quoted = "\n".join(re.findall(r"```text\n(.*?)\n```", CHAPTER, re.DOTALL)).splitlines()
    assert quoted == [line for line in capsys.readouterr().out.splitlines() if line]


@pytest.fixture(scope="module")
def model():
    """Two GPTs; weights far from 0, so that predictions are sharp and the text gets shorter."""
    members = [GPT(GPTConfig(**SMALL), seed) for seed in (3, 4)]
    for member in members:
        likely = np.isin(np.arange(256), list(TEXT))
        member.head.weight.data[:] *= np.where(likely, np.float32(30), np.float32(0.1))
    return Ensemble(members)


def weights(model):
    return [(member.config, {name: p.data for name, p in member.parameters().items()}) for member in model.members]


@pytest.mark.parametrize("number", [1, 6, len(TEXT)])
def test_the_numbers_are_the_references_bits(number, model, monkeypatch):
    """Bits, since a float32 is printed with the digits that tell it from all others."""
    said = "\n".join(walk(TEXT, model, number))
    stream, attention, (config, w), t = [], [], weights(model)[0], number - 1

    def watch(name, keep):
        original = getattr(reference, name)

        def watched(*arguments, **options):
            result = original(*arguments, **options)
            keep(result)
            return result
        monkeypatch.setattr(reference, name, watched)
    watch("residual", lambda result: stream.append(result[0]))
    watch("softmax_parts", lambda result: attention.append((result[0] / result[2]).reshape(2, number, number)[:, -1]))
    ids = np.array([[10, *TEXT[:t]]])
    logits = reference.forward(config, w, ids)[0]
    monkeypatch.undo()
    rows = [list(map(np.float32, numbers.split()[:3])) for numbers in re.findall(r"^block \d, [af][a-z-]+ +(.*)$", said, re.M)]
    assert np.array_equal(rows, [x[t, :3] for x in stream])
    for (head, largest), of_block in zip(re.findall(r"^block \d, head (\d) +(\S+) on", said, re.M), attention, strict=True):
        assert np.float32(largest) == of_block.max() == of_block[int(head) - 1].max()
    e, peak, total = reference.softmax_parts(logits[t:])
    byte = TEXT[t]
    assert re.search(r"GPT 1 +logit (\S+), the largest (\S+); p = \S+ - largest\) / (\S+) = (\S+)", said).groups() == \
        tuple(map(str, (logits[t, byte], peak[0, 0], total[0, 0], (e / total)[0, byte])))
    exact = decoder.frequencies(weights(model), ids, [{}, {}])[0].tolist()
    assert f"f = {exact[byte]}, start = {sum(exact[:byte])} (" in said and f"total = {sum(exact)}\n" in said
    step = int(re.search(r"range // total = (\d+)", said).group(1))
    before, after, _, last = (int(x, 16) for x in re.search(
        r"range ([0-9A-F]{16}) .*\n.*\n.*step\*f ([0-9A-F]{16})\nrenormalised +low (\w+)   range (\w+)", said).groups())
    assert step == before // sum(exact) and after == step * exact[byte] and last == after << 8 * said.count("the new: ")


def test_the_file_that_it_shows_is_the_texts(model):
    """Decoded in plain NumPy by coder/reference.py."""
    said = "\n".join(walk(TEXT, model))
    rows = re.findall(r"^ +(\d+)  [A-Za-z][A-Za-z0-9, -]+?  +((?:[0-9A-F]{2} ?)+)$", said, re.M)
    file = bytes.fromhex(" ".join(row for _, row in rows))
    assert f"The file: {len(file)} bytes" in said and [int(place) for place, _ in rows][:4] == [0, 4, 5, 6]
    assert decoder.decode_file(file, partial(weights, model)) == TEXT
    assert "those of the text." in said and f"byte {TEXT[-1]} = '␣'" in said


def test_a_text_that_does_not_compress_is_stored():
    said = "\n".join(walk(b"~", GPT(GPTConfig(**SMALL), 3)))
    assert "the block, stored" in said and "stores the text itself" in said and "byte 126 = '~'" in said


@pytest.mark.parametrize("words, sentence", [
    (["", ], "the text has 0 bytes, but walk shows one window of this model: 1 to 64"),
    (["x" * 65], "the text has 65 bytes"),
    (["abc", "--byte", "4"], "--byte must be from 1 to 3, but is 4"),
    (["abc", "--byte", "0"], "--byte must be from 1 to 3, but is 0"),
    (["abc", "--model", "characters"], "walk follows a byte, and needs a model of bytes"),
    (["abc", "--model", "nothing"], "there is no model at nothing"),
], ids=str)
def test_what_cannot_be_is_said_in_a_sentence(words, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_checkpoint("bytes", GPT(GPTConfig(**SMALL), 3), ByteTokenizer())
    save_checkpoint("characters", GPT(GPTConfig(vocab_size=3, **SMALL), 3), CharTokenizer("abc"))
    with pytest.raises(SystemExit) as caught:
        main(["walk", *words, *([] if "--model" in words else ["--model", "bytes"])])
    assert caught.value.code.startswith("coder: ") and sentence in caught.value.code and "\n" not in caught.value.code

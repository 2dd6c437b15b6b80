"""Packed models: exact integers times a step, found again bit for bit, and damage that is noticed."""

import hashlib

import numpy as np
import pytest

from coder import packed
from minigpt.checkpoint import CheckpointError, fingerprint, save_checkpoint
from minigpt.model import GPT, GPTConfig
from minigpt.tokenizer import ByteTokenizer
from tests.golden_coder import taught

SMALL = GPTConfig(block_size=8, n_layer=2, n_head=2, n_embd=24, norm="layer", bias=True, position="learned")


@pytest.fixture(scope="module")
def file():
    return packed.pack(taught())


def unpacked(file):
    return packed.unpack(file)[0]


def arrays(model):
    return {name: parameter.data for name, parameter in model.parameters().items()}


@pytest.mark.parametrize("fineness", [0.5, 3, 12, 200])
def test_matrices_are_rounded_to_a_step_and_vectors_kept(fineness):
    model = GPT(SMALL, seed=3)
    found, given = arrays(unpacked(packed.pack(model, fineness=fineness))), arrays(model)
    assert list(found) == list(given)
    for name, array in given.items():
        if array.ndim == 1 or not array.any():
            assert found[name].tobytes() == array.tobytes()
        else:
            step = np.sqrt((array.astype(np.float64) ** 2).mean()) / fineness
            assert np.abs(found[name] - array).max() <= 0.5001 * step
            multiples = found[name] / step
            assert np.abs(multiples - np.rint(multiples)).max() < 1e-3


def test_a_packed_model_packs_to_itself(file):
    once = unpacked(file)
    integers = {name: len(np.unique(array)) for name, array in arrays(once).items() if array.ndim == 2}
    assert unpacked(file).config == taught().config and fingerprint(unpacked(file)) == fingerprint(once)
    assert min(integers.values()) > 8


def test_the_size_is_that_of_the_entropy(file):
    given = arrays(taught())
    bits = sum(4 * 8 * array.size for array in given.values() if array.ndim == 1)
    for name, array in arrays(unpacked(file)).items():
        if array.ndim == 2:
            share = np.unique(array, return_counts=True)[1] / array.size
            bits -= array.size * (share * np.log2(share)).sum()
    assert bits / 8 < len(file) < 1.12 * bits / 8 + 1000        # small matrices: learning the frequencies costs


def test_damage_is_noticed(file):
    for place in (0, 5, 40, 60, len(file) // 2, len(file) - 1):
        with pytest.raises(ValueError, match="packed model"):
            packed.unpack(file[:place] + bytes([file[place] ^ 4]) + file[place + 1:])
    for size in (0, 3, 36, 50, len(file) - 1):
        with pytest.raises(ValueError, match="packed model"):
            packed.unpack(file[:size])


def test_a_packed_model_of_another_version_is_one_sentence(tmp_path):
    description = b'{"config": {}, "text_sha256": null, "arrays": []}'
    rest = len(description).to_bytes(4, "little") + description
    (tmp_path / "old").write_bytes(packed.MAGIC + hashlib.sha256(rest).digest() + rest)
    with pytest.raises(CheckpointError, match="old cannot be read: .* another version"):
        packed.load(tmp_path / "old")


def test_command_line(tmp_path, capsys):
    save_checkpoint(tmp_path / "model", taught(), ByteTokenizer())
    packed.main([str(tmp_path / "model"), str(tmp_path / "packed")])
    file = (tmp_path / "packed").read_bytes()
    assert f"{len(file):,} bytes, fingerprint {fingerprint(unpacked(file))}" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "packed"]


def test_load_takes_both_kinds_of_file(file, tmp_path):
    save_checkpoint(tmp_path / "model", taught(), ByteTokenizer(), {"text_sha256": "12ab"})
    (tmp_path / "packed").write_bytes(packed.pack(taught(), "12ab"))
    for name, given in (("model", taught()), ("packed", unpacked(file))):
        model, text_sha256 = packed.load(tmp_path / name)
        assert fingerprint(model) == fingerprint(given) and text_sha256 == "12ab"


@pytest.mark.parametrize("content, said", [(packed.MAGIC + bytes(99), "damaged"), (b"something else", "whole safetensors"), (None, "no model")])
def test_load_says_what_is_wrong(content, said, tmp_path):
    if content is not None:
        (tmp_path / "model").write_bytes(content)
    with pytest.raises(CheckpointError, match=said):
        packed.load(tmp_path / "model")


def test_the_shipped_model_is_whole_and_small():
    model, _ = packed.load(packed.SHIPPED)
    assert packed.SHIPPED.stat().st_size < 4e6 and model.config.vocab_size == 256


@pytest.mark.parametrize("arguments", [["missing", "out"], ["model", "out", "--fineness", "0"], ["model", "no/folder"]])
def test_bad_input_is_one_sentence(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_checkpoint("model", taught(), ByteTokenizer())
    with pytest.raises(SystemExit) as exit:
        packed.main(arguments)
    assert str(exit.value).startswith("coder.packed: ") and [path.name for path in tmp_path.iterdir()] == ["model"]

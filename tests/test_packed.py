"""Packed models: exact integers times a step, the same after unpacking, and damage that is noticed."""

import hashlib
import json

import numpy as np
import pytest

from coder import __main__ as command_line
from coder import models, packed
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
    for array in arrays(unpacked(file)).values():
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


def with_description(file, change):
    """The packed model with another description, and a SHA-256 that fits."""
    size = int.from_bytes(file[36:40], "little")
    description = change(json.loads(file[40:40 + size]))
    if not isinstance(description, bytes):
        description = json.dumps(description).encode()
    rest = len(description).to_bytes(4, "little") + description + file[40 + size:]
    return packed.MAGIC + hashlib.sha256(rest).digest() + rest


def changed(description, config={}, **values):
    """With other values; those of config in each config."""
    return {**description, "configs": [old | config for old in description["configs"]], **values}


ANOTHER_VERSION = {
    "a config instead of configs": lambda d: {"config": {}, "text_sha256": None, "arrays": []},
    "no text_sha256": lambda d: {"configs": d["configs"], "arrays": d["arrays"]},
    "no JSON": lambda d: b"{",
    "no text": lambda d: b"\xff",
    "nothing": lambda d: b"",
    "a list": lambda d: [],
    "a number": lambda d: 3,
    "nested without end": lambda d: b"[" * 100_000,
    "an option that is unknown": lambda d: changed(d, config={"experts": 8}),
    "a value that is unknown": lambda d: changed(d, config={"activation": "swish"}),
    "no configs": lambda d: changed(d, configs=[]),
    "configs that are none": lambda d: changed(d, configs=7),
    "another shape": lambda d: changed(d, config={"n_embd": 32}),
    "another layer": lambda d: changed(d, config={"n_layer": 2}),
    "very many layers": lambda d: changed(d, config={"n_layer": 10 ** 12}),
    "more than any memory": lambda d: changed(d, config={"vocab_size": 10 ** 13}),
    "more than an address": lambda d: changed(d, config={"vocab_size": 10 ** 25}),
    "an array too few": lambda d: changed(d, arrays=d["arrays"][1:]),
    "an array of another name": lambda d: changed(d, arrays=[["x", *d["arrays"][0][1:]], *d["arrays"][1:]]),
    "an array of two fields": lambda d: changed(d, arrays=[array[:2] for array in d["arrays"]]),
    "a largest integer below 0": lambda d: changed(d, arrays=[[name, step, -1] for name, step, _ in d["arrays"]]),
    "a largest integer beyond memory": lambda d: changed(d, arrays=[[name, step, 10 ** 15] for name, step, _ in d["arrays"]]),
    "a step that is no number": lambda d: changed(d, arrays=[[name, "1", largest] for name, _, largest in d["arrays"]]),
    "nothing coded": lambda d: changed(d, arrays=[[name, 0.0, 0] for name, _, _ in d["arrays"]]),
}


@pytest.mark.parametrize("change", ANOTHER_VERSION.values(), ids=ANOTHER_VERSION)
def test_a_packed_model_of_another_version_is_one_sentence(change, file, tmp_path):
    (tmp_path / "other").write_bytes(with_description(file, change))
    with pytest.raises(CheckpointError) as caught:
        models.load(tmp_path / "other")
    assert "other cannot be read: " in str(caught.value) and "\n" not in str(caught.value)


def test_an_unchanged_description_unpacks(file):
    assert fingerprint(unpacked(with_description(file, changed))) == fingerprint(unpacked(file))


def test_command_line(tmp_path, capsys):
    save_checkpoint(tmp_path / "model", taught(), ByteTokenizer())
    command_line.main(["pack", str(tmp_path / "model"), str(tmp_path / "packed")])
    file = (tmp_path / "packed").read_bytes()
    assert f"{len(file):,} bytes, fingerprint {fingerprint(unpacked(file))}" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "packed"]


def test_pack_overwrites_a_packed_model_but_no_other_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_checkpoint("model", taught(), ByteTokenizer())
    command_line.main(["pack", "model", "packed"])
    command_line.main(["pack", "model", "packed", "--fineness", "3"])
    assert (tmp_path / "packed").read_bytes() == packed.pack(taught(), fineness=3)
    before = (tmp_path / "model").read_bytes()
    with pytest.raises(SystemExit, match="^coder: model exists"):
        command_line.main(["pack", "packed", "model"])
    assert (tmp_path / "model").read_bytes() == before


def test_load_takes_both_kinds_of_file(file, tmp_path):
    save_checkpoint(tmp_path / "model", taught(), ByteTokenizer(), {"text_sha256": "12ab"})
    (tmp_path / "packed").write_bytes(packed.pack(taught(), "12ab"))
    for name, given in (("model", taught()), ("packed", unpacked(file))):
        model, text_sha256 = models.load(tmp_path / name)
        assert fingerprint(model) == fingerprint(given) and text_sha256 == "12ab"


@pytest.mark.parametrize("content, said", [
    (packed.MAGIC + bytes(99), "damaged"), (b"something else", "whole safetensors"), (None, "no model")])
def test_load_says_what_is_wrong(content, said, tmp_path):
    if content is not None:
        (tmp_path / "model").write_bytes(content)
    with pytest.raises(CheckpointError, match=said):
        models.load(tmp_path / "model")


def test_the_bundled_model_is_whole_and_small():
    model, _ = models.load()
    assert models.BUNDLED.stat().st_size < 4e6 and model.config.vocab_size == 256


@pytest.mark.parametrize("arguments", [["missing", "out"], ["model", "out", "--fineness", "0"],
                                       ["model", "out", "--fineness", "nan"], ["model", "no/folder"], ["model", "."]])
def test_bad_input_is_one_sentence(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_checkpoint("model", taught(), ByteTokenizer())
    with pytest.raises(SystemExit) as exit:
        command_line.main(["pack", *arguments])
    assert str(exit.value).startswith("coder: ") and [path.name for path in tmp_path.iterdir()] == ["model"]

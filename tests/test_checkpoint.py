"""A model on disk: it comes back to the bit, or not at all."""

import errno
import json
import os
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import save as save_safetensors

from minigpt import checkpoint
from minigpt.checkpoint import CheckpointError, fingerprint, load_checkpoint, save_checkpoint
from minigpt.tokenizer import CharTokenizer
from tests.float64 import CONFIGS, make_config, make_ids, make_model

CHARACTERS = CharTokenizer("hello, 世界")
RUN = {"step": 7, "validations": [[3, 1.25]], "text_sha256": "ab"}
ARRAYS = {"losses": np.arange(7, dtype=np.float32), "mean.x": np.ones((2, 3), np.float32)}


@pytest.fixture
def model():
    return make_model(make_config("default", vocab_size=CHARACTERS.vocab_size))


@pytest.fixture
def path(model, tmp_path):
    save_checkpoint(tmp_path / "model.safetensors", model, CHARACTERS, RUN, ARRAYS)
    return tmp_path / "model.safetensors"


# --- there and back ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", CONFIGS)
def test_a_model_comes_back_with_the_same_bits(name, tmp_path):
    model = make_model(make_config(name))
    save_checkpoint(tmp_path / "model", model, CharTokenizer("abcdefghijk"))
    again = load_checkpoint(tmp_path / "model").model
    ids = make_ids(model.config, 2, model.config.block_size)
    assert again.config == model.config
    assert fingerprint(again) == fingerprint(model)
    assert again.forward(ids).tobytes() == model.forward(ids).tobytes()


def test_the_tokenizer_and_the_run_come_back(path):
    again = load_checkpoint(path)
    assert again.tokenizer.itos == CHARACTERS.itos
    assert again.run == RUN
    assert again.arrays.keys() == ARRAYS.keys()
    assert all(again.arrays[name].dtype == array.dtype and (again.arrays[name] == array).all()
               for name, array in ARRAYS.items())


def test_a_bare_model_has_no_run(model, tmp_path):
    save_checkpoint(tmp_path / "model", model, CHARACTERS)
    again = load_checkpoint(tmp_path / "model")
    assert again.run == {} and again.arrays == {}


def test_what_was_loaded_can_be_trained(path):
    again = load_checkpoint(path)
    for array in [p.data for p in again.model.parameters().values()] + list(again.arrays.values()):
        array += 1                                      # neither read-only nor a view of the file
    assert fingerprint(load_checkpoint(path).model) != fingerprint(again.model)


def test_saving_again_writes_the_same_bytes(model, path):
    written = set()
    for _ in range(20):
        save_checkpoint(path, model, CHARACTERS, RUN, ARRAYS)
        written.add(path.read_bytes())
    assert len(written) == 1


def test_missing_folders_are_made(model, tmp_path):
    save_checkpoint(tmp_path / "a" / "b" / "model", model, CHARACTERS)
    assert fingerprint(load_checkpoint(tmp_path / "a" / "b" / "model").model) == fingerprint(model)


def test_the_file_is_a_header_in_json_and_plain_arrays(path, model):
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    assert json.dumps(model.config.to_json()) in header.pop("__metadata__")["minigpt"]
    assert {entry["dtype"] for entry in header.values()} == {"F32"}
    arrays = [p.data for p in model.parameters().values()] + list(ARRAYS.values())
    assert len(data) - start == sum(array.nbytes for array in arrays)


# --- the fingerprint --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", ["default", "gpt-2"])
def test_one_bit_of_any_weight_changes_the_fingerprint(name):
    model = make_model(make_config(name))
    seen = {fingerprint(model)}
    for i, parameter in enumerate(model.parameters().values()):
        bits = parameter.data.reshape(-1).view(np.uint32)
        bits[i % bits.size] ^= 1                        # each flip stays, so that every fingerprint is a new one
        seen.add(fingerprint(model))
    assert len(seen) == 1 + len(model.parameters())


def test_two_weights_that_change_places_change_the_fingerprint(model):
    before = fingerprint(model)
    query, key = (model.parameters()[f"blocks.0.attention.{name}.weight"].data for name in ("query", "key"))
    query[...], key[...] = key.copy(), query.copy()
    assert fingerprint(model) != before


def test_gradients_and_the_run_do_not_change_the_fingerprint(model, path):
    before = fingerprint(model)
    for parameter in model.parameters().values():
        parameter.grad += 1
    save_checkpoint(path, model, CHARACTERS, {"step": 8}, {"losses": np.ones(8, np.float32)})
    assert fingerprint(load_checkpoint(path).model) == fingerprint(model) == before


# --- files that are not whole, or something else ----------------------------------------------------------------------

def assert_refused(path, *words):
    """One sentence that names the file."""
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    assert all(word in message for word in words)


def test_a_missing_file_is_refused(tmp_path):
    assert_refused(tmp_path / "nothing", "there is no model", "train_shakespeare.py")


def test_a_folder_is_refused(tmp_path):
    assert_refused(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\0", b"To be, or not to be\n" * 50, bytes(1000), b"\x80\x04K\x01.",
                                     (2).to_bytes(8, "little") + b"[]", (2 ** 63).to_bytes(8, "little") + b"{}"])
def test_a_file_of_another_kind_is_refused(content, tmp_path):
    (tmp_path / "file").write_bytes(content)
    assert_refused(tmp_path / "file", "cannot be read")


@pytest.mark.parametrize("metadata", [None, {}, {"format": "pt"}, {"checksum": "ab"}])
def test_a_safetensors_file_of_another_program_is_refused(metadata, tmp_path):
    (tmp_path / "file").write_bytes(save_safetensors({"x": np.ones(3, np.float32)}, metadata))
    assert_refused(tmp_path / "file", "not a checkpoint of minigpt")


def test_a_file_without_a_checksum_is_refused(tmp_path):
    (tmp_path / "file").write_bytes(save_safetensors({"x": np.ones(3, np.float32)}, {"minigpt": "{}"}))
    assert_refused(tmp_path / "file")


def test_a_newer_format_is_refused(model, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT", "minigpt 2")
    save_checkpoint(tmp_path / "model", model, CHARACTERS)
    monkeypatch.undo()
    assert_refused(tmp_path / "model", "'minigpt 2'", "'minigpt 1'")


def test_a_file_that_is_cut_off_is_refused(path):
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for length in {0, 1, 7, 8, 9, 100, header - 1, header, header + 1, len(whole) // 2, len(whole) - 4, len(whole) - 1}:
        path.write_bytes(whole[:length])
        assert_refused(path, "cannot be read")


def test_a_file_with_something_behind_it_is_refused(path):
    path.write_bytes(path.read_bytes() + b"\0")
    assert_refused(path)


def test_a_flipped_bit_anywhere_is_refused(path):
    """In the length, the header with its JSON, and the arrays of the model and of the run."""
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    random = np.random.default_rng(0)
    places = [*range(8), *random.integers(8, header, 100), *random.integers(header, len(whole), 100), len(whole) - 1]
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << random.integers(8)
        path.write_bytes(damaged)
        assert_refused(path)


def test_a_flipped_bit_that_json_forgives_is_refused(path):
    whole = path.read_bytes()
    assert whole.count(b"u4e16") == 1                   # 世, in one of its two spellings
    path.write_bytes(whole.replace(b"u4e16", b"u4E16"))
    assert_refused(path, "damaged")


def test_json_without_an_end_is_refused(tmp_path):
    (tmp_path / "file").write_bytes(save_safetensors({"x": np.ones(3, np.float32)}, {"minigpt": "[" * 100_000}))
    assert_refused(tmp_path / "file")


# What a program with other ideas could have written: the checksum is right, the content is not.
@pytest.mark.parametrize("change", [dict(flavour=1), dict(n_head=5), dict(n_embd=24), dict(vocab_size="11"),
                                    dict(vocab_size=10 ** 15), dict(n_hidden=10 ** 15)], ids=str)
def test_a_config_that_does_not_fit_is_refused(change, model, tmp_path):
    values = {**model.config.to_json(), **change}
    stranger = SimpleNamespace(config=SimpleNamespace(to_json=lambda: values), parameters=model.parameters)
    save_checkpoint(tmp_path / "model", stranger, CHARACTERS)
    assert_refused(tmp_path / "model")


@pytest.mark.parametrize("weight", [
    pytest.param(None, id="missing"), pytest.param(np.ones((1, 1), np.float32), id="one number"),
    pytest.param(np.ones((3, 3), np.float32), id="another shape"),
    pytest.param(np.ones((CHARACTERS.vocab_size, 12)), id="float64")])
def test_a_weight_that_does_not_fit_is_refused(weight, model, tmp_path):
    parameters = {**model.parameters(), "tokens.weight": SimpleNamespace(data=weight)}
    if weight is None:
        del parameters["tokens.weight"]
    save_checkpoint(tmp_path / "model", SimpleNamespace(config=model.config, parameters=lambda: parameters), CHARACTERS)
    assert_refused(tmp_path / "model")


@pytest.mark.parametrize("tokenizer", [{"kind": "words"}, CharTokenizer("ab").to_json()], ids=["unknown", "too few"])
def test_a_tokenizer_that_does_not_fit_is_refused(tokenizer, model, tmp_path):
    save_checkpoint(tmp_path / "model", model, SimpleNamespace(to_json=lambda: tokenizer))
    assert_refused(tmp_path / "model")


# --- saving goes wrong ------------------------------------------------------------------------------------------------

def full_disk(descriptor):
    raise OSError(errno.ENOSPC, "no space left")


def test_a_failed_save_says_so_and_leaves_the_old_file_whole_and_nothing_else(path, model, monkeypatch):
    before = path.read_bytes()
    model.parameters()["tokens.weight"].data += 1
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match=r"cannot save the model \([\d,]+ bytes\): no space left"):
        save_checkpoint(path, model, CHARACTERS)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_a_save_leaves_nothing_beside_the_file(path):
    assert os.listdir(path.parent) == [path.name]

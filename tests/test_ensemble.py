"""Ensemble averaging: the mean of probabilities, the same bits for a window and token by token; one model to the coder."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from coder import __main__ as command_line
from coder import models, packed
from coder.codec import encode_block
from coder.compressor import compress, decompress
from coder.models import short_fingerprint
from coder.predictor import ONLINE_LEARNING, Learner, online
from minigpt.checkpoint import fingerprint, save_checkpoint
from minigpt.ensemble import Ensemble, combine
from minigpt.kernels.threads import get_num_threads, set_num_threads
from minigpt.model import GPT, GPTConfig
from minigpt.tokenizer import ByteTokenizer, CharTokenizer
from tests.test_model import allocated

SMALL = GPTConfig(block_size=16, n_layer=1, n_head=2, n_embd=16)
IDS = np.random.default_rng(1).integers(0, 256, (3, 16))
TEXT = b"The king is dead. Long live the king! " * 60


def pair():
    return Ensemble([GPT(SMALL, seed=1), GPT(replace(SMALL, n_embd=24, norm="layer"), seed=2)])


def probabilities(logits):
    e = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_it_says_the_mean_of_what_its_members_say():
    model = pair()
    mean = np.mean([probabilities(member.forward(IDS)) for member in model.members], axis=0)
    assert np.allclose(probabilities(model.forward(IDS)), mean, rtol=2e-5, atol=1e-9)


def test_what_all_members_hold_impossible_stays_finite():
    model = Ensemble([GPT(SMALL, seed=1), GPT(SMALL, seed=1)])
    for member in model.members:
        member.head.weight.data[:, 7] *= 1e6
    logits = model.forward(IDS)
    assert np.isfinite(logits).all() and logits.min() < -60


def test_a_step_has_the_bits_of_the_window():
    model = pair()
    cache, logits = model.new_cache(len(IDS)), model.forward(IDS)
    assert np.stack([model.step(ids, cache) for ids in IDS.T], axis=1).tobytes() == logits.tobytes()
    cache = model.new_cache(len(IDS))
    assert model.forward(IDS[:, :9], cache=cache).tobytes() == logits[:, :9].tobytes()
    assert model.step(IDS[:, 9], cache).tobytes() == logits[:, 9].tobytes()


def test_rows_and_threads_do_not_change_a_bit():
    model = pair()
    logits, threads = model.forward(IDS), get_num_threads()
    assert model.forward(IDS[1:2]).tobytes() == logits[1].tobytes()
    set_num_threads(1)
    try:
        assert model.forward(IDS).tobytes() == logits.tobytes()
    finally:
        set_num_threads(threads)


@pytest.mark.parametrize("mode", ["static", "online"])
def test_a_file_comes_back_and_the_model_stays_as_it_was(mode):
    model = pair()
    before = fingerprint(model)
    file = compress(TEXT, mode, model)
    assert decompress(file, lambda name: pair()) == TEXT and fingerprint(model) == before


def test_every_member_learns_online():
    model = pair()
    predictor = online(model, len(TEXT))
    encode_block(predictor, TEXT)
    for learned, given in zip(predictor.model.members, model.members):
        assert fingerprint(learned) != fingerprint(given)


def test_members_alike_share_their_buffers():
    members = Ensemble(GPT(SMALL, seed) for seed in range(3)).members
    first, *others = (allocated(partial(member.loss, IDS, IDS)) for member in members)
    assert max(others) < first / 5


def test_members_that_share_buffers_learn_as_each_does_alone():
    members = [GPT(SMALL, seed) for seed in range(3)]
    together, alone = Ensemble(member.copy() for member in members), [member.copy() for member in members]
    for model in (together, *alone):
        learner = Learner(model, ONLINE_LEARNING, batch=2)
        for seed in range(4):
            learner.update(np.random.default_rng(seed).integers(0, 256, SMALL.block_size + 1))
            model.forward(IDS)
    assert [fingerprint(member) for member in together.members] == [fingerprint(member) for member in alone]


def test_a_member_does_not_take_the_activations_of_another_for_its_own():
    a, b = Ensemble([GPT(SMALL, seed=1), GPT(SMALL, seed=2)]).members
    for between in (b.forward, lambda ids: b.loss(ids, ids)):
        a.loss(IDS, IDS)
        between(IDS)
        with pytest.raises(RuntimeError, match=r"call loss\(\) again first"):
            a.backward()
    b.backward()


def test_its_name_tells_its_members_and_their_order():
    a, b = pair().members
    names = {short_fingerprint(model) for model in (a, b, Ensemble([a, b]), Ensemble([b, a]), Ensemble([a, b, a]))}
    assert len(names) == 5


def test_packed_it_comes_back():
    model, text_sha256 = packed.unpack(packed.pack(pair(), "12ab", fineness=200))
    assert [member.config for member in model.members] == [member.config for member in pair().members] and text_sha256 == "12ab"
    assert np.allclose(model.forward(IDS), pair().forward(IDS), atol=0.05)


@pytest.mark.parametrize("texts, known", [(("12ab", "12ab"), "12ab"), (("12ab", "34cd"), None)])
def test_the_command_line_packs_several(texts, known, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, member, text in zip("ab", pair().members, texts):
        save_checkpoint(name, member, ByteTokenizer(), {"text_sha256": text})
    command_line.main(["pack", "a", "b", "ab"])
    model, text_sha256 = models.load("ab")
    assert len(model.members) == 2 and text_sha256 == known


def test_models_that_do_not_fit_together_are_one_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_checkpoint("a", GPT(SMALL, 1), ByteTokenizer())
    save_checkpoint("b", GPT(replace(SMALL, block_size=8), 1), ByteTokenizer())
    save_checkpoint("c", GPT(replace(SMALL, vocab_size=2), 1), CharTokenizer("ab"))
    for other in "bc":
        with pytest.raises(SystemExit, match="^coder: an ensemble needs"):
            command_line.main(["pack", "a", other, "out"])
    for few in ([], [GPT(SMALL, 1)]):
        with pytest.raises(ValueError, match="at least two models"):
            Ensemble(few)


@pytest.mark.parametrize("model", [GPT(SMALL, seed=1), pair()], ids=["GPT", "Ensemble"])
def test_a_copy_has_the_same_bits_and_can_be_changed_alone(model):
    before, copy = fingerprint(model), model.copy()
    as_copied, cache = copy.forward(IDS), copy.new_cache(len(IDS))
    assert fingerprint(copy) == before and as_copied.tobytes() == model.forward(IDS).tobytes()
    for member in copy.members:
        for parameter in member.parameters().values():
            parameter.data += 1
    assert fingerprint(model) == before != fingerprint(copy)
    logits = copy.forward(IDS)[:, 0].tobytes()
    assert copy.step(IDS[:, 0], copy.new_cache(len(IDS))).tobytes() == logits   # the cached step has the copy's weights too,
    assert copy.step(IDS[:, 0], cache).tobytes() == as_copied[:, 0].tobytes()   # a cache those with which it was made


def test_one_model_alone_is_no_ensemble():
    model = GPT(SMALL, seed=1)
    assert combine([model]) is model and model.members == [model]
    assert combine(pair().members).forward(IDS).tobytes() == pair().forward(IDS).tobytes()

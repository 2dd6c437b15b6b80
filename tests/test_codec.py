"""Bytes through model and range coder, and back: windows, streams, both ways to predict, and codes that stay the same."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minigpt.model
from coder import predictor as predictors
from coder import verify
from coder.codec import START_SYMBOL, Streams, decode_block, encode_block
from coder.compressor import decompress
from coder.container import CODED, MODES, PREDICTING, CoderError, read
from coder.mixing.mixer import Mixing
from coder.predictor import (MAKERS, ONLINE_LEARNING, SCRATCH_LEARNING, SCRATCH_SEED, Learner, Predictor, batch_of, fast,
                             make_predictor, online, scratch, static, windows)
from coder.verify import LICENSE, TEXT
from minigpt.checkpoint import fingerprint
from minigpt.model import GPT, GPTConfig
from tests import golden_coder
from tests.golden_coder import TINY, taught

ROOM = 10_000               # bytes of text that a mixing model is made for


def small_scratch(config):
    model = GPT(config, SCRATCH_SEED)
    return Predictor(model, 1, Mixing(ROOM, gpt=True), Learner(model, SCRATCH_LEARNING, batch_of(ROOM), replays=1))


PREDICTORS = {
    "static": static,
    "online": lambda model: online(model, ROOM),
    "scratch": lambda model: small_scratch(model.config),
    "fast": lambda model: fast(ROOM),
}
CONFIGS = {
    "tiny": TINY,
    "one token": replace(TINY, block_size=1),
    "two tokens": replace(TINY, block_size=2),
    "three tokens": replace(TINY, block_size=3),
    "odd": replace(TINY, block_size=7, n_embd=20, n_layer=2),
    "gpt-2": replace(TINY, position="learned", norm="layer", activation="gelu", qk_norm=False, bias=True, tied=True),
    "norm last": replace(TINY, norm_order="last", dropout=0.5),
}
everywhere = pytest.mark.parametrize("mode", PREDICTORS)
with_a_gpt = pytest.mark.parametrize("mode", [mode for mode in PREDICTORS if mode != "fast"])


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape)


def text(size):
    return (TEXT * (size // len(TEXT) + 1))[:size]


def round_trip(make, data):
    """A second predictor, made alike, decodes what the first one encoded, and knows as much in the end."""
    encoder, decoder = make(), make()
    assert decode_block(decoder, encode_block(encoder, data), len(data)) == data
    if encoder.model:
        assert fingerprint(encoder.model) == fingerprint(decoder.model)
    if encoder.mixing:
        assert all((one == other).all() for one, other in zip(encoder.mixing.memory, decoder.mixing.memory))


# --- windows and streams ----------------------------------------------------------------------------------------------

window_sizes = given(length=st.integers(1, 200), T=st.integers(1, 24))


@window_sizes
def test_windows_code_every_place_once_and_in_order(length, T):
    new = [place for start, first, stop in windows(length, T) for place in range(start + first, stop)]
    assert new == list(range(length))


@window_sizes
def test_a_window_is_never_longer_than_the_model_can_take(length, T):
    assert all(0 <= start < stop <= start + T for start, _, stop in windows(length, T))


@window_sizes
def test_every_window_but_the_last_is_full(length, T):
    *full, _ = windows(length, T)
    assert all(stop - start == T for start, _, stop in full)


@window_sizes
def test_the_first_window_knows_nothing_and_the_others_know_half(length, T):
    (_, first, _), *others = windows(length, T)
    assert first == 0 and all(known == T // 2 for _, known, _ in others)


sizes_and_streams = given(size=st.integers(1, 5000), S=st.integers(1, 70))


@sizes_and_streams
def test_streams_are_the_block_cut_into_parts_of_nearly_one_length(size, S):
    block = Streams(size, S)
    block.symbols[:] = block.places()
    for s, part in enumerate(np.array_split(np.arange(size), S)):
        assert block.grid[1:len(part) + 1, s].tolist() == part.tolist()


@sizes_and_streams
def test_symbols_are_coded_time_by_time_and_at_each_time_stream_by_stream(size, S):
    block, parts = Streams(size, S), np.array_split(np.arange(size), S)
    assert block.places().tolist() == [part[t] for t in range(len(parts[0])) for part in parts if t < len(part)]
    for t in range(block.length):
        assert block.places()[block.coded(t, t + 1)].tolist() == [part[t] for part in parts if t < len(part)]


def test_a_stream_follows_the_start_symbol():
    assert (Streams(5, 3).grid[0] == START_SYMBOL).all()


@pytest.mark.parametrize("mode, most", [("static", 64), ("online", 1), ("scratch", 1), ("fast", 1)])
def test_the_number_of_streams_follows_from_the_size(mode, most):
    """Part of the format: a change here closes every file there is."""
    predictor = PREDICTORS[mode](taught())
    for size, S in (1, 1), (1024, 1), (2047, 1), (2048, 2), (8 * 1024, 8), (1024 * most + 1023, most), (2 ** 24, most):
        assert predictor.streams(size) == min(S, most)


# --- there and back ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("mode, size", [
    *(("static", size) for size in (1, 2, 15, 16, 17, 24, 25, 1023, 1024, 1025, 2047, 2048, 2049, 5001)),
    *((mode, size) for mode in ("online", "scratch", "fast") for size in (1, 2, 16, 17, 24, 25, 1025, 2049, 3071)),
])
def test_a_block_comes_back(mode, size):
    round_trip(lambda: PREDICTORS[mode](taught()), text(size))


@with_a_gpt
@pytest.mark.parametrize("name", CONFIGS)
def test_a_block_comes_back_whatever_the_model(mode, name):
    model = GPT(CONFIGS[name], seed=3)
    round_trip(lambda: PREDICTORS[mode](model), noise(41).astype(np.uint8).tobytes() + text(60))


@settings(deadline=None, max_examples=25)
@given(data=st.binary(min_size=1, max_size=120))
def test_any_bytes_come_back(data):
    round_trip(lambda: online(taught(), len(data)), data)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@with_a_gpt
@pytest.mark.parametrize("factor", [0.0, 1e4, 1e30, np.nan])
def test_a_model_that_is_out_of_its_mind_costs_bits_but_no_bytes(mode, factor):
    """All logits alike, all but one symbol at the least frequency, and NaN wherever it goes."""
    model = GPT(TINY, seed=3)
    model.parameters()["head.weight"].data *= np.float32(factor)
    round_trip(lambda: PREDICTORS[mode](model), text(90))


@everywhere
def test_blocks_one_after_the_other_come_back(mode):
    encoder, decoder = (PREDICTORS[mode](taught()) for _ in range(2))
    for block in (text(300), b"x", noise(100).astype(np.uint8).tobytes(), text(77)):
        assert decode_block(decoder, encode_block(encoder, block), len(block)) == block


# --- both ways to predict give the same integers ----------------------------------------------------------------------

@pytest.mark.parametrize("S", [1, 2, 5])
@pytest.mark.parametrize("name", CONFIGS)
def test_symbol_by_symbol_gives_the_frequencies_of_the_whole_window(name, S):
    predictor = static(GPT(CONFIGS[name], seed=3))
    T = predictor.model.config.block_size
    inputs = noise(T, S)
    for first in {0, T // 2, T - 1}:
        by_symbol = [predictor.prefill(inputs[:first + 1])] + [predictor.step(inputs[t]) for t in range(first + 1, T)]
        assert (np.concatenate(by_symbol) == predictor.predict(inputs, [(0, first, T)])[0]).all()


def test_streams_that_pass_through_the_model_in_turns_have_the_same_frequencies(monkeypatch):
    predictor, inputs = static(taught()), noise(16, 7)
    (together,) = predictor.predict(inputs, [(0, 8, 16)])
    for tokens in (1, 32, 64):
        monkeypatch.setattr(minigpt.model, "TOKENS_PER_PASS", tokens)
        assert (predictor.predict(inputs, [(0, 8, 16)])[0] == together).all()


def cross_entropy(model, data, S):
    """Bits that data costs by the model's exact probabilities, float64, in the windows that the codec cuts."""
    bits = 0.0
    for stream in np.array_split(np.frombuffer(data, np.uint8).astype(np.int64), S):
        inputs = np.concatenate([[START_SYMBOL], stream[:-1]])
        for start, first, stop in windows(-(-len(data) // S), model.config.block_size):
            logits = model.forward(inputs[None, start:stop])[0, first:].astype(np.float64)
            peak = logits.max(axis=1)
            log_total = peak + np.log(np.exp(logits - peak[:, None]).sum(axis=1))
            symbols = stream[start + first:stop]
            bits += (log_total - logits[np.arange(len(symbols)), symbols]).sum() / np.log(2)
    return bits


@pytest.mark.parametrize("size, S", [(1000, 1), (3001, 2), (8000, 7)])
def test_a_static_code_is_as_long_as_the_cross_entropy(size, S):
    model = taught()
    bits = cross_entropy(model, text(size), S)
    code = encode_block(static(model), text(size))
    assert bits / 8 - 1 < len(code) < 1.0005 * bits / 8 + 64


def test_what_the_model_knows_takes_less_than_noise_does():
    codes = [len(encode_block(static(taught()), data)) for data in (LICENSE, noise(len(LICENSE)).astype(np.uint8).tobytes())]
    assert codes[0] < 0.8 * len(LICENSE) < codes[1]


# --- learning ---------------------------------------------------------------------------------------------------------

@with_a_gpt
def test_the_model_that_was_given_stays_as_it_was(mode):
    model = GPT(TINY, seed=3)
    before = fingerprint(model)
    round_trip(lambda: PREDICTORS[mode](model), text(200))
    assert fingerprint(model) == before


def test_online_learns_from_every_full_window():
    seen = []
    for size in (16, 17, 24, 25):           # after a window of 16 each brings 8, and nobody learns from the last one
        predictor = online(taught(), size)
        encode_block(predictor, text(size))
        seen.append(predictor.learner.optimizers[0].step_count)
    assert seen == [0, 1, 1, 2]


@pytest.mark.parametrize("name", CONFIGS)
def test_a_batch_that_is_learned_in_parts_leaves_the_same_weights(name, monkeypatch):
    T, found = CONFIGS[name].block_size, set()
    for tokens in (5 * T, 2 * T, 1):
        monkeypatch.setattr(predictors, "TOKENS_PER_PASS", tokens)
        learner = Learner(GPT(CONFIGS[name], seed=3), ONLINE_LEARNING, batch=5)
        for seed in range(10):
            learner.update(noise(T + 1, seed=seed))
        found.add(fingerprint(learner.model))
    assert len(found) == 1


def test_learning_pays_on_what_repeats_itself():
    repetitive = b"0123456789abcdef" * 60
    model, same = GPT(TINY, seed=3), GPT(TINY, seed=3)
    learning = Predictor(model, learner=Learner(model, ONLINE_LEARNING, batch=1))
    assert len(encode_block(learning, repetitive)) < 0.95 * len(encode_block(static(same), repetitive))


@everywhere
def test_blocks_are_independent_only_if_nothing_learns(mode):
    predictor = PREDICTORS[mode](taught())
    first, again = encode_block(predictor, text(200)), encode_block(predictor, text(200))
    assert (first == again) == (mode == "static")


THREADS = """
import sys
from coder import codec, predictor
from minigpt.kernels.threads import set_num_threads
from minigpt.model import GPT, GPTConfig
from coder.verify import TEXT

model = GPT(GPTConfig(block_size=32, n_layer=1, n_head=2, n_embd=64), 3)        # enough work for two
codes = []
for mode in "static", "online":
    def make():
        return predictor.make_predictor(mode, len(TEXT), model)
    for threads in (1, 2):
        set_num_threads(threads)
        codes.append(codec.encode_block(make(), TEXT))
    set_num_threads(2)
    assert codes[-1] == codes[-2], "encoded with 1 and with 2 threads"
    assert codec.decode_block(make(), codes[-2], len(TEXT)) == TEXT, "decoded with 2 threads"
"""


@pytest.mark.slow
def test_one_thread_encodes_and_two_decode():
    environment = {**os.environ, "NUMBA_NUM_THREADS": "2"}
    run = subprocess.run([sys.executable, "-c", THREADS], env=environment, cwd=Path(__file__).parents[1],
                         capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


# --- modes ------------------------------------------------------------------------------------------------------------

def test_there_is_a_maker_for_each_version_of_a_mode_that_predicts_bytes():
    assert list(MAKERS) == [(mode, version) for mode in PREDICTING for version in MODES[mode].versions]


def test_every_version_of_every_mode_has_a_golden_code():
    """So that its predictions cannot change unseen under the same number."""
    golden = {name.split(":")[0] for name in verify.EXPECTED if re.fullmatch(r"[\w ]+ \d+: code", name)}
    assert golden == {f"{mode} {version}" for mode in CODED for version in MODES[mode].versions}


@pytest.mark.parametrize("mode", [pytest.param(mode, marks=[pytest.mark.slow] * (mode == "scratch")) for mode in PREDICTING])
def test_a_mode_is_what_the_table_says(mode):
    """Its predictor learns if it is adaptive, and starts from the trained model if it needs one."""
    predictor = make_predictor(mode, 1500, taught())
    first, again = (encode_block(predictor, text(700)) for _ in range(2))
    assert (first != again) == MODES[mode].adaptive == bool(predictor.mixing)
    knows = predictor.model is not None and fingerprint(make_predictor(mode, 1500, taught()).model) == fingerprint(taught())
    assert knows == MODES[mode].needs_model


# --- what does not fit ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("vocab_size", [65, 255, 257])
@pytest.mark.parametrize("mode", ["static", "online"])
def test_a_model_that_does_not_predict_bytes_is_refused(mode, vocab_size):
    with pytest.raises(ValueError, match=f"knows {vocab_size} tokens"):
        PREDICTORS[mode](GPT(GPTConfig(vocab_size=vocab_size, block_size=8, n_layer=1, n_head=2, n_embd=16)))


@everywhere
@pytest.mark.parametrize("length", [0, 1, 30])
def test_a_code_that_is_much_too_short_is_noticed(mode, length):
    code = encode_block(PREDICTORS[mode](taught()), text(1500))
    with pytest.raises(ValueError, match="ends too early"):
        decode_block(PREDICTORS[mode](taught()), code[:length], 1500)


@everywhere
@pytest.mark.parametrize("seed", range(5))
def test_noise_in_place_of_a_code_gives_some_bytes(mode, seed):
    code = noise(400, seed=seed).astype(np.uint8).tobytes()
    assert len(decode_block(PREDICTORS[mode](taught()), code, 100)) == 100


# --- progress ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("size", [1, 40, 3001])
def test_progress_adds_up_to_the_block(size):
    encoded, lengths, decoded = [], [], []
    code = encode_block(static(taught()), text(size), lambda count, taken: (encoded.append(count), lengths.append(taken)))
    decode_block(static(taught()), code, size, decoded.append)
    assert sum(encoded) == sum(decoded) == size and encoded == decoded
    assert lengths == sorted(lengths) and lengths[-1] <= len(code) <= lengths[-1] + 1


# --- golden -----------------------------------------------------------------------------------------------------------

@pytest.mark.slow
def test_the_file_of_today_opens_for_ever():
    """tests/data/license.mgz, made when the format was."""
    file = golden_coder.FILE.read_bytes()
    header, (block,) = read(file)
    assert (header.mode, header.length, block.stored) == ("scratch", len(TEXT), False)
    assert decompress(file, find_model=None) == TEXT


@pytest.mark.slow
def test_this_machine_computes_the_golden_codes():
    assert dict(verify.results()) == verify.EXPECTED


def test_a_code_that_does_not_come_back_is_an_error(monkeypatch):
    monkeypatch.setattr(verify.codec, "decode_block", lambda *arguments: b"something else")
    with pytest.raises(CoderError, match="does not give the original back"):
        dict(verify.results())


@pytest.mark.slow
@pytest.mark.parametrize("size", [1100, 3000, 20000])
def test_the_rates_of_scratch_fall_but_not_to_nothing(size):
    predictor = scratch(size)
    encode_block(predictor, (LICENSE * 30)[:size])
    (optimizer,) = predictor.learner.optimizers
    assert optimizer.step_count < optimizer.steps < 10 ** 6

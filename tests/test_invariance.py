"""The promise, to the bit: what a row's logits are depends on its own tokens up to it, and on nothing beside them.

Shapes are odd, larger than a tile of the matrix product, a block of attention's rows and a panel (4 C > 256).
"""

import dataclasses
import functools
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import minigpt.model
from minigpt.checkpoint import fingerprint
from minigpt.kernels import decode
from minigpt.kernels.matmul import matmul
from minigpt.kernels.threads import MOST_THREADS, get_num_threads, set_num_threads
from minigpt.layers import Draw
from minigpt.optimizer import Optimizer, OptimizerConfig
from tests import float64

B, T = 5, 53


def make_config(name):
    return float64.make_config(name, vocab_size=67, block_size=T, n_embd=72, n_head=4)


@pytest.fixture(scope="module", params=float64.CONFIGS)
def model(request):
    return float64.make_model(make_config(request.param))


@pytest.fixture
def ids(model):
    return float64.make_ids(model.config, B, T)


@pytest.fixture
def logits(model, ids):
    return model.forward(ids)


def same(a, b):
    """Bit for bit: 0 is not -0, and NaN is NaN."""
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


# --- causality --------------------------------------------------------------------------------------------------------

def with_another_token(ids, t, vocab_size):
    changed = ids.copy()
    changed[:, t] = (ids[:, t] + 1) % vocab_size
    return changed


def test_a_token_changes_no_logit_before_it(model, ids, logits):
    for t in range(T):
        assert same(model.forward(with_another_token(ids, t, 67))[:, :t], logits[:, :t]), t


def test_every_token_changes_its_own_logits_and_the_last(model, ids, logits):
    for t in range(T):
        changed = model.forward(with_another_token(ids, t, 67))
        for row in range(B):
            assert not same(changed[row, t], logits[row, t]) and not same(changed[row, -1], logits[row, -1]), (row, t)


# --- a row among others -----------------------------------------------------------------------------------------------

def test_a_row_has_the_same_bits_alone_and_in_a_batch(model, ids, logits):
    for row in range(B):
        assert same(model.forward(ids[row:row + 1])[0], logits[row]), row


BATCHES = 1, 2, 3, 16, 64


def rows_depend_on_the_batch(compute, rows):
    """Whether compute(rows) gives some row other bits than in one of the smaller batches."""
    together = compute(rows)
    return any(not same(compute(rows[i:i + n]), together[i:i + n]) for n in BATCHES for i in range(0, len(rows) - n + 1, n))


@pytest.mark.parametrize("name", ["default", "gpt-2"])
def test_a_row_has_the_same_bits_in_every_size_of_batch_at_once_and_token_by_token(name):
    model = float64.make_model(make_config(name))
    ids = float64.make_ids(model.config, 65, 20)
    assert same(model.forward(ids), steps(model, ids, model.new_cache(65)))
    assert not rows_depend_on_the_batch(model.forward, ids)
    assert not rows_depend_on_the_batch(lambda rows: steps(model, rows, model.new_cache(len(rows))), ids)


def test_the_same_check_finds_that_rows_of_numpys_matrix_product_depend_on_the_batch():
    """A check that cannot fail shows nothing."""
    x, W = float64.random_array((65, 300)), float64.random_array((300, 200), 1)
    assert not rows_depend_on_the_batch(lambda rows: matmul(rows, W, np.empty((len(rows), 200), np.float32)), x)
    if not rows_depend_on_the_batch(lambda rows: rows @ W, x):
        pytest.skip("NumPy's product on this machine happens to give each row the same bits in every batch")


def test_a_row_has_the_same_bits_at_every_place_of_a_batch(model, ids, logits):
    order = [3, 0, 4, 1, 3, 2]
    assert same(model.forward(ids[order]), logits[order])


def test_a_shorter_window_has_the_bits_of_the_longer(model, ids, logits):
    for length in range(1, T):
        assert same(model.forward(ids[:, :length]), logits[:, :length]), length


# --- token by token ---------------------------------------------------------------------------------------------------

def steps(model, ids, cache):
    return np.stack([model.step(column, cache) for column in ids.T], axis=1)    # (S, T, V)


def test_steps_from_an_empty_cache_have_the_bits_of_the_window(model, ids, logits):
    assert same(steps(model, ids, model.new_cache(B)), logits)


@pytest.mark.parametrize("model", ["gpt-2", "transformer", "llama", "grouped"], indirect=True)
@pytest.mark.parametrize("tasks", [1, 2, 3, 7, 16])
@pytest.mark.parametrize("S", [1, B])
def test_steps_that_share_the_columns_have_the_same_bits(model, ids, logits, tasks, S):
    cache, out = model.new_cache(S), np.empty((T, S, 67), np.float32)
    for t in range(T):
        decode.step(ids[:S, t].astype(np.int64), cache.weights, cache.kept, 0, t, t, 1, tasks, out[t])
    assert same(np.ascontiguousarray(out.swapaxes(0, 1)), logits[:S])


def test_a_sequence_steps_alone_with_the_bits_that_it_has_among_others(model, ids, logits):
    assert same(steps(model, ids[2:3], model.new_cache(1)), logits[2:3])


@pytest.mark.parametrize("length", [1, 16, 24, T - 1])
def test_steps_go_on_where_a_window_ended(model, ids, logits, length):
    cache = model.new_cache(B)
    assert same(model.forward(ids[:, :length], cache=cache), logits[:, :length])
    assert same(steps(model, ids[:, length:], cache), logits[:, length:])


CHUNKS = [1, 1, 14, 1, 24, 12]


@pytest.mark.parametrize("chunks", [CHUNKS, CHUNKS[::-1], [26, 27], [T - 1, 1]], ids=str)
def test_chunks_of_a_window_have_the_bits_of_the_whole(model, ids, logits, chunks):
    """And so have steps between them."""
    cache, start = model.new_cache(B), 0
    for i, count in enumerate(chunks):
        part = ids[:, start:start + count]
        found = steps(model, part, cache) if count == 1 and i % 2 else model.forward(part, cache=cache)
        assert same(found, logits[:, start:start + count]), start
        start += count
    assert start == T == cache.held == cache.position


def test_a_cache_with_room_for_fewer_tokens_has_the_same_bits(model, ids, logits):
    cache = model.new_cache(B, 21)
    assert same(model.forward(ids[:, :10], cache=cache), logits[:, :10])
    assert same(steps(model, ids[:, 10:21], cache), logits[:, 10:21])


def slide(model, ids, chunks, dropped):
    """The logits (B, T, V) of tokens that come in such chunks, while before each of them so many are dropped."""
    cache, start, found = model.new_cache(len(ids), 24), 0, []
    for count, drop in zip(chunks, dropped):
        cache.drop(drop)
        found.append(model.forward(ids[:, start:start + count], cache=cache))
        start += count
    return np.concatenate(found, axis=1)


def test_a_cache_that_slides_has_the_same_bits_by_chunks_and_token_by_token(model, ids):
    chunks, dropped = [10, 14, 5, 7, 4, 12], [0, 0, 6, 10, 1, 20]
    found, cache, start = slide(model, ids, chunks, dropped), model.new_cache(B, 24), 0
    for count, drop in zip(chunks, dropped):
        cache.drop(drop)
        assert same(steps(model, ids[:, start:start + count], cache), found[:, start:start + count]), start
        start += count
    assert not rows_depend_on_the_batch(lambda rows: slide(model, rows, chunks, dropped), ids)


def test_dropped_tokens_are_forgotten_and_those_that_stay_are_not(model, ids):
    """In a network of one layer the keys and values of a token depend on nothing but itself and its position."""
    own = float64.make_model(dataclasses.replace(model.config, n_layer=1))
    chunks, dropped = [20, 10], [0, 6]
    found = slide(own, ids, chunks, dropped)[:, 20:]
    for t in range(20):
        changed = slide(own, with_another_token(ids, t, 67), chunks, dropped)[:, 20:]
        assert same(changed, found) if t < 6 else not same(changed[:, -1], found[:, -1])


def test_two_caches_in_turn_do_not_mix(model, ids, logits):
    one, two = model.new_cache(B), model.new_cache(2)
    for t in range(T):
        assert same(model.step(ids[:, t], one), logits[:, t])
        assert same(model.step(ids[3:, t], two), logits[3:, t])


def test_steps_of_a_new_cache_see_what_training_did_to_the_weights(model, ids):
    own = type(model)(model.config, seed=2)
    before = steps(own, ids, own.new_cache(B))
    train(own)
    after = own.forward(ids)
    assert not same(before, after) and same(steps(own, ids, own.new_cache(B)), after)


# --- frozen ---------------------------------------------------------------------------------------------------------

def test_a_frozen_model_has_the_same_bits_and_is_a_model_still(model, ids, logits):
    frozen = model.copy().freeze()
    assert same(frozen.forward(ids), logits) and fingerprint(frozen) == fingerprint(model)
    assert frozen.loss(ids[:, 1:], ids[:, :-1]) == model.loss(ids[:, 1:], ids[:, :-1])
    cache = frozen.new_cache(B, T)
    assert same(frozen.forward(ids[:, :20], cache=cache), logits[:, :20])
    assert same(steps(frozen, ids[:, 20:30], cache), logits[:, 20:30])
    assert same(frozen.forward(ids[:, 30:], cache=cache), logits[:, 30:])
    assert same(frozen.freeze().copy().forward(ids), logits)


# --- a batch and its parts --------------------------------------------------------------------------------------------

def test_gradients_accumulated_over_parts_have_the_bits_of_the_batch(model):
    if model.config.tied:
        pytest.skip("the gradient of a tied weight is two sums, one after the other")
    ids, targets = float64.make_ids(model.config, B, T, seed=8), float64.make_ids(model.config, B, T, seed=9)
    model.loss(ids, targets)
    model.backward()
    whole = {name: parameter.grad.copy() for name, parameter in model.parameters().items()}
    for start, stop in (0, 2), (2, 3), (3, 5):
        model.loss(ids[start:stop], targets[start:stop])
        model.backward(B, accumulate=start > 0)
    assert_all_same({name: parameter.grad for name, parameter in model.parameters().items()}, whole)


@pytest.mark.parametrize("tokens", [1, 2 * T, 3 * T + 1])
def test_rows_that_pass_in_turns_have_the_same_bits(model, ids, logits, tokens, monkeypatch):
    monkeypatch.setattr(minigpt.model, "TOKENS_PER_PASS", tokens)
    assert same(model.forward(ids), logits)
    cache = model.new_cache(B)
    assert same(model.forward(ids[:, :7], cache=cache), logits[:, :7])
    assert same(model.step(ids[:, 7], cache), logits[:, 7])


# --- one call after another -------------------------------------------------------------------------------------------

def use_otherwise(model):
    """All that a program may do between two training steps: windows and caches of other sizes."""
    cache = model.new_cache(2)
    model.forward(float64.make_ids(model.config, 2, 11, seed=8), cache=cache)
    model.step(np.array([5, 6]), cache)
    model.forward(float64.make_ids(model.config, 7, T, seed=9))
    model.loss(float64.make_ids(model.config, 3, 4), float64.make_ids(model.config, 3, 4))


def gradients(model, seed=0):
    draw = Draw(1, seed) if model.config.dropout else None
    model.loss(float64.make_ids(model.config, B, T, (seed, 0)), float64.make_ids(model.config, B, T, (seed, 1)), draw)
    model.backward()
    return {name: parameter.grad.copy() for name, parameter in model.parameters().items()}


def train(model, between=lambda model: None):
    """Three steps; returns the weights."""
    optimizer = Optimizer(model, OptimizerConfig(warmup=1), steps=3)
    for step in range(3):
        gradients(model, step)
        optimizer.step()
        between(model)
    return {name: parameter.data.copy() for name, parameter in model.parameters().items()}


def assert_all_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert same(ours[name], theirs[name]), name


def test_the_same_call_gives_the_same_bits_again(model, ids, logits):
    first = gradients(model)
    use_otherwise(model)
    assert same(model.forward(ids), logits)
    assert_all_same(gradients(model), first)


def test_results_are_not_overwritten_by_later_calls(model, ids, logits):
    stepped = model.step(ids[:, 0], model.new_cache(B))
    kept, kept_stepped = logits.copy(), stepped.copy()
    use_otherwise(model)
    gradients(model)
    assert same(logits, kept) and same(stepped, kept_stepped)


def test_training_is_not_disturbed_by_what_is_done_between_its_steps(model):
    alone, disturbed = float64.make_model(model.config), float64.make_model(model.config)
    assert_all_same(train(disturbed, between=use_otherwise), train(alone))


# --- threads ----------------------------------------------------------------------------------------------------------

def digest(arrays):
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()


@functools.cache
def fingerprints(name, threads):
    """SHA-256 of all that the model computes on that many threads."""
    before = get_num_threads()
    set_num_threads(threads)
    try:
        model = float64.make_model(make_config(name))
        ids = float64.make_ids(model.config, B, T)
        many = float64.make_ids(model.config, 100, 5)      # for a few sequences one thread is enough, and the model takes one
        return {"logits": digest([model.forward(ids)]),
                "steps": digest([steps(model, many, model.new_cache(len(many)))]),
                "gradients": digest(gradients(model).values()),
                "trained weights": digest(train(model).values())}
    finally:
        set_num_threads(before)


@pytest.fixture(scope="module")
def fingerprints_elsewhere():
    """threads -> name of the config -> fingerprints, from a process that may start 4 threads, whatever this machine has."""
    program = ("import json; from tests import float64; from tests.test_invariance import fingerprints\n"
               "print(json.dumps({threads: {name: fingerprints(name, threads) for name in float64.CONFIGS}\n"
               "                  for threads in (2, 3, 4)}))")
    environment = {**os.environ, "NUMBA_NUM_THREADS": "4"}
    run = subprocess.run([sys.executable, "-c", program], env=environment, cwd=Path(__file__).parents[1], check=True,
                         stdout=subprocess.PIPE)
    return json.loads(run.stdout)


@pytest.mark.parametrize("name", float64.CONFIGS)
def test_two_threads_compute_the_bits_of_one(name):
    if MOST_THREADS < 2:
        pytest.skip("this process has one thread")
    assert fingerprints(name, 2) == fingerprints(name, 1)


@pytest.mark.slow
@pytest.mark.parametrize("threads", ["2", "3", "4"])
@pytest.mark.parametrize("name", float64.CONFIGS)
def test_another_process_with_more_threads_computes_the_same_bits(fingerprints_elsewhere, name, threads):
    assert fingerprints_elsewhere[threads][name] == fingerprints(name, 1)

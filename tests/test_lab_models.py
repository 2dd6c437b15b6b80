"""The laboratory's experiments on model and data: two-part codes, scaling, memory, on cases whose answer is known."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coder.codec import decode_block, encode_block, lay_out
from coder.frequencies import to_frequencies
from coder.lab import laws, memory, scaling, twopart
from coder.packed import pack, unpack
from coder.predictor import static
from coder.range_coder import Decoder
from minigpt.model import GPT, GPTConfig
from tests.golden_coder import TINY

TEXT = b"".join(b"Licence %d. The software is provided as it is, without warranty of any kind.\n" % i for i in range(300))


@pytest.fixture
def small(monkeypatch, tmp_path):
    """The path of a text, and a small network for two-part codes, with few packings."""
    monkeypatch.setattr(twopart, "NETWORK", TINY)
    monkeypatch.setattr(twopart, "FINENESS", (2, 8))
    by_heart = memory.run
    monkeypatch.setattr(memory, "run", lambda: by_heart((16,), (256,), 20))
    (tmp_path / "text").write_bytes(TEXT)
    return str(tmp_path / "text")


# --- two-part codes ---------------------------------------------------------------------------------------------------

def test_the_lower_hull_of_points_made_for_it():
    corners = [(0, 100), (10, 50), (20, 20), (50, 10)]
    above = [(0, 101), (5, 75), (10, 60), (15, 36), (40, 20), (60, 10), (70, 90)]       # (5, 75) lies on an edge
    assert twopart.lower_hull(above + corners[::-1]) == corners
    assert twopart.lower_hull([(3, 4)]) == [(3, 4)]


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), min_size=1, max_size=20))
def test_no_point_lies_below_the_hull_and_the_least_sum_is_a_corner(points):
    hull = twopart.lower_hull(points)
    assert set(hull) <= set(points)
    slopes = [(y2 - y1) / (x2 - x1) for (x1, y1), (x2, y2) in zip(hull, hull[1:])]
    assert all(left < right for left, right in zip(slopes, [*slopes[1:], 0]))
    for x, y in points:
        assert x >= hull[0][0] and y >= np.interp(x, *zip(*hull)) - 1e-9
    assert min(map(sum, points)) == min(map(sum, hull))


def test_the_second_part_is_decoded_with_the_first(small):
    model = twopart.checkpoints(TEXT, (0, 30))[30]
    file, code = twopart.two_parts(model, 4, TEXT[:500])
    assert file == pack(model, fineness=4)
    assert decode_block(static(unpack(file)[0]), code, 500) == TEXT[:500]


def test_checkpoints_are_of_one_run_and_each_codes_the_text_better(small):
    found = twopart.checkpoints(TEXT, (0, 50, 200))
    again = twopart.checkpoints(TEXT, (50, 200))
    for steps, model in again.items():
        for name, parameter in model.parameters().items():
            np.testing.assert_array_equal(parameter.data, found[steps].parameters()[name].data)
    sizes = [len(twopart.two_parts(model, 24, TEXT[:2000])[1]) for model in found.values()]
    assert 1980 < sizes[0] < 2020 and 0.8 * sizes[0] > sizes[1] > 1.5 * sizes[2]


def test_a_prequential_code_is_the_sum_of_the_codes_of_its_windows_each_with_the_model_of_those_before(small):
    data = TEXT[:1500]
    code = encode_block(twopart.prequential(len(data)), data)
    assert decode_block(twopart.prequential(len(data)), code, len(data)) == data
    learning, still, bits = twopart.prequential(len(data)), twopart.prequential(len(data)), [0.0, 0.0]
    grid = lay_out(learning, data).grid
    for start, first, stop in learning.windows(len(data)):
        symbols = grid[start + first + 1:stop + 1, 0]
        for i, predictor in enumerate((learning, still)):
            frequencies = to_frequencies(predictor.model.forward(grid[None, start:stop, 0])[0])[first:]
            bits[i] -= np.log2(frequencies[np.arange(len(symbols)), symbols] / frequencies.sum(1, dtype=float)).sum()
        learning.update(grid[start:stop + 1])
    assert bits[0] / 8 - 1 < len(code) < bits[0] / 8 + 1.1 and bits[0] < 0.9 * bits[1]


@pytest.mark.slow
def test_two_part_codes_of_a_small_text(small, capsys):
    codes, alone = twopart.run(small, size=1500, steps=(0, 30))
    assert codes[0] == (0, 0, 0, 1500) and len(codes) == 1 + 2 * 2
    assert all(code.sum == code.model + code.code for code in codes)
    least = min(code.sum for code in codes[1:])
    said = capsys.readouterr().out
    assert f"The least is {least:,}, decoded and compared" in said and f" {least - alone['fast: contexts alone']:,} |" in said


# --- scaling ----------------------------------------------------------------------------------------------------------

SIZES, AMOUNTS = np.repeat([1e4, 4e4, 2e5], 4), np.tile([1e4, 4e4, 2e5, 1e6], 3)


@pytest.mark.parametrize("law", [laws.added, laws.joined])
@pytest.mark.parametrize("p", [(3e3, 300, 0.4, 0.3, 1.2), (2e4, 2e3, 0.3, 0.5, 0.8), (5e3, 4e3, 0.2, 0.25)])
def test_a_fit_recovers_the_law_that_made_the_losses(law, p):
    L = law(np.log(p), SIZES, AMOUNTS)
    found, alone = laws.fitted(law, len(p) == 5, SIZES, AMOUNTS, L)
    np.testing.assert_allclose(np.exp(found), p, rtol=1e-3)
    np.testing.assert_allclose(alone, L, atol=1e-5)


def test_another_law_does_not_fit():
    L = laws.added(np.log((3e3, 300, 0.4, 0.3, 1.2)), SIZES, AMOUNTS)
    found, alone = laws.fitted(laws.joined, False, SIZES, AMOUNTS, L)
    assert np.abs(laws.joined(found, SIZES, AMOUNTS) - L).max() > 0.005 and np.abs(alone - L).max() > 0.01


def test_a_loss_is_the_mean_over_windows_side_by_side():
    model, T = GPT(TINY, 1), TINY.block_size
    pieces = np.frombuffer(TEXT[:3 * 100], np.uint8).reshape(3, 100)
    windows = [piece[i:i + T + 1] for piece in pieces for i in range(0, 100 - T, T)]
    assert len(windows) == 18
    alone = np.mean([model.loss(w[None, :-1], w[None, 1:]) for w in windows])
    assert scaling.nats(model, pieces) == pytest.approx(alone, abs=1e-6)


def test_a_small_text_is_learned_by_heart_and_new_text_gets_worse():
    piece = np.frombuffer(TEXT[:1024], np.uint8).reshape(1, -1) % 64
    noise = memory.random_windows(16 * 64)[:, :16].reshape(1, -1) % 64              # of which nothing can be learned
    model = GPT(GPTConfig(64, 16, n_layer=1, n_head=2, n_embd=16), seed=1)
    run = scaling.train(model, piece, noise, 100)
    assert run.parameters == sum(p.data.size for p in model.parameters().values()) and run.amount == 1024
    assert run.training < 2.5 < np.log(64) < run.least < run.held_out and run.at % 10 == 0
    assert run.training == scaling.nats(model, piece) and run.held_out == scaling.nats(model, noise)


@pytest.mark.slow
def test_scaling_of_a_small_text(small, capsys):
    results = scaling.run(small, widths=(8, 16), amounts=(1024, 4096), steps=20)
    assert [r.amount for r in results["runs"]] == [1024, 4096, 1024, 4096]
    assert all(r.at <= 20 and r.least <= r.held_out for r in results["runs"])
    assert [kept.size for kept in results["memory"]] == [256]
    assert len(re.findall(r"^\| (?:added|joined) ", capsys.readouterr().out, re.M)) == 4


# --- memory -----------------------------------------------------------------------------------------------------------

def test_no_more_is_kept_than_there_was_and_no_model_compresses_random_bytes():
    for size, steps in (256, 200), (2048, 60):
        kept = memory.measure(16, size, steps)
        assert 0 < kept.bits <= 8 * size
        assert kept.packed + kept.packed_code > size - 4            # 4 bytes are saved by chance once in 2^32
        assert (kept.bits > 0.9 * 8 * size) is (size == 256)


def test_what_is_learned_says_nothing_of_other_random_bytes():
    windows, others = np.split(memory.random_windows(512), 2)
    model = GPT(GPTConfig(block_size=memory.WINDOW, n_layer=1, n_head=2, n_embd=16), seed=1)
    assert len(memory.code(model, windows)) > 255
    memory.learn(model, windows, 150)
    assert len(memory.code(model, windows)) < 128 and len(memory.code(model, others)) > 300


def test_the_code_of_random_bytes_is_decoded_from_their_cues():
    windows = memory.random_windows(64)
    model = GPT(GPTConfig(block_size=memory.WINDOW, n_layer=1, n_head=2, n_embd=16), seed=1)
    memory.learn(model, windows, 30)
    decoder = Decoder(memory.code(model, windows))
    for window in windows:
        known = window[:1]
        for _ in range(memory.WINDOW):
            known = np.append(known, decoder.decode(to_frequencies(model.forward(known[None])[0, -1:])))
        np.testing.assert_array_equal(known, window)

"""Random numbers: the published cipher, its addresses, and the distributions made of it.

Every draw here has a fixed seed, so a bound of five standard deviations holds for ever or never.
"""

import zlib

import numpy as np
import pytest

from minigpt import rng

MASK = 0xFFFFFFFF


def philox(counter, key):
    """Philox4x32-10 as the paper writes it: ten rounds, and the key grows by the golden ratio and sqrt(3) - 1."""
    (a, b, c, d), (k, m) = counter, key
    for _ in range(10):
        low, high = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = (high >> 32) ^ b ^ k, high & MASK, (low >> 32) ^ d ^ m, low & MASK
        k, m = (k + 0x9E3779B9) & MASK, (m + 0xBB67AE85) & MASK
    return a, b, c, d


def words(seed, purpose, step, count):
    """The block's number, the step and the purpose make the counter; the seed is the key.  Low halves come first."""
    blocks = (philox((block, step & MASK, step >> 32, zlib.crc32(purpose.encode())), (seed & MASK, seed >> 32))
              for block in range((count + 3) // 4))
    return [word for block in blocks for word in block][:count]


@pytest.mark.parametrize("cipher", (philox, lambda counter, key: rng.philox(*counter, *key)), ids=("specification", "rng"))
@pytest.mark.parametrize("counter, key, answer", (
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((MASK, MASK, MASK, MASK), (MASK, MASK), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0),
     (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1))))
def test_philox_gives_the_known_answers_of_its_authors(cipher, counter, key, answer):
    assert cipher(counter, key) == answer


ADDRESSES = ((0, "", 0), (1, "batch", 7), (2 ** 32, "größer", 2 ** 33 + 5),
             (2 ** 64 - 1, "dropout blocks.3.attention", 2 ** 64 - 1))


@pytest.mark.parametrize("seed, purpose, step", ADDRESSES)
@pytest.mark.parametrize("count", (0, 1, 3, 4, 5, 1001))
def test_words_are_the_cipher_of_their_address(seed, purpose, step, count):
    found = rng.words(seed, purpose, step, count)
    assert found.dtype == np.uint32 and found.tolist() == words(seed, purpose, step, count)


@pytest.mark.parametrize("count", (0, 1, 4, 6, 999))
@pytest.mark.parametrize("draw", (rng.words, rng.uniform, lambda *address: rng.integers(*address, 10),
                                  lambda *address: rng.keep(*address, 0.3)), ids=("words", "uniform", "integers", "keep"))
def test_a_short_draw_is_the_beginning_of_a_long_one(draw, count):
    assert (draw(1, "batch", 2, count) == draw(1, "batch", 2, 1000)[:count]).all()


def test_another_seed_purpose_or_step_gives_other_words():
    addresses = [(0, "a", 0), (1, "a", 0), (2 ** 32, "a", 0), (0, "b", 0), (0, "a", 1), (0, "a", 2 ** 32)]
    drawn = [rng.words(*address, 1000) for address in addresses]
    for i, first in enumerate(drawn):
        assert all((first == second).sum() < 3 for second in drawn[:i])


@pytest.mark.parametrize("seed, step", ((2 ** 64, 0), (0, 2 ** 64)))
def test_a_seed_or_step_beyond_64_bits_is_refused(seed, step):
    with pytest.raises(OverflowError):
        rng.words(seed, "batch", step, 4)


def test_uniform_is_the_upper_24_bits():
    u = rng.uniform(3, "test", 0, 10_000)
    assert u.dtype == np.float32 and u.min() >= 0 and u.max() < 1
    assert (u.astype(np.float64) * 2 ** 24 == rng.words(3, "test", 0, 10_000) >> 8).all()


def test_uniform_has_the_moments_of_a_uniform_variable():
    n = 1_000_000
    u = rng.uniform(4, "test", 0, n).astype(np.float64)
    assert abs(u.mean() - 1 / 2) < 5 * (1 / 12 / n) ** 0.5
    assert abs(u.var() - 1 / 12) < 5 * (1 / 180 / n) ** 0.5
    assert abs(np.mean((u[1:] - 0.5) * (u[:-1] - 0.5))) < 5 / 12 / n ** 0.5             # neighbours are unrelated


@pytest.mark.parametrize("high", (1, 2, 3, 65, 1_003_854, 2 ** 31, 2 ** 32 - 1, 2 ** 32))
def test_integers_scale_a_word_to_the_range(high):
    found = rng.integers(5, "test", 6, 1000, high)
    assert found.dtype == np.int64
    assert found.tolist() == [word * high // 2 ** 32 for word in words(5, "test", 6, 1000)]
    assert 0 <= found.min() and found.max() < high


@pytest.mark.parametrize("high", (2, 7, 65))
def test_integers_take_each_value_equally_often(high):
    n = 200_000
    counts = np.bincount(rng.integers(6, "test", 0, n, high), minlength=high)
    assert (np.abs(counts - n / high) < 5 * (n / high) ** 0.5).all()


@pytest.mark.parametrize("drop", (0.001, 0.1, 0.5, 0.999))
def test_keep_drops_its_share(drop):
    n = 1_000_000
    zeros = np.sum(rng.keep(7, "test", 0, n, drop) == 0)
    assert abs(zeros - n * drop) < 5 * (n * drop * (1 - drop)) ** 0.5 + n / 2 ** 16


def test_keep_drops_nothing_at_zero():
    assert rng.keep(8, "test", 0, 100_001, 0.0).all()


def test_keep_is_the_same_where_bytes_have_the_other_order(monkeypatch):
    found, words_of = rng.keep(9, "test", 1, 101, 0.25), rng.words
    for order in "<>":
        monkeypatch.setattr(rng, "words", lambda *address: words_of(*address).astype(f"{order}u4"))
        assert np.array_equal(rng.keep(9, "test", 1, 101, 0.25), found)


def test_keep_takes_two_draws_from_a_word_the_lower_half_first():
    halves = [half for word in words(9, "test", 1, 51) for half in (word & 0xFFFF, word >> 16)][:101]
    found = rng.keep(9, "test", 1, 101, 0.25)
    assert found.dtype == np.uint8 and found.tolist() == [int(half >= 0x4000) for half in halves]

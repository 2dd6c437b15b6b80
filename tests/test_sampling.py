"""Text from a model: which token is chosen, that the cache changes nothing, and where the text ends."""

import itertools

import numpy as np
import pytest
from hypothesis import example, given, settings, strategies as st

from minigpt import rng, sampling
from minigpt.bpe import BPETokenizer
from minigpt.model import GPTConfig
from minigpt.sampling import choose, generate, stream
from minigpt.tokenizer import ByteTokenizer, CharTokenizer
from tests.float64 import make_model, softmax

LOGITS = np.random.default_rng(0).normal(0, 1.5, 9).astype(np.float32)
WORDS = np.random.default_rng(1).integers(0, 2 ** 64, 10_000, dtype=np.uint64).tolist()


def model_of(block_size=16, vocab_size=256, position="rotary"):
    return make_model(GPTConfig(vocab_size, block_size, n_layer=2, n_head=2, n_embd=16, position=position))


def take(count, model, ids, **options):
    return list(itertools.islice(generate(model, np.array(ids), **options), count))


# --- one token --------------------------------------------------------------------------------------------------------

def chi_square(counts, shares):
    expected = counts.sum() * shares
    return ((counts - expected) ** 2 / expected).sum()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 1e30])
def test_tokens_come_as_often_as_their_softmax_says(temperature):
    counts = np.bincount([choose(LOGITS, temperature, 0, 1.0, word) for word in WORDS], minlength=9)
    assert chi_square(counts, softmax(LOGITS.astype(np.float64) / temperature)) < 33    # 1 in 10,000 would be above


@pytest.mark.parametrize("k", [1, 2, 5, 9, 100])
def test_top_k_keeps_the_k_likeliest_in_their_proportions(k):
    kept = np.argsort(-LOGITS)[:k]
    counts = np.bincount([choose(LOGITS, 1.0, k, 1.0, word) for word in WORDS], minlength=9)
    assert set(np.flatnonzero(counts)) == set(kept)
    assert chi_square(counts[kept], softmax(LOGITS[kept].astype(np.float64))) < 33


@pytest.mark.parametrize("p", [1e-9, 0.3, 0.5, 0.9, 0.999, 1.0])
def test_top_p_keeps_the_fewest_that_hold_its_share(p):
    order = np.argsort(-LOGITS)
    shares = softmax(LOGITS.astype(np.float64))[order]
    kept = order[:next(n for n in range(1, 10) if shares[:n].sum() >= p - 1e-12)]
    counts = np.bincount([choose(LOGITS, 1.0, 0, p, word) for word in WORDS], minlength=9)
    assert set(np.flatnonzero(counts)) == set(kept)
    assert chi_square(counts[kept], softmax(LOGITS[kept].astype(np.float64))) < 33


def test_top_p_takes_its_share_of_what_top_k_has_left():
    logits = np.log(np.float32([0.4, 0.3, 0.2, 0.1]))
    # Of the two that are left the first holds 4/7, which is 0.57.
    assert {choose(logits, 1.0, 2, 0.57, word) for word in WORDS[:200]} == {0}
    assert {choose(logits, 1.0, 2, 0.58, word) for word in WORDS[:200]} == {0, 1}


def test_equals_share_the_words_equally():
    words = [0, 2 ** 24 - 1, 2 ** 24, 2 ** 26 - 1, 2 ** 26]
    assert [choose(np.zeros(4, np.float32), 1.0, 0, 1.0, word) for word in words] == [0, 0, 1, 3, 0]


def test_a_share_that_is_met_exactly_needs_no_further_token():
    assert {choose(np.zeros(4, np.float32), 1.0, 0, 0.5, word) for word in WORDS[:200]} == {0, 1}


def test_a_top_k_of_all_is_a_top_k_of_none():
    all_of_them, none = ([choose(LOGITS, 1.0, k, 1.0, word) for word in WORDS[:500]] for k in (9, 0))
    assert all_of_them == none


@pytest.mark.parametrize("options", [(0, 0, 1), (1, 1, 1), (1, 0, 1e-9), (1e-6, 0, 1), (1e-6, 3, 0.5)], ids=str)
@pytest.mark.parametrize("scale", [0.1, 1, 1000, 1e30])
def test_little_freedom_leaves_the_likeliest(options, scale):
    logits = np.float32(scale) * LOGITS
    with np.errstate(over="raise", invalid="raise"):
        assert {choose(logits, *options, word) for word in WORDS[:20]} == {LOGITS.argmax()}


@pytest.mark.parametrize("word", [0, 1, 2 ** 32 - 1, 2 ** 63, 2 ** 64 - 1])
@pytest.mark.parametrize("logits", [[0.0], [-200.0, 200.0], [5.0] * 40], ids=["one", "far apart", "all alike"])
def test_every_word_chooses_a_token_that_is_likely(word, logits):
    assert logits[choose(np.float32(logits), 1.0, 0, 1.0, word)] == max(logits)


def test_choosing_leaves_the_logits_alone():
    logits = LOGITS.copy()
    choose(logits, 0.7, 3, 0.9, 12345)
    assert (logits == LOGITS).all()


# --- one token after another ------------------------------------------------------------------------------------------

def full_windows(count, model, ids, temperature=1.0, top_k=0, top_p=1.0, seed=0):
    """The specification of `generate`: no cache, each window from its start."""
    size, tokens = model.config.block_size, []
    window = list(ids)[-size:]
    for i in range(count):
        if len(window) > size:
            window = window[-max(1, size // 2):]
        high, low = rng.words(seed, "sampling", i, 2).tolist()
        logits = model.forward(np.array([window]))[0, -1]
        tokens.append(choose(logits, temperature, top_k, top_p, high * 2 ** 32 + low))
        window.append(tokens[-1])
    return tokens


@pytest.mark.parametrize("position", ["rotary", "learned"])
@pytest.mark.parametrize("block_size", [1, 2, 3, 16])
@pytest.mark.parametrize("length", [1, 2, 16, 50])
def test_the_cache_chooses_what_full_windows_would(block_size, length, position):
    model = model_of(block_size, 11, position)
    ids = np.random.default_rng(length).integers(0, 11, length)
    for options in dict(temperature=0), dict(temperature=1.5, seed=length), dict(top_k=3, top_p=0.9):
        assert take(40, model, ids, **options) == full_windows(40, model, ids, **options)


def test_only_the_last_block_of_a_long_prompt_counts():
    model = model_of(16)
    assert take(30, model, [7] * 100 + list(range(16))) == take(30, model, range(16))


def test_the_same_seed_gives_the_same_tokens_and_another_gives_others():
    model = model_of()
    texts = {tuple(take(20, model, [1, 2, 3], seed=seed)) for seed in [*range(10), 2 ** 64 - 1, *range(10)]}
    assert len(texts) == 11


def test_two_texts_made_in_turn_do_not_disturb_each_other():
    model, other = model_of(), dict(seed=9, temperature=2.0)
    pairs = zip(generate(model, np.array([1, 2])), generate(model, np.array([3]), **other))
    one, two = zip(*itertools.islice(pairs, 40))
    assert list(one) == take(40, model, [1, 2]) and list(two) == take(40, model, [3], **other)


@pytest.mark.parametrize("options", [dict(top_k=1), dict(top_p=1e-9), dict(temperature=1e-6)], ids=str)
def test_little_freedom_is_greedy_at_every_step(options):
    model = model_of()
    assert take(40, model, [1], **options, seed=3) == take(40, model, [1], temperature=0)


@pytest.mark.parametrize("options, name", [
    (dict(temperature=-1), "temperature"), (dict(temperature=1e-7), "temperature"),
    (dict(temperature=float("nan")), "temperature"), (dict(temperature=float("inf")), "temperature"),
    (dict(top_k=-1), "top-k"), (dict(top_p=0), "top-p"), (dict(top_p=-0.1), "top-p"), (dict(top_p=1.1), "top-p"),
    (dict(top_p=float("nan")), "top-p")], ids=str)
def test_an_option_out_of_range_is_refused(options, name):
    with pytest.raises(ValueError, match=f"^{name} must be"):
        take(1, model_of(), [1], **options)


def test_a_model_whose_logits_are_not_numbers_is_refused():
    model = model_of()
    model.parameters()["head.weight"].data[...] = np.nan
    with pytest.raises(ValueError):
        take(1, model, [1])


# --- text -------------------------------------------------------------------------------------------------------------

@pytest.fixture
def saying(monkeypatch):
    """saying(data, **options): the pieces that stream makes of a model that says just these bytes, one a token."""
    def pieces(data, **options):
        with monkeypatch.context() as patch:
            patch.setattr(sampling, "generate", lambda *_, **__: iter(data))
            return list(stream(None, ByteTokenizer(), **options))
    return pieces


@pytest.mark.parametrize("text, stop, before", [
    ("one. two. three.", " t", "one."),
    ("one. two. three.", "one", ""),
    ("one. two. three.", "three.", "one. two. "),
    ("one. two. three.", ".", "one"),
    ("one. two. three.", "four", "one. two. three."),
    ("a nice nicety", "nicety", "a nice "),             # "nice " begins like it, and is not it
    ("aaaaab", "aab", "aaa"),
    ("ababac", "abac", "ab"),
    ("the end\n\n\nof it", "\n\n", "the end"),
    ("床前明月光，疑是地上霜。", "疑是", "床前明月光，"),
    ("ends in a beginn", "beginning", "ends in a beginn"),
])
def test_nothing_is_printed_from_the_stop_text_on(text, stop, before, saying):
    assert "".join(saying(text.encode(), stop=stop)) == before


@settings(deadline=None, max_examples=300)
@given(st.text("ab月", max_size=30), st.text("ab月", max_size=4))
@example("ab", "")
def test_text_ends_before_the_first_stop_text_however_the_bytes_fall(text, stop):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "generate", lambda *_: iter(text.encode()))
        pieces = list(stream(None, ByteTokenizer(), stop=stop))
    assert "".join(pieces) == (text.split(stop)[0] if stop else text)


def test_only_what_may_begin_the_stop_text_is_held_back(saying):
    assert saying(b"abxaby", stop="abc") == ["abx", "aby", ""]
    assert saying(b"wow", stop="!!") == ["w", "o", "w", ""]


def test_a_character_of_many_bytes_comes_as_one_piece(saying):
    assert [piece for piece in saying("é月\U0001F600!".encode()) if piece] == ["é", "月", "\U0001F600", "!"]


def test_a_character_that_the_last_token_cuts_off_comes_out_as_a_replacement(saying):
    assert "".join(saying("a月".encode()[:-1])) == "a\ufffd"


@pytest.mark.parametrize("tokens", [0, 1, 5])
def test_at_most_so_many_tokens_are_made(tokens, saying):
    assert "".join(saying(b"a" * 9, tokens=tokens)) == "a" * tokens


def test_text_is_what_the_tokens_decode_to():
    model, tokenizer = model_of(vocab_size=4), CharTokenizer("ab\n月")
    pieces = stream(model, tokenizer, "ab", 30, seed=5)
    assert "".join(pieces) == tokenizer.decode(take(30, model, tokenizer.encode("ab"), seed=5))


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), CharTokenizer("\nab月")], ids=["bytes", "characters"])
def test_an_empty_prompt_starts_after_a_line_break(tokenizer):
    model = model_of(vocab_size=tokenizer.vocab_size)
    assert list(stream(model, tokenizer, "", 20)) == list(stream(model, tokenizer, "\n", 20))


def test_an_empty_prompt_does_without_a_line_break_where_there_is_none():
    assert len("".join(stream(model_of(vocab_size=3), CharTokenizer("ab月"), "", 20))) == 20


def test_a_prompt_with_an_unknown_character_is_refused():
    with pytest.raises(ValueError, match="'x' at position 2"):
        list(stream(model_of(vocab_size=2), CharTokenizer("ab"), "abx", 5))


# --- models with tokens of more than a byte -----------------------------------------------------------------------------

def test_a_text_begins_with_the_start_token_and_ends_at_a_control_token():
    tokenizer = BPETokenizer([b"", b"a", b"b", b"ab"], [(b"a", b"b")], "gpt2", start=0)
    seen = []

    def generate(model, ids, **options):
        seen.append(ids.tolist())
        yield from (1, 3, 0, 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "generate", generate)
        assert "".join(stream(None, tokenizer, "abb")) == "".join(stream(None, tokenizer)) == "aab"
    assert seen == [[0, 3, 2], [0]]

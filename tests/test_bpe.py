"""Byte-level byte-pair encoding, with the package `tokenizers` as the oracle."""

import json
import random
import re
import unicodedata
from collections import Counter
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from minigpt import bpe
from minigpt.bpe import SPLITS, BPETokenizer, train, words
from minigpt.tokenizer import from_json

unhurried = settings(deadline=None)
SOURCE = Path(bpe.__file__).read_text("utf-8")
TEXT = SOURCE + ("床前明月光，疑是地上霜。\nStraße, naïve café; don't, we'LL, it's 1234567 ½ Ⅷ ٣٤٥\u00a0\u3000x\r\n\r\n"
                 "Ünïcödé e\u0301 \U0001F600\U0001F468\u200d\U0001F469  \t\n  tabs\t\tand   spaces   \n\n\n") * 3
every_split = pytest.mark.parametrize("split", SPLITS)


@lru_cache
def taught(split):
    return train(TEXT.encode(), 600, split)


def visible(token):
    """The token as Hugging Face writes it, a character a byte."""
    shown = [byte for byte in range(256) if 33 <= byte <= 126 or 161 <= byte <= 172 or 174 <= byte]
    hidden = [byte for byte in range(256) if byte not in shown]
    return "".join(chr(byte) if byte in shown else chr(256 + hidden.index(byte)) for byte in token)


@lru_cache
def oracle(split):
    """ids of a str, by the package `tokenizers` with the vocabulary and merges of `taught`."""
    tokenizer, library = taught(split), pytest.importorskip("tokenizers")
    from tokenizers import models, pre_tokenizers as pre
    vocabulary = {visible(token): i for i, token in enumerate(tokenizer.vocabulary) if token}
    merges = [(visible(left), visible(right)) for left, right in tokenizer.merges]
    made = library.Tokenizer(models.BPE(vocabulary, merges, ignore_merges=split == "llama3"))
    made.pre_tokenizer = {
        "gpt2": lambda: pre.ByteLevel(add_prefix_space=False),
        "smollm": lambda: pre.Sequence([pre.Digits(individual_digits=True), pre.ByteLevel(add_prefix_space=False)]),
    }.get(split, lambda: pre.Sequence([
        pre.Split(library.Regex(SPLITS[split]), "isolated"),
        pre.ByteLevel(add_prefix_space=False, use_regex=False)]))()
    return lambda text: made.encode(text, add_special_tokens=False).ids


# --- against the package `tokenizers` -----------------------------------------------------------------------------------

SAMPLES = ["", " ", "a", "Hello, world!  How's it going?", TEXT, "x" * 300, "  5", " \n 7\r\n\r\n  a", "a  1b   22 \t333",
           "\x1c\x1d \x1e\x1fa\x1c b\x1f", "\x85\u2028\u2029\xa0 a\u3000b\u200b", "'S 'ſ 'LL 'Re 're'm'd'VE", "½²Ⅷ一二 3½",
           "\0\x01\x7f", "<|endoftext|><|im_start|>", "عربى हिन्दी ไทย 한국어", "𝒳𝟘𝟙 𐍈", "!!!\n\n???\r\n...",
           "\u0301\u0301 \u0301a", "_a_ __b"]


@every_split
@pytest.mark.parametrize("text", SAMPLES)
def test_ids_are_those_of_the_package_tokenizers(split, text):
    assert taught(split).encode(text).tolist() == oracle(split)(text)


# Characters that every version of Unicode knows alike, many of them where the expressions make a difference.
LETTERS = "aeorstdvLlſß '’\t\n\r\x0b\x1c\x1f\x85\xa0\u2028\u3000\u200b05٣½²Ⅷ_-.,!\"(é\u0301床光ЖωעกᏚ\U0001F600\U0001D7D8"


@unhurried
@given(st.sampled_from(list(SPLITS)), st.text(LETTERS))
def test_ids_of_random_strings_are_those_of_the_package_tokenizers(split, text):
    assert taught(split).encode(text).tolist() == oracle(split)(text)


def test_classes_are_those_of_unicodedata():
    L, N, space = (re.compile(f"[{characters}]") for characters in bpe._classes().values())
    for character in map(chr, range(0x110000)):
        kind = unicodedata.category(character)[0]
        assert (L.match(character) is not None, N.match(character) is not None) == (kind == "L", kind == "N")
        assert (space.match(character) is not None) == (character.isspace() and character not in "\x1c\x1d\x1e\x1f")


# --- nothing is lost ----------------------------------------------------------------------------------------------------

@unhurried
@given(st.sampled_from(list(SPLITS)),
       st.binary() | st.text().map(str.encode) | st.text(LETTERS).map(lambda s: s.encode()[1:-1]))
def test_any_bytes_come_back_from_their_ids(split, data):
    tokenizer = taught(split)
    ids = tokenizer.encode(data)
    assert tokenizer.decode_bytes(ids) == data
    assert ids.dtype == np.int64 and (ids < tokenizer.vocab_size).all()


@unhurried
@given(st.binary())
def test_a_byte_without_a_token_is_an_id_past_the_vocabulary(data):
    tokenizer = BPETokenizer([b"", b"a", b"b", b"ab"], [(b"a", b"b")], "gpt2")
    ids = tokenizer.encode(data + b"abca")
    assert tokenizer.decode_bytes(ids) == data + b"abca"
    assert 0 not in ids and ids[-3:].tolist() == [3, 4 + ord("c"), 1]
    assert not {4 + ord("a"), 4 + ord("b")} & set(ids.tolist())


@every_split
def test_the_valid_parts_of_a_broken_text_have_their_usual_ids(split):
    tokenizer = taught(split)
    parts = ["Hello  ", "床前 1234", " it's\n\n"]
    ids = tokenizer.encode(b"\xff".join(part.encode() for part in parts))
    one = tokenizer.encode(b"\xff").tolist()
    usual = [tokenizer.encode(part).tolist() for part in parts]
    assert ids.tolist() == usual[0] + one + usual[1] + one + usual[2]


def test_a_control_token_in_a_text_is_text():
    tokenizer = BPETokenizer([b""] + [bytes([byte]) for byte in range(256)], [], "gpt2")
    assert tokenizer.encode("<|end|>").tolist() == [1 + byte for byte in b"<|end|>"]
    assert tokenizer.decode([0]) == ""


def test_a_word_of_a_megabyte_is_encoded_in_seconds():
    tokenizer = taught("gpt2")
    word = bytes(random.Random(1).choices(b"etaoinsh", k=1_000_000))
    assert tokenizer.decode_bytes(tokenizer.encode(word)) == word


@pytest.mark.parametrize("ids", [[-1], [856], [0, 10 ** 12]])
def test_ids_that_do_not_exist_are_refused(ids):
    with pytest.raises(ValueError, match="0 .. 855"):
        taught("gpt2").decode_bytes(ids)


# --- training -----------------------------------------------------------------------------------------------------------

def slowly_taught(text, vocab_size, split):
    """The definition of `train`, which counts everything again for each merge."""
    vocabulary, merges = [bytes([byte]) for byte in range(256)], []
    texts = [[bytes([byte]) for byte in word.encode(errors="surrogateescape")] for word in words(text, split)]
    while len(vocabulary) < vocab_size:
        counts = Counter(pair for tokens in texts for pair in zip(tokens, tokens[1:]))
        if not counts:
            break
        pair = min(counts, key=lambda pair: (-counts[pair], pair))
        if pair not in merges:
            merges.append(pair)
        if pair[0] + pair[1] not in vocabulary:
            vocabulary.append(pair[0] + pair[1])
        for tokens in texts:
            i = 0
            while i < len(tokens) - 1:
                if (tokens[i], tokens[i + 1]) == pair:
                    tokens[i:i + 2] = [pair[0] + pair[1]]
                i += 1
    return vocabulary, merges


@every_split
def test_training_learns_what_its_definition_says(split):
    text = TEXT.encode()[-3000:] + b"aaaaa aaaa \xff\xfe\xff\xfe" * 9
    tokenizer = train(text, 400, split)
    assert (tokenizer.vocabulary, tokenizer.merges) == slowly_taught(text, 400, split)


@unhurried
@given(st.binary() | st.text("abc ").map(str.encode), st.integers(256, 300))
def test_training_learns_what_its_definition_says_from_any_bytes(text, vocab_size):
    tokenizer = train(text, vocab_size)
    assert (tokenizer.vocabulary, tokenizer.merges) == slowly_taught(text, vocab_size, "gpt2")
    assert tokenizer.decode_bytes(tokenizer.encode(text)) == text


def test_more_tokens_make_a_text_shorter():
    lengths = [len(train(SOURCE.encode(), size).encode(SOURCE)) for size in (256, 300, 600)]
    assert lengths[0] == len(SOURCE.encode()) > 1.2 * lengths[1] > 1.5 * lengths[2]


def test_a_vocabulary_of_less_than_the_bytes_is_refused():
    with pytest.raises(ValueError, match="at least 256"):
        train(b"text", 255)


# --- the constructor, and JSON ------------------------------------------------------------------------------------------

def test_an_unknown_pre_tokeniser_is_named():
    with pytest.raises(ValueError, match="'gpt5'.*gpt2, smollm"):
        train(b"text", 300, "gpt5")


@pytest.mark.parametrize("merge", [(b"a", b"c"), (b"", b"ab"), (b"ab", b"")])
def test_a_merge_without_a_token_is_refused(merge):
    with pytest.raises(ValueError, match="no token for the merge"):
        BPETokenizer([b"a", b"b", b"ab"], [merge], "gpt2")


@every_split
def test_a_tokenizer_comes_back_from_json(split):
    tokenizer = train(TEXT.encode(), 400, split)
    again = from_json(json.loads(json.dumps(tokenizer.to_json())))
    assert type(again) is BPETokenizer and vars(again) == vars(tokenizer)
    assert (again.encode(TEXT) == tokenizer.encode(TEXT)).all()


GOOD = {"kind": "bpe", "split": "gpt2", "start": None, "vocabulary": ["a", "b", "ab"], "merges": [["a", "b"]]}


@pytest.mark.parametrize("change", [
    {"split": None}, {"split": []}, {"start": 3}, {"start": "a"}, {"vocabulary": None}, {"vocabulary": [1]},
    {"vocabulary": ["床"]}, {"merges": [["a"]]}, {"merges": [["a", 1]]}, {"merges": 3}, {"merges": [["b", "a"]]}])
def test_json_of_something_else_is_refused(change):
    from_json(GOOD)
    with pytest.raises(ValueError):
        from_json({**GOOD, **change})
    with pytest.raises(ValueError):
        from_json({name: value for name, value in GOOD.items() if name not in change})

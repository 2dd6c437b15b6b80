"""Text to ids and back."""

import json

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from minigpt.tokenizer import ByteTokenizer, CharTokenizer, from_json

POEM = "床前明月光，疑是地上霜。\n举头望明月，低头思故乡。\n"
unhurried = settings(deadline=None)


# --- bytes ------------------------------------------------------------------------------------------------------------

@unhurried
@given(st.binary())
def test_bytes_come_back_from_their_ids(data):
    assert ByteTokenizer().decode_bytes(ByteTokenizer().encode(data)) == data


@unhurried
@given(st.text())
def test_text_comes_back_from_the_ids_of_its_bytes(text):
    assert ByteTokenizer().decode(ByteTokenizer().encode(text)) == text


@pytest.mark.parametrize("text", ["", "a", "\0\r\n", POEM, "e\u0301 \U0001F600", bytes(range(256))])
def test_the_ids_of_a_text_are_its_utf8_bytes(text):
    ids = ByteTokenizer().encode(text)
    assert ids.tolist() == list(text.encode() if isinstance(text, str) else text)
    assert ids.dtype == np.int64 and ids.ndim == 1


def test_every_byte_is_a_token():
    assert ByteTokenizer().vocab_size == 256
    assert sorted(ByteTokenizer().encode(bytes(range(256)))) == list(range(256))


@pytest.mark.parametrize("data", [b"\xff", b"a\xe5\xba", b"\x80b"])
def test_bytes_that_are_not_utf8_come_out_as_replacement_characters(data):
    text = ByteTokenizer().decode(ByteTokenizer().encode(data))
    assert text.count("\ufffd") == 1 and text.replace("\ufffd", "") in ("", "a", "b")


# --- characters -------------------------------------------------------------------------------------------------------

@unhurried
@given(st.text(min_size=1))
def test_text_comes_back_from_the_ids_of_its_characters(text):
    tokenizer = CharTokenizer(text)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode_bytes(ids) == text.encode()
    assert ids.dtype == np.int64 and ids.shape == (len(text),)
    assert set(ids.tolist()) == set(range(tokenizer.vocab_size))


@pytest.mark.parametrize("text", ["hello", POEM, "zaZA 09\n", "\U0001F600a\u0301"])
def test_characters_are_numbered_in_their_sorted_order(text):
    assert CharTokenizer(text).itos == sorted(set(text))


def test_order_and_repetition_of_the_characters_do_not_matter():
    assert CharTokenizer("banana").itos == CharTokenizer("nab").itos == ["a", "b", "n"]


def test_utf8_bytes_are_characters_too():
    tokenizer = CharTokenizer(POEM)
    assert (tokenizer.encode(POEM.encode()) == tokenizer.encode(POEM)).all()


def test_no_text_has_no_ids():
    assert CharTokenizer("ab").encode("").tolist() == [] and CharTokenizer("ab").decode([]) == ""
    assert CharTokenizer("ab").encode("").dtype == np.int64


@pytest.mark.parametrize("text, character, position", [("abxax", "x", 2), ("月b", "月", 0), ("ab\n", "\\n", 2)])
def test_an_unknown_character_is_named_with_its_position(text, character, position):
    with pytest.raises(ValueError, match=f"(?s)'{character}'.* at position {position} ".replace("\\", "\\\\")):
        CharTokenizer("ab").encode(text)


@pytest.mark.parametrize("data, position", [(b"\xff", 0), (b"ab\xe5\xba", 2), (b"aba\x80", 3)])
def test_bytes_that_are_not_utf8_have_no_characters(data, position):
    with pytest.raises(ValueError, match=rf"not UTF-8 \(byte {position}\)"):
        CharTokenizer("ab").encode(data)


def test_an_empty_text_has_no_tokenizer():
    with pytest.raises(ValueError, match="empty"):
        CharTokenizer("")


# --- as JSON ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), CharTokenizer("hello \"\\\0"), CharTokenizer(POEM)])
def test_a_tokenizer_comes_back_from_json(tokenizer):
    again = from_json(json.loads(json.dumps(tokenizer.to_json())))
    assert type(again) is type(tokenizer) and vars(again) == vars(tokenizer)


@pytest.mark.parametrize("description", [
    None, 3, "bytes", [], {}, {"kind": "words"}, {"kind": None}, {"kind": "characters"}, {"characters": "ab"},
    {"kind": "characters", "characters": ["a", "b"]}, {"kind": "characters", "characters": ""}])
def test_json_of_something_else_is_refused(description):
    with pytest.raises(ValueError):
        from_json(description)

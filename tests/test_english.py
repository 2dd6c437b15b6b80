"""The corpus "english", from packages that stand in for Debian's."""

import hashlib
import struct
import subprocess
import zlib

import pytest

from minigpt import corpus, english
from minigpt.corpus import CorpusError


def paragraph(kind, number):
    return (f"This is what the {kind} says under number {number:04} in words enough\n"
            "to be a paragraph of its own, which nothing else repeats.").encode()


BOOKS = [(f"Book {i}", b"\n\n".join(paragraph(f"book {i}", j) for j in range(900))) for i in range(4)]
SHARED = (b"This paragraph stands in two books and is long enough to be noticed "
          b"by whoever removes what comes for the second time.")
BOOKS[0] = ("Book 0", BOOKS[0][1] + b"\n\n" + SHARED)
BOOKS[3] = ("Book 3", SHARED + b"\n\n" + BOOKS[3][1] + b"\n\nA line by Milton.\n\nThe end.")


@pytest.fixture
def books(monkeypatch):
    """One package with four books, of which number 3 is held out."""
    allowed = [(name, text.replace(b"\n\nA line by Milton.", b"")) for name, text in BOOKS]
    sha256 = hashlib.sha256(b"".join(text for _, text in allowed)).hexdigest()
    monkeypatch.setattr(english, "SOURCES", [english.Source("books", sha256, lambda folder: BOOKS, 3)])
    monkeypatch.setattr(english, "_unpack", lambda package, folder: None)


def paragraphs(text):
    return [b" ".join(part.split()) for part in text.replace(b"\r\n", b"\n").split(b"\n\n")]


def test_held_out_documents_come_last_and_whole(books):
    held = [document for document in english.documents() if document.held]
    assert [document.name for document in held] == ["Book 3"]
    assert english.build().endswith(b"\n\n" + held[0].text)


def test_no_long_paragraph_comes_twice_so_training_sees_none_that_is_held_out(books):
    found = [part for part in paragraphs(english.build()) if len(part) >= 100]
    assert len(found) == len(set(found)) == 4 * 900 + 1


def test_paragraphs_that_name_a_standard_test_text_stay_out(books):
    assert b"Milton" not in english.build() and b"The end." in english.build()


def test_training_has_lines_of_three_forms(books):
    training = english.build()[:-len(BOOKS[3][1])]
    assert b"enough\nto be" in training and b"enough\r\nto be" in training
    assert b"enough to be" in training


def test_another_text_is_refused(books, monkeypatch):
    monkeypatch.setattr(english, "SOURCES", [english.SOURCES[0]._replace(sha256="0" * 64)])
    with pytest.raises(CorpusError, match="texts of books have SHA-256 .*, not 00000000.*Debian 12"):
        english.documents()


def test_without_apt_get_it_says_what_is_missing(monkeypatch, tmp_path):
    def run(*_, **__):
        raise FileNotFoundError(2, "No such file or directory", "apt-get")
    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(CorpusError, match="apt-get could not download the package fortunes .*No such file"):
        english._unpack("fortunes", tmp_path)


def test_the_corpus_is_checked_and_cached(books, monkeypatch, tmp_path):
    text = english.build()
    monkeypatch.setitem(corpus.CORPORA, "english", corpus.Corpus("English", "english.txt", len(text),
                                                                 hashlib.sha256(text).hexdigest()))
    assert corpus.load(corpus="english", cache=str(tmp_path)).data == text
    monkeypatch.setattr(english, "build", None)
    assert corpus.load(corpus="english", cache=str(tmp_path)).data == text


def serialised(lines):
    """As R serialises a character vector."""
    strings = b"".join(struct.pack(">II", 0x40009, len(line)) + line for line in lines)
    return b"X\n" + struct.pack(">III", 3, 0x40201, 0x30500) + struct.pack(">I", 5) + b"UTF-8" \
        + struct.pack(">II", 0x10, len(lines)) + strings


def test_novels_are_read_from_data_of_r(tmp_path):
    streams = [serialised([b"EMMA", b"", b"Chapter I"]), serialised([b"Persuasion", b"by"])]
    (tmp_path / "data").mkdir()
    (tmp_path / "data/Rdata.rdb").write_bytes(b"".join(struct.pack(">I", len(s)) + zlib.compress(s) for s in streams))
    assert list(english._novels(tmp_path)) == [("Emma", b"EMMA\n\nChapter I\n"), ("Persuasion", b"Persuasion\nby\n")]


def test_manual_pages_become_plain_text():
    page = (b".\\\" Copyright\n.TH signal 7\n.SH NAME\nsignal \\- overview\n.PP\nSee\n.BR kill (2)\nand\n"
            b".IR \"signal handler\" ,\nor \\fBcore\\fP.\n")
    assert english._plain(page) == b"signal 7\n\nNAME\nsignal - overview\n\nSee\nkill(2)\nand\nsignal handler,\nor core.\n"

"""The library, in the manner of gzip and lzma: its examples, streams in parts of any size, and a file that can be sought."""

import doctest
import io
import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import coder
from coder import library
from coder.verify import LICENSE
from minigpt.checkpoint import save_checkpoint
from minigpt.tokenizer import ByteTokenizer
from tests.golden_coder import taught

TEXT = (LICENSE + LICENSE[::-1])[:2000]
FILE = coder.compress(TEXT, "fast", segment=300)


def test_the_examples_are_true():
    failed, tried = doctest.testmod(library)
    assert tried > 10 and not failed


def test_importing_the_package_imports_no_library():
    code = "import sys, coder; sys.exit('numba' in sys.modules or 'coder.library' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    with pytest.raises(AttributeError):
        coder.nothing


def test_a_model_is_a_path_or_an_object(tmp_path):
    path = tmp_path / "model"
    save_checkpoint(path, taught(), ByteTokenizer())
    file = coder.compress(LICENSE[:300], model=path)
    assert coder.compress(LICENSE[:300], model=taught()) == coder.compress(LICENSE[:300], "static", model=str(path)) == file
    assert coder.decompress(file, model=path) == coder.decompress(file, model=taught()) == LICENSE[:300]


def test_a_primer_makes_it_smaller():
    file = coder.compress(LICENSE[500:], primer=LICENSE[:700])
    assert len(file) < len(coder.compress(LICENSE[500:], "fast"))
    assert coder.decompress(file, primer=LICENSE[:700]) == LICENSE[500:]


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2000), st.lists(st.integers(1, 900), min_size=1, max_size=8))
def test_a_compressor_writes_the_same_file_whatever_the_parts(size, cuts):
    compressor, rest, out = coder.Compressor("fast", segment=300), TEXT[:size], []
    for cut in cuts:
        out.append(compressor.compress(rest[:cut]))
        rest = rest[cut:]
    assert b"".join(out) + compressor.compress(rest) + compressor.flush() == coder.compress(TEXT[:size], "fast", segment=300)


def test_a_compressor_without_a_mode_chooses_one_as_compress_does(monkeypatch):
    monkeypatch.setattr(library.models, "load", lambda path: (taught(), None))
    for data in (b"", LICENSE, b"<p>%d</p>\n" * 40 % tuple(range(40)), b"<p>no</p>" * 5000):
        compressor = coder.Compressor(segment=20_000)
        assert compressor.compress(data) + compressor.flush() == coder.compress(data, segment=20_000)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(1, 500), min_size=1, max_size=20))
def test_a_decompressor_gives_the_original_whatever_the_parts(cuts):
    decompressor, rest, out = coder.Decompressor(), FILE, []
    for cut in cuts:
        out.append(decompressor.decompress(rest[:cut]))
        rest = rest[cut:]
    out.append(decompressor.decompress(rest))
    decompressor.flush()
    assert b"".join(out) == TEXT


def test_a_decompressor_says_where_a_file_is_cut_off_or_is_none():
    for size in range(0, len(FILE), 13):
        decompressor = coder.Decompressor()
        with pytest.raises(coder.CoderError, match="cut off|empty"):
            decompressor.decompress(FILE[:size])
            decompressor.flush()
    for more in (b"something else, and more of it", LICENSE):
        with pytest.raises(coder.CoderError, match="not a compressed file"):
            coder.Decompressor().decompress(more)
        with pytest.raises(coder.CoderError, match="no part of"):
            coder.Decompressor().decompress(FILE + more)


# --- files --------------------------------------------------------------------------------------------------------------

@pytest.fixture
def path(tmp_path):
    (tmp_path / "file.mgz").write_bytes(FILE)
    return tmp_path / "file.mgz"


@settings(deadline=None, max_examples=40)
@given(steps=st.lists(st.tuples(st.integers(-2100, 2100), st.sampled_from([0, 1, 2]), st.integers(-1, 700)), max_size=12))
def test_a_file_is_sought_and_read_as_any_other(steps, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "sought.mgz"
    path.write_bytes(FILE)
    other = io.BytesIO(TEXT)
    with coder.open(path) as file:
        for offset, whence, size in steps:
            target = offset + (0, other.tell(), 2000)[whence]
            if target >= 0:
                assert file.seek(offset, whence) == other.seek(target)
            assert file.read(size) == other.read(size) and file.tell() == other.tell()


def test_reading_decodes_only_the_segments_it_needs(path, monkeypatch):
    decoded, extract = [], library.extract
    monkeypatch.setattr(library, "extract", lambda *arguments, **options: decoded.append(1) or extract(*arguments, **options))
    with coder.open(path) as file:
        file.seek(700)
        assert file.read1(5) == TEXT[700:705] and len(decoded) == 1


def test_joined_files_and_lines(path):
    path.write_bytes(FILE + coder.compress(b"", "fast") + FILE)
    with coder.open(path, "rt") as file:
        assert list(file) == (TEXT + TEXT).decode().splitlines(keepends=True)


def test_what_is_written_is_what_compress_makes(tmp_path):
    path = tmp_path / "new.mgz"
    with coder.open(path, "wb", compress_mode="fast", segment=300) as file:
        for i in range(0, 2000, 77):
            file.write(TEXT[i:i + 77])
    assert path.read_bytes() == FILE
    with coder.open(path, "wt", compress_mode="fast", encoding="utf-16") as file:
        file.write("naïve")
    assert coder.decompress(path.read_bytes()).decode("utf-16") == "naïve"


def test_a_file_with_its_model_in_it_can_be_sought(tmp_path):
    from coder import archive, packed
    out, model = io.BytesIO(), packed.unpack(packed.pack(taught()))[0]
    archive.compress(io.BytesIO(TEXT), out, "static", model, segment=900, embedded=packed.pack(taught()))
    (tmp_path / "file").write_bytes(out.getvalue())
    with coder.open(tmp_path / "file") as file:
        assert file.seek(1000) == 1000 and file.read(50) == TEXT[1000:1050]


def test_errors_are_the_usual_ones(path):
    with pytest.raises(ValueError, match="must be rb"):
        coder.open(path, "rw")
    with pytest.raises(FileNotFoundError):
        coder.open(path.with_name("none"))
    with pytest.raises(ValueError, match="must be one of"):
        coder.compress(b"", "zip")
    path.write_bytes(FILE[:-1])
    with pytest.raises(coder.CoderError):
        coder.open(path)
    with coder.open(path.with_name("x"), "wb", compress_mode="fast") as file, pytest.raises(io.UnsupportedOperation):
        file.read()
    assert os.path.getsize(path.with_name("x")) == 21

"""Files of several segments: streams in and out, joined, cut, exchanged; embedded models, a part of a file, what is left."""

import io
import re
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coder import archive, packed, reference
from coder.archive import Ledger, compress, decompress, members, read_index, skippable, write_index
from coder.container import INDEX, MAGIC, MODEL, NAMES, PARITY, CoderError, read
from coder.models import short_fingerprint
from coder.retrieve import extract, salvage, table
from coder.verify import LICENSE
from tests.golden_coder import TINY, taught
from minigpt.model import GPT

TEXT = (LICENSE + LICENSE[::-1])[:2000]
NOISE = np.random.default_rng(7).bytes(2000)


def shrink(data, mode="fast", segment=500, **options):
    out = io.BytesIO()
    totals = compress(io.BytesIO(data), out, mode, taught() if mode == "static" else None, segment=segment, **options)
    assert totals[:2] == (len(data), len(out.getvalue()))
    return out.getvalue()


def expand(file, find=lambda name: taught(), **options):
    out = io.BytesIO()
    totals = decompress(io.BytesIO(file), out, find, **options)
    assert totals[:2] == (len(out.getvalue()), len(file))
    return out.getvalue()


def refused(function, *arguments, **options):
    with pytest.raises(CoderError) as caught:
        function(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def parts(file):
    """The members of a file, each as bytes."""
    return [member.data or file[member.place:member.place + member.size] for member in members(io.BytesIO(file))]


FILE = shrink(TEXT)
NOISY = shrink(NOISE)                           # four segments of the same size


# --- there and back -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("mode", ["fast", "static"])
@pytest.mark.parametrize("size", [0, 1, 499, 500, 501, 1000, 2000])
def test_segments_come_back(mode, size):
    file = shrink(TEXT[:size], mode)
    assert expand(file) == TEXT[:size]
    kinds = [file[4] for file in parts(file)]
    count = max(1, -(-size // 500))
    assert len(kinds) == count + (count > 1) and (kinds[-1] == INDEX) == (count > 1)
    assert all(read(part)[0].more == (count > 1) for part in parts(file)[:count])


@settings(deadline=None, max_examples=30)
@given(st.binary(max_size=40), st.integers(1, 50))
def test_anything_comes_back_in_segments_of_any_size(data, segment):
    assert expand(shrink(data, segment=segment)) == data


def test_a_segment_is_what_it_would_be_alone_but_for_the_flag():
    for i, part in enumerate(parts(FILE)[:-1]):
        alone = shrink(TEXT[500 * i:500 * (i + 1)], segment=None)
        assert [b.payload for b in read(part)[1]] == [b.payload for b in read(alone)[1]]
        assert read(part)[0] == read(alone)[0]._replace(more=True)


def test_the_default_segments_are_those_of_the_mode(monkeypatch):
    modes = {name: mode._replace(segment=700) if name == "fast" else mode for name, mode in archive.MODES.items()}
    monkeypatch.setattr(archive, "MODES", modes)
    assert [read(part)[0].length for part in parts(shrink(TEXT, segment=None))[:-1]] == [700, 700, 600]


@settings(deadline=None, max_examples=15)
@given(st.lists(st.sampled_from([FILE, NOISY, shrink(b""), shrink(b"x"), shrink(b"text " * 30), skippable(200, b"whatever")]),
                min_size=1, max_size=5).filter(lambda files: any(f[4] != 200 for f in files)))
def test_joined_files_are_the_file_of_the_joined_originals(files):
    originals = [expand(file) if file[4] != 200 else b"" for file in files]
    assert expand(b"".join(files)) == b"".join(originals)
    assert reference.decode_file(b"".join(f for f in files if f != FILE and f[4] != 4), None) == b"".join(
        o for f, o in zip(files, originals) if f != FILE and f[4] != 4) if any(f != FILE and f[4] < 4 for f in files) else True


def test_the_program_in_numpy_reads_archives():
    file = shrink(TEXT[:60], "static", segment=25) + shrink(b"", "static") + skippable(PARITY, b"parity") + NOISY
    model = [(TINY, {name: p.data for name, p in taught().parameters().items()})]
    assert reference.decode_file(file, lambda: model) == TEXT[:60] + NOISE
    for damaged in (file[:-1], file[:-70], file[:60], file[:-44] + b"?" + file[-43:], b""):
        with pytest.raises(reference.FormatError):
            reference.decode_file(damaged, lambda: model)


class Slow(io.RawIOBase):
    """A pipe that gives what it has in small parts, and cannot be sought; `seen` is asked before each part."""

    def __init__(self, data, seen=lambda given: None):
        self.data, self.given, self.seen = data, 0, seen

    def readable(self):
        return True

    def seekable(self):
        return False

    def read(self, size=-1):
        self.seen(self.given)
        part = self.data[self.given:self.given + min(size, 100)]
        self.given += len(part)
        return part


@pytest.mark.parametrize("make", [lambda out, seen: compress(Slow(TEXT, seen), out, "fast", segment=500),
                                  lambda out, seen: decompress(Slow(FILE, seen), out, None)])
def test_the_first_output_comes_before_the_input_ends(make):
    out, written = io.BytesIO(), []
    make(out, lambda given: written.append((given, len(out.getvalue()))))
    assert any(size > 0 for given, size in written if given < 1200)
    assert out.getvalue() in (FILE, TEXT)


def test_a_pipe_gives_the_same_bytes_as_a_file():
    out = io.BytesIO()
    decompress(Slow(skippable(PARITY, bytes(1000)) + FILE), out, None)
    assert out.getvalue() == TEXT


class Nothing(io.RawIOBase):
    def write(self, data):
        return len(data)


@pytest.mark.parametrize("size", [2 ** 22, 2 ** 24])
def test_memory_is_that_of_a_segment_whatever_the_file(size, tmp_path, monkeypatch):
    """Here nothing is predicted: every segment is stored."""
    monkeypatch.setattr("coder.codec.encode_block", lambda predictor, data, progress: data)
    (tmp_path / "noise").write_bytes(bytes(size))
    peaks = []
    for work in (lambda a, b: compress(a, b, "static", taught(), segment=2 ** 18), lambda a, b: decompress(a, b, None)):
        source = "noise" if not peaks else "packed"
        with open(tmp_path / source, "rb") as a, open(tmp_path / "packed", "wb") if not peaks else Nothing() as b:
            tracemalloc.start()
            work(a, b)
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert max(peaks) < 8 * 2 ** 18


# --- what does not fit --------------------------------------------------------------------------------------------------

def test_a_file_cut_off_anywhere_is_refused():
    for size in {*range(100), *range(0, len(FILE), 7), *range(len(FILE) - 80, len(FILE))}:
        assert re.search("cut off|empty|damaged|not a compressed", refused(expand, FILE[:size]))


def test_a_file_cut_off_between_members_is_known_by_its_missing_index():
    places = np.cumsum([len(part) for part in parts(FILE)])
    for place in places[:-1]:
        assert "index" in refused(expand, FILE[:place])
        assert "index" in refused(expand, FILE[:place] + shrink(b"another file"))


@pytest.mark.parametrize("order", [[0, 1, 2, 4], [1, 2, 3, 4], [0, 2, 1, 3, 4], [0, 0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 4]])
@pytest.mark.parametrize("file", [FILE, NOISY], ids=["text", "noise"])
def test_segments_that_are_missing_doubled_or_exchanged_are_noticed(file, order):
    said = refused(expand, b"".join(parts(file)[i] for i in order))
    assert re.search("does not fit the segments|SHA-256 mismatch", said)


def test_every_bit_of_an_index_is_guarded():
    index = parts(FILE)[-1]
    for bit in range(0, 8 * len(index), 3):
        damaged = bytearray(FILE)
        damaged[len(FILE) - len(index) + bit // 8] ^= 1 << bit % 8
        refused(expand, bytes(damaged))


def test_an_index_comes_back():
    entries, sha256 = [(2 ** 40, 2 ** 30), (0, 0), (127, 128)], bytes(range(32))
    assert read_index(write_index(entries, sha256)) == (entries, sha256)


@pytest.mark.parametrize("size", [2 ** 31 + 1, 2 ** 60])
def test_a_member_that_claims_too_much_is_refused_at_once(size):
    said = refused(expand, MAGIC + b"\4" + archive.number(size) + bytes(2000))
    assert "claims a part of" in said


def test_a_claim_takes_no_memory():
    tracemalloc.start()
    for kind in (0, 4, INDEX, MODEL, 200):
        for size in (2 ** 30, 2 ** 31 - 100):
            refused(expand, MAGIC + bytes([kind]) + archive.number(size) + bytes(2000))
    refused(expand, write_index([], bytes(32))[:6] + b"\xff\xff\xff\xff\x7f" + bytes(100))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 ** 7


@pytest.mark.parametrize("kind", [7, 63, 65, 127])
def test_a_member_that_must_not_be_skipped_is_refused(kind):
    member = bytearray(skippable(200, b"content"))
    member[4] = kind
    assert f"kind {kind}" in refused(expand, FILE + bytes(member))


@pytest.mark.parametrize("more", [b"\0", b"\n", b"more", b"\x89GZ", LICENSE])
def test_bytes_behind_the_end_are_refused(more):
    assert re.search("no part of a compressed file|cut off|too early", refused(expand, FILE + more))


def test_the_input_may_not_change_while_it_is_compressed(tmp_path):
    (tmp_path / "file").write_bytes(TEXT)
    task = archive.Encode(archive.Range(str(tmp_path / "file"), 1, 400), 400, archive.short_hash(TEXT[:400]), False, "fast", 18,
                          archive.Tools(None, b""))
    assert "changed while" in refused(task)


# --- models -------------------------------------------------------------------------------------------------------------

def test_an_embedded_model_is_all_that_a_file_needs():
    model = packed.unpack(packed.pack(taught()))[0]
    out = io.BytesIO()
    compress(io.BytesIO(TEXT), out, "static", model, segment=900, embedded=packed.pack(taught()))
    assert [part[4] for part in parts(out.getvalue())] == [MODEL, 1, 1, 1, INDEX]
    two = skippable(MODEL, packed.pack(GPT(TINY, 5))) + out.getvalue() + NOISY
    for file, original in (out.getvalue(), TEXT), (two, TEXT + NOISE):
        assert expand(file, find=None) == original
        part = io.BytesIO()
        extract(io.BytesIO(file), part, 1000, 1900, None)
        assert part.getvalue() == original[1000:1900]
        left = io.BytesIO()
        assert salvage(file, left, None).missing == [] and left.getvalue() == original


def test_a_damaged_embedded_model_is_told():
    file = skippable(MODEL, packed.pack(taught())[:-1]) + shrink(TEXT, "static")
    assert "model in the file cannot be read" in refused(expand, file)


def test_the_model_is_asked_for_once():
    asked = []
    assert expand(shrink(TEXT, "static"), lambda name: asked.append(name) or taught()) == TEXT
    assert asked == [short_fingerprint(taught())]


# --- a part of a file ---------------------------------------------------------------------------------------------------

JOINED = skippable(PARITY, b"x") + FILE + skippable(PARITY, b"parity") + shrink(b"") + NOISY + shrink(b"alone") + FILE
ORIGINAL = TEXT + NOISE + b"alone" + TEXT


@pytest.mark.parametrize("start, stop", [(0, 0), (0, 1), (499, 501), (500, 1000), (1999, 4004), (0, 6005), (6005, 6005),
                                         (6004, None)])
def test_a_range_is_that_part_of_the_original(start, stop):
    out = io.BytesIO()
    extract(io.BytesIO(JOINED), out, start, stop, None)
    assert out.getvalue() == ORIGINAL[start:stop]


@pytest.mark.parametrize("start, stop", [(0, 6006), (6006, None), (-1, 3), (9, 8)])
def test_a_range_that_is_not_there_is_refused(start, stop):
    assert "the original has 6,005 bytes" in refused(extract, io.BytesIO(JOINED), io.BytesIO(), start, stop, None)


class Watched(io.BytesIO):
    def __init__(self, data):
        super().__init__(data)
        self.count = 0

    def read(self, size=-1):
        data = super().read(size)
        self.count += len(data)
        return data


def test_of_a_large_file_only_the_index_and_the_segments_needed_are_read():
    data = NOISE * 100
    file = Watched(shrink(data, segment=2000))
    out = io.BytesIO()
    extract(file, out, 101_000, 101_500, None)
    assert out.getvalue() == data[101_000:101_500] and file.count < 4000 < len(file.getvalue()) / 40


def test_within_a_segment_only_the_blocks_needed_are_decoded():
    file, seen, out = shrink(LICENSE * 3, "static", segment=None, block_bits=10), [], io.BytesIO()
    extract(io.BytesIO(file), out, 1100, 1200, lambda name: taught(), seen.append)
    assert out.getvalue() == (LICENSE * 3)[1100:1200] and sum(seen) == 1024


def test_the_table_is_that_of_the_segments_with_or_without_an_index():
    for file in (FILE, NOISY, JOINED, FILE + skippable(200, b""), skippable(PARITY, b"") + NOISY):
        segments = [part for part in table(io.BytesIO(file)) if part.length]
        found = [member for member in members(io.BytesIO(file)) if member.kind in NAMES and read(member.data)[0].length]
        assert [(part.place, part.size, part.length) for part in segments] == [
            (member.place, member.size, read(member.data)[0].length) for member in found]


@settings(deadline=None, max_examples=200)
@given(st.integers(0, len(JOINED) - 1), st.integers(1, 255), st.integers(0, len(JOINED)))
def test_of_a_damaged_file_a_range_is_right_or_refused(place, change, cut):
    file = JOINED[:place] + bytes([JOINED[place] ^ change]) + JOINED[place + 1:][:cut]
    out = io.BytesIO()

    def nowhere(fingerprint):                       # a change of the mode can make a segment name a model
        raise CoderError("there is no such model")
    try:
        extract(io.BytesIO(file), out, 400, 2100, nowhere)
    except CoderError:
        return
    assert len(out.getvalue()) == 1700


# --- what is left -------------------------------------------------------------------------------------------------------

def saved(file, find=lambda name: taught()):
    out = io.BytesIO()
    result = salvage(file, out, find)
    assert result.written == len(out.getvalue())
    return out.getvalue(), result.missing


def test_a_whole_file_is_saved_wholly():
    assert saved(JOINED) == (ORIGINAL, [])


@pytest.mark.parametrize("file, original", [(FILE, TEXT), (NOISY, NOISE)], ids=["text", "noise"])
@pytest.mark.parametrize("segment", range(4))
@pytest.mark.parametrize("where", ["magic", "header", "block"])
def test_a_damaged_segment_takes_nothing_else_with_it(file, original, segment, where):
    place = sum(map(len, parts(file)[:segment])) + {"magic": 1, "header": 12, "block": len(parts(file)[segment]) - 3}[where]
    start, stop = 500 * segment, 500 * (segment + 1)
    damaged = file[:place] + bytes([file[place] ^ 16]) + file[place + 1:]
    assert saved(damaged) == (original[:start] + original[stop:], [(start, stop)])


@pytest.mark.parametrize("segment", range(4))
@pytest.mark.parametrize("more", [b"", b"some bytes that were never there"])
def test_bytes_lost_or_inserted_take_one_segment(segment, more):
    place = sum(map(len, parts(FILE)[:segment])) + 40
    start, stop = 500 * segment, 500 * (segment + 1)
    assert saved(FILE[:place] + more + FILE[place + 7 * (not more):]) == (TEXT[:start] + TEXT[stop:], [(start, stop)])


def test_without_an_index_what_is_lost_has_no_known_length():
    file = parts(FILE)
    assert saved(b"".join(file[:3])) == (TEXT[:1500], [(1500, None)])
    assert saved(file[0] + b"?" + file[1][1:] + file[2] + file[3]) == (
        TEXT[:500] + TEXT[1000:], [(500, None), (1500, None)])


def test_of_a_file_cut_off_in_a_segment_its_first_blocks_are_left():
    data = LICENSE * 3
    file = shrink(data, "static", segment=2500, block_bits=10)
    cut = file[:sum(map(len, parts(file)[:1])) - 100]
    assert saved(cut) == (data[:2048], [(2048, 2500), (2500, None)])


def test_joined_files_are_saved_one_by_one():
    damaged = bytearray(FILE + NOISY)
    damaged[len(FILE) + 3] ^= 1
    damaged[30] ^= 1
    assert saved(bytes(damaged)) == (TEXT[500:] + NOISE[500:], [(0, 500), (2000, 2500)])


@pytest.mark.parametrize("file", [b"", b"nothing like it", FILE[:25], bytes(1000)])
def test_of_nothing_nothing_is_left(file):
    assert re.search("empty|no part of the file is intact", refused(saved, file))


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_whatever_happens_what_is_saved_was_there(data):
    """Bytes of the original, in order; and as many as are said to be left."""
    file = bytearray(NOISY + FILE)
    for _ in range(data.draw(st.integers(1, 3))):
        a = data.draw(st.integers(0, len(file)))
        file[a:a + data.draw(st.integers(0, 300))] = data.draw(st.binary(max_size=30))
    try:
        found, missing = saved(bytes(file))
    except CoderError:
        return
    segments = [(NOISE + TEXT)[i:i + 500] for i in range(0, 4000, 500)]
    assert len(found) % 500 == 0 and all(found[i:i + 500] in segments for i in range(0, len(found), 500))
    if found != NOISE + TEXT:
        assert missing


def test_a_ledger_compares_what_the_index_says():
    ledger = Ledger()
    ledger.entries += [(40, 0), (30, 4), (31, 5)]
    ledger.sha256.update(b"Hi there!")
    ledger.compare(ledger.index())
    assert read_index(ledger.index())[0] == ledger.entries
    ledger.entries[1] = (30, 5)
    assert "does not fit" in refused(ledger.compare, write_index([(30, 4), (31, 5)], ledger.sha256.digest()))

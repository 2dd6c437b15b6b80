"""Segments: the format as docs/FORMAT.md tells it, every kind of input there and back, and files that are not whole."""

import io
import random
import re
import sys
import tracemalloc
import zlib
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coder import codec
from coder import predictor as predictors
from coder.archive import compress as compress_all
from coder.archive import skippable
from coder.compressor import compress, decompress, salvage
from coder.container import MAGIC, MODES, CoderError, Header, begin, read, write
from coder.container import number as as_number
from coder.models import short_fingerprint
from coder.verify import LICENSE
from minigpt.model import GPT
from tests.golden_coder import TINY, taught

TEXT = 3 * LICENSE              # four blocks of 2^10 bytes, the last one shorter
SCRATCH = pytest.param("scratch", marks=pytest.mark.slow)       # hundreds of training steps, even on a few kilobytes
modes = pytest.mark.parametrize("mode", ["static", "online", SCRATCH, "fast"])


@pytest.fixture(autouse=True)
def scratch_is_tiny(monkeypatch):
    monkeypatch.setattr(predictors, "SCRATCH", TINY)


@cache
def shrink(data, mode="static", block_bits=10, primer=b""):
    return compress(data, mode, taught() if mode in ("static", "online") else None, block_bits=block_bits, primer=primer)


def expand(file, primer=b""):
    return decompress(file, lambda fingerprint: taught(), primer=primer)


def refused(function, *arguments):
    """The one line that a CoderError says."""
    with pytest.raises(CoderError) as caught:
        function(*arguments)
    sentence = str(caught.value)
    assert sentence and "\n" not in sentence
    return sentence


class Parts:
    """A segment taken apart by the tables in docs/FORMAT.md, which shares no code with the program: fields can be changed, and
    put together again with right sizes and checksums."""

    def __init__(self, file):
        self.kind, self.place, self.file = file[4], 5, file
        self.size = self.number()
        self.version, self.flags = self.take(2)
        self.length, self.check = self.number(), self.take(8)
        self.model, self.primer = self.take(8 if self.flags & 32 else 0), self.take(8 if self.flags & 64 else 0)
        k = self.flags & 31
        n = (self.length + 2 ** k - 1) // 2 ** k if 10 <= k <= 24 else 0
        self.table = [(self.number(), int.from_bytes(self.take(4), "little")) for _ in range(n)]
        self.header = self.place
        assert int.from_bytes(self.take(4), "little") == zlib.crc32(file[:self.header])
        self.blocks = [self.take(taken // 2) for taken, _ in self.table]
        assert self.place == len(file)

    def take(self, size):
        self.place += size
        assert self.place <= len(self.file)
        return self.file[self.place - size:self.place]

    def number(self):
        value, shift = 0, 0
        while (byte := self.take(1)[0]) > 127:
            value, shift = value + (byte - 128 << shift), shift + 7
        return value + (byte << shift)

    def joined(self, **changes):
        """The segment with some fields changed; sizes and checksums are right, unless they are changed."""
        f = {**vars(self), **changes}
        table = changes.get("table") or [(taken, zlib.crc32(block)) for (taken, _), block in zip(f["table"], f["blocks"])]
        head = bytes([f["version"], f["flags"]]) + as_number(f["length"]) + f["check"] + f["model"] + f["primer"]
        head += b"".join(as_number(taken) + crc.to_bytes(4, "little") for taken, crc in table)
        blocks = b"".join(f["blocks"])
        head = MAGIC + bytes([f["kind"]]) + as_number(changes.get("size", len(head) + 4 + len(blocks))) + head
        return head + zlib.crc32(head).to_bytes(4, "little") + blocks


def forged(file, **changes):
    return Parts(file).joined(**changes)


def header_size(file):
    """Bytes before the blocks."""
    return Parts(file).header + 4


def repaired(file):
    """The file with every checksum made right, so that only the SHA-256 of the original still tells; as far as it is one."""
    try:
        _, fields, _ = begin(file)
        _, flags = fields.take(2)
        k, length = flags & 31, fields.number()
        fields.take(8 + (flags >> 2 & 8) + (flags >> 3 & 8))
        entries = []
        for _ in range(-(-length >> k) if 10 <= k <= 24 else 0):
            entries.append((fields.number() >> 1, fields.place))
            fields.take(4)
    except CoderError:
        return file
    place = (end := fields.place) + 4
    if place > len(file):
        return file
    for taken, at in entries:
        file = file[:at] + zlib.crc32(file[place:place + taken]).to_bytes(4, "little") + file[at + 4:]
        place += taken
    return file[:end] + zlib.crc32(file[:end]).to_bytes(4, "little") + file[end + 4:]


def flipped(file, byte, bit=0):
    return file[:byte] + bytes([file[byte] ^ 1 << bit]) + file[byte + 1:]


# --- the format -------------------------------------------------------------------------------------------------------

def read_by_the_table(file):
    """As docs/FORMAT.md says, offset by offset."""
    parts = Parts(file)
    assert file[0:4] == bytes.fromhex("89 47 5A 06") and parts.size == len(file) - len(MAGIC) - 1 - len(as_number(parts.size))
    mode = {0: "stored", 1: "static", 2: "online", 3: "scratch", 4: "fast", 5: "tokens", 6: "online tokens"}[parts.kind]
    assert all(zlib.crc32(block) == crc for block, (_, crc) in zip(parts.blocks, parts.table))
    header = Header(mode, parts.version, parts.flags % 32, parts.length, parts.check, parts.model, parts.primer,
                    parts.flags > 127)
    return header, [(block, taken % 2 == 1) for block, (taken, _) in zip(parts.blocks, parts.table)]


@st.composite
def files(draw):
    """A header and payloads that fit it."""
    k = draw(st.integers(10, 12) | st.just(24))
    length = draw(st.integers(0, 4 << k if k < 20 else 99))
    mode, name = draw(st.sampled_from(list(MODES))), st.binary(min_size=8, max_size=8)
    header = Header(mode, draw(st.sampled_from(MODES[mode].versions)), k, length, draw(name), draw(st.just(b"") | name),
                    draw(st.just(b"") | name), draw(st.booleans()))
    payloads = []
    for start in range(0, length, 1 << k):
        stored = draw(st.booleans())
        payloads.append((bytes(min(1 << k, length - start)) if stored else draw(st.binary(max_size=50)), stored))
    return header, payloads


@settings(deadline=None)
@given(files())
def test_the_tables_say_all_that_a_reader_needs(parts):
    assert read_by_the_table(write(*parts)) == parts


@settings(deadline=None)
@given(files())
def test_what_was_written_is_read(parts):
    header, blocks = read(write(*parts))
    assert (header, [(block.payload, block.stored) for block in blocks]) == parts
    assert all(block.whole for block in blocks)
    assert [block.start for block in blocks] == list(range(0, header.length, 1 << header.block_bits))
    assert sum(block.size for block in blocks) == header.length


def test_compressed_files_follow_the_table():
    header, blocks = read_by_the_table(shrink(TEXT))
    assert (header.mode, header.block_bits, header.length) == ("static", 10, len(TEXT))
    assert header.fingerprint == short_fingerprint(taught()) and len(blocks) == 4


@pytest.mark.parametrize("file, says", [
    (b"", "the file is empty"),
    (b"\x89", "not a compressed file of this program|cut off"),
    (b"\x89GZ\6", "cut off"),
    (b"\x89GZ\6\0", "cut off"),
    (b"\x89PNG\r\n\x1a\n", "not a compressed file of this program"),
    (b"\x1f\x8b\x08" + bytes(100), "not a compressed file of this program"),
    (b"\n", "not a compressed file of this program"),
    (b"\x89GZ\x07" + bytes(100), "format version 7, .* a newer program"),
    (b"\x89GZ\xff" + bytes(200), "format version 255, .* a newer program"),
    (b"\x89GZ\n\x05" + bytes(200), "format version 5, but this program reads only 6: it needs the older program"),
    (b"\x89GZ\n\x03" + bytes(200), "format version 3, .* older program"),
    (b"\x89GZ\6\x07" + bytes(200), "member of kind 7, .* newer program"),
    (b"\x89GZ\6\x41" + bytes(200), "member of kind 65, .* newer program"),
])
def test_a_file_that_is_something_else_is_told_from_one_that_is_damaged(file, says):
    assert re.search(says, refused(read, file))


EMPTY = write(Header("stored", 1, 10, 0, bytes(8)), [])            # no table: k says nothing about its place


@pytest.mark.parametrize("changes, says", [
    (dict(version=0), "version 0 of the mode stored"), (dict(version=2), "version 2 of the mode stored"),
    (dict(flags=9), "2^9 "), (dict(flags=25), "2^25 "), (dict(flags=0), "2^0 "), (dict(flags=31), "2^31 "),
])
def test_a_header_that_this_version_does_not_know_is_refused(changes, says):
    assert says in refused(read, forged(EMPTY, **changes))


def test_a_segment_that_is_larger_than_the_largest_is_refused():
    entries = 2 ** 6 + 1
    blocks = [bytes(4)] * entries
    file = write(Header("fast", 1, 24, 2 ** 30 + 1, bytes(8)), [(block, False) for block in blocks])
    assert f"{2 ** 30 + 1:,} bytes in a segment" in refused(read, file)


@pytest.mark.parametrize("data", [b"", LICENSE], ids=["no block", "two blocks"])
def test_every_bit_of_the_header_is_guarded(data):
    file = shrink(data)
    for byte in range(header_size(file)):
        for bit in range(8):
            refused(read, flipped(file, byte, bit))


def test_a_file_cut_off_in_its_header_is_refused_wherever():
    file = shrink(LICENSE)
    for length in range(1, header_size(file)):
        assert re.search("cut off|not a compressed file" if length < 5 else "cut off", refused(read, file[:length]))


def test_a_file_cut_off_behind_its_header_has_blocks_that_are_not_whole():
    file = shrink(TEXT)
    whole = [sum(block.whole for block in read(file[:length])[1]) for length in range(header_size(file), len(file) + 1)]
    assert whole == sorted(whole) and (whole[0], whole[-2], whole[-1]) == (0, 3, 4)


@pytest.mark.parametrize("more", [b"\0", b"\n", b"more", LICENSE])
def test_a_file_that_goes_on_behind_its_end_is_refused(more):
    assert re.search("byte.* follow", refused(expand, shrink(LICENSE) + more))


@pytest.mark.parametrize("taken", [0, 1, 51, 53, 1024, 2 ** 31 - 1])
def test_a_stored_block_of_another_size_is_refused(taken):
    file = write(Header("stored", 1, 10, 1076, bytes(8)), [(bytes(1024), True), (bytes(52), True)])
    (first, _), (_, crc) = Parts(file).table
    assert "block 2 is stored" in refused(read, forged(file, table=[(first, zlib.crc32(bytes(1024))), (2 * taken + 1, crc)]))


@pytest.mark.parametrize("size", [0, 1, 400, 2 ** 40])
def test_a_segment_of_another_size_than_its_blocks_is_refused(size):
    assert re.search("take .* bytes, but the whole|cut off", refused(read, forged(shrink(LICENSE), size=size)))


@pytest.mark.parametrize("bytes_", ["80", "8000", "ff" * 9, "80" * 9 + "01", "ff" * 9 + "7f"])
def test_a_number_has_one_form(bytes_):
    file = MAGIC + b"\0" + bytes.fromhex(bytes_) + bytes(100)
    assert re.search("a number in it is too large, or longer|cut off", refused(read, file))


@given(st.integers(0, 2 ** 63 - 1))
def test_numbers_come_back(value):
    _, fields, end = begin(MAGIC + b"\0" + as_number(value))
    assert end == fields.place + value and len(as_number(value)) == max(1, -(-value.bit_length() // 7))


@pytest.mark.parametrize("length", [2 ** 20, 2 ** 30, 2 ** 40, 2 ** 60, 2 ** 63 - 1])
@pytest.mark.parametrize("k", [10, 24, 31])
def test_a_promised_length_takes_no_memory(k, length):
    file = forged(shrink(LICENSE), flags=32 + k, length=length)
    tracemalloc.start()
    refused(expand, file)
    refused(read, repaired(file)) if length > 2 ** 24 else None
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 ** 6


# --- examples ---------------------------------------------------------------------------------------------------------

def test_the_examples_are_what_the_program_writes():
    """Every example in docs/FORMAT.md, whole and in order."""
    text = (Path(__file__).parents[1] / "docs" / "FORMAT.md").read_text("utf-8")
    shown = [bytes.fromhex(" ".join(re.findall(r"^    ((?:[0-9A-F]{2} )*[0-9A-F]{2})(?:  |$)", block, re.MULTILINE)))
             for block in re.split(r"\n\n(?!    )", text) if "\n    89 47 5A 06 " in "\n" + block]
    archive = io.BytesIO()
    compress_all(io.BytesIO(b"Hi there"), archive, "fast", segment=4)
    na = b" ".join([b"na"] * 16) + b"\n"
    assert shown == [compress(b"", "fast"), compress(b"Hi", "fast"), compress(na, "fast"), archive.getvalue(),
                     skippable(200, b"abc")]


# --- there and back ---------------------------------------------------------------------------------------------------

CHINESE = """千里之行，始于足下。三人行，必有我师焉。学而时习之，不亦说乎？有朋自远方来，不亦乐乎？
床前明月光，疑是地上霜。举头望明月，低头思故乡。空山新雨后，天气晚来秋。明月松间照，清泉石上流。
机器从前面的字猜下一个字：猜得准，就省下几个比特；猜得不准，就多花几个，可是一个字也不会丢。\n""".encode()
KINDS = {
    "empty": b"",
    "one byte": b"\x8a",
    "all bytes": bytes(range(256)),
    "noise": np.random.default_rng(0).bytes(5000),
    "a run": b"\0" * 3000,
    "English": TEXT,
    "Chinese": 3 * CHINESE,
    "a program": Path(sys.executable).read_bytes()[:20_000],
    "noise in text": TEXT[:1500] + np.random.default_rng(1).bytes(1500) + TEXT[:1500],
}


@modes
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_comes_back(kind, mode):
    assert expand(shrink(KINDS[kind], mode, block_bits=14 if kind == "a program" else 11)) == KINDS[kind]


@modes
@settings(deadline=None, max_examples=15)
@given(data=st.binary(max_size=60) | st.builds(lambda unit, n: unit * n, st.binary(min_size=1, max_size=4), st.integers(0, 40)))
def test_anything_comes_back(mode, data):
    predictors.SCRATCH = TINY                    # hypothesis goes round without the fixture
    assert expand(shrink(data, mode)) == data


@modes
@pytest.mark.parametrize("block_bits", [10, 24])
def test_text_becomes_smaller_in_blocks_of_any_size(block_bits, mode):
    file = shrink(TEXT, mode, block_bits)
    assert len(file) < len(TEXT) and expand(file) == TEXT


@modes
def test_the_same_input_gives_the_same_file(mode):
    assert shrink.__wrapped__(LICENSE, mode) == shrink.__wrapped__(LICENSE, mode)


@pytest.mark.parametrize("size", [0, 1, 1024, 100_000])
def test_noise_becomes_at_most_32_bytes_longer(size):
    data = np.random.default_rng(2).bytes(size)
    file = compress(data, "static", taught())
    assert len(file) <= size + 32 and decompress(file, find_model=None) == data


@pytest.mark.parametrize("size", [10 ** 6, 2 ** 24, 2 ** 24 + 1])
def test_a_large_segment_that_does_not_compress_becomes_at_most_40_bytes_longer(size, monkeypatch):
    """Here no model is asked: every code is as long as its block."""
    monkeypatch.setattr(codec, "encode_block", lambda predictor, data, progress: data)
    data = bytes(size)
    file = compress(data, "static", taught())
    assert len(file) <= size + 40 and decompress(file, find_model=None) == data


def test_what_is_only_stored_needs_no_model():
    for data in (b"", b"x", KINDS["noise"]):
        file = shrink(data)
        assert read(file)[0].mode == "stored" and not read(file)[0].fingerprint
        assert decompress(file, find_model=None) == data
        assert salvage(file, find_model=None) == (data, [])


@modes
def test_a_block_is_stored_where_its_code_is_no_shorter(mode):
    data = LICENSE[:1024] + np.random.default_rng(3).bytes(1024) + LICENSE[:1024]
    file = shrink(data, mode)
    assert [block.stored for block in read(file)[1]] == [False, True, False]
    assert read(file)[1][1].payload == data[1024:2048]
    assert expand(file) == data


def test_the_model_is_not_changed():
    before = short_fingerprint(taught())
    expand(shrink.__wrapped__(LICENSE, "online"))
    assert short_fingerprint(taught()) == before


@modes
def test_progress_reaches_the_end(mode):
    for data in (TEXT, KINDS["noise"]):
        read_bytes = []
        compress(data, mode, taught(), lambda count, taken: read_bytes.append(count), block_bits=11)
        assert sum(read_bytes) == len(data)


# --- the primer -------------------------------------------------------------------------------------------------------

mixing_modes = pytest.mark.parametrize("mode", ["online", SCRATCH, "fast"])


@mixing_modes
def test_a_primed_file_is_smaller_and_comes_back_with_its_primer(mode):
    data = LICENSE[500:]
    file = shrink(data, mode, primer=LICENSE[:700])
    assert len(file) + 20 < len(shrink(data, mode)) and expand(file, LICENSE[:700]) == data


@mixing_modes
def test_a_file_without_a_primer_opens_whatever_primer_is_named(mode):
    assert expand(shrink(LICENSE, mode), primer=b"not asked for") == LICENSE


@mixing_modes
@pytest.mark.parametrize("primer, says", [(b"", "needs the primer .*decompress --prime"), (TEXT[:-1], "but that of this one")])
def test_a_missing_or_wrong_primer_is_told_before_anything_is_decoded(mode, primer, says, monkeypatch):
    file = shrink(LICENSE, mode, primer=TEXT)
    monkeypatch.setattr(codec, "decode_block", None)
    said = refused(expand, file, primer)
    assert re.search(says, said) and read(file)[0].primer.hex() in said
    assert re.search(says, refused(salvage, file, lambda fingerprint: taught(), lambda count: None, primer))


def test_a_primer_is_refused_where_nothing_is_mixed():
    assert "static" in refused(lambda: shrink(LICENSE, primer=TEXT))


@mixing_modes
def test_what_a_primer_does_not_help_is_stored_and_needs_none(mode):
    noise = np.random.default_rng(4).bytes(2000)
    file = shrink(noise, mode, primer=TEXT)
    assert read(file)[0].mode == "stored" and expand(file) == noise and len(file) <= 2000 + 32


# --- the wrong model --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("mode", ["static", "online"])
def test_another_model_is_told_by_both_names(mode):
    other = GPT(TINY, seed=2)
    said = refused(decompress, shrink(TEXT, mode), lambda fingerprint: other)
    assert short_fingerprint(taught()).hex() in said and short_fingerprint(other).hex() in said


def test_the_model_is_asked_for_once_and_by_its_name():
    asked = []
    decompress(shrink(TEXT), lambda fingerprint: asked.append(fingerprint) or taught())
    assert asked == [short_fingerprint(taught())]


@pytest.mark.parametrize("mode", [SCRATCH, "fast"])
def test_scratch_and_fast_ask_for_no_model(mode):
    assert decompress(shrink(LICENSE, mode), find_model=None) == LICENSE


def test_what_find_model_says_reaches_the_person():
    def find_model(fingerprint):
        raise CoderError("there is none")
    assert refused(decompress, shrink(TEXT), find_model) == "there is none"


def test_a_model_of_characters_is_refused_both_ways():
    characters = GPT(replace(TINY, vocab_size=65), seed=1)
    assert "65 tokens" in refused(compress, TEXT, "static", characters)
    assert "65 tokens" in refused(decompress, shrink(TEXT), lambda fingerprint: characters)


@pytest.mark.parametrize("change", [dict(block_size=32), dict(activation="relu")])
def test_a_model_with_the_same_weights_and_another_config_has_another_name(change):
    assert short_fingerprint(GPT(replace(TINY, **change), seed=1)) != short_fingerprint(GPT(TINY, seed=1))


@pytest.mark.parametrize("mode", ["stored", "Static", ""])
def test_an_unknown_mode_is_refused(mode):
    with pytest.raises(ValueError, match="mode must be one of"):
        compress(TEXT, mode, taught())


@pytest.mark.parametrize("mode", ["static", "online"])
def test_a_mode_that_needs_a_model_says_so(mode):
    with pytest.raises((ValueError, CoderError)):
        compress(TEXT, mode)


@pytest.mark.parametrize("block_bits", [0, 9, 25])
def test_a_size_of_blocks_that_the_format_has_not_is_refused(block_bits):
    with pytest.raises(ValueError):
        shrink(LICENSE, block_bits=block_bits)


# --- damage -----------------------------------------------------------------------------------------------------------

def damaged(file, block):
    """The file with one bit of that block's payload flipped."""
    *before, payload = [b.payload for b in read(file)[1][:block + 1]]
    return flipped(file, header_size(file) + sum(map(len, before)) + len(payload) // 2, 3)


@pytest.mark.parametrize("block", range(4))
@modes
def test_a_damaged_block_is_named_before_anything_is_decoded(mode, block):
    said = refused(decompress, damaged(shrink(TEXT, mode), block), None)
    last = min(1024 * block + 1023, len(TEXT) - 1)
    assert f"block {block + 1} of 4 (bytes {1024 * block:,} to {last:,} of the original) is damaged" in said


@pytest.mark.parametrize("block", range(4))
def test_static_blocks_are_salvaged_one_by_one(block):
    start, stop = 1024 * block, min(1024 * (block + 1), len(TEXT))
    data, missing = salvage(damaged(shrink(TEXT), block), lambda fingerprint: taught())
    assert missing == [(start, stop)] and data == TEXT[:start] + TEXT[stop:]


@pytest.mark.parametrize("mode", ["online", SCRATCH, "fast"])
def test_a_learning_model_is_lost_from_the_first_damaged_block_on(mode):
    data, missing = salvage(damaged(shrink(TEXT, mode), 1), lambda fingerprint: taught())
    assert missing == [(1024, 2048), (2048, 3072), (3072, len(TEXT))] and data == TEXT[:1024]


@pytest.mark.parametrize("mode", ["online", SCRATCH, "fast"])
def test_after_a_damaged_block_a_learning_model_is_not_even_asked(mode, monkeypatch):
    """It has not learned what it should have, and would decode to something else."""
    file = damaged(shrink(TEXT, mode), 1)
    monkeypatch.setattr(codec, "decode_block", lambda predictor, code, size, progress: bytes(size))
    data, missing = salvage(file, lambda fingerprint: taught())
    assert data == bytes(1024) and len(missing) == 3


@modes
def test_of_a_file_that_was_cut_off_the_first_blocks_are_salvaged(mode):
    file = shrink(TEXT, mode)
    third = header_size(file) + sum(len(block.payload) for block in read(file)[1][:2])
    data, missing = salvage(file[:third], lambda fingerprint: taught())
    assert data == TEXT[:2048] and missing == [(2048, 3072), (3072, len(TEXT))]


def test_a_whole_file_is_salvaged_wholly():
    assert salvage(shrink(TEXT), lambda fingerprint: taught()) == (TEXT, [])


def test_salvage_of_the_header_alone_gives_nothing():
    file = shrink(TEXT)
    data, missing = salvage(file[:header_size(file)], find_model=None)
    assert data == b"" and missing[0][0] == 0 and missing[-1][1] == len(TEXT)


def test_the_sha256_has_the_last_word():
    said = refused(expand, forged(shrink(TEXT), check=bytes(8)))
    assert "SHA-256" in said


def test_salvage_without_a_missing_block_is_checked_by_the_sha256():
    refused(salvage, forged(shrink(TEXT), check=bytes(8)), lambda fingerprint: taught())


def test_bytes_behind_the_end_do_not_hinder_salvage():
    assert salvage(shrink(TEXT) + b"\0", lambda fingerprint: taught())[0] == TEXT


# --- mutations --------------------------------------------------------------------------------------------------------

INTERESTING = [0, 1, 2, 3, 9, 10, 11, 24, 25, 63, 64, 127, 128, 255]


def mutated(file, rng):
    """The file after one to three random accidents."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        a, b = sorted(rng.choices(range(len(file) + 1), k=2))
        c, d = (rng.randrange(size + 1) for size in (a, len(file) - b))
        kind = rng.randrange(9)
        if kind <= 1:                                                       # flip a bit
            file = flipped(file, min(a, len(file) - 1), rng.randrange(8)) if file else file
        elif kind == 2:                                                     # cut
            file = file[:a]
        elif kind == 3:                                                     # insert
            file = file[:a] + rng.randbytes(rng.randrange(1, 20)) + file[a:]
        elif kind == 4:                                                     # delete
            file = file[:a] + file[min(b, a + 20):]
        elif kind == 5:                                                     # swap two neighbouring ranges
            file = file[:c] + file[a:b] + file[c:a] + file[b:]
        elif kind == 6:                                                     # overwrite with zeros, or noise
            file = file[:a] + (bytes(b - a) if rng.random() < 0.5 else rng.randbytes(b - a)) + file[b:]
        elif kind == 7:                                                     # repeat a range
            file = file[:b] + file[a:b] + file[b:b + d]
        else:                                                               # a field of the header
            place = rng.randrange(min(len(file), 64)) if file else 0
            file = file[:place] + bytes([rng.choice(INTERESTING)]) + file[place + 1:]
    return file


def original_or_refused(file, original):
    """Whether it was decoded."""
    try:
        assert expand(file) == original
        return True
    except CoderError as error:
        assert "\n" not in str(error)
        return False


@modes
def test_a_mutated_file_is_the_original_or_refused(mode):
    file, rng, tried = shrink(TEXT, mode), random.Random(mode), 0
    while tried < 3500:
        mutant = mutated(file, rng)
        if mutant != file:
            tried += 1
            assert not original_or_refused(mutant, TEXT), mutant.hex()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@modes
def test_a_mutated_file_with_right_checksums_is_the_original_or_refused(mode):
    """So the decoder itself gets codes that nobody made, of lengths that nobody meant."""
    original = LICENSE[:90] if mode == "static" else 8 * b"scratch and "
    file, rng = shrink(original, mode), random.Random(mode)
    assert read(file)[0].mode == mode
    results = [original_or_refused(repaired(mutated(file, rng)), original) for _ in range(120)]
    assert sum(results) < 60                    # some accidents cancel out, or hit what says nothing


@pytest.mark.parametrize("mode", range(5))
@pytest.mark.parametrize("k", [10, 17, 24])
@pytest.mark.parametrize("length", [0, 1, 89, 91, 1023])
def test_a_header_that_lies_with_right_checksums_is_refused(mode, k, length):
    file = shrink(LICENSE[:90])
    table = Parts(file).table if length else []
    blocks = Parts(file).blocks if length else []
    refused(expand, forged(file, kind=mode, flags=32 + k, length=length, table=table, blocks=blocks))


def test_a_block_that_claims_16_megabytes_is_given_up_at_once():
    assert "does not decode" in refused(expand, forged(shrink(LICENSE[:90]), flags=32 + 24, length=2 ** 24))


@pytest.mark.parametrize("mode", ["static", "online"])
def test_a_code_that_is_said_to_be_stored_is_refused(mode):
    file = shrink(LICENSE[:90], mode)
    ((taken, crc),) = Parts(file).table
    refused(expand, forged(file, table=[(taken + 1, crc)]))

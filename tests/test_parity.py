"""The Reed-Solomon code: galois is the oracle, and whatever happens to k slices is mended."""

import doctest
import hashlib
import io
import random
import re
import zlib
from itertools import combinations
from itertools import product as product_of
from math import comb
from pathlib import Path

import galois
import numpy as np
import pytest

from coder import parity
from coder.__main__ import main
from coder.archive import decompress
from coder.container import SALVAGE, CoderError, Header, write
from coder.parity import Mended, cauchy, choose, encode, inverse, multiply, product, protect, repair
from coder.protected import mended
from coder.slices import HEAD, MAGIC, SIZE, Plan, checksum, find, slide

GF = galois.GF(2 ** 8, irreducible_poly=0x11D)
ALL = np.arange(256, dtype=np.uint8)


def noise(size, seed=1):
    return np.random.default_rng(seed).bytes(size)


def planned(data, size, d, k):
    """The data, protected by codes of at most d slices of this size and k of parity."""
    plan = Plan(len(data), size, d, k, hashlib.sha256(data).digest()[:8])
    return plan, data + encode(plan.cut(np.frombuffer(data, np.uint8)), plan)


def spans(plan):
    """(start, stop) of each slice of data and each record but number 0 in the protected file."""
    data = [(i * plan.size, min((i + 1) * plan.size, plan.length)) for i in range(plan.slices)]
    return data + [(plan.place(n), plan.place(n + 1)) for n in range(1, plan.records)]


def flipped(file, *offsets):
    file = bytearray(file)
    for offset in offsets:
        file[offset] ^= 0x10
    return bytes(file)


SMALL = noise(295)
PLAN, FILE = planned(SMALL, 30, 10, 4)           # 10 slices of data, the last of 25 bytes, and 4 of parity


# --- the field and the code -------------------------------------------------------------------------------------------

def test_the_docstring_tells_the_truth():
    assert doctest.testmod(parity) == (0, 1)


def test_products_are_those_of_galois():
    assert np.array_equal(product(ALL[:, None], ALL), GF(ALL)[:, None] * GF(ALL))


def test_bytes_are_a_field():
    a, b, c = ALL[:, None, None], ALL[:, None], ALL[::5]
    assert np.array_equal(product(product(a, b), c), product(a, product(b, c)))
    assert np.array_equal(product(a, b ^ c), product(a, b) ^ product(a, c))
    assert np.array_equal(product(ALL, 1), ALL)
    table = product(ALL[:, None], ALL)
    assert np.array_equal(table, table.T)
    assert all(np.count_nonzero(row == 1) == 1 for row in table[1:])            # one inverse


@pytest.mark.parametrize("k, d, w", [(1, 1, 1), (3, 5, 1), (2, 7, 33), (0, 3, 4), (4, 0, 4), (9, 20, 100)])
def test_the_kernel_multiplies_matrices_as_galois_does(k, d, w):
    rng = np.random.default_rng(k)
    matrix, data = (rng.integers(0, 256, shape, np.uint8) for shape in ((k, d), (d, 8 * w)))
    expected = GF(matrix) @ GF(data) if d and k else np.zeros((k, 8 * w), np.uint8)
    assert np.array_equal(multiply(matrix, data.view(np.uint64)).view(np.uint8), expected)


def test_the_kernel_multiplies_all_bytes():
    everywhere = np.tile(ALL, (1, 1)).view(np.uint64)
    assert np.array_equal(multiply(ALL[:, None].copy(), everywhere).view(np.uint8), product(ALL[:, None], ALL))


@pytest.mark.parametrize("k, d", [(1, 255), (6, 120), (120, 120), (128, 128), (255, 1)])
def test_the_matrix_is_cauchys(k, d):
    a, b = GF(255 - np.arange(k)), GF(np.arange(d))
    assert not set(a.tolist()) & set(b.tolist())
    assert np.array_equal(cauchy(k, d), GF(1) / (a[:, None] + b))


def test_every_square_part_of_a_cauchy_matrix_has_an_inverse():
    matrix = cauchy(4, 7)
    for size in range(1, 5):
        for rows in combinations(range(4), size):
            for columns in combinations(range(7), size):
                part = matrix[np.ix_(rows, columns)]
                assert np.array_equal(inverse(part), np.linalg.inv(GF(part)))


def test_large_parts_have_an_inverse():
    rng = np.random.default_rng(1)
    for size in (20, 60, 120):
        part = cauchy(120, 120)[np.ix_(*(np.sort(rng.permutation(120)[:size]) for _ in range(2)))]
        assert np.array_equal(GF(part) @ GF(inverse(part)), GF.Identity(size))


def test_parity_is_what_galois_computes():
    data = np.zeros(300, np.uint8)
    data[:295] = np.frombuffer(SMALL, np.uint8)
    expected = GF(cauchy(4, 10)) @ GF(data.reshape(10, 30))
    for row, number in zip(expected, range(1, 5)):
        end = PLAN.place(number + 1) - 4
        assert FILE[end - 30:end] == row.tobytes()


# --- any k of n -------------------------------------------------------------------------------------------------------

def test_every_pattern_of_k_damaged_slices_is_mended():
    places, patterns = spans(PLAN), list(combinations(range(14), 4))
    for pattern in patterns:
        data = sum(i < 10 for i in pattern)
        assert repair(flipped(FILE, *(places[i][1] - 1 for i in pattern))) == (FILE, Mended(14, data, 0, 4 - data, 0))
    assert len(patterns) == comb(14, 4)


def test_one_more_is_an_error_that_counts():
    places = spans(PLAN)
    for pattern in list(combinations(range(14), 5))[::7]:
        if min(pattern) < 10:
            at_least = "at least 5" if pattern[1] >= 10 else "5 of 14"           # without parity, there are no checksums
            with pytest.raises(CoderError, match=f"^{at_least} slices are damaged, but the parity can mend only 4$"):
                repair(flipped(FILE, *(places[i][0] for i in pattern)))


def test_the_data_is_intact_where_all_parity_is_lost():
    assert repair(flipped(FILE, *(stop - 9 for _, stop in spans(PLAN)[10:])))[0] == FILE
    assert repair(FILE[:PLAN.place(1)])[0] == FILE
    assert repair(b"12345" + FILE[:PLAN.place(1)])[0] == FILE


def test_any_bit_may_be_wrong():
    data = noise(200)
    file = data + protect(data, 5)
    for bit in range(8 * len(file)):
        damaged = bytearray(file)
        damaged[bit >> 3] ^= 1 << (bit & 7)
        whole, found = repair(bytes(damaged))
        assert whole == file and found.data + found.parity == 1


def test_the_end_may_be_cut_off():
    for size in range(PLAN.place(1), len(FILE)):
        assert repair(FILE[:size])[0] == FILE
    data = noise(1000)
    with pytest.raises(CoderError, match="^no intact parity is found in the file$"):
        repair((data + protect(data, 5))[:1000])


@pytest.mark.parametrize("inserted", [1, 2, 29, 30, 31, 1000])
def test_bytes_may_be_inserted_anywhere(inserted):
    for at in range(0, len(FILE) + 1, 1 if inserted == 1 else 7):
        whole, found = repair(FILE[:at] + noise(inserted, at) + FILE[at:])
        assert whole == FILE and found.surplus == inserted
        assert found.data + found.parity <= 1


@pytest.mark.parametrize("lost", [1, 2, 29, 30, 31, 60, 91])
def test_bytes_may_be_lost_anywhere(lost):
    for at in range(len(FILE) - lost + 1):
        whole, found = repair(FILE[:at] + FILE[at + lost:])
        assert whole == FILE and found.surplus == 0


def test_k_slices_may_be_damaged_in_any_way():
    """k at once: bits flipped, bytes inserted, bytes lost, overwritten with zeros or with noise, gone."""
    rng = np.random.default_rng(3)
    data = noise(3000)
    plan, file = planned(data, 100, 15, 3)
    for _ in range(300):
        chosen = {code + 2 * i for code in range(2) for i in rng.permutation(18)[:3]}       # of 15 of data, 3 of parity
        parts, at = [], 0
        for i, (start, stop) in enumerate(spans(plan)):
            part = file[start:stop]
            if i in chosen:
                place, kind = int(rng.integers(len(part))), rng.integers(6)
                part = [flipped(part, place), part[:place] + b"\x55" + part[place:], part[:place] + part[place + 3:],
                        bytes(len(part)), rng.bytes(len(part)), b""][kind]
            parts += file[at:start], part
            at = stop
        assert repair(b"".join(parts))[0] == file


def test_a_burst_is_shared_out_among_the_codes():
    data = noise(20_000)
    plan, file = planned(data, 100, 40, 2)
    size = (5 * 2 - 1) * 100 + 1                    # it touches at most 10 slices in a row, 2 of each code
    for at in range(0, len(data) - size, 333):
        whole, found = repair(file[:at] + bytes(size) + file[at + size:])
        assert whole == file and found.data in (10, 9)
    with pytest.raises(CoderError, match=r"^in code 1 of 5, 3 of 42 slices are damaged, but the parity can mend only 2$"):
        repair(bytes(1001) + file[1001:])


@pytest.mark.parametrize("size", [0, 1, 2, 7, 8, 9, 100, 1000, 4321, 100_000])
@pytest.mark.parametrize("percent", [1, 5, 12.5, 100])
def test_files_of_any_size_are_mended(size, percent):
    data = noise(size)
    file = data + protect(data, percent)
    (plan, _), = find(file)
    assert plan == choose(size, percent)._replace(digest=hashlib.sha256(data).digest()[:8])
    assert repair(file) == (file, Mended(plan.slices + plan.records - 1, 0, 0, 0, 0))
    for at in np.linspace(0, len(file) - 1, 9).astype(int):
        assert repair(flipped(file, at))[0] == file


# --- what it costs ----------------------------------------------------------------------------------------------------

def test_five_percent_cost_little_more():
    for length in [*range(100), *range(100, 3000, 29), *(int(10 ** (i / 20)) for i in range(69, 221, 3))]:
        for percent in (5, 7.5, 10, 33, 100):
            plan = choose(length, percent)
            cost = plan.place(plan.records) + SIZE - length
            assert cost <= 0.011 * percent * length + 200
            assert plan.k >= plan.d * percent / 100 and plan.k >= 1 and plan.d + plan.k <= 256
    plan = choose(295, 5)
    assert len(protect(SMALL, 5)) == plan.place(plan.records) + SIZE - 295
    assert (plan.k, choose(10 ** 6, 5).k, choose(10 ** 8, 5).k, choose(10 ** 8, 5).d) == (1, 6, 6, 120)


@pytest.mark.parametrize("percent", [0.9, 0, -5, 100.5, float("nan")])
def test_a_percentage_has_limits(percent):
    with pytest.raises(CoderError, match="parity must be from 1 to 100 percent"):
        protect(b"text", percent)


# --- several files, repeated contents, traps --------------------------------------------------------------------------

def test_joined_files_are_mended_each():
    other = noise(2500, 2)
    files = [FILE, other + protect(other, 20), FILE, FILE]
    joined = b"".join(files)
    starts = np.cumsum([0] + [len(file) for file in files])[:-1]
    assert repair(joined) == (joined, Mended(3 * 14 + repair(files[1])[1].slices, 0, 0, 0, 0))
    assert repair(flipped(joined, *(start + 3 for start in starts)))[0] == joined
    assert repair(flipped(joined, *(start + 3 for start in starts))[1:-1])[0] == joined


def test_a_tiny_file_that_is_cut_and_doubled_is_the_original_or_an_error():
    """The original comes twice only where nothing is damaged: from whole files, which were joined."""
    told = []
    rng = random.Random(3)
    for size, percent in product_of((1, 3, 8), (1, 30, 100)):
        data = rng.randbytes(size)
        file = write(Header("stored", 1, 24, size, hashlib.sha256(data).digest()[:8]), [(data, True)])
        file += protect(file, percent)
        for _ in range(60):
            damaged = file
            for _ in range(rng.randrange(1, 6)):
                i, j = sorted(rng.choices(range(len(damaged) + 1), k=2))
                damaged = rng.choice((damaged[:i] + damaged[j:], damaged[:j] + damaged[i:], damaged[:j], damaged[i:]))
            try:
                with mended(io.BytesIO(damaged), told.append) as source:
                    decompress(source, out := io.BytesIO(), None)
            except CoderError:
                continue
            finally:
                count = len(told)
                told.clear()
            assert out.getvalue() == data or not count, damaged.hex()


def test_a_protected_file_can_be_protected():
    data = b"a header, " + FILE + b" and more"
    plan, file = planned(data, 100, 20, 2)
    assert repair(file)[0] == file
    assert repair(flipped(file, 50, 400))[0] == file
    assert repair(file[:20] + noise(200) + file[20:])[0] == file


def test_exchanged_and_doubled_slices_are_put_right():
    places = [FILE[start:stop] for start, stop in spans(PLAN)]
    between = FILE[295:PLAN.place(1)]
    for i, j in [(0, 1), (2, 9), (10, 11), (10, 13)]:
        for parts in (places[:i] + [places[j]] + places[i + 1:j] + [places[i]] + places[j + 1:], places[:j] + places[i:]):
            whole, found = repair(b"".join(parts[:10] + [between] + parts[10:]) + PLAN.end)
            assert whole == FILE


def test_repeated_contents_are_found_where_they_moved():
    data = bytes(950) + noise(200) + b"ab" * 500 + bytes(500)
    plan, file = planned(data, 50, 60, 2)
    for at in (0, 10, 949, 1000, 1200, 2000, len(data)):
        for inserted in (1, 2, 30, 49, 77):
            assert repair(file[:at] + bytes(inserted) + file[at:])[0] == file
            assert repair(file[:at] + file[at + inserted:] if inserted < 50 else file)[0] == file


def test_a_match_by_chance_gives_way_to_the_slice_in_its_row():
    """Two slices with one checksum: the one that continues what is found before it is taken."""
    data = np.frombuffer(FILE, np.uint8)[:90]
    wanted = np.sort(np.array([checksum(data[i:i + 30]) for i in (0, 30, 60)]))
    order = [int(np.searchsorted(wanted, checksum(data[i:i + 30]))) for i in (0, 30, 60)]
    before = np.full(3, -1)
    before[order[1]], before[order[2]] = order[0], order[1]
    doubled = np.concatenate([data[30:60], data, data[60:]])
    found = np.full(3, -1)
    slide(doubled, 30, wanted, before, found)
    assert [found[n] for n in order] == [30, 60, 90]


def test_a_header_that_claims_too_much_is_no_parity():
    for fields in ((2 ** 60, 2 ** 30, 200, 4), (2 ** 60, 1, 255, 1), (1000, 2 ** 31, 1, 1),
                   (1, 0, 1, 1), (1, 1, 0, 1), (1, 1, 1, 0), (1, 1, 200, 57)):
        record = HEAD.pack(MAGIC, *fields, bytes(8), 0)
        record += zlib.crc32(record).to_bytes(4, "little")
        with pytest.raises(CoderError, match="no intact parity"):
            repair(noise(1000) + record)


def test_any_change_of_one_byte_changes_the_checksum():
    data = np.frombuffer(noise(8000), np.uint8)
    whole, rng = checksum(data), np.random.default_rng(5)
    for at in rng.integers(0, len(data), 500):
        other = data.copy()
        other[at] ^= rng.integers(1, 256)
        assert checksum(other) != whole
    assert len({int(checksum(np.array(byte, np.uint8))) for byte in ALL[:, None].tolist()}) == 256


def test_errors_are_one_sentence():
    for file in (b"", b"x", MAGIC, MAGIC * 100, noise(500)):
        with pytest.raises(CoderError) as error:
            repair(file)
        assert re.fullmatch(r"[^\n.]+", str(error.value))


def test_members_that_no_parity_protects_are_kept():
    data = noise(500, 3)
    alone = write(Header("stored", 1, 24, len(data), hashlib.sha256(data).digest()[:8]), [(data, True)])
    for parts in ([alone, FILE], [FILE, alone], [alone, FILE, alone, alone, FILE, alone]):
        joined = b"".join(parts)
        at = joined.index(FILE)
        whole, found = repair(flipped(joined, at + 5))
        assert (whole, found.data + found.moved, found.surplus) == (joined, 1, 0)
    assert repair(alone[1:] + FILE + alone[:-1]) == (FILE, Mended(14, 0, 0, 0, 2 * len(alone) - 2))


def test_the_example_in_the_description_of_the_format_is_what_the_program_writes():
    text = (Path(__file__).parents[1] / "docs" / "FORMAT.md").read_text("utf-8")
    section = text[text.index("## Parity"):text.index("## Damage")]
    lines = re.findall(r"^    ((?:[0-9A-F]{2} )*[0-9A-F]{2})(?:  |$)", section, re.M)
    hi = bytes.fromhex("89475A06001601180236 39EFCD08ABB273050E0E 174D1809AAF14869")
    begin, content, end = bytes.fromhex("89475A0681A201"), bytes.fromhex(" ".join(lines)), (169).to_bytes(8, "little")
    assert protect(hi, 100) == begin + content + end


# --- the command line -------------------------------------------------------------------------------------------------

def run(capsys, *arguments):
    """What a command says on standard error, and in an error."""
    try:
        main([str(argument) for argument in arguments])
        failed = ""
    except SystemExit as error:
        failed = str(error.code)
    return capsys.readouterr().err + failed


@pytest.fixture
def archive(tmp_path):
    """A compressed file with parity, beside nothing: three stored blocks, so that no kernel of a mode is needed."""
    data = noise(2500)
    blocks = [(data[i:i + 1024], True) for i in range(0, 2500, 1024)]
    file = write(Header("fast", 1, 10, len(data), hashlib.sha256(data).digest()[:8]), blocks)
    path = tmp_path / "noise.mgz"
    path.write_bytes(file + protect(file, 5))
    return path, data


def test_the_command_line_makes_parity_that_a_reader_ignores(tmp_path, capsys):
    (tmp_path / "text").write_bytes(b"to be or not to be " * 40)
    said = run(capsys, "compress", "--mode", "fast", "--parity", 5, "-v", tmp_path / "text")
    file = (tmp_path / "text.mgz").read_bytes()
    assert f" {len(file):,} compressed" in said
    run(capsys, "compress", "--mode", "fast", tmp_path / "text", "-o", tmp_path / "bare")
    bare = (tmp_path / "bare").read_bytes()
    assert file == bare + protect(bare, 5) and len(file) <= 1.055 * len(bare) + 200
    assert run(capsys, "decompress", tmp_path / "text.mgz", "-o", tmp_path / "back") == ""
    assert (tmp_path / "back").read_bytes() == (tmp_path / "text").read_bytes()
    assert run(capsys, "info", tmp_path / "text.mgz") == ""
    said = run(capsys, "compress", "--parity", 0, tmp_path / "text", "-o", tmp_path / "x")
    assert said == "coder: parity must be from 1 to 100 percent, but this is 0"
    assert not (tmp_path / "x").exists()


def test_decompress_repairs_by_itself_and_says_so(archive, capsys):
    path, data = archive
    file = path.read_bytes()
    for damaged in (flipped(file, 2), flipped(file, 1500), file[:700] + b"inserted" + file[700:], file[5:], file[:-60]):
        path.write_bytes(damaged)
        said = run(capsys, "decompress", "-f", path)
        assert said.startswith(f"coder: {path} was damaged and is mended (slices computed from the parity: 1 of 21")
        assert path.with_suffix("").read_bytes() == data
        assert run(capsys, "decompress", "-qf", "--range", "1000:1500", path) == ""
        assert path.with_suffix("").read_bytes() == data[1000:1500]
        assert path.read_bytes() == damaged


def test_a_stream_need_not_be_a_file():
    told = []
    for stream in (io.BytesIO(flipped(FILE, 7)), io.BytesIO(FILE), io.BytesIO()):
        whole = stream.getvalue() and FILE
        with mended(stream, told.append) as source:
            assert source.read() == whole
    assert [found.data for found in told] == [1]


def test_too_much_damage_is_an_error_and_the_rest_can_be_salvaged(archive, capsys):
    path, data = archive
    path.write_bytes(flipped(path.read_bytes(), 1200, 1700))
    said = run(capsys, "decompress", path)
    assert said == f"coder: 2 of 21 slices are damaged, but the parity can mend only 1; {SALVAGE}"
    assert not path.with_suffix("").exists()
    assert "missing: bytes 1,024 to 2,047" in run(capsys, "decompress", "--salvage", path)
    assert path.with_suffix("").read_bytes() == data[:1024] + data[2048:]
    path.write_bytes(flipped(path.read_bytes(), 1200))
    assert "is mended" in run(capsys, "decompress", "--salvage", "-f", path)
    assert path.with_suffix("").read_bytes() == data


def test_repair_puts_the_file_right(archive, capsys):
    path, _ = archive
    file, copy = path.read_bytes(), path.with_name("copy.mgz")
    assert run(capsys, "repair", path) == f"coder: {path} is intact\n"
    path.write_bytes(b"\0" + file[:-1])
    said = f"coder: {path} was damaged and is mended (slices computed from the parity: 1 of 21)\n"
    assert run(capsys, "repair", path, "-o", copy) == said
    assert (copy.read_bytes(), path.read_bytes()) == (file, b"\0" + file[:-1])
    assert "exists: -f overwrites it" in run(capsys, "repair", path, "-o", copy)
    assert run(capsys, "repair", path) == said and path.read_bytes() == file
    none = "no intact parity is found in the file"
    for damaged, sentence in ((b"", none), (file[:2000], none),
                              (flipped(file, 1, 500), "2 of 21 slices are damaged, but the parity can mend only 1")):
        path.write_bytes(damaged)
        assert run(capsys, "repair", path) == f"coder: {sentence}"
        assert path.read_bytes() == damaged
    assert run(capsys, "repair", path.with_name("none")).endswith("No such file or directory")

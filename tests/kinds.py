"""Files of thirty kinds, from this machine and from a seed, in the mode `fast` and in xz -9e.  Not a test.

    python -m tests.benchmark kinds

A kind is a folder and the endings of names: of the files there the seed chooses one that is large enough, whose first LARGEST
bytes are taken.  So another machine has other files, and a kind that it lacks is left out.  What no machine is sure to have is
generated.  Both sizes are of whole compressed files, headers and checksums included.
"""

import io
import lzma
import os
import random
import sqlite3
import struct
import sysconfig
import tarfile
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

SEED = 18
SMALLEST, LARGEST = 100_000, 750_000            # bytes
LIBRARY = sysconfig.get_paths()["stdlib"]
FOLDERS = ["/usr/bin", "/usr/include", "/usr/lib", "/usr/lib64", "/usr/share", "/var/lib/dpkg", "/var/lib/rpm", "/var/log",
           LIBRARY]
KINDS = {
    "executable": ("/usr/bin/", ""), "shared library": ("/usr/lib", ".so", ".so.1", ".so.2", ".so.6"),
    "extension module": (LIBRARY, ".so"), "static library": ("/usr/lib", ".a"), "byte code": (LIBRARY, ".pyc"),
    "translations": ("/usr/share/locale", ".mo"), "font": ("/", ".ttf", ".otf"), "image, PNG": ("/", ".png"),
    "image, JPEG": ("/", ".jpg", ".jpeg"), "gzip": ("/", ".gz"), "zip": ("/", ".zip", ".whl", ".jar"),
    "headers of C": ("/usr/include", ".h"), "Python": (LIBRARY, ".py"), "JavaScript": ("/", ".js"), "HTML": ("/", ".html"),
    "JSON": ("/", ".json"), "XML": ("/", ".xml"), "log": ("/var/log", ".log"),
    "packages": ("/var/lib", "status", "rpmdb.sqlite"), "hardware database": ("/", "hwdb.bin"),
}
ELF = "executable", "shared library", "extension module"


def collect() -> Iterator[tuple[str, str, bytes]]:
    """(kind, where it is from, its bytes) of each kind that there is."""
    paths = sorted({os.path.join(path, name) for folder in FOLDERS for path, _, names in os.walk(folder) for name in names})
    for kind, (folder, *endings) in KINDS.items():
        named = [path for path in paths if path.startswith(folder) and path.endswith(tuple(endings))]
        random.Random(f"{SEED} {kind}").shuffle(named)
        for path in filter(partial(suits, kind), named):
            yield kind, path, Path(path).read_bytes()[:LARGEST]
            break
    for make in GENERATED:
        yield make.__doc__, "generated", make(np.random.default_rng(SEED))[:LARGEST]


def suits(kind, path):
    if os.path.islink(path) or not os.path.isfile(path) or os.path.getsize(path) < SMALLEST or not os.access(path, os.R_OK):
        return False
    with open(path, "rb") as file:
        return kind not in ELF or file.read(4) == b"\x7fELF"


# --- generated ----------------------------------------------------------------------------------------------------------------

def tar(rng):
    """tar"""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for path in sorted(Path(LIBRARY).glob("*.py")):
            if file.tell() < LARGEST:
                archive.add(path)
    return file.getvalue()


def database(rng):
    """SQLite"""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "db")
        connection = sqlite3.connect(path)
        connection.execute("create table visits (id integer primary key, user integer, page text, seconds real, at integer)")
        connection.execute("create index by_user on visits (user)")
        words, at = words_of(rng, 300), 1_700_000_000
        for user, page, seconds, gap in zip(rng.integers(0, 5000, 9000), rng.zipf(1.4, 9000), rng.exponential(20, 9000),
                                            rng.integers(1, 90, 9000)):
            at += int(gap)
            connection.execute("insert into visits values (null, ?, ?, ?, ?)", (
                int(user), f"/{words[page % 300]}/{words[(page * 7 + user) % 300]}.html", round(float(seconds), 2), at))
        connection.commit()
        connection.close()
        with open(path, "rb") as file:
            return file.read()


def words_of(rng, count):
    return ["".join(rng.choice(list("etaoinshrdlu"), rng.integers(3, 9))) for _ in range(count)]


def records(rng):
    """records of 32 bytes"""
    names, rows = words_of(rng, 200), []
    for i in range(20_000):
        name = names[min(rng.geometric(0.03), 200) - 1].encode()
        rows.append(struct.pack("<IHH12sfI4x", i, rng.integers(0, 40), 1 << int(rng.integers(0, 4)), name,
                                rng.normal(50, 9), 1_700_000_000 + 61 * i + int(rng.integers(0, 9))))
    return b"".join(rows)


def fixed_width(rng):
    """table of fixed width"""
    names, towns = words_of(rng, 400), words_of(rng, 60)
    return b"".join(f"{i:08d}{names[rng.integers(400)]:12}{towns[rng.integers(60)]:14}{rng.integers(10, 99):2}"
                    f"{rng.normal(2000, 500):10.2f}{'YN'[rng.integers(5) // 4]}\r\n".encode() for i in range(12_000))


def csv(rng):
    """CSV"""
    level, rows = rng.normal(0, 1, (9000, 3)).cumsum(0), []
    for i, (a, b, c) in enumerate(level):
        rows.append(f"{i},2024-{i // 900 % 12 + 1:02}-{i // 32 % 28 + 1:02},{a:.3f},{b:.3f},{c:.1f},sensor {i * 7 % 11}\n")
    return "".join(rows).encode()


def smooth(rng, size):
    """A signal of some tones that come and go, with a little noise, about 1 high."""
    t = np.arange(size)
    tones = [np.sin(t * f + p) * np.sin(t * f / 97 + q) for f, p, q in rng.uniform(0.002, 0.3, (5, 3))]
    return sum(tones) / 3 + rng.normal(0, 0.003, size)


def float_32(rng):
    """float32, a signal"""
    return smooth(rng, 100_000).astype("<f4").tobytes()


def float_64(rng):
    """float64, prices"""
    return (100 + rng.normal(0, 0.05, 60_000).cumsum()).round(2).astype("<f8").tobytes()


def int_16(rng):
    """int16, counts"""
    return rng.poisson(40 + 30 * np.abs(smooth(rng, 150_000)) * 9).astype("<i2").tobytes()


def int_32(rng):
    """int32, times and identifiers"""
    times = 1_700_000_000 + rng.integers(1, 500, 60_000).cumsum()
    return np.stack([times, rng.integers(0, 30_000, 60_000)], 1).astype("<i4").tobytes()


def sound(rng):
    """sound, 16 bits stereo"""
    left, right = smooth(rng, 130_000), smooth(rng, 130_000)
    samples = np.stack([left + right / 3, right + left / 3], 1) * 9000
    header = struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 36 + 4 * len(samples), b"WAVE", b"fmt ", 16, 1, 2, 44100, 176400, 4, 16,
                         b"data", 4 * len(samples))
    return header + samples.astype("<i2").tobytes()


def picture(rng):
    """picture, 24 bits"""
    y, x = np.mgrid[:400, :450]
    planes = [100 + 60 * np.sin(x / a + y / b) + 30 * (x * c + y > 300) + rng.normal(0, 2, x.shape)
              for a, b, c in rng.uniform(0.3, 1, (3, 3)) * (90, 60, 1)]
    return struct.pack("<2sIIIIiiHHIIiiII", b"BM", 54 + 3 * x.size, 0, 54, 40, 450, 400, 1, 24, 0, 0, 0, 0, 0, 0) + \
        np.stack(planes, 2).clip(0, 255).astype(np.uint8).tobytes()


def noise(rng):
    """noise"""
    return rng.bytes(200_000)


GENERATED = tar, database, records, fixed_width, csv, float_32, float_64, int_16, int_32, sound, picture, noise


# --- the table ----------------------------------------------------------------------------------------------------------------

def report(benchmark) -> None:
    """files of thirty kinds in the mode fast and in xz -9e: sizes"""
    from coder.compressor import compress               # here: it loads our kernels, which in a benchmark only our side shall
    print(f"\n{'kind':26} {'bytes':>8} {'fast':>8} {'xz -9e':>8} {'ratio':>6}", flush=True)
    ratios = []
    for kind, path, data in collect():
        ours, theirs = len(compress(data, "fast")), len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))
        ratios.append(ours / theirs)
        print(f"{kind:26} {len(data):8,} {ours:8,} {theirs:8,} {ratios[-1]:6.3f}  {path}", flush=True)
    print(f"{len(ratios)} kinds: worst {max(ratios):.3f}, median {np.median(ratios):.3f}")

"""What large files cost: peak memory, speed beside xz and zstd, core-hours; and how fast parity is: cases of benchmark.py.

Each run is a process of its own, start-up included.  The input is generated as it is read, so none of it is in memory, and what
comes back is compared by its SHA-256.  Memory is the sum of what all processes of a run had at their peaks, so what they
share counts several times: an upper bound.  Core-hours follow from processor time on one thread, which other work on the
machine changes little; but the samples are short, and where all cores are busy, each may be slower.
"""

import hashlib
import io
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np

MEGABYTE, PIECE = 10 ** 6, 2 ** 20
LARGE, TIMES = 256 * MEGABYTE, 32                       # bytes of input whose memory is compared; how many times the smaller
SEGMENTS = 4                                            # of the smaller: as many as two workers have in hand
SPEED, SEGMENT = 2 ** 23, 2 ** 21                       # bytes; four segments, so that two cores have two each
SAMPLES = {"fast": 2 ** 22, "static": 2 ** 15, "online": 2 ** 12, "scratch": 2 ** 12, "tokens": 2 ** 12}    # bytes for a rate
PROTECTED = 64 * MEGABYTE


def generated(size: int, seed: int = 17) -> Iterator[bytes]:
    """`size` bytes of made-up records, in pieces: a number, and words of which few are frequent, like those of a language."""
    rng = np.random.default_rng(seed)
    letters = rng.integers(97, 123, 200_000).astype(np.uint8).tobytes()
    words = np.array([letters[i:i + n] for i, n in zip(range(0, 160_000, 8), rng.integers(1, 9, 20_000))], object)
    record = 0
    while size > 0:
        lines = words[rng.zipf(1.2, (20_000, 8)).clip(max=1 << 40) % len(words)]
        piece = b"".join(b"%d %s\n" % (record + i, b" ".join(line)) for i, line in enumerate(lines.tolist()))[:size]
        record, size = record + len(lines), size - len(piece)
        yield piece


def run(words: list[str], pieces: Iterator[bytes], keep: BinaryIO | None = None) -> tuple[float, str, int, int]:
    """Feed a command with pieces on standard input.  (Seconds, SHA-256 and size of its output, peak memory in bytes)"""
    start, digest, peak = time.perf_counter(), hashlib.sha256(), 0
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def feed():
        with process.stdin, suppress(BrokenPipeError):
            for piece in pieces:
                process.stdin.write(piece)

    def watch():
        nonlocal peak
        while process.poll() is None:
            peak = max(peak, sum(map(peak_of, family(process.pid))))
            time.sleep(0.1)
    others = [threading.Thread(target=work) for work in (feed, watch)]
    for other in others:
        other.start()
    size = 0
    while data := process.stdout.read(PIECE):
        digest.update(data)
        size += len(data)
        if keep:
            keep.write(data)
    for other in others:
        other.join()
    if process.wait():
        sys.exit(f"benchmark: {' '.join(words)} failed")
    return time.perf_counter() - start, digest.hexdigest(), size, peak


def family(process: int) -> list[int]:
    """The process and its descendants."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    found = [process]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found


def peak_of(process: int) -> int:
    """The most memory that a process has had so far, in bytes."""
    with suppress(OSError, StopIteration):
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    return 0


def coder(action: str, *options) -> list[str]:
    return [sys.executable, "-m", "coder", action, "-", "-o", "-", "-q", *map(str, options)]


def there_and_back(size: int, packing: list[str], unpacking: list[str]) -> tuple:
    """What `run` returns, compressing and decompressing `size` bytes."""
    digest = hashlib.sha256()

    def pieces():
        for piece in generated(size):
            digest.update(piece)
            yield piece
    with tempfile.TemporaryFile() as file:
        packed = run(packing, pieces(), file)
        file.seek(0)
        back = run(unpacking, iter(lambda: file.read(PIECE), b""))
    if back[1] != digest.hexdigest():
        sys.exit(f"benchmark: {' '.join(unpacking)} gave other bytes than were compressed")
    return packed, back


def memory(large: int) -> None:
    segment = large // TIMES // SEGMENTS
    print(f"\n{f'peak memory, fast, 2 workers, {segment >> 10} KiB':38} {'compress':>10} {'decompress':>11} {'seconds':>14}")
    there_and_back(2 * segment, coder("compress", "--mode", "fast"), coder("decompress"))       # a compiler takes memory, too
    peaks = []
    for size in (large // TIMES, large):
        two = there_and_back(size, coder("compress", "--mode", "fast", "--segment", segment, "--workers", 2),
                             coder("decompress", "--workers", 2))
        peaks.append([part[3] for part in two])
        print(f"{f'{size:,} bytes':38} {peaks[-1][0] / MEGABYTE:7,.0f} MB {peaks[-1][1] / MEGABYTE:8,.0f} MB "
              f"{two[0][0]:6,.0f} {two[1][0]:7,.0f}", flush=True)
    print(f"{'ratio':38}" + "".join(f" {large / small:10.2f}" for small, large in zip(*peaks)))


def speed(size: int, segment: int) -> None:
    rivals = {"coder, fast, --workers 1": (coder("compress", "--mode", "fast", "--segment", segment, "--workers", 1),
                                           coder("decompress", "--workers", 1)),
              "coder, fast, --workers 2": (coder("compress", "--mode", "fast", "--segment", segment, "--workers", 2),
                                           coder("decompress", "--workers", 2)),
              "xz -T2": (["xz", "-T2", f"--block-size={segment}"], ["xz", "-dT2"]),
              "zstd -T2 -19": (["zstd", "-q", "-T2", "-19", f"-B{segment}"], ["zstd", "-qd"])}
    print(f"\n{f'{size:,} bytes, segments of {segment:,}':38} {'bytes':>10} {'ratio':>6} {'compress':>11} {'decompress':>12}")
    for name, (packing, unpacking) in rivals.items():
        if not shutil.which(packing[0]):
            print(f"{name:38} {'missing':>10}")
            continue
        packed, back = there_and_back(size, packing, unpacking)
        print(f"{name:38} {packed[2]:10,} {size / packed[2]:6.2f} {size / packed[0] / MEGABYTE:6.2f} MB/s "
              f"{size / back[0] / MEGABYTE:7.2f} MB/s", flush=True)


def core_hours(samples: dict[str, int]) -> None:
    from coder import archive, models
    from coder.container import CoderError
    from coder.verify import LICENSE                    # English: what the model cannot predict, it would store
    from minigpt.kernels.threads import get_num_threads, set_num_threads
    threads = get_num_threads()
    set_num_threads(1)
    print(f"\n{'a terabyte, from samples on one thread':38} {'bytes':>10} {'compress':>24} {'decompress':>24}")
    for mode, size in samples.items():
        try:
            model = models.load("smollm2" if mode == "tokens" else None)[0]
        except CoderError as error:
            print(f"{mode:38} missing: {error}")
            continue

        def round_trip(data):
            begin, packed, back = time.process_time(), io.BytesIO(), io.BytesIO()
            archive.compress(io.BytesIO(data), packed, mode, model)
            middle = time.process_time()
            archive.decompress(io.BytesIO(packed.getvalue()), back, lambda fingerprint: model)
            if back.getvalue() != data:
                sys.exit(f"benchmark: {mode} gave other bytes than were compressed")
            return middle - begin, time.process_time() - middle
        data = (LICENSE * (size // len(LICENSE) + 1))[:size]
        round_trip(data[:1000])                                             # loads and compiles
        figures = (f"{size / 1e3 / taken:8.2f} kB/s {1e12 / size * taken / 3600:10,.0f} h" for taken in round_trip(data))
        print(f"{mode:38} {size:10,} {'':1}{' '.join(figures)}", flush=True)
    set_num_threads(threads)


def scale(benchmark) -> None:
    """large files: peak memory, speed beside xz and zstd on 2 cores, and what a terabyte costs in core-hours"""
    quick = benchmark.options.quick
    memory(2 ** 20 if quick else benchmark.options.bytes)
    speed(2 ** 18 if quick else SPEED, 2 ** 16 if quick else SEGMENT)
    core_hours({mode: 2 ** 11 for mode in SAMPLES} if quick else SAMPLES)


def parity(benchmark) -> None:
    """Reed-Solomon parity on one core: protecting, checking what is intact, repairing"""
    from coder.parity import protect, repair
    size = 2 ** 22 if benchmark.options.quick else PROTECTED
    data = np.random.default_rng(1).bytes(size)
    print(f"\n{f'parity of {size:,} bytes, one thread':38} {'added':>10} {'protect':>12} {'intact':>12} {'repair':>12}")
    repair(b"?" + data[1:5000] + protect(data[:5000], 5))                   # compiles
    for percent in 5, 10:
        times, added = [], b""

        def timed(work: Callable):
            start = time.perf_counter()
            result = work()
            times.append(time.perf_counter() - start)
            return result
        added = timed(lambda: protect(data, percent))
        file = bytearray(data + added)
        for damage in (0, 1):
            for at in range(size // 3, size // 3 + damage * size * percent // 200):
                file[at] ^= 0x55                                            # a burst, of half of what can be mended
            if timed(lambda: repair(bytes(file))[0]) != data + added:
                sys.exit("benchmark: repair gave another file than was protected")
        print(f"{f'{percent} %':38} {len(added):10,}" + "".join(f" {size / taken / MEGABYTE:7.0f} MB/s" for taken in times)
              + f"   goal: 100 MB/s {'met' if max(times) <= size / 100 / MEGABYTE else 'MISSED'}", flush=True)

"""python -m coder: compress and decompress files, much as gzip does."""

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)        # until `main`: Ctrl-C during these imports ends without a traceback

import argparse
import mmap
import os
import shutil
import sys
import tempfile
import time
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

from tqdm import tqdm

from minigpt import __version__
from minigpt.checkpoint import CheckpointError, fingerprint
from minigpt.ensemble import combine
from minigpt.exits import one_sentence
from minigpt.files import replacing, write_atomically

from . import engines, models, packed
from .archive import Here, Totals, compress, decompress, members, read_index
from .container import CODED, INDEX, LARGEST_SEGMENT, MODEL, MODES, NAMES, CoderError, read
from .protected import describe, mended, parity_size, protecting, repaired
from .retrieve import extract, salvage, table
from .tokens import TokenModel

SUFFIX = ".mgz"
CHOICES = [name for name in CODED if name != "online tokens"]       # which online is, with a model of tokens


def main(arguments: list[str] | None = None):
    """Run a command line (default: that of the process).  SystemExit with one sentence where something is wrong."""
    options = parse(arguments)
    catch_signals()
    with one_sentence("coder", *ERRORS, interrupted="coder: interrupted, nothing written"):
        options.run(options)


ERRORS = CoderError, CheckpointError, FloatingPointError


def catch_signals():
    """Let SIGTERM and SIGINT interrupt this process with a KeyboardInterrupt."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:               # else it is ignored, as by nohup, or handled
        signal.signal(signal.SIGINT, signal.default_int_handler)


def parse(arguments):
    parser = argparse.ArgumentParser(prog="python -m coder", description="Lossless compression with a GPT. The input file is "
                                     "kept; - means standard input or output.")
    parser.add_argument("--version", action="version", version=f"coder (minigpt) {__version__}")
    commands = parser.add_subparsers(required=True)

    def command(run, name, description):
        sub = commands.add_parser(name, help=description, description=description)
        sub.set_defaults(run=run)
        return sub

    def file_command(run, name, description):
        sub = command(run, name, description)
        sub.add_argument("file", metavar="FILE")
        sub.add_argument("-o", "--output", metavar="OUT", help=f"default: FILE with {SUFFIX} appended or removed")
        sub.add_argument("-f", "--force", action="store_true", help="overwrite OUT; write to a terminal")
        sub.add_argument("--model", metavar="MODEL", help="a checkpoint or a packed model (default: the bundled "
                         "model), or a published language model: smollm2, a GGUF file, or a folder")
        sub.add_argument("--prime", metavar="FILE", help="a text similar to FILE, which both sides have, to learn from "
                         "first (not in the modes static and tokens)")
        who = sub.add_mutually_exclusive_group()
        who.add_argument("--workers", type=positive, metavar="N", help="number of processes that share the segments "
                         "(default: one per core); the output does not depend on it")
        who.add_argument("--dask", metavar="ADDRESS", help="code the segments on the Dask cluster with this scheduler")
        who.add_argument("--mpi", action="store_true", help="code the segments in the other processes of this MPI run: "
                         "mpiexec -n 5 python -m mpi4py.futures -m coder ...")
        sub.add_argument("-q", "--quiet", action="store_true", help="no progress bar")
        sub.add_argument("-v", "--verbose", action="store_true", help="print sizes and time at the end")
        return sub

    sub = file_command(run_compress, "compress", "compress FILE")
    sub.add_argument(
        "--mode", choices=CHOICES, help="; ".join(f"{name}: {MODES[name].help}" for name in CHOICES) +
        " (default: static with --model, or tokens with a published one; fast with --prime; else whichever of static and fast "
        "compresses the beginning of FILE better)")
    sub.add_argument("--segment", type=size, metavar="SIZE", help="cut FILE into segments of that many bytes, coded "
                     "independently; K, M and G are 2^10, 2^20 and 2^30 (default: " +
                     ", ".join(f"{MODES[name].segment >> 20}M {name}" for name in CHOICES) + ")")
    sub.add_argument("--embed", action="store_true", help="store the packed model in the file, which then needs no other")
    sub.add_argument("--parity", type=float, metavar="PERCENT", help="append parity, from 1 to 100 percent of the "
                     "compressed file, so that about as much damage can be repaired")
    sub = file_command(run_decompress, "decompress", "decompress FILE")
    part = sub.add_mutually_exclusive_group()
    part.add_argument("--salvage", action="store_true", help="write the intact blocks of a damaged FILE, and report the rest")
    part.add_argument("--range", type=byte_range, metavar="START:STOP", help="write only the bytes from START up to, but not "
                      "including, STOP of the original, counted from 0; without STOP, up to the end")
    sub = command(run_repair, "repair", "repair a compressed FILE that was made with --parity")
    sub.add_argument("file", metavar="FILE")
    sub.add_argument("-o", "--output", metavar="OUT", help="write the repaired file there (default: replace FILE)")
    sub.add_argument("-f", "--force", action="store_true", help="overwrite OUT")
    command(run_info, "info", "describe the compressed FILE").add_argument("file", metavar="FILE")
    pack = command(run_pack, "pack", "quantise and entropy-code a trained model, or several as an ensemble")
    pack.add_argument("models", nargs="+", metavar="MODEL", help="a checkpoint of train_shakespeare.py")
    pack.add_argument("output", metavar="OUT")
    pack.add_argument("--fineness", type=float, default=packed.FINENESS, metavar="N",
                      help=f"quantisation steps to a matrix's root mean square (default: {packed.FINENESS})")
    sub = command(run_walk, "walk", "follow one byte of TEXT into a compressed file and back, with all its numbers")
    sub.add_argument("text", metavar="TEXT", help="a few words; at most what fits into one window of the model")
    sub.add_argument("--byte", type=int, metavar="N", help="the byte to follow, counted from 1 (default: the last one)")
    sub.add_argument("--model", metavar="MODEL", help="a checkpoint or a packed model (default: the bundled model)")
    check = command(run_verify, "verify", "recompute everything that must be the same on every machine, and compare")
    check.add_argument("--json", action="store_true", help="print the hashes alone, as a JSON object")
    return parser.parse_args(arguments)


def size(text):
    """A number of bytes, as in 300, 64K or 1.5M."""
    factor = {"K": 2 ** 10, "M": 2 ** 20, "G": 2 ** 30}.get(text[-1:].upper(), 1)
    value = int(float(text if factor == 1 else text[:-1]) * factor)
    if not 1 <= value <= LARGEST_SEGMENT:
        raise argparse.ArgumentTypeError(f"a segment has 1 to {LARGEST_SEGMENT:,} bytes, not {text}")
    return value


def positive(text):
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a number from 1 on, not {text}")
    return int(text)


def byte_range(text):
    start, colon, stop = text.partition(":")
    if not colon or not f"{start or 0}{stop or 0}".isdecimal():
        raise argparse.ArgumentTypeError(f"must be START:STOP, START: or :STOP, not {text}")
    return int(start or 0), int(stop) if stop else None


def engine(options):
    """Who does the segments, as a context."""
    if options.dask:
        return engines.dask(options.dask)
    if options.mpi:
        return engines.mpi()
    return nullcontext(Here()) if (options.workers or engines.cores()) == 1 else engines.processes(options.workers)


def run_compress(options):
    target = output(options, options.file + SUFFIX)
    with opened(options.file) as source:
        primer = read_primer(options)
        mode = options.mode or ("fast" if options.prime and not options.model else "static" if options.embed else None)
        if options.embed and not MODES[mode].needs_model:
            raise CoderError(f"the mode {mode} needs no model: leave out --embed")
        model = models.load(options.model)[0] if mode is None or MODES[mode].needs_model else None
        if isinstance(model, TokenModel) and options.embed:
            raise CoderError("a published language model is not packed, so it cannot be embedded")
        if not options.mode and options.model:
            mode = "tokens" if isinstance(model, TokenModel) else "static"
        embedded = b""
        if options.embed:                   # what both sides have then is the packed model
            embedded = models.packed_copy(model, options.model, packed.FINENESS)
            model = packed.unpack(embedded)[0]
        start = time.perf_counter()
        with engine(options) as workers, writing(options, target) as sink, protecting(sink, options.parity) as sink, \
                bar(options, size_of(source)) as progress:
            totals = compress(source, sink, mode, model, progress, primer=primer, segment=options.segment, embedded=embedded,
                              engine=workers)
    totals = totals._replace(compressed=totals.compressed + parity_size(totals.compressed, options.parity))
    report(options, totals, start)
    if options.model and not options.embed and totals.fingerprint and not options.quiet and sys.stderr:
        kept = models.keep(model, options.model)
        print(f"coder: {target or 'the output'} needs the model {totals.fingerprint.hex()} to be decompressed" +
              (f"; {kept} keeps it on this machine" if kept else ""), file=sys.stderr)


def run_decompress(options):
    stripped = options.file.removesuffix(SUFFIX)
    if stripped == options.file != "-" and not options.output:
        raise CoderError(f"{options.file} does not end in {SUFFIX}: name the output with -o")
    target = output(options, stripped)

    def find(fingerprint):
        return models.load_fitting(fingerprint, options.model)
    with opened(options.file, whole=options.salvage or options.range) as file, \
            mended(file, partial(tell, options), options.salvage) as source:
        primer = read_primer(options)
        start, salvaged = time.perf_counter(), None
        with engine(options) as workers, writing(options, target) as sink, bar(options, original_size(source)) as progress:
            if options.salvage:
                with mapped(source) as file:
                    salvaged = salvage(file, sink, find, progress, primer)
                    totals = Totals(salvaged.written, len(file), b"")
            elif options.range:
                totals = extract(source, sink, *options.range, find, progress, primer=primer, engine=workers)
            else:
                totals = decompress(source, sink, find, progress, primer=primer, engine=workers)
    report(options, totals, start)
    if salvaged and salvaged.missing:
        raise CoderError(lost(salvaged))


def lost(salvaged):
    """What is missing, in a sentence."""
    ranges = ", ".join(f"{first:,} to {stop - 1:,}" if stop else f"from {first:,} on, it is not known how many"
                       for first, stop in salvaged.missing)
    whole = all(stop for _, stop in salvaged.missing)
    total = salvaged.written + sum(stop - first for first, stop in salvaged.missing) if whole else None
    return f"{salvaged.written:,} {f'of {total:,} ' if whole else ''}bytes were intact and are written; missing: bytes {ranges}"


def run_repair(options):
    options.force |= not options.output
    target = output(options, options.file)
    with opened(options.file, whole=True) as source:
        whole, found = repaired(source)
        if whole is not source or target != Path(options.file):
            with writing(options, target) as sink:
                whole.seek(0)
                shutil.copyfileobj(whole, sink)
    tell(options, found)


def tell(options, found):
    """Say what parity has mended."""
    if sys.stderr and not getattr(options, "quiet", False):
        print(f"coder: {options.file} was damaged and is mended ({describe(found)})" if any(found[1:]) else
              f"coder: {options.file} is intact", file=sys.stderr)


def run_info(options):
    segments, damaged, model, compressed, sha256 = [], [], 0, 0, []
    with opened(options.file) as source:
        for member in members(source):
            compressed += member.size
            if member.kind in NAMES:
                header, blocks = read(member.data)
                broken = [str(i + 1) for i, block in enumerate(blocks) if not block.whole]
                segments.append((member.place, member.size, header, len(blocks), sum(b.stored for b in blocks), broken))
                damaged += broken
                if not header.more:
                    sha256.append(f"{header.check.hex()} (the beginning, of the original)")
            elif member.kind == MODEL:
                model += member.size
            elif member.kind == INDEX:
                sha256.append(f"{read_index(member.data)[1].hex()} (of the original)")
    if not segments:
        raise CoderError("the file has no segment" if compressed else "the file is empty")
    headers, original = [segment[2] for segment in segments], sum(segment[2].length for segment in segments)
    names = sorted({header.fingerprint.hex() for header in headers if header.fingerprint})
    primers = sorted({header.primer.hex() for header in headers if header.primer})
    print(f"mode         {', '.join(sorted({f'{header.mode}, version {header.version}' for header in headers}))}\n"
          f"original     {original:,} bytes\n"
          f"compressed   {compressed:,} bytes{rate(compressed, original)}" +
          (f": {model:,} of the model in it, {compressed - model:,} of the rest" if model else "") + "\n"
          f"segments     {len(segments)}\n"
          f"blocks       {sum(segment[3] for segment in segments)} of {1 << headers[0].block_bits:,} bytes, "
          f"{sum(segment[4] for segment in segments)} stored, "
          f"{len(damaged)} damaged{': ' + ', '.join(damaged) if damaged and len(segments) == 1 else ''}\n"
          f"model        {', '.join(names) or 'none'}\n"
          f"primer       {', '.join(primers) or 'none'}{' (of its SHA-256)' * bool(primers)}\n"
          f"SHA-256      {', '.join(sha256) or 'missing: the file is cut off'}")
    if len(segments) > 1:
        print(f"\n{'segment':>7} {'at byte':>15} {'bytes':>13} {'original':>13}  mode")
        for i, (place, taken, header, _, _, broken) in enumerate(segments):
            print(f"{i + 1:7} {place:15,} {taken:13,} {header.length:13,}  {header.mode}" +
                  (f", damaged blocks: {', '.join(broken)}" if broken else ""))
    if damaged or not sha256:
        sys.exit(1)


def run_pack(options):
    target = Path(options.output)
    if target.exists() and not (target.is_file() and target.read_bytes().startswith(packed.MAGIC)):
        raise CoderError(f"{target} exists and is not a packed model: only a packed model is overwritten")
    loaded, texts = zip(*map(models.load, options.models))
    if any(isinstance(model, TokenModel) for model in loaded):
        raise CoderError("a published language model is not packed: pass its own file with --model")
    try:
        file = packed.pack(combine(loaded), texts[0] if len(set(texts)) == 1 else None, options.fineness)
    except ValueError as error:
        raise CoderError(str(error)) from None
    write_atomically(target, file)
    print(f"{target}: {len(file):,} bytes, fingerprint {fingerprint(packed.unpack(file)[0])}")


def run_walk(options):
    from .walk import walk                  # with all that the page of `minigpt look` needs
    for line in walk(os.fsencode(options.text), models.load(options.model)[0], options.byte):
        print(line)


def run_verify(options):
    from . import verify                    # which imports, and compiles, every kernel
    sys.exit(verify.main(options.json))


# --- files ------------------------------------------------------------------------------------------------------------

def output(options, default):
    """The path to write to, or None for standard output.  CoderError where it may not be written to."""
    target = options.output or ("-" if options.file == "-" else default)
    if target == "-":
        if sys.stdout is None:
            raise CoderError("standard output is closed")
        if sys.stdout.isatty() and options.run is run_compress and not options.force:
            raise CoderError("compressed data is not written to a terminal: name an output with -o, or force it with -f")
        return None
    refuse_to_overwrite(options, Path(target))
    return Path(target)


def refuse_to_overwrite(options, target):
    if target.is_dir():
        raise CoderError(f"{target} is a folder")
    if target.exists() and not options.force:
        raise CoderError(f"{target} exists: -f overwrites it")


@contextmanager
def opened(name, whole=False):
    """The input as a stream; `whole`: one that can be read anywhere."""
    if name == "-" and sys.stdin is None:
        raise CoderError("standard input is closed")
    with nullcontext(sys.stdin.buffer) if name == "-" else open(name, "rb") as stream:
        if whole and name == "-":
            with tempfile.TemporaryFile() as copy:
                shutil.copyfileobj(stream, copy)
                copy.seek(0)
                yield copy
        else:
            yield stream


@contextmanager
def mapped(stream):
    """The bytes of a file, in memory only as far as they are read."""
    if not size_of(stream):
        yield b""
        return
    with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as file:
        yield file


def size_of(stream):
    """The size of a file in bytes; of a pipe, None."""
    if not stream.seekable():
        return None
    place = stream.tell()
    size = stream.seek(0, os.SEEK_END)
    stream.seek(place)
    return size


def original_size(stream):
    """The bytes of all originals in a file, or None where that cannot be known before it is read."""
    if not stream.seekable():
        return None
    try:
        parts = table(stream)
    except CoderError:              # told by those who decode it
        parts = []
    stream.seek(0)
    return sum(part.length for part in parts)


def read_primer(options):
    """The bytes of the primer, none without --prime."""
    if not options.prime:
        return b""
    primer = Path(options.prime).read_bytes()
    if not primer:
        raise CoderError(f"{options.prime} is empty: there is nothing to learn from")
    return primer


@contextmanager
def writing(options, target):
    """The output as a stream: all of the target or nothing, with the times and mode of the input."""
    if target is None or (target.exists() and not target.is_file()):        # a device or a pipe
        with nullcontext(sys.stdout.buffer) if target is None else open(target, "wb") as stream:
            yield stream
            stream.flush()
        return
    refuse_to_overwrite(options, target)
    with replacing(target, like=None if options.file == "-" else options.file) as stream:
        yield stream
        refuse_to_overwrite(options, target)                                # it may have appeared while we worked


# --- messages ---------------------------------------------------------------------------------------------------------

class bar:
    """A progress bar over `total` bytes of the original; when compressing, with the bits per byte so far."""

    def __init__(self, options, total):
        hidden = options.quiet or not sys.stderr or not sys.stderr.isatty()
        self.bar = tqdm(total=total, unit="B", unit_scale=True, delay=1, disable=hidden)

    def __enter__(self):
        return self

    def __call__(self, count, taken=None):
        self.bar.update(count)
        if taken is not None and self.bar.n:
            self.bar.set_postfix_str(f"{8 * taken / self.bar.n:.3f} bits per byte", refresh=False)

    def __exit__(self, *exception):
        self.bar.close()


def rate(compressed, original):
    return f", {8 * compressed / original:.3f} bits per byte" if original else ""


def report(options, totals, start):
    if options.verbose and sys.stderr:
        print(f"{options.file}: {totals.original:,} bytes, {totals.compressed:,} compressed{rate(*totals[1::-1])}, "
              f"{time.perf_counter() - start:.1f} s", file=sys.stderr)


if __name__ == "__main__":
    main()

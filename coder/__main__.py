"""python -m coder: compress and decompress files, in the manner of gzip."""

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from tqdm import tqdm

from minigpt.checkpoint import CheckpointError

from . import verify
from .compressor import choose, compress, decompress, salvage, short_fingerprint
from .container import CoderError, read
from .packed import SHIPPED, load

SUFFIX = ".mgz"


def main(arguments=None):
    options = parse(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        options.run(options)
        if sys.stdout:
            sys.stdout.flush()
    except (CoderError, CheckpointError, FloatingPointError) as error:
        sys.exit(f"coder: {error}")
    except BrokenPipeError:
        forget_output()
        sys.exit("coder: the reader of the output has gone")
    except OSError as error:
        forget_output()
        sys.exit(f"coder: {error.filename or 'output'}: {error.strerror or error}")
    except MemoryError:
        sys.exit("coder: not enough memory")
    except KeyboardInterrupt:
        sys.exit("coder: interrupted; nothing was written")


def forget_output():
    """Send what standard output still holds to nowhere, or Python would try, and fail, again at its end."""
    if sys.stdout:
        try:
            sys.stdout.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def parse(arguments):
    parser = argparse.ArgumentParser(prog="python -m coder", description="Lossless compression by a GPT. The input file is "
                                     "kept; - is standard input or output.")
    commands = parser.add_subparsers(required=True)

    def command(run, name, description):
        sub = commands.add_parser(name, help=description, description=description)
        sub.set_defaults(run=run)
        sub.add_argument("file", metavar="FILE")
        if run is not run_info:
            sub.add_argument("-o", "--output", metavar="OUT", help=f"default: FILE with {SUFFIX} added or taken away")
            sub.add_argument("-f", "--force", action="store_true", help="overwrite OUT; write to a terminal")
            sub.add_argument("--model", metavar="FILE", help="default: the newest (compress) or the fitting one (decompress) "
                             "of the models */model.safetensors below this folder, or else the one that comes with us")
            sub.add_argument("--prime", metavar="FILE", help="a text like FILE that both sides have, to learn from before "
                             "(not in the mode static)")
            sub.add_argument("-q", "--quiet", action="store_true", help="no progress bar")
            sub.add_argument("-v", "--verbose", action="store_true", help="say sizes and time at the end")
        return sub

    command(run_compress, "compress", "compress FILE").add_argument(
        "--mode", choices=("static", "online", "scratch", "fast"),
        help="static: the model as it is; online: it goes on learning from the file, and is mixed with what contexts "
             "predict; scratch: the same without a model to begin with; fast: contexts alone (default: static with --model, "
             "fast with --prime, else whichever of the two makes less of the beginning of FILE)")
    command(run_decompress, "decompress", "decompress FILE").add_argument(
        "--salvage", action="store_true", help="of a damaged file, write what is intact and say what is missing")
    command(run_info, "info", "say what is in the compressed FILE")
    check = commands.add_parser("verify", help="compute everything that must be the same on every machine, and compare")
    check.add_argument("--json", action="store_true", help="print the hashes alone, as a JSON object")
    check.set_defaults(run=run_verify)
    return parser.parse_args(arguments)


def run_compress(options):
    target = output(options, options.file + SUFFIX)
    data = read_input(options.file)
    primer = read_primer(options)
    mode = options.mode or ("static" if options.model else "fast" if options.prime else None)
    model = load(options.model or candidates()[0])[0] if mode in ("static", "online", None) else None
    start = time.perf_counter()
    with bar(options, len(data)) as progress:
        file = compress(data, mode or choose(data, model), model, progress, primer=primer)
    write_output(options, target, file)
    report(options, len(data), len(file), start)


def run_decompress(options):
    stripped = options.file.removesuffix(SUFFIX)
    if stripped == options.file != "-" and not options.output:
        raise CoderError(f"{options.file} does not end in {SUFFIX}: name the output with -o")
    target = output(options, stripped)
    file = read_input(options.file)
    header, _ = read(file, strict=not options.salvage)
    primer = read_primer(options)
    start, missing = time.perf_counter(), []
    with bar(options, header.length) as progress:
        def find(fingerprint):
            return fitting_model(options.model, fingerprint)
        if options.salvage:
            data, missing = salvage(file, find, progress, primer)
        else:
            data = decompress(file, find, progress, primer)
    write_output(options, target, data)
    report(options, len(data), len(file), start)
    if missing:
        ranges = ", ".join(f"{first:,} to {stop - 1:,}" for first, stop in missing)
        raise CoderError(f"{len(data):,} of {header.length:,} bytes were intact and are written; missing are bytes {ranges}")


def run_info(options):
    file = read_input(options.file)
    header, blocks = read(file)
    damaged = [str(i + 1) for i, block in enumerate(blocks) if not block.whole]
    print(f"mode         {header.mode}\n"
          f"original     {header.length:,} bytes\n"
          f"compressed   {len(file):,} bytes{rate(len(file), header.length)}\n"
          f"blocks       {len(blocks)} of {1 << header.block_bits:,} bytes, {sum(b.stored for b in blocks)} stored as they are, "
          f"{len(damaged)} damaged{': ' + ', '.join(damaged) if damaged else ''}\n"
          f"model        {header.fingerprint.hex() if header.mode not in ('stored', 'fast') else 'none'}\n"
          f"primer       {header.primer.hex() or 'none'}{' (of its SHA-256)' * bool(header.primer)}\n"
          f"SHA-256      {header.sha256.hex()} (of the original)")
    if damaged:
        sys.exit(1)


def run_verify(options):
    sys.exit(verify.main(options.json))


# --- models -----------------------------------------------------------------------------------------------------------

def candidates():
    """The models that training left in folders below this one, the newest first; then the one that comes with us."""
    found = sorted(Path().glob("*/model.safetensors"), key=lambda path: path.stat().st_mtime, reverse=True)
    return [*found, SHIPPED]


def fitting_model(path, fingerprint):
    """The model of that fingerprint: the one at `path`, or among the candidates."""
    found = []
    for candidate in [path] if path else candidates():
        try:
            model, _ = load(candidate)
        except CheckpointError:
            if path:
                raise
            continue
        if short_fingerprint(model) == fingerprint:
            return model
        found.append(f"{candidate} is {short_fingerprint(model).hex()}")
    raise CoderError(f"the file needs the model {fingerprint.hex()}, but {', '.join(found) or 'no model here can be read'}: "
                     "name the right one with --model")


# --- files ------------------------------------------------------------------------------------------------------------

def output(options, default):
    """The path to write to, or None for standard output.  CoderError where that must not be."""
    target = options.output or ("-" if options.file == "-" else default)
    if target == "-":
        if sys.stdout is None:
            raise CoderError("standard output is closed")
        if sys.stdout.isatty() and options.run is run_compress and not options.force:
            raise CoderError("compressed data is not for a terminal: name an output with -o, or force it with -f")
        return None
    refuse_to_overwrite(options, Path(target))
    return Path(target)


def refuse_to_overwrite(options, target):
    if target.is_dir():
        raise CoderError(f"{target} is a folder")
    if target.exists() and not options.force:
        raise CoderError(f"{target} exists: -f overwrites it")


def read_input(name):
    if name == "-" and sys.stdin is None:
        raise CoderError("standard input is closed")
    return sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()


def read_primer(options):
    """The bytes of the primer; none where none is named."""
    if not options.prime:
        return b""
    primer = Path(options.prime).read_bytes()
    if not primer:
        raise CoderError(f"{options.prime} is empty: there is nothing to learn from it")
    return primer


def write_output(options, target, data):
    """Write beside the target, and move it into place when it is whole, with the times and mode of the input."""
    if target is None or (target.exists() and not target.is_file()):        # a device or a pipe
        stream = sys.stdout.buffer if target is None else open(target, "wb")
        stream.write(data)
        stream.flush()
        return
    refuse_to_overwrite(options, target)                                    # it may have come while we worked
    descriptor, part = tempfile.mkstemp(".part", ".", target.parent)        # a name of its own, that only we may read
    try:
        with open(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        if options.file != "-":
            shutil.copystat(options.file, part)
        else:
            os.chmod(part, 0o666 & ~umask())
        os.replace(part, target)
    except BaseException:
        os.unlink(part)
        raise


def umask():
    """The mode bits that new files are denied; the system tells only in exchange for others."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


# --- what is said -----------------------------------------------------------------------------------------------------

class bar:
    """A progress bar over `total` bytes of the original, with the bits per byte so far when compressing."""

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


def report(options, original, compressed, start):
    if options.verbose and sys.stderr:
        print(f"{options.file}: {original:,} bytes, {compressed:,} compressed{rate(compressed, original)}, "
              f"{time.perf_counter() - start:.1f} s", file=sys.stderr)


if __name__ == "__main__":
    main()

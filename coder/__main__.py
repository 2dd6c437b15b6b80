"""python -m coder: compress and decompress files, in the manner of gzip."""

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)        # until `main`: Ctrl-C during these imports ends without a traceback

import argparse
import os
import sys
import time
from pathlib import Path

from tqdm import tqdm

from minigpt.checkpoint import CheckpointError, fingerprint
from minigpt.ensemble import combine
from minigpt.files import write_atomically

from . import models, packed, verify
from .compressor import choose, compress, decompress, salvage
from .container import MODES, PREDICTING, CoderError, read
from .tokens import TokenModel

SUFFIX = ".mgz"
MODES_OF_FILES = [*PREDICTING, "tokens"]


def main(arguments: list[str] | None = None):
    """Run a command line (default: that of the process).  SystemExit with one sentence where something is wrong."""
    options = parse(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:               # else it is ignored, as by nohup, or handled
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        options.run(options)
        if sys.stdout:
            sys.stdout.flush()
    except (CoderError, CheckpointError, FloatingPointError) as error:
        sys.exit(f"coder: {error}")
    except BrokenPipeError:
        forget_output()
        sys.exit("coder: the reader closed the output")
    except OSError as error:
        forget_output()
        sys.exit(f"coder: {error.filename or 'output'}: {error.strerror or error}")
    except MemoryError:
        sys.exit("coder: not enough memory")
    except KeyboardInterrupt:
        sys.exit("coder: interrupted, nothing written")


def forget_output():
    """Discard what standard output still buffers, or Python would try to flush it, and fail, again at exit."""
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
        return sub

    def file_command(run, name, description):
        sub = command(run, name, description)
        sub.add_argument("file", metavar="FILE")
        sub.add_argument("-o", "--output", metavar="OUT", help=f"default: FILE with {SUFFIX} appended or removed")
        sub.add_argument("-f", "--force", action="store_true", help="overwrite OUT; write to a terminal")
        sub.add_argument("--model", metavar="MODEL", help="a checkpoint or a packed model (default: the bundled "
                         "model), or a published language model: smollm2, a GGUF file, or a folder")
        sub.add_argument("--prime", metavar="FILE", help="a text like FILE, which both sides have, to learn from first "
                         "(not in the modes static and tokens)")
        sub.add_argument("-q", "--quiet", action="store_true", help="no progress bar")
        sub.add_argument("-v", "--verbose", action="store_true", help="print sizes and time at the end")
        return sub

    file_command(run_compress, "compress", "compress FILE").add_argument(
        "--mode", choices=MODES_OF_FILES, help="; ".join(f"{name}: {MODES[name].help}" for name in MODES_OF_FILES) +
        " (default: static with --model, or tokens with a published one; fast with --prime; else whichever of static and fast "
        "compresses the beginning of FILE better)")
    file_command(run_decompress, "decompress", "decompress FILE").add_argument(
        "--salvage", action="store_true", help="of a damaged FILE, write the intact blocks and report the missing bytes")
    command(run_info, "info", "describe the compressed FILE").add_argument("file", metavar="FILE")
    pack = command(run_pack, "pack", "quantise and entropy-code a trained model, or several as an ensemble")
    pack.add_argument("models", nargs="+", metavar="MODEL", help="a checkpoint of train_shakespeare.py")
    pack.add_argument("output", metavar="OUT")
    pack.add_argument("--fineness", type=float, default=packed.FINENESS, metavar="N",
                      help=f"quantisation steps to a matrix's root mean square (default: {packed.FINENESS})")
    check = command(run_verify, "verify", "compute everything that must be the same on every machine, and compare")
    check.add_argument("--json", action="store_true", help="print the hashes alone, as a JSON object")
    return parser.parse_args(arguments)


def run_compress(options):
    target = output(options, options.file + SUFFIX)
    data = read_input(options.file)
    primer = read_primer(options)
    mode = options.mode or ("fast" if options.prime and not options.model else None)
    model = models.load(options.model)[0] if mode is None or MODES[mode].needs_model else None
    if mode is None and options.model:
        mode = "tokens" if isinstance(model, TokenModel) else "static"
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
            return models.load_fitting(fingerprint, options.model)
        if options.salvage:
            data, missing = salvage(file, find, progress, primer)
        else:
            data = decompress(file, find, progress, primer)
    write_output(options, target, data)
    report(options, len(data), len(file), start)
    if missing:
        ranges = ", ".join(f"{first:,} to {stop - 1:,}" for first, stop in missing)
        raise CoderError(f"{len(data):,} of {header.length:,} bytes were intact and are written; missing: bytes {ranges}")


def run_info(options):
    file = read_input(options.file)
    header, blocks = read(file)
    damaged = [str(i + 1) for i, block in enumerate(blocks) if not block.whole]
    print(f"mode         {header.mode}\n"
          f"original     {header.length:,} bytes\n"
          f"compressed   {len(file):,} bytes{rate(len(file), header.length)}\n"
          f"blocks       {len(blocks)} of {1 << header.block_bits:,} bytes, {sum(b.stored for b in blocks)} stored, "
          f"{len(damaged)} damaged{': ' + ', '.join(damaged) if damaged else ''}\n"
          f"model        {header.fingerprint.hex() if any(header.fingerprint) else 'none'}\n"
          f"primer       {header.primer.hex() or 'none'}{' (of its SHA-256)' * bool(header.primer)}\n"
          f"SHA-256      {header.sha256.hex()} (of the original)")
    if damaged:
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


def run_verify(options):
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


def read_input(name):
    if name == "-" and sys.stdin is None:
        raise CoderError("standard input is closed")
    return sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()


def read_primer(options):
    """The bytes of the primer, none without --prime."""
    if not options.prime:
        return b""
    primer = Path(options.prime).read_bytes()
    if not primer:
        raise CoderError(f"{options.prime} is empty: there is nothing to learn from")
    return primer


def write_output(options, target, data):
    """Write all of the target or nothing, with the times and mode of the input."""
    if target is None or (target.exists() and not target.is_file()):        # a device or a pipe
        stream = sys.stdout.buffer if target is None else open(target, "wb")
        stream.write(data)
        stream.flush()
        return
    refuse_to_overwrite(options, target)                                    # it may have appeared while we worked
    write_atomically(target, data, like=None if options.file == "-" else options.file)


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


def report(options, original, compressed, start):
    if options.verbose and sys.stderr:
        print(f"{options.file}: {original:,} bytes, {compressed:,} compressed{rate(compressed, original)}, "
              f"{time.perf_counter() - start:.1f} s", file=sys.stderr)


if __name__ == "__main__":
    main()

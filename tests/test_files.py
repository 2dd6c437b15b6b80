"""Files that are written whole or not at all."""

import errno
import os
import stat

import pytest

from minigpt.files import write_atomically


def full_disk(descriptor):
    raise OSError(errno.ENOSPC, "no space left")


def impatient(descriptor):
    raise KeyboardInterrupt


def cannot_replace(part, path):
    raise PermissionError(errno.EACCES, "no")


@pytest.mark.parametrize("before", [None, b"old"], ids=["new file", "old file"])
def test_the_file_holds_the_data_and_nothing_is_left_beside_it(before, tmp_path):
    path = tmp_path / ("n" * 255)  # the longest name there is
    if before:
        path.write_bytes(before)
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize(
    "name, fault, error",
    [("fsync", full_disk, OSError), ("fsync", impatient, KeyboardInterrupt), ("replace", cannot_replace, PermissionError)],
    ids=["full disk", "Ctrl-C", "no permission"],
)
def test_a_failed_write_leaves_the_old_file_and_nothing_else(name, fault, error, tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, name, fault)
    with pytest.raises(error):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "nowhere" / "file", b"new")


@pytest.mark.skipif(os.name != "posix", reason="modes are those of POSIX")
def test_the_mode_is_that_of_any_new_file_or_with_the_times_that_of_another(tmp_path):
    path, other = tmp_path / "file", tmp_path / "other"
    other.touch()
    write_atomically(path, b"new")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(other.stat().st_mode)
    os.utime(other, (1e9, 1e9))
    other.chmod(0o640)
    write_atomically(path, b"new", like=other)
    assert (stat.S_IMODE(path.stat().st_mode), path.stat().st_mtime) == (0o640, 1e9)


@pytest.mark.skipif(os.name != "posix", reason="modes are those of POSIX")
def test_only_the_owner_may_read_it_before_it_has_the_mode_of_another(tmp_path, monkeypatch):
    (tmp_path / "other").touch()
    modes = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: modes.append(stat.S_IMODE(os.fstat(descriptor).st_mode)))
    write_atomically(tmp_path / "file", b"new", like=tmp_path / "other")
    assert modes == [0o600]

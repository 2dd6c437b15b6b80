"""A program that is stopped, or cannot go on, ends with one sentence."""

import ctypes
import signal
import time

import pytest

from minigpt.exits import delayed_interrupts, one_sentence


@pytest.fixture(autouse=True)
def ctrl_c_is_handled():
    """As in a terminal, wherever the tests run."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@ctypes.CFUNCTYPE(None)
def interrupted():
    """What C calls when Ctrl-C is pressed, as LLVM calls Numba."""
    raise KeyboardInterrupt


def test_ctrl_c_while_c_calls_python_ends_the_program_all_the_same(capfd):
    start = time.perf_counter()
    with pytest.raises(SystemExit, match="^stopped$"), one_sentence("program", interrupted="stopped"):
        interrupted()
        time.sleep(60)
    assert time.perf_counter() - start < 30
    assert capfd.readouterr() == ("", "")


def test_an_error_that_follows_from_it_is_not_told():
    with pytest.raises(SystemExit, match="^stopped$"), one_sentence("program", interrupted="stopped"):
        interrupted()
        raise RuntimeError("no compiled object yet")
    with pytest.raises(RuntimeError, match="something else"), one_sentence("program"):
        raise RuntimeError("something else")


def test_ctrl_c_in_what_cannot_be_stopped_any_more_is_forgotten():
    with delayed_interrupts():
        interrupted()
    time.sleep(0.05)


def test_other_errors_that_c_cannot_pass_on_are_told_as_ever(monkeypatch):
    told = []
    monkeypatch.setattr("sys.unraisablehook", told.append)
    with delayed_interrupts():
        ctypes.CFUNCTYPE(None)(lambda: 1 / 0)()
    assert [error.exc_type for error in told] == [ZeroDivisionError]

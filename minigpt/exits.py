"""How a program ends where something is wrong: with one sentence, and no traceback."""

import _thread
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def one_sentence(program: str, *errors: type[Exception], interrupted: int | str = 130) -> Iterator[None]:
    """Around a command line: SystemExit with "program: what is wrong" for these errors, OSError and MemoryError, and with
    `interrupted` for Ctrl-C."""
    try:
        with delayed_interrupts():
            yield
        if sys.stdout:
            sys.stdout.flush()
    except errors as error:
        sys.exit(f"{program}: {error}")
    except BrokenPipeError:
        _forget_output()
        sys.exit(f"{program}: the reader closed the output")
    except OSError as error:
        _forget_output()
        sys.exit(f"{program}: {error.filename or 'output'}: {error.strerror or error}")
    except MemoryError:
        sys.exit(f"{program}: not enough memory")
    except KeyboardInterrupt:
        sys.exit(interrupted)


@contextmanager
def delayed_interrupts() -> Iterator[None]:
    """Deliver each Ctrl-C, also one that comes while C calls Python, as LLVM does where Numba compiles a kernel: no exception
    can pass there, so Python prints the KeyboardInterrupt and goes on.  Here it is raised a moment later, in what follows."""

    def delay(lost):
        nonlocal timer
        if not issubclass(lost.exc_type, KeyboardInterrupt):
            return before(lost)
        timer = threading.Timer(0.01, _interrupt)  # at once, it would be raised in here
        timer.daemon = True
        timer.start()

    timer, before, sys.unraisablehook = None, sys.unraisablehook, delay
    try:
        yield
    except Exception:  # perhaps since C has not got what it called Python for
        if timer and timer.is_alive():
            raise KeyboardInterrupt from None
        raise
    finally:
        sys.unraisablehook = before
        if timer:
            timer.cancel()
            timer.join()  # it is raised now or never


def _interrupt():
    """Send the main thread the signal that it handles: SIGTERM, if only that is left (see nohup)."""
    number = signal.SIGINT if callable(signal.getsignal(signal.SIGINT)) else signal.SIGTERM
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(threading.main_thread().ident, number)
    else:
        _thread.interrupt_main(number)  # Windows: does not end a wait


def _forget_output():
    """Discard what standard output still buffers, or Python would try to flush it, and fail, again at exit."""
    if sys.stdout:
        try:
            sys.stdout.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

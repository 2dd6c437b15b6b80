"""How a program ends where something is wrong: with one sentence, and no traceback."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def one_sentence(program: str, *errors: type[Exception], interrupted: int | str = 130) -> Iterator[None]:
    """Around a command line: SystemExit with "program: what is wrong" for these errors, OSError and MemoryError, and with
    `interrupted` for Ctrl-C."""
    try:
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
    except RuntimeError as error:           # Ctrl-C while LLVM calls Numba back is lost there, and then the code is missing
        if not str(error).startswith("no compiled object yet"):
            raise
        sys.exit(interrupted)


def _forget_output():
    """Discard what standard output still buffers, or Python would try to flush it, and fail, again at exit."""
    if sys.stdout:
        try:
            sys.stdout.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

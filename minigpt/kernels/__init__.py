"""The arithmetic of the network: everything that depends on an order of floating-point operations happens here."""

from pathlib import Path


def forget_stale_code(folder):
    """Delete what Numba compiled, in `folder`, before the newest kernel was written.

    Numba compiles a function anew when its own file changes, but not when one that it calls in another file does.
    """
    newest = max(path.stat().st_mtime for path in Path(__file__).parent.glob("*.py"))
    for path in Path(folder).glob("__pycache__/*.nbi"):
        try:
            if path.stat().st_mtime < newest:
                path.unlink()
        except OSError:
            pass        # gone already, or not ours to delete: then Numba keeps its code elsewhere


forget_stale_code(Path(__file__).parent)
forget_stale_code(Path(__file__).parents[1])

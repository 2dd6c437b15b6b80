"""A lossless compressor: whatever predicts the next symbol well drives an exact range coder, and saves bits.

    coder.compress(data), coder.decompress(data), coder.open(path), coder.Compressor, coder.Decompressor       (library.py)
"""

from pathlib import Path

from minigpt.kernels.cache import forget_stale_code

forget_stale_code(Path(__file__).parent)
forget_stale_code(Path(__file__).parent / "mixing", Path(__file__).parent)

__all__ = ["Compressor", "CoderError", "Decompressor", "compress", "decompress", "open"]


def __getattr__(name):
    """Import the library when it is first used: reading the format with NumPy alone (reference.py) needs none of it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import library
    return getattr(library, name)

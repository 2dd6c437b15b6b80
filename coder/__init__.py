"""A lossless compressor: whatever predicts the next symbol well drives an exact range coder, and saves bits.

    coder.compress(data), coder.decompress(data), coder.open(path), coder.Compressor, coder.Decompressor       (library.py)
    coder.compress_message(data), coder.decompress_message(message), and of lists of them                     (messages.py)
"""

from importlib import import_module
from pathlib import Path

from minigpt.kernels.cache import forget_stale_code

forget_stale_code(Path(__file__).parent)
forget_stale_code(Path(__file__).parent / "mixing", Path(__file__).parent)

PARTS = {"library": ["Compressor", "CoderError", "Decompressor", "compress", "decompress", "open"],
         "messages": ["compress_message", "compress_messages", "decompress_message", "decompress_messages"]}
__all__ = [name for names in PARTS.values() for name in names]


def __getattr__(name):
    """Import what is used when it is first used: reading the format with NumPy alone (reference.py) needs none of it."""
    for part, names in PARTS.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{part}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

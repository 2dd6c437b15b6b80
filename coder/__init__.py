"""A lossless compressor: whatever predicts the next symbol well drives an exact range coder, and saves bits.

    coder.compress(data), coder.decompress(data), coder.open(path), coder.Compressor, coder.Decompressor       (library.py)
    coder.compress_message(data), coder.decompress_message(message), and of lists of them                     (messages.py)
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt.kernels.cache import forget_stale_code

if TYPE_CHECKING:
    from .library import CoderError, Compressor, Decompressor, compress, decompress, open
    from .messages import compress_message, compress_messages, decompress_message, decompress_messages

forget_stale_code(Path(__file__).parent)
forget_stale_code(Path(__file__).parent / "mixing", Path(__file__).parent)

__all__ = ["CoderError", "Compressor", "Decompressor", "compress", "compress_message", "compress_messages", "decompress",
           "decompress_message", "decompress_messages", "open"]


def __getattr__(name: str) -> Any:
    """Import what is used when it is first used: reading the format with NumPy alone (reference.py) needs none of it."""
    if name in __all__:
        return getattr(import_module(f"{__name__}.{'messages' if 'message' in name else 'library'}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

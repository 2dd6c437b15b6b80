"""The arithmetic of the network: everything that depends on an order of floating-point operations happens here."""

from pathlib import Path

from .cache import forget_stale_code

forget_stale_code(Path(__file__).parent)
forget_stale_code(Path(__file__).parents[1])

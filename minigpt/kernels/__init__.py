"""The compiled kernels: every computation of the network whose result depends on the order of floating-point operations."""

from pathlib import Path

from .cache import forget_stale_code

forget_stale_code(Path(__file__).parent)
forget_stale_code(Path(__file__).parents[1])

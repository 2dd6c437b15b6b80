"""A lossless compressor: whatever predicts the next symbol well drives an exact range coder, and saves bits."""

from pathlib import Path

from minigpt.kernels.cache import forget_stale_code

forget_stale_code(Path(__file__).parent)
forget_stale_code(Path(__file__).parent / "mixing", Path(__file__).parent)

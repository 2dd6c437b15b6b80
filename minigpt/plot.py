"""The loss curve of a run, as a picture."""

import io
from pathlib import Path

import numpy as np

from .files import write_atomically


def draw_losses(path: str | Path, losses: np.ndarray, validations: list[tuple[int, float]]) -> None:
    """Write a PNG of the losses (n,) of steps 1 .. n and the validations (step, loss), in nats per token.

    Nothing happens where matplotlib is not installed or the file cannot be written: a picture is no reason to end a run.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    figure = Figure(figsize=(8, 4.5))
    axes = figure.subplots()
    steps = np.arange(1, len(losses) + 1)
    axes.plot(steps, losses, color="tab:blue", alpha=0.3, linewidth=0.8, label="training, each step")
    width = min(50, len(steps))
    if width:
        smooth = np.convolve(losses, np.ones(width) / width, "valid")
        axes.plot(steps[width - 1 :], smooth, color="tab:blue", label=f"training, mean of {width} steps")
    if validations:
        axes.plot(*zip(*validations), "o-", color="tab:orange", label="validation, whole split")
    axes.set(xlabel="step", ylabel="cross-entropy (nats per token)")
    axes.grid(alpha=0.3)
    axes.legend()
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=120, bbox_inches="tight")
    try:
        write_atomically(path, image.getvalue())
    except OSError:
        pass

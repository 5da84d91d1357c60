"""The training curves as a picture."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from examples.quickstart.files import write_bytes


def draw_curves(
    path: Path,
    losses: dict[str, list[float]],
    validation: dict[str, list[tuple[int, float]]],
    *,
    window: int = 20,
) -> None:
    """Loss and validation R@1 over the steps, one colour per head.

    Args:
        path: the PNG, written beside and renamed.
        losses: loss of each step, by head.
        validation: (step, R@1 in percent), by head.
        window: the loss is shown as its mean over this number of steps.

    Raises:
        ImportError: if matplotlib is missing.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "training curves need matplotlib: pip install 'muse-adapter[bench]'"
        ) from error
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for name, values in losses.items():
        width = min(window, len(values))
        mean = np.convolve(values, np.ones(width) / width, mode="valid")
        left.plot(np.arange(width, len(values) + 1), mean, label=name)
    for name, points in validation.items():
        right.plot(*zip(*points, strict=True), marker="o", markersize=3, label=name)
    left.set(xlabel="step", ylabel="InfoNCE", title=f"training loss, mean over {window} steps")
    right.set(xlabel="step", ylabel="R@1 (%)", title="validation, text to video", ylim=(0, None))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    left.legend(frameon=False)
    picture = io.BytesIO()
    figure.savefig(picture, dpi=120, format="png")
    write_bytes(path, picture.getvalue())

"""Pictures: what a search found, as strips of frames, and the training curves."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from examples.quickstart.captions import Clip
from examples.quickstart.files import ensure_folder, write_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Result = tuple[Clip, float, Tensor, Tensor]
Row = tuple[str, str, int, Sequence[Result]]

COLUMNS = 2  # queries side by side
HIT, OTHER, MISS = "#1a7f37", "#57606a", "#b3261e"
STRIP_WIDTH, STRIP_HEIGHT = 4.4, 0.6  # inches


def contact_sheet(path: Path, rows: Sequence[Row]) -> None:
    """Write a PNG that shows, for every query, its best clips from first to last.

    Args:
        path: Path of the picture; its folder is made if need be.
        rows: For each query its caption, the id of the clip it belongs to, the rank of that clip,
            and the best clips: clip, score, frames (T, 3, height, width) uint8 and mask (T,).
            Masked frames are left blank; the clip with that id is marked as the hit, and where it
            is not among the best, its rank is written down.

    Raises:
        ValueError: There are no rows.
        ImportError: Matplotlib is not installed.
        OSError: The picture cannot be written.
    """
    if not rows:
        raise ValueError("a contact sheet needs at least one query")
    columns = min(COLUMNS, len(rows))
    lines = -(-len(rows) // columns)
    clips = max(len(results) for *_, results in rows)
    size = (columns * (STRIP_WIDTH + 3.3), lines * (clips + 1.1) * STRIP_HEIGHT)
    figure = _figure(figsize=size, dpi=110, facecolor="white")
    for number, (query, target, place, results) in enumerate(rows):
        line, column = divmod(number, columns)
        left = column / columns + 0.1 / size[0]
        top = 1 - line / lines
        title = textwrap.fill(f"“{query}”", 76, max_lines=2, placeholder=" …”")
        figure.text(left, top - 0.3 / size[1], title, fontsize=10.5, weight="bold", va="center")
        if all(clip.id != target for clip, *_ in results):
            figure.text(left, top - 0.57 / size[1], f"the right clip is at rank {place}",
                        fontsize=8.5, color=MISS, va="center")  # fmt: skip
        for rank, result in enumerate(results, start=1):
            bottom = top - (0.67 + rank * STRIP_HEIGHT) / size[1]
            strip = (left, bottom, STRIP_WIDTH / size[0], (STRIP_HEIGHT - 0.06) / size[1])
            _draw_strip(figure, strip, rank, result, hit=result[0].id == target)
    _write_png(path, figure)


def _draw_strip(
    figure: Figure,
    strip: tuple[float, float, float, float],
    rank: int,
    result: Result,
    *,
    hit: bool,
) -> None:
    clip, score, frames, mask = result
    axes = figure.add_axes(strip)
    axes.imshow(strip_of(frames, mask).permute(1, 2, 0).numpy(), interpolation="nearest")
    axes.set_anchor("W")
    axes.axis("off")
    colour, mark = (HIT, "hit") if hit else (OTHER, "")
    text = "\n".join(textwrap.wrap(clip.caption, 46, max_lines=3, placeholder=" …"))
    axes.annotate(
        f"{rank}.  {score:.3f}  {mark}\n{text}",
        xy=(1, 0.5),
        xytext=(6, 0),
        xycoords="axes fraction",
        textcoords="offset points",
        fontsize=7.5,
        va="center",
        color=colour,
        weight="bold" if hit else "normal",
        annotation_clip=False,
    )
    if hit:
        axes.axhline(-0.5, color=HIT, linewidth=5)
        axes.axhline(axes.get_ylim()[0], color=HIT, linewidth=5)


def strip_of(frames: Tensor, mask: Tensor, gap: int = 1) -> Tensor:
    """Lay frames side by side, white between them and in place of masked ones.

    Args:
        frames: (T, 3, height, width), uint8.
        mask: (T,), bool.
        gap: Pixels of white around every frame.

    Returns:
        (3, height + 2 * gap, T * (width + 2 * gap)), uint8.
    """
    shown = torch.where(mask[:, None, None, None], frames, 255)
    framed = F.pad(shown, (gap, gap, gap, gap), value=255)
    return torch.cat(list(framed), dim=2)


def draw_curves(
    path: Path,
    losses: dict[str, list[float]],
    validation: dict[str, list[tuple[int, float]]],
    *,
    window: int = 20,
) -> None:
    """Draw loss and validation R@1 over the steps, one colour per head.

    Args:
        path: Path of the PNG.
        losses: Loss of each step, by head.
        validation: (step, R@1 in percent), by head.
        window: The loss is shown as its mean over this number of steps, at most half of them.

    Raises:
        ImportError: Matplotlib is not installed.
    """
    figure = _figure(figsize=(9, 3.6), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2)
    window = max(1, min([window, *(len(values) // 2 for values in losses.values())]))
    for name, values in losses.items():
        mean = np.convolve(values, np.ones(window) / window, mode="valid")
        # A line through one point is not seen.
        marker = "o" if len(mean) == 1 else None
        left.plot(np.arange(window, len(values) + 1), mean, marker=marker, label=name)
    for name, points in validation.items():
        right.plot(*zip(*points, strict=True), marker="o", markersize=3, label=name)
    left.set(xlabel="step", ylabel="InfoNCE", title=f"training loss, mean over {window} steps")
    right.set(xlabel="step", ylabel="R@1 (%)", title="validation, text to video", ylim=(0, None))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    left.legend(frameon=False)
    _write_png(path, figure)


def _figure(**options: Any) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "drawing pictures needs matplotlib: pip install 'muse-adapter[bench]'"
        ) from error
    return Figure(**options)


def _write_png(path: Path, figure: Figure) -> None:
    content = io.BytesIO()
    figure.savefig(content, format="png")
    ensure_folder(path.parent)
    write_bytes(path, content.getvalue())

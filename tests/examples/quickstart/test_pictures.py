"""Strips of frames and the contact sheet."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("numpy", reason="rendering clips needs numpy")
pytest.importorskip("tqdm", reason="the quickstart needs tqdm")

import numpy as np

from examples.quickstart import pictures
from examples.quickstart.captions import Clip
from examples.quickstart.pictures import contact_sheet, strip_of
from examples.quickstart.scenes import QUERY
from examples.quickstart.splits import load_split


def test_strips_leave_masked_frames_blank() -> None:
    frames = torch.arange(1, 4, dtype=torch.uint8)[:, None, None, None].expand(3, 3, 4, 5)
    strip = strip_of(frames, torch.tensor([True, True, False]))
    assert strip.shape == (3, 6, 21)
    assert (strip[:, 1:-1, 1:6] == 1).all() and (strip[:, 1:-1, 8:13] == 2).all()
    assert (strip[:, :, 13:] == 255).all() and (strip[:, 0] == 255).all()


def test_contact_sheet_marks_the_hit(rendered: tuple, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pictures need matplotlib: muse-adapter[bench]")
    av = pytest.importorskip("av")
    split = load_split(rendered[1]["test"], num_frames=8, size=32, cache=None, progress=False)
    results = [
        (clip, 0.9 - 0.1 * i, split.frames[i], split.mask[i])
        for i, clip in enumerate(split.clips[:5])
    ]

    def green(target: str) -> int:
        path = tmp_path / "deep" / "sheet.png"
        contact_sheet(path, [(QUERY, target, 7, results)])
        assert [file.name for file in path.parent.iterdir()] == ["sheet.png"]
        with av.open(str(path)) as container:
            picture = next(container.decode(video=0)).to_ndarray(format="rgb24").astype(int)
        assert min(picture.shape[:2]) > 300
        return int((np.abs(picture - [0x1A, 0x7F, 0x37]).max(axis=-1) < 3).sum())

    assert green("not among them") == 0
    assert green(split.clips[3].id) > 500


def test_contact_sheet_says_at_which_rank_the_right_clip_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib", reason="pictures need matplotlib: muse-adapter[bench]")
    drawn = []
    monkeypatch.setattr(pictures, "_write_png", lambda _, figure: drawn.append(figure))
    frames, mask = torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.ones(2, dtype=torch.bool)
    results = [(Clip("a", tmp_path, "a"), 0.5, frames, mask)]
    contact_sheet(tmp_path / "sheet.png", [("one", "a", 1, results), ("two", "b", 17, results)])
    texts = [text.get_text() for text in drawn[0].texts]
    assert texts == ["“one”", "“two”", "the right clip is at rank 17"]


def test_contact_sheet_without_rows(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one query"):
        contact_sheet(tmp_path / "sheet.png", [])


@pytest.mark.parametrize(("steps", "width"), [(2, 1), (9, 4), (100, 20)])
def test_curves_show_the_mean_over_some_steps(
    steps: int, width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib", reason="pictures need matplotlib: muse-adapter[bench]")
    drawn = []
    monkeypatch.setattr(pictures, "_write_png", lambda _, figure: drawn.append(figure))
    pictures.draw_curves(
        tmp_path / "curves.png", {"muse": [float(i) for i in range(steps)]}, {"muse": [(steps, 5)]}
    )
    loss, validation = drawn[0].axes
    assert loss.get_title() == f"training loss, mean over {width} steps"
    x, y = loss.lines[0].get_data()
    assert x.tolist() == list(range(width, steps + 1))
    np.testing.assert_allclose(y, x - (width + 1) / 2)
    assert validation.lines[0].get_xydata().tolist() == [[steps, 5]]
    assert validation.lines[0].get_marker() == "o"


def test_a_loss_of_one_step_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib", reason="pictures need matplotlib: muse-adapter[bench]")
    drawn = []
    monkeypatch.setattr(pictures, "_write_png", lambda _, figure: drawn.append(figure))
    pictures.draw_curves(tmp_path / "curves.png", {"muse": [2.0]}, {"muse": [(1, 5.0)]})
    assert drawn[0].axes[0].lines[0].get_marker() == "o"

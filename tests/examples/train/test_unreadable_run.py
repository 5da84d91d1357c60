"""Whole runs with videos that cannot be read, or break behind their first frame."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.training_corpus import launch, settings_of, start, weights

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("corpus")]


@pytest.fixture(scope="module")
def broken(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus with more videos of each part: one of no frame, and one that changes its size."""
    from tests.support.video_files import grey_video

    folder = tmp_path_factory.mktemp("broken")
    shutil.copytree(corpus / "videos", folder / "videos")
    shutil.copytree(corpus / "clip", folder / "clip")
    rows = [(corpus / "captions.csv").read_text()]
    sizes = [
        grey_video(folder / f"{side}.ts", 6, side, side, codec="libx264", rate=25).read_bytes()
        for side in (32, 64)
    ]
    for part in ("train", "validation", "test"):
        (folder / "videos" / f"none-{part}.mp4").write_text("no video")
        (folder / "videos" / f"breaks-{part}.ts").write_bytes(b"".join(sizes))
        rows += [f"{kind}-{part},a small dog,{part}" for kind in ("none", "breaks")]
    (folder / "captions.csv").write_text("\n".join(rows))
    return folder


def run(folder: Path, name: str, processes: int, *, skip: bool) -> tuple[list[Any], Path]:
    from examples.train.settings import Execution

    how = Execution(output=folder / name, processes=processes, progress=False, skip_unreadable=skip)
    settings = settings_of(folder, dropout=0.0, epochs=1, lr=1e-4)
    return start(*((settings, how, rank) for rank in launch(processes))), how.output


def test_left_out_alike_by_one_process_and_two(broken: Path) -> None:
    codes, one = run(broken, "one", 1, skip=True)
    assert codes == [0]
    codes, two = run(broken, "two", 2, skip=True)
    assert codes == [0, 0]
    results = [json.loads((folder / "results.json").read_text()) for folder in (one, two)]
    assert results[0]["sizes"]["train"] == {"captions": 17, "videos": 9, "left_out": 1}
    assert results[0]["validation"][0]["left_out"] == 2
    for result in results:
        assert (result["test"]["videos"], result["test"]["left_out"]) == (2, 2)
    assert results[1]["test"] == pytest.approx(results[0]["test"])
    kept = json.loads((one / "unreadable.json").read_text())
    assert [Path(file).name for file in kept] == [
        f"none-{part}.mp4" for part in ("train", "validation", "test")
    ]
    alone, together = weights(one / "last"), weights(two / "last")
    for name, tensor in alone.items():
        torch.testing.assert_close(together[name], tensor, rtol=0.0, atol=1e-6, msg=name)


def test_an_error_of_one_process_ends_both(broken: Path) -> None:
    """Before training by the first frames; where a video breaks later, when it is read."""
    codes, folder = run(broken, "error", 2, skip=False)
    assert codes == [1, 1]
    assert not (folder / "settings.json").exists()
    for file in (broken / "videos").glob("none-*"):
        shutil.copyfile(broken / "videos" / "v0.mp4", file)
    codes, folder = run(broken, "late", 2, skip=False)
    assert codes[0] and codes[1]
    assert (folder / "settings.json").is_file() and not (folder / "results.json").exists()

"""Settings become those of a folder once everything that they name was found good."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sentence_transformers", reason="needs sentence-transformers")
pytest.importorskip("datasets", reason="needs datasets: muse-adapter[train]")

from examples.train.data import Part, load_parts, missing_of
from examples.train.folder import (
    MISSING_FILE,
    SETTINGS_FILE,
    UNREADABLE_FILE,
    LeftOut,
    check_same_run,
    keep_run,
    kept_left_out,
)
from examples.train.run import check_videos, run
from examples.train.settings import Execution, RunSettings
from examples.train.unreadable import describe
from tests.support.training_corpus import settings_of

NOTHING = LeftOut([], {})
PLACES = {"annotations": "a", "videos": "v", "model": "m"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"objective": "triplet"}, "objective must be one of contrastive, sigmoid, eercf, video-"),
        ({"frames": 0}, "frames must be at least 1, got 0"),
        ({"words": 0}, "words must be at least 1"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"batch_size": 1}, "batch_size must be at least 2, got 1"),
        ({"lr": 0.0}, r"lr must be positive, got 0\.0"),
        ({"lr": float("nan")}, "lr must be positive, got nan"),
        ({"fps": -1.0}, r"fps must be positive, got -1\.0"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1\.0"),
        ({"backbone_lr_scale": -1.0}, "backbone_lr_scale must be at least 0"),
        ({"seed": -1}, r"seed must be in 0\.\."),
        ({"cache_dtype": "float32"}, "add --freeze"),
        ({"cache_dtype": "int8", "freeze": True}, "cache_dtype must be one of float32, float16"),
    ],
    ids=str,
)
def test_wrong_settings(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RunSettings.of("msrvtt", **PLACES, **fields)


@pytest.mark.parametrize("name", ["workers", "save_steps", "eval_batch_size", "processes"])
def test_wrong_execution(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least [01], got -1"):
        Execution(output=Path("o"), **{name: -1})


@pytest.mark.parametrize(
    ("fields", "how", "message"),
    [
        ({"batch_size": 10}, {}, "a step has 10 different videos, but there are only 8"),
        ({"batch_size": 5}, {"processes": 2}, "a batch of 5 cannot be shared by 2 processes"),
        ({"model": "/nowhere/clip"}, {}, "nowhere"),
        ({}, {"report_to": ["nothing"]}, "nothing is not supported"),
        ({}, {"cache_tokens": Path("t")}, "tokens need both"),
    ],
    ids=["batch", "processes", "model", "report", "tokens"],
)
def test_what_does_not_fit_leaves_no_settings(
    fields: dict[str, Any], how: dict[str, Any], message: str, corpus: Path, tmp_path: Path
) -> None:
    execution = Execution(output=tmp_path / "run", progress=False, **how)
    with pytest.raises((ValueError, OSError), match=message):
        run(settings_of(corpus, **fields), execution)
    assert not (execution.output / SETTINGS_FILE).exists()


def test_settings_that_an_older_run_did_not_know(tmp_path: Path) -> None:
    execution = Execution(output=tmp_path)
    settings = RunSettings.of("msvd", **PLACES, freeze=True)
    keep_run(settings, execution, NOTHING)
    path = tmp_path / SETTINGS_FILE
    path.write_text(path.read_text().replace('"cache_dtype": null,', ""))
    check_same_run(settings, execution)
    with pytest.raises(ValueError, match="cache_dtype None and not float16: use another --output"):
        check_same_run(dataclasses.replace(settings, cache_dtype="float16"), execution)
    path.write_text("{")
    with pytest.raises(ValueError, match=r"settings\.json is damaged"):
        check_same_run(settings, execution)
    path.write_text("[]")
    with pytest.raises(
        ValueError, match=r"damaged \(it must be an object, got list\): use another"
    ):
        check_same_run(settings, execution)


def test_a_run_that_was_killed_before_it_kept_its_settings(tmp_path: Path) -> None:
    """Then it never began, and its videos are looked at again."""
    execution = Execution(output=tmp_path)
    left_out = LeftOut(["dog"], {"v/cat.mp4": "cannot read v/cat.mp4"})
    keep_run(RunSettings.of("msvd", **PLACES), execution, left_out)
    assert kept_left_out(execution) == left_out
    for name in (SETTINGS_FILE, MISSING_FILE):
        content = (tmp_path / name).read_text()
        (tmp_path / name).unlink()
        assert kept_left_out(execution) is None
        (tmp_path / name).write_text(content)
    (tmp_path / UNREADABLE_FILE).write_text("[]")
    with pytest.raises(ValueError, match=r"unreadable\.json is damaged \(it must be an object"):
        kept_left_out(execution)


def test_a_run_that_goes_on_has_the_same_videos(corpus: Path, tmp_path: Path) -> None:
    """Whatever has come or gone since it began."""
    for name in ("captions.csv", "clip", "videos"):
        (tmp_path / name).symlink_to(corpus / name)
    (tmp_path / "videos").unlink()
    shutil.copytree(corpus / "videos", tmp_path / "videos")
    settings = settings_of(tmp_path, skip_missing=True)
    (tmp_path / "videos" / "v1.mp4").rename(tmp_path / "v1.mp4")
    with pytest.warns(UserWarning, match="1 of 12 videos are not in .* v1; they are left out"):
        began = load_parts(settings)
    assert missing_of(began) == ["v1"] and began["train"].left_out == 1
    (tmp_path / "v1.mp4").rename(tmp_path / "videos" / "v1.mp4")
    assert load_parts(settings, missing_of(began)) == began
    (tmp_path / "videos" / "v2.mp4").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"1 of 11 videos .*: v2\. The run began with these"
    ):
        load_parts(settings, missing_of(began))


def test_a_wrong_model_is_named_before_all_videos_are_opened(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "examples.train.run.find_unreadable", lambda *_, **__: pytest.fail("opened")
    )
    with pytest.raises(OSError, match="nowhere"):
        run(settings_of(corpus, model="/nowhere/clip"), Execution(output=tmp_path, progress=False))


def with_broken(corpus: Path, folder: Path) -> dict[str, Part]:
    """The parts of the corpus, with one video of each that cannot be read."""
    (folder / "broken.mp4").write_text("no video")
    broken = str(folder / "broken.mp4")
    parts = load_parts(settings_of(corpus))
    return {
        name: dataclasses.replace(
            part,
            captions=[*part.captions, "a dog"],
            videos=[*part.videos, broken.replace("broken", f"{name}-broken")],
            targets=[*part.targets, len(part.videos)],
        )
        for name, part in parts.items()
    }


def test_unreadable_videos(corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    parts = with_broken(corpus, tmp_path)
    execution = Execution(output=tmp_path, progress=False)
    with pytest.raises(ValueError, match=r"3 of 15 videos cannot be read:\n .*train-broken") as e:
        check_videos(parts, execution, None)
    assert "No such file" in str(e.value) and "--skip-unreadable" in str(e.value)
    skipping = dataclasses.replace(execution, skip_unreadable=True)
    unreadable = check_videos(parts, skipping, None)
    assert "They are left out" in caplog.text
    left = parts["train"].without(unreadable)
    assert len(left.videos) == 8 and left.left_out == 1 and len(left.captions) == 16
    # A run that goes on does not look again, and leaves out the same.
    keep_run(settings_of(corpus), skipping, LeftOut([], unreadable))
    kept = kept_left_out(skipping)
    assert check_videos({}, skipping, kept) == unreadable
    with pytest.raises(ValueError, match="cannot be read"):
        check_videos(parts, execution, kept)


def test_ten_are_named() -> None:
    lines = describe({f"v{i}": f"cannot read v{i}: reason" for i in range(12)}, 99).splitlines()
    assert lines[0] == "12 of 99 videos cannot be read:" and len(lines) == 12
    assert lines[10:] == ["  cannot read v9: reason", "  and 2 more"]

"""The rendered corpus: its splits, its files, an interrupted rendering."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("numpy", reason="rendering clips needs numpy")
pytest.importorskip("tqdm", reason="the quickstart needs tqdm")

import numpy as np

from examples.quickstart import corpus as corpus_module
from examples.quickstart.corpus import synthetic_corpus
from examples.quickstart.drawing import draw_scene
from examples.quickstart.pictures import contact_sheet
from examples.quickstart.scenes import (
    BYSTANDER_SHARE,
    QUERY,
    TWO_STEPS_SHARE,
)
from examples.quickstart.splits import load_split
from tests.support.quickstart import SIZES


def test_splits_share_no_caption(rendered: tuple) -> None:
    _, splits = rendered
    assert {name: len(clips) for name, clips in splits.items()} == SIZES
    captions = {name: {clip.caption for clip in clips} for name, clips in splits.items()}
    assert len(captions["test"]) == SIZES["test"]
    assert len(captions["validation"]) == SIZES["validation"]
    assert sum(map(len, captions.values())) == len(set().union(*captions.values()))
    assert len({clip.id for clips in splits.values() for clip in clips}) == sum(SIZES.values())
    assert splits["test"][0].caption == QUERY
    assert all(clip.path.is_file() for clips in splits.values() for clip in clips)


def test_every_split_consists_of_pairs(rendered: tuple) -> None:
    _, splits = rendered
    for clips in splits.values():
        by_id = {clip.id: clip for clip in clips}
        assert all(by_id[clip.reversal].reversal == clip.id for clip in clips)
        assert all(clip.reversal != clip.id for clip in clips)


def test_full_size_splits_share_no_meaning() -> None:
    sizes = {"test": 200, "validation": 100, "train": 2000}
    splits = corpus_module._sample_splits(0, sizes)
    meanings = {
        name: [scene.meaning() for pair in pairs for scene in pair.scenes]
        for name, pairs in splits.items()
    }
    assert {name: len(values) for name, values in meanings.items()} == sizes
    for name in ("test", "validation"):
        assert len(set(meanings[name])) == sizes[name]
    train_scenes = [scene for pair in splits["train"] for scene in pair.scenes]
    two_steps = sum(len(scene.motion) == 2 for scene in train_scenes)
    bystanders = sum(scene.bystander is not None for scene in train_scenes)
    assert abs(two_steps / sizes["train"] - TWO_STEPS_SHARE) < 0.05
    assert abs(bystanders / sizes["train"] - BYSTANDER_SHARE) < 0.05
    test, validation, train = (set(values) for values in meanings.values())
    assert not test & validation and not test & train and not validation & train


@pytest.mark.parametrize("num_frames", [4, 8, 16], ids="T{}".format)
def test_pooling_without_order_cannot_tell_a_pair_apart(rendered: tuple, num_frames: int) -> None:
    _, splits = rendered
    split = load_split(splits["test"], num_frames=num_frames, size=32, cache=None, progress=False)
    row = {clip.id: i for i, clip in enumerate(split.clips)}
    for i, clip in enumerate(split.clips):
        other = row[clip.reversal]
        assert torch.equal(split.mask[i], split.mask[other])
        own, turned = split.frames[i][split.mask[i]], split.frames[other][split.mask[other]].flip(0)
        # Each frame is coded by itself with a fixed quantiser, so nothing but the order differs.
        assert (own.int() - turned.int()).abs().max() <= 1
        assert (own.int() - turned.flip(0).int()).abs().max() > 40, "the order must matter"


def test_files_are_close_to_what_was_drawn(rendered: tuple) -> None:
    av = pytest.importorskip("av")
    _, splits = rendered
    sizes = {name: SIZES[name] for name in ("test", "validation", "train")}
    pair = corpus_module._sample_splits(0, sizes)["test"][0]
    video = draw_scene(pair.scenes[0], np.random.default_rng(pair.seed))
    with av.open(str(splits["test"][0].path)) as container:
        assert container.streams.video[0].average_rate == 8
        decoded = np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])
    assert decoded.shape == video.shape
    assert np.abs(decoded.astype(int) - video.astype(int)).mean() < 6


def test_equal_seeds_give_equal_files_and_other_seeds_others(
    rendered: tuple, tmp_path: Path
) -> None:
    folder, splits = rendered
    again = synthetic_corpus(tmp_path / "again", **SIZES, progress=False)
    for name, clips in splits.items():
        assert (folder / f"{name}.csv").read_bytes() == (
            tmp_path / "again" / f"{name}.csv"
        ).read_bytes()
        for clip, same in zip(clips, again[name], strict=True):
            assert clip.path.read_bytes() == same.path.read_bytes()
    other = synthetic_corpus(tmp_path / "again", seed=1, **SIZES, progress=False)
    assert [c.caption for c in other["train"]] != [c.caption for c in splits["train"]]
    assert not {c.path for c in other["test"]} & {c.path for c in again["test"]}


def test_rendering_goes_on_after_an_interrupt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("av")
    encode, calls = corpus_module.encode, []

    def interrupted(av: object, frames: np.ndarray) -> bytes:
        calls.append(1)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return encode(av, frames)

    monkeypatch.setattr(corpus_module, "encode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        synthetic_corpus(tmp_path, **SIZES, progress=False)
    left = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert 0 < len(left) < sum(SIZES.values())
    assert {path.suffix for path in left} == {".mp4"}, "captions come last, nothing half-written"

    monkeypatch.setattr(corpus_module, "encode", encode)
    splits = synthetic_corpus(tmp_path, **SIZES, progress=False)
    assert all(path.stat().st_mtime_ns == time for path, time in left.items() if paired(path, left))
    load_split(splits["train"], num_frames=4, size=16, cache=None, progress=False)

    monkeypatch.setattr(corpus_module, "encode", lambda *_: pytest.fail("rendered once more"))
    assert synthetic_corpus(tmp_path, **SIZES, progress=False) == splits


def paired(path: Path, files: dict[Path, int]) -> bool:
    """Whether the other clip of a pair is there too; half a pair is rendered anew."""
    id, digest = path.stem[:-9], path.stem[-9:]
    other = {"a": "b", "b": "a"}[id[-1]]
    return path.with_name(f"{id[:-1]}{other}{digest}.mp4") in files


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"train": 7}, "train must be an even number of at least 2 clips, got 7"),
        ({"validation": 0}, "validation must be .* got 0"),
        ({"test": -2}, "test must be .* got -2"),
    ],
    ids=["odd", "none", "negative"],
)
def test_wrong_corpus_sizes(tmp_path: Path, sizes: dict[str, int], message: str) -> None:
    pytest.importorskip("av")
    with pytest.raises(ValueError, match=message):
        synthetic_corpus(tmp_path, **sizes)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("module", ["av", "matplotlib.figure"], ids=["video", "bench"])
def test_a_missing_extra_is_named_with_its_install_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    if module == "av":
        with pytest.raises(ImportError, match=r"PyAV: pip install 'muse-adapter\[video\]'"):
            synthetic_corpus(tmp_path / "new", **SIZES)
    else:
        with pytest.raises(ImportError, match=r"matplotlib: pip install 'muse-adapter\[bench\]'"):
            contact_sheet(tmp_path / "new" / "sheet.png", [("query", "id", 1, [])])
    assert not (tmp_path / "new").exists()

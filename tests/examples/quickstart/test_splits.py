"""Decoding: aligned, once per video, kept, damage and unreadable files named."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

pytest.importorskip("numpy", reason="rendering clips needs numpy")
pytest.importorskip("tqdm", reason="the quickstart needs tqdm")

from examples.quickstart import splits as splits_module
from examples.quickstart.captions import Clip
from examples.quickstart.corpus import synthetic_corpus
from examples.quickstart.pictures import contact_sheet
from examples.quickstart.splits import Split, load_split
from tests.support.quickstart import SIZES


def with_damage(clips: list[Clip], folder: Path) -> list[Clip]:
    """Two unreadable files among the clips."""
    folder.mkdir(exist_ok=True)
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "noise.mp4").write_bytes(b"noise" * 100)
    bad = [Clip(name, folder / f"{name}.mp4", name) for name in ("empty", "noise")]
    return [clips[0], bad[0], clips[1], bad[1], clips[2]]


def test_a_split_is_aligned_and_masks_short_clips(rendered: tuple) -> None:
    _, splits = rendered
    split = load_split(splits["train"], num_frames=20, size=24, cache=None, progress=False)
    assert split.clips == splits["train"]
    assert (
        split.frames.shape == (SIZES["train"], 20, 3, 24, 24) and split.frames.dtype == torch.uint8
    )
    assert split.mask.shape == (SIZES["train"], 20) and split.mask.dtype == torch.bool
    assert not split.mask.all() and split.mask[:, :5].all()
    assert not split.frames[~split.mask].any()
    assert split.frames[split.mask].flatten(1).any(dim=1).all()
    for number in (0, 5):
        one = load_split([split.clips[number]], num_frames=20, size=24, cache=None, progress=False)
        assert torch.equal(one.frames[0], split.frames[number])


@pytest.mark.parametrize("cached", [False, True], ids=["no_cache", "cache"])
def test_unreadable_files_are_left_out_with_one_warning(
    rendered: tuple, tmp_path: Path, cached: bool
) -> None:
    clips = with_damage(rendered[1]["test"], tmp_path / "bad")
    cache = tmp_path / "cache" if cached else None
    for _ in range(2):  # from the cache the second time
        with pytest.warns(UserWarning) as caught:
            split = load_split(clips, num_frames=4, size=16, cache=cache, progress=False)
        assert len(caught) == 1
        for text in ("2 of 5 videos are left out", "empty.mp4", "noise.mp4", "Invalid data"):
            assert text in str(caught[0].message)
        assert split.clips == [clips[0], clips[2], clips[4]]
        assert len(split.frames) == len(split.mask) == 3
        assert split.video.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("select", "message"),
    [
        (lambda clips: [], "there are no clips to read"),
        (
            lambda clips: [clips[1], clips[3]],
            r"none of 2 videos can be read:\n.*empty\.mp4: it is no",
        ),
    ],
    ids=["no_clips", "all_unreadable"],
)
def test_nothing_to_read_is_an_error(
    rendered: tuple, tmp_path: Path, select: Callable[[list[Clip]], list[Clip]], message: str
) -> None:
    clips = select(with_damage(rendered[1]["test"], tmp_path / "bad"))
    with pytest.raises(ValueError, match=message):
        load_split(clips, num_frames=4, size=16, cache=None, progress=False)


def test_at_most_ten_unreadable_videos_are_listed_one_a_line(tmp_path: Path) -> None:
    files = [tmp_path / f"{number:02}.mp4" for number in range(12)]
    for file in files:
        file.write_bytes(b"no video")
    clips = [Clip(file.name, file, "text") for file in files]
    with pytest.raises(ValueError) as caught:
        load_split(clips, num_frames=4, size=16, cache=None, progress=False)
    first, *lines = str(caught.value).splitlines()
    assert first == "none of 12 videos can be read:" and lines[-1] == "  and 2 more"
    assert [line.split(": ")[0] for line in lines[:-1]] == [
        f"  cannot read {f}" for f in files[:10]
    ]
    assert all("it is no video, or its header is damaged" in line for line in lines[:-1])


def test_a_video_is_decoded_once_and_again_only_when_something_changes(
    rendered: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = rendered[1]["train"]
    files = [tmp_path / f"{i}.mp4" for i in range(3)]
    for file, clip in zip(files, source, strict=False):
        file.write_bytes(clip.path.read_bytes())
    clips = [Clip(f"{i}-{j}", file, f"{i} {j}") for j in range(2) for i, file in enumerate(files)]
    read: list[str] = []
    plain = splits_module.read_frames
    monkeypatch.setattr(
        splits_module,
        "read_frames",
        lambda path, *a, **k: read.append(path.name) or plain(path, *a, **k),
    )

    def load(num_frames: int = 4) -> Split:
        read.clear()
        return load_split(
            clips, num_frames=num_frames, size=16, cache=tmp_path / "cache", progress=False
        )

    first = load()
    assert sorted(read) == ["0.mp4", "1.mp4", "2.mp4"]
    assert len(first.frames) == 3 and first.video.tolist() == [0, 1, 2, 0, 1, 2]
    again = load()
    assert not read
    assert again.clips == first.clips
    assert torch.equal(again.frames, first.frames) and torch.equal(again.mask, first.mask)
    assert load(num_frames=5).frames.shape[1] == 5 and len(read) == 3

    files[1].write_bytes(source[5].path.read_bytes())
    changed = load()
    assert len(read) == 3
    assert not torch.equal(changed.frames[1], first.frames[1])
    assert {file.suffix for file in (tmp_path / "cache").iterdir()} == {".pt"}


def test_an_interrupt_while_decoding_leaves_nothing(
    rendered: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(splits_module.torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load_split(
            rendered[1]["test"], num_frames=4, size=16, cache=tmp_path / "cache", progress=False
        )
    assert not list((tmp_path / "cache").iterdir())


@pytest.mark.parametrize("target", ["corpus", "cache", "sheet"])
def test_an_unwritable_target_is_named(rendered: tuple, tmp_path: Path, target: str) -> None:
    (tmp_path / "file").write_text("in the way")
    folder = tmp_path / "file" / "sub"
    with pytest.raises(OSError, match=r"cannot make the folder .*file"):
        if target == "corpus":
            synthetic_corpus(folder, **SIZES, progress=False)
        elif target == "cache":
            load_split(rendered[1]["test"], num_frames=4, size=16, cache=folder, progress=False)
        else:
            contact_sheet(folder / "sheet.png", [("query", "id", 1, [])])


def test_a_damaged_cache_of_frames_is_named(rendered: tuple, tmp_path: Path) -> None:
    clips = rendered[1]["test"][:1]
    load_split(clips, num_frames=4, size=16, cache=tmp_path, progress=False)
    (file,) = tmp_path.iterdir()
    for content in (b"", b"junk", file.read_bytes()[:-100]):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=re.escape(f"{file} is damaged, delete it")):
            load_split(clips, num_frames=4, size=16, cache=tmp_path, progress=False)

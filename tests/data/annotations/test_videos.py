"""Video files are found by the names that annotations have for them."""

from __future__ import annotations

from pathlib import Path

import pytest

from muse_adapter.data import find_videos


def make(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).touch()


@pytest.mark.parametrize(
    ("video", "file"),
    [
        ("video7", "video7.mp4"),
        ("video7", "part/video7.WEBM"),
        ("v.mov", "v.mov"),  # DiDeMo names files
        ("v.mov", "part/v.mp4"),
        ("v.mov", "v.mov.mp4"),
        ("0001_A_00.00.51.926-00.00.54.129", "0001_A_00.00.51.926-00.00.54.129.avi"),
        ("-4wsuPCjDBc_5_15", "-4wsuPCjDBc_5_15.avi"),
        ("QOlSCBRmfWY", "v_QOlSCBRmfWY.mkv"),
        ("part/a.mp4", "part/a.mp4"),  # paths in a CSV of one's own
    ],
)
def test_file_of_a_video(video: str, file: str, tmp_path: Path) -> None:
    make(tmp_path, file, "other.mp4", "notes.txt")
    assert find_videos(tmp_path, [video]) == {video: tmp_path / file}


def test_dots_in_names_are_no_suffixes(tmp_path: Path) -> None:
    make(tmp_path, "00.51.926.mp4", "00.51.927.mp4")
    with pytest.raises(FileNotFoundError, match=r"1 of 1 videos are not in .*: 00\.51$"):
        find_videos(tmp_path, ["00.51"])


def test_other_files_are_no_videos(tmp_path: Path) -> None:
    make(tmp_path, "a", "b.txt", "c.mp4")
    with pytest.raises(FileNotFoundError, match=r"2 of 3 videos are not in .*: a, b\.txt$"):
        find_videos(tmp_path, ["a", "b.txt", "c"])


def test_missing_videos_are_named(tmp_path: Path) -> None:
    make(tmp_path, "a.mp4")
    names = ["a", *(f"m{i}" for i in range(7)), "m0"]
    with pytest.raises(FileNotFoundError, match=r"7 of 8 videos .*: m0, m1, m2, m3, m4 and 2 more"):
        find_videos(tmp_path, names)
    with pytest.warns(UserWarning, match=r"7 of 8 videos .* left out"):
        assert find_videos(tmp_path, names, skip_missing=True) == {"a": tmp_path / "a.mp4"}
    with pytest.raises(FileNotFoundError, match="no such folder of videos"):
        find_videos(tmp_path / "gone", names)


def test_several_files_of_a_video(tmp_path: Path) -> None:
    make(tmp_path, "raw/a.mp4", "small/a.mp4")
    with pytest.raises(ValueError, match=r"1 videos have several files: a \(.*raw.*small"):
        find_videos(tmp_path, ["a"])

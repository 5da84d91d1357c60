"""The video files of folders, and how names and times are shown."""

from __future__ import annotations

import os

import pytest

from muse_adapter.search.listing import clock, list_videos, printable
from tests.support.hostile_names import HOSTILE_NAMES


def test_folders_and_files(tmp_path, monkeypatch):
    for name in ("b/2.MKV", "b/1.mp4", "a.webm", ".hidden.mp4", ".trash/3.mp4", "notes.txt", "x.y"):
        path = tmp_path / "videos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.chdir(tmp_path)
    videos, unreadable = list_videos(["videos", "videos/x.y", "videos/b"])
    expected = ["videos/a.webm", "videos/b/1.mp4", "videos/b/2.MKV", "videos/x.y"]
    assert videos == [str(tmp_path / name) for name in expected]
    assert unreadable == {}
    with pytest.raises(FileNotFoundError, match=r"no such file or folder: '.*missing\.mp4'"):
        list_videos(["videos", "missing.mp4"])


def test_folders_that_cannot_be_read(tmp_path, monkeypatch):
    folder = tmp_path / "closed"
    folder.mkdir()
    scandir = os.scandir

    def refuse(path):
        if os.fspath(path) == str(folder):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert list_videos([tmp_path]) == (
        [],
        {str(folder): f"cannot read {folder}: Permission denied"},
    )


@pytest.mark.parametrize("name", HOSTILE_NAMES, ids=ascii)
def test_shown_names(name):
    shown = printable(name)
    assert shown.isprintable() and shown.encode()
    assert shown == name or not name.isprintable()


def test_escapes():
    assert printable("a\nb\u202ec\udcff") == r"a\nb\u202ec\udcff"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.0, "0:00.0"),
        (9.96, "0:10.0"),
        (59.94, "0:59.9"),
        (59.96, "1:00.0"),
        (3599.99, "1:00:00.0"),
        (3723.4, "1:02:03.4"),
    ],
)
def test_times(seconds, shown):
    assert clock(seconds) == shown

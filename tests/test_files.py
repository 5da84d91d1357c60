"""Whole files that are on the disk when `write_whole` returns, and names of a folder that are."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from muse_adapter.files import is_part, sync_folder, write_whole
from tests.support.stopped_writes import StoppedWrites

posix = pytest.mark.skipif(os.name != "posix", reason="folders are brought to the disk on POSIX")


@posix
def test_a_power_cut_after_the_return(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the files stand in several folders."""
    first, second = tmp_path / "first.bin", tmp_path / "folder" / "second.bin"
    second.parent.mkdir()
    first.write_bytes(b"old")
    calls = StoppedWrites()
    with monkeypatch.context() as patch:
        calls.patch(patch)
        write_whole({first: b"new", second: b"also new"})
    calls.cut_power()
    assert (first.read_bytes(), second.read_bytes()) == (b"new", b"also new")


@posix
@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.EIO])
def test_file_systems_that_cannot_sync_a_folder(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Errors of the disk are raised; that there is no such call is none."""

    def fail(file: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    if code == errno.EIO:
        with pytest.raises(OSError, match=os.strerror(code)):
            sync_folder(tmp_path)
    else:
        sync_folder(tmp_path)


@posix
def test_a_folder_that_may_be_written_but_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one of the mode 0o300, which root could read."""
    real = os.open

    def refuse(path: Path, *arguments: int) -> int:
        if path == tmp_path:
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return real(path, *arguments)

    monkeypatch.setattr(os, "open", refuse)
    write_whole({tmp_path / "file": b"content"})
    assert (tmp_path / "file").read_bytes() == b"content"


def test_names_of_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    replace = os.replace

    def look(part: Path, path: Path) -> None:
        seen.extend(file.name for file in tmp_path.iterdir())
        replace(part, path)

    monkeypatch.setattr(os, "replace", look)
    write_whole({tmp_path / "videos.json": b"{}"})
    assert [is_part(name) for name in seen] == [True]
    for name in ("videos.json", "a.part", ".a.part", seen[0].removeprefix("."), f"{seen[0]}.mp4"):
        assert not is_part(name)

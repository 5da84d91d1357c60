"""A local table after its writer was stopped anywhere: it opens, as before or after the change."""

from __future__ import annotations

import os
import shutil
import signal
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from muse_adapter.search.local import LocalStore
from tests.support.search_models import segments_of, settings
from tests.support.stopped_writes import Stopped, StoppedWrites

pytest.importorskip("fcntl", reason="writing a table needs POSIX locks")
pytest.importorskip("safetensors", reason="an index has the identity of its model in one")


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait for the disk: what it would lose is lost by `cut_power`."""
    monkeypatch.setattr(os, "fsync", lambda file: None)


def append(store: LocalStore, names: list[str]) -> None:
    with store.write() as writer:
        writer.append([segments_of(name, ord(name[0])) for name in names])


def remove(store: LocalStore, names: list[str]) -> None:
    with store.write() as writer:
        writer.remove(names)


def compact(store: LocalStore) -> None:
    with store.write() as writer:
        writer.compact()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a table of a and c, of which b was removed."""
    folder = tmp_path_factory.mktemp("tables") / "made"
    store = LocalStore.create(folder, settings(), b"a model")
    append(store, ["a.mp4", "b.mp4", "c.mp4"])
    remove(store, ["b.mp4"])
    return folder


def copied(made: Path, folder: Path) -> LocalStore:
    return LocalStore(Path(shutil.copytree(made, folder)))


def content(store: LocalStore) -> list[str]:
    """Return the names in a table, and assert that all of their data are right."""
    assert store.verify() == []
    table = store.read()
    assert table.num_videos == len(list(table.live()))
    assert table.num_segments == 2 * table.num_videos
    names = [table.name(number) for number in table.live()]
    for number, name in zip(table.live(), names, strict=True):
        expected = segments_of(name, ord(name[0]))
        assert expected.frames is not None
        rows = [2 * number, 2 * number + 1]
        assert [(s.start, s.end) for s in table.segments(rows)] == expected.spans
        assert table.vectors[rows].equal(expected.vectors.half())
        for frames, wanted in zip(table.frames(rows), expected.frames, strict=True):
            assert frames.equal(wanted.half())
    return names


# A change of the table `made`, and what it has after it.
CHANGES: dict[str, tuple[Callable[[LocalStore], None], list[str]]] = {
    "append": (
        lambda store: append(store, ["d.mp4", "e.mp4"]),
        ["a.mp4", "c.mp4", "d.mp4", "e.mp4"],
    ),
    "remove": (lambda store: remove(store, ["a.mp4"]), ["c.mp4"]),
    "compact": (compact, ["a.mp4", "c.mp4"]),
}
BEFORE = ["a.mp4", "c.mp4"]


def assert_usable(folder: Path, names: list[str]) -> None:
    """Assert that a table can be changed in every way, and that nothing is left over."""
    store = LocalStore(folder)
    append(store, ["x.mp4", "y.mp4"])
    remove(store, ["x.mp4"])
    assert content(store) == [*names, "y.mp4"]
    compact(store)
    assert content(LocalStore(folder)) == [*names, "y.mp4"]
    generation = store.read().manifest.generation
    columns = {f"{name}-{generation}.bin" for name in ("names", "videos", "segments", "vectors")}
    assert {path.name for path in folder.iterdir()} == columns | {
        f"frames-{generation}.bin",
        "index.json",
        "model.safetensors",
        "writer.lock",
    }


@pytest.mark.parametrize("how", ["killed", "torn", "power cut"])
@pytest.mark.parametrize(("change", "after"), CHANGES.values(), ids=CHANGES.keys())
def test_stopped_at_every_call(how, change, after, made, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        all_calls = StoppedWrites()
        store = copied(made, tmp_path / "counted")
        all_calls.patch(patch)
        change(store)
    assert all_calls.calls.count("replace") == 1 and content(store) == after
    outcomes = set()
    for stop in range(len(all_calls.calls)):
        if how == "torn" and all_calls.calls[stop] != "pwrite":
            continue
        folder = tmp_path / str(stop)
        store = copied(made, folder)
        stopped = StoppedWrites(stop, torn=how == "torn")
        with monkeypatch.context() as patch, pytest.raises(Stopped):
            stopped.patch(patch)
            change(store)
        stopped.forget()
        if how == "power cut":
            stopped.cut_power()
        names = content(LocalStore(folder))
        assert names in (BEFORE, after)
        outcomes.add(names == after)
        if how == "killed":
            assert_usable(folder, names)
        else:
            append(LocalStore(folder), ["x.mp4"])
            assert content(LocalStore(folder)) == [*names, "x.mp4"]
    # There are calls on both sides of the rename; a torn write comes before it.
    if after != BEFORE:
        assert outcomes == ({False} if how == "torn" else {False, True})


def test_stopped_while_it_is_created(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        all_calls = StoppedWrites()
        all_calls.patch(patch)
        LocalStore.create(tmp_path / "counted" / "videos", settings(), b"a model")
    for cut in (False, True):
        for stop in range(len(all_calls.calls)):
            folder = tmp_path / f"{stop} {cut}" / "videos"
            stopped = StoppedWrites(stop)
            with monkeypatch.context() as patch, pytest.raises(Stopped):
                stopped.patch(patch)
                LocalStore.create(folder, settings(), b"a model")
            stopped.forget()
            if cut:
                stopped.cut_power()
            try:
                store = LocalStore(folder)
            except FileNotFoundError:
                store = LocalStore.create(folder, settings(), b"a model")
            assert content(store) == []
            assert_usable(folder, [])


@pytest.mark.parametrize(("change", "after"), CHANGES.values(), ids=CHANGES.keys())
def test_a_full_disk_at_every_call(change, after, made, tmp_path, monkeypatch):
    """The same process goes on, once there is space again."""
    with monkeypatch.context() as patch:
        all_calls = StoppedWrites()
        store = copied(made, tmp_path / "counted")
        all_calls.patch(patch)
        change(store)
    for stop in range(len(all_calls.calls)):
        folder = tmp_path / str(stop)
        store = copied(made, folder)
        with monkeypatch.context() as patch:
            StoppedWrites(stop, error=OSError("no space left on device")).patch(patch)
            with pytest.raises(OSError, match="no space left"):
                change(store)
        names = content(store)
        assert names in (BEFORE, after) and content(LocalStore(folder)) == names
        if names == BEFORE:
            change(store)
            assert content(store) == after
        assert not any(path.suffix == ".part" for path in folder.iterdir())


def test_a_full_disk_is_named(made, tmp_path, monkeypatch):
    def full(*_: object) -> int:
        raise OSError("no space left on device")

    with copied(made, tmp_path / "copied").write() as writer:
        monkeypatch.setattr("os.pwrite", full)
        for change in (
            lambda: writer.append([segments_of("d.mp4", 0)]),
            lambda: writer.remove(BEFORE[:1]),
        ):
            with pytest.raises(OSError, match=r"cannot write an index to '.*copied': no space"):
                change()


def append_forever(folder: Path, acknowledged: int) -> None:
    """Append one video after the other, and write the number of each that was appended."""
    store = LocalStore(folder)
    number = store.read().num_videos
    while True:
        append(store, [f"{chr(97 + number % 26)}{number}.mp4"])
        os.write(acknowledged, b".")
        number += 1


@pytest.mark.parametrize("milliseconds", [5, 20, 50])
def test_killed(milliseconds, tmp_path):
    LocalStore.create(tmp_path, settings(), b"a model")
    total = 0
    for _ in range(4):
        read, write = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # other threads do not matter here
            child = os.fork()
        if child == 0:
            try:
                append_forever(tmp_path, write)
            finally:
                os._exit(1)
        os.close(write)
        started = len(os.read(read, 1))
        time.sleep(milliseconds / 1000)
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        acknowledged = started + len(os.read(read, 1 << 20))
        os.close(read)
        found = len(content(LocalStore(tmp_path)))
        assert total + acknowledged <= found <= total + acknowledged + 1
        total = found
    assert total >= 4


def test_a_writer_goes_on_after_an_error_behind_the_rename(made, tmp_path, monkeypatch):
    """The new manifest counts, although the folder could not be brought to the disk."""
    store = copied(made, tmp_path / "copied")
    with store.write() as writer:
        with monkeypatch.context() as patch:
            all_calls = StoppedWrites()
            all_calls.patch(patch)
            writer.append([segments_of("d.mp4", ord("d"))])
        last = max(i for i, call in enumerate(all_calls.calls) if call == "fsync")
        assert last > all_calls.calls.index("replace")
        with monkeypatch.context() as patch, pytest.raises(OSError, match="input/output error"):
            StoppedWrites(last, error=OSError("input/output error")).patch(patch)
            writer.append([segments_of("e.mp4", ord("e"))])
        writer.append([segments_of("f.mp4", ord("f"))])
    assert content(store) == [*BEFORE, "d.mp4", "e.mp4", "f.mp4"]

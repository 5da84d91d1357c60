"""A graph and its weights stay together, at whatever call of the system an export is killed."""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
from pathlib import Path

import pytest

from muse_adapter.onnx.publishing import publish, unique_name
from tests.support.stopped_writes import CallAtWrite, Stopped, StoppedWrites


def make(folder: Path, path: Path, content: str, *, weights: bool = True) -> Path:
    """Write a graph, which names the file of its weights, and the weights, as torch does."""
    folder.mkdir(exist_ok=True)
    made = folder / unique_name(path)
    data = made.with_name(f"{made.name}.data")
    made.write_text(f"{content} {data.name if weights else ''}")
    if weights:
        data.write_text(content)
    return made


def model_in(path: Path) -> str:
    """Return the content of a graph, after a look at the weights that it names."""
    content, _, weights = path.read_text().partition(" ")
    assert not weights or path.with_name(weights).read_text() == content
    return content


@pytest.mark.parametrize("disk_full", [False, True])
def test_killed_at_every_call(
    disk_full: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, made = tmp_path / "model.onnx", tmp_path / "made"
    error = OSError(errno.ENOSPC, "full") if disk_full else None
    publish(make(made, path, "first"), path)
    found, stop = set(), 0
    while True:
        new = make(made, path, f"export{stop}")
        before = model_in(path)
        writes = StoppedWrites(stop, error=error)
        with monkeypatch.context() as patched:
            writes.patch(patched)
            with contextlib.suppress(Stopped, OSError):
                publish(new, path)
        writes.forget()
        found.add("old" if model_in(path) == before else "new")
        assert model_in(path) in (before, f"export{stop}")
        if stop >= len(writes.calls):
            break
        stop += 1
    assert found == {"old", "new"} and stop > 5
    # The last one was complete: nothing of the others is left.
    assert len([file for file in tmp_path.iterdir() if file.is_file()]) == 2


@pytest.mark.parametrize("weights", [False, True])
def test_another_export_at_every_call(
    weights: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, folder = tmp_path / "model.onnx", tmp_path / "made"
    publish(make(folder, path, "first"), path)
    found, moment = set(), 0
    while True:
        first, second = make(folder, path, "first"), make(folder, path, "second", weights=weights)
        writes = CallAtWrite(moment, lambda: publish(second, path))  # noqa: B023
        with monkeypatch.context() as patched:
            writes.patch(patched)
            publish(first, path)
        if moment >= len(writes.calls):
            break
        found.add(content := model_in(path))
        left = [file for file in tmp_path.iterdir() if file.is_file()]
        assert len(left) == (2 if content == "first" or weights else 1)
        moment += 1
    assert found == {"first", "second"} and moment > 5


def export_repeatedly(path: Path, folder: Path, content: str) -> None:
    for _ in range(20):
        publish(make(folder, path, content), path)


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_two_processes_at_once(tmp_path: Path) -> None:
    path, fork = tmp_path / "model.onnx", multiprocessing.get_context("fork")
    processes = [
        fork.Process(target=export_repeatedly, args=(path, tmp_path / content, content))
        for content in ("one", "two")
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert model_in(path) in ("one", "two")
    assert len([file for file in tmp_path.iterdir() if file.is_file()]) == 2


def test_a_model_without_weights_beside_it_replaces_one_with(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    others = [
        tmp_path / name
        for name in ("model.onnx.data", "other.onnx.0123456789abcdef.data", "model.onnx.mine.data")
    ]
    for file in others:
        file.write_text("somebody's")
    publish(make(tmp_path / "made", path, "large"), path)
    assert model_in(path) == "large" and len(list(tmp_path.glob("model.onnx.*.data"))) == 2
    publish(make(tmp_path / "made", path, "small", weights=False), path)
    assert model_in(path) == "small"
    assert {file for file in tmp_path.iterdir() if file.is_file()} == {path, *others}

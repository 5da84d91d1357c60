"""A saved head is one head: after a kill, beside other writers, and with readers in between."""

from __future__ import annotations

import dataclasses
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from muse_adapter import files
from muse_adapter.checkpoint import CONFIG_NAME, WEIGHTS_NAME, load_pretrained, save_pretrained
from muse_adapter.config import MuseConfig
from muse_adapter.files import write_whole
from muse_adapter.models.muse import MultiScaleMamba
from muse_adapter.tensor_files import read_tensors
from tests.support.checkpoints import CONFIG, assert_equal, save_head

pytest.importorskip("safetensors", reason="checkpoints need safetensors")

# Two heads that cannot be told apart by the shapes of their weights.
OTHER = dataclasses.replace(CONFIG, aggregation="frame_wise")


def constant_head(config: MuseConfig, value: float) -> MultiScaleMamba:
    head = MultiScaleMamba(config)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.fill_(value)
    return head


HEADS = {1.0: constant_head(CONFIG, 1.0), 2.0: constant_head(OTHER, 2.0)}


def assert_one_of_them(folder: Path) -> float:
    """Assert that config and weights are of one head; return which."""
    config, state = load_pretrained(folder)
    (value,) = {number for tensor in state.values() for number in tensor.unique().tolist()}
    assert config == HEADS[value].config
    return value


# Seven writers: six are killed before a step each, the last is not. They are forked from one
# process, which has imported torch, and it prints what became of each.
KILLED = """
    import os, sys
    import torch
    from tests.test_checkpoint_writers import HEADS, save_pretrained

    calls = 0

    def counted(function):
        def call(*arguments):
            global calls
            if calls == stop:
                os.kill(os.getpid(), 9)
            calls += 1
            return function(*arguments)
        return call

    os.fsync, os.replace = counted(os.fsync), counted(os.replace)
    for stop in range(7):
        child = os.fork()
        if child == 0:
            save_pretrained(HEADS[2.0], f"{sys.argv[1]}/{stop}")
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.slow
def test_a_killed_writer_leaves_one_head(tmp_path, run_python):
    """Killed before it writes, between files, around either rename, or (6) not at all."""
    for step in range(7):
        save_pretrained(HEADS[1.0], tmp_path / str(step))
    done = run_python(KILLED, str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert [int(code) for code in done.stdout.split()] == [-signal.SIGKILL] * 6 + [0]
    for step in range(7):
        folder = tmp_path / str(step)
        if step in (3, 4):  # the weights are the new ones, the config is the old one
            with pytest.raises(ValueError, match=r"two saves, or an edited one: aggregation is"):
                load_pretrained(folder)
            (folder / CONFIG_NAME).unlink()
        assert assert_one_of_them(folder) == (1.0 if step < 3 else 2.0)
        save_pretrained(HEADS[1.0], folder)
        assert {path.name for path in folder.iterdir()} == {CONFIG_NAME, WEIGHTS_NAME}
        assert assert_one_of_them(folder) == 1.0


def test_threads_save_into_one_folder(tmp_path):
    errors: list[BaseException] = []

    def save(value: float) -> None:
        try:
            for _ in range(10):
                save_pretrained(HEADS[value], tmp_path)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=save, args=(value,)) for value in (1.0, 2.0, 1.0, 2.0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors
    assert_one_of_them(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {CONFIG_NAME, WEIGHTS_NAME}


def test_the_last_writer_repairs_a_copy_of_another_save(tmp_path, monkeypatch):
    """Another head is saved between the renames of this one."""
    replace, others = os.replace, [HEADS[2.0]]

    def replaced(part: Path, path: Path) -> None:
        if others and Path(path).name == CONFIG_NAME:
            save_pretrained(others.pop(), tmp_path)
        replace(part, path)

    monkeypatch.setattr(os, "replace", replaced)
    save_pretrained(HEADS[1.0], tmp_path)
    assert not others and assert_one_of_them(tmp_path) == 2.0


def test_a_reader_waits_for_the_second_rename(tmp_path, monkeypatch):
    save_pretrained(HEADS[1.0], tmp_path)
    config = (tmp_path / CONFIG_NAME).read_bytes()
    save_pretrained(HEADS[2.0], tmp_path)
    new = (tmp_path / CONFIG_NAME).read_bytes()
    (tmp_path / CONFIG_NAME).write_bytes(config)
    pauses = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        (tmp_path / CONFIG_NAME).write_bytes(new)

    monkeypatch.setattr(time, "sleep", pause)
    assert assert_one_of_them(tmp_path) == 2.0 and len(pauses) == 1


def test_readers_beside_a_writer(tmp_path):
    """A file that is replaced while it is read is the old one or the new one."""
    save_pretrained(HEADS[1.0], tmp_path)
    stop = threading.Event()

    def save() -> None:
        while not stop.is_set():
            for head in HEADS.values():
                write_whole({tmp_path / WEIGHTS_NAME: packed[id(head)]})

    packed = {}
    for head in HEADS.values():
        save_pretrained(head, tmp_path)
        packed[id(head)] = (tmp_path / WEIGHTS_NAME).read_bytes()
    writer = threading.Thread(target=save)
    writer.start()
    try:
        for _ in range(150):
            read_tensors(tmp_path / WEIGHTS_NAME, checksum_required=True)
    finally:
        stop.set()
        writer.join()


def test_weights_alone_are_a_head(tmp_path):
    save_head(tmp_path)
    expected, state = load_pretrained(tmp_path)
    (tmp_path / CONFIG_NAME).unlink()
    config, again = load_pretrained(tmp_path)
    assert config == expected
    assert_equal(again, state)


def a_dead_process() -> int:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


def test_leftovers_of_killed_writers_are_removed(tmp_path, monkeypatch):
    path, here = tmp_path / "file.bin", files._machine()
    old, dead = 2 * files.ABANDONED, a_dead_process()
    names = {  # name of the writer -> age, whether it may go
        f"{here}-{dead}-00000000": (0, True),
        f"{here}-{os.getppid()}-00000000": (0, False),
        f"{here}-{os.getpid()}-00000000": (0, True),  # of this process, but it writes nothing
        "ffffffff-1-00000000": (0, False),  # of another machine
        "ffffffff-1-00000001": (old, True),
        f"{dead}": (0, False),  # named as the first release did
        f"{dead + 1}": (old, True),
    }
    parts = {name: tmp_path / f".file.bin.{name}.part" for name in names}
    for name, (age, _) in names.items():
        parts[name].write_bytes(b"")
        os.utime(parts[name], (parts[name].stat().st_mtime - age,) * 2)
    strangers = [tmp_path / ".other.bin.1.part", tmp_path / "file.bin.part"]
    for stranger in strangers:
        stranger.write_bytes(b"")
    files.write_whole({path: b"whole"})
    kept = {parts[name] for name, (_, removed) in names.items() if not removed}
    assert set(tmp_path.iterdir()) == {path, *kept, *strangers}


def test_a_writer_keeps_the_parts_of_other_threads(tmp_path, monkeypatch):
    """One thread is in the middle of a file when another writes the same one."""
    path, fsync, order = tmp_path / "file.bin", os.fsync, []

    def synced(descriptor: int) -> None:
        fsync(descriptor)
        if stat.S_ISREG(os.fstat(descriptor).st_mode):  # and not a folder
            order.append("begun")
        if order == ["begun"]:
            files.write_whole({path: b"second"})

    monkeypatch.setattr(os, "fsync", synced)
    files.write_whole({path: b"first"})
    assert path.read_bytes() == b"first" and len(order) == 2
    assert list(tmp_path.iterdir()) == [path]

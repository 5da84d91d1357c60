"""The lock of a local table: who has it, and how it ends."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest

from muse_adapter.search.local import lock
from muse_adapter.search.local.lock import LOCK_NAME, writer_lock

fcntl = pytest.importorskip("fcntl", reason="writing a table needs POSIX locks")


def a_dead_process() -> int:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


def held_by(folder: Path, process: int, host: str) -> int:
    """Take the lock of a folder in the name of another process."""
    file = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT)
    fcntl.flock(file, fcntl.LOCK_EX)
    os.pwrite(file, json.dumps({"process": process, "host": host}).encode(), 0)
    return file


def test_the_holder_is_named(tmp_path):
    with writer_lock(tmp_path), pytest.raises(BlockingIOError) as caught, writer_lock(tmp_path):
        pass
    assert f"process {os.getpid()} on host {socket.gethostname()}; one" in str(caught.value)
    with writer_lock(tmp_path):
        pass


@pytest.mark.parametrize(
    ("content", "holder"),
    [
        ("", "another process"),
        ("[]", "another process"),
        ('{"process": 123, "host": "encoder-7"}', "process 123 on host encoder-7"),
    ],
)
def test_the_holder_wrote_something_else(content, holder, tmp_path):
    with writer_lock(tmp_path):
        (tmp_path / LOCK_NAME).write_text(content)
        with pytest.raises(BlockingIOError, match=f"is being written by {holder}; one writer"):
            writer_lock(tmp_path).__enter__()


def test_a_killed_holder_has_no_lock(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # other threads do not matter here
        child = os.fork()
    if child == 0:
        with writer_lock(tmp_path):
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert json.loads((tmp_path / LOCK_NAME).read_text())["process"] == child
    with writer_lock(tmp_path):
        pass


def test_children_of_a_holder_that_is_done_have_no_lock(tmp_path):
    """They were forked while it wrote, so the lock is theirs too until it is given back."""
    read, write = os.pipe()
    for error in (None, RuntimeError()):
        with contextlib.suppress(RuntimeError), writer_lock(tmp_path):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                child = os.fork()
            if child == 0:
                os.close(write)
                os.read(read, 1)
                os._exit(0)
            if error:
                raise error
        assert (tmp_path / LOCK_NAME).read_bytes() == b""
        with writer_lock(tmp_path):
            pass
    os.close(write)
    os.wait()
    os.wait()


def test_children_of_a_killed_holder_are_waited_for(tmp_path, monkeypatch):
    file = held_by(tmp_path, a_dead_process(), socket.gethostname())
    timer = threading.Timer(0.2, os.close, [file])
    timer.start()
    start = time.monotonic()
    with writer_lock(tmp_path):
        assert time.monotonic() - start >= 0.15
    timer.join()
    monkeypatch.setattr(lock, "ORPHANS_S", 0.1)
    dead = a_dead_process()
    file = held_by(tmp_path, dead, socket.gethostname())
    with pytest.raises(BlockingIOError, match=f"process {dead} on host"):
        writer_lock(tmp_path).__enter__()
    os.close(file)


def test_a_holder_on_another_host_is_not_waited_for(tmp_path):
    file = held_by(tmp_path, a_dead_process(), "another-host")
    start = time.monotonic()
    with pytest.raises(BlockingIOError, match="on host another-host"):
        writer_lock(tmp_path).__enter__()
    assert time.monotonic() - start < lock.ORPHANS_S / 2
    os.close(file)


def test_systems_without_such_locks(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with pytest.raises(OSError, match="needs the file locks of a POSIX system"):
        writer_lock(tmp_path).__enter__()

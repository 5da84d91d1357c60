"""The processes that render: they end with the command, and what becomes of a lost one."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("av", reason="the videos are written with PyAV")
pytest.importorskip("tqdm", reason="the example shows progress with tqdm")

from examples.moments import corpus
from examples.moments.corpus import render
from examples.moments.moments import sample_videos

ROOT = Path(__file__).parents[3]
KILLED = """
import multiprocessing, os, signal
from concurrent.futures import ProcessPoolExecutor
from examples.moments.corpus import _start_process

spawn = multiprocessing.get_context("spawn")
pool = ProcessPoolExecutor(1, spawn, _start_process)
print(pool.submit(os.getpid).result(), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_processes_end_with_a_killed_command() -> None:
    # Returns when the last process that could still write has ended.
    ended = subprocess.run(
        [sys.executable, "-c", KILLED], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert int(ended.stdout) > 0


def test_a_lost_process_names_its_causes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "_start_process", sys.exit)
    videos = {"test": sample_videos("test", 2, 1)}
    with pytest.raises(RuntimeError, match=r"memory may not suffice .* `if __name__ == "):
        render(videos, tmp_path, size=16, wanted=["test"], progress=False)

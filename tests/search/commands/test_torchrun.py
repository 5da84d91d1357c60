"""`torchrun -m muse_adapter index`: the processes share the videos and write one index."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("sentence_transformers", reason="the command loads models of this library")
pytest.importorskip("fcntl", reason="writing a table needs POSIX locks")

from muse_adapter.search import VideoIndex
from tests.support.saved_models import save_tiny_model
from tests.support.video_files import grey_video

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]


def torchrun(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", "2", "-m", "muse_adapter", *arguments),
        ],
        cwd=ROOT,
        env={**os.environ, "MUSE_ADAPTER_BACKEND": "torch", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=300,
    )


def test_two_processes(tmp_path):
    """The index is that of one process."""
    model = save_tiny_model(tmp_path / "model")
    (tmp_path / "videos").mkdir()
    videos = [str(grey_video(tmp_path / "videos" / f"{n:02d}.mp4", n)) for n in range(3, 13)]
    command = ["index", str(tmp_path / "videos"), "--to", str(tmp_path / "clips.index")]
    done = torchrun(*command, "--batch-size", "2", "--model", model)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        "10 videos added, 0 were in the index, 0 cannot be read\n"
        "the index has 10 videos, 10 segments\n"
    )
    # Half of them are the share of the first process, which prints its progress.
    assert re.findall(r"(\d+) of (\d+) videos, .* a second", done.stderr)[-1] == ("5", "5")
    with (
        VideoIndex.open(tmp_path / "clips.index") as shared,
        VideoIndex.create(tmp_path / "alone", shared._needed_model("this test")) as alone,
    ):
        alone.add(videos, progress=False)
        assert shared.verify() == []
        for query in ("a small red dog", "the ball moves left"):
            expected = {hit.video: hit for hit in alone.search(query, k=20)}
            found = {hit.video: hit for hit in shared.search(query, k=20)}
            assert set(found) == set(expected) == set(videos)
            for video, hit in found.items():
                assert (hit.start, hit.end) == (expected[video].start, expected[video].end)
                # The batches are others, and the vectors are in half precision.
                assert hit.score == pytest.approx(expected[video].score, abs=1e-3)

    # Again, with one more and one that is none: one process then has nothing to do.
    videos.append(str(grey_video(tmp_path / "videos" / "13.mp4", 13)))
    (tmp_path / "videos" / "broken.mp4").write_bytes(b"no video")
    done = torchrun(*command)
    assert done.returncode == 1
    assert done.stdout.startswith("1 videos added, 10 were in the index, 1 cannot be read\n")


def test_an_error_of_the_first_process_ends_all(tmp_path):
    done = torchrun("index", str(tmp_path), "--to", str(tmp_path / "clips.index"))
    assert done.returncode != 0
    assert done.stderr.count("muse-adapter index: there is no such index yet") == 1


def test_errors_of_all_processes_are_reported(tmp_path):
    model = save_tiny_model(tmp_path / "model")
    (tmp_path / "videos").mkdir()
    grey_video(tmp_path / "videos" / "1.mp4", 4)
    done = torchrun(
        *("index", str(tmp_path / "videos"), "--to", str(tmp_path / "clips.index")),
        *("--model", model, "--batch-size", "0"),
    )
    assert done.returncode != 0
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("muse-adapter index")]
    assert line.count("batch_size must be at least 1") == 2
    for rank in range(2):
        assert f"process {rank}: " in line

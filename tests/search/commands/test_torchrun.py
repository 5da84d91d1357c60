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

pytestmark = pytest.mark.slow(seconds=30)

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
    (tmp_path / "videos" / "broken.mp4").write_bytes(b"no video")
    done = torchrun(
        *("index", str(tmp_path / "videos"), "--to", str(tmp_path / "clips.index")),
        *("--batch-size", "2", "--model", model),
    )
    assert done.returncode == 1, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "10 videos added, 0 were in the index, 1 cannot be read"
    assert lines[-1] == "the index has 10 videos, 10 segments"
    # The share of the first process, which prints its progress.
    assert re.findall(r"(\d+) of (\d+) videos, .* a second", done.stderr)[-1] == ("6", "6")
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


def test_an_error_of_the_first_process_ends_all(tmp_path):
    done = torchrun("index", str(tmp_path), "--to", str(tmp_path / "clips.index"))
    assert done.returncode != 0
    assert done.stderr.count("muse-adapter index: there is no such index yet") == 1

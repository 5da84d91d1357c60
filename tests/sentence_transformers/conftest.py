"""Two small video files that all tests of this folder share."""

from __future__ import annotations

import pytest

from tests.support.video_files import grey_video, moving_frames, write_video


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The paths of a video of 20 frames, and of one of 5."""
    folder = tmp_path_factory.mktemp("videos")
    long = write_video(folder / "long.mp4", moving_frames(20))
    return [str(long), str(grey_video(folder / "short.mp4", 5))]

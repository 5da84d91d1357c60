"""Video files by the names that annotations have for them."""

from __future__ import annotations

import os
import warnings
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from muse_adapter.data.annotations.files import some_of
from muse_adapter.data.video.container import VIDEO_SUFFIXES


def find_videos(
    folder: Path | str, videos: Iterable[str], *, skip_missing: bool = False
) -> dict[str, Path]:
    """Find the files of videos in a folder and the folders in it.

    A file belongs to a video whose name it has, with the suffix of a video behind it or in place
    of the name's own; `v_` may stand before it, as in ActivityNet.

    Args:
        folder: The folder.
        videos: Names of videos, with or without suffix; or paths relative to the folder.
        skip_missing: Whether videos without a file are left out, with a warning.

    Returns:
        The file of each video, in the given order.

    Raises:
        FileNotFoundError: There is no such folder, or videos have no file; the message says how
            many and names the first.
        ValueError: A video has several files.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no such folder of videos: {folder}")
    by_name: dict[str, list[Path]] = defaultdict(list)
    for root, _, names in os.walk(folder):
        for name in names:
            if name.lower().endswith(VIDEO_SUFFIXES):
                for known in (name, _stem(name)):
                    by_name[known].append(Path(root, name))
    found: dict[str, Path] = {}
    missing, repeated = [], []
    for video in dict.fromkeys(videos):
        if video.lower().endswith(VIDEO_SUFFIXES) and (direct := folder / video).is_file():
            found[video] = direct
            continue
        tried = (video, _stem(video), f"v_{video}")
        files = next((by_name[name] for name in tried if name in by_name), [])
        if len(files) == 1:
            found[video] = files[0]
        elif files:
            repeated.append(f"{video} ({some_of(sorted(map(str, files)))})")
        else:
            missing.append(video)
    if missing:
        total = len(missing) + len(repeated) + len(found)
        message = f"{len(missing)} of {total} videos are not in {folder}: {some_of(missing)}"
        if not skip_missing:
            raise FileNotFoundError(message)
        warnings.warn(f"{message}; they are left out", stacklevel=2)
    if repeated:
        raise ValueError(
            f"{len(repeated)} videos have several files: {some_of(repeated)}; name a folder that "
            "has each once"
        )
    return found


def _stem(name: str) -> str:
    """Return a name without the suffix of a video; other dots stay."""
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in VIDEO_SUFFIXES else name

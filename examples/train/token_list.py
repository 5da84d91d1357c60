"""The list of videos in a folder of kept tokens: which is which, and how frames were made of it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from examples.train.folder import read_object
from examples.train.unreadable import LISTED
from muse_adapter.files import is_part, write_errors, write_whole

LIST_FILE = "videos.json"


def describe_videos(
    module: Any, videos: Sequence[str], root: str, dtype: torch.dtype
) -> dict[str, Any]:
    """Return what the list of some videos holds.

    Args:
        module: The `VideoTransformer` that reads them.
        videos: Their paths.
        root: Folder of the videos: their paths in it are their names.
        dtype: Of the tokens.

    Returns:
        Settings by name; as "videos", the size of each file in bytes by name, in order.
    """
    sizes = {name_of(video, root): os.stat(video).st_size for video in videos}
    return {
        "frames": module.num_frames,
        "fps": module.fps,
        "pixels": pixel_settings(module.frame_inputs.processor),
        "dtype": str(dtype).removeprefix("torch."),
        "videos": dict(sorted(sizes.items())),
    }


def name_of(video: str, root: str) -> str:
    """Return the name of a video: its path in the folder of the videos."""
    return Path(os.path.relpath(video, root)).as_posix()


def pixel_settings(processor: Any) -> dict[str, Any]:
    """Return what an image processor does with the pixels of a frame."""
    names = ("size", "crop_size", "resample", "rescale_factor", "image_mean", "image_std")
    steps = ("do_resize", "do_center_crop", "do_rescale", "do_normalize")
    settings = {name: getattr(processor, name, None) for name in (*names, *steps)}
    settings["processor"] = type(processor).__name__
    # As JSON has them, so that they can be compared with those of a file.
    return json.loads(json.dumps(settings, default=dict))


def read_list(folder: Path, wanted: dict[str, Any]) -> list[str] | None:
    """Read the list of a folder, and check that it is that of some videos, or of more.

    Args:
        folder: The folder.
        wanted: From `describe_videos`.

    Returns:
        The names of the videos in the order of their tokens; None: the folder is new.

    Raises:
        ValueError: The folder is of something else, or lacks some of the videos; the message says
            which.
    """
    path = folder / LIST_FILE
    if not path.is_file():
        # Another process may be about to write the list, or may have been killed before.
        others = folder.is_dir() and any(not is_part(file.name) for file in folder.iterdir())
        if not others:
            return None
        if not path.is_file():  # it was not written in the meantime either
            raise ValueError(f"{folder} is neither empty nor a folder of --cache-tokens")
    kept = read_object(path, "--cache-tokens")
    sizes = kept.get("videos")
    if not isinstance(sizes, dict):
        raise ValueError(f"{path} is damaged (it lists no videos): use another --cache-tokens")
    differences = [
        f"{name} {kept.get(name)} and not {value}"
        for name, value in wanted.items()
        if name != "videos" and kept.get(name) != value
    ]
    if differences:
        raise ValueError(
            f"{folder} holds tokens with {', '.join(differences)}: use another --cache-tokens"
        )
    if missing := sorted(set(wanted["videos"]) - set(sizes)):
        raise ValueError(
            f"{folder} holds the tokens of {len(sizes)} videos, but not of {len(missing)}, the "
            f"first {missing[0]}: use another --cache-tokens"
        )
    if changed := [name for name, size in wanted["videos"].items() if sizes[name] != size]:
        more = f" and {len(changed) - LISTED} more" if len(changed) > LISTED else ""
        raise ValueError(
            f"{folder} holds the tokens of other files, by their sizes, for {len(changed)} videos: "
            f"{', '.join(changed[:LISTED])}{more}; use another --cache-tokens"
        )
    return list(sizes)


def write_list(folder: Path, wanted: dict[str, Any]) -> None:
    """Write the list of a new folder; of several processes the first wins.

    Raises:
        OSError: The folder cannot be written.
    """
    with write_errors("the tokens", folder):
        folder.mkdir(parents=True, exist_ok=True)
        content = json.dumps(wanted, indent=2) + "\n"
        write_whole({folder / LIST_FILE: content.encode()}, keep_existing=True)

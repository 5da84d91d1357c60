"""Captions and video files of a data set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from examples.train.settings import RunSettings
from muse_adapter.data import VideoCaption, find_videos, hold_out, read_annotations


@dataclass(frozen=True)
class Part:
    """One part of a data set.

    Attributes:
        captions: n captions.
        videos: The files of m videos.
        targets: For each caption the index of its video.
    """

    captions: list[str]
    videos: list[str]
    targets: list[int]

    @classmethod
    def of(cls, captions: list[VideoCaption], files: dict[str, Path]) -> Part:
        """Put captions and files together; captions of videos without a file are left out."""
        kept = [caption for caption in captions if caption.video in files]
        index = {video: i for i, video in enumerate(dict.fromkeys(c.video for c in kept))}
        return cls(
            [caption.text for caption in kept],
            [str(files[video]) for video in index],
            [index[caption.video] for caption in kept],
        )


def load_parts(settings: RunSettings) -> dict[str, Part]:
    """Read the annotations and find the videos.

    Returns:
        "train", "validation" unless all videos are trained on, and "test".

    Raises:
        FileNotFoundError: Annotations or videos are missing.
        ValueError: Annotations are damaged, a video has two names, or a part has no video.
    """
    parts = read_annotations(settings.data_set, settings.annotations)
    if not settings.validate:
        official = parts.pop("validation", [])
        if settings.data_set.startswith("msrvtt"):  # whose training list they were taken from
            parts["train"] = parts["train"] + official
    elif "validation" not in parts:
        parts["train"], parts["validation"] = hold_out(
            parts["train"], settings.held_out, settings.seed
        )
    names = (caption.video for captions in parts.values() for caption in captions)
    files = find_videos(settings.videos, names, skip_missing=settings.skip_missing)
    names_of: dict[Path, list[str]] = {}
    for name, file in files.items():
        names_of.setdefault(file.resolve(), []).append(name)
    if twice := [names for names in names_of.values() if len(names) > 1]:
        raise ValueError(f"{len(twice)} videos have two names, the first {' and '.join(twice[0])}")
    found = {name: Part.of(captions, files) for name, captions in parts.items()}
    empty = [name for name, part in found.items() if not part.videos]
    if empty:
        raise ValueError(f"there are no videos of {' and '.join(empty)} in {settings.videos}")
    return found

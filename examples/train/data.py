"""Captions and video files of a data set."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
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
        left_out: How many videos of the data set are not among them, with their captions.
        missing: The names of those that have no file.
    """

    captions: list[str]
    videos: list[str]
    targets: list[int]
    left_out: int = 0
    missing: tuple[str, ...] = ()

    @classmethod
    def of(cls, captions: list[VideoCaption], files: Mapping[str, Path]) -> Part:
        """Put captions and files together; captions of videos without a file are left out."""
        kept = [caption for caption in captions if caption.video in files]
        index = {video: i for i, video in enumerate(dict.fromkeys(c.video for c in kept))}
        missing = tuple(dict.fromkeys(c.video for c in captions if c.video not in files))
        return cls(
            [caption.text for caption in kept],
            [str(files[video]) for video in index],
            [index[caption.video] for caption in kept],
            len(missing),
            missing,
        )

    def without(self, unreadable: Collection[str]) -> Part:
        """Leave out some videos with their captions."""
        return self.keep([video not in unreadable for video in self.videos])

    def keep(self, chosen: Sequence[bool]) -> Part:
        """Leave out the videos that are not chosen, with their captions."""
        pairs = [pair for pair in zip(self.captions, self.targets, strict=True) if chosen[pair[1]]]
        kept = [i for i, keep in enumerate(chosen) if keep]
        index = {old: new for new, old in enumerate(kept)}
        return Part(
            [caption for caption, _ in pairs],
            [self.videos[i] for i in kept],
            [index[target] for _, target in pairs],
            self.left_out + len(self.videos) - len(kept),
            self.missing,
        )


def load_parts(settings: RunSettings, missing: Collection[str] | None = None) -> dict[str, Part]:
    """Read the annotations and find the videos.

    Args:
        settings: Of the run.
        missing: The videos without a file when the run began: they are left out, and no others.
            None: the run begins.

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
    names = [caption.video for captions in parts.values() for caption in captions]
    if missing is None:
        files = find_videos(settings.videos, names, skip_missing=settings.skip_missing)
    else:
        names = [name for name in names if name not in missing]
        try:
            files = find_videos(settings.videos, names)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{error}. The run began with these files") from error
    names_of: dict[Path, list[str]] = {}
    for name, file in files.items():
        names_of.setdefault(file.resolve(), []).append(name)
    if twice := [names for names in names_of.values() if len(names) > 1]:
        raise ValueError(f"{len(twice)} videos have two names, the first {' and '.join(twice[0])}")
    found = {name: Part.of(captions, files) for name, captions in parts.items()}
    check_parts(found, settings)
    return found


def missing_of(parts: Mapping[str, Part]) -> list[str]:
    """Return the names of all videos without a file."""
    return list(dict.fromkeys(name for part in parts.values() for name in part.missing))


def leave_out(
    parts: Mapping[str, Part], unreadable: Collection[str], settings: RunSettings
) -> dict[str, Part]:
    """Leave out videos that cannot be read.

    Raises:
        ValueError: Too few are left.
    """
    kept = {name: part.without(unreadable) for name, part in parts.items()}
    check_parts(kept, settings)
    return kept


def check_parts(parts: Mapping[str, Part], settings: RunSettings) -> None:
    """Check that each part has videos, and the training enough for a step.

    Raises:
        ValueError: There are too few.
    """
    empty = [name for name, part in parts.items() if not part.videos]
    if empty:
        raise ValueError(f"there are no videos of {' and '.join(empty)} in {settings.videos}")
    videos = len(parts["train"].videos)
    if videos < settings.batch_size:
        raise ValueError(
            f"a step has {settings.batch_size} different videos, but there are only {videos} to "
            "train on: choose a smaller --batch-size"
        )

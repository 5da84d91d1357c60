"""Captions: a CSV to clips, and clips to splits that share no video and no caption."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from muse_adapter.data.annotations.caption_table import check_filled, read_caption_table
from muse_adapter.data.annotations.files import some_of

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Clip:
    """One caption of one video.

    Attributes:
        id: Unique among all clips.
        path: The video file.
        caption: What it shows.
        reversal: Id of the clip in the same split that shows the same frames in reverse, if any.
    """

    id: str
    path: Path
    caption: str
    reversal: str | None = None


def read_captions(csv_path: Path, folder: Path) -> list[Clip]:
    """Read the captions of a folder of videos.

    Args:
        csv_path: UTF-8, separated by commas, with the columns `video` (file name, relative to
            `folder`) and `caption`, one line per caption; a video may have several. Optional
            are `id` (unique) and `reversal` (the id of the time reversal). Others are ignored.
        folder: Where the videos are.

    Returns:
        The clips, in the order of the lines.

    Raises:
        FileNotFoundError: There is no such CSV or folder, or videos are missing.
        ValueError: The folder is empty, or the CSV is not as described; the message says where.
    """
    csv_path, folder = Path(csv_path), Path(folder)
    rows = read_caption_table(csv_path)
    if not folder.is_dir():
        raise FileNotFoundError(f"no such folder of videos: {folder}")
    if not any(folder.iterdir()):
        raise ValueError(f"the folder of videos is empty: {folder}")
    check_filled(csv_path, rows, "video", "caption", *(["id"] if "id" in rows[0][1] else []))

    clips, seen = [], Counter[str]()
    for _, row in rows:
        seen[row["video"]] += 1
        id = row.get("id") or f"{row['video']}#{seen[row['video']]}"
        clips.append(Clip(id, folder / row["video"], row["caption"], row.get("reversal") or None))

    ids = Counter(clip.id for clip in clips)
    repeated = [repr(id) for id, count in ids.items() if count > 1]
    if repeated:
        raise ValueError(f"{csv_path}: ids must be unique, repeated are {some_of(repeated)}")
    unknown = [repr(clip.reversal) for clip in clips if clip.reversal and clip.reversal not in ids]
    if unknown:
        raise ValueError(f"{csv_path}: reversal must be an id of the file, got {some_of(unknown)}")
    missing = [name for name in seen if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{csv_path}: {len(missing)} of {len(seen)} videos are not in {folder}: "
            f"{some_of(missing)}"
        )
    return clips


def split_clips(
    clips: Sequence[Clip], seed: int, *, held_out: float = 0.1
) -> dict[str, list[Clip]]:
    """Split one's own material so that no video and no caption belongs to two splits.

    Captions that differ in nothing but case and blanks count as equal. Videos that share a
    caption, directly or by way of others, stay together.

    Args:
        clips: At least three clips.
        seed: Seed of the draw.
        held_out: Share of the videos for validation, and as much for test; at least one each.

    Returns:
        The clips of "train", "validation" and "test", each in the given order.

    Raises:
        ValueError: Shared captions hold together so many videos that a split would be empty.
    """
    groups = _linked_videos(clips)
    random.Random(seed).shuffle(groups)
    quota = max(1, round(held_out * sum(map(len, groups))))
    splits: dict[str, list[Path]] = {"test": [], "validation": [], "train": []}
    # The held-out splits take groups only as far as they fit, so a large one goes to training.
    for group in groups:
        fits = [s for s in ("test", "validation") if len(splits[s]) + len(group) <= quota]
        splits[fits[0] if fits else "train"] += group
    empty = [name for name, videos in splits.items() if not videos]
    if empty:
        raise ValueError(
            f"cannot split {len({clip.path for clip in clips})} videos into train, validation and "
            f"test: they form {len(groups)} groups that share no caption, and nothing is left for "
            f"{' and '.join(empty)}"
        )
    split_of = {video: name for name, videos in splits.items() for video in videos}
    return {name: [clip for clip in clips if split_of[clip.path] == name] for name in SPLITS}


def _linked_videos(clips: Sequence[Clip]) -> list[list[Path]]:
    """Group videos so that no caption occurs in two groups."""
    videos_of: dict[str, list[Path]] = defaultdict(list)
    captions_of: dict[Path, list[str]] = defaultdict(list)
    for clip in clips:
        caption = " ".join(clip.caption.casefold().split())
        videos_of[caption].append(clip.path)
        captions_of[clip.path].append(caption)
    groups, placed = [], set[Path]()
    for start in captions_of:
        if start in placed:
            continue
        group, waiting = [], [start]
        placed.add(start)
        while waiting:
            video = waiting.pop()
            group.append(video)
            for caption in captions_of[video]:
                for other in videos_of.pop(caption, ()):
                    if other not in placed:
                        placed.add(other)
                        waiting.append(other)
        groups.append(group)
    return groups

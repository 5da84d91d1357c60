"""Captions and videos: a CSV to clips, clips to tensors, one's own material to parts."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import random
import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from examples.quickstart.files import ensure_folder, read_tensors, write_tensors
from muse_adapter.data.video import UnreadableVideo, read_frames

LISTED = 5  # how many of the faulty files or lines a message names


@dataclass(frozen=True)
class Clip:
    """One caption of one video.

    Attributes:
        id: unique among all clips.
        path: the video file.
        caption: what it shows.
        reversal: id of the clip in the same part that shows the same frames in reverse, if any.
    """

    id: str
    path: Path
    caption: str
    reversal: str | None = None


@dataclass(frozen=True)
class Part:
    """Decoded clips, aligned.

    Attributes:
        clips: n clips.
        frames: ``(n, T, 3, size, size)``, uint8, RGB.
        mask: ``(n, T)``, bool, True for a real frame.
    """

    clips: list[Clip]
    frames: Tensor
    mask: Tensor


def read_captions(csv_path: Path, folder: Path) -> list[Clip]:
    """Read the captions of a folder of videos.

    Args:
        csv_path: UTF-8, separated by commas, with the columns ``video`` (file name, relative to
            ``folder``) and ``caption``, one line per caption; a video may have several. Optional
            are ``id`` (unique) and ``reversal`` (the id of the time reversal). Others are ignored.
        folder: where the videos are.

    Returns:
        The clips, in the order of the lines.

    Raises:
        FileNotFoundError: there is no such CSV or folder, or videos are missing.
        ValueError: the folder is empty, or the CSV is not as described; the message says where.
    """
    csv_path, folder = Path(csv_path), Path(folder)
    rows = _read_rows(csv_path)
    if not folder.is_dir():
        raise FileNotFoundError(f"no such folder of videos: {folder}")
    if not any(folder.iterdir()):
        raise ValueError(f"the folder of videos is empty: {folder}")
    for column in ("video", "caption", *(["id"] if "id" in rows[0][1] else [])):
        lines = [f"line {line}" for line, row in rows if not row[column]]
        if lines:
            raise ValueError(f"{csv_path}: empty {column} in {_some(lines)}")

    clips, seen = [], Counter[str]()
    for _, row in rows:
        seen[row["video"]] += 1
        id = row.get("id") or f"{row['video']}#{seen[row['video']]}"
        clips.append(Clip(id, folder / row["video"], row["caption"], row.get("reversal") or None))

    ids = Counter(clip.id for clip in clips)
    repeated = [repr(id) for id, count in ids.items() if count > 1]
    if repeated:
        raise ValueError(f"{csv_path}: ids must be unique, repeated are {_some(repeated)}")
    unknown = [repr(clip.reversal) for clip in clips if clip.reversal and clip.reversal not in ids]
    if unknown:
        raise ValueError(f"{csv_path}: reversal must be an id of the file, got {_some(unknown)}")
    missing = [name for name in seen if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{csv_path}: {len(missing)} of {len(seen)} videos are not in {folder}: "
            f"{_some(missing)}"
        )
    return clips


def split(clips: Sequence[Clip], seed: int, *, held_out: float = 0.1) -> dict[str, list[Clip]]:
    """Split one's own material: no video and no caption belongs to two parts.

    Captions that differ in nothing but case and blanks count as equal. Videos that share a
    caption, directly or by way of others, stay together.

    Args:
        clips: at least three clips.
        seed: of the draw.
        held_out: share of the videos for validation, and as much for test; at least one each.

    Returns:
        The clips of the parts "train", "validation" and "test", each in the given order.

    Raises:
        ValueError: shared captions hold together so many videos that a part would be empty.
    """
    groups = _linked_videos(clips)
    random.Random(seed).shuffle(groups)
    quota = max(1, round(held_out * sum(map(len, groups))))
    parts: dict[str, list[Path]] = {"test": [], "validation": [], "train": []}
    # The held-out parts take groups only as far as they fit, so a large one goes to training.
    for group in groups:
        fits = [p for p in ("test", "validation") if len(parts[p]) + len(group) <= quota]
        parts[fits[0] if fits else "train"] += group
    empty = [part for part, videos in parts.items() if not videos]
    if empty:
        raise ValueError(
            f"cannot split {len({clip.path for clip in clips})} videos into train, validation and "
            f"test: they form {len(groups)} groups that share no caption, and nothing is left for "
            f"{' and '.join(empty)}"
        )
    return {
        part: [clip for clip in clips if clip.path in set(parts[part])]
        for part in ("train", "validation", "test")
    }


def load_part(
    clips: Sequence[Clip],
    *,
    num_frames: int,
    size: int,
    cache: Path | None,
    progress: bool = True,
) -> Part:
    """Decode clips, each video once, leaving out unreadable ones with a warning.

    Args:
        clips: what to read.
        num_frames: T, frames sampled from each video.
        size: side of the square that frames are resized and cropped to.
        cache: folder in which the decoded frames are kept, None for none. They are read from
            there if neither the settings nor the files' names, sizes and times have changed.
        progress: whether to show a progress bar.

    Returns:
        The readable clips, decoded.

    Raises:
        ValueError: there are no clips, none can be read, or the file in the cache is damaged.
        OSError: the cache cannot be written to.
    """
    if not clips:
        raise ValueError("there are no clips to read")
    paths = list(dict.fromkeys(clip.path for clip in clips))
    if cache is None:
        decoded = _decode(paths, num_frames, size, progress)
    else:
        file = Path(cache) / f"frames-{_fingerprint(paths, num_frames, size)}.pt"
        if file.exists():
            decoded = _Decoded(**read_tensors(file))
        else:
            ensure_folder(file.parent)
            decoded = _decode(paths, num_frames, size, progress)
            write_tensors(file, vars(decoded))

    row_of = {paths[number]: row for row, number in enumerate(decoded.readable)}
    if not row_of:
        raise ValueError(f"none of {len(paths)} videos can be read: {_some(decoded.reasons)}")
    if decoded.reasons:
        warnings.warn(
            f"{len(decoded.reasons)} of {len(paths)} videos are left out: "
            f"{'; '.join(decoded.reasons)}",
            stacklevel=2,
        )
    kept = [clip for clip in clips if clip.path in row_of]
    rows = torch.tensor([row_of[clip.path] for clip in kept])
    return Part(kept, decoded.frames[rows], decoded.mask[rows])


def _read_rows(csv_path: Path) -> list[tuple[int, dict[str, str]]]:
    """Line numbers and stripped fields."""
    try:
        text = csv_path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise FileNotFoundError(f"no such file of captions: {csv_path}") from None
    except OSError as error:
        raise OSError(f"cannot read the captions {csv_path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{csv_path} is not UTF-8 ({error.reason} at byte {error.start}): save it as UTF-8"
        ) from error
    reader = csv.reader(io.StringIO(text, newline=""))
    rows: list[tuple[int, dict[str, str]]] = []
    columns: list[str] = []
    try:
        for fields in reader:
            if not any(field.strip() for field in fields):
                continue
            if not columns:
                columns = [field.strip() for field in fields]
                if not {"video", "caption"} <= set(columns) or len(set(columns)) < len(columns):
                    raise ValueError(
                        f"{csv_path}: the first line must name the columns video and caption, "
                        f"separated by commas and each once, got {','.join(columns)!r}"
                    )
            elif len(fields) != len(columns):
                raise ValueError(
                    f"{csv_path}: line {reader.line_num} has {len(fields)} fields, expected "
                    f"{len(columns)}; a caption that holds a comma must stand in double quotes"
                )
            else:
                stripped = (field.strip() for field in fields)
                rows.append((reader.line_num, dict(zip(columns, stripped, strict=True))))
    except csv.Error as error:
        raise ValueError(f"{csv_path}: line {reader.line_num}: {error}") from error
    if not rows:
        raise ValueError(f"{csv_path}: there are no captions")
    return rows


def _linked_videos(clips: Sequence[Clip]) -> list[list[Path]]:
    """Groups of videos such that no caption occurs in two of them."""
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


@dataclass(frozen=True)
class _Decoded:
    """What of some videos could be decoded.

    Attributes:
        frames: ``(r, T, 3, size, size)``, uint8, of the r readable ones.
        mask: ``(r, T)``, bool.
        readable: number of the video, for each of the r.
        reasons: a sentence for each of the others.
    """

    frames: Tensor
    mask: Tensor
    readable: list[int]
    reasons: list[str]


def _decode(paths: Sequence[Path], num_frames: int, size: int, progress: bool) -> _Decoded:
    frames = torch.zeros(len(paths), num_frames, 3, size, size, dtype=torch.uint8)
    mask = torch.zeros(len(paths), num_frames, dtype=torch.bool)
    readable: list[int] = []
    reasons: list[str] = []

    def read(path: Path) -> tuple[Tensor, Tensor] | UnreadableVideo:
        try:
            return read_frames(path, num_frames, size=size)
        except UnreadableVideo as error:
            return error

    bar = tqdm(total=len(paths), desc="decode", unit="video", disable=not progress)
    with ThreadPoolExecutor(2) as pool, bar:
        try:
            for number, result in enumerate(pool.map(read, paths)):
                if isinstance(result, UnreadableVideo):
                    reasons.append(str(result))
                else:
                    frames[len(readable)], mask[len(readable)] = result
                    readable.append(number)
                bar.update()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    n = len(readable)
    return _Decoded(frames[:n].clone(), mask[:n].clone(), readable, reasons)


def _fingerprint(paths: Sequence[Path], num_frames: int, size: int) -> str:
    stats = [(str(path.resolve()), path.stat()) for path in paths]
    files = [(name, stat.st_mtime_ns, stat.st_size) for name, stat in stats]
    return hashlib.sha256(json.dumps([files, num_frames, size]).encode()).hexdigest()[:16]


def _some(values: Sequence[str]) -> str:
    more = f" and {len(values) - LISTED} more" if len(values) > LISTED else ""
    return ", ".join(values[:LISTED]) + more

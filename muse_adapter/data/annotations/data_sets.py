"""The annotation files of each data set, as CLIP4Clip's users have them."""

from __future__ import annotations

import csv
import io
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from muse_adapter.data.annotations.caption_table import check_filled, read_caption_table
from muse_adapter.data.annotations.captions import VideoCaption, join_captions
from muse_adapter.data.annotations.files import (
    check_present,
    read_json,
    read_names,
    read_text,
    some_of,
)
from muse_adapter.data.annotations.plain_pickle import read_plain_pickle

Parts = dict[str, list[VideoCaption]]

PARTS = {"train": "train", "val": "validation", "test": "test"}  # files say val
LIST = "names of videos, one a line"
VATEX_FILES = (
    "vatex_training_v1.0.json",
    "vatex_validation_v1.0.json",
    "vatex_public_test_english_v1.1.json",
)


def read_annotations(data_set: str, path: Path | str) -> Parts:
    """Read the captions of a data set.

    Files in the folder, by the name of the data set:

    - msrvtt: `MSRVTT_train.9k.csv`, `MSRVTT_JSFUSION_test.csv` (1k-A), `MSRVTT_data.json`
    - msrvtt-7k: `MSRVTT_train.7k.csv` in place of the 9k
    - msvd: `train_list.txt`, `val_list.txt`, `test_list.txt`, `raw-captions.pkl`
    - didemo: `train_list.txt`, `train_data.json`, and so for val and test; paragraphs
    - activitynet: `train_ids.json`, `train.json`, `val_ids.json`, `val_1.json`; paragraphs
    - lsmdc: `LSMDC16_annos_training.csv`, `LSMDC16_annos_val.csv`,
      `LSMDC16_challenge_1000_publictect.csv`
    - vatex: `train_list.txt`, `val_list.txt`, `test_list.txt`, and `vatex_data.json`,
      `ref_captions.json` or the three official files
    - csv: one file with the columns video, caption and split (train, validation, test)

    Captions of a video are kept apart, except in paragraph retrieval, which joins them. No video is
    in two parts. The training lists of MSR-VTT contain the videos of its official validation part:
    these are the validation part here; papers train on both parts. ActivityNet has none, since its
    second set of validation captions is of the test videos: `hold_out` makes one.

    Args:
        data_set: Its name.
        path: The folder of the files; for "csv" the file itself.

    Returns:
        The captions of "train", "validation" (where there is one) and "test", in the order of the
        files.

    Raises:
        FileNotFoundError: Files are missing; names all of them and what they hold.
        ValueError: The name is unknown, or a file is damaged or does not fit the others.
    """
    if data_set not in DATA_SETS:
        raise ValueError(f"unknown data set {data_set!r}; known are {', '.join(DATA_SETS)}")
    try:
        parts = DATA_SETS[data_set](Path(path))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}: a file is not in the form of {data_set}: {type(error).__name__} {error}"
        ) from error
    part_of: dict[str, str] = {}
    for part, captions in parts.items():
        if not captions:
            raise ValueError(f"{path}: the {part} part of {data_set} has no captions")
        empty = sorted({caption.video for caption in captions if not caption.text})
        if empty:
            raise ValueError(f"{path}: empty captions of {some_of(empty)}")
        for video in {caption.video for caption in captions}:
            if video in part_of:
                raise ValueError(f"{path}: {video} is in both {part_of[video]} and {part}")
            part_of[video] = part
    return parts


def _msrvtt(training_list: str) -> Callable[[Path], Parts]:
    def read(folder: Path) -> Parts:
        train, test = folder / training_list, folder / "MSRVTT_JSFUSION_test.csv"
        data = folder / "MSRVTT_data.json"
        check_present(
            {
                train: "the column video_id of the training videos",
                test: "the columns video_id and sentence of the 1k-A test",
                data: "all captions, and the official split of the videos",
            }
        )
        content = read_json(data, dict)
        captions = [
            VideoCaption(sentence["video_id"], sentence["caption"].strip())
            for sentence in _field(data, content, "sentences")
        ]
        names = set(_columns(train, "video_id")[0])
        official = {
            video["video_id"]
            for video in _field(data, content, "videos")
            if video.get("split") == "validate"
        }
        _check_captions(data, names, captions)
        return {
            "train": _of(names - official, captions),
            "validation": _of(names & official, captions),
            "test": list(map(VideoCaption, *_columns(test, "video_id", "sentence"))),
        }

    return read


def _msvd(folder: Path) -> Parts:
    pickled = folder / "raw-captions.pkl"
    lists = _lists(folder, {pickled: "words of the captions by video"})
    content = read_plain_pickle(pickled)
    if not isinstance(content, dict):
        raise ValueError(f"{pickled}: expected a dict, got {type(content).__name__}")
    texts = {video: [" ".join(words) for words in captions] for video, captions in content.items()}
    return _by_lists(pickled, lists, texts)


def _didemo(folder: Path) -> Parts:
    data = {part: folder / f"{part}_data.json" for part in PARTS}
    lists = _lists(folder, dict.fromkeys(data.values(), "descriptions of moments"))
    parts = {}
    for part, path in data.items():
        captions = [
            VideoCaption(moment["video"], moment["description"].strip())
            for moment in read_json(path, list)
        ]
        _check_captions(path, lists[PARTS[part]], captions, skip=True)
        parts[PARTS[part]] = join_captions(_of(set(lists[PARTS[part]]), captions))
    return parts


def _activitynet(folder: Path) -> Parts:
    files = {
        "train": (folder / "train_ids.json", folder / "train.json"),
        "test": (folder / "val_ids.json", folder / "val_1.json"),
    }
    check_present(
        {ids: "a list of names of videos" for ids, _ in files.values()}
        | {path: "duration, timestamps and sentences by video" for _, path in files.values()}
    )
    parts = {}
    for part, (ids, path) in files.items():
        names = list(dict.fromkeys(read_json(ids, list)))
        content = read_json(path, dict)
        captions = [
            VideoCaption(name, " ".join(s.strip() for s in content[name]["sentences"]))
            for name in names
            if name in content
        ]
        _check_captions(path, names, captions, skip=True)
        # The files say v_NAME, the videos have either name.
        parts[part] = [VideoCaption(c.video.removeprefix("v_"), c.text) for c in captions]
    return parts


def _lsmdc(folder: Path) -> Parts:
    files = {
        "train": folder / "LSMDC16_annos_training.csv",
        "validation": folder / "LSMDC16_annos_val.csv",
        "test": folder / "LSMDC16_challenge_1000_publictect.csv",
    }
    check_present(
        dict.fromkeys(files.values(), "lines of clip, four times and sentence, between tabs")
    )
    parts: Parts = {part: [] for part in files}
    for part, path in files.items():
        for number, line in enumerate(io.StringIO(read_text(path)), start=1):
            if not line.strip():
                continue
            fields = line.strip().split("\t")
            if len(fields) != 6:
                raise ValueError(f"{path}: line {number} has {len(fields)} fields, expected 6")
            parts[part].append(VideoCaption(fields[0], fields[5].strip()))
    return parts


def _vatex(folder: Path) -> Parts:
    single = [folder / name for name in ("vatex_data.json", "ref_captions.json")]
    official = [folder / name for name in VATEX_FILES]
    found = [path for path in single if path.is_file()][:1]
    found = found or [path for path in official if path.is_file()]
    lists = _lists(folder, {} if found else dict.fromkeys(official, "enCap by videoID"))
    texts: dict[str, list[str]] = {}
    for path in found:
        if path in official:
            texts |= {entry["videoID"]: entry["enCap"] for entry in read_json(path, list)}
        else:
            content = read_json(path, dict)
            texts |= {k: v["enCap"] if isinstance(v, dict) else v for k, v in content.items()}
    return _by_lists(found[0], lists, texts)


def _csv(path: Path) -> Parts:
    rows = read_caption_table(path)
    check_filled(path, rows, "video", "caption")
    parts: Parts = {"train": [], "validation": [], "test": []}
    for line, row in rows:
        split = row.get("split", "")
        if split not in parts:
            raise ValueError(
                f"{path}: line {line} must have the split train, validation or test, got {split!r}"
            )
        parts[split].append(VideoCaption(row["video"], row["caption"]))
    return {part: captions for part, captions in parts.items() if captions or part != "validation"}


DATA_SETS: dict[str, Callable[[Path], Parts]] = {
    "msrvtt": _msrvtt("MSRVTT_train.9k.csv"),
    "msrvtt-7k": _msrvtt("MSRVTT_train.7k.csv"),
    "msvd": _msvd,
    "didemo": _didemo,
    "activitynet": _activitynet,
    "lsmdc": _lsmdc,
    "vatex": _vatex,
    "csv": _csv,
}


def _lists(folder: Path, others: dict[Path, str]) -> dict[str, list[str]]:
    """Read train_list.txt, val_list.txt and test_list.txt, once all files are there."""
    paths = {PARTS[part]: folder / f"{part}_list.txt" for part in PARTS}
    check_present(dict.fromkeys(paths.values(), LIST) | others)
    return {part: read_names(path) for part, path in paths.items()}


def _by_lists(path: Path, lists: dict[str, list[str]], texts: dict[str, list[str]]) -> Parts:
    parts = {
        part: [VideoCaption(name, text.strip()) for name in names for text in texts.get(name, ())]
        for part, names in lists.items()
    }
    for part, names in lists.items():
        _check_captions(path, names, parts[part])
    return parts


def _of(names: set[str], captions: Iterable[VideoCaption]) -> list[VideoCaption]:
    return [caption for caption in captions if caption.video in names]


def _columns(path: Path, *names: str) -> list[list[str]]:
    """Read some columns of a CSV."""
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
    try:
        absent = set(names) - set(reader.fieldnames or ())
        if absent:
            raise ValueError(f"{path}: the first line must name {', '.join(sorted(absent))}")
        rows = list(reader)
    except csv.Error as error:
        raise ValueError(f"{path}: line {reader.line_num} is no CSV: {error}") from error
    if any(not row[name] for row in rows for name in names):
        raise ValueError(f"{path}: a line has no {' or no '.join(names)}")
    return [[row[name].strip() for row in rows] for name in names]


def _field(path: Path, content: dict[str, Any], name: str) -> Any:
    if name not in content:
        raise ValueError(f"{path}: there is no {name!r}")
    return content[name]


def _check_captions(
    path: Path, names: Iterable[str], captions: Sequence[VideoCaption], *, skip: bool = False
) -> None:
    """Check that each video has a caption, or warn where CLIP4Clip leaves such videos out."""
    known = {caption.video for caption in captions}
    absent = sorted(name for name in names if name not in known)
    if not absent:
        return
    message = f"{path}: no captions of {len(absent)} videos: {some_of(absent)}"
    if not skip:
        raise ValueError(message)
    warnings.warn(f"{message}; they are left out", stacklevel=2)

"""Small annotation files of every data set, in the forms in which their users have them."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

# Parts of every data set below: two captions of video a, one of every other.
TRAIN, VALIDATION, TEST = ["a", "b"], ["c"], ["d", "e"]
LISTS = {"train": TRAIN, "val": VALIDATION, "test": TEST}
TEXTS = {"a": ["a red dog", "a dog"], **{name: [f"the {name} moves"] for name in "bcde"}}


def msrvtt(folder: Path) -> None:
    for size in ("7k", "9k"):
        lines = ["video_id", *TRAIN, *VALIDATION]
        (folder / f"MSRVTT_train.{size}.csv").write_text("\n".join(lines))
    rows = [f'ret{i},msr{i},{name},"the {name}, in the test"' for i, name in enumerate(TEST)]
    test = "\n".join(["key,vid_key,video_id,sentence", *rows])
    (folder / "MSRVTT_JSFUSION_test.csv").write_text(test)
    split = {"train": "train", "val": "validate", "test": "test"}
    content = {
        "videos": [
            {"video_id": name, "url": "https://host/?v=1", "split": split[part]}
            for part, names in LISTS.items()
            for name in names
        ],
        "sentences": [
            {"video_id": name, "caption": text, "sen_id": 0}
            for name, texts in TEXTS.items()
            for text in texts
        ],
    }
    write_json(folder / "MSRVTT_data.json", content)


def msvd(folder: Path) -> None:
    write_lists(folder)
    words = {name: [text.split() for text in texts] for name, texts in TEXTS.items()}
    (folder / "raw-captions.pkl").write_bytes(pickle.dumps(words, protocol=2))


def didemo(folder: Path) -> None:
    write_lists(folder)
    for part, names in LISTS.items():
        moments = [
            {"video": name, "description": text, "times": [[0, 0], [1, 1]]}
            for name in [*names, "unlisted"]
            for text in TEXTS.get(name, ["of no list"])
        ]
        write_json(folder / f"{part}_data.json", moments)


def activitynet(folder: Path) -> None:
    for stem, captions, names in (("train", "train", TRAIN), ("val", "val_1", TEST)):
        write_json(folder / f"{stem}_ids.json", [f"v_{name}" for name in names])
        content = {
            f"v_{name}": {"duration": 9.5, "timestamps": [[0, 9]], "sentences": TEXTS[name]}
            for name in names
        }
        write_json(folder / f"{captions}.json", content)


def lsmdc(folder: Path) -> None:
    names = {
        "LSMDC16_annos_training.csv": TRAIN,
        "LSMDC16_annos_val.csv": VALIDATION,
        "LSMDC16_challenge_1000_publictect.csv": TEST,
    }
    for file, videos in names.items():
        lines = [
            "\t".join([name, "00.01", "00.02", "00.01", "00.02", text])
            for name in videos
            for text in TEXTS[name]
        ]
        (folder / file).write_text("\n".join(lines) + "\n")


def vatex(folder: Path) -> None:
    write_lists(folder)
    for file, names in {"training": TRAIN, "validation": [*VALIDATION, *TEST]}.items():
        entries = [{"videoID": name, "enCap": TEXTS[name], "chCap": ["?"]} for name in names]
        write_json(folder / f"vatex_{file}_v1.0.json", entries)


WRITERS = {
    "msrvtt": msrvtt,
    "msrvtt-7k": msrvtt,
    "msvd": msvd,
    "didemo": didemo,
    "activitynet": activitynet,
    "lsmdc": lsmdc,
    "vatex": vatex,
}


def write_lists(folder: Path) -> None:
    for part, names in LISTS.items():
        (folder / f"{part}_list.txt").write_text("\n".join(names) + "\n")


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content))

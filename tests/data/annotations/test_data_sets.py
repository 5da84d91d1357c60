"""Annotation files of every data set: what is read, and what is said about missing ones."""

from __future__ import annotations

import copyreg
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest

from muse_adapter.data import VideoCaption, hold_out, read_annotations
from tests.support.annotation_files import TEST, TEXTS, TRAIN, VALIDATION, WRITERS, write_json

PARAGRAPHS = ("didemo", "activitynet")


def expected(names: list[str], data_set: str, part: str) -> list[VideoCaption]:
    if data_set.startswith("msrvtt") and part == "test":
        return [VideoCaption(name, f"the {name}, in the test") for name in names]
    if data_set in PARAGRAPHS:
        return [VideoCaption(name, " ".join(TEXTS[name])) for name in names]
    return [VideoCaption(name, text) for name in names for text in TEXTS[name]]


@pytest.mark.parametrize("data_set", WRITERS)
def test_parts_of_a_data_set(data_set: str, tmp_path: Path) -> None:
    WRITERS[data_set](tmp_path)
    parts = read_annotations(data_set, tmp_path)
    names = {"train": TRAIN, "validation": VALIDATION, "test": TEST}
    if data_set == "activitynet":
        del names["validation"]
    assert parts == {part: expected(videos, data_set, part) for part, videos in names.items()}


@pytest.mark.parametrize("data_set", WRITERS)
def test_missing_files_are_all_named(data_set: str, tmp_path: Path) -> None:
    WRITERS[data_set](tmp_path)
    files = sorted(tmp_path.iterdir())
    for file in files:
        file.unlink()
    with pytest.raises(FileNotFoundError) as caught:
        read_annotations(data_set, tmp_path)
    unused = {"msrvtt": "MSRVTT_train.7k.csv", "msrvtt-7k": "MSRVTT_train.9k.csv"}.get(data_set)
    assert all(str(file) in str(caught.value) for file in files if file.name != unused)


@pytest.mark.filterwarnings("ignore:.*no captions of")
@pytest.mark.parametrize("data_set", WRITERS)
def test_damaged_files_are_named(data_set: str, tmp_path: Path) -> None:
    WRITERS[data_set](tmp_path)
    unused = {"msrvtt": "MSRVTT_train.7k.csv", "msrvtt-7k": "MSRVTT_train.9k.csv"}.get(data_set)
    for file in sorted(tmp_path.iterdir()):
        content = file.read_bytes()
        for damaged in (b"\xff\xfe{", b"", b"[[1, 2], {}]", b'{"a": 1}'):
            if file.name != unused:
                file.write_bytes(damaged)
                with pytest.raises(ValueError, match=str(tmp_path)):
                    read_annotations(data_set, tmp_path)
        file.write_bytes(content)
    read_annotations(data_set, tmp_path)


def test_forms_of_vatex(tmp_path: Path) -> None:
    WRITERS["vatex"](tmp_path)
    official = read_annotations("vatex", tmp_path)
    for file in tmp_path.glob("vatex_*.json"):
        file.unlink()
    write_json(tmp_path / "ref_captions.json", TEXTS)
    assert read_annotations("vatex", tmp_path) == official
    write_json(tmp_path / "vatex_data.json", {name: {"enCap": TEXTS[name]} for name in TEXTS})
    (tmp_path / "ref_captions.json").unlink()
    assert read_annotations("vatex", tmp_path) == official


def test_own_csv(tmp_path: Path) -> None:
    path = tmp_path / "captions.csv"
    lines = ["video,caption,split", 'a.mp4,"a dog, red",train', "a.mp4,a dog,train"]
    path.write_text("\n".join([*lines, "b.mp4,a cat,test"]))
    assert read_annotations("csv", path) == {
        "train": [VideoCaption("a.mp4", "a dog, red"), VideoCaption("a.mp4", "a dog")],
        "test": [VideoCaption("b.mp4", "a cat")],
    }
    path.write_text("\n".join([*lines, "b.mp4,a cat,dev"]))
    with pytest.raises(ValueError, match=r"line 4 must have the split .* got 'dev'"):
        read_annotations("csv", path)
    path.write_text("\n".join([*lines, "a.mp4,a cat,test"]))
    with pytest.raises(ValueError, match=r"a\.mp4 is in both train and test"):
        read_annotations("csv", path)


def test_videos_without_captions(tmp_path: Path) -> None:
    WRITERS["msvd"](tmp_path)
    (tmp_path / "test_list.txt").write_text("d\nother\n")
    with pytest.raises(ValueError, match=r"no captions of 1 videos: other"):
        read_annotations("msvd", tmp_path)
    folder = tmp_path / "didemo"
    folder.mkdir()
    WRITERS["didemo"](folder)
    (folder / "test_list.txt").write_text("d\nother\n")
    with pytest.warns(UserWarning, match="no captions of 1 videos: other; they are left out"):
        parts = read_annotations("didemo", folder)
    assert [caption.video for caption in parts["test"]] == ["d"]


def test_unknown_data_set(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown data set 'k400'; known are msrvtt, msrvtt-7k"):
        read_annotations("k400", tmp_path)


class Call:
    """A pickle that runs something when it is loaded."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call[0], self.call[1:]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickle_runs_nothing(protocol: int, tmp_path: Path) -> None:
    WRITERS["msvd"](tmp_path)
    mark = tmp_path / "ran"
    path = tmp_path / "raw-captions.pkl"
    path.write_bytes(pickle.dumps({"a": Call(Path.touch, mark)}, protocol=protocol))
    with pytest.raises(ValueError, match=r"raw-captions\.pkl is no pickle of plain values"):
        read_annotations("msvd", tmp_path)
    assert not mark.exists()
    path.write_bytes(pickle.dumps({name: [["ä"]] for name in TEXTS}, protocol=protocol))
    assert read_annotations("msvd", tmp_path)["validation"] == [VideoCaption("c", "ä")]


def test_pickle_refuses_registered_objects(tmp_path: Path) -> None:
    WRITERS["msvd"](tmp_path)
    named = os.getcwd.__module__, "getcwd"
    copyreg.add_extension(*named, 240)
    try:
        content = pickle.dumps(os.getcwd, protocol=2)
        # Looked up once, it is kept, and `find_class` is not asked again.
        assert pickle.loads(content) is os.getcwd
        (tmp_path / "raw-captions.pkl").write_bytes(content)
        with pytest.raises(ValueError, match="by a registered code"):
            read_annotations("msvd", tmp_path)
    finally:
        copyreg.remove_extension(*named, 240)


def test_hold_out() -> None:
    captions = [VideoCaption(f"v{i % 20}", str(i)) for i in range(60)]
    left, held = hold_out(captions, 0.1)
    assert len({c.video for c in held}) == 2 and len(held) == 6
    assert not {c.video for c in held} & {c.video for c in left}
    assert sorted([*left, *held]) == sorted(captions)
    assert hold_out(captions, 0.1) == (left, held)
    assert hold_out(captions, 0.1, seed=1)[1] != held
    with pytest.raises(ValueError, match="between 0 and 1, got 1"):
        hold_out(captions, 1)
    with pytest.raises(ValueError, match="at least 2, got 1"):
        hold_out(captions[:1], 0.5)


def test_repeated_name_in_a_list(tmp_path: Path) -> None:
    WRITERS["vatex"](tmp_path)
    (tmp_path / "train_list.txt").write_text("a\nb\na\n")
    with pytest.raises(ValueError, match=r"listed once, repeated are a$"):
        read_annotations("vatex", tmp_path)


def test_json_of_another_form(tmp_path: Path) -> None:
    WRITERS["activitynet"](tmp_path)
    (tmp_path / "train.json").write_text(json.dumps({"v_a": {"sentence": []}}))
    with pytest.raises(ValueError, match="not in the form of activitynet: KeyError 'sentences'"):
        read_annotations("activitynet", tmp_path)


def test_pickle_takes_no_memory_for_nothing(tmp_path: Path) -> None:
    """An unpickler makes room for all places up to the one that is named."""
    WRITERS["msvd"](tmp_path)
    path = tmp_path / "raw-captions.pkl"
    path.write_bytes(b"\x80\x02]r\xff\xff\xff\xff.")
    with pytest.raises(ValueError, match="it names place 4294967295 of its memo"):
        read_annotations("msvd", tmp_path)

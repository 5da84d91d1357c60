"""One's own captions and videos: read, refused with the reason, split."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("tqdm", reason="the quickstart needs tqdm")

from examples.quickstart.captions import SPLITS, Clip, read_captions, split_clips


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """A folder of files that are there; nothing reads what is in them."""
    folder = tmp_path / "videos"
    (folder / "sub").mkdir(parents=True)
    for name in ("a.mp4", "b.mp4", "sub/c.mp4"):
        (folder / name).write_bytes(b"")
    return folder


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param(
            b"video,caption\na.mp4,a dog\nb.mp4,a cat\na.mp4,one dog\n",
            [
                ("a.mp4#1", "a.mp4", "a dog"),
                ("b.mp4#1", "b.mp4", "a cat"),
                ("a.mp4#2", "a.mp4", "one dog"),
            ],
            id="two_columns",
        ),
        pytest.param(
            b"caption,other,video,id\na dog,x,sub/c.mp4,7\n",
            [("7", "sub/c.mp4", "a dog")],
            id="other_order_and_columns",
        ),
        pytest.param(
            b'\xef\xbb\xbfvideo,caption\r\na.mp4,"a dog, a cat ""Tom"""\r\n\r\n',
            [("a.mp4#1", "a.mp4", 'a dog, a cat "Tom"')],
            id="byte_order_mark_windows_quotes_blank_line",
        ),
        pytest.param(
            "video , caption\n a.mp4 , ein Hündchen 小狗 \n".encode(),
            [("a.mp4#1", "a.mp4", "ein Hündchen 小狗")],
            id="blanks_and_other_scripts",
        ),
    ],
)
def test_captions_are_read(
    tmp_path: Path, videos: Path, content: bytes, expected: list[tuple[str, str, str]]
) -> None:
    table = tmp_path / "captions.csv"
    table.write_bytes(content)
    clips = read_captions(table, videos)
    assert clips == [Clip(id, videos / name, caption) for id, name, caption in expected]


MANY = "".join(f"lost{i}.mp4,text {i}\n" for i in range(9)).encode()


BAD_TABLES = {
    "no_columns": (b"file,text\na.mp4,x\n", ValueError, "columns video and caption.*'file,text'"),
    "semicolons": (b"video;caption\na.mp4;x\n", ValueError, "separated by ';', expected commas"),
    "tabs": (b"video\tcaption\na.mp4\tx\n", ValueError, r"separated by '\\t', expected commas"),
    "column_twice": (b"video,caption,video\na.mp4,x,b.mp4\n", ValueError, "each once"),
    "no_lines": (b"video,caption\n", ValueError, "there are no captions"),
    "empty_file": (b"", ValueError, "there are no captions"),
    "one_missing": (b"video,caption\na.mp4,x\nz.mp4,y\n", FileNotFoundError, "1 of 2 .*: z.mp4$"),
    "many_missing": (
        b"video,caption\na.mp4,x\n" + MANY,
        FileNotFoundError,
        r"9 of 10 videos are not in .*: lost0\.mp4, .*, lost4\.mp4 and 4 more$",
    ),
    "a_folder_for_a_video": (b"video,caption\nsub,x\n", FileNotFoundError, "1 of 1 .*: sub$"),
    "repeated_ids": (
        b"id,video,caption\n1,a.mp4,x\n2,b.mp4,y\n1,b.mp4,z\n",
        ValueError,
        "ids must be unique, repeated are '1'",
    ),
    "empty_id": (b"id,video,caption\n,a.mp4,x\n", ValueError, "empty id in line 2"),
    "empty_caption": (
        b"video,caption\na.mp4,x\nb.mp4, \nb.mp4,\n",
        ValueError,
        "empty caption in line 3, line 4",
    ),
    "empty_video": (b"video,caption\n,x\n", ValueError, "empty video in line 2"),
    "comma_without_quotes": (
        b"video,caption\na.mp4,a dog, a cat\n",
        ValueError,
        "line 2 has 3 fields, expected 2.*double quotes",
    ),
    "unknown_reversal": (
        b"id,video,caption,reversal\n1,a.mp4,x,2\n",
        ValueError,
        "reversal must be an id of the file, got '2'",
    ),
    "latin_1": ("video,caption\na.mp4,Hündchen\n".encode("latin-1"), ValueError, "not UTF-8"),
    "utf_16": ("video,caption\na.mp4,x\n".encode("utf-16"), ValueError, "not UTF-8"),
}


@pytest.mark.parametrize(
    ("content", "error", "message"), BAD_TABLES.values(), ids=BAD_TABLES.keys()
)
def test_bad_tables(
    tmp_path: Path, videos: Path, content: bytes, error: type[Exception], message: str
) -> None:
    table = tmp_path / "captions.csv"
    table.write_bytes(content)
    with pytest.raises(error, match=message) as caught:
        read_captions(table, videos)
    assert "captions.csv" in str(caught.value), "the message names the file"


@pytest.mark.parametrize(
    ("table", "folder", "error", "message"),
    [
        ("captions.csv", "empty", ValueError, "folder of videos is empty: .*empty"),
        ("captions.csv", "nowhere", FileNotFoundError, "no such folder of videos: .*nowhere"),
        ("other.csv", "videos", FileNotFoundError, r"no such file of captions: .*other\.csv"),
    ],
    ids=["empty_folder", "no_folder", "no_table"],
)
def test_what_is_not_there_is_named(
    tmp_path: Path, videos: Path, table: str, folder: str, error: type[Exception], message: str
) -> None:
    (tmp_path / "captions.csv").write_text("video,caption\na.mp4,x\n")
    (tmp_path / "empty").mkdir()
    with pytest.raises(error, match=message):
        read_captions(tmp_path / table, tmp_path / folder)


def test_a_folder_for_captions_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=f"cannot read the captions {re.escape(str(tmp_path))}"):
        read_captions(tmp_path, tmp_path)


def own_clips(texts: dict[str, list[str]]) -> list[Clip]:
    return [
        Clip(f"{video}#{i}", Path(video), text)
        for video, captions in texts.items()
        for i, text in enumerate(captions)
    ]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_split_shares_neither_videos_nor_captions(seed: int) -> None:
    texts = {f"v{i}": [f"first {i // 2}", f"second {i}"] for i in range(60)}
    texts["v0"].append("FIRST  7")  # the same as "first 7" but for case and blanks
    clips = own_clips(texts)
    splits = split_clips(clips, seed)
    assert [len({c.path for c in splits[name]}) for name in SPLITS] == [48, 6, 6]
    assert sorted(c.id for split in splits.values() for c in split) == sorted(c.id for c in clips)
    for what in (lambda c: c.path, lambda c: " ".join(c.caption.lower().split())):
        seen = [{what(clip) for clip in split} for split in splits.values()]
        assert sum(map(len, seen)) == len(set.union(*seen))
    assert split_clips(clips, seed) == splits
    assert split_clips(clips, seed + 3) != splits


def test_split_keeps_a_large_group_for_training() -> None:
    texts = {f"v{i}": ["the same"] for i in range(50)} | {f"w{i}": [f"{i}"] for i in range(50)}
    for seed in range(5):
        splits = split_clips(own_clips(texts), seed)
        assert {c.path for c in splits["train"]} >= {Path(f"v{i}") for i in range(50)}
        assert len(splits["test"]) == len(splits["validation"]) == 10


@pytest.mark.parametrize(
    "texts",
    [
        pytest.param({"a": ["x"], "b": ["y"]}, id="two_videos"),
        pytest.param({f"v{i}": ["same"] for i in range(20)}, id="one_caption_for_all"),
        pytest.param({f"v{i}": [f"{i}", f"{i + 1}"] for i in range(20)}, id="a_chain"),
    ],
)
def test_split_says_what_cannot_be_split(texts: dict[str, list[str]]) -> None:
    with pytest.raises(ValueError, match=f"cannot split {len(texts)} videos into train.*groups"):
        split_clips(own_clips(texts), 0)

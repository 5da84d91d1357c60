"""Features and captions in their files: values, everything that is missing or damaged, workers."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import pytest
import torch

from muse_adapter.data import BinaryFeatures, Caption, open_prvr, read_captions
from tests.support import prvr_files
from tests.support.prvr_files import LENGTHS, frame_features, word_features


@pytest.fixture
def root(tmp_path: Path) -> Path:
    prvr_files.write_collection(tmp_path)
    return tmp_path


@pytest.fixture
def folder(root: Path) -> Path:
    return root / "tvr" / "FeatureData" / "i3d_resnet"


def test_binary_features(folder: Path) -> None:
    features = BinaryFeatures(folder)
    assert (len(features), features.width, list(features)) == (4, 6, list(LENGTHS))
    assert "v_a" in features and "v_x" not in features
    for reader in (features, pickle.loads(pickle.dumps(features))):
        for video, expected in frame_features().items():
            assert torch.equal(reader[video], expected)
    features["v_a"].zero_()  # what is returned is no part of the file
    assert torch.equal(features["v_a"], frame_features()["v_a"])
    with pytest.raises(KeyError, match="v_x"):
        features["v_x"]


def test_names_with_quotes_brackets_and_line_breaks(folder: Path) -> None:
    names = ["a]b", "it's", 'say_"no"', "back\\slash", "{x}:[y],"]
    (folder / "id.txt").write_text("\n".join(names))
    (folder / "shape.txt").write_text("5 2")
    table = torch.arange(10.0).view(5, 2)
    (folder / "feature.bin").write_bytes(table.numpy().tobytes())
    text = repr({"v]": names[::-1], 'v"': names[:1]}).replace("], ", "] ,\n ").replace(": [", ":[ ")
    (folder / "video2frames.txt").write_text(text + "\n")
    features = BinaryFeatures(folder)
    assert torch.equal(features["v]"], table.flip(0)) and torch.equal(features['v"'], table[:1])


def test_a_process_that_is_not_forked_gets_few_tensors(folder: Path) -> None:
    """Each of them would be a file that stays open."""
    state = BinaryFeatures(folder).__getstate__()
    containers = [value for value in state.values() if isinstance(value, dict)]
    values = [*state.values(), *(item for each in containers for item in each.values())]
    assert sum(isinstance(value, torch.Tensor) for value in values) == 1


def test_an_expression_is_not_evaluated(folder: Path) -> None:
    (folder / "video2frames.txt").write_text("{'v': [str(__import__('os').mkdir('x'))]}")
    with pytest.raises(ValueError, match="must be a dict of lists of strings"):
        BinaryFeatures(folder)


DAMAGE = {
    "short": ("feature.bin", b"\0" * 428, "has 428 bytes, but shape.txt says 18 rows of 6 float32"),
    "names": ("id.txt", b"v_a_0 v_a_1", "has 2 names, but shape.txt says 18 rows"),
    "shape": ("shape.txt", b"18", "must begin with 'rows columns', got '18'"),
    "zero": ("shape.txt", b"0 6", "must begin with 'rows columns', got '0 6'"),
    "bytes": ("id.txt", b"\xff", "is not UTF-8 text"),
    "cut": ("video2frames.txt", b"{'v_a': ['v_a_0', 'v_a", "character 1 begins with \"'v_a': ['v"),
    "no end": ("video2frames.txt", b"{'v_a': ['v_a_0'],", "must be a dict of lists of strings"),
    "no dict": ("video2frames.txt", b"", "must be a dict of lists of strings"),
    "numbers": ("video2frames.txt", b"{'v_a': [1]}", "must be a dict of lists of strings"),
    "behind": ("video2frames.txt", b"{'v_a': ['v_a_0']} + 1", "begins with '} + 1'"),
    "unknown": (
        "video2frames.txt",
        b"{'v_a': ['v_a_0', 'v_a_7']}",
        "video 'v_a' has the frame 'v_a_7', which id.txt lacks",
    ),
    "escape": ("video2frames.txt", rb"{'v_a': ['\x']}", "must be a dict of lists of strings"),
    "no commas": (
        "video2frames.txt",
        b"{'v_a': [" + b"'v_a_0' " * 40 + b"!]}",
        "must be a dict of lists of strings",
    ),
    "no frame": ("video2frames.txt", b"{'v_a': []}", "video 'v_a' has no frame"),
}


@pytest.mark.parametrize(("name", "content", "message"), DAMAGE.values(), ids=DAMAGE)
def test_damaged_binary_features(folder: Path, name: str, content: bytes, message: str) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        BinaryFeatures(folder)
    assert name in str(error.value)


def test_missing_binary_features(folder: Path) -> None:
    (folder / "id.txt").unlink()
    (folder / "shape.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks id\.txt \(the name of .*, shape\.txt \("):
        BinaryFeatures(folder)


def test_captions(tmp_path: Path) -> None:
    path = tmp_path / "captions.txt"
    path.write_text("v_1#enc#0 A man  runs.\n\n b#c#enc#12 É \r\nv_1#zhc#1 x\n", encoding="utf-8")
    assert read_captions(path) == [
        Caption("v_1#enc#0", "v_1", "A man  runs."),
        Caption("b#c#enc#12", "b", "É"),
        Caption("v_1#zhc#1", "v_1", "x"),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"v#enc#0 x\nv#enc#1\n", "line 2: expected 'video#enc#n sentence', got 'v#enc#1'"),
        (b"v_enc_0 a sentence", "line 1: expected"),
        (b"#enc#0 a sentence", "line 1: expected"),
        (b"\n", "has no caption"),
        (b"\xff", "is not UTF-8 text"),
    ],
    ids=["no sentence", "no mark", "no video", "empty", "bytes"],
)
def test_wrong_captions(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "captions.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(message)):
        read_captions(path)


def test_all_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as error:
        open_prvr(tmp_path, "charades", ["train", "test"])
    lines = str(error.value).split("\n")[1:]
    assert [Path(re.match(r"\s*'(.*?)'", line)[1]).relative_to(tmp_path) for line in lines] == [
        Path("charades", *parts)
        for parts in (
            ("TextData", "charadestrain.caption.txt"),
            ("TextData", "charadestest.caption.txt"),
            ("TextData", "roberta_charades_query_feat.hdf5"),
            ("FeatureData", "i3d_rgb_lgi", "feature.bin"),
            ("FeatureData", "i3d_rgb_lgi", "id.txt"),
            ("FeatureData", "i3d_rgb_lgi", "shape.txt"),
            ("FeatureData", "i3d_rgb_lgi", "video2frames.txt"),
        )
    ]
    assert "lines 'video#enc#n sentence'" in lines[0] and "float32, row by row" in lines[3]


def test_everything_without_features_is_named(root: Path) -> None:
    words = word_features()
    del words["v_a#enc#1"], words["v_b#enc#0"]
    path = root / "tvr" / "TextData" / "tvrtrain.caption.txt"
    path.write_text(path.read_text() + "v_x#enc#9 nobody saw it\n")
    with pytest.raises(ValueError) as error:
        open_prvr(root, "tvr", words=words)
    train, val = str(error.value).split("\n")
    assert "tvrtrain" in train and "1 of 3 videos have no frame features: 'v_x'" in train
    assert "2 of 4 captions have no word features: 'v_a#enc#1', 'v_x#enc#9'" in train
    assert "tvrval" in val and "1 of 1 captions have no word features: 'v_b#enc#0'" in val


def test_wrong_arguments_of_open_prvr(root: Path) -> None:
    with pytest.raises(ValueError, match="known are those of tvr, activitynet, charades"):
        open_prvr(root, "msrvtt")
    with pytest.raises(TypeError, match="the string 'train'"):
        open_prvr(root, "tvr", "train")

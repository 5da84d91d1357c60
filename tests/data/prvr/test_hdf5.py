"""Features in HDF5 files, and a whole collection of such files."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from muse_adapter.data import BinaryFeatures, Hdf5Features, collate_prvr, open_prvr
from tests.support import prvr_files
from tests.support.prvr_files import caption_ids, frame_features, word_features

h5py = pytest.importorskip("h5py", reason="h5py is not installed")


def test_values_and_types(tmp_path: Path) -> None:
    path = tmp_path / "features.hdf5"
    value = torch.randn(3, 4).half()
    with h5py.File(path, "w") as file:
        file["half"] = value.numpy()
        file["big endian"] = value.numpy().astype(">f4")
        file["compressed"] = value.double().numpy()
        file.create_dataset("vector", data=value[0].numpy(), compression="gzip")
    features = Hdf5Features(path)
    assert (len(features), list(features)) == (4, ["big endian", "compressed", "half", "vector"])
    for reader in (features, pickle.loads(pickle.dumps(features))):
        assert torch.equal(reader["half"], value.float())
        assert torch.equal(reader["big endian"], value.float())
        assert torch.equal(reader["compressed"], value.double())
        assert torch.equal(reader["vector"], value[:1].float())
    assert "x" not in features
    with pytest.raises(KeyError, match="x"):
        features["x"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda file: file.create_dataset("v", (2, 3), "int32"), r"got \(2, 3\) in int32"),
        (lambda file: file.create_dataset("v", (0, 3), "f4"), r"got \(0, 3\) in float32"),
        (lambda file: file.create_dataset("v", (1, 2, 3), "f4"), r"got \(1, 2, 3\) in float32"),
        (lambda file: file.create_group("v"), "got a group"),
        (lambda file: file.create_dataset("v", data=h5py.Empty("f4")), "got a group or a single"),
    ],
    ids=["integers", "empty", "three axes", "group", "no value"],
)
def test_wrong_data_sets(tmp_path: Path, make, message: str) -> None:
    path = tmp_path / "features.hdf5"
    with h5py.File(path, "w") as file:
        make(file)
    with pytest.raises(ValueError, match=rf"features\.hdf5': 'v' must have shape .*{message}"):
        Hdf5Features(path)["v"]


def test_a_link_that_leads_nowhere(tmp_path: Path) -> None:
    path = tmp_path / "features.hdf5"
    with h5py.File(path, "w") as file:
        file["v"] = h5py.SoftLink("/w")
    with pytest.raises(ValueError, match=r"features\.hdf5': 'v' is damaged"):
        Hdf5Features(path)["v"]


def test_wrong_files(tmp_path: Path) -> None:
    path = tmp_path / "features.hdf5"
    with pytest.raises(FileNotFoundError, match=r"features\.hdf5' does not exist"):
        Hdf5Features(path)
    path.write_bytes(b"no HDF5")
    with pytest.raises(ValueError, match=r"features\.hdf5' is no whole HDF5 file"):
        Hdf5Features(path)
    prvr_files.write_hdf5(path, word_features())
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"no whole HDF5 file: .*truncated"):
        Hdf5Features(path)
    prvr_files.write_hdf5(path, {})
    with pytest.raises(ValueError, match="is empty"):
        Hdf5Features(path)


def test_without_h5py(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "features.hdf5"
    prvr_files.write_hdf5(path, word_features())
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match=r"pip install 'muse-adapter\[prvr\]'"):
        Hdf5Features(path)


@pytest.mark.parametrize("workers", [0, 1])
def test_collection(tmp_path: Path, workers: int) -> None:
    prvr_files.write_collection(tmp_path)
    texts = tmp_path / "tvr" / "TextData"
    prvr_files.write_hdf5(texts / "roberta_tvr_query_feat.hdf5", word_features())
    data = open_prvr(tmp_path, "tvr")
    assert list(data) == ["train", "val", "test"]
    assert isinstance(data["train"].frames, BinaryFeatures)
    assert data["train"].frames is data["test"].frames, "the folder is read once"
    data["train"][0]  # opens the file, which a forked worker must not use
    loader = DataLoader(data["train"], 2, collate_fn=collate_prvr, num_workers=workers)
    (batch,) = loader
    for index, video in enumerate(("v_c", "v_a")):
        frames = frame_features()[video]
        assert torch.equal(batch.frames[index][batch.frame_mask[index]], frames)
    order = [0, 2, 1]  # the captions of v_c, then that of v_a
    for index, caption in enumerate(caption_ids("train")[i] for i in order):
        assert torch.equal(batch.words[index][batch.word_mask[index]], word_features()[caption])


def test_collection_of_hdf5_files(tmp_path: Path) -> None:
    texts, features = tmp_path / "msrvtt" / "TextData", tmp_path / "msrvtt" / "FeatureData"
    prvr_files.write_captions(texts, "msrvtt")
    features.mkdir()
    prvr_files.write_hdf5(features / "clip.hdf5", frame_features())
    prvr_files.write_hdf5(texts / "words.hdf5", word_features())
    pooled = {name: value.mean(0) for name, value in word_features().items()}
    prvr_files.write_hdf5(texts / "pooled.h5", pooled)
    names = {"frames": "clip.hdf5", "words": "words.hdf5", "sentences": "pooled.h5"}
    (data,) = open_prvr(tmp_path, "msrvtt", ["test"], **names).values()
    assert data.videos == ["v_d", "v_b"]
    assert torch.equal(data[0].frames, frame_features()["v_d"])
    expected = [pooled[caption_ids("test")[i]] for i in (0, 2)]
    assert all(map(torch.equal, data[0].sentences, expected))

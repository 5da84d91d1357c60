"""The usual folders and names of a collection: features, captions, word features."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from muse_adapter.data.prvr.binary import BINARY_FILES, BinaryFeatures
from muse_adapter.data.prvr.captions import read_captions
from muse_adapter.data.prvr.dataset import PrvrDataset
from muse_adapter.data.prvr.hdf5 import Hdf5Features

# The frame features of the published results, by collection.
FRAME_FEATURES = {"tvr": "i3d_resnet", "activitynet": "i3d", "charades": "i3d_rgb_lgi"}
SPLITS = ("train", "val", "test")
IN_HDF5 = (".hdf5", ".h5")


Features = str | Mapping[str, Tensor]


def open_prvr(
    root: str | os.PathLike[str],
    collection: str,
    splits: Sequence[str] = SPLITS,
    *,
    frames: Features | None = None,
    words: Features | None = None,
    sentences: Features | None = None,
    max_frames: int | None = None,
) -> dict[str, PrvrDataset]:
    """Open a collection in the files of MS-SL, GMMFormer and their descendants.

        ROOT/COLLECTION/FeatureData/FRAMES/{feature.bin,id.txt,shape.txt,video2frames.txt}
        ROOT/COLLECTION/FeatureData/FRAMES                  where FRAMES ends in .hdf5 or .h5
        ROOT/COLLECTION/TextData/COLLECTIONtrain.caption.txt, and so for each split
        ROOT/COLLECTION/TextData/roberta_COLLECTION_query_feat.hdf5

    Args:
        root: The folder of collections.
        collection: "tvr", "activitynet", "charades", or another in the same files.
        splits: Whose captions are read.
        frames: Name of the frame features; None: those of the published results. Or features by
            video, such as `CachedFrames`.
        words: Name of the file of word features; None: as above. Or features by caption id.
        sentences: Name of a file of sentence features in the same folder, or features by caption
            id; None: without.
        max_frames: As in `PrvrDataset`.

    Returns:
        The data set of each split.

    Raises:
        FileNotFoundError: Files are missing; the message names all of them and what they hold.
        ImportError: h5py is not installed.
        TypeError: `splits` is one string.
        ValueError: A file is damaged, or videos or captions have no features; or `frames` is None
            for a collection without published results.
    """
    if isinstance(splits, str):
        raise TypeError(f"splits must be a list of names, got the string {splits!r}")
    if frames is None:
        if collection not in FRAME_FEATURES:
            raise ValueError(
                f"frames must name the features of {collection!r}; known are those of "
                f"{', '.join(FRAME_FEATURES)}"
            )
        frames = FRAME_FEATURES[collection]
    if words is None:
        words = f"roberta_{collection}_query_feat.hdf5"
    texts, features = (Path(root) / collection / name for name in ("TextData", "FeatureData"))
    captions = {split: texts / f"{collection}{split}.caption.txt" for split in splits}
    _check_present(
        {
            **dict.fromkeys(captions.values(), "lines 'video#enc#n sentence'"),
            **_files_of(texts, words, "word features by caption id"),
            **_files_of(texts, sentences, "sentence features by caption id"),
            **_files_of(features, frames, "frame features by video"),
        }
    )
    opened_frames, opened_words = _opened(features, frames), _opened(texts, words)
    opened_sentences = None if sentences is None else _opened(texts, sentences)
    found, problems = {}, []
    for split, path in captions.items():
        try:
            found[split] = PrvrDataset(
                read_captions(path),
                opened_frames,
                opened_words,
                sentences=opened_sentences,
                max_frames=max_frames,
            )
        except ValueError as error:
            problems.append(f"{str(path)!r}: {error}")
    if problems:
        raise ValueError("\n".join(problems))
    return found


def _files_of(folder: Path, features: Features | None, what: str) -> dict[Path, str]:
    """Return the files of features, and what they hold."""
    if not isinstance(features, str):
        return {}
    if features.endswith(IN_HDF5):
        return {folder / features: what}
    return {folder / features / name: content for name, content in BINARY_FILES.items()}


def _check_present(expected: Mapping[Path, str]) -> None:
    missing = [f"{str(path)!r}: {what}" for path, what in expected.items() if not path.is_file()]
    if missing:
        raise FileNotFoundError("missing are\n  " + "\n  ".join(missing))


def _opened(folder: Path, features: Features) -> Mapping[str, Tensor]:
    if not isinstance(features, str):
        return features
    if features.endswith(IN_HDF5):
        return Hdf5Features(folder / features)
    return BinaryFeatures(folder / features)

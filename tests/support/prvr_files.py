"""A small collection in the files of partially relevant retrieval."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

WIDTH, TEXT_WIDTH = 6, 4
LENGTHS = {"v_a": 5, "v_b": 1, "v_c": 9, "v_d": 3}
# Videos come neither in order nor with their captions together.
CAPTIONS = {
    "train": [("v_c", "a man runs"), ("v_a", "it rains"), ("v_c", "he falls")],
    "val": [("v_b", "a dog sleeps")],
    "test": [("v_d", "she waves"), ("v_b", "it barks"), ("v_d", "a door opens")],
}


def caption_ids(split: str) -> list[str]:
    """Return the ids of a split's captions, in order."""
    return [f"{video}#enc#{n}" for n, (video, _) in enumerate(CAPTIONS[split])]


def frame_features() -> dict[str, Tensor]:
    """Draw the features (T, 6) of all videos, the same at every call."""
    generator = torch.Generator().manual_seed(3)
    return {v: torch.randn(n, WIDTH, generator=generator) for v, n in LENGTHS.items()}


def word_features() -> dict[str, Tensor]:
    """Draw the features (W, 4) of all captions, the same at every call."""
    generator = torch.Generator().manual_seed(4)
    return {
        name: torch.randn(1 + len(text.split()), TEXT_WIDTH, generator=generator)
        for split, captions in CAPTIONS.items()
        for name, (_, text) in zip(caption_ids(split), captions, strict=True)
    }


def write_binary(folder: Path) -> None:
    """Write the frame features as `feature.bin` and its text files, rows in another order."""
    folder.mkdir(parents=True)
    rows = {
        f"{video}_{i}": row
        for video, frames in frame_features().items()
        for i, row in enumerate(frames)
    }
    names = sorted(rows, reverse=True)
    (folder / "feature.bin").write_bytes(torch.stack([rows[n] for n in names]).numpy().tobytes())
    (folder / "id.txt").write_text(" ".join(names))
    (folder / "shape.txt").write_text(f"{len(names)} {WIDTH}\n")
    frames = {video: [f"{video}_{i}" for i in range(n)] for video, n in LENGTHS.items()}
    (folder / "video2frames.txt").write_text(repr(frames))


def write_captions(folder: Path, collection: str = "tvr") -> None:
    """Write the caption file of each split."""
    folder.mkdir(parents=True)
    for split, captions in CAPTIONS.items():
        lines = [
            f"{name} {text}\n" for name, (_, text) in zip(caption_ids(split), captions, strict=True)
        ]
        (folder / f"{collection}{split}.caption.txt").write_text("".join(lines))


def write_hdf5(path: Path, features: Mapping[str, Tensor]) -> None:
    """Write features as data sets of an HDF5 file."""
    import h5py

    with h5py.File(path, "w") as file:
        for name, value in features.items():
            file[name] = value.numpy()


def write_collection(root: Path) -> None:
    """Write everything that `open_prvr(root, "tvr")` reads, but the word features."""
    write_binary(root / "tvr" / "FeatureData" / "i3d_resnet")
    write_captions(root / "tvr" / "TextData")

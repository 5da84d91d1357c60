"""Features in an HDF5 file: one data set for each video or caption, named by its id."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor


def import_h5py() -> ModuleType:
    """Import h5py.

    Raises:
        ImportError: It is not installed; the message says how to install it.
    """
    try:
        import h5py
    except ImportError as error:
        raise ImportError("reading HDF5 needs h5py: pip install 'muse-adapter[prvr]'") from error
    return h5py


class Hdf5Features(Mapping[str, Tensor]):
    """Features of videos or captions in an HDF5 file.

    `features[id]` reads the data set of that name and nothing else: (T, C) of the frames of a
    video, or (W, C) of the words of a caption, in float32 at least. One vector (C,) counts as a
    sequence of one.

    Args:
        path: The file, such as `roberta_tvr_query_feat.hdf5`.

    Raises:
        FileNotFoundError: The file does not exist.
        ImportError: h5py is not installed.
        ValueError: It is not an HDF5 file, is cut off, or is empty; also when a data set is read
            that is not of such a shape or not of floating-point numbers.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"{str(self.path)!r} does not exist")
        h5py = import_h5py()
        try:
            with h5py.File(self.path, "r") as file:
                self._names = dict.fromkeys(file)  # as h5py orders them
        except OSError as error:
            raise ValueError(f"{str(self.path)!r} is no whole HDF5 file: {error}") from error
        if not self._names:
            raise ValueError(f"{str(self.path)!r} is empty")
        self._open: tuple[int, Any] | None = None  # process and file

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        if self._open is None or self._open[0] != os.getpid():  # a fork must not share the file
            self._open = os.getpid(), import_h5py().File(self.path, "r")
        try:
            dataset = self._open[1][name]
            shape = getattr(dataset, "shape", None) or ()  # None: without any value
            if len(shape) not in (1, 2) or 0 in shape or dataset.dtype.kind != "f":
                found = f"{shape} in {dataset.dtype}" if shape else "a group or a single value"
                raise ValueError(
                    f"{str(self.path)!r}: {name!r} must have shape (length, width) in floating "
                    f"point, got {found}"
                )
            array = dataset[...]
        except (OSError, KeyError, RuntimeError) as error:  # KeyError: a link that leads nowhere
            raise ValueError(f"{str(self.path)!r}: {name!r} is damaged: {error}") from error
        tensor = torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))
        tensor = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
        return tensor if tensor.dim() == 2 else tensor[None]

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": None}  # every process opens the file itself

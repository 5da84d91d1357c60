"""Search by words: the videos were encoded once, a query costs one pass of the text tower."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from examples.quickstart.checkpoint import Trained
from examples.quickstart.files import read_tensors, write_tensors
from examples.quickstart.model import QuickstartModel, Tokenizer, build_model, load_tokenizer
from examples.quickstart.settings import Settings
from examples.quickstart.splits import Split
from muse_adapter.encoders import embed_texts, embed_videos
from muse_adapter.search import Hit, VideoIndex

INDEX, MODEL = "search.index", "search.pt"


class Found(NamedTuple):
    """One found clip.

    Attributes:
        hit: Its file, absolute, since a search may be started in another folder, and its score.
        caption: Its first caption.
    """

    hit: Hit
    caption: str


class SearchModel:
    """The model as an index takes it; the videos are those of some splits, decoded already.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        splits: The videos that it can embed; none are needed to search.
    """

    def __init__(
        self, model: QuickstartModel, tokenizer: Tokenizer, splits: Sequence[Split] = ()
    ) -> None:
        self.model = model
        self._tokenizer = tokenizer
        self._videos = {
            str(clip.path.resolve()): (split, row)
            for split in splits
            for row, clip in enumerate(split.videos)
        }

    def encode_query(self, queries: list[str]) -> Tensor:
        """Embed texts: (A, D)."""
        return embed_texts(self.model, self._tokenizer(queries))

    def encode_document(self, paths: list[str]) -> Tensor:
        """Embed videos: (B, D)."""
        rows = [(split, slice(row, row + 1)) for split, row in map(self._videos.__getitem__, paths)]
        return embed_videos(
            self.model,
            torch.cat([split.frames[row] for split, row in rows]),
            torch.cat([split.mask[row] for split, row in rows]),
        )


def write_index(folder: Path, settings: Settings, run: Trained, splits: list[Split]) -> None:
    """Keep the model, and an index of all videos of some splits, for `search`."""
    captions = {str(clip.path.resolve()): clip.caption for split in splits for clip in split.videos}
    # Of the model before. Without the file nothing is searched, until the index is whole.
    (folder / MODEL).unlink(missing_ok=True)
    if (folder / INDEX).exists():
        shutil.rmtree(folder / INDEX)
    content = {
        "settings": asdict(settings),
        "tokenizer": run.tokenizer.state(),
        "model": run.model.own_state(),
        "captions": captions,
    }
    with VideoIndex.create(folder / INDEX, SearchModel(run.model, run.tokenizer, splits)) as index:
        report = index.add(captions, batch_size=32, progress=False)
    write_tensors(folder / MODEL, content)
    for reason in report.unreadable.values():
        warnings.warn(f"not in the search index: {reason}", stacklevel=2)


def search(folder: Path, query: str, *, count: int = 5) -> tuple[list[Found], list[str]]:
    """Find the clips that fit the query best.

    Args:
        folder: Output folder of a finished quickstart.
        query: Words.
        count: Clips to return.

    Returns:
        The best clips, best first, and warnings about the query.

    Raises:
        FileNotFoundError: Nothing was trained in the folder.
        ValueError: The model knows no word of the query, or the files in the folder cannot be used.
    """
    path = folder / MODEL
    if not path.is_file():
        raise FileNotFoundError(
            f"nothing was trained in {folder} yet: run the quickstart there first (no {path})"
        )
    content = read_tensors(path, ["settings", "tokenizer", "model", "captions"])
    settings = Settings(**content["settings"])
    tokenizer = load_tokenizer(settings, content["tokenizer"])
    warnings_of_query = tokenizer.warnings(query)
    model = build_model(settings, tokenizer)
    try:
        model.load_own_state(content["model"])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    with VideoIndex.open(folder / INDEX, model=SearchModel(model, tokenizer)) as index:
        hits = index.search(query, count)
    return [Found(hit, content["captions"][hit.video]) for hit in hits], warnings_of_query

"""Search by words: the videos were encoded once, a query costs one pass of the text tower."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from examples.quickstart.checkpoint import Trained
from examples.quickstart.files import read_tensors, write_tensors
from examples.quickstart.model import build_model, load_tokenizer
from examples.quickstart.settings import Settings
from examples.quickstart.splits import Split
from muse_adapter.encoders import embed_texts, embed_videos

INDEX = "search.pt"


@dataclass(frozen=True)
class Hit:
    """One found clip.

    Attributes:
        score: Cosine similarity of query and clip.
        caption: Caption of the clip, its first.
        path: Its file, absolute: a search may be started in another folder.
    """

    score: float
    caption: str
    path: str


def write_index(folder: Path, settings: Settings, run: Trained, splits: list[Split]) -> None:
    """Keep the model and the embeddings of all videos of some splits for `search`."""
    videos = [embed_videos(run.model, split.frames, split.mask) for split in splits]
    clips = [clip for split in splits for clip in split.videos]
    content = {
        "settings": asdict(settings),
        "tokenizer": run.tokenizer.state(),
        "model": run.model.own_state(),
        "videos": torch.cat(videos),
        "captions": [clip.caption for clip in clips],
        "paths": [str(clip.path.resolve()) for clip in clips],
    }
    write_tensors(folder / INDEX, content)


def search(folder: Path, query: str, *, count: int = 5) -> tuple[list[Hit], list[str]]:
    """Find the clips that fit the query best.

    Args:
        folder: Output folder of a finished quickstart.
        query: Words.
        count: Clips to return.

    Returns:
        The best clips, best first, and warnings about the query.

    Raises:
        FileNotFoundError: Nothing was trained in the folder.
        ValueError: The model knows no word of the query, or the file in the folder cannot be used.
    """
    path = folder / INDEX
    if not path.is_file():
        raise FileNotFoundError(
            f"nothing was trained in {folder} yet: run the quickstart there first (no {path})"
        )
    content = read_tensors(path, ["settings", "tokenizer", "model", "videos", "captions", "paths"])
    settings = Settings(**content["settings"])
    tokenizer = load_tokenizer(settings, content["tokenizer"])
    warnings = tokenizer.warnings(query)
    model = build_model(settings, tokenizer)
    try:
        model.load_own_state(content["model"])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    scores = content["videos"] @ embed_texts(model, tokenizer([query]))[0]
    best = scores.topk(min(count, len(scores)))
    hits = [
        Hit(score, content["captions"][i], content["paths"][i])
        for score, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]
    return hits, warnings

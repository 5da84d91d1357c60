"""Search by words: the videos were encoded once, a query costs one pass of the text tower."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from examples.quickstart.data import Part
from examples.quickstart.evaluate import embed_texts, embed_videos, videos_of
from examples.quickstart.files import read_tensors, write_tensors
from examples.quickstart.model import build_model, load_tokenizer
from examples.quickstart.settings import Settings
from examples.quickstart.train import Trained

INDEX = "search.pt"


@dataclass(frozen=True)
class Hit:
    """One found clip.

    Attributes:
        score: cosine similarity of query and clip.
        caption: of the clip, its first.
        path: its file.
    """

    score: float
    caption: str
    path: str


def write_index(folder: Path, settings: Settings, run: Trained, parts: list[Part]) -> None:
    """Keep the model and the embeddings of all clips of `parts` for `search`."""
    videos, clips = [], []
    for part in parts:
        rows, _ = videos_of(part)
        videos.append(embed_videos(run.model, part, rows))
        clips += [part.clips[row] for row in rows.tolist()]
    content = {
        "settings": asdict(settings),
        "tokenizer": run.tokenizer.state(),
        "model": run.model.own_state(),
        "videos": torch.cat(videos),
        "captions": [clip.caption for clip in clips],
        "paths": [str(clip.path) for clip in clips],
    }
    write_tensors(folder / INDEX, content)


def search(folder: Path, query: str, *, count: int = 5) -> tuple[list[Hit], list[str]]:
    """The clips that fit the query best.

    Args:
        folder: output folder of a finished quickstart.
        query: words.
        count: clips to return.

    Returns:
        The best clips, best first, and warnings about the query.

    Raises:
        FileNotFoundError: if nothing was trained in the folder.
        ValueError: if the model knows no word of the query.
    """
    path = folder / INDEX
    if not path.is_file():
        raise FileNotFoundError(
            f"nothing was trained in {folder} yet: run the quickstart there first (no {path})"
        )
    content = read_tensors(path)
    settings = Settings(**content["settings"])
    tokenizer = load_tokenizer(settings, content["tokenizer"])
    warnings = tokenizer.warnings(query)
    model = build_model(settings, tokenizer)
    model.load_own_state(content["model"])
    scores = content["videos"] @ embed_texts(model, tokenizer, [query])[0]
    best = scores.topk(min(count, len(scores)))
    hits = [
        Hit(score, content["captions"][i], content["paths"][i])
        for score, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]
    return hits, warnings

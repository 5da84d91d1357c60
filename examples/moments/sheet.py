"""The contact sheet: for some sentences the best moments, as strips with their times."""

from __future__ import annotations

from pathlib import Path

import torch

from examples.moments.corpus import path_of
from examples.moments.localise import grow, overlap
from examples.moments.material import Material
from examples.moments.models import ClipModel
from examples.moments.search import index_videos
from examples.quickstart.captions import Clip
from examples.quickstart.corpus import FRAMES_PER_SECOND
from examples.quickstart.drawing import SIDE
from examples.quickstart.pictures import Result, Row, contact_sheet
from muse_adapter.data.video import read_frames
from muse_adapter.layers.pairs import unit
from muse_adapter.search import VideoIndex

LINES, BEST, FRAMES = 3, 4, 10  # of two sentences each; moments of one; pictures of a moment


def draw_sheet(path: Path, model: ClipModel, material: Material) -> None:
    """Write a PNG with the best moments of some test sentences, half of them ordered.

    Args:
        path: Path of the picture; beside it the videos are indexed.
        model: The trained model.
        material: The corpus.
    """
    moments = [moment for video in material.videos["test"] for moment in video.moments]
    # Ordered ones on the left, static ones beside them: the sheet is filled line by line.
    chosen = []
    for kind in (True, False):
        rows = [row for row, moment in enumerate(moments) if moment.ordered is kind]
        chosen.append(rows[:: max(1, len(rows) // LINES)][:LINES])
    order = [row for line in zip(*chosen, strict=True) for row in line]
    with index_videos(path.parent, model, material) as index:
        contact_sheet(
            path, [_row(row, moments[row].sentence, index, model, material) for row in order]
        )


@torch.inference_mode()
def _row(row: int, sentence: str, index: VideoIndex, model: ClipModel, material: Material) -> Row:
    """Find the best videos of a sentence, and its moment in each of them."""
    videos, features = material.videos["test"], material.features["test"]
    numbers = {str(path_of(video, material.folder)): n for n, video in enumerate(videos)}
    own = int(features.video[row])
    hits = [
        (numbers[hit.video], hit)
        for hit in index.search(sentence, k=len(videos))
        if not features.others[row, numbers[hit.video]]  # it is true of that one too
    ]
    rank = 1 + [number for number, _ in hits].index(own)
    query = unit(model.encode_text(features)[row])
    results: list[Result] = []
    for number, hit in hits[:BEST]:
        video = videos[number]
        frames = features.frames[number, : video.num_frames]
        cosines = unit(model.model.encode_video(frames[None]).clips[0]) @ query
        first, last = grow(cosines, model.model.clip_spans(video.num_frames))
        start, end = first / FRAMES_PER_SECOND, (last + 1) / FRAMES_PER_SECOND
        shown = max(range(len(video.spans)), key=lambda i: overlap(video.spans[i], (first, last)))
        a, b = video.spans[shown]
        text = (
            f"{video.id}, {start:.1f} to {end:.1f} s; there, {a / FRAMES_PER_SECOND:.1f} to "
            f"{(b + 1) / FRAMES_PER_SECOND:.1f} s: {video.moments[shown].sentence}"
        )
        pictures, mask = read_frames(hit.video, FRAMES, size=SIDE, start=start, end=end)
        results.append((Clip(video.id, Path(hit.video), text), hit.score, pictures, mask))
    return sentence, videos[own].id, rank, results

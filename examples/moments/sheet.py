"""The contact sheet: for some sentences the best moments, as strips with their times."""

from __future__ import annotations

from pathlib import Path

import torch

from examples.moments.corpus import path_of
from examples.moments.features import Features
from examples.moments.localise import grow, overlap
from examples.moments.material import Material
from examples.moments.models import ClipModel
from examples.moments.moments import LongVideo
from examples.quickstart.captions import Clip
from examples.quickstart.corpus import FRAMES_PER_SECOND
from examples.quickstart.drawing import SIDE
from examples.quickstart.pictures import Result, Row, contact_sheet
from muse_adapter.data.video import read_frames
from muse_adapter.layers.pairs import unit

LINES, BEST, FRAMES = 3, 4, 10  # of two sentences each; moments of one; pictures of a moment


def draw_sheet(path: Path, model: ClipModel, material: Material) -> None:
    """Write a PNG with the best moments of some test sentences, half of them ordered.

    Args:
        path: Path of the picture.
        model: The trained model.
        material: The corpus.
    """
    videos, features = material.videos["test"], material.features["test"]
    moments = [moment for video in videos for moment in video.moments]
    # Ordered ones on the left, static ones beside them: the sheet is filled line by line.
    chosen = []
    for kind in (True, False):
        rows = [row for row, moment in enumerate(moments) if moment.ordered is kind]
        chosen.append(rows[:: max(1, len(rows) // LINES)][:LINES])
    order = [row for line in zip(*chosen, strict=True) for row in line]
    contact_sheet(path, [_row(row, model, features, videos, material.folder) for row in order])


@torch.inference_mode()
def _row(
    row: int, model: ClipModel, features: Features, videos: list[LongVideo], folder: Path
) -> Row:
    query = unit(model.encode_text(features)[row])
    cosines = unit(model.encode_video(features).clips) @ query  # (V, K)
    own = int(features.video[row])
    scores = cosines.amax(1).masked_fill(features.others[row], -1)
    rank = 1 + int((scores > scores[own]).sum())
    results: list[Result] = []
    for number in scores.topk(min(BEST, len(videos))).indices.tolist():
        video = videos[number]
        first, last = grow(cosines[number], model.model.clip_spans(video.num_frames))
        start, end = first / FRAMES_PER_SECOND, (last + 1) / FRAMES_PER_SECOND
        shown = max(range(len(video.spans)), key=lambda i: overlap(video.spans[i], (first, last)))
        a, b = video.spans[shown]
        text = (
            f"{video.id}, {start:.1f} to {end:.1f} s; there, {a / FRAMES_PER_SECOND:.1f} to "
            f"{(b + 1) / FRAMES_PER_SECOND:.1f} s: {video.moments[shown].sentence}"
        )
        file = path_of(video, folder)
        pictures, mask = read_frames(file, FRAMES, size=SIDE, start=start, end=end)
        results.append((Clip(video.id, file, text), float(scores[number]), pictures, mask))
    sentence = [moment for video in videos for moment in video.moments][row].sentence
    return sentence, videos[own].id, rank, results

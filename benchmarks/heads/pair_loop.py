"""Evaluation as a whole: every text against every video, the published way and ours.

The published way runs the head inside the loop over pairs of a text batch and a video batch; ours
runs it once for each video batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.correctness import BOUNDS, difference
from benchmarks.heads.variants import Variant, variants
from benchmarks.heads.workload import DTYPES, Settings, Workload
from benchmarks.machine import now
from benchmarks.measure import quartiles, timed
from muse_adapter.ops import backend_for

COMPUTED = (200, 1000)  # texts, and videos, of what is computed from the measured parts

Row = dict[str, Any]


class Evaluation:
    """The head, some videos and as many texts; every part of the evaluation is timed.

    Args:
        workload: The head; its tokens are set for each batch.
        videos: Tokens (b, T, N, D) of each batch.
        texts: Embeddings (b, D) of each batch.

    Attributes:
        seconds: Of each run of the head, and of each product of a text and a video batch.
    """

    def __init__(self, workload: Workload, videos: list[Tensor], texts: list[Tensor]) -> None:
        self.workload, self.videos, self.texts = workload, videos, texts
        self.seconds: dict[str, list[float]] = {"head": [], "product": []}

    def published(self) -> Tensor:
        """Return similarities (texts, videos), the head inside the loop over pairs."""
        return torch.cat(
            [
                torch.cat([self._product(text, self._embed(video)) for video in self.videos], 1)
                for text in self.texts
            ]
        )

    def ours(self) -> Tensor:
        """Return the same, the head once for each video."""
        embeddings = [self._embed(video) for video in self.videos]
        return torch.cat(
            [
                torch.cat([self._product(text, embedding) for embedding in embeddings], 1)
                for text in self.texts
            ]
        )

    def _embed(self, video: Tensor) -> Tensor:
        self.workload.tokens = video
        return self._timed("head", self.workload).to(video.dtype)

    def _product(self, text: Tensor, embedding: Tensor) -> Tensor:
        return self._timed("product", lambda: text @ embedding.T)

    def _timed(self, part: str, run: Callable[[], Tensor]) -> Tensor:
        seconds, result = timed(run, self.workload.settings.device)
        self.seconds[part].append(seconds)
        return result


def measure_pairs(settings: Settings) -> Row:
    """Evaluate in both ways, and compute larger evaluations from the parts.

    Args:
        settings: Device, type, width, sizes and threads.

    Returns:
        Head runs and seconds of both ways, measured and computed.

    Raises:
        RuntimeError: The two ways disagree.
    """
    torch.set_num_threads(settings.threads)
    size, batch = settings.pairs, min(settings.pair_batch, settings.pairs)
    name = f"muse-{backend_for(torch.device(settings.device))}"
    variant = variants(settings.device, DTYPES[settings.dtype])[name]
    assert isinstance(variant, Variant), variant
    case = settings.pair_case._replace(batch=size)
    workload = Workload(variant, case, settings)
    videos = list(workload.tokens.split(batch))
    texts = list(
        F.normalize(torch.randn(size, settings.dim), dim=-1).to(workload.tokens).split(batch)
    )
    workload.tokens = videos[0]
    workload()  # warm-up
    evaluation = Evaluation(workload, videos, texts)
    results, wholes = {}, {}
    for way in ("ours", "published"):
        wholes[way], results[way] = timed(getattr(evaluation, way), settings.device)
    wrong = difference(
        {"the similarity": results["ours"]},
        {"the similarity": results["published"]},
        BOUNDS[settings.dtype],
    )
    if wrong is not None:
        raise RuntimeError(f"evaluation, once per video against once per pair: {wrong}")
    head, product = (quartiles(evaluation.seconds[part]) for part in ("head", "product"))
    runs = _runs(size, batch)
    return {
        "head": name,
        "frames": case.frames,
        "grid": list(case.grid),
        "batch": batch,
        "head_run_s": [head.low, head.median, head.high],
        "product_s": [product.low, product.median, product.high],
        "busy": head.busy,
        "measured": {"size": size, "head_runs": runs, "seconds": wholes},
        "computed": [
            _computed(other, batch, head.median, product.median)
            for other in dict.fromkeys((size, *COMPUTED))
        ],
        "date": now(),
    }


def _runs(size: int, batch: int) -> dict[str, int]:
    """Count the runs of the head on a batch of videos."""
    batches = math.ceil(size / batch)
    return {"ours": batches, "published": batches**2}


def _computed(size: int, batch: int, head_s: float, product_s: float) -> Row:
    """Sum the seconds of an evaluation from its parts: every batch counts as a full one."""
    runs = _runs(size, batch)
    products = runs["published"]  # one for each pair of batches, in both ways
    seconds = {way: runs[way] * head_s + products * product_s for way in runs}
    return {"size": size, "head_runs": runs, "seconds": seconds}

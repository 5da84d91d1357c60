"""Evaluation as a whole: every text against every video, the published way and ours.

The published way runs the head inside the loop over pairs of a text batch and a video batch; ours
runs it once for each video batch.
"""

from __future__ import annotations

import datetime
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.contenders import Contender, contenders
from benchmarks.gate import difference
from benchmarks.settings import DTYPES, Settings
from benchmarks.timing import SPREAD, quartiles
from benchmarks.work import Work
from muse_adapter.ops import backend_for

COMPUTED = (200, 1000)  # texts, and videos, of what is computed from the measured parts

Row = dict[str, Any]


class Evaluation:
    """The head, some videos and as many texts, and a watch on every part of the work.

    Args:
        work: the head; its tokens are set for each batch.
        videos: tokens (b, T, N, D) of each batch.
        texts: embeddings (b, D) of each batch.
    """

    def __init__(self, work: Work, videos: list[Tensor], texts: list[Tensor]) -> None:
        self.work, self.videos, self.texts = work, videos, texts
        self.seconds: dict[str, list[float]] = {"head": [], "product": []}

    def published(self) -> Tensor:
        """Similarities (texts, videos), the head inside the loop over pairs."""
        return torch.cat(
            [
                torch.cat([self._product(text, self._embed(video)) for video in self.videos], 1)
                for text in self.texts
            ]
        )

    def ours(self) -> Tensor:
        """The same, the head once for each video."""
        embeddings = [self._embed(video) for video in self.videos]
        return torch.cat(
            [
                torch.cat([self._product(text, embedding) for embedding in embeddings], 1)
                for text in self.texts
            ]
        )

    def _embed(self, video: Tensor) -> Tensor:
        self.work.tokens = video
        return self._timed("head", self.work).to(video.dtype)

    def _product(self, text: Tensor, embedding: Tensor) -> Tensor:
        return self._timed("product", lambda: text @ embedding.T)

    def _timed(self, part: str, run: Callable[[], Tensor]) -> Tensor:
        start = self.now()
        result = run()
        self.seconds[part].append(self.now() - start)
        return result

    def now(self) -> float:
        """Seconds, once the device has finished what it was given."""
        if self.work.settings.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def measure_pairs(settings: Settings) -> Row:
    """Evaluate in both ways, and compute larger evaluations from the parts.

    Raises:
        RuntimeError: the two ways disagree.
    """
    torch.set_num_threads(settings.threads)
    size, batch = settings.pairs, min(settings.pair_batch, settings.pairs)
    name = f"muse-{backend_for(torch.device(settings.device))}"
    contender = contenders(settings.device, DTYPES[settings.dtype])[name]
    assert isinstance(contender, Contender), contender
    case = settings.pair_case._replace(batch=size)
    work = Work(contender, case, settings)
    videos = list(work.tokens.split(batch))
    texts = list(F.normalize(torch.randn(size, settings.dim), dim=-1).to(work.tokens).split(batch))
    work.tokens = videos[0]
    work()  # warm-up
    evaluation = Evaluation(work, videos, texts)
    results, wholes = {}, {}
    for way in ("ours", "published"):
        start = evaluation.now()
        results[way] = getattr(evaluation, way)()
        wholes[way] = evaluation.now() - start
    wrong = difference(
        {"the similarity": results["ours"]},
        {"the similarity": results["published"]},
        settings.dtype,
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
        "head_run_s": head,
        "product_s": product,
        "busy": head[2] - head[0] > SPREAD * head[1],
        "measured": {"size": size, "head_runs": runs, "seconds": wholes},
        "computed": [
            _computed(other, batch, head[1], product[1])
            for other in dict.fromkeys((size, *COMPUTED))
        ],
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def _runs(size: int, batch: int) -> dict[str, int]:
    """Runs of the head on a batch of videos."""
    batches = math.ceil(size / batch)
    return {"ours": batches, "published": batches**2}


def _computed(size: int, batch: int, head_s: float, product_s: float) -> Row:
    """The seconds of an evaluation as the sum of its parts: every batch counts as a full one."""
    runs = _runs(size, batch)
    products = runs["published"]  # one for each pair of batches, in both ways
    seconds = {way: runs[way] * head_s + products * product_s for way in runs}
    return {"size": size, "head_runs": runs, "seconds": seconds}

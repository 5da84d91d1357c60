"""Retrieval metrics of a part of the data."""

from __future__ import annotations

from typing import Any

import torch
from sentence_transformers.base.evaluation import BaseEvaluator
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from examples.train.data import Part
from examples.train.objective import Objective
from muse_adapter import retrieval_metrics

CHUNK = 256  # videos whose patches are in memory at once


class RetrievalEvaluator(BaseEvaluator):
    """Rank all videos for each text and all texts for each video, by `retrieval_metrics`.

    On several processes the trainer calls it on the first, and `encode` shares the work. Videos
    without frames, which could not be read, are left out and counted.

    Args:
        part: The texts and videos.
        objective: What compares them.
        batch_size: Videos at once.
    """

    def __init__(self, part: Part, objective: Objective, *, batch_size: int) -> None:
        super().__init__()
        self.part = part
        self.objective = objective
        self.batch_size = batch_size
        self.primary_metric = "t2v_R@1"

    def __call__(
        self, model: Any, output_path: str | None = None, epoch: float = -1, steps: int = -1
    ) -> dict[str, float]:
        """Compute the metrics.

        Returns:
            Such as "t2v_R@1", in percent, and "v2t_MdR"; "videos", how many were ranked, and
            "left_out", how many of this part of the data set were not.
        """
        scores, readable = self.scores(model)
        part = self.part.keep(readable.tolist())
        of_texts = readable[self.part.targets]
        metrics = retrieval_metrics(scores[of_texts][:, readable], part.targets)
        named = {
            f"{direction}_{name}": value
            for direction, values in metrics.items()
            for name, value in values.items()
        }
        return {**named, "videos": len(part.videos), "left_out": part.left_out}

    def scores(self, model: Any) -> tuple[Tensor, Tensor]:
        """Compute the scores of all texts and videos.

        Returns:
            (texts, videos), on the CPU, and (videos,), False for videos without frames.
        """
        levels = {} if self.objective.scorer is None else {"output_levels": True}
        text = self._encode(model, self.part.captions)
        columns, readable = [], []
        for start in range(0, len(self.part.videos), CHUNK):
            videos = self.part.videos[start : start + CHUNK]
            video = self._encode(model, videos, **levels)
            readable.append(video["attention_mask"].any(1).cpu())
            with torch.inference_mode():
                columns.append(self.objective.scores(text, video).cpu())
        return torch.cat(columns, 1), torch.cat(readable)

    def _encode(self, model: Any, inputs: list[str], **options: Any) -> dict[str, Tensor]:
        """Encode texts or videos and join their features; frames and words are padded."""
        encoded = model.encode(
            inputs,
            batch_size=self.batch_size,
            output_value=None,
            show_progress_bar=False,
            **options,
        )
        names = [
            name
            for name in encoded[0]
            if name.endswith(("embedding", "embeddings")) or name == "attention_mask"
        ]
        return {name: pad_sequence([e[name] for e in encoded], batch_first=True) for name in names}

"""The loss of a batch: over the texts and videos of all processes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from muse_adapter import EERCF, MeanMaxSim, VideoTextModel
from muse_adapter.sentence_transformers import load

OBJECTIVE_FILE = "objective.safetensors"


class Objective(nn.Module):
    """Compare the texts and videos of a batch by one of `OBJECTIVES`.

    Both go through the model that is given, so that DistributedDataParallel sees them. What is
    trained beside it (EERCF's matrices, a scale of its own) gets the same gradient on every
    process, since each computes the whole loss.

    Args:
        model: A `SentenceTransformer` with our `VideoTransformer`.
        objective: Its name.
        skip_unreadable: Whether pairs whose video has no frames are left out of the loss. On one
            process or many, it is that of the other pairs.
    """

    def __init__(self, model: Any, objective: str, *, skip_unreadable: bool = False) -> None:
        super().__init__()
        self.model = model
        self.name = objective
        self.skip_unreadable = skip_unreadable
        encoder = model[0].encoder
        scorers: dict[str, Callable[[], EERCF | MeanMaxSim]] = {
            "eercf": lambda: EERCF(encoder.head.config.dim),
            "video-colbert": MeanMaxSim,
        }
        # Video-ColBERT is trained with SigLIP's loss.
        sigmoid = objective in ("sigmoid", "video-colbert")
        self.video_text = VideoTextModel(
            encoder,
            encoder.backbone,
            scorer=scorers[objective]() if objective in scorers else None,
            objective="sigmoid" if sigmoid else "contrastive",
        )
        self.num_frames = model[0].num_frames

    @property
    def scorer(self) -> EERCF | MeanMaxSim | None:
        """What compares frames; None where embeddings are compared."""
        return self.video_text.scorer

    def own_parameters(self) -> dict[str, nn.Parameter]:
        """Return the parameters that are none of the model's."""
        of_model = {id(parameter) for parameter in self.model.parameters()}
        named = self.named_parameters()
        return {name: parameter for name, parameter in named if id(parameter) not in of_model}

    def save(self, folder: Path | str) -> None:
        """Save what is none of the model's, beside the model."""
        own = {name: p.detach().contiguous() for name, p in self.own_parameters().items()}
        save_file(own, Path(folder) / OBJECTIVE_FILE, metadata={"objective": self.name})

    def load_own(self, folder: Path | str) -> None:
        """Load what `save` saved.

        Raises:
            ValueError: It is of another objective.
        """
        own, path = self.own_parameters(), Path(folder) / OBJECTIVE_FILE
        with safe_open(path, framework="pt") as file, torch.no_grad():
            if own.keys() != set(file.keys()):
                raise ValueError(f"{path} is of another objective: {', '.join(file.keys())}")
            for name, parameter in own.items():
                parameter.copy_(file.get_tensor(name))

    @classmethod
    def load(cls, folder: Path | str, device: str | None = None) -> Objective:
        """Load a trained model, and what it was trained with, from a run's `best` or `last`."""
        with safe_open(Path(folder) / OBJECTIVE_FILE, framework="pt") as file:
            name = file.metadata()["objective"]
        model = load(folder, device=device)
        objective = cls(model, name)
        objective.load_own(folder)
        return objective.to(model.device)

    def forward(self, features: list[dict[str, Any]], labels: None = None) -> Tensor:
        """Compute the loss.

        Args:
            features: Of B texts and of B videos; text i belongs to video i.
            labels: None.

        Returns:
            Scalar.
        """
        text = self.model(features[0])
        options = {} if self.scorer is None else {"output_levels": True}
        video = self.model(features[1], **options)
        if self.skip_unreadable:
            # Behind both towers, so that on every process all parameters are in the graph.
            readable = video["attention_mask"].any(1)
            text, video = (_rows(features, readable) for features in (text, video))
        if self.scorer is None:
            return self.video_text.loss(text["sentence_embedding"], video["sentence_embedding"])
        levels, mask = self.levels(video)
        if isinstance(self.scorer, MeanMaxSim):
            words, word_mask = text["token_embeddings"], text["attention_mask"]
            return self.video_text.word_loss(words, word_mask, levels[:2], mask)
        levels = levels if self.scorer.trains_patches else levels[:2]
        return self.video_text.score_loss(text["sentence_embedding"], levels, mask).total

    def levels(self, video: dict[str, Any]) -> tuple[list[Tensor], Tensor]:
        """Pad class tokens, frames and patches to `num_frames`, as all processes need one T.

        Returns:
            (B, T, D), (B, T, D), (B, T, P, D), and the frame mask (B, T).
        """
        mask = video["attention_mask"]
        missing = self.num_frames - mask.shape[1]
        names = ("cls_embeddings", "frame_embeddings", "patch_embeddings")
        padded = [
            F.pad(video[name], (0, 0) * (video[name].ndim - 2) + (0, missing)) for name in names
        ]
        return padded, F.pad(mask, (0, missing))

    def scores(self, text: dict[str, Any], video: dict[str, Any]) -> Tensor:
        """Compute the scores that texts and videos are ranked by.

        Args:
            text: What the model returns for A texts.
            video: What it returns for B videos, with levels where there is a scorer.

        Returns:
            (A, B).
        """
        if self.scorer is None:
            return self.video_text.similarity(
                text["sentence_embedding"], video["sentence_embedding"]
            )
        (cls_tokens, frames, patches), mask = self.levels(video)
        if isinstance(self.scorer, MeanMaxSim):
            words, word_mask = text["token_embeddings"], text["attention_mask"]
            return self.scorer(words, cls_tokens, frames, word_mask, mask)
        embedding = text["sentence_embedding"]
        return self.scorer.rerank(embedding, cls_tokens, frames, patches, mask)


def _rows(features: dict[str, Any], chosen: Tensor) -> dict[str, Any]:
    """Keep some rows of the tensors of a batch."""
    return {
        name: value[chosen] if isinstance(value, Tensor) else value
        for name, value in features.items()
    }

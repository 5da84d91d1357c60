"""The loss of a batch: over the texts and videos of all processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from muse_adapter import EERCF, MeanMaxSim, VideoTextModel


class Objective(nn.Module):
    """Compare the texts and videos of a batch by one of `OBJECTIVES`.

    Both go through the model that is given, so that DistributedDataParallel sees them. What is
    trained beside it (EERCF's matrices, a scale of its own) gets the same gradient on every
    process, since each computes the whole loss.

    Args:
        model: A `SentenceTransformer` with our `VideoTransformer`.
        objective: Its name.
    """

    def __init__(self, model: Any, objective: str) -> None:
        super().__init__()
        self.model = model
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

    def forward(self, features: list[dict[str, Any]], labels: None = None) -> Tensor:
        """Compute the loss.

        Args:
            features: Of B texts and of B videos; text i belongs to video i.
            labels: None.

        Returns:
            Scalar.
        """
        text = self.model(features[0])
        if self.scorer is None:
            video = self.model(features[1])
            return self.video_text.loss(text["sentence_embedding"], video["sentence_embedding"])
        video = self.model(features[1], output_levels=True)
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

"""VideoTextModel: a video encoder and a text tower, trained and compared together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from muse_adapter.encoders.gathering import gather_features, gather_targets, gather_words
from muse_adapter.encoders.text import Text, check_tower, embed_text
from muse_adapter.encoders.video import VideoEncoder
from muse_adapter.encoders.words import embed_words
from muse_adapter.models.eercf import EERCF
from muse_adapter.models.eercf_objective import EercfLoss, weighted_sum
from muse_adapter.models.mean_max_sim import MeanMaxSim
from muse_adapter.training.distributed import gather_rows
from muse_adapter.training.losses import contrastive_loss, sigmoid_loss

OBJECTIVES = {"contrastive": contrastive_loss, "sigmoid": sigmoid_loss}
# Initial values of a new scale and bias: those of CLIP and of SigLIP.
_INITIAL_SCALE = {"contrastive": 1 / 0.07, "sigmoid": 10.0}
_INITIAL_BIAS = -10.0


class VideoTextModel(nn.Module):
    """Embed videos and texts in one space and train both.

    Args:
        encoder: The video encoder; the width D of its head is that of the text embeddings.
        text: The text tower: a CLIP-like Hugging Face model or its text model, an open_clip or
            OpenAI CLIP model, or any module from token ids to (B, D), or for a `MeanMaxSim` to
            words (B, W, D) and their mask (B, W). It may be the encoder's own backbone and is then
            frozen with it.
        scorer: None: the loss compares embeddings, by `objective`. A `MeanMaxSim`: it compares
            words with class tokens and frame features, by `objective`. An `EERCF`: the loss is its
            own objective on class tokens, frame features and, if they have a weight, patches. Class
            tokens and patches then have the width D of the texts as well.
        objective: "contrastive": CLIP's symmetric loss. "sigmoid": SigLIP's.

    Attributes:
        logit_scale: Logarithm of the factor on cosines in the loss: the tower's own parameter if
            it has one, otherwise a new one with the initial value of CLIP, log(1 / 0.07), or of
            SigLIP, log(10). CLIP's training clips it to log(100) after each step.
        logit_bias: Added to the logits of the sigmoid loss: the tower's own parameter, or a new one
            with SigLIP's initial value -10. None for other objectives.

    Raises:
        TypeError: `encoder` is not a `VideoEncoder`, `text` cannot embed texts, or `scorer` is
            none of these.
        ValueError: `objective` is unknown, or not the contrastive one for an `EERCF`.
    """

    def __init__(
        self,
        encoder: VideoEncoder,
        text: nn.Module,
        *,
        scorer: EERCF | MeanMaxSim | None = None,
        objective: str = "contrastive",
    ) -> None:
        super().__init__()
        if not isinstance(encoder, VideoEncoder):
            raise TypeError(f"encoder must be a VideoEncoder, got {type(encoder).__name__}")
        if scorer is not None and not isinstance(scorer, (EERCF, MeanMaxSim)):
            raise TypeError(
                f"scorer must be an EERCF, a MeanMaxSim or None, got {type(scorer).__name__}"
            )
        if objective not in OBJECTIVES or (
            isinstance(scorer, EERCF) and objective != "contrastive"
        ):
            raise ValueError(
                'objective must be "contrastive" or, without an EERCF, "sigmoid", got '
                f"{objective!r}"
            )
        check_tower(text)
        self.encoder = encoder
        # Registered once: safetensors rejects a state dict with two names for one tensor.
        self._text = None if text is encoder.backbone else text
        self.scorer = scorer
        self.objective = objective
        reference = next(encoder.head.parameters(), torch.zeros(()))
        self._logit_scale: nn.Parameter | None = None
        if not isinstance(getattr(text, "logit_scale", None), nn.Parameter):
            initial = math.log(_INITIAL_SCALE[objective])
            self._logit_scale = nn.Parameter(reference.new_tensor(initial))
        self._logit_bias: nn.Parameter | None = None
        if objective == "sigmoid" and self._bias_of_tower() is None:
            self._logit_bias = nn.Parameter(reference.new_tensor(_INITIAL_BIAS))

    @property
    def text(self) -> Any:
        """Text tower."""
        return self.encoder.backbone if self._text is None else self._text

    @property
    def logit_scale(self) -> nn.Parameter:
        """Logarithm of the scale of the logits, a scalar parameter."""
        return self.text.logit_scale if self._logit_scale is None else self._logit_scale

    @property
    def logit_bias(self) -> nn.Parameter | None:
        """Bias of the logits, a scalar parameter, or None."""
        if self.objective != "sigmoid":
            return None
        return self._bias_of_tower() if self._logit_bias is None else self._logit_bias

    def encode_video(self, frames: Tensor, frame_mask: Tensor | None = None) -> Tensor:
        """Embed videos.

        Args:
            frames: (B, T, 3, height, width), as for `VideoEncoder`.
            frame_mask: (B, T), or None.

        Returns:
            (B, D), of unit norm, in float32 or float64; zero for a video without a real frame.
        """
        return _unit(self.encoder(frames, frame_mask))

    def encode_text(self, text: Text) -> Tensor:
        """Embed texts.

        Args:
            text: Output of the tower's own tokenizer: token ids (B, L), or a mapping of tensors.

        Returns:
            (B, D), of unit norm, in float32 or float64.

        Raises:
            TypeError: `text` is neither, or the tower returns no embedding.
            ValueError: The tower's result is not (B, D).
        """
        return _unit(embed_text(self.text, text))

    def encode_words(self, text: Text) -> tuple[Tensor, Tensor]:
        """Compute the features of the words of texts, as a `MeanMaxSim` compares them.

        Args:
            text: As for `encode_text`.

        Returns:
            Words (A, W, D), not normalised, and their mask (A, W), True for a word; see
            `embed_words`.

        Raises:
            TypeError: The tower gives no words.
            ValueError: Their shapes are wrong.
        """
        return embed_words(self.text, text)

    def similarity(self, text: Tensor, video: Tensor) -> Tensor:
        """Compute the cosines of embeddings, the input of `retrieval_metrics`.

        Args:
            text: (A, D), of unit norm.
            video: (B, D), of unit norm.

        Returns:
            (A, B).

        Raises:
            ValueError: The widths differ.
        """
        if text.ndim != 2 or video.ndim != 2 or text.shape[1] != video.shape[1]:
            raise ValueError(
                "embeddings must be text (A, D) and video (B, D) of the same width, got "
                f"{tuple(text.shape)} and {tuple(video.shape)}. A head can have another width than "
                "its backbone: MultiScaleMamba(dim=D, in_dim=C)"
            )
        # Below 1, bfloat16 has steps of 2**-8: 0.4 in logits of scale 100.
        with torch.autocast(text.device.type, enabled=False):
            return text @ video.to(text.dtype).T

    def logits(self, similarity: Tensor) -> Tensor:
        """Turn similarities into what the loss compares.

        Args:
            similarity: (A, B), without the logit scale.

        Returns:
            (A, B), scaled, with the bias added if there is one.
        """
        logits = similarity * self.logit_scale.to(similarity.dtype).exp()
        return logits if self.logit_bias is None else logits + self.logit_bias.to(logits.dtype)

    def loss(self, text: Tensor, video: Tensor, targets: Tensor | None = None) -> Tensor:
        """Compute the loss of embeddings over the texts and videos of all ranks.

        Every rank of `torch.distributed` must call it and gets the same value: the loss of one
        process with all pairs. A step under DistributedDataParallel, which averages gradients over
        the ranks, also equals the step of one process. Ranks may have different numbers of pairs.

        Args:
            text: (A, D), of unit norm, on this rank.
            video: (B, D), of unit norm.
            targets: (A,) integers, the index of each text's video among those of this rank. Several
                texts of one video are then no negatives of each other. None: text i belongs to
                video i, and A = B.

        Returns:
            Scalar, see `contrastive_loss` and `sigmoid_loss`.

        Raises:
            TypeError: `targets` are not integers.
            ValueError: The shapes differ, or `targets` are out of range.
        """
        if targets is None and text.shape != video.shape:
            raise ValueError(
                "the loss needs one video for each text, both of width D, or targets, got text "
                f"{tuple(text.shape)} and video {tuple(video.shape)}"
            )
        if targets is None:
            # Concatenated, so that there is one collective per direction.
            text, video = gather_rows(torch.cat([text, video], dim=1)).chunk(2, dim=1)
        else:
            targets = gather_targets(targets, len(text), len(video))
            text, video = gather_rows(text), gather_rows(video)
        loss = OBJECTIVES[self.objective](self.logits(self.similarity(text, video)), targets)
        return self._touch_bias(loss)

    def score_loss(self, text: Tensor, levels: Sequence[Tensor], frame_mask: Tensor) -> EercfLoss:
        """Compute EERCF's objective over the pairs of all ranks, as `loss` does.

        Args:
            text: (B, D), on this rank.
            levels: Class tokens (B, T, D), frame features (B, T, D) and, if the scorer trains them,
                patch tokens (B, T, P, D); text i belongs to video i. T and P are the same on all
                ranks.
            frame_mask: (B, T).

        Returns:
            The total and its parts.

        Raises:
            ValueError: The scorer is not an `EERCF`, or the shapes do not fit.
        """
        if not isinstance(self.scorer, EERCF):
            raise ValueError(f"score_loss needs a model with an EERCF, got scorer={self.scorer}")
        given = [text, *levels, frame_mask]
        if any(len(tensor) != len(text) for tensor in given):
            raise ValueError(
                "the loss needs one video for each text, got "
                f"{', '.join(str(tuple(tensor.shape)) for tensor in given)}"
            )
        text, frames, fused, *patches, mask = gather_features(given, text.dtype)
        loss = self.scorer.loss(
            text,
            frames,
            fused,
            patches[0] if patches else None,
            mask,
            logit_scale=self.logit_scale,
        )
        return loss._replace(total=self._touch_bias(loss.total))

    def word_loss(
        self,
        words: Tensor,
        word_mask: Tensor,
        levels: Sequence[Tensor],
        frame_mask: Tensor,
        targets: Tensor | None = None,
    ) -> Tensor:
        """Compute the loss of a `MeanMaxSim` over texts and videos of all ranks, as `loss` does.

        Args:
            words: (A, W, D), on this rank; W may differ between ranks.
            word_mask: (A, W).
            levels: Class tokens (B, T, D) and frame features (B, T, D); T is the same on all ranks.
            frame_mask: (B, T).
            targets: As for `loss`.

        Returns:
            Scalar, the sum over the two levels; see `MeanMaxSim`.

        Raises:
            TypeError: `targets` are not integers.
            ValueError: The scorer is not a `MeanMaxSim`, the shapes do not fit, or `targets` are
                out of range.
        """
        if not isinstance(self.scorer, MeanMaxSim):
            raise ValueError(f"word_loss needs a model with a MeanMaxSim, got {self.scorer}")
        videos = len(frame_mask)
        if targets is None and len(words) != videos:
            raise ValueError(
                "the loss needs one video for each text, or targets, got "
                f"{len(words)} texts and {videos} videos"
            )
        targets = None if targets is None else gather_targets(targets, len(words), videos)
        words, word_mask = gather_words(words, word_mask)
        wide = torch.promote_types(words.dtype, torch.float32)
        frames, fused, mask = gather_features([*levels, frame_mask], wide)
        scores = self.scorer.scores(words, frames, fused, word_mask, mask)
        loss = OBJECTIVES[self.objective]
        losses = [None if score is None else loss(self.logits(score), targets) for score in scores]
        return self._touch_bias(weighted_sum(self.scorer.weights, losses))

    def forward(
        self,
        frames: Tensor,
        text: Text,
        frame_mask: Tensor | None = None,
        targets: Tensor | None = None,
    ) -> Tensor:
        """Compute the loss of videos and texts.

        A training step is one call, as wrappers such as DistributedDataParallel need it.

        Args:
            frames: (B, T, 3, height, width).
            text: A texts, as for `encode_text`.
            frame_mask: (B, T), or None.
            targets: (A,) integers, the index of each text's video; None: text i belongs to video i.

        Returns:
            Scalar, see `loss`, `word_loss` and `score_loss`.

        Raises:
            ValueError: There are targets, but an `EERCF`, whose objective is of pairs.
        """
        if self.scorer is None:
            video = self.encode_video(frames, frame_mask)
            return self.loss(self.encode_text(text), video, targets)
        if targets is not None and isinstance(self.scorer, EERCF):
            raise ValueError("EERCF's objective is of pairs of one text and one video: no targets")
        cls_tokens, fused, patches = self.encoder.forward_levels(frames, frame_mask)
        mask = frames.new_ones(frames.shape[:2]) if frame_mask is None else frame_mask
        if isinstance(self.scorer, MeanMaxSim):
            words, word_mask = self.encode_words(text)
            return self.word_loss(words, word_mask, [cls_tokens, fused], mask, targets)
        levels = [cls_tokens, fused, *([patches] if self.scorer.trains_patches else [])]
        return self.score_loss(self.encode_text(text), levels, mask).total

    def _bias_of_tower(self) -> nn.Parameter | None:
        bias = getattr(self.text, "logit_bias", None)
        return bias if isinstance(bias, nn.Parameter) else None

    def _touch_bias(self, loss: Tensor) -> Tensor:
        """Keep a bias that the objective does not use in the graph, as DDP needs it."""
        bias = self._bias_of_tower()
        return loss if bias is None or self.objective == "sigmoid" else loss + 0 * bias.sum()


def _unit(embeddings: Tensor) -> Tensor:
    wide = torch.promote_types(embeddings.dtype, torch.float32)
    return F.normalize(embeddings.to(wide), dim=-1)

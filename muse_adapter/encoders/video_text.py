"""VideoTextModel: a video encoder and a text tower, trained and compared together."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from muse_adapter.encoders.text import Text, check_tower, embed_text
from muse_adapter.encoders.video import VideoEncoder
from muse_adapter.training.distributed import gather_rows
from muse_adapter.training.losses import contrastive_loss


class VideoTextModel(nn.Module):
    """Embed videos and texts in one space and train both with the symmetric contrastive loss.

    Args:
        encoder: The video encoder; the width D of its head is that of the text embeddings.
        text: The text tower: a CLIP-like Hugging Face model or its text model, an open_clip or
            OpenAI CLIP model, or any module from token ids to (B, D). It may be the encoder's own
            backbone and is then frozen with it.

    Attributes:
        logit_scale: Logarithm of the factor on cosines in the loss: the tower's own parameter if
            it has one, otherwise a new one with CLIP's initial value log(1 / 0.07). CLIP's training
            clips it to log(100) after each step.

    Raises:
        TypeError: `encoder` is not a `VideoEncoder`, or `text` cannot embed texts.
    """

    def __init__(self, encoder: VideoEncoder, text: nn.Module) -> None:
        super().__init__()
        if not isinstance(encoder, VideoEncoder):
            raise TypeError(f"encoder must be a VideoEncoder, got {type(encoder).__name__}")
        check_tower(text)
        self.encoder = encoder
        # Registered once: safetensors rejects a state dict with two names for one tensor.
        self._text = None if text is encoder.backbone else text
        self._logit_scale: nn.Parameter | None = None
        if not isinstance(getattr(text, "logit_scale", None), nn.Parameter):
            reference = next(encoder.head.parameters(), torch.zeros(()))
            self._logit_scale = nn.Parameter(reference.new_tensor(math.log(1 / 0.07)))

    @property
    def text(self) -> Any:
        """Text tower."""
        return self.encoder.backbone if self._text is None else self._text

    @property
    def logit_scale(self) -> nn.Parameter:
        """Logarithm of the scale of the logits, a scalar parameter."""
        return self.text.logit_scale if self._logit_scale is None else self._logit_scale

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

    def loss(self, text: Tensor, video: Tensor) -> Tensor:
        """Compute the symmetric contrastive loss over the pairs of all ranks.

        Every rank of `torch.distributed` must call it and gets the same value: the loss of one
        process with all pairs. A step under DistributedDataParallel, which averages gradients over
        the ranks, also equals the step of one process. Ranks may have different numbers of pairs.

        Args:
            text: (B, D), of unit norm, on this rank.
            video: (B, D), of unit norm; row i belongs to text i.

        Returns:
            Scalar: the mean of both cross-entropies, texts over videos and videos over texts.

        Raises:
            ValueError: The shapes differ.
        """
        if text.shape != video.shape:
            raise ValueError(
                "the loss needs one video for each text, both of width D, got text "
                f"{tuple(text.shape)} and video {tuple(video.shape)}"
            )
        # Concatenated, so that there is one collective per direction.
        text, video = gather_rows(torch.cat([text, video], dim=1)).chunk(2, dim=1)
        logits = self.similarity(text, video) * self.logit_scale.to(text.dtype).exp()
        bias = getattr(self.text, "logit_bias", None)
        if isinstance(bias, nn.Parameter):
            # SigLIP's bias shifts all logits alike and has no effect; DDP needs it in the graph.
            logits = logits + 0 * bias
        return contrastive_loss(logits)

    def forward(self, frames: Tensor, text: Text, frame_mask: Tensor | None = None) -> Tensor:
        """Compute the loss of pairs.

        A training step is one call, as wrappers such as DistributedDataParallel need it.

        Args:
            frames: (B, T, 3, height, width).
            text: B texts, as for `encode_text`; text i belongs to video i.
            frame_mask: (B, T), or None.

        Returns:
            Scalar, see `loss`.
        """
        return self.loss(self.encode_text(text), self.encode_video(frames, frame_mask))


def _unit(embeddings: Tensor) -> Tensor:
    wide = torch.promote_types(embeddings.dtype, torch.float32)
    return F.normalize(embeddings.to(wide), dim=-1)

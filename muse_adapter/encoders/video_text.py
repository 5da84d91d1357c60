"""VideoTextModel: a video encoder and its user's text tower, compared and trained together."""

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
    """Embeds videos and texts into one space, and trains both with the symmetric contrastive loss.

    Args:
        encoder: The video encoder; its head's width D is that of the text embeddings.
        text: The text tower: a CLIP-like model of Hugging Face or its text model, an open_clip or
            OpenAI CLIP model, or any module from token ids to (B, D). It may be the encoder's own
            backbone, and is then frozen with it.

    Attributes:
        logit_scale: Logarithm of what cosines are multiplied with in the loss: the tower's own
            parameter where it has one, else a new one with CLIP's start, log(1 / 0.07). CLIP's
            training clips it to log(100) after each step.

    Raises:
        TypeError: `encoder` is no `VideoEncoder`, or `text` no module that embeds text.
    """

    def __init__(self, encoder: VideoEncoder, text: nn.Module) -> None:
        super().__init__()
        if not isinstance(encoder, VideoEncoder):
            raise TypeError(f"encoder must be a VideoEncoder, got {type(encoder).__name__}")
        check_tower(text)
        self.encoder = encoder
        # Registered once: safetensors saves no state dict with two names for one tensor.
        self._text = None if text is encoder.backbone else text
        self._logit_scale: nn.Parameter | None = None
        if not isinstance(getattr(text, "logit_scale", None), nn.Parameter):
            reference = next(encoder.head.parameters(), torch.zeros(()))
            self._logit_scale = nn.Parameter(reference.new_tensor(math.log(1 / 0.07)))

    @property
    def text(self) -> Any:
        """The text tower."""
        return self.encoder.backbone if self._text is None else self._text

    @property
    def logit_scale(self) -> nn.Parameter:
        """Logarithm of the scale of the logits, a scalar parameter."""
        return self.text.logit_scale if self._logit_scale is None else self._logit_scale

    def encode_video(self, frames: Tensor, frame_mask: Tensor | None = None) -> Tensor:
        """Embeds videos.

        Args:
            frames: (B, T, 3, height, width), as `VideoEncoder` takes them.
            frame_mask: (B, T), or None.

        Returns:
            (B, D), of unit norm, float32 or wider; zero for a video without a real frame.
        """
        return _unit(self.encoder(frames, frame_mask))

    def encode_text(self, text: Text) -> Tensor:
        """Embeds texts.

        Args:
            text: What the tower's own tokenizer gives: token ids (B, L), or a mapping of tensors.

        Returns:
            (B, D), of unit norm, float32 or wider.

        Raises:
            TypeError: `text` is neither, or the tower gives no embedding.
            ValueError: The tower's result is not (B, D).
        """
        return _unit(embed_text(self.text, text))

    def similarity(self, text: Tensor, video: Tensor) -> Tensor:
        """Cosines of embeddings, as `retrieval_metrics` takes them.

        Args:
            text: (texts, D), of unit norm.
            video: (videos, D), of unit norm.

        Returns:
            (texts, videos).

        Raises:
            ValueError: The widths differ.
        """
        if text.ndim != 2 or video.ndim != 2 or text.shape[1] != video.shape[1]:
            raise ValueError(
                "embeddings must be text (texts, D) and video (videos, D) of the same width, got "
                f"{tuple(text.shape)} and {tuple(video.shape)}. A head of another width than its "
                "backbone's projects: MultiScaleMamba(dim=D, in_dim=C)"
            )
        # Cosines near 1 in bfloat16 come in steps of 2**-8: 0.4 in logits of scale 100.
        with torch.autocast(text.device.type, enabled=False):
            return text @ video.to(text.dtype).T

    def loss(self, text: Tensor, video: Tensor) -> Tensor:
        """The symmetric contrastive loss over the pairs of all ranks of `torch.distributed`.

        Every rank gets the same value, that of one process with all pairs, and must call this.
        Under DistributedDataParallel, which averages gradients over the ranks, a step equals that
        of the one process too. Ranks may hold different numbers of pairs.

        Args:
            text: (B, D), of unit norm, on this rank.
            video: (B, D); row i belongs to text i.

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
        # Joined, so that there is one collective in each direction.
        text, video = gather_rows(torch.cat([text, video], dim=1)).chunk(2, dim=1)
        logits = self.similarity(text, video) * self.logit_scale.to(text.dtype).exp()
        bias = getattr(self.text, "logit_bias", None)
        if isinstance(bias, nn.Parameter):
            # SigLIP's shifts all logits alike and changes nothing here; DDP wants it in the graph.
            logits = logits + 0 * bias
        return contrastive_loss(logits)

    def forward(self, frames: Tensor, text: Text, frame_mask: Tensor | None = None) -> Tensor:
        """The loss of pairs, so that wrappers such as DistributedDataParallel see all of a step.

        Args:
            frames: (B, T, 3, height, width).
            text: B texts, as `encode_text` takes them; text i belongs to video i.
            frame_mask: (B, T), or None.

        Returns:
            Scalar, see `loss`.
        """
        return self.loss(self.encode_text(text), self.encode_video(frames, frame_mask))


def _unit(embeddings: Tensor) -> Tensor:
    wide = torch.promote_types(embeddings.dtype, torch.float32)
    return F.normalize(embeddings.to(wide), dim=-1)

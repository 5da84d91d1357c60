"""Embeddings of videos, and what scorers compare."""

from __future__ import annotations

from torch import Tensor

from muse_adapter.encoders import VideoEncoder


def video_features(
    encoder: VideoEncoder, frames: Tensor, mask: Tensor, *, output_levels: bool
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Embed videos and their frames in one pass.

    Args:
        encoder: The encoder.
        frames: (B, T, 3, height, width).
        mask: (B, T).
        output_levels: Whether to return class tokens, frames and patches too.

    Returns:
        Videos (B, D), fused frames (B, T, D), and by name what `output_levels` asks for, see
        `VideoTransformer.forward`; nothing is normalised.
    """
    if not output_levels:
        embedding, tokens = encoder(frames, mask, output_frames=True)
        return embedding, tokens, {}
    cls_tokens, tokens, patches = encoder.forward_levels(frames, mask)
    levels = {
        "cls_embeddings": cls_tokens,
        "frame_embeddings": tokens,
        "patch_embeddings": patches,
    }
    return encoder.head.forward_head(tokens, mask), tokens, levels

"""The second stage of a search: the frames of a video that fit a text count more."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from muse_adapter.layers.interaction import TextGatedInteraction


def score_frames(query: Tensor, frames: Sequence[Tensor]) -> Tensor:
    """Score videos by EERCF's text-gated interaction of a text with their frames.

    The embedding of a video is the mean of its frames; this is a mean weighted by the text. It has
    no parameters.

    Args:
        query: (D,), the embedding of a text.
        frames: K videos, the `token_embeddings` (T, D) of each, with its own T.

    Returns:
        (K,) cosines.

    Raises:
        ValueError: The widths differ, as where another module has changed the embeddings.
    """
    for width in {each.shape[1] for each in frames} - {len(query)}:
        raise ValueError(
            f"the frames of videos have width {width}, which the embedding of the query, of width "
            f"{len(query)}, cannot be compared with: search with rerank=False"
        )
    lengths = torch.tensor([len(each) for each in frames])
    padded = pad_sequence(list(frames), batch_first=True)  # (K, T, D)
    mask = torch.arange(padded.shape[1]) < lengths[:, None]
    return TextGatedInteraction()(query[None], padded, mask=mask.to(padded.device))[0]

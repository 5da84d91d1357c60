"""From class tokens and maps to one sequence: three aggregations, masks, where to read out."""

from __future__ import annotations

from typing import NamedTuple

import torch
from einops import rearrange, repeat
from torch import Tensor


class Readout(NamedTuple):
    """The positions whose outputs are wanted: those of the class tokens.

    Attributes:
        positions: (B, T) integers.
        end: exclusive upper bound of `positions`: a causal direction may end there.
    """

    positions: Tensor
    end: int

    def select(self, tokens: Tensor) -> Tensor:
        """The wanted tokens: (B, L, D) -> (B, T, D)."""
        return tokens.gather(1, self.positions.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


class TokenSequence(NamedTuple):
    """What the layers read.

    Attributes:
        tokens: (B, L, D), the valid tokens of each video in front.
        lengths: (B,) number of valid tokens; None: all.
        readout: where the class tokens stand.
    """

    tokens: Tensor
    lengths: Tensor | None
    readout: Readout


def build_sequence(
    cls_tokens: Tensor,
    maps: list[Tensor],
    frame_mask: Tensor | None,
    *,
    aggregation: str,
    class_last: bool,
) -> TokenSequence:
    """Lay class tokens and multi-scale tokens out in one sequence (MUSE, section 3, "aggregation").

    scale_wise: the T class tokens, then scale by scale the tokens of frame 0, of frame 1, ...
    frame_wise: frame by frame its class token, then its tokens scale by scale.
    spatial_wise: the T class tokens, then scale by scale the mean over the valid frames.

    Args:
        cls_tokens: (B, T, D).
        maps: (B, T, N_s, D) for each scale.
        frame_mask: (B, T) bool, or None: all frames are real.
        aggregation: one of the three.
        class_last: class tokens stand behind the others (of their frame, in frame_wise).

    Returns:
        The sequence; the tokens of masked frames stand behind all others.
    """
    frames = cls_tokens.shape[1]
    if aggregation == "frame_wise":
        blocks = [cls_tokens.unsqueeze(2), *maps]
        tokens = torch.cat(blocks[1:] + blocks[:1] if class_last else blocks, dim=2)
        per_frame = tokens.shape[2]
        tokens = rearrange(tokens, "b t n d -> b (t n) d")
        first, step = (per_frame - 1 if class_last else 0), per_frame
    else:
        if aggregation == "scale_wise":
            others = [rearrange(level, "b t n d -> b (t n) d") for level in maps]
        else:
            others = [_frame_mean(level, frame_mask) for level in maps]
        tokens = torch.cat([*others, cls_tokens] if class_last else [cls_tokens, *others], dim=1)
        first, step = (tokens.shape[1] - frames if class_last else 0), 1
    slots = first + step * torch.arange(frames, device=tokens.device)
    end = first + step * (frames - 1) + 1

    if frame_mask is None:
        return TokenSequence(tokens, None, Readout(slots.expand(tokens.shape[0], -1), end))
    sizes = [level.shape[2] for level in maps]
    valid = _token_mask(frame_mask, sizes, aggregation, class_last)
    order = valid.to(torch.uint8).argsort(dim=1, descending=True, stable=True)
    tokens = tokens.gather(1, order.unsqueeze(-1).expand_as(tokens))
    rank = valid.cumsum(1) - 1  # where a valid token stands after the move
    positions = rank[:, slots].clamp(min=0)
    return TokenSequence(tokens, valid.sum(1), Readout(positions, end))


def _token_mask(mask: Tensor, sizes: list[int], aggregation: str, class_last: bool) -> Tensor:
    """Which tokens of the sequence stem from real frames, (B, L); `sizes`: N_s of each scale."""
    if aggregation == "frame_wise":
        return repeat(mask, "b t -> b (t n)", n=1 + sum(sizes))
    if aggregation == "scale_wise":
        others = [repeat(mask, "b t -> b (t n)", n=size) for size in sizes]
    else:
        others = [repeat(mask.any(1), "b -> b n", n=sum(sizes))]
    return torch.cat([*others, mask] if class_last else [mask, *others], dim=1)


def _frame_mean(level: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over the valid frames: (B, T, N, D) -> (B, N, D); zero for a video without any."""
    if mask is None:
        return level.mean(1)
    kept = torch.where(mask[:, :, None, None], level, 0)
    return kept.sum(1) / mask.sum(1).clamp(min=1)[:, None, None]

"""The token sequence: class tokens and maps in one of three orders, with masked tokens last."""

from __future__ import annotations

from typing import NamedTuple

import torch
from einops import rearrange, repeat
from torch import Tensor


class Readout(NamedTuple):
    """Positions of a sequence that are read out: those of the class tokens.

    Attributes:
        positions: (B, T) integers.
        end: Exclusive upper bound of `positions`; a causal scan may stop there.
    """

    positions: Tensor
    end: int

    def select(self, tokens: Tensor) -> Tensor:
        """Select the tokens at the positions: (B, L, D) -> (B, T, D)."""
        return tokens.gather(1, self.positions.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


class TokenSequence(NamedTuple):
    """Input of the residual layers.

    Attributes:
        tokens: (B, L, D), the valid tokens of each video first.
        lengths: (B,) number of valid tokens; None: all are valid.
        readout: Positions of the class tokens.
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
    """Arrange class tokens and multi-scale tokens in one sequence (MUSE, section 3).

    * "scale_wise": the T class tokens, then for each scale the tokens of all frames in turn.
    * "frame_wise": for each frame its class token, then its tokens of each scale.
    * "spatial_wise": the T class tokens, then for each scale the mean over the valid frames.

    Args:
        cls_tokens: (B, T, D).
        maps: (B, T, N_s, D) for each scale.
        frame_mask: (B, T) bool; None: all frames are real.
        aggregation: One of the three names above.
        class_last: Put the class tokens last (in "frame_wise", last in their frame).

    Returns:
        The sequence, with the tokens of masked frames moved to its end.
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
            levels = [rearrange(level, "b t n d -> b (t n) d") for level in maps]
        else:
            levels = [_frame_mean(level, frame_mask) for level in maps]
        tokens = torch.cat([*levels, cls_tokens] if class_last else [cls_tokens, *levels], dim=1)
        first, step = (tokens.shape[1] - frames if class_last else 0), 1
    slots = first + step * torch.arange(frames, device=tokens.device)
    end = first + step * (frames - 1) + 1

    if frame_mask is None:
        return TokenSequence(tokens, None, Readout(slots.expand(tokens.shape[0], -1), end))
    sizes = [level.shape[2] for level in maps]
    valid = _token_mask(frame_mask, sizes, aggregation, class_last)
    tokens = valid_first(tokens, valid)
    new_positions = valid.cumsum(1) - 1  # of the valid tokens, after the move
    positions = new_positions[:, slots].clamp(min=0)
    return TokenSequence(tokens, valid.sum(1), Readout(positions, end))


def valid_first(tokens: Tensor, valid: Tensor) -> Tensor:
    """Move the valid tokens to the front, in their order.

    Args:
        tokens: (B, L, D).
        valid: Bool (B, L).

    Returns:
        (B, L, D), the others behind them.
    """
    # Not by a stable sort, which ONNX does not have.
    target = torch.where(valid, valid.cumsum(1), valid.sum(1, True) + (~valid).cumsum(1)) - 1
    places = torch.arange(valid.shape[1], device=valid.device)
    order = torch.empty_like(target).scatter(1, target, places.expand_as(target))
    return tokens.gather(1, order.unsqueeze(-1).expand_as(tokens))


def _token_mask(mask: Tensor, sizes: list[int], aggregation: str, class_last: bool) -> Tensor:
    """Expand a frame mask (B, T) to the tokens of the sequence, (B, L); `sizes`: N_s per scale."""
    if aggregation == "frame_wise":
        return repeat(mask, "b t -> b (t n)", n=1 + sum(sizes))
    if aggregation == "scale_wise":
        levels = [repeat(mask, "b t -> b (t n)", n=size) for size in sizes]
    else:
        levels = [repeat(mask.any(1), "b -> b n", n=sum(sizes))]
    return torch.cat([*levels, mask] if class_last else [mask, *levels], dim=1)


def _frame_mean(level: Tensor, mask: Tensor | None) -> Tensor:
    """Average the valid frames: (B, T, N, D) -> (B, N, D); zero for a video without any."""
    if mask is None:
        return level.mean(1)
    real = torch.where(mask[:, :, None, None], level, 0)
    return real.sum(1) / mask.sum(1).clamp(min=1)[:, None, None]

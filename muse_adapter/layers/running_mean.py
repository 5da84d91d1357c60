"""The embedding of a video whose frames come in chunks."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from muse_adapter.layers.pool import check_frames, unit_frames
from muse_adapter.layers.tokens import as_frame_mask


class RunningMean:
    """The embedding of videos whose frames come in chunks, of what has been seen so far.

    It is `forward_head` over all frames seen, from the sum of the unit frames and their number::

        mean = RunningMean()
        for chunk in chunks:
            frames, state = head.forward_chunk(chunk, state)
            mean.update(frames)
        mean.embedding  # (B, D)
    """

    def __init__(self) -> None:
        self._sum: Tensor | None = None  # (B, D), of the unit frames
        self._count: Tensor | None = None  # (B, 1)
        self._dtype: torch.dtype | None = None

    def update(self, frames: Tensor, frame_mask: Tensor | None = None) -> None:
        """Add the next frames.

        Args:
            frames: (B, T, D).
            frame_mask: (B, T), True or 1 for a real frame; None: all are real.

        Raises:
            TypeError: The mask is not a tensor.
            ValueError: The shapes do not fit, those of the calls before included.
        """
        check_frames(frames)
        mask = as_frame_mask(
            frame_mask, (frames.shape[0], frames.shape[1]), frames.device, warn_empty=False
        )
        # A float32 sum of a million unit frames is rounded at 0.03 with every further frame.
        wide = torch.float32 if frames.device.type == "mps" else torch.float64
        total = unit_frames(frames, mask).sum(1, dtype=wide)
        count = (
            total.new_full((len(frames), 1), frames.shape[1])
            if mask is None
            else mask.sum(1, keepdim=True)
        )
        if self._sum is not None and self._count is not None:
            if self._sum.shape != total.shape:
                raise ValueError(
                    f"frames must be of the videos and width (B, D) = {tuple(self._sum.shape)} of "
                    f"the calls before, got {tuple(total.shape)}"
                )
            total, count = self._sum + total, self._count + count
        self._sum, self._count, self._dtype = total, count, frames.dtype

    @property
    def embedding(self) -> Tensor:
        """(B, D) of unit norm; zero for a video without a real frame so far.

        Raises:
            RuntimeError: There was no call of `update`.
        """
        if self._sum is None or self._count is None:
            raise RuntimeError("there is no embedding before the first call of update")
        return F.normalize(self._sum / self._count.clamp(min=1), dim=-1).to(self._dtype)

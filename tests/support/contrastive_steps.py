"""Three steps of contrastive training, the same for one process and for each of several."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from muse_adapter import VideoEncoder, VideoTextModel
from tests.support.small_encoders import small_head
from tests.support.tiny_clips import OpenAIClip, Words


def small_model() -> VideoTextModel:
    """Build a whole model in double precision, with a head that is not an identity."""
    return VideoTextModel(VideoEncoder(OpenAIClip(), small_head()), Words()).double()


def three_steps(
    rows: slice, wrap: Callable[[nn.Module], nn.Module] = lambda model: model
) -> dict[str, Tensor]:
    """Train on some rows of a batch of four pairs.

    Returns:
        The trained state dict, and the losses of the steps as "losses".
    """
    torch.manual_seed(0)
    model = small_model()
    frames = torch.randn(4, 2, 3, 16, 16, dtype=torch.float64)
    ids = torch.randint(0, 50, (4, 8))
    mask = torch.tensor([[1, 1], [1, 0], [1, 1], [0, 1]])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    wrapped = wrap(model)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = wrapped(frames[rows], ids[rows], mask[rows])
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return {"losses": torch.stack(losses), **model.state_dict()}

"""Three steps of contrastive training, the same for one process and for each of several."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from muse_adapter import EERCF, MeanMaxSim, VideoEncoder, VideoTextModel
from tests.support.small_encoders import small_head
from tests.support.tiny_clips import OpenAIClip, WordFeatures, Words

# Objectives by name: what of `VideoTextModel` each is built with.
OBJECTIVES: dict[str, Callable[[], dict[str, Any]]] = {
    "contrastive": dict,
    "sigmoid": lambda: {"objective": "sigmoid"},
    "EERCF": lambda: {"scorer": EERCF(12, 2)},
    "EERCF without patches": lambda: {"scorer": EERCF(12, weak_weights=(0.5, 0.5, 0.0))},
    "MeanMaxSim": lambda: {
        "text": WordFeatures(),
        "scorer": MeanMaxSim((0.5, 1.0)),
        "objective": "sigmoid",
    },
}


def small_model(objective: str = "contrastive") -> VideoTextModel:
    """Build a whole model in double precision, with a head that is not an identity."""
    encoder = VideoEncoder(OpenAIClip(), small_head())
    return VideoTextModel(encoder, **{"text": Words(), **OBJECTIVES[objective]()}).double()


def three_steps(
    rows: slice,
    wrap: Callable[[nn.Module], nn.Module] = lambda model: model,
    objective: str = "contrastive",
) -> dict[str, Tensor]:
    """Train on some rows of a batch of four pairs.

    Returns:
        The trained state dict, and the losses of the steps as "losses".
    """
    torch.manual_seed(0)
    model = small_model(objective)
    frames = torch.randn(4, 2, 3, 16, 16, dtype=torch.float64)
    ids = torch.randint(0, 50, (4, 8))
    ids[3, 5:] = 0  # to `WordFeatures` a shorter text
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

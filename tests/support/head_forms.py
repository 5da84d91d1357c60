"""Heads of every form with small inputs, and three training steps in one or more processes."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from muse_adapter import MultiScaleMamba
from muse_adapter.config import AGGREGATIONS, MIXERS

FORMS = list(itertools.product(AGGREGATIONS, MIXERS))
EVERY_FORM = pytest.mark.parametrize(
    ("aggregation", "mixer"), [pytest.param(*form, id="-".join(form)) for form in FORMS]
)


def active(**fields) -> MultiScaleMamba:
    """Make a head whose layers do something: with the identity start, errors would not show."""
    return MultiScaleMamba(**{"dim": 8, "depth": 2, "init": "release", **fields})


def perturbed(**fields) -> MultiScaleMamba:
    """Make a float64 head in evaluation mode with random values in every parameter."""
    torch.manual_seed(0)
    head = MultiScaleMamba(**{"dim": 8, "depth": 2, **fields}).double().eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in head.named_parameters():
            if not name.endswith(("A_log", "A_b_log")):
                noise = torch.rand(parameter.shape, generator=generator, dtype=torch.float64) - 0.5
                parameter.add_(noise)
    return head


def random_tokens(
    batch: int = 2,
    frames: int = 5,
    grid: tuple[int, int] = (2, 2),
    width: int = 8,
    prefix: int = 1,
) -> Tensor:
    """Draw float64 tokens (B, T, N, C), the same ones at each call."""
    generator = torch.Generator().manual_seed(3)
    shape = (batch, frames, prefix + grid[0] * grid[1], width)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def three_steps(
    aggregation: str,
    mixer: str,
    rows: slice,
    wrap: Callable[[nn.Module], nn.Module] = lambda model: model,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Train on some rows of a batch of four videos, the last of which has no frame.

    Args:
        aggregation: Aggregation of the head.
        mixer: Mixer of the head.
        rows: Videos to train on.
        wrap: Wraps the head, as in `DistributedDataParallel`.

    Returns:
        The state dict before and after.
    """
    torch.manual_seed(0)
    head = active(aggregation=aggregation, mixer=mixer, dropout=0.0).double()
    tokens = torch.randn(4, 3, 5, 8, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1], [1, 0, 1], [1, 1, 0], [0, 0, 0]])
    cotangent = torch.randn(4, 8, dtype=torch.float64)
    start = {name: value.clone() for name, value in head.state_dict().items()}
    model = wrap(head)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        (model(tokens[rows], mask[rows]) * cotangent[rows]).sum(1).mean().backward()
        optimizer.step()
    return start, head.state_dict()

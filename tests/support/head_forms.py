"""Every form of the head, and three steps of training one, alone or in several processes."""

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
    """A head whose layers do something (the identity start would hide the mixers)."""
    return MultiScaleMamba(**{"dim": 8, "depth": 2, "init": "release", **fields})


def three_steps(
    aggregation: str,
    mixer: str,
    rows: slice,
    wrap: Callable[[nn.Module], nn.Module] = lambda model: model,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Trains on some rows of a batch of four videos, the last of which has no frame.

    Returns:
        The state before and after.
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

"""The 3x3 convolution of maps, which a backend may compute in its own way."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from muse_adapter.ops.dispatch import choose


def map_convolution(
    x: Tensor, weight: Tensor, bias: Tensor, *, backend: str | None = None
) -> Tensor:
    """3x3 convolution with zeros around each map: as many rows and columns as before.

    Args:
        x: (n, C, H, W).
        weight: (O, C, 3, 3).
        bias: (O,).
        backend: name of a backend; None chooses.

    Returns:
        (n, O, H, W) in the type of x; under autocast in autocast's type.

    Raises:
        ValueError: an unknown backend.
        RuntimeError: the backend asked for cannot run.
    """
    run = getattr(choose(x.device, backend), "map_convolution", None)
    y: Tensor | None = None
    if run is not None and not torch.is_autocast_enabled(x.device.type):
        y = run(x, weight, bias)
    return F.conv2d(x, weight, bias, padding=1) if y is None else y

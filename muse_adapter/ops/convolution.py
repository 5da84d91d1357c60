"""Convolutions: the short depthwise one in front of a scan, and the 3x3 one of the pyramid."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from muse_adapter.ops.autocast import without_autocast
from muse_adapter.ops.checks import check_rank, check_tensor
from muse_adapter.ops.choice import choose


def causal_conv1d_silu(
    x: Tensor,
    weights: Sequence[tuple[Tensor, Tensor]],
    *,
    end: int | None = None,
    backend: str | None = None,
) -> tuple[Tensor, ...]:
    """Convolve the same tokens in one direction of time or both, and apply SiLU.

    Args:
        x: (batch, L, E).
        weights: Weight (E, 1, taps) and bias (E,) of the forward direction, whose taps meet earlier
            tokens; then, if there are two, of the reverse one, whose taps meet later tokens.
        end: Only the tokens in front of it are wanted of the forward direction; None: all.
        backend: Name of a backend; None chooses.

    Returns:
        (batch, end, E), and of a second direction (batch, L, E), in the type of x.

    Raises:
        ValueError: Shapes that do not fit, an unknown backend.
        TypeError: Tensors that are not of floating type.
        RuntimeError: The backend asked for cannot run.
    """
    _, length, channels = check_rank("x", x, "batch", "L", "E")
    check_tensor("x", x, None, ("x", x))
    if len(weights) not in (1, 2):
        raise ValueError(f"weights must be of one direction or two, got {len(weights)}")
    taps = weights[0][0].shape[-1]
    for index, (weight, bias) in enumerate(weights):
        check_tensor(f"weights[{index}][0]", weight, (channels, 1, taps), ("x", x))
        check_tensor(f"weights[{index}][1]", bias, (channels,), ("x", x))
    end = length if end is None else min(end, length)
    if end < 0 or taps == 0:
        raise ValueError(f"end must not be negative and taps not 0, got {end} and {taps}")
    chosen = choose(x.device, backend)
    with without_autocast(x.device.type):
        return chosen.causal_conv1d_silu(x, weights, end)


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor, *, backend: str | None = None) -> Tensor:
    """Convolve maps by 3x3 weights, with zeros around each map.

    Args:
        x: (n, C, H, W).
        weight: (O, C, 3, 3).
        bias: (O,).
        backend: Name of a backend; None chooses.

    Returns:
        (n, O, H, W) in the type of x; under autocast in autocast's type.

    Raises:
        ValueError: An unknown backend.
        RuntimeError: Shapes that do not fit; the backend asked for cannot run.
    """
    return choose(x.device, backend).conv3x3(x, weight, bias)

"""The feature pyramid: one resized and convolved patch map per scale (MUSE, section 3)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from muse_adapter.ops import conv3x3


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of (n, C, H, W) maps, separately at each position."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (n, C, H, W); maps in channels-last memory stay so, without a copy."""
        x = x.permute(0, 2, 3, 1)
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps).permute(
            0, 3, 1, 2
        )


class Conv3x3(nn.Conv2d):
    """3x3 convolution of (n, D, H, W) maps with zero padding.

    Args:
        dim: Width D, of the input and of the output.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(dim, dim, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve maps: (n, D, H, W) -> (n, D, H, W)."""
        assert self.bias is not None
        return conv3x3(x, self.weight, self.bias)


class FeaturePyramid(nn.Module):
    """One stage per scale, all applied to the same patch map.

    The modules of a stage have the positions of the official code, so its weight names carry over.

    Args:
        dim: Width D of the map.
        scales: Factors on the patch grid, powers of two.

    Raises:
        ValueError: A scale is not a power of two.
    """

    def __init__(self, dim: int, scales: Sequence[float]) -> None:
        super().__init__()
        self.scales = tuple(scales)
        self.stages = nn.ModuleList(_stage(dim, scale) for scale in self.scales)

    def forward(self, maps: Tensor, run: Callable[..., Tensor] | None = None) -> list[Tensor]:
        """Compute the map of each scale.

        Args:
            maps: (n, D, H, W) patch maps.
            run: Called as `run(stage, maps)` in place of `stage(maps)`, for a caller that
                checkpoints each stage.

        Returns:
            (n, D, H_s, W_s) for each scale, in their order.
        """
        return [stage(maps) if run is None else run(stage, maps) for stage in self.stages]


def check_grid(grid: tuple[int, int], scales: Sequence[float]) -> None:
    """Check that every scale leaves at least one position of a patch grid.

    Args:
        grid: (H, W).
        scales: Factors on the grid.

    Raises:
        ValueError: The grid is too small for a scale below 1.
    """
    for scale in scales:
        if min(grid) * scale < 1:
            raise ValueError(
                f"scale {scale} needs a patch grid of at least {round(1 / scale)} a side, "
                f"got {grid[0]}x{grid[1]}"
            )


def _stage(dim: int, scale: float) -> nn.Sequential:
    exponent = math.frexp(scale)[1] - 1  # scale = 2**exponent
    if scale != 2.0**exponent:
        raise ValueError(f"a scale must be a power of two, got {scale}")
    resize: list[nn.Module] = [nn.MaxPool2d(2**-exponent)] if exponent < 0 else []
    width = dim
    for step in range(exponent):  # each doubling of the grid halves the width
        if step:
            resize += [LayerNorm2d(width), nn.GELU()]
        resize.append(nn.ConvTranspose2d(width, width // 2, 2, stride=2))
        width //= 2
    return nn.Sequential(
        *resize,
        nn.Conv2d(width, dim, 1),
        LayerNorm2d(dim),
        nn.GELU(),
        Conv3x3(dim),
        LayerNorm2d(dim),
    )

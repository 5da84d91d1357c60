"""The feature pyramid: scales resize the patch map, convolutions shape it (MUSE, section 3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from muse_adapter.ops import conv3x3


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of a (n, C, H, W) map, at each position by itself."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (n, C, H, W); maps in channels-last memory stay so, without a copy."""
        x = x.permute(0, 2, 3, 1)
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps).permute(
            0, 3, 1, 2
        )


class Conv3x3(nn.Conv2d):
    """3x3 convolution of (n, C, H, W) maps with zeros around them.

    Args:
        dim: width D, of the input and of the output.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(dim, dim, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(n, D, H, W) -> (n, D, H, W)."""
        assert self.bias is not None
        return conv3x3(x, self.weight, self.bias)


class FeaturePyramid(nn.Module):
    """One stage per scale, all fed with the same patch map.

    The positions inside a stage are those of the official code, so its weight names carry over.

    Args:
        dim: width D of the map.
        scales: factors on the patch grid, of 0.25, 0.5, 1, 2, 4.
    """

    def __init__(self, dim: int, scales: Sequence[float]) -> None:
        super().__init__()
        self.scales = tuple(scales)
        self.stages = nn.ModuleList(_stage(dim, scale) for scale in self.scales)

    def forward(self, maps: Tensor, run: Callable[..., Tensor] | None = None) -> list[Tensor]:
        """Patch maps (n, D, H, W) -> a map (n, D, H_s, W_s) for each scale, in their order.

        `run(stage, maps)` calls a stage, for a caller that checkpoints them one by one.
        """
        return [stage(maps) if run is None else run(stage, maps) for stage in self.stages]


def check_grid(grid: tuple[int, int], scales: Sequence[float]) -> None:
    """Refuse a grid that a scale below 1 would shrink to nothing.

    Raises:
        ValueError: naming the scale, the grid and the smallest side it needs.
    """
    for scale in scales:
        if min(grid) * scale < 1:
            raise ValueError(
                f"scale {scale} needs a patch grid of at least {round(1 / scale)} a side, "
                f"got {grid[0]}x{grid[1]}"
            )


def _stage(dim: int, scale: float) -> nn.Sequential:
    resize: list[nn.Module]
    if scale == 0.25:
        resize, width = [nn.MaxPool2d(4)], dim
    elif scale == 0.5:
        resize, width = [nn.MaxPool2d(2)], dim
    elif scale == 1:
        resize, width = [], dim
    elif scale == 2:
        resize, width = [nn.ConvTranspose2d(dim, dim // 2, 2, stride=2)], dim // 2
    elif scale == 4:
        half, width = dim // 2, dim // 4
        resize = [
            nn.ConvTranspose2d(dim, half, 2, stride=2),
            LayerNorm2d(half),
            nn.GELU(),
            nn.ConvTranspose2d(half, width, 2, stride=2),
        ]
    else:
        raise ValueError(f"scale must be 0.25, 0.5, 1, 2 or 4, got {scale}")
    return nn.Sequential(
        *resize,
        nn.Conv2d(width, dim, 1),
        LayerNorm2d(dim),
        nn.GELU(),
        Conv3x3(dim),
        LayerNorm2d(dim),
    )

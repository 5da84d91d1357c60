"""The configuration of the multi-scale head."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from muse_adapter.config.base import (
    JsonConfig,
    check_int,
    check_maxima,
    check_name,
    checked_rate,
)

SCALES = (0.25, 0.5, 1.0, 2.0, 4.0)
AGGREGATIONS = ("scale_wise", "frame_wise", "spatial_wise")
MIXERS = ("bimamba", "mamba", "attention", "conv")
INITS = ("identity", "release")
ATTENTION_HEAD_DIM = 64

# Far above any head, so that a damaged number in a file cannot ask for all memory.
_MAXIMA = {
    "dim": 1 << 16,
    "in_dim": 1 << 16,
    "depth": 1 << 10,
    "d_state": 1 << 12,
    "d_conv": 1 << 10,
    "expand": 1 << 8,
    "num_prefix_tokens": 1 << 16,
}


@dataclass(frozen=True)
class MuseConfig(JsonConfig):
    """All settings of a head, as plain values; the defaults are the paper's.

    Args:
        dim: Width D of the head, of its input (see `in_dim`) and of the embedding.
        in_dim: Width C of the input tokens. None or `dim`: no projection; otherwise a learned
            projection from `in_dim` to `dim` comes first.
        scales: Factors on the patch grid, out of 0.25, 0.5, 1, 2 and 4, in the order of the
            sequence; the class token always comes in addition. Stored as a tuple of floats.
        aggregation: Order of the sequence: "scale_wise", "frame_wise" or "spatial_wise".
        depth: Number of residual mixer layers.
        mixer: "bimamba", "mamba" (one direction), "attention" or "conv".
        d_state: State size S of the scan.
        d_conv: Kernel size of the mixer's causal convolution.
        expand: Inner width E of the mixer, as a multiple of `dim`.
        dropout: Rate in the last layer; the rates rise linearly from 0 in the first.
        num_prefix_tokens: Tokens of a frame before its patches. The first is the class token, the
            others (registers) are dropped; with 0, the mean of the patches is the class token.
        init: "identity" (the layers start as identities) or "release" (what takes effect in the
            official code).

    Raises:
        TypeError: A field has the wrong type.
        ValueError: A field has an invalid value.
    """

    dim: int = 512
    in_dim: int | None = None
    scales: tuple[float, ...] = (0.5, 1.0, 2.0)
    aggregation: str = "scale_wise"
    depth: int = 4
    mixer: str = "bimamba"
    d_state: int = 16
    d_conv: int = 4
    expand: int = 1
    dropout: float = 0.1
    num_prefix_tokens: int = 1
    init: str = "identity"

    def __post_init__(self) -> None:
        for name in ("dim", "depth", "d_state", "d_conv", "expand"):
            check_int(name, getattr(self, name), minimum=1)
        check_int("num_prefix_tokens", self.num_prefix_tokens, minimum=0)
        if self.in_dim is not None:
            check_int("in_dim", self.in_dim, minimum=1)
        check_maxima(self, _MAXIMA)
        check_name("aggregation", self.aggregation, AGGREGATIONS)
        check_name("mixer", self.mixer, MIXERS)
        check_name("init", self.init, INITS)
        # The dataclass is frozen, and a list from JSON must become the tuple that can be hashed.
        object.__setattr__(self, "scales", _checked_scales(self.scales))
        object.__setattr__(self, "dropout", checked_rate("dropout", self.dropout))
        self._check_dim_divides()

    @classmethod
    def from_sides(
        cls, sides: Iterable[int | tuple[int, int]], grid: tuple[int, int], **fields: Any
    ) -> MuseConfig:
        """Make a config from side lengths, as the paper gives them, in place of factors.

        `MuseConfig.from_sides({1, 3, 7, 14}, grid=(7, 7))` has the scales (0.5, 1.0, 2.0).

        Args:
            sides: Side lengths of the maps: an int for a square map, a pair (height, width) for
                another. 1 is the class token, which may be left out. Scales keep the order of the
                sides; a set is sorted.
            grid: Patch grid (H, W) of the backbone.
            **fields: The other fields of the config.

        Returns:
            The config.

        Raises:
            TypeError: `fields` contains `scales`, or a side or the grid has the wrong type.
            ValueError: The grid does not allow a side (the message lists those it allows), or a
                side is repeated.
        """
        if "scales" in fields:
            raise TypeError("from_sides takes either sides or scales, got both")
        if not isinstance(grid, (tuple, list)) or len(grid) != 2:
            raise TypeError(f"grid must be a pair (H, W), got {grid!r}")
        for name, value in zip(("grid height", "grid width"), grid, strict=True):
            check_int(name, value, minimum=1)
        resized = {_resized(grid, scale): scale for scale in SCALES}
        allowed = {size: scale for size, scale in resized.items() if min(size) > 0}
        sizes = [_as_map_size(side) for side in sides]
        if len(set(sizes)) < len(sizes):
            raise ValueError(f"sides must not repeat, got {list(map(_size_name, sizes))}")
        if isinstance(sides, (set, frozenset)):
            sizes.sort()
        class_token = (1, 1)
        unknown = [size for size in sizes if size != class_token and size not in allowed]
        if unknown:
            choices = ["1 (class token)"] + [
                f"{_size_name(size)} (scale {scale:g})"
                for size, scale in allowed.items()
                if size != class_token
            ]
            raise ValueError(
                f"sides {', '.join(map(_size_name, unknown))} do not exist on a "
                f"{grid[0]}x{grid[1]} grid, which allows {', '.join(choices)}"
            )
        return cls(scales=tuple(allowed[s] for s in sizes if s != class_token), **fields)

    def _check_dim_divides(self) -> None:
        # An upscaling stage halves the width with each doubling of the grid.
        for scale in sorted(self.scales):
            if scale > 1 and self.dim % scale:
                raise ValueError(
                    f"scale {scale:g} needs a dim divisible by {scale:g}, got dim={self.dim}"
                )
        heads_fit = self.dim < ATTENTION_HEAD_DIM or self.dim % ATTENTION_HEAD_DIM == 0
        if self.mixer == "attention" and not heads_fit:
            raise ValueError(
                f"mixer 'attention' has heads of {ATTENTION_HEAD_DIM} (one head below "
                f"{ATTENTION_HEAD_DIM}), so dim must be smaller or a multiple, got dim={self.dim}"
            )


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _checked_scales(scales: object) -> tuple[float, ...]:
    # A set has no order, and the order of the scales is the order of the sequence.
    if not isinstance(scales, (tuple, list)) or not all(map(_is_number, scales)):
        raise TypeError(f"scales must be a tuple or list of numbers, got {scales!r}")
    values = tuple(map(float, scales))
    if not values:
        raise ValueError("scales must have at least one factor, got none")
    unknown = [scale for scale in values if scale not in SCALES]
    if unknown:
        sides = all(scale >= 1 and scale.is_integer() for scale in values)
        raise ValueError(
            f"unknown scales {unknown}; known are {list(SCALES)}, factors on the patch grid"
            + ("; side lengths go to MuseConfig.from_sides(sides, grid=(H, W))" if sides else "")
        )
    if len(set(values)) < len(values):
        raise ValueError(f"scales must not repeat, got {list(values)}")
    return values


def _resized(grid: tuple[int, int], scale: float) -> tuple[int, int]:
    # Pooling drops the last incomplete window, hence the floor.
    return math.floor(grid[0] * scale), math.floor(grid[1] * scale)


def _as_map_size(side: object) -> tuple[int, int]:
    size = side if isinstance(side, tuple) and len(side) == 2 else (side, side)
    for length in size:
        check_int("a side", length, minimum=1)
    return size  # type: ignore[return-value]


def _size_name(size: tuple[int, int]) -> str:
    return str(size[0]) if size[0] == size[1] else f"{size[0]}x{size[1]}"

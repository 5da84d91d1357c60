"""The feature pyramid: sizes, positions of the modules, the norm over channels."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from muse_adapter.config import SCALES
from muse_adapter.layers.pyramid import FeaturePyramid, LayerNorm2d, check_grid
from tests.support.tolerances import assert_close

SIZES = {0.25: (1, 2), 0.5: (3, 4), 1.0: (7, 9), 2.0: (14, 18), 4.0: (28, 36)}
END = ["Conv2d", "LayerNorm2d", "GELU", "Conv3x3", "LayerNorm2d"]
START = {
    0.25: ["MaxPool2d"],
    0.5: ["MaxPool2d"],
    1.0: [],
    2.0: ["ConvTranspose2d"],
    4.0: ["ConvTranspose2d", "LayerNorm2d", "GELU", "ConvTranspose2d"],
}


@pytest.mark.parametrize("scale", SCALES)
def test_sizes_and_positions(scale):
    """The positions are part of the weight names."""
    pyramid = FeaturePyramid(8, [scale])
    (got,) = pyramid(torch.randn(2, 8, 7, 9))
    assert got.shape == (2, 8, *SIZES[scale])
    assert [type(module).__name__ for module in pyramid.stages[0]] == START[scale] + END


def test_scales_keep_their_order_and_may_be_run_by_the_caller():
    pyramid = FeaturePyramid(8, [2.0, 0.5])
    maps = torch.randn(1, 8, 4, 4)
    stages = []
    got = pyramid(maps, lambda stage, x: stages.append(stage) or stage(x))
    assert stages == list(pyramid.stages)
    assert [level.shape[-1] for level in got] == [8, 2]
    for level, expected in zip(got, pyramid(maps), strict=True):
        assert torch.equal(level, expected)


@pytest.mark.parametrize("scale", [3.0, 0.3, 0.0, -2.0, float("nan"), float("inf")])
def test_refuses_a_scale_that_is_no_power_of_two(scale):
    with pytest.raises(ValueError, match=f"must be a power of two, got {scale}"):
        FeaturePyramid(8, [1.0, scale])


@pytest.mark.parametrize("grid", [(3, 9), (9, 3), (1, 1)], ids=str)
def test_refuses_a_grid_that_is_too_small(grid):
    check_grid((4, 4), [0.25, 4.0])
    with pytest.raises(ValueError, match=r"scale 0.25 needs a patch grid of at least 4 a side"):
        check_grid(grid, [1.0, 0.25])


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last], ids=str)
def test_norm_is_over_the_channels_of_a_position(memory):
    norm = LayerNorm2d(6).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(2, 6, 3, 4, dtype=torch.float64).to(memory_format=memory)
    mean, variance = x.mean(1, keepdim=True), x.var(1, unbiased=False, keepdim=True)
    scale, shift = (p.view(1, -1, 1, 1) for p in (norm.weight, norm.bias))
    expected = (x - mean) / torch.sqrt(variance + norm.eps) * scale + shift
    got = norm(x)
    assert_close(got, expected, "rounding")
    assert got.is_contiguous(memory_format=torch.channels_last)

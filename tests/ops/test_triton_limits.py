"""Limits of a GPU and of 32-bit integers, without one: launches are recorded, not run."""

from __future__ import annotations

import pytest
import torch

from muse_adapter.ops import Direction, bidirectional_scan, causal_conv1d_silu
from tests.support.triton_scans import in_interpreter

pytestmark = in_interpreter
KERNELS = {
    "forward": ("summaries", "carries", "outputs"),
    "backward": ("gradient_summaries", "gradients"),
    "gate": ("gate_forward", "gate_backward"),
    "convolution": ("convolve_forward", "convolve_backward"),
}


class Recorder:
    """Stands for a kernel and notes the grids that it is launched with."""

    def __init__(self, name, grids):
        self.name, self.grids = name, grids

    def __getitem__(self, grid):
        self.grids.setdefault(self.name, []).append(grid)
        return lambda *arguments, **options: None


@pytest.fixture
def grids(monkeypatch):
    from muse_adapter.ops.triton_gpu import convolution, function, gate

    found = {}
    for module, names in (
        (function, KERNELS["forward"] + KERNELS["backward"]),
        (gate, KERNELS["gate"]),
        (convolution, KERNELS["convolution"]),
    ):
        for name in names:
            monkeypatch.setattr(module, name, Recorder(name, found))
    monkeypatch.setattr(function, "ENOUGH_FORWARD", 1 << 20)
    monkeypatch.setattr(function, "ENOUGH_BACKWARD", 1 << 20)
    monkeypatch.setattr(function, "SHORTEST", 1)
    return found


@pytest.mark.parametrize(("batch", "length"), [(70_000, 2), (2, 1000)], ids=["videos", "tokens"])
def test_only_the_first_axis_of_a_grid_may_be_long(grids, batch, length):
    """CUDA allows 65,535 programs on the others, and billions on the first."""
    channels, states = 2, 2
    rows = [torch.zeros(batch, length, channels, requires_grad=True) for _ in range(2)]
    matrices = [torch.zeros(batch, length, states, requires_grad=True) for _ in range(2)]
    weights = torch.zeros(channels, requires_grad=True)
    A = torch.zeros(channels, states, requires_grad=True)
    direction = Direction(*rows, A, *matrices, weights, weights)
    bidirectional_scan(direction, direction, rows[0], backend="triton").sum().backward()
    taps = torch.zeros(channels, 1, 4, requires_grad=True)
    pair = causal_conv1d_silu(rows[0], [(taps, weights)] * 2, backend="triton")
    (pair[0].sum() + pair[1].sum()).backward()
    expected = {name for names in KERNELS.values() for name in names}
    if batch > length:  # so many videos need no segments
        expected -= {"summaries", "carries", "gradient_summaries"}
    assert set(grids) == expected
    for name, found in grids.items():
        for grid in found:
            assert max(grid[1:], default=0) <= 65_535 and max(grid) < 1 << 31, (name, grid)


@pytest.mark.parametrize("what", ["scan", "convolution"])
def test_a_video_too_long_for_offsets_is_refused(grids, what):
    """Offsets within a video are 32-bit integers in the kernels; meta tensors need no memory."""
    from muse_adapter.ops.triton_gpu import convolution, function

    length, channels = 1 << 25, 64
    x = torch.empty(1, length, channels, device="meta")
    with pytest.raises(ValueError, match="at most 2146435072 numbers, got 2147483648"):
        if what == "convolution":
            weights = [torch.empty(channels, 1, 4), torch.empty(channels)]
            convolution.run_forward(x, weights, length)
        else:
            matrix = torch.empty(1, length, 1, 2, device="meta")
            A, row = torch.empty(channels, 2), torch.empty(channels)
            function.Plan([function.Side(x, x, A, matrix, matrix, row, row)], 0, True, None)
    assert not grids


def test_lengths_beyond_32_bits_mean_all_tokens():
    """As everywhere else, and never a negative number."""
    torch.manual_seed(0)
    x, matrix, weight = torch.randn(2, 3, 4), torch.randn(2, 3, 2), torch.randn(4)
    direction = Direction(x, x, -torch.rand(4, 2), matrix, matrix, weight, weight)
    lengths = torch.tensor([(1 << 31) + 1, 1 << 40])
    got, expected = (
        bidirectional_scan(direction, None, x, lengths=given, backend="triton")
        for given in (lengths, None)
    )
    assert torch.equal(got, expected)

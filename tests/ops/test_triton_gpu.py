"""The triton kernels on a GPU: large sizes, no waiting for the host, the same bits every time."""

from __future__ import annotations

import pytest
import torch

from muse_adapter import MultiScaleMamba, ops
from muse_adapter.ops import Direction, bidirectional_scan
from tests.support.triton_scans import both_directions, compare, normal, outcome

if not torch.cuda.is_available():
    pytest.skip("needs a GPU: torch finds none", allow_module_level=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("length", [63, 257, 1000, 3060])
def test_large_on_gpu(length, dtype):
    """The width of the paper, filled chips and all segments, against `torch` in float64."""
    directions = both_directions(2, 512, 16, (length, length), torch.float32)
    given = [
        Direction(*(
            v.detach().to(dtype).requires_grad_() if v.dim() == 3 else v for v in direction
        ))
        for direction in directions
    ]  # fmt: skip
    z = normal(2, length, 512, dtype=dtype).requires_grad_()
    got = outcome(*given, z, "triton")
    again = outcome(*given, z, "triton")
    assert all(torch.equal(got[name], again[name]) for name in got), "not deterministic"
    wide = [Direction(*(v.detach().double().requires_grad_() for v in d)) for d in given]
    wide_z = z.detach().double().requires_grad_()
    y = bidirectional_scan(*wide, wide_z, backend="torch")
    torch.manual_seed(1)
    cotangent = normal(*y.shape, dtype=dtype).double()
    gradients = torch.autograd.grad((y * cotangent).sum(), [*wide[0], *wide[1], wide_z])
    expected = dict(zip(got, (y.detach(), *gradients), strict=True))
    bound = 3 * max(torch.finfo(dtype).eps, 1e-5)
    compare({k: v.double() for k, v in got.items()}, expected, bound)


def test_head_on_gpu_never_waits_for_the_host_and_replays():
    """No synchronisation in the forward pass; a CUDA graph gives the same bits."""
    head = MultiScaleMamba(dim=64, depth=2, init="release").to("cuda").eval()
    tokens = torch.randn(2, 3, 50, 64, device="cuda")
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]], device="cuda")
    assert ops.backend_for(torch.device("cuda")) == "triton"
    with torch.no_grad():
        expected = head(tokens, mask)  # compiles
        torch.cuda.set_sync_debug_mode("error")
        try:
            again = head(tokens, mask)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert torch.equal(again, expected)  # which waits
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = head(tokens, mask)
        graph.replay()
    assert torch.equal(captured, expected)


def test_training_step_under_autocast_and_deterministic_algorithms():
    head = MultiScaleMamba(dim=64, depth=2, init="release").to("cuda").train()
    tokens = torch.randn(2, 3, 50, 64, device="cuda")
    torch.use_deterministic_algorithms(True)
    gradients = []
    for _ in range(2):
        torch.manual_seed(0)
        head.zero_grad()
        with torch.autocast("cuda", torch.bfloat16):
            loss = head(tokens).sum()
        loss.backward()
        gradients.append([parameter.grad.clone() for parameter in head.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))

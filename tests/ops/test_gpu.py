"""The head on a GPU: no waiting, CUDA graphs, the compiler, determinism."""

from __future__ import annotations

import pytest
import torch

from muse_adapter.config import MIXERS
from tests.support.small_heads import MASK, agree, embed, small_head, small_tokens

if not torch.cuda.is_available():
    pytest.skip("needs a GPU: torch finds none", allow_module_level=True)


def gpu_head(**fields):
    head = small_head(scales=(0.5, 1.0, 2.0), **fields).cuda()
    return head, small_tokens(device="cuda"), MASK.cuda()


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
def test_gpu_no_synchronisation(mixer, autocast):
    head, tokens, mask = gpu_head(mixer=mixer)
    embed(head, head, tokens, mask, autocast)  # libraries load, kernels compile
    tokens.requires_grad_()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
            video = head(tokens, mask)
        video.float().sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert video.isfinite().all()


@pytest.mark.parametrize("mixer", MIXERS)
def test_gpu_graphs(mixer):
    head, tokens, mask = gpu_head(mixer=mixer)
    tokens.requires_grad_()

    def step():
        video = head(tokens, mask)
        return video, *torch.autograd.grad(video.square().sum() + video.sum(), tokens)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        replayed = step()
    with torch.no_grad():
        tokens.copy_(torch.randn_like(tokens))
    graph.replay()
    for got, expected in zip(replayed, step(), strict=True):
        assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("mixer", MIXERS)
def test_gpu_compiled(mixer):
    head, tokens, mask = gpu_head(mixer=mixer)
    compiled = torch.compile(head, fullgraph=True, backend="aot_eager")
    agree(embed(compiled, head, tokens, mask), embed(head, head, tokens, mask), 1e-4)


def test_gpu_deterministic(run_python):
    done = run_python(
        """
        import torch
        from muse_adapter import MultiScaleMamba
        torch.use_deterministic_algorithms(True)
        torch.manual_seed(0)
        head = MultiScaleMamba(dim=16, depth=2, init="release", dropout=0.0).cuda()
        tokens = torch.randn(2, 3, 50, 16, device="cuda", requires_grad=True)
        mask = torch.tensor([[1, 0, 1], [1, 1, 1]], device="cuda")
        runs = []
        for _ in range(2):
            loss = head(tokens, mask).square().sum() + head(tokens, mask)[:, 0].sum()
            wanted = [tokens, *head.parameters()]
            runs.append(torch.autograd.grad(loss, wanted, allow_unused=True))
        print(all(a is b or torch.equal(a, b) for a, b in zip(*runs)))
        """,
        CUBLAS_WORKSPACE_CONFIG=":4096:8",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "True"

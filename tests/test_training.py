"""The head in training: checkpointing, half precision, several processes."""

from __future__ import annotations

import pytest
import torch

from muse_adapter import MultiScaleMamba
from muse_adapter.config import MIXERS
from muse_adapter.ops import use_backend


def active(**fields) -> MultiScaleMamba:
    """A head whose layers do something (the identity start would hide the mixers)."""
    return MultiScaleMamba(**{"dim": 8, "depth": 2, "init": "release", **fields})


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("masked", [False, True], ids=["all frames", "masked"])
def test_gradient_checkpointing_changes_no_number(mixer, masked):
    head = active(mixer=mixer, dropout=0.5).train()
    mask = torch.tensor([[1, 1, 1], [1, 0, 1]]) if masked else None
    results = []
    for enable in (False, True):
        head.set_grad_checkpointing(enable)
        generator = torch.Generator().manual_seed(1)
        tokens = torch.randn(2, 3, 5, 8, generator=generator, requires_grad=True)
        torch.manual_seed(5)  # dropout must fall on the same places
        video = head(tokens, mask)
        results.append([video, *torch.autograd.grad(video.sum(), [tokens, *head.parameters()])])
    for plain, checkpointed in zip(*results, strict=True):
        assert torch.equal(plain, checkpointed)


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_checkpointing_recomputes_on_the_backend_of_the_forward_pass(backend):
    head = active(dropout=0.0)
    tokens = torch.randn(2, 3, 5, 8)
    gradients = []
    for enable in (False, True):
        head.set_grad_checkpointing(enable)
        with use_backend(backend):
            loss = head(tokens).sum()
        gradients.append(torch.autograd.grad(loss, list(head.parameters())))  # behind the block
    for plain, checkpointed in zip(*gradients, strict=True):
        assert torch.equal(plain, checkpointed)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("init", ["identity", "release"])
def test_autocast_stays_finite_over_long_sequences_and_large_tokens(dtype, init):
    torch.manual_seed(0)
    head = MultiScaleMamba(dim=32, depth=2, init=init)
    if init == "identity":  # wake the layers: small but not zero
        for layer in head.layers:
            torch.nn.init.normal_(layer.fc.weight, std=0.02)
    tokens = (torch.rand(1, 63, 50, 32) * 2 - 1) * 1e3
    tokens[0, 1] = 1e3
    tokens.requires_grad_()
    with torch.autocast("cpu", dtype):
        frames = head.forward_features(tokens)  # L = 63 * 255 = 16,065
        video = head.forward_head(frames)
        loss = video.float().square().sum() + video.float().sum()
    loss.backward()
    assert frames.isfinite().all() and video.isfinite().all()
    assert tokens.grad.isfinite().all()
    for name, parameter in head.named_parameters():
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_autocast_is_near_float32_and_takes_tokens_of_any_type(dtype):
    head = active().eval()
    tokens = torch.randn(2, 3, 17, 8)
    expected = head(tokens)
    with torch.autocast("cpu", dtype):
        assert (head(tokens) - expected).abs().max() < 0.05
        assert (head(tokens.to(dtype)) - expected).abs().max() < 0.05


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_a_whole_head_in_half_precision(dtype):
    head = active().eval()
    tokens = torch.randn(2, 3, 17, 8)
    expected = head(tokens)
    got = head.to(dtype)(tokens.to(dtype))
    assert got.dtype == dtype
    assert (got.float() - expected).abs().max() < 0.05


def test_pooling_of_large_half_precision_frames_does_not_overflow():
    head = MultiScaleMamba(dim=512, depth=1)
    frames = torch.full((1, 2, 512), 1e3, dtype=torch.float16)
    assert torch.allclose(head.forward_head(frames).float().norm(), torch.tensor(1.0), atol=1e-3)


TWO_PROCESSES = """
import sys, torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from muse_adapter import MultiScaleMamba

torch.set_num_threads(1)
rank, store, target = int(sys.argv[1]), sys.argv[2], sys.argv[3]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
torch.manual_seed(0)
head = MultiScaleMamba(dim=8, depth=2, dropout=0.0, init="release").double()
tokens = torch.randn(4, 3, 5, 8, dtype=torch.float64)
mask = torch.tensor([[1, 1, 1], [1, 0, 1], [1, 1, 0], [0, 0, 0]])
cotangent = torch.randn(4, 8, dtype=torch.float64)
model = DistributedDataParallel(head)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
mine = slice(2 * rank, 2 * rank + 2)
for _ in range(3):
    optimizer.zero_grad()
    (model(tokens[mine], mask[mine]) * cotangent[mine]).sum().backward()
    optimizer.step()
if rank == 0:
    torch.save(head.state_dict(), target)
dist.destroy_process_group()
"""


@pytest.mark.filterwarnings("ignore:videos .* have no valid frame")
def test_two_processes_equal_one_on_the_joint_batch(tmp_path, run_python):
    import threading

    paths = str(tmp_path / "store"), str(tmp_path / "state")
    threads = [
        threading.Thread(
            target=lambda rank=rank: outcomes.append(run_python(TWO_PROCESSES, str(rank), *paths))
        )
        for rank in range(2)
    ]
    outcomes = []
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for outcome in outcomes:
        assert outcome.returncode == 0, outcome.stderr

    torch.manual_seed(0)
    head = active(dropout=0.0).double()
    tokens = torch.randn(4, 3, 5, 8, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1], [1, 0, 1], [1, 1, 0], [0, 0, 0]])
    cotangent = torch.randn(4, 8, dtype=torch.float64)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        ((head(tokens, mask) * cotangent).sum() / 2).backward()  # DDP averages over the processes
        optimizer.step()
    trained = torch.load(tmp_path / "state", weights_only=True)
    for name, value in head.state_dict().items():
        assert torch.allclose(trained[name], value, rtol=1e-9, atol=1e-12), name

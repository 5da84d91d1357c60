"""VideoEncoder in training: frozen and trained backbones, parameter groups, checkpointing, DDP."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from muse_adapter.encoders.video import VideoEncoder
from muse_adapter.training.optim import param_groups
from tests.support.small_encoders import (
    MASK,
    ROUNDING,
    B,
    T,
    double_encoder,
    random_frames,
    small_head,
)
from tests.support.tiny_clips import OpenAIClip

pytestmark = pytest.mark.usefixtures("torch_scan")


def test_frozen_backbone() -> None:
    clip = OpenAIClip()
    encoder = double_encoder(clip, freeze=True)
    assert encoder.train() is encoder
    assert encoder.training and encoder.head.training
    assert not any(module.training for module in clip.modules())
    encoder(random_frames(), MASK).sum().backward()
    assert not any(p.requires_grad or p.grad is not None for p in clip.parameters())
    assert all(p.grad is not None for p in encoder.head.parameters())
    clip.requires_grad_(True)
    assert not encoder.forward_tokens(random_frames()).requires_grad


def test_trained_backbone() -> None:
    clip = OpenAIClip().eval()
    encoder = double_encoder(clip)
    assert not clip.training, "building an encoder must not change the mode"
    assert encoder.train().backbone.training and not encoder.eval().backbone.training
    video = encoder(random_frames())
    (video * torch.randn_like(video)).sum().backward()
    for name, parameter in clip.named_parameters():
        assert (parameter.grad != 0).any(), name


def test_frozen_tokens_equal_trained_ones() -> None:
    frames, clip = random_frames(), OpenAIClip()
    trained = double_encoder(clip)
    frozen = VideoEncoder(clip, trained.head, freeze=True)
    # Without gradients torch may take other kernels.
    expected = trained(frames, MASK)
    torch.testing.assert_close(frozen(frames, MASK), expected, **ROUNDING[torch.float64])


@pytest.mark.parametrize("freeze", [False, True], ids=["trained", "frozen"])
def test_parameter_groups_and_state(freeze: bool) -> None:
    encoder = double_encoder(freeze=freeze)
    groups = param_groups(encoder, encoder.head, backbone=None if freeze else encoder.backbone)
    grouped = {id(p) for group in groups for p in group["params"]}
    assert grouped == {id(p) for p in encoder.parameters() if p.requires_grad}
    state = encoder.state_dict()
    assert {name.partition(".")[0] for name in state} == {"backbone", "head"}
    other = double_encoder(freeze=freeze)
    other.load_state_dict(state)
    frames = random_frames()
    torch.testing.assert_close(other(frames), encoder(frames), rtol=0, atol=0)


def test_copy_reads_its_own_backbone() -> None:
    encoder, frames = double_encoder(), random_frames()
    expected = encoder(frames)
    other = copy.deepcopy(encoder)
    with torch.no_grad():
        for parameter in other.backbone.parameters():
            parameter.add_(1)
    assert not torch.allclose(other(frames), expected)
    torch.testing.assert_close(encoder(frames), expected, rtol=0, atol=0)


def test_gradient_checkpointing_reaches_the_backbone() -> None:
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    config = transformers.CLIPVisionConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=4
    )
    backbone = transformers.CLIPVisionModel(config)
    encoder = VideoEncoder(backbone, small_head(16)).double().train()
    frames, gradients = random_frames(), []
    for enable in (False, True):
        encoder.set_grad_checkpointing(enable)
        assert backbone.encoder.layers[0].gradient_checkpointing is enable
        assert encoder.head.grad_checkpointing is enable
        encoder.zero_grad()
        video = encoder(frames, MASK)
        (video * torch.arange(16)).sum().backward()
        gradients.append({n: p.grad.clone() for n, p in encoder.named_parameters()})
    for name, expected in gradients[0].items():
        torch.testing.assert_close(
            gradients[1][name], expected, **ROUNDING[torch.float64], msg=name
        )
    encoder.set_grad_checkpointing(False)
    assert not backbone.encoder.layers[0].gradient_checkpointing


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    """Set up a process group of this process alone."""
    distributed = torch.distributed
    if not distributed.is_available():
        pytest.skip("this torch is built without torch.distributed")
    store = distributed.FileStore(str(tmp_path / "store"), 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize("freeze", [False, True], ids=["trained", "frozen"])
def test_ddp_finds_no_unused_parameter(freeze: bool, one_process: None) -> None:
    """DDP reports a parameter without gradient at the next step; the last batch has no frame."""
    encoder = VideoEncoder(OpenAIClip(), small_head(), freeze=freeze)
    parallel = nn.parallel.DistributedDataParallel(encoder)
    masks = [MASK, torch.ones(B, T), torch.tensor([[False] * T, [True] * T])]
    for mask in masks:
        if mask.any(1).all():
            parallel(random_frames(torch.float32), mask).sum().backward()
        else:
            with pytest.warns(UserWarning, match="no valid frame"):
                parallel(random_frames(torch.float32), mask).sum().backward()
    assert all(p.grad is not None for p in encoder.parameters() if p.requires_grad)

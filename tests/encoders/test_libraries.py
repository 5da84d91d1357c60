"""VideoEncoder with every real library: half precision, autocast, channels-last, checkpointing."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from muse_adapter import VideoEncoder
from muse_adapter.backbones import find_patch_tokens
from tests.support.real_backbones import FAMILIES
from tests.support.small_encoders import MASK, ROUNDING, B, T, small_head
from tests.support.tiny_clips import shake

pytestmark = pytest.mark.usefixtures("torch_scan")


def small_encoder(backbone: nn.Module, *, freeze: bool = False, **fields: Any) -> VideoEncoder:
    found = find_patch_tokens(backbone)
    head = small_head(found.width, num_prefix_tokens=found.num_prefix_tokens, **fields)
    return VideoEncoder(backbone, head, freeze=freeze)


def build(name: str, **options: Any) -> tuple[VideoEncoder, Tensor]:
    make, side = FAMILIES[name]
    return small_encoder(shake(make(), 0.1).eval(), **options), torch.randn(B, T, 3, side, side)


families = pytest.mark.parametrize("name", FAMILIES)


def gradients(encoder: VideoEncoder) -> dict[str, Tensor]:
    return {n: p.grad for n, p in encoder.named_parameters() if p.grad is not None}


@families
def test_built_from_the_backbone_alone(name: str) -> None:
    """A backbone, its encoder, an embedding; and only the head is trained."""
    make, side = FAMILIES[name]
    encoder = VideoEncoder(make(), freeze=True).train()
    mask = torch.tensor([[True, False]])
    video, frames = encoder(torch.randn(1, 2, 3, side, side), mask, output_frames=True)
    width = encoder.head.config.dim
    assert video.shape == (1, width) and frames.shape == (1, 2, width)
    torch.testing.assert_close(video.norm(dim=1), torch.ones(1))
    assert not any(module.training for module in encoder.backbone.modules())
    video.sum().backward()
    assert gradients(encoder) and all(n.startswith("head.") for n in gradients(encoder))


@families
def test_autocast(name: str) -> None:
    encoder, frames = build(name)
    expected = encoder(frames, MASK)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        video = encoder(frames, MASK)
        loss = (video.float() * torch.arange(video.shape[1])).sum()
    torch.testing.assert_close(video.float(), expected, **ROUNDING[torch.bfloat16])
    assert not torch.equal(video.float(), expected), "nothing was computed in bfloat16"
    loss.backward()
    found = gradients(encoder)
    assert any(n.startswith("backbone.") for n in found)
    assert all(g.isfinite().all() for g in found.values())


@families
def test_backbone_in_half_precision(name: str) -> None:
    """Frames are float32, as from processors; the head computes in its own dtype."""
    encoder, frames = build(name, freeze=True)
    expected = encoder(frames, MASK)
    if name == "OpenAI CLIP":
        # As its own code does: norms and embeddings stay float32.
        for module in encoder.backbone.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d, nn.MultiheadAttention)):
                module.bfloat16()
        encoder.backbone.visual.proj.data = encoder.backbone.visual.proj.data.bfloat16()
    else:
        encoder.backbone.bfloat16()
    assert encoder.frame_tokens(frames[0]).dtype == torch.bfloat16
    video = encoder(frames, MASK)
    assert video.dtype == torch.float32
    torch.testing.assert_close(video, expected, **ROUNDING[torch.bfloat16])


@families
def test_channels_last(name: str) -> None:
    encoder, frames = build(name)
    expected = encoder(frames, MASK)
    encoder.to(memory_format=torch.channels_last)
    layouts = [p.is_contiguous(memory_format=torch.channels_last) for p in four_axes(encoder)]
    assert layouts and all(layouts)
    frames = frames.movedim(2, -1).contiguous().movedim(-1, 2)
    torch.testing.assert_close(encoder(frames, MASK), expected, **ROUNDING[torch.float32])


def four_axes(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.ndim == 4]


def blocks(backbone: nn.Module) -> nn.Sequential | nn.ModuleList:
    """Return the blocks of the image tower, whatever their name."""
    names = [n for n, _ in backbone.named_modules() if not n.startswith(("text", "transf"))]
    found = next(n for n in names if re.search(r"(layers?|blocks)\.0$", n))
    return backbone.get_submodule(found.rpartition(".")[0])


@pytest.mark.parametrize("name", [n for n in FAMILIES if n != "OpenAI CLIP"])
def test_gradient_checkpointing(name: str) -> None:
    """Each block of the backbone runs again in the backward pass, with the same gradients."""
    encoder, frames = build(name)
    encoder.train()
    runs: list[int] = []
    first = blocks(encoder.backbone)[0]
    norm = next(m for m in first.modules() if isinstance(m, nn.LayerNorm))
    norm.register_forward_pre_hook(lambda *_: runs.append(1))
    counts, found = [], []
    for enable in (False, True):
        encoder.set_grad_checkpointing(enable)
        assert encoder.head.grad_checkpointing is enable
        encoder.zero_grad()
        torch.manual_seed(0)
        video = encoder(frames, MASK)
        (video * torch.arange(video.shape[1])).sum().backward()
        counts.append(len(runs))
        found.append({n: g.clone() for n, g in gradients(encoder).items()})
    assert counts == [1, 3]
    for key, expected in found[0].items():
        torch.testing.assert_close(found[1][key], expected, **ROUNDING[torch.float32], msg=key)


# Their towers are read with a hook, which breaks the graph.
ONE_GRAPH = {name: name not in ("open_clip", "OpenAI CLIP") for name in FAMILIES}
# The graph of the backward pass is made of the forward one, whichever library that came from: of
# each library once.
BACKWARD_TOO = ("HF CLIP", "timm CLIP", "open_clip")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "mask", "freeze"),
    [*((name, MASK, False) for name in FAMILIES), ("HF CLIP", None, True)],
)
def test_compiles(name: str, mask: Tensor | None, freeze: bool) -> None:
    """One graph, for any mask.

    Tracing takes seconds: one block, and the head that is traced fastest. Its other forms are
    compiled in `tests/ops`, and the default one behind a backbone in `test_frameworks`.
    """
    torch._dynamo.reset()
    make, side = FAMILIES[name]
    backbone, frames = shake(make(), 0.1).eval(), torch.randn(B, T, 3, side, side)
    del blocks(backbone)[1:]
    encoder = small_encoder(backbone, mixer="conv", freeze=freeze, scales=(1.0,))
    backend = "aot_eager" if name in BACKWARD_TOO and not freeze else "eager"
    compiled = torch.compile(encoder, backend=backend, fullgraph=ONE_GRAPH[name])
    results = []
    for run in (encoder, compiled):
        encoder.zero_grad()
        video = run(frames, mask)
        (video * torch.arange(video.shape[1])).sum().backward()
        results.append({"video": video.detach(), **gradients(encoder)})
    torch._dynamo.reset()
    assert results[0].keys() == results[1].keys()
    for key, expected in results[0].items():
        torch.testing.assert_close(results[1][key], expected, **ROUNDING[torch.float32], msg=key)

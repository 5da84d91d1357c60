"""VideoEncoder with small backbones: masks, slices, dtypes, custom heads and tokens."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from muse_adapter.encoders.video import VideoEncoder
from tests.support.small_encoders import (
    MASK,
    ROUNDING,
    B,
    CustomBackbone,
    T,
    double_encoder,
    random_frames,
    small_head,
)
from tests.support.tiny_clips import Clip4ClipClip, OpenAIClip, TimmVit

pytestmark = pytest.mark.usefixtures("torch_scan")


class RecordedInputs:
    """Record the inputs of the image tower of an `OpenAIClip`."""

    def __init__(self, clip: OpenAIClip) -> None:
        self.frames: list[Tensor] = []
        clip.visual.register_forward_pre_hook(lambda _, args: self.frames.append(args[0]))

    @property
    def counts(self) -> list[int]:
        return [len(frames) for frames in self.frames]


BACKBONES = {
    "openai": (OpenAIClip, 12, 1, lambda m, x: m.encode_image(x)),
    "clip4clip": (Clip4ClipClip, 12, 1, lambda m, x: m.encode_image(x)),
    "timm": (lambda: TimmVit(registers=4), 16, 5, lambda m, x: m.forward_features(x)[:, 0]),
    "no class token": (
        lambda: TimmVit(pool="", cls=False),
        16,
        0,
        lambda m, x: m.forward_features(x).mean(1),
    ),
}


@pytest.mark.parametrize(
    ("build", "width", "prefix", "embed"), BACKBONES.values(), ids=BACKBONES.keys()
)
def test_head_is_built_from_the_backbone(
    build: Callable[[], nn.Module], width: int, prefix: int, embed: Callable[..., Tensor]
) -> None:
    """A new head is an identity: the video is the masked mean of the backbone's embeddings."""
    backbone = build()
    encoder = VideoEncoder(backbone).double().eval()
    config = encoder.head.config
    assert (config.dim, config.in_dim, config.num_prefix_tokens) == (width, None, prefix)
    frames = random_frames()
    expected = normalize(embed(backbone, frames.flatten(0, 1)), dim=-1).unflatten(0, (B, T))
    expected = normalize((expected * MASK.unsqueeze(-1)).sum(1), dim=-1)
    video = encoder(frames, MASK)
    assert video.shape == (B, width)
    torch.testing.assert_close(video, expected, **ROUNDING[torch.float64])


@pytest.mark.parametrize("given", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_built_head_is_never_half_precision(given: torch.dtype) -> None:
    encoder = VideoEncoder(OpenAIClip().to(given))
    wide = torch.float64 if given == torch.float64 else torch.float32
    assert {p.dtype for p in encoder.head.parameters()} == {wide}


def test_hugging_face_with_wide_frames() -> None:
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    config = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=4
    )
    encoder = VideoEncoder(transformers.Dinov2Model(config), small_head(16))
    assert encoder(random_frames(torch.float32, (8, 24)), grid=(2, 6)).shape == (B, 16)
    with pytest.raises(ValueError, match=r"\(H, W\) = \(2, 6\), got \(3, 4\)"):
        encoder(random_frames(torch.float32, (8, 24)), grid=(3, 4))


@pytest.mark.parametrize("as_type", [torch.bool, torch.int64, torch.float32])
@pytest.mark.parametrize("filling", [0.0, 1e30, float("nan")])
def test_masked_frames_influence_nothing(as_type: torch.dtype, filling: float) -> None:
    encoder = double_encoder()
    frames = random_frames()
    alone = torch.cat([encoder(f[m].unsqueeze(0)) for f, m in zip(frames, MASK, strict=True)])
    recorded = RecordedInputs(encoder.backbone)
    frames = torch.where(MASK[:, :, None, None, None], frames, filling).requires_grad_()
    video = encoder(frames, MASK.to(as_type))
    torch.testing.assert_close(video, alone, **ROUNDING[torch.float64])
    assert recorded.counts == [int(MASK.sum())]
    assert recorded.frames[0].isfinite().all()
    (video * torch.randn_like(video)).sum().backward()
    assert (frames.grad[~MASK] == 0).all() and (frames.grad[MASK] != 0).any()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_no_real_frame() -> None:
    """The backbone still runs, with zero gradients: under DDP every rank must run it."""
    encoder = double_encoder()
    with pytest.warns(UserWarning, match="no valid frame"):
        video = encoder(torch.full_like(random_frames(), float("nan")), torch.zeros(B, T))
    assert (video == 0).all()
    video.sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None and (parameter.grad == 0).all(), name


@pytest.mark.parametrize(
    ("per_slice", "mask", "counts"),
    [
        (None, None, [6]),
        (1, None, [1] * 6),
        (4, None, [4, 2]),
        (100, None, [6]),
        (3, MASK, [3, 1]),
        (3, torch.ones(B, T), [3, 3]),
    ],
)
def test_slices_change_nothing(per_slice: int | None, mask: Tensor | None, counts: list) -> None:
    encoder, frames = double_encoder(), random_frames()
    whole = encoder(frames, mask)
    encoder.frames_per_slice = per_slice
    recorded = RecordedInputs(encoder.backbone)
    torch.testing.assert_close(encoder(frames, mask), whole, **ROUNDING[torch.float64])
    assert recorded.counts == counts


def test_channels_last() -> None:
    encoder, frames = double_encoder(), random_frames()
    expected = encoder(frames, MASK)
    encoder.backbone.to(memory_format=torch.channels_last)
    frames = frames.movedim(2, -1).contiguous().movedim(-1, 2)
    torch.testing.assert_close(encoder(frames, MASK), expected, **ROUNDING[torch.float64])


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("build", [OpenAIClip, Clip4ClipClip], ids=["openai", "clip4clip"])
def test_half_precision_backbone(build: Callable[[], nn.Module], half: torch.dtype) -> None:
    encoder = VideoEncoder(build().to(half), small_head())
    frames = random_frames(torch.float32)
    assert encoder.forward_tokens(frames).dtype == torch.float32
    video = encoder(frames, MASK)
    assert video.dtype == torch.float32
    whole = VideoEncoder(encoder.backbone.float(), encoder.head)(frames, MASK)
    torch.testing.assert_close(video, whole, **ROUNDING[torch.bfloat16])


def test_autocast() -> None:
    encoder = VideoEncoder(OpenAIClip(), small_head())
    frames = random_frames(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        video = encoder(frames, MASK)
    expected = encoder(frames, MASK)
    torch.testing.assert_close(video.float(), expected, **ROUNDING[torch.bfloat16])
    video.float().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())


def test_output_frames() -> None:
    encoder, frames = double_encoder(), random_frames()
    video, features = encoder(frames, MASK, output_frames=True)
    torch.testing.assert_close(video, encoder(frames, MASK), **ROUNDING[torch.float64])
    assert features.shape == (B, T, 12)
    pooled = encoder.head.forward_head(features, MASK)
    torch.testing.assert_close(pooled, video, **ROUNDING[torch.float64])


def test_head_without_class_token_gets_the_patches() -> None:
    encoder = VideoEncoder(OpenAIClip(), small_head(num_prefix_tokens=0)).double()
    whole = double_encoder(encoder.backbone)
    frames = random_frames()
    expected = whole.forward_tokens(frames)[:, :, 1:]
    torch.testing.assert_close(encoder.forward_tokens(frames), expected, **ROUNDING[torch.float64])
    assert encoder(frames).shape == (B, 12)


def test_head_with_projection() -> None:
    encoder = VideoEncoder(OpenAIClip(), small_head(20, in_dim=12)).double()
    assert encoder(random_frames(), MASK).shape == (B, 20)


class MeanOfClassTokens(nn.Module):
    """A custom head without weights."""

    def forward(self, tokens: Tensor, frame_mask: Tensor | None, *, grid: Any = None) -> Tensor:
        assert frame_mask is None and grid == (4, 4)
        return tokens[:, :, 0].mean(1)


def test_custom_head() -> None:
    encoder, frames = VideoEncoder(OpenAIClip(), MeanOfClassTokens()).double(), random_frames()
    expected = encoder.backbone.encode_image(frames.flatten(0, 1)).unflatten(0, (B, T)).mean(1)
    torch.testing.assert_close(encoder(frames), expected, **ROUNDING[torch.float64])


@pytest.mark.parametrize("grid", [None, (4, 4), (2, 6)], ids=["inferred", "square", "wide"])
def test_custom_tokens(grid: tuple[int, int] | None) -> None:
    backbone = CustomBackbone()
    head = small_head(num_prefix_tokens=0)
    encoder = VideoEncoder(backbone, head, tokens=backbone.tokens, frames_per_slice=2).double()
    size = (16, 16) if grid is None else (4 * grid[0], 4 * grid[1])
    frames = random_frames(size=size)
    video = encoder(frames, MASK, grid=grid)
    tokens = backbone.tokens(frames.flatten(0, 1)).unflatten(0, (B, T))
    torch.testing.assert_close(video, head(tokens, MASK, grid=grid), **ROUNDING[torch.float64])
    other = copy.deepcopy(encoder)
    other.backbone.conv.weight.data.zero_()
    assert not torch.allclose(other(frames, MASK, grid=grid), video)


def test_custom_tokens_frozen() -> None:
    backbone = CustomBackbone()
    head = small_head(num_prefix_tokens=0)
    encoder = VideoEncoder(backbone, head, tokens=backbone.tokens, freeze=True)
    encoder(random_frames(torch.float32)).sum().backward()
    assert backbone.conv.weight.grad is None and not backbone.train(False).conv.training


def test_repr_names_the_family() -> None:
    encoder = VideoEncoder(OpenAIClip(), small_head(), freeze=True, frames_per_slice=8)
    assert "tokens=OpenAI CLIP, freeze=True, frames_per_slice=8" in repr(encoder)


def test_custom_head_with_a_config_of_another_type() -> None:
    class Pooling(nn.Module):
        config = {"kind": "mean"}  # noqa: RUF012 - not a MuseConfig

        def forward(self, tokens: Tensor, frame_mask: Tensor | None, *, grid: object) -> Tensor:
            return tokens[:, :, 0].mean(1)

    encoder = VideoEncoder(OpenAIClip(), Pooling())
    encoder.set_grad_checkpointing()
    assert encoder(torch.randn(2, 3, 3, 16, 16)).shape[0] == 2

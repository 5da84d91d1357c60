"""VideoEncoder: any backbone and the head, over masks, slices, frozen backbones and mixed types."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from muse_adapter.encoders.video import VideoEncoder
from muse_adapter.models.muse import MultiScaleMamba
from muse_adapter.ops import use_backend
from muse_adapter.training.optim import param_groups
from tests.support.tiny_clips import Clip4ClipClip, OpenAIClip, TimmVit

# Slices and selected frames are other batches of the same matrix products.
ROUNDING = {"rtol": 1e-9, "atol": 1e-12}
B, T = 2, 3
MASK = torch.tensor([[True, True, False], [True, False, True]])


@pytest.fixture(autouse=True)
def torch_scan() -> Iterator[None]:
    """What the scan runs on is not the matter here, and this backend has nothing to compile."""
    with use_backend("torch"):
        yield


def small_head(dim: int = 12, **fields: Any) -> MultiScaleMamba:
    """A cheap head that, unlike a fresh one, already lets patches reach the frame features."""
    fields = {"depth": 1, "dropout": 0.0, "d_state": 4, "init": "release"} | fields
    return MultiScaleMamba(dim=dim, **fields)


def videos(dtype: torch.dtype = torch.float64, size: tuple[int, int] = (16, 16)) -> Tensor:
    return torch.randn(B, T, 3, *size, dtype=dtype)


def encoder_64(backbone: nn.Module | None = None, **options: Any) -> VideoEncoder:
    backbone = OpenAIClip() if backbone is None else backbone
    return VideoEncoder(backbone, small_head(), **options).double()


class Seen:
    """Notes what the image tower of an `OpenAIClip` is given."""

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
    """And changes nothing at first: the video is the masked mean of the backbone's embeddings."""
    backbone = build()
    encoder = VideoEncoder(backbone).double().eval()
    config = encoder.head.config
    assert (config.dim, config.in_dim, config.num_prefix_tokens) == (width, None, prefix)
    frames = videos()
    expected = normalize(embed(backbone, frames.flatten(0, 1)), dim=-1).unflatten(0, (B, T))
    expected = normalize((expected * MASK.unsqueeze(-1)).sum(1), dim=-1)
    video = encoder(frames, MASK)
    assert video.shape == (B, width)
    torch.testing.assert_close(video, expected, **ROUNDING)


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
    assert encoder(videos(torch.float32, (8, 24)), grid=(2, 6)).shape == (B, 16)
    with pytest.raises(ValueError, match=r"\(H, W\) = \(2, 6\), got \(3, 4\)"):
        encoder(videos(torch.float32, (8, 24)), grid=(3, 4))


# --- Masks and slices ---------------------------------------------------------------------------


@pytest.mark.parametrize("as_type", [torch.bool, torch.int64, torch.float32])
@pytest.mark.parametrize("filling", [0.0, 1e30, float("nan")])
def test_masked_frames_reach_nothing(as_type: torch.dtype, filling: float) -> None:
    encoder = encoder_64()
    frames = videos()
    alone = torch.cat([encoder(f[m].unsqueeze(0)) for f, m in zip(frames, MASK, strict=True)])
    seen = Seen(encoder.backbone)
    frames = torch.where(MASK[:, :, None, None, None], frames, filling).requires_grad_()
    video = encoder(frames, MASK.to(as_type))
    torch.testing.assert_close(video, alone, **ROUNDING)
    assert seen.counts == [int(MASK.sum())]
    assert seen.frames[0].isfinite().all()
    (video * torch.randn_like(video)).sum().backward()
    assert (frames.grad[~MASK] == 0).all() and (frames.grad[MASK] != 0).any()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_no_real_frame_at_all() -> None:
    """The backbone still runs, with gradient zero: under DDP no rank may leave it out."""
    encoder = encoder_64()
    with pytest.warns(UserWarning, match="no valid frame"):
        video = encoder(torch.full_like(videos(), float("nan")), torch.zeros(B, T))
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
    encoder, frames = encoder_64(), videos()
    whole = encoder(frames, mask)
    encoder.frames_per_slice = per_slice
    seen = Seen(encoder.backbone)
    torch.testing.assert_close(encoder(frames, mask), whole, **ROUNDING)
    assert seen.counts == counts


def test_channels_last() -> None:
    encoder, frames = encoder_64(), videos()
    expected = encoder(frames, MASK)
    encoder.backbone.to(memory_format=torch.channels_last)
    frames = frames.movedim(2, -1).contiguous().movedim(-1, 2)
    torch.testing.assert_close(encoder(frames, MASK), expected, **ROUNDING)


# --- Frozen or trained --------------------------------------------------------------------------


def test_frozen_backbone() -> None:
    clip = OpenAIClip()
    encoder = encoder_64(clip, freeze=True)
    assert encoder.train() is encoder
    assert encoder.training and encoder.head.training
    assert not any(module.training for module in clip.modules())
    encoder(videos(), MASK).sum().backward()
    assert not any(p.requires_grad or p.grad is not None for p in clip.parameters())
    assert all(p.grad is not None for p in encoder.head.parameters())
    clip.requires_grad_(True)
    assert not encoder.forward_tokens(videos()).requires_grad


def test_trained_backbone() -> None:
    clip = OpenAIClip().eval()
    encoder = encoder_64(clip)
    assert not clip.training, "the encoder leaves the mode to its owner"
    assert encoder.train().backbone.training and not encoder.eval().backbone.training
    video = encoder(videos())
    (video * torch.randn_like(video)).sum().backward()
    for name, parameter in clip.named_parameters():
        assert (parameter.grad != 0).any(), name


def test_frozen_tokens_equal_trained_ones() -> None:
    frames, clip = videos(), OpenAIClip()
    trained = encoder_64(clip)
    frozen = VideoEncoder(clip, trained.head, freeze=True)
    torch.testing.assert_close(frozen(frames, MASK), trained(frames, MASK), rtol=0, atol=0)


@pytest.mark.parametrize("freeze", [False, True], ids=["trained", "frozen"])
def test_parameter_groups_and_state(freeze: bool) -> None:
    encoder = encoder_64(freeze=freeze)
    groups = param_groups(encoder, encoder.head, backbone=None if freeze else encoder.backbone)
    grouped = {id(p) for group in groups for p in group["params"]}
    assert grouped == {id(p) for p in encoder.parameters() if p.requires_grad}
    state = encoder.state_dict()
    assert {name.partition(".")[0] for name in state} == {"backbone", "head"}
    other = encoder_64(freeze=freeze)
    other.load_state_dict(state)
    frames = videos()
    torch.testing.assert_close(other(frames), encoder(frames), rtol=0, atol=0)


def test_copy_reads_its_own_backbone() -> None:
    encoder, frames = encoder_64(), videos()
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
    frames, gradients = videos(), []
    for enable in (False, True):
        encoder.set_grad_checkpointing(enable)
        assert backbone.encoder.layers[0].gradient_checkpointing is enable
        assert encoder.head.grad_checkpointing is enable
        encoder.zero_grad()
        video = encoder(frames, MASK)
        (video * torch.arange(16)).sum().backward()
        gradients.append({n: p.grad.clone() for n, p in encoder.named_parameters()})
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, **ROUNDING, msg=name)
    encoder.set_grad_checkpointing(False)
    assert not backbone.encoder.layers[0].gradient_checkpointing


# --- Types and outputs --------------------------------------------------------------------------


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("build", [OpenAIClip, Clip4ClipClip], ids=["openai", "clip4clip"])
def test_half_precision_backbone(build: Callable[[], nn.Module], half: torch.dtype) -> None:
    encoder = VideoEncoder(build().to(half), small_head())
    frames = videos(torch.float32)
    assert encoder.forward_tokens(frames).dtype == torch.float32
    video = encoder(frames, MASK)
    assert video.dtype == torch.float32
    whole = VideoEncoder(encoder.backbone.float(), encoder.head)(frames, MASK)
    # Half precision keeps 8 bits or more: 1/256 of values of size 1, some layers deep.
    torch.testing.assert_close(video, whole, rtol=0, atol=0.05)


def test_autocast() -> None:
    encoder = VideoEncoder(OpenAIClip(), small_head())
    frames = videos(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        video = encoder(frames, MASK)
    torch.testing.assert_close(video.float(), encoder(frames, MASK), rtol=0, atol=0.05)
    video.float().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())


def test_output_frames() -> None:
    encoder, frames = encoder_64(), videos()
    video, features = encoder(frames, MASK, output_frames=True)
    torch.testing.assert_close(video, encoder(frames, MASK), rtol=0, atol=0)
    assert features.shape == (B, T, 12)
    torch.testing.assert_close(encoder.head.forward_head(features, MASK), video, rtol=0, atol=0)


def test_head_without_class_token_gets_the_patches() -> None:
    encoder = VideoEncoder(OpenAIClip(), small_head(num_prefix_tokens=0)).double()
    whole = encoder_64(encoder.backbone)
    frames = videos()
    expected = whole.forward_tokens(frames)[:, :, 1:]
    torch.testing.assert_close(encoder.forward_tokens(frames), expected, rtol=0, atol=0)
    assert encoder(frames).shape == (B, 12)


def test_head_may_project() -> None:
    encoder = VideoEncoder(OpenAIClip(), small_head(20, in_dim=12)).double()
    assert encoder(videos(), MASK).shape == (B, 20)


class MeanOfClassTokens(nn.Module):
    """A head of one's own, as a comparison needs it."""

    def forward(self, tokens: Tensor, frame_mask: Tensor | None, *, grid: Any = None) -> Tensor:
        assert frame_mask is None and grid == (4, 4)
        return tokens[:, :, 0].mean(1)


def test_any_head_serves() -> None:
    encoder, frames = VideoEncoder(OpenAIClip(), MeanOfClassTokens()).double(), videos()
    expected = encoder.backbone.encode_image(frames.flatten(0, 1)).unflatten(0, (B, T)).mean(1)
    torch.testing.assert_close(encoder(frames), expected, **ROUNDING)


# --- A function of one's own --------------------------------------------------------------------


class Columns(nn.Module):
    """An own backbone: a patch is 4x4 pixels, there is no class token."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 12, 4, 4)

    def tokens(self, frames: Tensor) -> Tensor:
        return self.conv(frames).flatten(2).transpose(1, 2)


@pytest.mark.parametrize("grid", [None, (4, 4), (2, 6)], ids=["inferred", "square", "wide"])
def test_own_function(grid: tuple[int, int] | None) -> None:
    backbone = Columns()
    head = small_head(num_prefix_tokens=0)
    encoder = VideoEncoder(backbone, head, tokens=backbone.tokens, frames_per_slice=2).double()
    size = (16, 16) if grid is None else (4 * grid[0], 4 * grid[1])
    frames = videos(size=size)
    video = encoder(frames, MASK, grid=grid)
    tokens = backbone.tokens(frames.flatten(0, 1)).unflatten(0, (B, T))
    torch.testing.assert_close(video, head(tokens, MASK, grid=grid), **ROUNDING)
    other = copy.deepcopy(encoder)
    other.backbone.conv.weight.data.zero_()
    assert not torch.allclose(other(frames, MASK, grid=grid), video)


def test_own_function_frozen() -> None:
    backbone = Columns()
    head = small_head(num_prefix_tokens=0)
    encoder = VideoEncoder(backbone, head, tokens=backbone.tokens, freeze=True)
    encoder(videos(torch.float32)).sum().backward()
    assert backbone.conv.weight.grad is None and not backbone.train(False).conv.training


# --- What is refused ----------------------------------------------------------------------------

HALF_TOKENS = "must return floating-point tokens, got"
CONSTRUCTION = {
    "unknown backbone": (
        lambda: VideoEncoder(Columns()),
        TypeError,
        "no patch tokens found in Col",
    ),
    "backbone is a name": (
        lambda: VideoEncoder("ViT-B/32"),  # type: ignore[arg-type]
        TypeError,
        r"backbone must be an nn\.Module, got str",
    ),
    "backbone is a function": (
        lambda: VideoEncoder(len, small_head(), tokens=len),  # type: ignore[arg-type]
        TypeError,
        r"backbone must be an nn\.Module, got builtin",
    ),
    "head is a number": (
        lambda: VideoEncoder(OpenAIClip(), 512),  # type: ignore[arg-type]
        TypeError,
        r"head must be an nn\.Module or None, got int",
    ),
    "tokens without head": (
        lambda: VideoEncoder(Columns(), tokens=Columns().tokens),
        ValueError,
        r"head must be given(.|\n)*MultiScaleMamba\(dim=C, num_prefix_tokens=1\)",
    ),
    "tokens is no function": (
        lambda: VideoEncoder(Columns(), small_head(), tokens=torch.zeros(1)),  # type: ignore
        TypeError,
        "tokens must be a function of frames, got Tensor",
    ),
    "head of another width": (
        lambda: VideoEncoder(OpenAIClip(), small_head(16)),
        ValueError,
        r"width 16, but this OpenAI CLIP gives 12: MultiScaleMamba\(dim=16, in_dim=12\)",
    ),
    "head of other prefix": (
        lambda: VideoEncoder(TimmVit(registers=4), small_head(16)),
        ValueError,
        "num_prefix_tokens=1, but this timm ViT gives 5",
    ),
    "slices of nothing": (
        lambda: VideoEncoder(OpenAIClip(), frames_per_slice=0),
        ValueError,
        "frames_per_slice must be at least 1, got 0",
    ),
    "slices of parts": (
        lambda: VideoEncoder(OpenAIClip(), frames_per_slice=2.5),  # type: ignore[arg-type]
        TypeError,
        r"frames_per_slice must be an int or None, got 2\.5",
    ),
}


@pytest.mark.parametrize(
    ("build", "error", "message"), CONSTRUCTION.values(), ids=CONSTRUCTION.keys()
)
def test_wrong_construction(
    build: Callable[[], VideoEncoder], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        build()


INPUTS = {
    "one video alone": (
        (torch.zeros(T, 3, 16, 16), None),
        ValueError,
        r"\(B, T, 3, height, width\), got \(3, 3, 16, 16\)",
    ),
    "channels last": (
        (torch.zeros(B, T, 16, 16, 3), None),
        ValueError,
        r"3 channels, .* got \(2, 3, 16, 16, 3\); channels come before",
    ),
    "grey": (
        (torch.zeros(B, T, 1, 16, 16), None),
        ValueError,
        r"3 channels, .* \(2, 3, 1, 16, 16\)$",
    ),
    "integers": (
        (torch.zeros(B, T, 3, 16, 16, dtype=torch.uint8), None),
        TypeError,
        r"floating point, got torch\.uint8: scale and normalise",
    ),
    "no video": ((torch.zeros(0, T, 3, 16, 16), None), ValueError, r"got \(B, T\) = \(0, 3\)"),
    "no frame": ((torch.zeros(B, 0, 3, 16, 16), None), ValueError, r"got \(B, T\) = \(2, 0\)"),
    "a list": (([0.0], None), TypeError, "frames must be a tensor, got list"),
    "mask of another length": (
        (torch.zeros(B, T, 3, 16, 16), torch.ones(B, 2)),
        ValueError,
        r"frame_mask must have shape \(B, T\) = \(2, 3\), got \(2, 2\)",
    ),
    "mask is a list": (
        (torch.zeros(B, T, 3, 16, 16), [[1, 1, 1], [1, 1, 0]]),
        TypeError,
        "frame_mask must be a tensor, got list",
    ),
    "mask of other values": (
        (torch.zeros(B, T, 3, 16, 16), torch.full((B, T), 2)),
        ValueError,
        "frame_mask",
    ),
}


@pytest.mark.parametrize(("inputs", "error", "message"), INPUTS.values(), ids=INPUTS.keys())
def test_wrong_input(inputs: tuple[Any, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        VideoEncoder(OpenAIClip(), small_head())(*inputs)


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (lambda x: None, TypeError, "got NoneType"),
        (lambda x: torch.zeros(len(x), 16, 12, dtype=torch.int32), TypeError, r"got torch\.int32"),
        (lambda x: torch.zeros(len(x), 12), ValueError, r"n = 6 frames, got shape \(6, 12\)"),
        (lambda x: torch.zeros(1, 16, 12), ValueError, r"n = 6 frames, got shape \(1, 16, 12\)"),
    ],
    ids=["nothing", "integers", "pooled", "other frames"],
)
def test_wrong_own_tokens(
    function: Callable[[Tensor], Any], error: type[Exception], message: str
) -> None:
    encoder = VideoEncoder(Columns(), small_head(num_prefix_tokens=0), tokens=function)
    with pytest.raises(error, match=message):
        encoder(videos(torch.float32))


# --- Around it ----------------------------------------------------------------------------------


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone."""
    distributed = torch.distributed
    if not distributed.is_available() or distributed.is_initialized():
        pytest.skip("needs torch.distributed, not yet in use")
    store = distributed.FileStore(str(tmp_path / "store"), 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize("freeze", [False, True], ids=["trained", "frozen"])
def test_ddp_finds_no_unused_parameter(freeze: bool, one_process: None) -> None:
    """DDP notices a parameter without gradient at the step after; the last batch has no frame."""
    encoder = VideoEncoder(OpenAIClip(), small_head(), freeze=freeze)
    parallel = nn.parallel.DistributedDataParallel(encoder)
    masks = [MASK, torch.ones(B, T), torch.tensor([[False] * T, [True] * T])]
    for mask in masks:
        if mask.any(1).all():
            parallel(videos(torch.float32), mask).sum().backward()
        else:
            with pytest.warns(UserWarning, match="no valid frame"):
                parallel(videos(torch.float32), mask).sum().backward()
    assert all(p.grad is not None for p in encoder.parameters() if p.requires_grad)


def test_repr_names_the_family() -> None:
    encoder = VideoEncoder(OpenAIClip(), small_head(), freeze=True, frames_per_slice=8)
    assert "tokens=OpenAI CLIP, freeze=True, frames_per_slice=8" in repr(encoder)


def test_a_head_of_ones_own_may_have_a_config_of_its_own() -> None:
    class Pooling(nn.Module):
        config = {"kind": "mean"}  # noqa: RUF012 - any object; not a MuseConfig

        def forward(self, tokens: Tensor, frame_mask: Tensor | None, *, grid: object) -> Tensor:
            return tokens[:, :, 0].mean(1)

    encoder = VideoEncoder(OpenAIClip(), Pooling())
    encoder.set_grad_checkpointing()
    assert encoder(torch.randn(2, 3, 3, 16, 16)).shape[0] == 2

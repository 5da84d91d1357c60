"""VideoTextModel: the libraries' own embeddings and logits, and the loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from muse_adapter import VideoEncoder, VideoTextModel, param_groups
from tests.support.contrastive_steps import small_model
from tests.support.real_backbones import CLIP, SIGLIP, hf, open_clip_model, openai_clip
from tests.support.small_encoders import ROUNDING, small_head
from tests.support.tiny_clips import Clip4ClipClip, OpenAIClip, Words, shake, token_ids
from tests.support.tolerances import assert_close

pytestmark = pytest.mark.usefixtures("torch_scan")


def hf_logits(model: Any, frames: Tensor, ids: Tensor) -> Tensor:
    return model(pixel_values=frames, input_ids=ids).logits_per_text


def open_clip_logits(model: Any, frames: Tensor, ids: Tensor) -> Tensor:
    return model.get_logits(frames, ids)[1]


def openai_logits(model: Any, frames: Tensor, ids: Tensor) -> Tensor:
    return model(frames, ids)[1]


WHOLE = {
    "CLIPModel": (hf("CLIPModel", "CLIPConfig", **CLIP), hf_logits, torch.float64),
    "SiglipModel": (hf("SiglipModel", "SiglipConfig", **SIGLIP), hf_logits, torch.float64),
    "open_clip": (open_clip_model(), open_clip_logits, torch.float64),
    "open_clip SigLIP": (
        open_clip_model("CustomTextCLIP", bias=-2.0, pool_type="avg"),
        open_clip_logits,
        torch.float64,
    ),
    "OpenAI CLIP": (openai_clip, openai_logits, torch.float32),
}


@pytest.mark.parametrize(("build", "logits", "dtype"), WHOLE.values(), ids=WHOLE.keys())
def test_one_frame_has_the_logits_of_the_library(
    build: Callable[[], nn.Module], logits: Callable[..., Tensor], dtype: torch.dtype
) -> None:
    """A new head is an identity, so logits and loss are those of the library."""
    backbone: Any = shake(build(), 0.1).to(dtype).eval()
    rounding = ROUNDING[dtype]
    model = VideoTextModel(VideoEncoder(backbone), text=backbone).eval()
    assert model.logit_scale is backbone.logit_scale
    frames, ids = torch.randn(3, 3, 16, 16, dtype=dtype), token_ids()
    expected = logits(backbone, frames, ids)
    video, text = model.encode_video(frames[:, None]), model.encode_text(ids)
    similarity = model.similarity(text, video)
    got = similarity * backbone.logit_scale.exp()
    bias = getattr(backbone, "logit_bias", None)
    torch.testing.assert_close(got if bias is None else got + bias, expected, **rounding)
    targets = torch.arange(3)
    cross = nn.functional.cross_entropy
    loss = (cross(expected, targets) + cross(expected.T, targets)) / 2
    torch.testing.assert_close(model(frames[:, None], ids), loss, **rounding)
    torch.testing.assert_close(model.loss(text, video), loss, **rounding)


def test_loss_is_that_of_hugging_face() -> None:
    clip: Any = shake(hf("CLIPModel", "CLIPConfig", **CLIP)(), 0.1).double().eval()
    frames, ids = torch.randn(3, 3, 16, 16, dtype=torch.float64), token_ids()
    expected = clip(pixel_values=frames, input_ids=ids, return_loss=True).loss
    loss = VideoTextModel(VideoEncoder(clip), text=clip).eval()(frames[:, None], ids)
    torch.testing.assert_close(loss, expected, **ROUNDING[torch.float64])


@pytest.mark.parametrize("build", [OpenAIClip, Clip4ClipClip], ids=["openai", "clip4clip"])
def test_embeddings_and_similarity(build: Callable[[], nn.Module]) -> None:
    model = VideoTextModel(VideoEncoder(build(), small_head()), Words()).double()
    frames = torch.randn(2, 3, 3, 16, 16, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 0], [1, 0, 1]])
    video, text = model.encode_video(frames, mask), model.encode_text(token_ids(5))
    torch.testing.assert_close(video, model.encoder(frames, mask), **ROUNDING[torch.float64])
    torch.testing.assert_close(text.norm(dim=1), torch.ones(5, dtype=torch.float64))
    similarity = model.similarity(text, video)
    assert similarity.shape == (5, 2)
    expected = nn.functional.cosine_similarity(text[:, None], video[None], dim=-1)
    torch.testing.assert_close(similarity, expected, **ROUNDING[torch.float64])


def test_new_logit_scale_has_the_initial_value_of_clip() -> None:
    model = small_model()
    assert model.logit_scale.dtype == torch.float64
    assert model.logit_scale.exp().item() == pytest.approx(1 / 0.07)
    assert "_logit_scale" in model.state_dict()
    groups = param_groups(model, model.encoder.head, backbone=model.encoder.backbone)
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())


def test_shared_tower_is_in_the_state_dict_once() -> None:
    clip = hf("CLIPModel", "CLIPConfig", **CLIP)()
    model = VideoTextModel(VideoEncoder(clip, freeze=True), text=clip)
    assert model.text is clip and model.train().text.training is False
    assert {name.partition(".")[0] for name in model.state_dict()} == {"encoder"}
    tensors = [tensor.data_ptr() for tensor in model.state_dict().values() if tensor.numel()]
    assert len(tensors) == len(set(tensors))
    model(torch.randn(2, 1, 3, 16, 16), token_ids(2)).backward()
    assert all(p.grad is None for p in clip.parameters())


def test_half_precision_loss_is_computed_in_float32() -> None:
    """Cosines of nearly equal videos differ by less than a step of bfloat16."""
    model = small_model().float()
    text = normalize(torch.ones(2, 12), dim=1)
    video = normalize(torch.ones(2, 12) + torch.tensor([[0.0], [1e-3]]) * torch.randn(12), dim=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        similarity = model.similarity(text, video)
        loss = model.loss(text, video)
        encoded = model.encode_text(token_ids())
        assert model.encode_video(torch.randn(1, 2, 3, 16, 16)).dtype == torch.float32
    assert similarity.dtype == loss.dtype == encoded.dtype == torch.float32
    assert_close(similarity, text @ video.T, "rounding")
    assert_close(loss, model.loss(text, video))


@pytest.mark.parametrize(
    "build",
    [hf("CLIPModel", "CLIPConfig", **CLIP), hf("SiglipModel", "SiglipConfig", **SIGLIP)],
    ids=["CLIP", "SigLIP"],
)
def test_every_parameter_of_a_whole_model_is_used(build: Callable[[], nn.Module]) -> None:
    """DistributedDataParallel raises at the second step if one is not."""
    backbone = build()
    model = VideoTextModel(VideoEncoder(backbone), text=backbone)
    model(torch.randn(2, 1, 3, 16, 16), token_ids(2)).backward()
    unused = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not unused
    if hasattr(backbone, "logit_bias"):
        assert backbone.logit_bias.grad == 0


UNIT = normalize(torch.ones(2, 12), dim=1)
WRONG: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "no encoder": (
        lambda: VideoTextModel(OpenAIClip(), Words()),  # type: ignore[arg-type]
        TypeError,
        "encoder must be a VideoEncoder, got OpenAIClip",
    ),
    "function": (
        lambda: VideoTextModel(VideoEncoder(OpenAIClip()), len),  # type: ignore[arg-type]
        TypeError,
        r"text must be an nn\.Module, got builtin",
    ),
    "strings": (
        lambda: small_model().encode_text(["a dog"]),  # type: ignore[arg-type]
        TypeError,
        r"token ids \(B, L\), or the mapping .*got list",
    ),
    "other width": (
        lambda: small_model().similarity(UNIT, UNIT[:, :8]),
        ValueError,
        r"same width, got \(2, 12\) and \(2, 8\).*MultiScaleMamba\(dim=D, in_dim=C\)",
    ),
    "other number": (
        lambda: small_model().loss(UNIT, UNIT[:1]),
        ValueError,
        r"one video for each text.*text \(2, 12\) and video \(1, 12\)",
    ),
}


@pytest.mark.parametrize(("call", "error", "message"), WRONG.values(), ids=WRONG.keys())
def test_wrong_use(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()

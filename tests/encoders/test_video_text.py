"""VideoTextModel: the libraries' own embeddings and logits, and one loss over several processes."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from muse_adapter import MultiScaleMamba, VideoEncoder, VideoTextModel, param_groups
from muse_adapter.ops import use_backend
from tests.support.contrastive_steps import small_model, three_steps
from tests.support.real_backbones import (
    CLIP,
    NAFLEX_VISION,
    TEXT,
    VISION,
    hf,
    open_clip_model,
    openai_clip,
)
from tests.support.tiny_clips import Clip4ClipClip, OpenAIClip, Words, shake

ROUNDING = {"rtol": 1e-9, "atol": 1e-12}
# OpenAI's CLIP computes its norms in float32 whatever comes in.
ROUNDING_32 = {"rtol": 1e-5, "atol": 1e-6}


@pytest.fixture(autouse=True)
def torch_scan() -> Iterator[None]:
    with use_backend("torch"):
        yield


def token_ids(count: int = 3) -> Tensor:
    return torch.randint(3, 50, (count, 8))


# --- The libraries' own numbers -----------------------------------------------------------------

SIGLIP = {"text_config": TEXT | {"projection_size": 16}, "vision_config": VISION}
SIGLIP_2 = {"text_config": TEXT | {"projection_size": 16}, "vision_config": NAFLEX_VISION}


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
    """A fresh head changes nothing, so the model's own logits and CLIP's loss must come out."""
    backbone: Any = shake(build(), 0.1).to(dtype).eval()
    rounding = ROUNDING if dtype == torch.float64 else ROUNDING_32
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
    torch.testing.assert_close(loss, expected, **ROUNDING)


TOWERS = {
    "CLIPTextModelWithProjection": (
        hf("CLIPTextModelWithProjection", "CLIPTextConfig", **TEXT, projection_dim=12),
        lambda m, ids: m(input_ids=ids).text_embeds,
    ),
    "CLIPTextModel": (
        hf("CLIPTextModel", "CLIPTextConfig", **TEXT),
        lambda m, ids: m(input_ids=ids).pooler_output,
    ),
    "SiglipTextModel": (
        hf("SiglipTextModel", "SiglipTextConfig", **TEXT, projection_size=12),
        lambda m, ids: m(input_ids=ids).pooler_output,
    ),
    "Siglip2Model": (
        hf("Siglip2Model", "Siglip2Config", **SIGLIP_2),
        lambda m, ids: m.text_model(input_ids=ids).pooler_output,
    ),
    "own module": (Words, lambda m, ids: m(ids)),
}


@pytest.mark.parametrize(("build", "embed"), TOWERS.values(), ids=TOWERS.keys())
def test_text_towers(build: Callable[[], nn.Module], embed: Callable[..., Tensor]) -> None:
    tower = shake(build()).double().eval()
    model = VideoTextModel(VideoEncoder(OpenAIClip()).double(), text=tower)
    ids = token_ids()
    text = model.encode_text(ids)
    torch.testing.assert_close(text, normalize(embed(tower, ids), dim=-1), **ROUNDING)
    if build is not Words:
        # As tokenizers of Hugging Face give it.
        padded = UserDict(input_ids=ids, attention_mask=torch.ones_like(ids))
        torch.testing.assert_close(model.encode_text(padded), text, **ROUNDING)


@pytest.mark.parametrize("build", [OpenAIClip, Clip4ClipClip], ids=["openai", "clip4clip"])
def test_embeddings_and_similarity(build: Callable[[], nn.Module]) -> None:
    head = MultiScaleMamba(dim=12, depth=1, d_state=4, init="release").eval()
    model = VideoTextModel(VideoEncoder(build(), head), Words()).double()
    frames = torch.randn(2, 3, 3, 16, 16, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 0], [1, 0, 1]])
    video, text = model.encode_video(frames, mask), model.encode_text(token_ids(5))
    torch.testing.assert_close(video, model.encoder(frames, mask), **ROUNDING)
    torch.testing.assert_close(text.norm(dim=1), torch.ones(5, dtype=torch.float64))
    similarity = model.similarity(text, video)
    assert similarity.shape == (5, 2)
    expected = nn.functional.cosine_similarity(text[:, None], video[None], dim=-1)
    torch.testing.assert_close(similarity, expected, **ROUNDING)


def test_own_scale_starts_as_clip_does() -> None:
    model = small_model()
    assert model.logit_scale.dtype == torch.float64
    assert model.logit_scale.exp().item() == pytest.approx(1 / 0.07)
    assert "_logit_scale" in model.state_dict()
    groups = param_groups(model, model.encoder.head, backbone=model.encoder.backbone)
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())


def test_shared_tower_stands_in_the_state_once() -> None:
    clip = hf("CLIPModel", "CLIPConfig", **CLIP)()
    model = VideoTextModel(VideoEncoder(clip, freeze=True), text=clip)
    assert model.text is clip and model.train().text.training is False
    assert {name.partition(".")[0] for name in model.state_dict()} == {"encoder"}
    tensors = [tensor.data_ptr() for tensor in model.state_dict().values() if tensor.numel()]
    assert len(tensors) == len(set(tensors))
    model(torch.randn(2, 1, 3, 16, 16), token_ids(2)).backward()
    assert all(p.grad is None for p in clip.parameters())


def test_half_precision_loss_is_computed_wide() -> None:
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
    torch.testing.assert_close(similarity, text @ video.T, rtol=0, atol=0)
    torch.testing.assert_close(loss, model.loss(text, video), rtol=0, atol=1e-6)


# --- Several processes --------------------------------------------------------------------------

RANK = """
from tests.support.contrastive_steps import three_steps
from torch.nn.parallel import DistributedDataParallel

for first in (2, 3):
    rows = slice(0, first) if rank == 0 else slice(first, 4)
    torch.save(three_steps(rows, DistributedDataParallel), f"{arguments[0]}/{rank}-{first}")
"""


def test_two_processes_equal_one_on_all_pairs(
    tmp_path: Path, two_processes: Callable[..., None]
) -> None:
    """With two pairs each, and with three and one."""
    expected = three_steps(slice(0, 4))
    losses = expected["losses"]
    assert losses[2] < losses[0]
    two_processes(RANK, str(tmp_path), MUSE_ADAPTER_BACKEND="torch")
    for name in ("0-2", "1-2", "0-3", "1-3"):
        trained = torch.load(tmp_path / name, weights_only=True)
        for key, value in expected.items():
            torch.testing.assert_close(trained[key], value, **ROUNDING, msg=f"{name}: {key}")


@pytest.mark.parametrize(
    "build",
    [hf("CLIPModel", "CLIPConfig", **CLIP), hf("SiglipModel", "SiglipConfig", **SIGLIP)],
    ids=["CLIP", "SigLIP"],
)
def test_every_parameter_of_a_whole_model_is_used(build: Callable[[], nn.Module]) -> None:
    """DistributedDataParallel stops at the second step if one is not."""
    backbone = build()
    model = VideoTextModel(VideoEncoder(backbone), text=backbone)
    model(torch.randn(2, 1, 3, 16, 16), token_ids(2)).backward()
    unused = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not unused
    if hasattr(backbone, "logit_bias"):
        assert backbone.logit_bias.grad == 0


# --- What is refused ----------------------------------------------------------------------------


class Sequence(nn.Module):
    def forward(self, ids: Tensor) -> Tensor:
        return torch.zeros(*ids.shape, 12)


class Nothing(nn.Module):
    def forward(self, ids: Tensor) -> None:
        return None


def vision_model() -> nn.Module:
    values = {**VISION, "projection_dim": 12}
    return hf("CLIPVisionModelWithProjection", "CLIPVisionConfig", **values)()


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
    "vision model": (
        lambda: VideoTextModel(VideoEncoder(OpenAIClip()), vision_model()),
        TypeError,
        r"CLIPVisionModelWithProjection takes pixel_values alone: give the whole model",
    ),
    "strings": (
        lambda: small_model().encode_text(["a dog"]),  # type: ignore[arg-type]
        TypeError,
        r"token ids \(B, L\), or the mapping .*got list",
    ),
    "one embedding a token": (
        lambda: VideoTextModel(VideoEncoder(OpenAIClip()), Sequence()).encode_text(token_ids()),
        ValueError,
        r"one embedding a text, \(B, D\), got shape \(3, 8, 12\)",
    ),
    "no embedding": (
        lambda: VideoTextModel(VideoEncoder(OpenAIClip()), Nothing()).encode_text(token_ids()),
        TypeError,
        "Nothing must give embeddings .* got NoneType",
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

"""Text embeddings of every kind of text tower."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from muse_adapter.encoders.text import check_tower, embed_text
from tests.support.real_backbones import SIGLIP_2, TEXT, VISION, hf, open_clip_model
from tests.support.small_encoders import ROUNDING
from tests.support.tiny_clips import Words, shake, token_ids

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
    check_tower(tower)
    ids = token_ids()
    text = embed_text(tower, ids)
    torch.testing.assert_close(text, embed(tower, ids), **ROUNDING[torch.float64])
    if build is not Words:
        # As Hugging Face tokenizers return it.
        padded = UserDict(input_ids=ids, attention_mask=torch.ones_like(ids))
        torch.testing.assert_close(embed_text(tower, padded), text, **ROUNDING[torch.float64])


class TokenEmbeddings(nn.Module):
    def forward(self, ids: Tensor) -> Tensor:
        return torch.zeros(*ids.shape, 12)


class NoEmbedding(nn.Module):
    def forward(self, ids: Tensor) -> None:
        return None


def vision_model() -> nn.Module:
    values = {**VISION, "projection_dim": 12}
    return hf("CLIPVisionModelWithProjection", "CLIPVisionConfig", **values)()


LAST_TOKEN = {
    "SiglipTextModel": hf("SiglipTextModel", "SiglipTextConfig", **TEXT),
    "Siglip2Model": hf("Siglip2Model", "Siglip2Config", **SIGLIP_2),
    "open_clip SigLIP": open_clip_model("CustomTextCLIP", text={"pool_type": "last"}),
}


@pytest.mark.parametrize("build", LAST_TOKEN.values(), ids=LAST_TOKEN.keys())
def test_towers_that_read_their_last_token_need_full_length(
    build: Callable[[], nn.Module],
) -> None:
    tower = build().eval()
    assert embed_text(tower, token_ids()).shape[0] == 3
    with pytest.raises(ValueError, match=r"padded to 8 tokens, got 5.*padding=.max_length"):
        embed_text(tower, token_ids()[:, :5])


def test_masked_padding_of_siglip_is_refused() -> None:
    tower = LAST_TOKEN["SiglipTextModel"]().eval()
    mask = torch.ones(3, 8, dtype=torch.long)
    mask[1, 5:] = 0
    with pytest.raises(ValueError, match="without an attention mask"):
        embed_text(tower, {"input_ids": token_ids(), "attention_mask": mask})


def test_clip_takes_short_texts() -> None:
    ids = token_ids()
    ids[:, 4] = 49  # the end of the text
    tower = hf("CLIPTextModel", "CLIPTextConfig", **TEXT, eos_token_id=49)().eval()
    short = embed_text(tower, ids[:, :5])
    torch.testing.assert_close(short, embed_text(tower, ids), **ROUNDING[torch.float32])


WRONG: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "function": (
        lambda: check_tower(len),  # type: ignore[arg-type]
        TypeError,
        r"text must be an nn\.Module, got builtin",
    ),
    "vision model": (
        lambda: check_tower(vision_model()),
        TypeError,
        r"CLIPVisionModelWithProjection takes pixel_values only: pass the whole model",
    ),
    "strings": (
        lambda: embed_text(Words(), ["a dog"]),  # type: ignore[arg-type]
        TypeError,
        r"token ids \(B, L\), or the mapping .*got list",
    ),
    "one embedding per token": (
        lambda: embed_text(TokenEmbeddings(), token_ids()),
        ValueError,
        r"one embedding per text, \(B, D\), got shape \(3, 8, 12\)",
    ),
    "no embedding": (
        lambda: embed_text(NoEmbedding(), token_ids()),
        TypeError,
        "NoEmbedding must return embeddings .* got NoneType",
    ),
}


@pytest.mark.parametrize(("call", "error", "message"), WRONG.values(), ids=WRONG.keys())
def test_wrong_use(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()

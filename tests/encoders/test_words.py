"""Word features of every kind of text tower."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from muse_adapter.encoders.text import embed_text
from muse_adapter.encoders.words import embed_words
from tests.support.real_backbones import (
    CLIP,
    SIGLIP,
    SIGLIP_2,
    TEXT,
    hf,
    open_clip_model,
    openai_clip,
)
from tests.support.small_encoders import ROUNDING
from tests.support.tiny_clips import WordFeatures, Words, shake, token_ids

END = 49  # the highest id, as CLIP's end of text is
OLD_CLIP = TEXT | {"eos_token_id": 2}  # as CLIP's older configurations say
NEW_CLIP = TEXT | {"eos_token_id": END}

# Towers that read the end of the text, and towers that read the last of all tokens.
CAUSAL: dict[str, Callable[[], nn.Module]] = {
    "CLIPModel": hf("CLIPModel", "CLIPConfig", **CLIP | {"text_config": NEW_CLIP}),
    "CLIPModel, older configuration": hf(
        "CLIPModel", "CLIPConfig", **CLIP | {"text_config": OLD_CLIP}
    ),
    "CLIPTextModel": hf("CLIPTextModel", "CLIPTextConfig", **NEW_CLIP),
    "CLIPTextModelWithProjection": hf(
        "CLIPTextModelWithProjection", "CLIPTextConfig", **NEW_CLIP, projection_dim=12
    ),
    "open_clip": open_clip_model(),
    "open_clip, own text tower": open_clip_model("CustomTextCLIP"),
    "open_clip, end by its id": open_clip_model(text={"pool_type": "eos", "eos_id": END}),
    "OpenAI CLIP": openai_clip,
}
LAST: dict[str, Callable[[], nn.Module]] = {
    "SiglipModel": hf("SiglipModel", "SiglipConfig", **SIGLIP),
    "SiglipTextModel": hf("SiglipTextModel", "SiglipTextConfig", **TEXT, projection_size=12),
    "Siglip2Model": hf("Siglip2Model", "Siglip2Config", **SIGLIP_2),
    "open_clip SigLIP": open_clip_model(
        "CustomTextCLIP", text={"pool_type": "last", "no_causal_mask": True, "proj_bias": True}
    ),
}


def built(build: Callable[[], nn.Module]) -> tuple[nn.Module, dict[str, float]]:
    """Build a tower in float64, or OpenAI's, whose norms know float32 only, in that."""
    dtype = torch.float32 if build is openai_clip else torch.float64
    return shake(build(), 0.1).to(dtype).eval(), ROUNDING[dtype]


@pytest.mark.parametrize("build", CAUSAL.values(), ids=CAUSAL.keys())
@pytest.mark.parametrize("padding", [0, END], ids=["padded by 0", "padded by the end"])
def test_clip(build: Callable[[], nn.Module], padding: int) -> None:
    """Words end with the end of the text, whose feature is the embedding."""
    tower, rounding = built(build)
    ids = token_ids().clamp(max=END - 1)
    ends = torch.tensor([7, 4, 2])
    for row, end in zip(ids, ends, strict=True):
        row[end], row[end + 1 :] = END, padding
    words, mask = embed_words(tower, ids)
    assert torch.equal(mask, torch.arange(8) <= ends[:, None])
    rows = torch.arange(3)
    embeddings = embed_text(tower, ids)
    torch.testing.assert_close(words[rows, ends], embeddings, **rounding)
    assert words.shape == (3, 8, embeddings.shape[1])
    assert len(torch.unique(words[0], dim=0)) == 8


@pytest.mark.parametrize("build", LAST.values(), ids=LAST.keys())
def test_siglip(build: Callable[[], nn.Module]) -> None:
    """Padding is no word, except for the last token, whose feature is the embedding."""
    tower, rounding = built(build)
    ids = token_ids()
    ids[0, 6], ids[1, 3:], ids[2, 6:] = 5, 1, 0
    ids[0, 7], ids[1, 2], ids[2, 5] = 6, 7, 8  # no padding; the last words before padding
    words, mask = embed_words(tower, ids)
    expected = torch.ones(3, 8, dtype=torch.bool)
    expected[1, 3:7] = expected[2, 6] = False
    assert torch.equal(mask, expected)
    torch.testing.assert_close(words[:, -1], embed_text(tower, ids), **rounding)


def test_mask_of_a_tokenizer() -> None:
    tower, rounding = built(CAUSAL["CLIPModel"])
    ids = token_ids().clamp(max=END - 1)
    ids[:, 7] = END
    attention = torch.ones_like(ids)
    attention[1, :3] = 0  # padded on the left
    text = UserDict(input_ids=ids, attention_mask=attention)
    words, mask = embed_words(tower, text)
    assert torch.equal(mask, attention.bool())
    torch.testing.assert_close(words[:, 7], embed_text(tower, text), **rounding)


def test_own_module() -> None:
    tower, ids = WordFeatures(), token_ids()
    ids[:, 6:] = 0
    words, mask = embed_words(tower, ids)
    assert words.shape[:2] == mask.shape and mask.dtype == torch.bool
    assert torch.equal(words, tower.words(ids[:, : words.shape[1]]))


class OtherShapes(nn.Module):
    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros(*ids.shape, 12), torch.ones(len(ids))


WRONG: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "embeddings": (
        lambda: embed_words(Words(), token_ids()),
        TypeError,
        r"Words must return words \(A, W, D\) and their mask \(A, W\), got Tensor",
    ),
    "other shapes": (
        lambda: embed_words(OtherShapes(), token_ids()),
        ValueError,
        r"got \(3, 8, 12\) and \(3,\)",
    ),
    "first token": (
        lambda: embed_words(open_clip_model(text={"pool_type": "first"})(), token_ids()),
        TypeError,
        "pool_type 'first' are not supported",
    ),
    "CoCa": (
        lambda: embed_words(
            open_clip_model("CustomTextCLIP", text={"embed_cls": True})(), token_ids()
        ),
        TypeError,
        "does not normalise one feature for each token",
    ),
    "short texts": (
        lambda: embed_words(LAST["SiglipTextModel"](), token_ids()[:, :5]),
        ValueError,
        "padded to 8 tokens, got 5",
    ),
}


@pytest.mark.parametrize(("call", "error", "message"), WRONG.values(), ids=WRONG.keys())
def test_wrong_use(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()

"""Temporal fusion: its start, its gradients, candidates, padding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from muse_adapter import MamFusion, VideoCode, load_mamfusion_state_dict
from tests.support.checkpoints import randomised
from tests.support.golden import Golden
from tests.support.tolerances import assert_close

pytestmark = pytest.mark.usefixtures("torch_scan")

Q, B, T, W, C = 4, 3, 7, 5, 6
FIELDS: dict[str, Any] = dict(
    visual_width=C, text_width=C, hidden=8, heads=2, num_clips=4, max_frames=7, fusion=True
)
WORD_MASK = torch.arange(W) < torch.tensor([5, 1, 3, 2])[:, None]
RESIDUALS = pytest.mark.parametrize("residual", [None, "concat"])


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def build(residual: str | None, *, start: bool = False) -> tuple[MamFusion, dict[str, Any]]:
    """Build a model, and the words of queries with what else a query needs."""
    model = MamFusion(**FIELDS, residual=residual)
    model = (model if start else randomised(model)).double().eval()
    text = {"words": draw(Q, W, C), "word_mask": WORD_MASK}
    if residual is not None:
        text["sentence"] = draw(Q, C)
    return model, text


@RESIDUALS
def test_it_starts_as_the_score_without_fusion(residual: str | None) -> None:
    model, text = build(residual, start=True)
    code = model.encode_video(draw(B, T, C))
    expected = model.similarity(model.encode_text(**text), code)
    assert_close(model.fused_similarity(code=code, **text), expected, "rounding")
    randomised(model)
    model.reset_parameters()
    code = model.encode_video(draw(B, T, C))
    expected = model.similarity(model.encode_text(**text), code)
    got = model.fused_similarity(code=code, **text, clip_weight=0.7)
    assert_close(got, expected, "rounding")


@RESIDUALS
def test_gradients_reach_all_of_it(residual: str | None) -> None:
    model, text = build(residual)
    frames = draw(B, T, C).requires_grad_()
    scores = model.fused_similarity(code=model.encode_video(frames), **text)
    scores.square().sum().backward()
    for name, parameter in model.named_parameters():
        # A constant added to all keys changes no softmax.
        if not name.endswith(("key.bias", "memory_norm.bias")):
            assert parameter.grad is not None and parameter.grad.any(), name
    assert frames.grad is not None and frames.grad.isfinite().all()


def test_the_first_step_changes_every_last_map() -> None:
    model, text = build(None, start=True)
    model.fused_similarity(code=model.encode_video(draw(B, T, C)), **text).sum().backward()
    fusion = model.fusion
    for layer in (fusion.text_to_video.out, fusion.video_to_text.out, fusion.score):
        assert layer.weight.grad.any()


@RESIDUALS
def test_fifty_candidates_of_one_query_in_one_call(residual: str | None) -> None:
    model, text = build(residual)
    code = model.encode_video(draw(50, T, C))
    every = model.fused_similarity(code=code, **text)
    own = {name: value[1:2] for name, value in text.items()}
    candidates = VideoCode(code.clips[None], code.video[None])
    got = model.fused_similarity(code=candidates, **own)
    assert got.shape == (1, 50)
    assert_close(got[0], every[1], "rounding")


@RESIDUALS
def test_candidates_of_each_query(residual: str | None) -> None:
    model, text = build(residual)
    code = model.encode_video(draw(B, T, C))
    ids = torch.tensor([[0, 2], [1, 0], [2, 2], [1, 2]])
    got = model.fused_similarity(code=VideoCode(code.clips[ids], code.video[ids]), **text)
    assert_close(got, model.fused_similarity(code=code, **text).gather(1, ids), "rounding")


def test_padding_of_words_and_videos_without_a_frame() -> None:
    model, text = build(None)
    mask = torch.ones(B, T)
    mask[1] = 0
    code = model.encode_video(draw(B, T, C), mask)
    scores = model.fused_similarity(code=code, **text)
    assert not scores[:, 1].any() and scores[:, 0].any()
    for i, count in enumerate(WORD_MASK.sum(1)):
        alone = model.fused_similarity(text["words"][i : i + 1, :count], None, code)
        assert_close(scores[i], alone[0], "rounding")


def test_the_order_of_the_clips_matters() -> None:
    """The same clips in another order: the fusion alone sees it."""
    model, text = build(None)
    code = model.encode_video(draw(B, T, C))
    reverse = code._replace(clips=code.clips.flip(1))
    query = model.encode_text(**text)
    assert_close(model.similarity(query, reverse), model.similarity(query, code), "rounding")
    difference = model.fused_similarity(code=reverse, **text) - model.fused_similarity(
        code=code, **text
    )
    assert difference.abs().max() > 1e-3


def test_official_weights_leave_the_fusion_as_it_is(golden) -> None:
    file: Golden = golden("mamfusion_encoder")
    sizes = {"text_width": 5, "max_frames": 9, "max_words": 6}
    model = MamFusion(**{**FIELDS, **sizes}).double()
    before = {name: value.clone() for name, value in model.fusion.state_dict().items()}
    with pytest.warns(UserWarning, match="left aside"):
        load_mamfusion_state_dict(model, file.weights())
    assert all(torch.equal(before[name], v) for name, v in model.fusion.state_dict().items())
    assert torch.equal(
        model.frame_pool.score.weight, file.tensor("modular_vector_mapping_2.weight")
    )


def test_errors() -> None:
    model, text = build(None)
    code = model.encode_video(draw(B, T, C))
    with pytest.raises(ValueError, match="candidates must be those of 4 queries, got 1 groups"):
        model.fused_similarity(code=VideoCode(code.clips[None], code.video[None]), **text)
    plain = MamFusion(**{**FIELDS, "fusion": False})
    with pytest.raises(RuntimeError, match="needs a model with fusion=True"):
        plain.fused_similarity(code=code, **text)

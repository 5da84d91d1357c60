"""MamFusion: padding, lengths, scores of indexes, state dicts, decay, errors."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from muse_adapter import (
    MamFusion,
    MamFusionConfig,
    VideoCode,
    load_mamfusion_state_dict,
    param_groups,
)
from muse_adapter.layers.mixers import BiMamba
from muse_adapter.layers.segments import segment_means
from tests.support.checkpoints import assert_equal, copy_of, randomised
from tests.support.golden import Golden
from tests.support.tolerances import assert_close

pytestmark = pytest.mark.usefixtures("torch_scan")

Q, B, T, W, C = 5, 3, 9, 4, 6
FIELDS: dict[str, Any] = dict(
    visual_width=C, text_width=C, hidden=8, heads=2, num_clips=4, max_frames=7, max_words=3
)
LENGTHS = (9, 6, 1)
MASK = torch.arange(T) < torch.tensor(LENGTHS)[:, None]
LABELS = torch.tensor([0, 0, 1, 2, 2])
RESIDUALS = pytest.mark.parametrize("residual", [None, "concat"])


def build(**fields: Any) -> MamFusion:
    return randomised(MamFusion(**{**FIELDS, **fields})).double().eval()


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def encode_text(model: MamFusion, words: Tensor, mask: Tensor | None = None) -> Tensor:
    sentence = None if model.config.residual is None else words.mean(1)
    return model.encode_text(words, mask, sentence=sentence)


def assert_codes_equal(got: VideoCode, expected: VideoCode) -> None:
    for ours, theirs in zip(got, expected, strict=True):
        assert (ours - theirs).abs().max() <= 1e-12 * theirs.abs().max().clamp(min=1)


@RESIDUALS
@pytest.mark.parametrize("max_frames", [4, 7, 20], ids=["segments", "some segments", "frames"])
def test_a_padded_batch_equals_single_videos(residual: str | None, max_frames: int) -> None:
    model, frames = build(residual=residual, max_frames=max_frames), draw(B, T, C)
    padded = torch.where(MASK[..., None], frames, math.nan).requires_grad_()
    code = model.encode_video(padded, MASK)
    singles = [model.encode_video(f[None, :n]) for f, n in zip(frames, LENGTHS, strict=True)]
    assert_codes_equal(code, VideoCode(*(torch.cat(part) for part in zip(*singles, strict=True))))
    (code.clips.sum() + code.video.sum()).backward()
    assert padded.grad is not None and padded.grad.isfinite().all()
    assert not padded.grad[~MASK].any()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_holes_in_a_mask_are_left_out() -> None:
    model, frames = build(), draw(1, T, C)
    mask = torch.tensor([[1, 0, 1, 1, 0, 0, 1, 1, 0]])
    got = model.encode_video(frames, mask)
    assert_codes_equal(got, model.encode_video(frames[:, mask[0].bool()]))


@RESIDUALS
def test_words_padding_and_batch_of_one(residual: str | None) -> None:
    model, words = build(residual=residual), draw(Q, W, C)
    mask = torch.arange(W) < torch.tensor([3, 1, 2, 3, 2])[:, None]
    sentence = None if residual is None else draw(Q, C)
    got = model.encode_text(torch.where(mask[..., None], words, math.nan), mask, sentence=sentence)
    for i, count in enumerate(mask.sum(1)):
        own = None if sentence is None else sentence[i : i + 1]
        alone = model.encode_text(words[i : i + 1, :count], sentence=own)
        assert alone.shape == (1, 8 if residual is None else 8 + C)
        assert_close(got[i], alone[0], "rounding")


def test_words_behind_the_longest_sentence_are_left_out() -> None:
    model, words = build(), draw(Q, W, C)
    assert_close(model.encode_text(words), model.encode_text(words[:, :3]), "rounding")


@RESIDUALS
def test_videos_and_sentences_without_content(residual: str | None) -> None:
    model = build(residual=residual)
    frames, words = draw(B, T, C).requires_grad_(), draw(Q, W, C).requires_grad_()
    mask, word_mask = MASK.clone(), torch.ones(Q, W)
    mask[1], word_mask[2] = False, 0
    code = model.encode_video(frames, mask)
    sentence = None if residual is None else draw(Q, C)
    query = model.encode_text(words, word_mask, sentence=sentence)
    assert not code.clips[1].any() and not code.video[1].any() and not query[2, -8:].any()
    scores = model.similarity(query, code)
    assert not scores[:, 1].any() and scores[:, 0].any()
    scores.sum().backward()
    for given in (frames, words):
        assert given.grad is not None and given.grad.isfinite().all()
    assert not frames.grad[1].any() and not words.grad[2].any()


@pytest.mark.parametrize("clip_weight", [0.7, 1.0])
@RESIDUALS
def test_one_dot_product_with_folded_vectors_is_the_score(
    residual: str | None, clip_weight: float
) -> None:
    model = build(residual=residual)
    code = model.encode_video(draw(B, T, C), MASK)
    query = encode_text(model, draw(Q, W, C))
    folded = code.folded(clip_weight=clip_weight)
    assert folded.shape == code.clips.shape
    products = torch.einsum("qd,bkd->qbk", F.normalize(query, dim=-1), folded)
    scores = model.similarity(query, code, clip_weight=clip_weight)
    assert_close(products.amax(2), scores, "rounding")
    clips = torch.einsum("qd,bkd->qbk", query, F.normalize(code.clips, dim=-1))
    assert torch.equal(products.argmax(2), clips.argmax(2))


def test_similarity_is_the_published_score() -> None:
    model = build()
    query, code = draw(Q, 8), VideoCode(draw(B, 4, 8), draw(B, 8))
    clip = F.cosine_similarity(query[:, None, None], code.clips[None], dim=-1).amax(2)
    frame = F.cosine_similarity(query[:, None], code.video[None], dim=-1)
    assert_close(model.similarity(query, code), 0.7 * clip + 0.3 * frame, "rounding")
    half = VideoCode(*(part.half() for part in code))
    assert model.similarity(query.half(), half).dtype == torch.float32


def test_concatenated_residual_starts_as_the_given_features() -> None:
    model = MamFusion(**FIELDS, residual="concat").double().eval()
    frames, words, sentence = draw(B, T, C), draw(Q, W, C), draw(Q, C)
    code = model.encode_video(frames, MASK)
    scores = model.similarity(model.encode_text(words, sentence=sentence), code, clip_weight=1)
    factors = []
    for i, length in enumerate(LENGTHS):
        spans = model.clip_spans(length)
        clips = torch.stack([frames[i, a : b + 1].mean(0) for a, b in spans.tolist()])
        given = F.cosine_similarity(sentence[:, None], clips[None], dim=-1).amax(1)
        factors.append(scores[:, i] / given)
    # One factor for each query, so the ranking of the videos is that of the features.
    assert ((factors[0] > 0) & (factors[0] <= 1)).all()
    for factor in factors[1:]:
        assert_close(factor, factors[0], "rounding")
    loss = model.loss(words, None, frames, MASK, LABELS, sentence=sentence)
    loss.total.backward()
    assert all(model.projections[name].weight.grad.any() for name in ("clips", "video"))


@pytest.mark.parametrize("length", [1, 3, 4, 9, 50])
def test_clip_spans(length: int) -> None:
    model = build()
    spans = model.clip_spans(length)
    assert spans.shape == (4, 2) and (spans[:, 0] <= spans[:, 1]).all()
    assert spans[0, 0] == 0 and (spans < length).all()
    frames = torch.arange(float(length))[None, :, None].expand(1, -1, C)
    means = spans.double().mean(1)
    got = segment_means(frames.double(), torch.tensor([length]), 4)
    assert_close(got[0, :, 0], means, "rounding")


@RESIDUALS
def test_loss_reaches_every_parameter(residual: str | None) -> None:
    model = build(residual=residual).train()
    sentence = None if residual is None else draw(Q, C)
    generator = torch.Generator().manual_seed(0)
    loss = model.loss(
        draw(Q, W, C), None, draw(B, T, C), MASK, LABELS, sentence=sentence, generator=generator
    )
    factors = {"clip_nce": 0.027, "frame_nce": 0.045, "query_diverse": 0.015}
    parts = loss._asdict()
    total = parts.pop("total")
    assert_close(total, sum(factors.get(k, 1.0) * v for k, v in parts.items()), "rounding")
    total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_gradient_checkpointing_changes_nothing() -> None:
    model, frames = build(), draw(B, T, C)
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        code = model.encode_video(frames, MASK)
        (code.clips.square().sum() + code.video.square().sum()).backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) > 100
    for first, second in zip(*gradients, strict=True):
        assert_close(second, first, "rounding")


def test_initialisation_and_decay() -> None:
    model = MamFusion(**FIELDS)
    randomised(model)
    model.reset_parameters()
    mixers = [module for module in model.modules() if isinstance(module, BiMamba)]
    assert len(mixers) == 4
    for mixer in mixers:
        dt = F.softplus(mixer.dt_proj.bias)
        assert (dt > 0.9e-3).all() and (dt < 0.11).all() and (mixer.D == 1).all()
        assert mixer.in_proj.weight.std() > 0.1
    assert model.word_branch.attention.query.weight.std() < 0.04
    assert not model.word_branch.attention.query.bias.any()
    names = {id(p): name for name, p in model.named_parameters()}
    groups = {g["name"]: {names[id(p)] for p in g["params"]} for g in param_groups(model, model)}
    decayed = groups["head.decay"]
    assert {n for n in names.values() if n.endswith(("A_log", ".D"))} == model.no_weight_decay()
    assert not decayed & model.no_weight_decay()
    assert not any("norm" in name or name.endswith("bias") for name in decayed)
    assert "clip_branch.mamba.0.mixer.in_proj.weight" in decayed


def test_save_and_load(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    model = build(residual="concat")
    model.save_pretrained(tmp_path)
    again = MamFusion.from_pretrained(tmp_path)
    assert again.config == model.config
    assert_equal(again.state_dict(), model.state_dict())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("query_encoder.self.key.bias"), "missing query_encoder.self.key.bias"),
        (lambda s: s.update(extra=torch.zeros(1)), "unexpected extra"),
        (lambda s: s.update({"v2t_fusion.other": torch.zeros(1)}), "unexpected v2t_fusion.other"),
        (
            lambda s: s.update({"clip_encoder_mamba.0.D": torch.zeros(3)}),
            r"clip_encoder_mamba.0.D must have shape \(16,\), got \(3,\)",
        ),
        (
            lambda s: s.update({"module.clip_encoder_mamba.0.D": torch.zeros(16)}),
            "duplicate clip_encoder_mamba.0.D",
        ),
        (
            lambda s: s.update({"clip_pos_embed.position_embeddings.weight": torch.zeros(3, 8)}),
            r"clip_pos_embed.position_embeddings.weight must have shape \(4, 8\), got \(3, 8\)",
        ),
    ],
    ids=["missing", "unknown", "unknown fusion", "shape", "duplicate", "few positions"],
)
def test_official_names_that_do_not_fit(golden, change, message: str) -> None:
    model, weights = official(golden("mamfusion_encoder"))
    before = copy_of(model)
    change(weights)
    with pytest.raises(ValueError, match=message):
        load_mamfusion_state_dict(model, weights)
    assert_equal(model.state_dict(), before)


def test_official_names(golden, recwarn) -> None:
    model, weights = official(golden("mamfusion_encoder"))
    aside = {n: weights.pop(n) for n in list(weights) if "_fusion." in n}
    never_used = {"v2t_fusion.vid_embed_proj.weight": torch.zeros(1)}
    load_mamfusion_state_dict(model, {f"module.{n}": v for n, v in (weights | never_used).items()})
    assert not recwarn.list
    with pytest.warns(UserWarning, match="8 tensors of the fusion over the batch"):
        load_mamfusion_state_dict(model, weights | aside)
    positions = "clip_pos_embed.position_embeddings.weight"
    assert torch.equal(model.clip_branch.embed.positions.weight, weights[positions][:4])


def official(file: Golden) -> tuple[MamFusion, dict[str, Tensor]]:
    fields = {**FIELDS, "text_width": 5, "max_frames": 9, "max_words": 6}
    return MamFusion(**fields).double(), file.weights()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: m.encode_video(draw(B, T, C + 1)), ValueError, "frames must have the width 6"),
        (lambda m: m.encode_text(draw(Q, W, C + 1)), ValueError, "words must have the width 6"),
        (lambda m: m.encode_video(draw(B, T)), ValueError, r"shape \(B, T, C\)"),
        (lambda m: m.encode_video(MASK), TypeError, "floating-point"),
        (lambda m: m.encode_video(draw(B, T, C), MASK[:1]), ValueError, "frame_mask must have"),
        (lambda m: m.encode_text(draw(Q, W, C), draw(Q, W)), ValueError, "only 0 and 1"),
        (
            lambda m: m.encode_text(draw(Q, W, C), sentence=draw(Q, C)),
            ValueError,
            "only then, got one with None",
        ),
        (lambda m: m.clip_spans(0), ValueError, "num_frames must be at least 1"),
        (lambda m: MamFusion(m.config, hidden=8), TypeError, "not both"),
        (lambda m: MamFusion(FIELDS), TypeError, "must be a MamFusionConfig, got dict"),
    ],
)
def test_errors(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(build())


def test_a_concatenated_residual_needs_sentences() -> None:
    with pytest.raises(ValueError, match="only then, got none with 'concat'"):
        build(residual="concat").encode_text(draw(Q, W, C))


def test_config() -> None:
    config = MamFusionConfig(visual_width=3, text_width=2, dropout=0)
    assert MamFusionConfig.from_json(config.to_json()) == config
    assert MamFusion(visual_width=3, text_width=2, hidden=8).config.hidden == 8


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"hidden": 9}, ValueError, "hidden must be divisible by heads, got 9 and 2"),
        ({"hidden": 0}, ValueError, "hidden must be at least 1"),
        ({"max_frames": 1 << 30}, ValueError, "max_frames must be at most"),
        ({"dropout": 1.0}, ValueError, r"dropout must be in \[0, 1\)"),
        ({"residual": "add"}, ValueError, "unknown residual 'add'"),
        ({"residual": "concat", "text_width": 5}, ValueError, "equal, got 6 and 5"),
        ({"fusion": 1}, TypeError, "fusion must be a bool"),
    ],
)
def test_config_errors(fields: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        MamFusionConfig(**{**FIELDS, **fields})

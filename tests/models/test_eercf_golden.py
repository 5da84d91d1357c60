"""EERCF against the golden files of the published formulas: values, losses and all gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from muse_adapter.layers.interaction import TextGatedInteraction, token_similarity
from muse_adapter.models.eercf import EERCF
from muse_adapter.models.eercf_checkpoint import load_eercf_state_dict
from muse_adapter.models.eercf_objective import EercfScores, eercf_loss
from tests.support.golden import Golden

DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)


def build(file: Golden, dtype: torch.dtype, **options) -> tuple[EERCF, dict[str, Tensor]]:
    """Build the file's scorer, and its inputs with gradients."""
    scorer = EERCF(16, 5, **options).to(dtype)
    load_eercf_state_dict(scorer, file.weights())
    inputs = file.inputs(dtype)
    mask = inputs.pop("mask")
    return scorer, {"mask": mask, **{name: x.requires_grad_() for name, x in inputs.items()}}


def features(inputs: dict[str, Tensor]) -> list[Tensor]:
    return [inputs[name] for name in ("text", "frames", "temporal", "patches")]


def check_gradients(file: Golden, scorer: EERCF, inputs: dict[str, Tensor]) -> None:
    keys = file.keys("grad.")
    assert keys
    for key in keys:
        name = key.removeprefix("grad.")
        leaf = inputs[name[3:]] if name.startswith("in.") else getattr(scorer, name)
        file.check(key, leaf.grad)


@DTYPES
def test_scores_and_gradients(golden, dtype: torch.dtype) -> None:
    """Gates without the mask, as published; the video vector with it."""
    file = golden("eercf_tib")
    scorer, inputs = build(file, dtype)
    scores = scorer.scores(*features(inputs))
    masked = scorer.scores(*features(inputs), inputs["mask"], only=["video"])
    assert masked._replace(video=None) == EercfScores(None, None, None, None, None)
    scores = scores._replace(video=masked.video)
    scale = inputs["logit_scale"].exp()
    total = torch.zeros((), dtype=dtype)
    for name, score in scores._asdict().items():
        file.check(f"out.{name}", scale * score)
        total = total + (scale * score * file.tensor(f"cot.{name}", dtype)).sum()
    total.backward()
    check_gradients(file, scorer, inputs)


@DTYPES
def test_gram_form(golden, dtype: torch.dtype) -> None:
    """As many texts as frames: the scores come from the Gram matrices of the frames."""
    file = golden("eercf_tib")
    scorer, inputs = build(file, dtype)
    text, *others = features(inputs)
    scores = scorer.scores(torch.cat([text, text]), *others)
    scale = inputs["logit_scale"].exp()
    for name in ("frame_weak", "patch_weak", "frame", "patch"):
        first, second = (scale * getattr(scores, name)).chunk(2)
        file.check(f"out.{name}", first)
        file.check(f"out.{name}", second)


@DTYPES
def test_masked_scores(golden, dtype: torch.dtype) -> None:
    file = golden("eercf_tib")
    scorer, inputs = build(file, dtype)
    scorer.frame_logit_weight = None  # the file's masked scores are without it
    scores = scorer.scores(*features(inputs), inputs["mask"])
    keys = [key for key in file.keys("out.masked.") if key.split(".")[-1] in EercfScores._fields]
    assert len(keys) >= 4
    for key in keys:
        file.check(key, inputs["logit_scale"].exp() * getattr(scores, key.split(".")[-1]))


@DTYPES
@pytest.mark.parametrize("part", ["out", "out.masked"])
def test_gates_and_pooled_vectors(golden, dtype: torch.dtype, part: str) -> None:
    file = golden("eercf_tib")
    scorer, inputs = build(file, dtype)
    text, frames, temporal, patches = features(inputs)
    mask = None if part == "out" else inputs["mask"]
    frame, patch = TextGatedInteraction(0.1), TextGatedInteraction(0.01)
    tokens = patches.flatten(1, 2)
    token_mask = None if mask is None else mask.repeat_interleave(3, 1)
    results = {
        "gate_frame": frame.gate(text, frames, mask),
        "pooled_frame": frame.pool(text, frames, temporal, mask),
        "gate_patch": patch.gate(text, tokens, token_mask),
        "pooled_patch": patch.pool(text, tokens, mask=token_mask),
        "coarse": scorer.recall_video(temporal, inputs["mask"]),
    }
    scale = inputs["logit_scale"].exp()
    results["frame"] = scale * frame(text, frames, temporal, mask)
    results["patch"] = scale * patch(text, tokens, mask=token_mask)
    results["patch_weak"] = scale * token_similarity(text, tokens, token_mask)
    if mask is not None:
        results["frame_weak"] = scale * token_similarity(text, frames, mask)
    checked = [name for name in results if f"{part}.{name}" in file]
    assert len(checked) >= 7
    for name in checked:
        file.check(f"{part}.{name}", results[name])


@DTYPES
def test_objective(golden, dtype: torch.dtype) -> None:
    """The video vector is of the real frames and the gates of all frames, as published."""
    file = golden("eercf_train")
    scorer, inputs = build(file, dtype)
    mask = inputs["mask"].bool()
    scores, vectors = scorer.paired(*features(inputs), None)
    masked, masked_vectors = scorer.paired(*features(inputs), mask)
    scores = scores._replace(video=masked.video)
    vectors = vectors._replace(video=masked_vectors.video)
    loss = eercf_loss(scores, vectors, inputs["logit_scale"], scorer.weights)
    for name, value in loss._asdict().items():
        file.check(f"out.loss.{name}", value)
    for name in ("video", "frame_weak", "patch_weak", "frame"):
        file.check(f"out.{name}", inputs["logit_scale"].exp() * getattr(scores, name))
    loss.total.backward()
    check_gradients(file, scorer, inputs)


@DTYPES
def test_every_weight(golden, dtype: torch.dtype) -> None:
    """The gated patches, which have no weight as published, and each constraint alone."""
    file = golden("eercf_train")
    for i, name in enumerate(("video", "frame", "patch")):
        only = tuple(float(i == j) for j in range(3))
        scorer, inputs = build(file, dtype, strong_weights=(0.0, 1.0), intra_weights=only)
        mask = inputs["mask"] if name == "video" else None
        scores, _ = scorer.paired(*features(inputs), mask if mask is None else mask.bool())
        loss = scorer.loss(*features(inputs), mask, logit_scale=inputs["logit_scale"])
        file.check(f"out.pearson.{name}", loss.intra)
        if mask is None:
            file.check("out.patch", inputs["logit_scale"].exp() * scores.patch)


@DTYPES
def test_published_ranking(golden, dtype: torch.dtype) -> None:
    file = golden("eercf_two_stage")
    inputs = file.inputs(dtype)
    scores = EercfScores(
        video=inputs["video"],
        frame_weak=inputs["frame_weak"],
        patch_weak=inputs["patch_weak"],
        frame=inputs["frame"],
        patch=None,
    )
    file.check("out.fine", EERCF(16).rerank_score(scores))

"""EERCF's module: what may not change its scores, its objective, its state dicts, its errors."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from muse_adapter import EERCF, load_eercf_state_dict
from muse_adapter.layers import pairs
from muse_adapter.models.eercf_objective import EercfScores
from tests.support.tolerances import assert_close

A, B, T, P, D = 3, 4, 5, 2, 8
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 1, 0], [0, 0, 0, 0, 1], [1, 1, 1, 0, 0]])
SCALE = torch.tensor(2.0, dtype=torch.float64)


def features(texts: int = A, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    shapes = ((texts, D), (B, T, D), (B, T, D), (B, T, P, D))
    return [torch.randn(shape, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]


def shaken(num_frames: int | None = T, **options) -> EERCF:
    scorer = EERCF(D, num_frames, **options).double()
    for parameter in scorer.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return scorer


def tensors(scores: EercfScores) -> list[Tensor]:
    return [score for score in scores if score is not None]


def test_video_without_a_real_frame_scores_0() -> None:
    mask = MASK.clone()
    mask[2] = 0
    inputs, scorer = features(), shaken()
    for tensor in inputs[1:]:
        tensor.data[2] = math.nan
    scores = scorer.scores(*inputs, mask)
    for score in tensors(scores):
        assert score.shape == (A, B) and (score[:, 2] == 0).all() and score.isfinite().all()
    sum(score.sum() for score in scores).backward()
    for tensor in inputs:
        assert tensor.grad.isfinite().all()
    assert all((tensor.grad[2] == 0).all() for tensor in inputs[1:])
    assert all(parameter.grad.isfinite().all() for parameter in scorer.parameters())
    inputs = [
        tensor.detach().requires_grad_() for tensor in (torch.randn(B, D).double(), *inputs[1:])
    ]
    scorer.loss(*inputs, mask, logit_scale=SCALE).total.backward()
    for tensor in inputs:
        assert tensor.grad.isfinite().all()
    assert all((tensor.grad[2] == 0).all() for tensor in inputs[1:])


def test_order_of_frames_and_scale_change_nothing() -> None:
    inputs, scorer = features(), shaken(None)
    expected = scorer.scores(*inputs, MASK)
    order = torch.randperm(T)
    turned = [inputs[0] * 3e4, *(1e-4 * tensor[:, order] for tensor in inputs[1:])]
    for got, score in zip(scorer.scores(*turned, MASK[:, order]), expected, strict=True):
        assert_close(got, score)


def test_padding_and_batch_change_nothing() -> None:
    """Every video alone, without its masked frames, and texts one by one."""
    inputs, scorer = features(), shaken(None)
    expected = scorer.scores(*inputs, MASK)
    for b in range(B):
        alone = [tensor[b : b + 1, MASK[b].bool()] for tensor in inputs[1:]]
        for got, score in zip(scorer.scores(inputs[0], *alone), expected, strict=True):
            assert_close(got, score[:, b : b + 1])
        for got, score in zip(scorer.scores(inputs[0][1:2], *alone), expected, strict=True):
            assert_close(got, score[1:2, b : b + 1])


def test_without_patches() -> None:
    text, frames, fused, patches = features(B)
    scorer = shaken()
    whole, without = scorer.scores(text, frames, fused, patches), scorer.scores(text, frames, fused)
    assert without.patch is None and without.patch_weak is None
    for got, expected in zip(without, whole, strict=True):
        assert got is None or torch.equal(got, expected)
    assert_close(
        scorer.rerank_score(without),
        0.5 * whole.video + 0.8 * whole.frame_weak + 0.2 * whole.frame,
    )
    other = shaken(weak_weights=(0.5, 0.5, 0.0))
    other.load_state_dict(scorer.state_dict())
    loss = scorer.loss(text, frames, fused, logit_scale=SCALE)
    expected = other.loss(text, frames, fused, patches, logit_scale=SCALE)
    assert_close(torch.stack(loss), torch.stack(expected))
    assert scorer.trains_patches and not other.trains_patches


def test_rerank_computes_what_it_needs() -> None:
    inputs, scorer = features(), shaken()
    whole = scorer.scores(*inputs, MASK)
    assert_close(scorer.rerank(*inputs, MASK), scorer.rerank_score(whole))
    assert scorer.scores(*inputs, MASK, only=["frame"])._replace(frame=None) == (None,) * 5


def test_recall_vectors_have_the_video_score() -> None:
    inputs, scorer = features(), shaken()
    video = scorer.recall_text(inputs[0]) @ scorer.recall_video(inputs[2], MASK).T
    assert_close(video, scorer.scores(*inputs, MASK).video)


def test_gate_has_no_gradient_in_training() -> None:
    text, frames, fused, _ = features(B)
    scorer = shaken(weak_weights=(1.0, 0.0, 0.0))
    scorer.loss(text, frames, fused, logit_scale=SCALE).strong.backward()
    assert frames.grad is None or (frames.grad == 0).all()
    assert (fused.grad != 0).any() and (text.grad != 0).any()


def test_batch_of_one() -> None:
    inputs = [tensor[:1].detach().requires_grad_() for tensor in features(B)]
    loss = shaken().loss(*inputs, logit_scale=SCALE)
    assert loss.weak.item() == loss.strong.item() == 0
    assert loss.intra.item() == pytest.approx(2 * 0.14 * D)
    loss.total.backward()
    assert all(tensor.grad is None or (tensor.grad == 0).all() for tensor in inputs)


def test_gradients_by_finite_differences() -> None:
    text, frames, fused, _ = features(B)
    inputs, scorer = (
        [x[:2, ..., :2, :].detach().requires_grad_() for x in (frames, fused)],
        shaken(2),
    )

    def loss(frames: Tensor, fused: Tensor) -> Tensor:
        return scorer.loss(
            text[:2].detach(), frames, fused, None, MASK[:2, :2], logit_scale=SCALE
        ).weak

    assert torch.autograd.gradcheck(loss, inputs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    inputs, scorer = features(B, dtype), shaken().float()
    wide = [tensor.float() for tensor in inputs]
    expected = scorer.scores(*wide, MASK)
    loss = scorer.loss(*wide, MASK, logit_scale=SCALE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = scorer.scores(*inputs, MASK)
        half = scorer.loss(*inputs, MASK, logit_scale=SCALE)
    for score, other in zip(got, expected, strict=True):
        assert score.dtype == torch.float32
        assert_close(score, other)
    assert_close(torch.stack(half), torch.stack(loss))


@pytest.mark.slow
def test_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one graph, in blocks too: two of videos or texts, since each is traced anew."""
    monkeypatch.setattr(pairs, "_CPU_BLOCK", 2 * T * D)
    inputs, scorer = features(B), shaken()
    expected = scorer.loss(*inputs, MASK, logit_scale=SCALE)
    compiled = torch.compile(scorer.loss, fullgraph=True, backend="aot_eager")
    got = compiled(*inputs, MASK, logit_scale=SCALE)
    assert_close(torch.stack(got), torch.stack(expected))
    gradients = torch.autograd.grad(got.total, inputs)
    for gradient, other in zip(gradients, torch.autograd.grad(expected.total, inputs), strict=True):
        assert_close(gradient, other, "gradients")


def test_official_names() -> None:
    scorer, state = EERCF(D, T), {"clip.visual.proj": torch.zeros(3)}
    state["module.global_mat_weight"] = torch.randn(D, D)
    state["module.frame_logit_weight"] = torch.randn(T, T)
    load_eercf_state_dict(scorer, state)
    assert torch.equal(scorer.global_mat_weight, state["module.global_mat_weight"])
    assert torch.equal(scorer.frame_logit_weight, state["module.frame_logit_weight"])
    with pytest.raises(ValueError, match="unexpected frame_logit_weight"):
        load_eercf_state_dict(EERCF(D), state)
    wrong = {"global_mat_weight": torch.zeros(2, 2)}
    with pytest.raises(ValueError, match=r"missing frame_logit_weight(.|\n)*must have shape"):
        load_eercf_state_dict(scorer, wrong)
    assert torch.equal(scorer.global_mat_weight, state["module.global_mat_weight"])


def call(scorer: EERCF | None = None, **changed) -> Callable[[], object]:
    def run() -> object:
        names = ("text", "frames", "fused", "patches")
        given = dict(zip(names, features(), strict=True)) | changed
        return (scorer or EERCF(D).double()).scores(**given)

    return run


WRONG: dict[str, tuple[Callable[[], object], str]] = {
    "fused": (call(fused=torch.zeros(B, T + 1, D)), r"fused must have shape \(B, T, D\).*T = 5"),
    "patches": (call(patches=torch.zeros(B, 2, P, D)), "patches must have shape .*T = 5"),
    "width": (call(EERCF(D + 1)), "this scorer is for D = 9, got 8"),
    "frames": (call(EERCF(D, 3)), "this scorer is for T = 3, got 5"),
    "mask": (call(frame_mask=torch.ones(B, 2)), r"frame_mask must have shape \(4, 5\)"),
    "only": (call(only=["frames"]), "only must have names of .* got {'frames'}"),
    "temperature": (lambda: EERCF(D, frame_temperature=0.0), "must be positive"),
    "one text each": (
        lambda: EERCF(D).double().loss(*features(2), logit_scale=SCALE),
        "one text for each video, got 2 and 4",
    ),
    "no weight": (
        lambda: EERCF(D).rerank_score(EercfScores(*[None] * 4, torch.zeros(1, 1))),
        "none of the scores",
    ),
}


@pytest.mark.parametrize(("run", "message"), WRONG.values(), ids=WRONG.keys())
def test_refuses(run: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run()


@pytest.mark.parametrize("block", [1, 2 * T * D], ids=["one video", "two videos"])
def test_blocks_of_videos_change_nothing(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores, the objective, the stored vectors and all gradients."""
    scorer = shaken(intra_weights=(1.0, 1.0, 1.0))
    inputs = features(B)

    def run() -> list[Tensor]:
        leaves = [*inputs, *scorer.parameters()]
        loss = scorer.loss(*inputs, MASK, logit_scale=SCALE)
        scores = torch.stack(scorer.scores(*inputs, MASK))
        gradients = torch.autograd.grad(loss.total + scores.sin().sum(), leaves)
        return [torch.stack(loss), scores, scorer.recall_video(inputs[2], MASK), *gradients]

    expected = run()
    monkeypatch.setattr(pairs, "_CPU_BLOCK", block)
    for got, whole in zip(run(), expected, strict=True):
        assert_close(got, whole)


def test_no_copy_of_the_tokens_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "_CPU_BLOCK", 1)
    scorer = shaken(intra_weights=(1.0, 1.0, 1.0))
    inputs = features(B)
    known = {
        tensor.untyped_storage().data_ptr() for tensor in [*inputs, *scorer.parameters(), SCALE]
    }
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in known:
            kept.append(tensor)
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        scorer.scores(*inputs, MASK)
        scorer.loss(*inputs, MASK, logit_scale=SCALE)
    assert max(tensor.numel() for tensor in kept) == B * D

"""Reranking of candidates in place against `rerank`, which normalises all features first."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from muse_adapter import EERCF
from muse_adapter.layers.pairs import unit
from muse_adapter.ops import rows, use_backend
from muse_adapter.retrieval import FeatureRows
from tests.support.rows import ConvertedRows
from tests.support.tolerances import assert_close

K, T, P, D = 5, 4, 3, 16
MASK = torch.tensor([[1, 1, 1, 1], [1, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0], [1, 1, 0, 0]])
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
GATED_PATCHES = (0.5, 0.8, 0.2, 0.2, 0.3)

pytestmark = pytest.mark.usefixtures("nan_memory")


@pytest.fixture(params=["one group", "groups"], autouse=True)
def group_size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "groups":
        monkeypatch.setattr(rows, "_GROUP_NUMBERS", 2 * T * D)


def features(dtype: torch.dtype) -> list[Tensor]:
    """Draw a text, frames, fused features and patches."""
    wide = torch.promote_types(dtype, torch.float32)
    drawn = [torch.randn(shape) for shape in ((K, T, D), (K, T, D), (K, T, P, D))]
    return [torch.randn(D, dtype=wide), *(tensor.to(dtype) for tensor in drawn)]


def shaken(dtype: torch.dtype, **options) -> EERCF:
    scorer = EERCF(D, T, **options).to(torch.promote_types(dtype, torch.float32))
    for parameter in scorer.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return scorer


def compare(scorer: EERCF, inputs: list[Tensor | None], mask: Tensor | None = None) -> Tensor:
    """Compare lists and tensors of candidates with `rerank`, and return the scores."""
    text, *given = inputs
    expected = scorer.rerank(text[None], *given, mask)[0].detach()
    with torch.no_grad():
        got = scorer.rerank_candidates(text, *given, mask)
        lists = [None if tensor is None else list(tensor) for tensor in (*given, mask)]
        one_by_one = scorer.rerank_candidates(text, *lists)
    assert not got.requires_grad and got.dtype == expected.dtype
    assert_close(got, expected)
    assert torch.equal(got, one_by_one)
    return got


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mask", [None, MASK], ids=["no mask", "mask"])
@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_equals_rerank(dtype: torch.dtype, mask: Tensor | None, backend: str) -> None:
    if backend == "numba":
        pytest.importorskip("numba", reason="needs muse-adapter[cpu]")
    inputs = features(dtype)
    with use_backend(backend):
        compare(shaken(dtype), inputs, mask)
        compare(shaken(dtype, rerank_weights=GATED_PATCHES), inputs, mask)
        compare(shaken(dtype), [*inputs[:3], None], mask)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_masked_features_may_hold_anything(dtype: torch.dtype) -> None:
    scorer, inputs = shaken(dtype, rerank_weights=GATED_PATCHES), features(dtype)
    expected = compare(scorer, inputs, MASK)
    for value in (math.nan, math.inf, torch.finfo(dtype).max, 0.0):
        for tensor in inputs[1:]:
            tensor[~MASK.bool()] = value
        assert_close(compare(scorer, inputs, MASK), expected)
    assert expected[3] == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12, 1e30], ids=str)
def test_scale_changes_nothing(dtype: torch.dtype, scale: float) -> None:
    scorer, inputs = shaken(dtype, rerank_weights=GATED_PATCHES), features(dtype)
    expected = compare(scorer, inputs)
    # Of one candidate alone, too, and of one token.
    for place in (..., 2, (1, 1)):
        scaled = [inputs[0], *(tensor.clone() for tensor in inputs[1:])]
        for tensor in scaled[1:]:
            tensor[place] *= scale
        assert_close(compare(scorer, scaled), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_zero_tokens(dtype: torch.dtype) -> None:
    inputs = features(dtype)
    for tensor in inputs[1:]:
        tensor[0, 1] = tensor[2] = 0
    scores = compare(shaken(dtype, rerank_weights=GATED_PATCHES), inputs)
    assert scores[2] == 0 and scores.isfinite().all()


@pytest.mark.parametrize("eps", [1e-3, 1e-5, 0.0], ids=str)
def test_tokens_that_nearly_cancel(eps: float) -> None:
    """Sums keep what rounding leaves of them; those that vanish score 0."""
    centre = unit(torch.randn(K, 1, D, dtype=torch.float64))
    fused = torch.cat([centre, eps * torch.randn(K, 1, D) - centre], 1)
    frames = torch.randn(K, 1, D, dtype=torch.float64).expand(K, 2, D)
    scorer = EERCF(D, rerank_weights=(0.5, 0.0, 0.0, 0.5, 0.0))
    text = torch.randn(D, dtype=torch.float64)
    exact = scorer.double().rerank(text[None], frames, fused)[0]
    with torch.no_grad():
        got = scorer.rerank_candidates(text, frames, fused)
        torch.testing.assert_close(got, exact, rtol=0, atol=1e-14 / (eps or 1))
        text, frames, fused = text.float(), frames.float(), fused.float()
        rounded = scorer.float().rerank_candidates(text, frames, fused)
    torch.testing.assert_close(rounded.double(), exact, rtol=0, atol=1e-6 / (eps or 1))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_rows_read_by_address(dtype: torch.dtype, backend: str) -> None:
    """Rows of a lazy `FeatureRows`, of an array whose rows do not follow each other."""
    if backend == "numba":
        pytest.importorskip("numba", reason="needs muse-adapter[cpu]")
    scorer = shaken(dtype, rerank_weights=GATED_PATCHES)
    text, *given = features(dtype)
    named = dict(zip(("frames", "fused", "patches"), given, strict=True))
    positions = [4, 0, 0, 3]
    with torch.no_grad(), use_backend(backend):
        for step in (1, 2):
            apart = {name: torch.stack([x] * step, 1)[:, 0] for name, x in named.items()}
            got = scorer.rerank_candidates(text, **FeatureRows(apart, lazy=True)[positions])
            lists = {name: [x[i] for i in positions] for name, x in named.items()}
            assert torch.equal(got, scorer.rerank_candidates(text, **lists))


@pytest.mark.parametrize("mask", [None, MASK], ids=["no mask", "mask"])
def test_a_folded_text_is_not_folded_again(mask: Tensor | None) -> None:
    scorer, inputs = shaken(torch.float32), features(torch.float32)
    (folded,) = scorer.recall_text(inputs[0][None]).detach()
    with torch.no_grad():
        expected = scorer.rerank_candidates(*inputs, mask)
        assert_close(scorer.rerank_candidates(*inputs, mask, recall_text=folded), expected)
        other = scorer.rerank_candidates(*inputs, mask, recall_text=-folded)
        video = scorer.scores(inputs[0][None], *inputs[1:], mask).video[0]
    assert_close(other, expected - 2 * scorer.rerank_weights[0] * video)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("mask", [None, MASK], ids=["no mask", "mask"])
def test_patches_in_int8(dtype: torch.dtype, mask: Tensor | None) -> None:
    """They are integers at any scale: cosines do not ask for it."""
    scorer, inputs = shaken(dtype, rerank_weights=GATED_PATCHES), features(dtype)
    patches = (40 * torch.randn(K, T, P, D)).to(torch.int8)
    expected = scorer.rerank(inputs[0][None], *inputs[1:3], patches.float(), mask)[0].detach()
    for given in (patches, list(patches)):
        assert_close(scorer.rerank_candidates(*inputs[:3], given, mask).detach(), expected)
        with torch.no_grad():
            assert_close(scorer.rerank_candidates(*inputs[:3], given, mask), expected)


def test_lazy_rows_of_integers_are_named_by_their_type() -> None:
    text, frames, fused, _ = features(torch.float32)
    rows = FeatureRows({"frames": frames.to(torch.int16), "fused": fused}, lazy=True)[[0, 2]]
    with pytest.raises(TypeError, match=r"frames must be a .* tensor, got torch\.int16"):
        EERCF(D).rerank_candidates(text, **rows)


def test_a_table_is_asked_for_once() -> None:
    scorer = shaken(torch.float16, rerank_weights=GATED_PATCHES)
    text, *given = features(torch.float16)
    rows = [ConvertedRows(tensor.float(), [4, 0, 0]) for tensor in given]
    with torch.no_grad():
        got = scorer.rerank_candidates(text, *rows)
        assert_close(got, scorer.rerank_candidates(text, *(x[[4, 0, 0]] for x in given)))
    assert [one.asked for one in rows] == [1, 1, 1]


def test_the_text_is_folded_only_for_a_score_that_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, fold = [], EERCF.recall_text
    monkeypatch.setattr(EERCF, "recall_text", lambda *a: calls.append(a) or fold(*a))
    inputs = features(torch.float32)
    with torch.no_grad():
        shaken(torch.float32, rerank_weights=(0, 0.8, 0.2, 0.2, 0)).rerank_candidates(*inputs)
        assert not calls
        shaken(torch.float32).rerank_candidates(*inputs)
    assert len(calls) == 1


def test_gradients_are_those_of_rerank() -> None:
    scorer, inputs = shaken(torch.float64), features(torch.float64)
    leaves = [tensor.requires_grad_() for tensor in inputs] + list(scorer.parameters())
    got = scorer.rerank_candidates(*inputs, MASK)
    expected = scorer.rerank(inputs[0][None], *inputs[1:], MASK)[0]
    gradients = [torch.autograd.grad(scores.sum(), leaves) for scores in (got, expected)]
    for gradient, other in zip(*gradients, strict=True):
        assert torch.equal(gradient, other)


def call(**changed: object) -> Callable[[], object]:
    def run() -> object:
        named = zip(("text", "frames", "fused", "patches"), features(torch.float32), strict=True)
        with torch.no_grad():
            return EERCF(D, T).rerank_candidates(**(dict(named) | changed))

    return run


WRONG: dict[str, tuple[Callable[[], object], str]] = {
    "candidates": (call(fused=torch.zeros(2, T, D)), "features of all candidates.*'fused': 2"),
    "none": (call(frames=[], fused=[], patches=None), "at least one, got"),
    "weights": (
        torch.no_grad()(
            lambda: EERCF(D, rerank_weights=(0, 0, 1, 0, 1)).rerank_candidates(
                *features(torch.float32)[:3]
            )
        ),
        "none of the scores that are there has a weight",
    ),
    "width": (call(text=torch.zeros(D + 1)), "D = 17"),
    "frames": (call(frames=torch.zeros(K, 2, D)), "T = 2"),
    "folded text": (call(recall_text=torch.zeros(D + 1)), r"recall_text.*D = 16"),
    "shapes": (
        call(patches=[torch.zeros(T, 1 + i, D) for i in range(K)]),
        r"keys must be of one shape.*keys\[1\]",
    ),
    "mask": (call(frame_mask=torch.full((K, T), 2)), "frame_mask must hold only 0 and 1"),
}


@pytest.mark.parametrize(("run", "message"), WRONG.values(), ids=WRONG.keys())
def test_refuses(run: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run()


def test_weights_of_zero_and_autocast() -> None:
    """A score without a weight may be NaN; autocast narrows nothing."""
    scorer, (text, frames, fused, _) = EERCF(D, rerank_weights=(0, 1, 0, 0, 0)), features(DTYPES[1])
    fused[0] = math.nan
    with torch.no_grad():
        expected = scorer.rerank(text[None], frames, fused)[0]
        for autocast in (False, True):
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                got = scorer.rerank_candidates(text, frames, fused)
            assert got.dtype == torch.float32 and bool(got.isfinite().all())
            assert_close(got, expected)

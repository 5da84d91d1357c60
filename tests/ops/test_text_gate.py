"""Scores of a text and stored tokens against plain formulas in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F

from muse_adapter.ops import backends, text_gated_scores, use_backend
from muse_adapter.ops import rows as rows_module
from tests.support.rows import MadeWhenAsked

BACKENDS = [
    pytest.param(name, marks=[pytest.mark.skipif(bool(status.reason), reason=str(status.reason))])
    for name, status in backends("cpu").items()
    if name in ("torch", "numba")
]
EACH = pytest.mark.parametrize("backend", BACKENDS)
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int8]

pytestmark = pytest.mark.usefixtures("nan_memory")


def draw(dtype: torch.dtype, *shape: int) -> Tensor:
    return (20 * torch.randn(shape)).to(dtype)


def plain(
    keys: Tensor,
    values: Tensor | None,
    text: Tensor,
    mean_query: Tensor,
    mask: Tensor | None = None,
    mix: Tensor | None = None,
    weak_temperature: float = 0.01,
    gate_temperature: float = 0.1,
    weights: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> tuple[Tensor, Tensor]:
    """Score candidate by candidate, token by token, in float64."""
    scores, ranges = [], []
    text = F.normalize(text.double(), dim=0, eps=1e-99)
    for k in range(len(keys)):
        valid = torch.ones(keys[k][..., 0].numel(), dtype=torch.bool) if mask is None else mask[k]
        tokens = keys[k].double().flatten(0, -2)
        norms = tokens.norm(dim=1)[valid].tolist()
        sims = F.normalize(tokens, dim=1) @ text
        logits = sims.masked_fill(~valid, -math.inf)
        if weak_temperature:
            shares = (logits / weak_temperature).masked_fill(~valid, -math.inf).softmax(0)
        else:
            shares = (logits == logits.max()).double() / (logits == logits.max()).sum()
        shares = shares if mix is None else mix.double().T @ shares
        terms = [(shares * sims)[valid].sum()]
        if values is not None:
            tokens = values[k].double().flatten(0, -2)
            norms += tokens.norm(dim=1)[valid].tolist()
            tokens = F.normalize(tokens, dim=1)[valid]
            gate = (sims[valid] / gate_temperature).softmax(0)
            terms.append(F.normalize(gate @ tokens, dim=0) @ text)
            terms.append(F.normalize(tokens.sum(0), dim=0) @ mean_query.double())
        score = sum(w * term for w, term in zip(weights, terms, strict=False))
        scores.append(score if valid.any() else torch.zeros(()).double())
        norms += [1.0] * (not valid.all())
        ranges.append([min(norms), max(norms)])
    return torch.stack(scores), torch.tensor(ranges, dtype=torch.float64)


def check(
    keys: Any, values: Any, backend: str, bound: float, mask: Tensor | None = None, **options: Any
) -> None:
    """Compare with the plain formulas, term by term and in a sum."""
    first = keys[0]
    kind = torch.float64 if first.dtype == torch.float64 else torch.float32
    text = torch.randn(first.shape[-1], dtype=kind) * 10.0 ** int(torch.randint(-30, 30, ()))
    mean_query = torch.randn(first.shape[-1], dtype=kind)
    stacked = [None if rows is None else torch.stack(list(rows)) for rows in (keys, values)]
    terms = [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (0.5, -0.8, 0.2)]
    for weights in terms[:1] if values is None else terms:
        arguments = {"mask": mask, "weights": weights, **options}
        got = text_gated_scores(keys, values, text, mean_query, backend=backend, **arguments)
        expected = plain(*stacked, text, mean_query, **arguments)
        for ours, exact in zip(got, expected, strict=True):
            assert ours.dtype == kind
            torch.testing.assert_close(ours.double(), exact, rtol=bound, atol=bound * 10)


def bound_of(dtype: torch.dtype) -> float:
    return 1e-13 if dtype == torch.float64 else 2e-6


@EACH
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [16, 48, 20])
@pytest.mark.parametrize("shape", [(1,), (7,), (3, 5), (18,)], ids=str)
def test_scores(backend: str, dtype: torch.dtype, width: int, shape: tuple[int, ...]) -> None:
    keys, values = draw(dtype, 9, *shape, width), draw(dtype, 9, *shape, width)
    bound = bound_of(dtype)
    check(keys, values, backend, bound)
    check([keys[4], keys[0], keys[8]], [values[1], values[1], values[2]], backend, bound)
    check(keys.transpose(0, 1) if len(shape) > 1 else keys[::2], None, backend, bound)


@EACH
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mixed", [False, True], ids=["no mix", "mix"])
@pytest.mark.parametrize("tokens", [7, 35])
@pytest.mark.parametrize("temperature", [0.0, 0.01, math.inf], ids=str)
def test_masks_mixes_and_temperatures(
    backend: str, dtype: torch.dtype, mixed: bool, tokens: int, temperature: float
) -> None:
    """Masked tokens hold what would be seen; a candidate has no token, another has zeros."""
    keys, values = draw(dtype, 6, tokens, 32), draw(dtype, 6, tokens, 32)
    mask = torch.rand(6, tokens) > 0.3
    mask[1], mask[3, :16], mask[2, 0] = False, False, True
    for rows in (keys, values):
        rows[~mask] = torch.nan if dtype.is_floating_point else 127
        rows[2, 0] = 0
    mix = torch.eye(tokens) + 0.1 * torch.randn(tokens, tokens) if mixed else None
    mix = mix.double() if mixed and dtype == torch.float64 else mix
    options = {"mix": mix, "weak_temperature": temperature}
    zeroed = [rows.clone() for rows in (keys, values)]
    for rows in zeroed:
        rows[~mask] = 0
    check(*zeroed, backend, bound_of(dtype), mask, **options)
    text, query = torch.randn(2, 32, dtype=torch.promote_types(zeroed[0].dtype, torch.float32))
    both = [
        text_gated_scores(*rows, text, query, mask=mask, backend=backend, **options)
        for rows in ((keys, values), zeroed)
    ]
    for ours, expected in zip(*both, strict=True):
        assert torch.equal(ours, expected)
    assert both[0][0][1] == 0


@EACH
def test_groups_and_threads_change_nothing(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    keys, values, text = *torch.randn(2, 40, 60, 512).half(), torch.randn(512)
    expected = text_gated_scores(keys, values, text, backend=backend)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        got = text_gated_scores(list(keys), values, text, backend=backend)
    finally:
        torch.set_num_threads(threads)
    monkeypatch.setattr(rows_module, "_GROUP_NUMBERS", 1)
    for one in (got, text_gated_scores(keys, values, text, backend=backend)):
        for ours, theirs in zip(one, expected, strict=True):
            torch.testing.assert_close(ours, theirs)


@EACH
def test_special_values_of_half_precision(backend: str) -> None:
    """The largest and smallest numbers are exact; norms say where scores do not hold."""
    special = [65504.0, 2.0**-24, -(2.0**-14), -torch.inf, torch.nan]
    keys = torch.zeros(len(special), 1, 16, dtype=torch.float16)
    keys[:, 0, 3] = torch.tensor(special)
    scores, norms = text_gated_scores(keys, None, torch.full((16,), 0.25), backend=backend)
    expected = torch.tensor([0.25, 0.25, -0.25])
    torch.testing.assert_close(scores[:3], expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(norms[:3, 0], torch.tensor(special[:3]).abs(), rtol=1e-7, atol=0)
    assert not norms[3:].isfinite().any()


@EACH
@pytest.mark.parametrize("value", [torch.inf, torch.nan], ids=str)
@pytest.mark.parametrize("which", [0, 1])
def test_tokens_that_are_not_finite_leave_no_score(backend: str, value: float, which: int) -> None:
    rows = torch.randn(2, 3, 2, 16).half()
    rows[which, 1, 0, 5] = value
    scores, _ = text_gated_scores(*rows, torch.randn(16), backend=backend)
    assert scores.isnan().tolist() == [False, True, False]


@EACH
def test_gradients(backend: str) -> None:
    """The kernel has none: torch computes then."""
    keys = torch.randn(2, 3, 16).half().requires_grad_()
    text = torch.randn(16, requires_grad=True)
    with use_backend(backend):
        got, _ = text_gated_scores(keys, keys, text)
    expected, _ = text_gated_scores(keys.float(), keys.float(), text, backend="torch")
    gradients = [torch.autograd.grad(scores.sum(), (keys, text)) for scores in (got, expected)]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


HALF = torch.zeros(2, 3, 16, dtype=torch.float16)
TEXT = torch.zeros(16)


def call(keys: Any = HALF, values: Any = None, text: Tensor = TEXT, **options: Any) -> Any:
    return lambda: text_gated_scores(keys, values, text, **options)


WRONG: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "none": (call([]), ValueError, "at least one"),
    "integers": (call(HALF.long()), TypeError, "floating type"),
    "one axis": (call(HALF[0]), ValueError, r"\(\.\.\., D\)"),
    "no width": (call(HALF[..., :0], text=torch.zeros(0)), ValueError, "no size 0"),
    "no token": (call(HALF[:, :0]), ValueError, "no size 0, got shape"),
    "width": (call(text=torch.zeros(8)), ValueError, r"text must have shape \(16,\), got \(8,"),
    "mean query": (call(mean_query=torch.zeros(8)), ValueError, r"mean_query must have shape \(16"),
    "values": (call(values=HALF[:, :2]), ValueError, r"2 times 3 of width 16, got 2 of shape \(2"),
    "mask": (call(mask=torch.ones(2, 3)), ValueError, r"mask must be bool of shape \(2, 3\)"),
    "mix": (call(mix=torch.eye(2)), ValueError, r"mix must have shape \(3, 3\), got \(2, 2\)"),
    "shapes": (
        call([HALF[0], HALF[1, :2]]),
        ValueError,
        r"of one shape, type and device, got \(3, 16\) .*keys\[1\] \(2, 16\)",
    ),
    "types": (
        call(HALF, [HALF[0], HALF[1].float()]),
        ValueError,
        r"values must be of one shape, type and device.*values\[1\] .*float32",
    ),
    "device of values": (
        call(HALF, HALF.to("meta")),
        ValueError,
        r"values must be on the device of keys\[0\], cpu, got meta",
    ),
    "device of the mask": (
        call(HALF, mask=torch.ones(2, 3, dtype=torch.bool, device="meta")),
        ValueError,
        r"mask must be on the device of keys\[0\], cpu, got meta",
    ),
    "weak": (call(weak_temperature=-1.0), ValueError, "weak_temperature must be 0 or more, got -1"),
    "gate": (call(gate_temperature=0), ValueError, "gate_temperature must be positive, got 0"),
    "weights": (call(weights=(1.0,)), ValueError, r"weights must be three numbers, got \(1.0,\)"),
}


@pytest.mark.parametrize(("run", "error", "message"), WRONG.values(), ids=WRONG.keys())
def test_refuses(run: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        run()


@EACH
def test_rows_that_are_made_when_they_are_asked_for(backend: str) -> None:
    keys, values = torch.randn(2, 50, 7, 16).half()
    check(MadeWhenAsked(keys), MadeWhenAsked(values), backend, 2e-6)


@EACH
@pytest.mark.parametrize("with_values", [False, True], ids=["keys", "keys and values"])
@pytest.mark.parametrize("which", ["text", "mean_query", "mix"])
def test_no_valid_token_scores_0_whatever_the_text(
    backend: str, with_values: bool, which: str
) -> None:
    keys = torch.randn(2, 3, 16).half()
    given = {"text": torch.randn(16), "mean_query": torch.randn(16), "mix": torch.randn(3, 3)}
    given[which].fill_(torch.nan)
    mask = torch.tensor([[True, False, True], [False, False, False]])
    scores, norms = text_gated_scores(
        keys, keys if with_values else None, **given, mask=mask, backend=backend
    )
    assert scores[1] == 0 and norms[1].tolist() == [1, 1]
    assert bool(scores[0].isnan()) == (with_values or which != "mean_query")


@EACH
def test_defaults_of_the_process_change_nothing(backend: str) -> None:
    keys, text = torch.randn(5, 7, 16).half(), torch.randn(16)
    expected = text_gated_scores(list(keys), keys, text, backend=backend)
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        with torch.device("meta"):
            got = text_gated_scores(list(keys), keys, text, backend=backend)
    finally:
        torch.set_default_dtype(before)
    for ours, theirs in zip(got, expected, strict=True):
        assert torch.equal(ours, theirs)


@EACH
def test_tiny_temperatures_are_the_maximum(backend: str) -> None:
    keys, text = torch.randn(5, 7, 16).half(), torch.randn(16)
    expected, _ = text_gated_scores(keys, None, text, weak_temperature=0.0, backend=backend)
    got, _ = text_gated_scores(keys, None, text, weak_temperature=1e-39, backend=backend)
    torch.testing.assert_close(got, expected)


@EACH
def test_tangents_are_kept_or_refused(backend: str) -> None:
    keys, text = torch.randn(5, 7, 16).half(), torch.randn(16)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(text, torch.randn(16))
        scores, _ = text_gated_scores(keys, None, dual, backend=backend)
        assert forward_ad.unpack_dual(scores).tangent is not None

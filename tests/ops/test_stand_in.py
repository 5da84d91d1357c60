"""`ops.selective_scan` in the place of mamba-ssm's `selective_scan_fn`.

What that function's documentation says, as a loop over single numbers; the call that mamba-ssm's
own layer makes; and a stock model of transformers with our scan in it.
"""

from __future__ import annotations

import importlib
import inspect
import itertools

import pytest
import torch
from torch.nn import functional as F

from muse_adapter.ops import selective_scan

# Rounding of the result in its own type, and of sums of S * L terms in float32.
BOUND = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def test_arguments_have_the_order_and_the_defaults_of_the_original():
    required = inspect.Parameter.empty
    expected = {
        "u": required,
        "delta": required,
        "A": required,
        "B": required,
        "C": required,
        "D": None,
        "z": None,
        "delta_bias": None,
        "delta_softplus": False,
        "return_last_state": False,
    }
    ours = inspect.signature(selective_scan).parameters
    named = {k: v.default for k, v in ours.items() if v.kind is v.POSITIONAL_OR_KEYWORD}
    assert list(named.items()) == list(expected.items())
    # What we add can only be given by name, and is not needed.
    added = [v for k, v in ours.items() if k not in expected]
    assert all(v.kind is v.KEYWORD_ONLY and v.default is not required for v in added)


def documented(u, delta, A, B, C, D, z, delta_bias, delta_softplus):
    """Output and last state, number by number in float64; B and C of any documented shape."""
    batch, channels, length = u.shape
    states = A.shape[1]
    values = (u, delta, A, B, C, D, z, delta_bias)
    u, delta, A, B, C, D, z, delta_bias = (v if v is None else v.double() for v in values)

    def gain(matrix, video, channel, state, step):
        if matrix.dim() == 2:
            return matrix[channel, state]
        if matrix.dim() == 3:
            return matrix[video, state, step]
        return matrix[video, channel * matrix.shape[1] // channels, state, step]

    y = torch.zeros(batch, channels, length, dtype=torch.float64)
    last = torch.zeros(batch, channels, states, dtype=torch.float64)
    for b, d, t in itertools.product(range(batch), range(channels), range(length)):
        dt = delta[b, d, t] + (0 if delta_bias is None else delta_bias[d])
        dt = F.softplus(dt) if delta_softplus else dt
        for n in range(states):
            last[b, d, n] = torch.exp(dt * A[d, n]) * last[b, d, n]
            last[b, d, n] += dt * gain(B, b, d, n, t) * u[b, d, t]
            y[b, d, t] += gain(C, b, d, n, t) * last[b, d, n]
        if D is not None:
            y[b, d, t] += D[d] * u[b, d, t]
        if z is not None:
            y[b, d, t] *= z[b, d, t] * torch.sigmoid(z[b, d, t])
    return y, last


def near(got, expected, bound):
    return (got.double() - expected).abs().max() <= bound * expected.abs().max()


SHAPES = {"constant": (4, 3), "variable": (2, 3, 6), "grouped": (2, 2, 3, 6)}


@pytest.mark.parametrize("optional", ["all", "none"])
@pytest.mark.parametrize(
    ("B", "C"), [("variable", "variable"), ("grouped", "variable"), ("constant", "grouped")]
)
@pytest.mark.parametrize("dtype", BOUND, ids=str)
def test_shapes_types_and_values(backend, dtype, B, C, optional):
    """Activations in the model's type, parameters in float32, as mamba-ssm's layer gives them."""
    u, delta, z = (torch.randn(2, 4, 6, dtype=dtype) for _ in range(3))
    A = -torch.rand(4, 3) - 0.1
    B, C = (torch.randn(SHAPES[kind], dtype=dtype) for kind in (B, C))
    D, bias, softplus = torch.randn(4), torch.randn(4), True
    if optional == "none":
        D, z, bias, softplus = None, None, None, False
        delta = delta.abs()
    y, last = selective_scan(u, delta, A, B, C, D, z, bias, softplus, True, backend=backend)
    expected, state = documented(u, delta, A, B, C, D, z, bias, softplus)
    assert (y.shape, y.dtype) == ((2, 4, 6), dtype)
    assert (last.shape, last.dtype) == ((2, 4, 3), torch.float32)
    assert near(y, expected, BOUND[dtype])
    assert near(last, state, 1e-5)  # the inputs' type does not reach the state
    alone = selective_scan(u, delta, A, B, C, D, z, bias, softplus, backend=backend)
    assert isinstance(alone, torch.Tensor) and near(alone, expected, BOUND[dtype])


def test_the_layers_call(backend):
    """Transposed views in, bias and skip cast to float32, a cached state copied from the result."""
    batch, length, channels, states = 2, 7, 8, 4
    xz = torch.randn(batch, length, 2 * channels).transpose(1, 2).requires_grad_()
    x, z = xz.chunk(2, dim=1)
    dt = torch.randn(channels, batch * length).view(channels, batch, length).transpose(0, 1)
    B, C = (torch.randn(batch, length, states).transpose(1, 2) for _ in range(2))
    A, D, bias = -torch.rand(channels, states), torch.ones(channels), torch.randn(channels)
    options = {"z": z, "delta_bias": bias.float(), "delta_softplus": True}
    y, last = selective_scan(
        x, dt, A, B, C, D.float(), **options, return_last_state=True, backend=backend
    )
    cache = torch.zeros(batch, channels, states)
    cache.copy_(last)
    expected, state = documented(x, dt, A, B, C, D, z, bias, True)
    assert near(y, expected, 1e-5) and near(cache, state, 1e-5)
    y.sum().backward()
    assert xz.grad.isfinite().all() and xz.grad.abs().max() > 0


@pytest.fixture
def mamba(monkeypatch):
    """A small Mamba of transformers, and a switch that puts our scan in; it counts the calls."""
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    modeling = importlib.import_module("transformers.models.mamba.modeling_mamba")
    if not hasattr(modeling, "mamba_selective_scan"):
        pytest.skip("this version of transformers calls no scan by name on a CPU")
    config = transformers.MambaConfig(
        vocab_size=32, hidden_size=16, state_size=4, num_hidden_layers=2, time_step_rank=2
    )
    model = transformers.MambaForCausalLM(config)
    calls = []

    def ours(*args, use_mambapy, use_associative_scan, **kwargs):
        # Two switches of transformers between its own ways to compute the same.
        calls.append(kwargs)
        return selective_scan(*args, **kwargs)

    return model, calls, lambda: monkeypatch.setattr(modeling, "mamba_selective_scan", ours)


def test_a_stock_mamba_gives_the_same_logits(mamba):
    model, calls, put_in = mamba
    model.eval()
    tokens = torch.randint(0, 32, (2, 11))
    padding = torch.ones_like(tokens)
    padding[0, :3] = 0
    greedy = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    greedy |= {"output_logits": True, "return_dict_in_generate": True}
    with torch.no_grad():
        expected = model(tokens, attention_mask=padding)
        continued = model.generate(tokens, **greedy)
        put_in()
        got = model(tokens, attention_mask=padding)
        again = model.generate(tokens, **greedy)
    assert len(calls) >= 2 * 2  # every layer, in both
    assert any(call["return_last_state"] for call in calls)  # its cache holds our state
    pairs = [(got.logits, expected.logits), *zip(again.logits, continued.logits, strict=True)]
    assert len(pairs) == 1 + 4
    assert all(near(ours, theirs, BOUND[torch.float32]) for ours, theirs in pairs)


def test_a_stock_mamba_learns_the_same(mamba):
    model, calls, put_in = mamba
    tokens = torch.randint(0, 32, (2, 11))

    def gradients():
        loss = model(tokens, labels=tokens).loss
        return torch.autograd.grad(loss, list(model.parameters()))

    expected = gradients()
    put_in()
    got = gradients()
    assert len(calls) == 2
    for ours, theirs in zip(got, expected, strict=True):
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max() + 1e-9

"""The scan as a custom operator: torch's rules, derivatives, and no value that is asked for."""

from __future__ import annotations

import pytest
import torch

from muse_adapter.config import MIXERS
from muse_adapter.ops import selective_scan, use_backend
from muse_adapter.ops.inputs import ScanInputs
from muse_adapter.ops.recurrent import TORCH
from tests.support.scans import fast_backends
from tests.support.small_heads import MASK, small_head, small_tokens


def operator_inputs(dtype=torch.float32, *, gradient=True, lengths=True, optional=True):
    """What stands before the backend's name; B and C of other shapes, two chunks of time."""

    def normal(*shape):
        return torch.randn(shape, dtype=dtype).requires_grad_(gradient)

    return [
        normal(2, 40, 6),
        normal(2, 40, 6),
        (-torch.rand(6, 3)).requires_grad_(gradient),
        normal(2, 40, 2, 3),
        normal(1, 1, 6, 3),
        normal(6) if optional else None,
        normal(6) if optional else None,
        torch.randn(2, 6, 3).requires_grad_(gradient) if optional else None,
        torch.tensor([40, 33]) if lengths else None,
        True,
    ]


# The direction changes no shape and no type: either is there with gradients and without options.
@fast_backends
@pytest.mark.parametrize(
    ("options", "reverse"),
    [
        ({}, True),
        ({"lengths": False, "optional": False}, False),
        ({"dtype": torch.bfloat16}, False),
        ({"gradient": False}, True),
    ],
    ids=["all", "least", "bfloat16", "inference"],
)
def test_opcheck_of_the_scan(backend, options, reverse):
    inputs = (*operator_inputs(**options), reverse, backend, options.get("gradient", True))
    torch.library.opcheck(torch.ops.muse_adapter.scan.default, inputs)


@fast_backends
@pytest.mark.parametrize("given", ["both", "y", "state"])
def test_opcheck_of_the_backward_pass(backend, given):
    inputs = (*operator_inputs(gradient=False), False, backend)
    y, state, saved_states = torch.ops.muse_adapter.scan(*inputs, True)
    gradients = [
        torch.randn_like(value) if given in ("both", name) else None
        for name, value in (("y", y), ("state", state))
    ]
    operator = torch.ops.muse_adapter.scan_backward.default
    torch.library.opcheck(operator, (*gradients, saved_states, *inputs))


def test_no_gradient_without_what_the_backward_pass_needs():
    y, _, saved_states = torch.ops.muse_adapter.scan(*operator_inputs(), False, "torch", False)
    assert saved_states.numel() == 0
    with pytest.raises(RuntimeError, match="save=True"):
        y.sum().backward()


def test_second_derivatives_of_the_definition():
    shapes = {"u": (1, 2, 3), "delta": (1, 2, 3), "B": (1, 2, 3), "C": (1, 2, 3)}
    inputs = {name: torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}
    A = -torch.rand(2, 2, dtype=torch.float64)
    inputs = [value.requires_grad_() for value in inputs.values()]

    def scan(u, delta, B, C):
        return selective_scan(u, delta, A, B, C, delta_softplus=True, backend="reference")

    assert torch.autograd.gradgradcheck(scan, inputs)


@fast_backends
def test_second_derivatives_through_the_head_are_refused_by_name(backend):
    head, tokens = small_head(depth=1), small_tokens().requires_grad_()
    with use_backend(backend):
        (gradient,) = torch.autograd.grad(head(tokens).sum(), tokens, create_graph=True)
    with pytest.raises(RuntimeError, match=f"{backend} backend .* no second derivative"):
        gradient.square().sum().backward()


@pytest.mark.parametrize("mixer", MIXERS)
def test_no_value_is_asked_for(mixer):
    """Meta tensors have none: whatever would wait for a GPU raises here."""
    head = small_head(mixer=mixer, scales=(0.5, 1.0, 2.0)).to("meta")
    tokens = small_tokens(device="meta", requires_grad=True)
    mask = MASK.to("meta")
    with pytest.raises(RuntimeError):
        bool(mask.any())
    head(tokens, mask).sum().backward()
    assert tokens.grad.shape == tokens.shape
    with torch.no_grad():
        assert head.eval()(tokens, mask).shape == (3, 16)


def test_the_torch_backend_asks_for_no_value():
    inputs = ScanInputs(*(
        value.detach().to("meta") if isinstance(value, torch.Tensor) else value
        for value in operator_inputs()
    ), reverse=True)  # fmt: skip
    saved_states = torch.empty(TORCH.saved_states_shape(2, 40, 6, 3), device="meta")
    y, state = TORCH.scan_forward(inputs, saved_states)
    gradients = TORCH.scan_backward(inputs, saved_states, y, state)
    assert [g.shape for g in gradients] == [t.shape for t in inputs.differentiable()]


@fast_backends
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # torch's own
def test_derivatives_in_forward_mode_are_refused_by_name(backend):
    """Where no tensor wants a gradient autograd does not look, and the tangent would be 0."""
    u, A, B = torch.randn(1, 16, 5), -torch.rand(16, 3), torch.randn(1, 3, 5)

    def scan(u):
        return selective_scan(u, u, A, B, B, backend=backend)

    with pytest.raises(RuntimeError, match="no derivative in forward mode"):
        torch.func.jvp(scan, (u,), (torch.randn_like(u),))

"""The Mamba mixer against the official code, and its gradients by finite differences."""

from __future__ import annotations

import pytest
import torch

from muse_adapter.layers.mixers import BiMamba
from muse_adapter.ops import use_backend

DTYPES = pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32], ids=["float64", "float32"]
)


@DTYPES
def test_official_values_and_gradients(golden_mixer, dtype, backend):
    options = {
        "d_state": golden_mixer.number("d_state"),
        "d_conv": golden_mixer.number("d_conv"),
        "expand": golden_mixer.number("expand"),
        "bidirectional": golden_mixer.kind == "bimamba",
    }
    mixer = BiMamba(golden_mixer.number("width"), **options).to(dtype)
    mixer.load_state_dict(golden_mixer.weights(dtype))
    x = golden_mixer.tensor("in.x", dtype).requires_grad_()
    with use_backend(backend):
        y = mixer(x)
        (y * golden_mixer.tensor("cot.y", dtype)).sum().backward()
    golden_mixer.check("out.y", y)
    golden_mixer.check("grad.in.x", x.grad)
    for name, parameter in mixer.named_parameters():
        golden_mixer.check(f"grad.{name}", parameter.grad)
    if "out.y_divided" in golden_mixer:
        mixer.divide_out = True
        golden_mixer.check("out.y_divided", mixer(x))


@pytest.mark.parametrize(
    "options", [{}, {"bidirectional": False}, {"divide_out": True}, {"expand": 2}], ids=str
)
def test_gradients_by_finite_differences(options):
    torch.manual_seed(1)
    mixer = BiMamba(4, d_state=2, d_conv=3, **options).double()
    x = torch.randn(2, 5, 4, dtype=torch.float64, requires_grad=True)
    lengths = torch.tensor([5, 3])
    assert torch.autograd.gradcheck(mixer, (x,), fast_mode=True)
    parameters = tuple(mixer.parameters())

    def of_parameters(*values):
        names = dict(zip(dict(mixer.named_parameters()), values, strict=True))
        return torch.func.functional_call(mixer, names, (x.detach(), lengths))[:, :3]

    assert torch.autograd.gradcheck(of_parameters, parameters, fast_mode=True)


@pytest.mark.parametrize("bidirectional", [True, False])
def test_no_weight_decay_names_the_parameters_of_the_scan(bidirectional):
    forward = {"A_log", "D"}
    names = BiMamba(8, bidirectional=bidirectional).no_weight_decay()
    assert names == (forward | {"A_b_log", "D_b"} if bidirectional else forward)

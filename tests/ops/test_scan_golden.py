"""The selective scan against the official code: values and gradients, on every backend."""

from __future__ import annotations

import pytest
import torch

from muse_adapter.ops import selective_scan

DTYPES = pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32], ids=["float64", "float32"]
)


@DTYPES
def test_official_values_and_gradients(golden_scan, dtype, backend):
    inputs = golden_scan.inputs(dtype)
    positive = inputs.pop("delta_positive")
    inputs = {name: tensor.requires_grad_() for name, tensor in inputs.items()}
    y, state = selective_scan(
        **inputs, delta_softplus=True, return_last_state=True, backend=backend
    )
    (y * golden_scan.tensor("cot.y", dtype)).sum().backward()
    golden_scan.check("out.y", y)
    golden_scan.check("out.last_state", state)
    for name, tensor in inputs.items():
        golden_scan.check(f"grad.in.{name}", tensor.grad)
    for left_out, argument in (("z", "z"), ("D", "D"), ("bias", "delta_bias")):
        others = {name: tensor for name, tensor in inputs.items() if name != argument}
        golden_scan.check(
            f"out.y_without_{left_out}",
            selective_scan(**others, delta_softplus=True, backend=backend),
        )
    inputs.update(delta=positive, delta_bias=None)
    golden_scan.check("out.y_without_softplus", selective_scan(**inputs, backend=backend))

"""Scans as the mamba_ssm backend takes them, and their results with all gradients."""

from __future__ import annotations

import torch

from muse_adapter.ops.inputs import ScanInputs


def draw(length, *, B="variable", C="variable", batch=2, channels=6, states=3, initial=False):
    shapes = {
        "constant": (1, 1, channels, states),
        "variable": (batch, length, 1, states),
        "grouped": (batch, length, 2, states),
        "three": (batch, length, 3, states),
    }
    tensors = {
        "x": torch.randn(batch, length, channels),
        "delta": torch.randn(batch, length, channels),
        "A": -torch.rand(channels, states) * 2,
        "B": torch.randn(shapes[B]),
        "C": torch.randn(shapes[C]),
        "D": torch.randn(channels),
        "delta_bias": torch.randn(channels),
    }
    if initial:
        tensors["initial_state"] = torch.randn(batch, channels, states)
    return {name: tensor.requires_grad_() for name, tensor in tensors.items()}


def outcome(module, arguments, used=(0, 1), **flags):
    """Outputs, last state and gradients."""
    results = module.scan(ScanInputs(**arguments, **flags))
    torch.manual_seed(1)
    loss = sum((results[i] * torch.randn(results[i].shape).to(results[i])).sum() for i in used)
    inputs = [value for value in arguments.values() if value is not None]
    return [*results, *torch.autograd.grad(loss, inputs, allow_unused=True)]


def agree(got, expected):
    for index, (a, b) in enumerate(zip(got, expected, strict=True)):
        if b is None:
            assert a is None or not a.any(), index
            continue
        assert a.shape == b.shape and a.dtype == b.dtype, index
        assert (a - b).abs().max() <= 1e-5 * max(b.abs().max().item(), 1e-3), index

"""ONNX files of small heads: made, and run."""

from __future__ import annotations

import torch


def make_masks(batch, frames):
    """Random masks; the last of several videos has no valid frame."""
    mask = torch.rand(batch, frames) < 0.7
    mask[0, 0] = True
    if batch > 1:
        mask[-1] = False
    return mask


def run_file(file, *inputs):
    """Run a file, or its bytes, with inputs in its order."""
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    feeds = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
    return [torch.from_numpy(result) for result in session.run(None, feeds)]


def close(got, expected, bound=1e-5):
    assert got.shape == expected.shape
    error = (got - expected).abs().max().item() / max(1.0, expected.abs().max().item())
    assert error <= bound, f"off by {error:.1e}"  # NaN fails too

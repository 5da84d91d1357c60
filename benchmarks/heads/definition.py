"""Each head against its definition, in float64: embedding and all gradients of a few tokens."""

from __future__ import annotations

import dataclasses
import functools

import torch
from torch import Tensor

from benchmarks.correctness import BOUNDS, MIN_SCALE, difference
from benchmarks.heads.variants import Variant, definition
from benchmarks.heads.workload import PRESETS, Case, Settings, Workload

CASE = Case("training", 2, (3, 3), 2)

Results = tuple[dict[str, Tensor], dict[str, Tensor]]


def against_definition(variant: Variant, settings: Settings) -> str | None:
    """Compare a head's results on a few tokens, and all gradients, with its definition.

    The definition has the same weights and computes in float64 on the CPU.

    Returns:
        None where they agree, else what differs by how much.
    """
    expected = _expected(variant.function, settings.dim)
    got = _results(Workload(variant, CASE, settings))
    for mine, definitions in zip(got, expected, strict=True):
        bound = BOUNDS[settings.dtype]
        if wrong := difference(mine, definitions, bound, min_scale=MIN_SCALE):
            return wrong
    return None


@functools.cache
def _expected(function: str, dim: int) -> Results:
    exact = dataclasses.replace(PRESETS["quick"], device="cpu", dtype="float64", dim=dim)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # thousands of small steps, which threads only wait for
    try:
        return _results(Workload(definition(function), CASE, exact))
    finally:
        torch.set_num_threads(threads)


def _results(workload: Workload) -> Results:
    """Return embedding, and gradients, of a training step without dropout."""
    workload.module.eval()
    embedding = workload.step().detach().cpu()
    gradients = {name: weight.grad for name, weight in workload.module.named_parameters()}
    gradients["tokens"] = workload.tokens.grad
    return {"the embedding": embedding}, {
        f"the gradient of {name}": gradient.cpu()
        for name, gradient in gradients.items()
        if gradient is not None
    }

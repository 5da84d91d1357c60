"""No time without agreement: each head against its definition, alternatives against each other."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import torch
from torch import Tensor

from benchmarks.variants import Variant, definition
from benchmarks.workload import PRESETS, Case, Settings, Workload

# Error of embeddings and of each gradient, by the type that they were computed in. Half precision
# keeps 11 or 8 bits of every intermediate result.
BOUNDS = {"float64": 1e-9, "float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}
# Of the largest gradient, which a smaller one is measured against: sums that cancel keep no digits.
MIN_SCALE = 1e-2
CASE = Case("training", 2, (3, 3), 2)

Results = tuple[dict[str, Tensor], dict[str, Tensor]]


def difference(
    got: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    bound: float,
    *,
    min_scale: float = 0.0,
) -> str | None:
    """Compare tensors by their 2-norm and by their largest value.

    Args:
        got: Tensors by what a message calls them.
        expected: The same, right.
        bound: Of |got - expected| / |expected|, in both norms.
        min_scale: A tensor is measured against at least this part of the largest one.

    Returns:
        None where all agree, else which differs by how much.
    """
    if got.keys() != expected.keys():
        return f"only one of them has {', '.join(sorted(got.keys() ^ expected.keys()))}"
    norms = {name: _norms(value) for name, value in expected.items()}
    floors = [min_scale * max(values) for values in zip(*norms.values(), strict=True)]
    for name, value in expected.items():
        errors = _norms(got[name].detach().to(value) - value)
        for error, norm, floor in zip(errors, norms[name], floors, strict=True):
            scale = max(norm, floor)
            if not error <= bound * scale:
                return f"{name} differs by {error:.1e} of {scale:.1e}, allowed is {bound:g} of it"
    return None


def require_agreement(
    got: Mapping[str, Tensor], expected: Mapping[str, Tensor], what: str, bound: float = 1e-4
) -> None:
    """End the run where results differ.

    Args:
        got: Tensors by what a message calls them.
        expected: The same, right.
        what: What computed `got`.
        bound: Error allowed, see `difference`.

    Raises:
        SystemExit: They differ.
    """
    if wrong := difference(got, expected, bound):
        raise SystemExit(f"{what}: {wrong}, so no time is given")


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


def _norms(tensor: Tensor) -> tuple[float, float]:
    """Return the 2-norm and the largest absolute value."""
    return tensor.norm().item(), tensor.abs().max().item()

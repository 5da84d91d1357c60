"""No time without agreement: each head against its definition, and heads against each other."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import torch
from torch import Tensor

from benchmarks.contenders import Contender, definition
from benchmarks.settings import PRESETS, Case, Settings
from benchmarks.work import Work

# |got - expected| / |expected| (2-norms), of embeddings and of each gradient. Half precision keeps
# 11 or 8 bits of every intermediate result.
BOUNDS = {"float64": 1e-9, "float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}
# A gradient is measured against at least this part of the largest: sums that cancel keep no digits.
SMALL = 1e-2
CASE = Case("training", 2, (3, 3), 2)

Results = tuple[dict[str, Tensor], dict[str, Tensor]]


def against_definition(contender: Contender, settings: Settings) -> str | None:
    """Why a head may not be timed: its results on a few tokens, and all gradients.

    Its definition has the same weights and computes in float64 on the CPU.

    Returns:
        None where they agree, else what differs by how much.
    """
    expected = _expected(contender.function, settings.dim)
    got = _outcome(Work(contender, CASE, settings))
    for mine, definitions in zip(got, expected, strict=True):
        if wrong := difference(mine, definitions, settings.dtype):
            return wrong
    return None


def difference(got: Mapping[str, Tensor], expected: Mapping[str, Tensor], dtype: str) -> str | None:
    """The first of some tensors that differs from what is expected by more than the bound.

    Args:
        got, expected: tensors by what a message calls them.
        dtype: the type that `got` was computed in.
    """
    if got.keys() != expected.keys():
        return f"only one of them has {', '.join(sorted(got.keys() ^ expected.keys()))}"
    norms = {name: value.norm().item() for name, value in expected.items()}
    for name, value in expected.items():
        scale = max(norms[name], SMALL * max(norms.values()))
        error = (got[name].to(value) - value).norm().item()
        if not error <= BOUNDS[dtype] * scale:
            return (
                f"{name} differs by {error:.1e} of {scale:.1e}, allowed is {BOUNDS[dtype]:g} of it"
            )
    return None


@functools.cache
def _expected(function: str, dim: int) -> Results:
    exact = dataclasses.replace(PRESETS["quick"], device="cpu", dtype="float64", dim=dim)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # thousands of small steps, which threads only wait for
    try:
        return _outcome(Work(definition(function), CASE, exact))
    finally:
        torch.set_num_threads(threads)


def _outcome(work: Work) -> Results:
    """Embedding, and gradients, of a training step without dropout."""
    work.module.eval()
    embedding = work.step().detach().cpu()
    gradients = {name: weight.grad for name, weight in work.module.named_parameters()}
    gradients["tokens"] = work.tokens.grad
    return {"the embedding": embedding}, {
        f"the gradient of {name}": gradient.cpu()
        for name, gradient in gradients.items()
        if gradient is not None
    }

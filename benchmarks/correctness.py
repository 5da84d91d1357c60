"""No time without agreement: tensors against those that are known to be right."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

# Error of embeddings and of each gradient, by the type that they were computed in. Half precision
# keeps 11 or 8 bits of every intermediate result.
BOUNDS = {"float64": 1e-9, "float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}
# Of the largest gradient, which a smaller one is measured against: sums that cancel keep no digits.
MIN_SCALE = 1e-2


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


def _norms(tensor: Tensor) -> tuple[float, float]:
    """Return the 2-norm and the largest absolute value."""
    return tensor.norm().item(), tensor.abs().max().item()

"""Golden files: inputs, weights, results and gradients of the official code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.support import tolerances

FOLDER = Path(__file__).resolve().parent.parent / "golden"


def parse_slice(text: str) -> tuple[slice, ...]:
    """Parse the slice at the end of a golden name, such as ':, ::8'."""
    axes = []
    for axis in text.split(","):
        parts = [int(part) if part.strip() else None for part in axis.split(":")]
        axes.append(slice(*parts))
    return tuple(axes)


class Golden:
    """One golden file: `meta` (strings) and tensors by name.

    Args:
        name: File name without its extension.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        safetensors = pytest.importorskip("safetensors", reason="golden files need safetensors")
        self._tensors: dict[str, torch.Tensor] = {}
        self._slices: dict[str, str] = {}
        with safetensors.safe_open(FOLDER / f"{name}.safetensors", framework="pt") as file:
            self.meta: dict[str, str] = dict(file.metadata())
            for stored_name in file.keys():  # noqa: SIM118 - a safe_open is not a dict
                key, _, slice_text = stored_name.partition("[")
                self._tensors[key] = file.get_tensor(stored_name)
                if slice_text:
                    self._slices[key] = slice_text.rstrip("]")

    def __repr__(self) -> str:
        return f"Golden({self.name!r})"

    @property
    def kind(self) -> str:
        """Kind of the file: 'head', 'bimamba', 'mamba', 'selective_scan' or 'bertadam'."""
        return self.meta["kind"]

    def number(self, key: str) -> int:
        """Read an integer of the metadata, such as 'layers'."""
        return int(self.meta[key])

    @property
    def scales(self) -> tuple[float, ...]:
        """Scales of a head file."""
        return tuple(json.loads(self.meta["scales"]))

    @property
    def float32_error(self) -> dict[str, float]:
        """Errors of the official code in float32 against its own float64 values."""
        return json.loads(self.meta["float32_error"])

    def keys(self, prefix: str = "") -> list[str]:
        """List the names that start with `prefix`, without the slice that some have."""
        return sorted(key for key in self._tensors if key.startswith(prefix))

    def __contains__(self, key: str) -> bool:
        return key in self._tensors

    def stored(self, key: str) -> torch.Tensor:
        """Return the tensor as it is stored: in its own dtype, and sliced if the file slices it."""
        return self._tensors[key]

    def tensor(self, key: str, dtype: torch.dtype = torch.float64) -> torch.Tensor:
        """Copy an input, cotangent or weight; integers keep their dtype."""
        if key in self._slices:
            raise KeyError(f"{key} is stored as [{self._slices[key]}]: compare it, do not read it")
        value = self._tensors[key]
        return value.to(dtype, copy=True) if value.is_floating_point() else value.clone()

    def inputs(self, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
        """Copy all `in.*`, by their names without the prefix."""
        return {key[3:]: self.tensor(key, dtype) for key in self.keys("in.")}

    def weights(self, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
        """Copy all weights, by their official names."""
        results = ("in.", "cot.", "out.", "grad", "after.", "start.")
        return {k: self.tensor(k, dtype) for k in self.keys() if not k.startswith(results)}

    def sliced(self, key: str, value: torch.Tensor) -> torch.Tensor:
        """Slice a tensor of ours as the file slices the one of that name."""
        if key not in self._slices:
            return value
        axes = parse_slice(self._slices[key])
        # Weight gradients are sliced flattened, results along their axes.
        whole = value.flatten() if len(axes) == 1 else value
        return whole[axes]

    def error(self, key: str, got: torch.Tensor) -> float:
        """Compute max|got - stored| / max|stored| over the stored slice.

        Args:
            key: Name without a slice, such as "out.layers.0".
            got: The whole tensor, in the dtype of the run.
        """
        stored = self._tensors[key]
        part = self.sliced(key, got.detach())
        assert part.shape == stored.shape, (
            f"{self.name}: {key} must have shape {tuple(stored.shape)}, got {tuple(part.shape)}"
        )
        return tolerances.relative_error(part, stored)

    def bound(self, key: str, got: torch.Tensor) -> float:
        """Look up the tolerance for a tensor; weight gradients in float32 may have a wider one."""
        limit = tolerances.GOLDEN[got.dtype, self._tensors[key].dtype]
        weight_gradient = key.startswith("grad.") and not key.startswith("grad.in.")
        if weight_gradient and got.dtype == torch.float32 and "float32_error" in self.meta:
            # The official code is no closer to its own float64 values: long sums cancel.
            limit = max(limit, 2 * self.float32_error.get("grad_weight_rel_max", 0.0))
        return limit

    def check(self, key: str, got: torch.Tensor) -> None:
        """Assert that a tensor of ours agrees with the stored one of that name."""
        error, bound = self.error(key, got), self.bound(key, got)
        # "not <=" also catches NaN.
        assert error <= bound, f"{self.name}: {key} is off by {error:.2e}, allowed {bound:.0e}"


def golden_names(*prefixes: str) -> list[str]:
    """List the golden files whose names start with one of the prefixes."""
    names = sorted(path.stem for path in FOLDER.glob("*.safetensors"))
    return [name for name in names if name.startswith(prefixes)]

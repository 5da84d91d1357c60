"""Invalid inputs of the scan: the message says what was given and what was expected."""

# The tables have one case per line, however long it is.
# ruff: noqa: E501

from __future__ import annotations

import pytest
import torch

from muse_adapter.ops import backends, selective_scan, use_backend
from muse_adapter.ops.backend import by_name


def scan_arguments() -> dict:
    return {
        "u": torch.zeros(2, 6, 5), "delta": torch.zeros(2, 6, 5), "A": torch.zeros(6, 4),
        "B": torch.zeros(2, 4, 5), "C": torch.zeros(2, 4, 5), "D": torch.zeros(6),
        "z": torch.zeros(2, 6, 5), "delta_bias": torch.zeros(6),
    }  # fmt: skip


SCAN_CASES = {
    "u": ({"u": torch.zeros(6, 5)}, ValueError, r"u must have shape \(batch, E, L\).*got \(6, 5\)"),
    "u empty": ({"u": torch.zeros(2, 6, 0)}, ValueError, r"no size 0, got \(2, 6, 0\)"),
    "delta": ({"delta": torch.zeros(2, 6, 4)}, ValueError, r"delta must have shape \(2, 6, 5\), got \(2, 6, 4\)"),
    "A": ({"A": torch.zeros(5, 4)}, ValueError, r"A must have shape \(E, S\) = \(6, S\), got \(5, 4\)"),
    "complex A": ({"A": torch.zeros(6, 4, dtype=torch.complex64)}, ValueError, r"complex A is not supported"),
    "B": ({"B": torch.zeros(2, 3, 5)}, ValueError, r"B must have shape .*got \(2, 3, 5\)"),
    "groups": ({"C": torch.zeros(2, 4, 4, 5)}, ValueError, r"G dividing 6, got \(2, 4, 4, 5\)"),
    "D": ({"D": torch.zeros(5)}, ValueError, r"D must have shape \(6,\), got \(5,\)"),
    "z": ({"z": torch.zeros(2, 5, 5)}, ValueError, r"z must have shape"),
    "delta_bias": ({"delta_bias": torch.zeros(1)}, ValueError, r"delta_bias must have shape \(6,\), got \(1,\)"),
    "initial_state": ({"initial_state": torch.zeros(2, 4, 6)}, ValueError, r"initial_state must have shape \(2, 6, 4\), got \(2, 4, 6\)"),
    "integers": ({"B": torch.zeros(2, 4, 5, dtype=torch.int64)}, TypeError, r"B must be .*got torch.int64"),
    "device": ({"C": torch.zeros(2, 4, 5, device="meta")}, ValueError, r"C must be on the device of u, cpu, got meta"),
    "backend": ({"backend": "cuda"}, ValueError, r"unknown backend 'cuda', expected one of .*reference"),
}  # fmt: skip


@pytest.mark.parametrize(("changed", "error", "message"), SCAN_CASES.values(), ids=SCAN_CASES)
def test_scan(changed, error, message):
    with pytest.raises(error, match=message):
        selective_scan(**{**scan_arguments(), **changed})


def test_a_backend_by_name_is_kept_or_refused(monkeypatch):
    monkeypatch.setattr(by_name("torch"), "unavailable", lambda device=None: "it is away")
    assert backends()["torch"] == (False, "it is away")
    refusal = "'torch' was asked for by name but cannot run: it is away"
    with pytest.raises(RuntimeError, match=refusal):
        selective_scan(**scan_arguments(), backend="torch")
    with pytest.raises(RuntimeError, match=refusal), use_backend("torch"):
        pass
    monkeypatch.setenv("MUSE_ADAPTER_BACKEND", "torch")
    with pytest.raises(RuntimeError, match=refusal):
        selective_scan(**scan_arguments())
    with use_backend("reference"):  # beats the environment
        selective_scan(**scan_arguments())
    monkeypatch.setenv("MUSE_ADAPTER_BACKEND", "nonsense")
    with pytest.raises(ValueError, match="unknown backend 'nonsense'"):
        selective_scan(**scan_arguments())

"""Which backends of the scan the tests run on the CPU."""

from __future__ import annotations

from muse_adapter import ops


def left_out() -> dict[str, str]:
    """Say for each backend that the tests leave out on the CPU why they do."""
    reasons = {name: status.reason for name, status in ops.backends("cpu").items()}
    reasons["triton"] = "its interpreter is slow: tests/ops has smaller cases"
    return {name: reason for name, reason in reasons.items() if reason}


def cpu_backends() -> list[str]:
    """List the backends that the tests run on the CPU."""
    return [name for name in ops.backends("cpu") if name not in left_out()]

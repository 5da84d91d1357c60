"""Which backend runs: argument, `use_backend`, MUSE_ADAPTER_BACKEND, then automatic by device."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Iterator
from typing import NamedTuple

import torch

from muse_adapter.ops import self_check
from muse_adapter.ops.backend import Backend, by_name
from muse_adapter.ops.mamba_ssm import MAMBA_SSM
from muse_adapter.ops.numba_cpu import NUMBA
from muse_adapter.ops.onnx_export import ONNX, exporting_to_onnx
from muse_adapter.ops.recurrent import TORCH
from muse_adapter.ops.reference import REFERENCE
from muse_adapter.ops.torch_private import constant_when_compiled
from muse_adapter.ops.triton_gpu import TRITON

logger = logging.getLogger("muse_adapter")

# In the order of the automatic choice: the first that may be taken on the device is. They are
# imported here, and not when first asked for, which may be while torch.compile traces; what each of
# them needs is imported when it first runs.
BACKENDS: dict[str, Backend] = {
    backend.name: backend for backend in (NUMBA, TRITON, MAMBA_SSM, TORCH, REFERENCE)
}
ENVIRONMENT = "MUSE_ADAPTER_BACKEND"

# Compiled code looks at it before every call; at a `contextvars.ContextVar` it cannot look.
_chosen = threading.local()


class BackendStatus(NamedTuple):
    """What `backends()` says of one backend.

    Attributes:
        available: Whether it can run on the device asked about.
        reason: None, or why it cannot and what would fix it.
    """

    available: bool
    reason: str | None


def backends(device: torch.device | str | None = None) -> dict[str, BackendStatus]:
    """Say for each backend whether it runs here.

    Args:
        device: Where it is to run; None asks about this machine at large.

    Returns:
        Name -> `BackendStatus`, in the order of the automatic choice.
    """
    device = None if device is None else torch.device(device)
    reasons = {name: backend.unavailable(device) for name, backend in BACKENDS.items()}
    return {name: BackendStatus(reason is None, reason) for name, reason in reasons.items()}


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run this thread's scans inside the `with` block on one backend (an argument still wins).

    Backward passes follow their forward pass, wherever they are called. A graph of torch.compile
    holds the backend that was chosen when it was traced; where the choice has changed since, the
    call compiles anew. An exported program keeps its backend for good.

    Args:
        name: Name of a backend.

    Raises:
        ValueError: The name is no backend's.
        RuntimeError: The backend cannot run on this machine.
    """
    by_name(name).require(None)
    before = getattr(_chosen, "name", None)
    _chosen.name = name
    try:
        yield
    finally:
        _chosen.name = before


def choose(device: torch.device, name: str | None = None, *, only_here: bool = False) -> Backend:
    """Choose the backend for tensors on a device; one asked for by name is taken or refused.

    Args:
        device: Where the tensors are.
        name: The name that an argument gives.
        only_here: Pass over a name from `use_backend` or the environment that cannot run on the
            device: it was given for a model elsewhere, whose vectors are searched here.

    Raises:
        ValueError: The name is no backend's.
        RuntimeError: The backend cannot run on the device.
    """
    if exporting_to_onnx():
        return ONNX
    return BACKENDS[_resolve(device, name, getattr(_chosen, "name", None), only_here)]


def backend_for(device: torch.device) -> str:
    """Return the name of the backend that a scan on `device` would take now; raises as `choose`."""
    return choose(device).name


@constant_when_compiled
def _resolve(
    device: torch.device, argument: str | None, chosen: str | None, only_here: bool
) -> str:
    """Return the name of the backend."""
    for source, wanted in (
        ("backend argument", argument),
        ("use_backend", chosen),
        (ENVIRONMENT, os.environ.get(ENVIRONMENT)),
    ):
        if wanted:
            if only_here and wanted != argument and by_name(wanted).unavailable(device) is not None:
                continue
            by_name(wanted).require(device)
            return _logged(wanted, source)
    for name, backend in BACKENDS.items():
        if (
            backend.automatic(device)
            and backend.unavailable(device) is None
            and (not backend.self_checked or self_check.passed(backend, TORCH, device))
        ):
            return _logged(name, f"automatic for {device.type}")
    raise AssertionError("the reference backend runs everywhere")


_announced: set[tuple[str, str]] = set()


def _logged(name: str, source: str) -> str:
    """Log a choice once."""
    if (name, source) not in _announced:
        _announced.add((name, source))
        logger.info("selective scan: backend %s (%s)", name, source)
    return name

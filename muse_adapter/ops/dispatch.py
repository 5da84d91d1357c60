"""Which backend runs the scan: argument, `use_backend`, MUSE_ADAPTER_BACKEND, then automatic.

A backend is a module with `NAME`, `unavailable(device)` (None, or why it cannot run and what would
fix it), perhaps `AUTOMATIC = False` (it runs only where it was asked for by name) and

    scan(x, delta, A, B, C, D, delta_bias, *, delta_softplus, reverse, lengths) -> (y, last_state)

    x, delta: (batch, L, E), any floating type and strides.
    A: (E, S).
    B, C: (batch, L, G, S), channel e belongs to group e // (E // G); or (1, 1, E, S), constant in
        time.
    D, delta_bias: (E,) or None.
    reverse: time runs from the last position to the first.
    lengths: (batch,) integers or None. What stands at or behind a video's length is never read,
        gets the output 0 and the gradient 0.
    y: (batch, L, E), last_state: (batch, E, S), both in the type of the state: float64 for a
        float64 x, else float32. Differentiable in every tensor, through both outputs.

Where torch.compile may look into the torch operations of `scan` (`reference`), that is all. Where
it may not, `scan = functools.partial(operator.scan, NAME)`, a registered operator that calls three
functions of the module, on plain tensors, below autograd and with autocast off. `inputs` are those
of `scan`, `flags` its keywords.

    kept_shape(batch, L, E, S) -> shape
    scan_forward(*inputs, **flags, kept) -> (y, last_state)
    scan_backward(grad_y, grad_state, kept, *inputs, **flags) -> gradients

    kept: what the forward pass leaves to the backward pass: one tensor of `kept_shape` in the type
        of the state, uninitialised before the forward pass; there None where no backward pass will
        come. Sizes may be symbolic in `kept_shape`, and only there.
    y, last_state: as above, and no view of an input.
    grad_y, grad_state: in the type of the state, any strides; None stands for zeros.
    gradients: of the seven inputs, in their shapes and any floating type, None for an absent D or
        delta_bias; no view of an input or of each other.

It may also have, where it does better than one direction after the other,

    bidirectional_scan(forward, backward, z, *, lengths, positions) -> y
    causal_conv1d_silu(x, weights, end) -> (y,) or (y, y)
    mamba_inference(tokens, in_proj, directions, lengths, positions, end) -> y or None
    conv3x3(x, weight, bias) -> y or None

with the arguments and results of the functions of `muse_adapter.ops` that bear these names.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import NamedTuple

import torch

logger = logging.getLogger("muse_adapter")

# In the order of the automatic choice: the first that can run on the device is taken.
MODULES = {
    "numba": "muse_adapter.ops.numba_cpu",
    "triton": "muse_adapter.ops.triton_gpu",
    "mamba_ssm": "muse_adapter.ops.mamba_ssm",
    "torch": "muse_adapter.ops.recurrent",
    "reference": "muse_adapter.ops.reference",
}
ENVIRONMENT = "MUSE_ADAPTER_BACKEND"

# Compiled code looks at it before every call; at a `contextvars.ContextVar` it cannot look.
_chosen = threading.local()
_loaded: dict[str, ModuleType] = {}


class BackendStatus(NamedTuple):
    """What `backends()` says of one backend.

    Attributes:
        available: it can run on the device asked about.
        reason: None, or why it cannot and what would fix it.
    """

    available: bool
    reason: str | None


def backends(device: torch.device | str | None = None) -> dict[str, BackendStatus]:
    """Say for each backend whether it runs here.

    Args:
        device: where it is to run; None asks about this machine at large.

    Returns:
        Name -> `BackendStatus`, in the order of the automatic choice.
    """
    device = None if device is None else torch.device(device)
    reasons = {name: _module(name).unavailable(device) for name in MODULES}
    return {name: BackendStatus(reason is None, reason) for name, reason in reasons.items()}


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run this thread's scans inside the `with` block on one backend (an argument still wins).

    Backward passes follow their forward pass, wherever they are called. A graph of torch.compile
    holds the backend that was chosen when it was traced; where the choice has changed since, the
    call compiles anew. An exported program keeps its backend for good.

    Raises:
        ValueError: the name is no backend's.
        RuntimeError: the backend cannot run on this machine.
    """
    require(name, None)
    before = getattr(_chosen, "name", None)
    _chosen.name = name
    try:
        yield
    finally:
        _chosen.name = before


def choose(device: torch.device, name: str | None = None) -> ModuleType:
    """The backend's module for tensors on `device`; a choice by name is kept or refused.

    Raises:
        ValueError: the name is no backend's.
        RuntimeError: the backend cannot run on `device`.
    """
    return _loaded[_resolve(device, name, getattr(_chosen, "name", None))]


def _resolve(device: torch.device, argument: str | None, chosen: str | None) -> str:
    """Name of the backend, whose module then stands in `_loaded`."""
    for source, wanted in (
        ("backend argument", argument),
        ("use_backend", chosen),
        (ENVIRONMENT, os.environ.get(ENVIRONMENT)),
    ):
        if wanted:
            require(wanted, device)
            return _announced(wanted, source)
    for automatic in MODULES:
        module = _module(automatic)
        if getattr(module, "AUTOMATIC", True) and module.unavailable(device) is None:
            return _announced(automatic, f"automatic for {device.type}")
    raise AssertionError("the reference backend runs everywhere")


# To the compiler a call is the constant that it returns. `torch.compiler.assume_constant_result`
# sets no more than this, but importing the compiler for it takes a second.
_resolve._dynamo_marked_constant = True  # type: ignore[attr-defined]


def backend_for(device: torch.device) -> str:
    """Name of the backend that a scan on `device` would take now; raises as `choose` does."""
    name: str = choose(device).NAME
    return name


def require(name: str, device: torch.device | None) -> ModuleType:
    """The module of a backend asked for by name; errors as in `choose`."""
    if name not in MODULES:
        raise ValueError(f"unknown backend {name!r}, expected one of {', '.join(sorted(MODULES))}")
    module = _module(name)
    reason = module.unavailable(device)
    if reason is not None:
        raise RuntimeError(f"the backend {name!r} was asked for by name but cannot run: {reason}")
    return module


def _module(name: str) -> ModuleType:
    if name not in _loaded:
        _loaded[name] = importlib.import_module(MODULES[name])
    return _loaded[name]


def load() -> None:
    """Import all backends; what each of them needs is imported when it first runs."""
    for name in MODULES:
        _module(name)


_logged: set[tuple[str, str]] = set()


def _announced(name: str, source: str) -> str:
    if (name, source) not in _logged:
        _logged.add((name, source))
        logger.info("selective scan: backend %s (%s)", name, source)
    return name

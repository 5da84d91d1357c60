"""The heads that are measured: how each is built and on which kernel, or why it cannot run here."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.heads.baselines import (
    MeanPooling,
    TemporalTransformer,
    mamba_ssm_kernels,
    own_kernels,
    published_way,
    with_written_out_attention,
)
from muse_adapter import MultiScaleMamba
from muse_adapter.ops import backend_for, backends, mamba_ssm, use_backend

# Torch's own names of its attention kernels, in its order.
KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}


@dataclass(frozen=True)
class Variant:
    """One head on one kernel.

    Attributes:
        what: What tables call it.
        function: Variants of one function compute the same from the same weights.
        build: Width D -> module that maps tokens (B, T, N, D), by keyword `grid`, to (B, D).
        force: Context that chooses its kernel.
    """

    what: str
    function: str
    build: Callable[[int], nn.Module]
    force: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext


def variants(device: str, dtype: torch.dtype) -> dict[str, Variant | str]:
    """List all heads by name, in the order of the tables.

    Args:
        device: "cpu" or "cuda".
        dtype: Type of the computation.

    Returns:
        Each head; a text instead says why one cannot run here.
    """
    found: dict[str, Variant | str] = {}
    for name, status in backends(device).items():
        reason = status.reason
        if name == "triton" and device == "cpu" and status.available:
            reason = "on a CPU its kernels run in Triton's interpreter, whose time says nothing"
        if name == "mamba_ssm" and dtype == torch.float64:
            reason = reason or "mamba-ssm has no float64 kernels"
        found[f"muse-{name}"] = reason or Variant(
            f"MUSE, `{name}`", "muse", _muse("bimamba"), _backend(name)
        )
    found["muse-published"] = _published_unavailable(device, dtype) or Variant(
        "MUSE as published, mamba-ssm",
        "muse",
        lambda dim: published_way(_release(dim), mamba_ssm_kernels()),
    )
    automatic = backend_for(torch.device(device))
    for mixer, what in (("mamba", "one direction"), ("conv", "convolution")):
        found[mixer] = Variant(f"{what}, `{automatic}`", mixer, _muse(mixer), _backend(automatic))
    for name, kernel in KERNELS.items():
        found[f"attention-{name}"] = _kernel_unavailable(kernel, device, dtype) or Variant(
            f"attention, SDPA {name}", "attention", _muse("attention"), _kernel(kernel)
        )
    found["attention-plain"] = Variant("attention, written out", "attention", _written_out)
    found["seqTransf"] = Variant("CLIP4Clip's seqTransf", "seqTransf", TemporalTransformer)
    found["meanP"] = Variant("CLIP4Clip's meanP", "meanP", lambda dim: MeanPooling())
    return found


def definition(function: str) -> Variant:
    """Return what variants of a function must agree with."""
    if function in ("muse", "mamba", "conv"):
        mixer = "bimamba" if function == "muse" else function
        return Variant("the definition", function, _muse(mixer), _backend("reference"))
    builders: dict[str, Callable[[int], nn.Module]] = {
        "attention": _written_out,
        "seqTransf": TemporalTransformer,
        "meanP": lambda dim: MeanPooling(),
    }
    return Variant("the definition", function, builders[function])


@functools.cache
def countable(name: str, variant: Variant) -> Variant:
    """Put the same arithmetic on kernels that a counter of operations can see.

    Variants with the same operations come out equal, so that these are counted once.
    """
    if name == "muse-published":
        build = lambda dim: published_way(_release(dim), own_kernels())  # noqa: E731
        return Variant(name, variant.function, build)
    if variant.function in ("muse", "mamba", "conv"):
        return Variant(variant.function, variant.function, variant.build, _backend("torch"))
    if name in ("attention-flash", "attention-efficient", "attention-cudnn"):
        force = _kernel(SDPBackend.FLASH_ATTENTION)
        return Variant(variant.function, variant.function, variant.build, force)
    return variant


def _release(dim: int, mixer: str = "bimamba") -> MultiScaleMamba:
    # The default start, "identity", would hide the mixers from the comparison of results.
    return MultiScaleMamba(dim=dim, mixer=mixer, init="release")


@functools.cache
def _muse(mixer: str) -> Callable[[int], nn.Module]:
    return lambda dim: _release(dim, mixer)


def _written_out(dim: int) -> nn.Module:
    return with_written_out_attention(_release(dim, "attention"))


@functools.cache
def _backend(name: str) -> Callable[[], AbstractContextManager[object]]:
    return lambda: use_backend(name)


@functools.cache
def _kernel(kernel: SDPBackend) -> Callable[[], AbstractContextManager[object]]:
    return lambda: sdpa_kernel(kernel)


def _kernel_unavailable(kernel: SDPBackend, device: str, dtype: torch.dtype) -> str | None:
    """Say why torch does not offer the kernel, found by asking it to run."""
    query = torch.zeros(1, 1, 8, 64, device=device, dtype=dtype, requires_grad=True)
    try:
        with sdpa_kernel(kernel):
            F.scaled_dot_product_attention(query, query, query).sum().backward()
    except RuntimeError:
        return f"torch does not offer this kernel for {dtype} on {device}"
    return None


def _published_unavailable(device: str, dtype: torch.dtype) -> str | None:
    reason = mamba_ssm.MAMBA_SSM.unavailable(torch.device(device)) or mamba_ssm._convolution_error()
    if reason is None and dtype == torch.float64:
        reason = "mamba-ssm has no float64 kernels"
    return reason

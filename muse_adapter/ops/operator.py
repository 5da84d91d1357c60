"""The scan as an operator of torch: one node for the compiler, the exporter and autograd.

`muse_adapter::scan` and `muse_adapter::scan_backward` run the kernels of a backend; which one is a
constant among their arguments, so a graph keeps the backend that it was traced with. Tracing sees
shapes and types only and never enters a kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from muse_adapter.ops.autocast import without_autocast
from muse_adapter.ops.dispatch import require
from muse_adapter.ops.library import refuse_second, register

# On a CPU, gradients below these may be given as 0: arithmetic on denormal numbers costs a hundred
# times as much, and the matrix products that gradients go into, with factors down to 2**-26, would
# meet them.
NEGLIGIBLE = {torch.float32: 2.0**-100, torch.float64: 2.0**-990}

INPUTS = (
    "Tensor x, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? delta_bias, "
    "Tensor? lengths, bool delta_softplus, bool reverse, str backend"
)


def scan(
    backend: str,
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    *,
    delta_softplus: bool,
    reverse: bool,
    lengths: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Run the scan on a backend, differentiable in every tensor and through both outputs.

    Args and returns are those of `scan` in the contract of `muse_adapter.ops.dispatch`.

    Raises:
        RuntimeError: the backend cannot run on the device of `x`; or a second derivative is asked
            for.
    """
    tensors = (x, delta, A, B, C, D, delta_bias)
    # What the backward pass needs is an output of the operator, to be asked for.
    keep = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    y, state, _ = torch.ops.muse_adapter.scan(
        *tensors, lengths, delta_softplus, reverse, backend, keep
    )
    return y, state


def _scan(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    lengths: Tensor | None,
    delta_softplus: bool,
    reverse: bool,
    backend: str,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    module = require(backend, x.device)
    kept = _empty_kept(x, A, module, keep)
    with without_autocast(x.device.type):
        y, state = module.scan_forward(
            *(x, delta, A, B, C, D, delta_bias),
            delta_softplus=delta_softplus,
            reverse=reverse,
            lengths=lengths,
            kept=kept if keep else None,
        )
    return y.contiguous(), state.contiguous(), kept


def _scan_fake(x: Tensor, delta: Tensor, A: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    *_, backend, keep = others
    dtype = state_dtype(x)
    batch, _, channels = x.shape
    state = x.new_empty((batch, channels, A.shape[1]), dtype=dtype)
    return x.new_empty(x.shape, dtype=dtype), state, _empty_kept(x, A, require(backend, None), keep)


def _scan_backward(
    grad_y: Tensor | None,
    grad_state: Tensor | None,
    kept: Tensor,
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    lengths: Tensor | None,
    delta_softplus: bool,
    reverse: bool,
    backend: str,
) -> tuple[Tensor, ...]:
    module = require(backend, x.device)
    tensors = (x, delta, A, B, C, D, delta_bias)
    with without_autocast(x.device.type):
        gradients: Sequence[Tensor | None] = module.scan_backward(
            *(grad_y, grad_state, kept, *tensors),
            delta_softplus=delta_softplus,
            reverse=reverse,
            lengths=lengths,
        )
    return tuple(
        x.new_empty(0) if tensor is None or gradient is None
        else gradient.to(tensor.dtype).contiguous()
        for tensor, gradient in zip(tensors, gradients, strict=True)
    )  # fmt: skip


def _scan_backward_fake(
    grad_y: Tensor | None, grad_state: Tensor | None, kept: Tensor, *inputs: Any
) -> tuple[Tensor, ...]:
    x, *_ = tensors = inputs[:7]
    return tuple(
        x.new_empty(
            0 if tensor is None else tensor.shape, dtype=(x if tensor is None else tensor).dtype
        )
        for tensor in tensors
    )


def _empty_kept(x: Tensor, A: Tensor, module: ModuleType, keep: bool) -> Tensor:
    """Memory for what the forward pass keeps for the backward pass."""
    if not keep:
        return x.new_empty(0, dtype=state_dtype(x))
    return x.new_empty(module.kept_shape(*x.shape, A.shape[1]), dtype=state_dtype(x))


def state_dtype(x: Tensor) -> torch.dtype:
    """The type of states, outputs and sums: float64 for a float64 x, else float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *_, keep = inputs
    kept = output[2]
    ctx.mark_non_differentiable(kept)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:8], kept)
    ctx.options = inputs[8:11]
    ctx.keep = keep


def _differentiate(
    ctx: Any, grad_y: Tensor | None, grad_state: Tensor | None, _: Tensor | None
) -> tuple[Tensor | None, ...]:
    if not ctx.keep:
        raise RuntimeError("muse_adapter::scan has a gradient only if called with keep=True")
    *tensors, kept = ctx.saved_tensors
    gradients = torch.ops.muse_adapter.scan_backward(
        grad_y, grad_state, kept, *tensors, *ctx.options
    )
    given = (
        None if tensor is None else gradient
        for tensor, gradient in zip(tensors, gradients, strict=False)  # `lengths` has none
    )
    return (*given, *[None] * 5)


def _setup_second(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.backend = inputs[-1]


def _refuse_second(ctx: Any, *gradients: Tensor | None) -> Any:
    refuse_second(f"the {ctx.backend} backend of the scan has")(ctx)


register(
    "scan",
    f"({INPUTS}, bool keep) -> (Tensor, Tensor, Tensor)",
    *(_scan, _scan_fake, _differentiate, _setup),
)
register(
    "scan_backward",
    f"(Tensor? grad_y, Tensor? grad_state, Tensor kept, {INPUTS}) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    *(_scan_backward, _scan_backward_fake, _refuse_second, _setup_second),
)

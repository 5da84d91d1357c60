"""The kernels as operators of torch, which tracing does not look into: scan, gate, convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from muse_adapter.ops.dispatch import require
from muse_adapter.ops.library import refuse_second, register
from muse_adapter.ops.operator import state_dtype

FIELDS = 7  # x, delta, A, B, C, D, bias of a direction


def scans(
    fields: list[Tensor], lengths: Tensor | None, backwards: int, softplus: bool
) -> tuple[list[Tensor], list[Tensor]]:
    """One or two scans in one launch, differentiable once: outputs, and last states (batch, E, S).

    Args:
        fields: of each direction what `muse_adapter.ops.triton_gpu.function.Side` lists.
        lengths: (batch,) or None.
        backwards: bit d: direction d runs backwards.
        softplus: pass the step sizes through softplus.
    """
    count = len(fields) // FIELDS
    results = torch.ops.muse_adapter.triton_scan(
        fields, lengths, backwards, softplus, _tracked(fields)
    )
    return results[:count], results[count : 2 * count]


def gated(z: Tensor, positions: Tensor | None, y: list[Tensor]) -> Tensor:
    """The sum of the directions, times SiLU(z), at the positions; differentiable once."""
    return torch.ops.muse_adapter.triton_gate(z, positions, y, _tracked([z, *y]))[0]


def convolutions(x: Tensor, weights: list[Tensor], end: int) -> list[Tensor]:
    """SiLU of the convolutions, see `muse_adapter.ops.causal_conv1d_silu`; differentiable once."""
    return torch.ops.muse_adapter.triton_convolutions(x, weights, end)


def _tracked(tensors: Sequence[Tensor]) -> bool:
    """Whether a gradient may be asked for: inside of an operator nothing says so."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def _plan(
    fields: list[Tensor], lengths: Tensor | None, backwards: int, softplus: bool
) -> tuple[Any, Any]:
    require("triton", fields[0].device)  # an exported program may run elsewhere
    from muse_adapter.ops.triton_gpu import function

    sides = [function.Side(*fields[i : i + FIELDS]) for i in range(0, len(fields), FIELDS)]
    return function, function.Plan(sides, backwards, softplus, lengths)


def _scan(
    fields: list[Tensor], lengths: Tensor | None, backwards: int, softplus: bool, keep: bool
) -> list[Tensor]:
    with torch.cuda.device_of(fields[0]):  # kernels are launched on the current device
        function, plan = _plan(fields, lengths, backwards, softplus)
        kept = plan.empty(*plan.shape(plan.chunks)) if keep else plan.empty(0)
        y, last = function.run_forward(plan, kept if keep else None)
    return [*y, *(state.transpose(1, 2).contiguous() for state in last), kept]


def _scan_fake(
    fields: list[Tensor], lengths: Tensor | None, backwards: int, softplus: bool, keep: bool
) -> list[Tensor]:
    from muse_adapter.ops.triton_gpu.function import CHUNK

    sides = [fields[i : i + FIELDS] for i in range(0, len(fields), FIELDS)]
    x, states, dtype = fields[0], fields[2].shape[1], state_dtype(fields[0])
    batch, _, channels = x.shape
    longest = max(side[0].shape[1] for side in sides)
    chunks = (longest + CHUNK - 1) // CHUNK
    kept = (chunks, len(sides), batch, states, channels) if keep else (0,)
    return [
        *(x.new_empty(side[0].shape, dtype=dtype) for side in sides),
        *(x.new_empty((batch, channels, states), dtype=dtype) for _ in sides),
        x.new_empty(kept, dtype=dtype),
    ]


def _setup_scan(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    fields, lengths, *options, keep = inputs
    ctx.mark_non_differentiable(output[-1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(lengths, output[-1], *fields)
    ctx.options, ctx.keep = options, keep


def _differentiate_scan(ctx: Any, grads: list[Tensor | None]) -> tuple[Any, ...]:
    if not ctx.keep:
        raise RuntimeError("muse_adapter::triton_scan has a gradient only with keep=True")
    lengths, kept, *fields = ctx.saved_tensors
    count = len(fields) // FIELDS
    dtype = state_dtype(fields[0])
    dy = [
        torch.zeros_like(x, dtype=dtype) if grad is None else grad
        for grad, x in zip(grads[:count], fields[::FIELDS], strict=True)
    ]
    states = grads[count : 2 * count]
    dlast = []
    if any(grad is not None for grad in states):
        empty = kept.new_zeros((len(fields[0]), *fields[2].shape))
        dlast = [empty if grad is None else grad for grad in states]
    gradients = torch.ops.muse_adapter.triton_scan_backward(
        dy, dlast, kept, fields, lengths, *ctx.options
    )
    return gradients, None, None, None, None


def _scan_backward(
    dy: list[Tensor],
    dlast: list[Tensor],
    kept: Tensor,
    fields: list[Tensor],
    lengths: Tensor | None,
    backwards: int,
    softplus: bool,
) -> list[Tensor]:
    with torch.cuda.device_of(kept):
        function, plan = _plan(fields, lengths, backwards, softplus)
        last = torch.stack(dlast).transpose(2, 3).contiguous() if dlast else None
        gradients = [grad for side in function.run_backward(plan, kept, dy, last) for grad in side]
    return [grad.to(like.dtype).contiguous() for grad, like in zip(gradients, fields, strict=True)]


def _scan_backward_fake(
    dy: list[Tensor], dlast: list[Tensor], kept: Tensor, fields: list[Tensor], *options: Any
) -> list[Tensor]:
    return [field.new_empty(field.shape) for field in fields]


def _gate(
    z: Tensor, positions: Tensor | None, y: list[Tensor], keep: bool
) -> tuple[Tensor, Tensor]:
    from muse_adapter.ops.triton_gpu import gate

    return gate.run_forward(z, positions, y, keep)


def _gate_fake(
    z: Tensor, positions: Tensor | None, y: list[Tensor], keep: bool
) -> tuple[Tensor, Tensor]:
    return z.new_empty(z.shape), z.new_empty(z.shape if keep else (0,))


def _setup_gate(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    z, positions, y, ctx.keep = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(z, output[1], positions)
    ctx.lengths, ctx.wide = [tensor.shape[1] for tensor in y], y[0].dtype == torch.float64


def _differentiate_gate(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
    if not ctx.keep:
        raise RuntimeError("muse_adapter::triton_gate has a gradient only with keep=True")
    z, total, positions = ctx.saved_tensors
    dz, dy = torch.ops.muse_adapter.triton_gate_backward(grad, z, total, ctx.wide)
    if positions is None:
        return dz, None, [dy] * len(ctx.lengths), None
    videos = torch.arange(len(z), device=z.device).unsqueeze(1)
    # Adds where a position is wanted twice; in a fixed order, unlike `scatter_add`.
    placed = [
        dy.new_zeros(len(z), length, z.shape[2]).index_put((videos, positions), dy, accumulate=True)
        for length in ctx.lengths
    ]
    return dz, None, placed, None


def _gate_backward(grad: Tensor, z: Tensor, total: Tensor, wide: bool) -> tuple[Tensor, Tensor]:
    from muse_adapter.ops.triton_gpu import gate

    return gate.run_backward(grad, z, total, torch.float64 if wide else torch.float32)


def _gate_backward_fake(
    grad: Tensor, z: Tensor, total: Tensor, wide: bool
) -> tuple[Tensor, Tensor]:
    dtype = torch.float64 if wide else torch.float32
    return z.new_empty(z.shape), z.new_empty(z.shape, dtype=dtype)


def _convolutions(x: Tensor, weights: list[Tensor], end: int) -> list[Tensor]:
    require("triton", x.device)
    from muse_adapter.ops.triton_gpu import convolution

    return convolution.run_forward(x, weights, end)


def _convolutions_fake(x: Tensor, weights: list[Tensor], end: int) -> list[Tensor]:
    batch, length, channels = x.shape
    return [x.new_empty(batch, size, channels) for size in (end, length)[: len(weights) // 2]]


def _setup_convolutions(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    x, weights, ctx.end = inputs
    ctx.save_for_backward(x, *weights)


def _differentiate_convolutions(ctx: Any, grads: list[Tensor]) -> tuple[Any, ...]:
    x, *weights = ctx.saved_tensors
    dx, *dweights = torch.ops.muse_adapter.triton_convolutions_backward(x, weights, grads, ctx.end)
    return dx, dweights, None


def _convolutions_backward(
    x: Tensor, weights: list[Tensor], grads: list[Tensor], end: int
) -> list[Tensor]:
    from muse_adapter.ops.triton_gpu import convolution

    return convolution.run_backward(x, weights, grads, end)


def _convolutions_backward_fake(
    x: Tensor, weights: list[Tensor], grads: list[Tensor], end: int
) -> list[Tensor]:
    return [tensor.new_empty(tensor.shape) for tensor in (x, *weights)]


REFUSED = refuse_second("the triton backend has")
OPTIONS = "Tensor? lengths, int backwards, bool softplus"

register(
    "triton_scan",
    f"(Tensor[] fields, {OPTIONS}, bool keep) -> Tensor[]",
    *(_scan, _scan_fake, _differentiate_scan, _setup_scan),
)
register(
    "triton_scan_backward",
    f"(Tensor[] dy, Tensor[] dlast, Tensor kept, Tensor[] fields, {OPTIONS}) -> Tensor[]",
    *(_scan_backward, _scan_backward_fake, REFUSED),
)
register(
    "triton_gate",
    "(Tensor z, Tensor? positions, Tensor[] y, bool keep) -> (Tensor, Tensor)",
    *(_gate, _gate_fake, _differentiate_gate, _setup_gate),
)
register(
    "triton_gate_backward",
    "(Tensor grad, Tensor z, Tensor total, bool wide) -> (Tensor, Tensor)",
    *(_gate_backward, _gate_backward_fake, REFUSED),
)
register(
    "triton_convolutions",
    "(Tensor x, Tensor[] weights, SymInt end) -> Tensor[]",
    *(_convolutions, _convolutions_fake, _differentiate_convolutions, _setup_convolutions),
)
register(
    "triton_convolutions_backward",
    "(Tensor x, Tensor[] weights, Tensor[] grads, SymInt end) -> Tensor[]",
    *(_convolutions_backward, _convolutions_backward_fake, REFUSED),
)

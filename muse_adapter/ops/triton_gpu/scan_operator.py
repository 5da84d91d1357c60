"""The scans as custom operators, which tracing does not look into."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from muse_adapter.ops.backend import by_name
from muse_adapter.ops.checks import check_tensor
from muse_adapter.ops.inputs import ScanInputs, gradient_wanted, state_dtype
from muse_adapter.ops.library import refuse_second, register

FIELDS = 7  # x, delta, A, B, C, D, delta_bias of a direction


def scans(inputs: Sequence[ScanInputs]) -> tuple[list[Tensor], list[Tensor]]:
    """Run one or two scans in one launch, differentiable once.

    Args:
        inputs: One direction or two, over the same videos; two differ in L and `reverse` only.

    Returns:
        Outputs (batch, L, E) and last states (batch, E, S) of each.
    """
    fields, initial_states = [], []
    for scan in inputs:
        x, delta, A, B, C, D, delta_bias, initial_state, *_ = scan
        B, C = (_in_time(matrix, x) for matrix in (B, C))
        D, delta_bias = (A.new_zeros(A.shape[0]) if row is None else row for row in (D, delta_bias))
        fields += [x, delta, A, B, C, D, delta_bias]
        if initial_state is not None:
            initial_states.append(initial_state)
    *_, lengths, softplus, _ = inputs[0]
    backwards = sum(int(scan.reverse) << index for index, scan in enumerate(inputs))
    save = gradient_wanted([*fields, *initial_states])
    results = torch.ops.muse_adapter.triton_scan(
        fields, initial_states, lengths, backwards, softplus, save
    )
    return results[: len(inputs)], results[len(inputs) : 2 * len(inputs)]


def _in_time(matrix: Tensor, x: Tensor) -> Tensor:
    """Expand B or C to (batch, L, G, S); (1, 1, E, S), constant in time, is read as it is."""
    if matrix.shape[:2] == x.shape[:2] or (
        matrix.shape[:2] == (1, 1) and matrix.shape[2] == x.shape[2]
    ):
        return matrix
    return matrix.expand(*x.shape[:2], -1, -1)


def _plan(
    fields: list[Tensor],
    initial_states: list[Tensor],
    lengths: Tensor | None,
    backwards: int,
    softplus: bool,
) -> tuple[Any, Any]:
    by_name("triton").require(fields[0].device)  # an exported program may run elsewhere
    from muse_adapter.ops.triton_gpu import function

    _check_scans(fields, initial_states, lengths)
    sides = [function.Side(*fields[i : i + FIELDS]) for i in range(0, len(fields), FIELDS)]
    return function, function.Plan(sides, backwards, softplus, lengths)


def _check_scans(
    fields: list[Tensor], initial_states: list[Tensor], lengths: Tensor | None
) -> None:
    """Refuse directions that do not fit, or that differ in more than L."""
    if len(fields) not in (FIELDS, 2 * FIELDS):
        raise ValueError(f"fields must have {FIELDS} tensors or twice as many, got {len(fields)}")
    count = len(fields) // FIELDS
    if len(initial_states) not in (0, count):
        raise ValueError(f"initial_states must be none or {count}, got {len(initial_states)}")
    first = fields[:FIELDS]
    for index in range(count):
        side = fields[index * FIELDS : (index + 1) * FIELDS]
        initial = initial_states[index] if initial_states else None
        prefix = "" if count == 1 else f"direction {index}: "
        x, delta, A, B, C, D, bias = side
        ScanInputs(x, delta, A, B, C, D, bias, initial, lengths).check(prefix)
        for name, matrix, like in (("B", B, first[3]), ("C", C, first[4])):
            shape = tuple(matrix.shape)
            constant = shape[:2] == (1, 1) and shape[2] == x.shape[2]
            if not constant and shape[:2] != x.shape[:2]:
                raise ValueError(
                    f"{prefix}{name} must have shape (batch, L, G, S) or (1, 1, E, S), got {shape}"
                )
            if shape[2:] != like.shape[2:]:
                raise ValueError(f"{prefix}{name} must have the G and S of direction 0")
        if x.shape[::2] != first[0].shape[::2] or A.shape != first[2].shape:
            raise ValueError(f"{prefix}x and A must have the batch, E and S of direction 0")
        if [t.dtype for t in side[:5]] != [t.dtype for t in first[:5]]:
            raise TypeError(f"{prefix}x, delta, A, B and C must have the types of direction 0")


def _scan(
    fields: list[Tensor],
    initial_states: list[Tensor],
    lengths: Tensor | None,
    backwards: int,
    softplus: bool,
    save: bool,
) -> list[Tensor]:
    with torch.cuda.device_of(fields[0]):  # kernels are launched on the current device
        function, plan = _plan(fields, initial_states, lengths, backwards, softplus)
        saved_states = plan.empty(*plan.shape(plan.chunks)) if save else plan.empty(0)
        initial = plan.states(initial_states)
        y, last = function.run_forward(plan, initial, saved_states if save else None)
    return [*y, *last, saved_states]


def _saved_states_shape(fields: list[Tensor]) -> tuple[int, ...]:
    from muse_adapter.ops.triton_gpu.function import CHUNK

    longest = max(x.shape[1] for x in fields[::FIELDS])
    batch, _, channels = fields[0].shape
    chunks = (longest + CHUNK - 1) // CHUNK
    return chunks, len(fields) // FIELDS, batch, fields[2].shape[1], channels


def _scan_fake(
    fields: list[Tensor],
    initial_states: list[Tensor],
    lengths: Tensor | None,
    backwards: int,
    softplus: bool,
    save: bool,
) -> list[Tensor]:
    x, states, dtype = fields[0], fields[2].shape[1], state_dtype(fields[0])
    batch, _, channels = x.shape
    shape = _saved_states_shape(fields) if save else (0,)
    return [
        *(x.new_empty(side.shape, dtype=dtype) for side in fields[::FIELDS]),
        *(x.new_empty((batch, channels, states), dtype=dtype) for _ in fields[::FIELDS]),
        x.new_empty(shape, dtype=dtype),
    ]


def _setup_scan(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    fields, initial_states, lengths, *options, save = inputs
    ctx.mark_non_differentiable(output[-1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(lengths, output[-1], *fields, *initial_states)
    ctx.options, ctx.save, ctx.fields = options, save, len(fields)


def _differentiate_scan(ctx: Any, grads: list[Tensor | None]) -> tuple[Any, ...]:
    if not ctx.save:
        raise RuntimeError("muse_adapter::triton_scan has a gradient only with save=True")
    lengths, saved_states, *tensors = ctx.saved_tensors
    fields, initial_states = tensors[: ctx.fields], tensors[ctx.fields :]
    count = len(fields) // FIELDS
    dtype = state_dtype(fields[0])
    dy = [
        torch.zeros_like(x, dtype=dtype) if grad is None else grad
        for grad, x in zip(grads[:count], fields[::FIELDS], strict=True)
    ]
    states = grads[count : 2 * count]
    dlast = []
    if any(grad is not None for grad in states):
        empty = saved_states.new_zeros((len(fields[0]), *fields[2].shape))
        dlast = [empty if grad is None else grad for grad in states]
    gradients = torch.ops.muse_adapter.triton_scan_backward(
        dy, dlast, saved_states, fields, initial_states, lengths, *ctx.options
    )
    initial = gradients[len(gradients) - len(initial_states) :]
    return _by_field(fields, gradients), initial, None, None, None, None


def _by_field(fields: list[Tensor], gradients: list[Tensor]) -> list[Tensor]:
    """Take apart what the backward pass returns, see `gradient_parts.Gradients`.

    Views, which the results of an operator may not be of each other.
    """
    count = len(fields) // FIELDS
    channels, states = fields[2].shape
    rows, gains = gradients[: 2 * count], gradients[2 * count :]
    if _gains_stacked(fields):
        gains = [*gains[0].unbind(0), gains[1]]
    by_field = []
    for side in range(count):
        A, D, bias = gains[2 * count][side].split([channels * states, channels, channels])
        B, C = gains[2 * side : 2 * side + 2]
        by_field += [rows[side], rows[count + side], A.view(channels, states), B, C, D, bias]
    return [
        gradient if gradient.dtype == field.dtype else gradient.to(field.dtype)
        for gradient, field in zip(by_field, fields, strict=True)
    ]


def _gains_stacked(fields: list[Tensor]) -> bool:
    from muse_adapter.ops.triton_gpu.function import alike

    return alike([*fields[3::FIELDS], *fields[4::FIELDS]])


def _scan_backward(
    dy: list[Tensor],
    dlast: list[Tensor],
    saved_states: Tensor,
    fields: list[Tensor],
    initial_states: list[Tensor],
    lengths: Tensor | None,
    backwards: int,
    softplus: bool,
) -> list[Tensor]:
    with torch.cuda.device_of(saved_states):
        function, plan = _plan(fields, initial_states, lengths, backwards, softplus)
        like, count = ("x", fields[0]), plan.count
        check_tensor("saved_states", saved_states, _saved_states_shape(fields), like)
        if len(dy) != count or len(dlast) not in (0, count):
            raise ValueError(f"dy must be {count} and dlast none or {count} tensors")
        for grad, x in zip(dy, fields[::FIELDS], strict=True):
            check_tensor("dy", grad, tuple(x.shape), like)
        for grad in dlast:
            check_tensor("dlast", grad, (plan.batch, plan.E, plan.S), like)
        gradients = function.run_backward(
            *(plan, saved_states.to(plan.dtype).contiguous(), dy, plan.states(dlast)),
            initial=bool(initial_states),
        )
    gains = gradients.gains
    results = [*gradients.rows, *([gains] if isinstance(gains, Tensor) else gains)]
    results.append(gradients.weights)
    if gradients.initial is not None:
        states = gradients.initial.transpose(2, 3).unbind(0)
        results += [g.to(s.dtype).contiguous() for g, s in zip(states, initial_states, strict=True)]
    return results


def _scan_backward_fake(
    dy: list[Tensor],
    dlast: list[Tensor],
    saved_states: Tensor,
    fields: list[Tensor],
    initial_states: list[Tensor],
    *options: Any,
) -> list[Tensor]:
    x, count = fields[0], len(fields) // FIELDS
    gains = [fields[i] for side in range(count) for i in (side * FIELDS + 3, side * FIELDS + 4)]
    shapes = [(2 * count, *gains[0].shape)] if _gains_stacked(fields) else [g.shape for g in gains]
    channels, states = fields[2].shape
    return [
        *(side.new_empty(side.shape) for side in (*fields[::FIELDS], *fields[1::FIELDS])),
        *(gain.new_empty(shape) for gain, shape in zip(gains, shapes, strict=False)),
        x.new_empty((count, channels * (states + 2)), dtype=state_dtype(x)),
        *(state.new_empty(state.shape) for state in initial_states),
    ]


OPTIONS = "Tensor[] initial_states, Tensor? lengths, int backwards, bool softplus"

register(
    "triton_scan",
    f"(Tensor[] fields, {OPTIONS}, bool save) -> Tensor[]",
    *(_scan, _scan_fake, _differentiate_scan, _setup_scan),
)
register(
    "triton_scan_backward",
    f"(Tensor[] dy, Tensor[] dlast, Tensor saved_states, Tensor[] fields, {OPTIONS}) -> Tensor[]",
    *(_scan_backward, _scan_backward_fake, refuse_second("the triton backend has")),
)

"""The scan as a custom operator: one node for the compiler, the exporter and autograd.

`muse_adapter::scan` and `muse_adapter::scan_backward` run the kernels of a backend; which one is a
constant among their arguments, so a graph keeps the backend that it was traced with. Tracing sees
shapes and types only and never enters a kernel.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from muse_adapter.ops.autocast import without_autocast
from muse_adapter.ops.backend import Backend, by_name
from muse_adapter.ops.checks import check_tensor
from muse_adapter.ops.inputs import ScanInputs, gradient_wanted, state_dtype
from muse_adapter.ops.library import refuse_second, register

# On a CPU, gradients below these may be given as 0: arithmetic on denormal numbers costs a hundred
# times as much, and the matrix products that gradients go into, with factors down to 2**-26, would
# meet them.
NEGLIGIBLE = {torch.float32: 2.0**-100, torch.float64: 2.0**-990}

INPUTS = (
    "Tensor x, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? delta_bias, "
    "Tensor? initial_state, Tensor? lengths, bool delta_softplus, bool reverse, str backend"
)


class OperatorBackend(Backend):
    """A backend whose scan is the registered operator.

    Its methods run below autograd, on plain tensors and with autocast off.
    """

    def saved_states_shape(
        self, batch: int, length: int, channels: int, states: int
    ) -> tuple[int, ...]:
        """Shape of what the forward pass saves for the backward pass; sizes may be symbolic."""
        raise NotImplementedError

    def scan_forward(
        self, inputs: ScanInputs, saved_states: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Compute the outputs and the last state, as `scan` does; no view of an input.

        Args:
            inputs: See `ScanInputs`.
            saved_states: Uninitialised memory of `saved_states_shape` in the type of the state, to
                be written; None where no backward pass will come.
        """
        raise NotImplementedError

    def scan_backward(
        self,
        inputs: ScanInputs,
        saved_states: Tensor,
        grad_y: Tensor | None,
        grad_state: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        """Compute the gradients.

        Args:
            inputs: Those of the forward pass.
            saved_states: As the forward pass left it.
            grad_y: Gradient of y, in the type of the state, any strides; None stands for zeros.
            grad_state: Gradient of the last state, likewise.

        Returns:
            A gradient for each of `inputs.differentiable()`, in its shape and any floating type,
            None for one that is absent; no view of an input or of each other.
        """
        raise NotImplementedError

    def scan(self, inputs: ScanInputs) -> tuple[Tensor, Tensor]:
        """Scan in one direction, see `Backend.scan`.

        Raises:
            RuntimeError: It cannot run on the device of `x`; or a second derivative is asked for.
        """
        # What the backward pass needs is an output of the operator, to be asked for.
        save = gradient_wanted(inputs.differentiable())
        y, state, _ = torch.ops.muse_adapter.scan(*inputs, self.name, save)
        return y, state


def _backend(name: str) -> OperatorBackend:
    backend = by_name(name)
    if not isinstance(backend, OperatorBackend):
        raise ValueError(f"the scan of the backend {name!r} is not muse_adapter::scan")
    return backend


def _scan(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    *given, name, save = arguments
    inputs, backend = ScanInputs(*given), _backend(name)
    backend.require(inputs.x.device)
    inputs.check()
    saved_states = _empty_saved_states(inputs, backend, save)
    with without_autocast(inputs.x.device.type):
        y, state = backend.scan_forward(inputs, saved_states if save else None)
    return y.contiguous(), state.contiguous(), saved_states


def _scan_fake(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    *given, name, save = arguments
    inputs = ScanInputs(*given)
    x, dtype = inputs.x, state_dtype(inputs.x)
    state = x.new_empty((x.shape[0], x.shape[2], inputs.A.shape[1]), dtype=dtype)
    return (
        x.new_empty(x.shape, dtype=dtype),
        state,
        _empty_saved_states(inputs, _backend(name), save),
    )


def _empty_saved_states(inputs: ScanInputs, backend: OperatorBackend, save: bool) -> Tensor:
    """Allocate what the forward pass saves for the backward pass."""
    shape: tuple[int, ...] = (0,)
    if save:
        batch, length, channels = inputs.x.shape
        shape = backend.saved_states_shape(batch, length, channels, inputs.A.shape[1])
    return inputs.x.new_empty(shape, dtype=state_dtype(inputs.x))


def _scan_backward(
    grad_y: Tensor | None, grad_state: Tensor | None, saved_states: Tensor, *arguments: Any
) -> tuple[Tensor, ...]:
    *given, name = arguments
    inputs, backend = ScanInputs(*given), _backend(name)
    x = inputs.x
    backend.require(x.device)
    inputs.check()
    (batch, length, channels), states = x.shape, inputs.A.shape[1]
    dtype = state_dtype(x)
    saved_shape = backend.saved_states_shape(batch, length, channels, states)
    for what, tensor, expected in (
        ("grad_y", grad_y, (batch, length, channels)),
        ("grad_state", grad_state, (batch, channels, states)),
        ("saved_states", saved_states, saved_shape),
    ):
        check_tensor(what, tensor, expected, ("x", x))
    grad_y, grad_state = (None if g is None else g.to(dtype) for g in (grad_y, grad_state))
    with without_autocast(x.device.type):
        gradients = backend.scan_backward(
            inputs, saved_states.to(dtype).contiguous(), grad_y, grad_state
        )
    return tuple(
        x.new_empty(0) if tensor is None or gradient is None
        else gradient.to(tensor.dtype).contiguous()
        for tensor, gradient in zip(inputs.differentiable(), gradients, strict=True)
    )  # fmt: skip


def _scan_backward_fake(
    grad_y: Tensor | None, grad_state: Tensor | None, saved_states: Tensor, *arguments: Any
) -> tuple[Tensor, ...]:
    inputs = ScanInputs(*arguments[:-1])
    return tuple(
        inputs.x.new_empty(0) if tensor is None else tensor.new_empty(tensor.shape)
        for tensor in inputs.differentiable()
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, softplus, reverse, name, save = inputs
    saved_states = output[2]
    ctx.mark_non_differentiable(saved_states)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, saved_states)
    ctx.options = softplus, reverse, name
    ctx.save = save


def _differentiate(
    ctx: Any, grad_y: Tensor | None, grad_state: Tensor | None, _: Tensor | None
) -> tuple[Tensor | None, ...]:
    if not ctx.save:
        raise RuntimeError("muse_adapter::scan has a gradient only if called with save=True")
    *tensors, saved_states = ctx.saved_tensors
    gradients = torch.ops.muse_adapter.scan_backward(
        grad_y, grad_state, saved_states, *tensors, *ctx.options
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
    f"({INPUTS}, bool save) -> (Tensor, Tensor, Tensor)",
    *(_scan, _scan_fake, _differentiate, _setup),
)
register(
    "scan_backward",
    f"(Tensor? grad_y, Tensor? grad_state, Tensor saved_states, {INPUTS}) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    *(_scan_backward, _scan_backward_fake, _refuse_second, _setup_second),
)

"""All of torch's private interface that this package uses, one line and one reason each."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad

_Function = TypeVar("_Function", bound=Callable[..., Any])


def in_forward_mode() -> bool:
    """Whether derivatives in forward mode are being taken.

    An operator without such a derivative has to refuse the call itself: where no input wants a
    gradient, torch does not ask the operator, and the tangents would be lost without an error.
    """
    return forward_ad._current_level >= 0


def in_func_transform() -> bool:
    """Whether `torch.func` is transforming what runs: tensors may have no values of their own."""
    return torch._C._are_functorch_transforms_active()


def saved_tensor_hooks_are_off() -> bool:
    """Whether torch refuses hooks on saved tensors, which gradient checkpointing rests on.

    It does inside `torch.func`'s gradients.
    """
    return not torch._C._autograd._saved_tensors_hooks_is_enabled()  # type: ignore[attr-defined]


def below_autograd() -> AbstractContextManager[None]:
    """Inside the `with` block operators run as if no tensor wanted a gradient.

    What a gradient of one's own for an operator rests on, as torch's notes on custom operators say.
    """
    return torch._C._AutoDispatchBelowAutograd()


def apply_at_one_level(function: type[torch.autograd.Function], *arguments: Any) -> Any:
    """Apply a gradient of one's own to an operator, also inside `torch.func`'s transforms.

    Each transform calls the operator at its own level, as it calls those of torch, whereas
    `Function.apply` would start again at the first transform, and refuses to do so.
    """
    if not in_func_transform():
        return function.apply(*arguments)
    with enable_single_level_autograd_function():
        return super(torch.autograd.Function, function).apply(*arguments)  # type: ignore[misc]


def any_requires_grad(*arguments: Any) -> bool:
    """Whether one of the tensors, or tensors in lists, wants a gradient.

    In C++, since every call of an operator asks.
    """
    return torch._C._any_requires_grad(*arguments)


def constant_when_compiled(function: _Function) -> _Function:
    """Have torch.compile call the function while it traces, and take its result as a constant.

    `torch.compiler.assume_constant_result` sets no more than this attribute, but importing the
    compiler to set it takes a second of every process.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@functools.cache
def has_onednn_linear() -> bool:
    """Whether `onednn_linear` is there: in torch's builds for x86, unless it was turned off."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute a linear map of rows of float32 by oneDNN, without a gradient.

    Torch itself takes oneDNN for narrower types, and for float32 only at a lower precision.
    """
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return y


def scan_operator(
    step: Callable[..., Sequence[Tensor]],
    state: Sequence[Tensor],
    inputs: Sequence[Tensor],
    constants: Sequence[Tensor],
) -> list[Tensor]:
    """Trace a loop over the first axis: the operator that torch exports as an ONNX Scan.

    `torch.scan` around it compiles `step` first, which takes seconds and may fail.

    Args:
        step: From the state, a slice of each input and the constants to the next state and a slice
            of each output, none of which is a view.
        state: The state before the first step.
        inputs: Tensors with the steps along their first axis.
        constants: What each step reads.

    Returns:
        The state behind the last step, then the outputs, stacked.
    """
    # Loading it is what defines the operator.
    from torch._higher_order_ops.scan import scan_op

    return list(scan_op(step, list(state), list(inputs), tuple(constants)))

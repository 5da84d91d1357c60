"""Gradients of custom operators: `torch.library.register_autograd`, at a third of its time a call.

That one flattens lists of tensors by torch's general trees, which takes longer than a small kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from muse_adapter.ops.torch_private import (
    any_requires_grad,
    apply_at_one_level,
    below_autograd,
)


def autograd_kernel(
    name: str,
    operator: Callable[..., Any],
    differentiate: Callable[..., Any],
    setup: Callable[..., None],
    *,
    listed: bool,
) -> Callable[..., Any]:
    """Make what torch runs for an operator above autograd.

    Args:
        name: Of the operator, for profiles and errors.
        operator: The operator; it returns a tensor, a tuple or a list of tensors.
        differentiate: Its gradient, see `torch.library.register_autograd`. A list of results has
            its gradients in a list; `ctx.needs_input_grad` counts tensors of lists one by one.
        setup: What is saved for the gradient.
        listed: Whether the results are a list.
    """

    class Gradient(torch.autograd.Function):
        """The operator over its arguments one by one; the last says which of them were lists."""

        @staticmethod
        def forward(ctx: Any, *flat: Any) -> Any:
            ctx.sizes = flat[-1]
            arguments = _grouped(flat, ctx.sizes)
            # `torch.func` may differentiate the call below once more: `apply` turns gradients off,
            # and its derivative would be lost without an error.
            with torch.enable_grad(), below_autograd():
                result = operator(*arguments)
                setup(ctx, arguments, result)
            return tuple(result) if listed else result

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
            given = differentiate(ctx, list(grads)) if listed else differentiate(ctx, *grads)
            flat: list[Any] = []
            for gradient, size in zip(
                given if isinstance(given, tuple) else (given,), ctx.sizes, strict=True
            ):
                if size is None:
                    flat.append(gradient)
                else:
                    flat += [None] * size if gradient is None else gradient
            return *flat, None

    # The node of the graph has the name that the class is made with.
    make: Any = type(Gradient)
    named = make(name, (Gradient,), {})

    def run(*arguments: Any) -> Any:
        if not (torch.is_grad_enabled() and any_requires_grad(*arguments)):
            with below_autograd():
                return operator(*arguments)
        sizes = tuple(len(a) if isinstance(a, (list, tuple)) else None for a in arguments)
        flat: list[Any] = []
        for argument, size in zip(arguments, sizes, strict=True):
            if size is None:
                flat.append(argument)
            else:
                flat += argument
        result = apply_at_one_level(named, *flat, sizes)
        return list(result) if listed else result

    return run


def _grouped(flat: Sequence[Any], sizes: Sequence[int | None]) -> tuple[Any, ...]:
    """Put the tensors of lists back into lists."""
    arguments: list[Any] = []
    start = 0
    for size in sizes:
        if size is None:
            arguments.append(flat[start])
            start += 1
        else:
            arguments.append(list(flat[start : start + size]))
            start += size
    return tuple(arguments)

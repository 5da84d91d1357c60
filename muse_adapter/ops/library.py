"""Register custom operators with PyTorch: with autograd, the compiler and the exporter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from muse_adapter.ops.autograd import autograd_kernel
from muse_adapter.ops.torch_private import in_forward_mode

# By a library and not by `torch.library.custom_op`, whose first call imports the whole compiler:
# a second of a process that may never compile, and every later call costs more.
LIBRARY = torch.library.Library("muse_adapter", "FRAGMENT")


def register(
    name: str,
    schema: str,
    run: Callable[..., Any],
    fake: Callable[..., Any],
    differentiate: Callable[..., Any] | None = None,
    setup: Callable[..., None] | None = None,
) -> None:
    """Define `torch.ops.muse_adapter.<name>`.

    Args:
        name: Name of the operator.
        schema: Arguments and results, in the language of torch's operators.
        run: The operator on plain tensors, on every device. It checks what it is given: an exported
            program or a raw call reaches it without passing a public function.
        fake: Shapes and types of its results from those of its arguments, for tracing.
        differentiate: Its gradient, see `torch.library.register_autograd`; None: it has none.
        setup: What is saved for the gradient.
    """

    def in_reverse_mode_only(*arguments: Any) -> Any:
        if in_forward_mode():  # tangents would get lost without an error
            raise RuntimeError(f"muse_adapter::{name} has no derivative in forward mode")
        return run(*arguments)

    LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(name, in_reverse_mode_only, "CompositeExplicitAutograd")
    torch.library.register_fake(f"muse_adapter::{name}", fake, lib=LIBRARY)
    if differentiate is not None:
        operator = getattr(torch.ops.muse_adapter, name).default
        kernel = autograd_kernel(
            *(name, operator, differentiate, setup or _save_nothing),
            listed=schema.endswith("Tensor[]"),
        )
        LIBRARY.impl(name, kernel, "Autograd")


def _save_nothing(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """Leave the context as it is."""


def refuse_second(what: str) -> Callable[..., Any]:
    """Make the gradient of a backward pass: an error that names what has none."""

    def refuse(ctx: Any, *gradients: Any) -> Any:
        raise RuntimeError(f"{what} no second derivative: use backend='reference'")

    return refuse

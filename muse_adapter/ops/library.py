"""How an operator of ours is made known to torch: to autograd, the compiler and the exporter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import forward_ad

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
    """Make `torch.ops.muse_adapter.<name>`.

    Args:
        name: of the operator.
        schema: arguments and results, in the language of torch's operators.
        run: the operator on plain tensors, on every device.
        fake: shapes and types of its results from those of its arguments, for tracing.
        differentiate: its gradient, see `torch.library.register_autograd`; None: it has none.
        setup: what is kept for the gradient.
    """

    def in_reverse_mode_only(*arguments: Any) -> Any:
        if forward_ad._current_level >= 0:  # tangents would get lost without a word
            raise RuntimeError(f"muse_adapter::{name} has no derivative in forward mode")
        return run(*arguments)

    LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(name, in_reverse_mode_only, "CompositeExplicitAutograd")
    torch.library.register_fake(f"muse_adapter::{name}", fake, lib=LIBRARY)
    if differentiate is not None:
        torch.library.register_autograd(
            f"muse_adapter::{name}", differentiate, setup_context=setup, lib=LIBRARY
        )


def refuse_second(what: str) -> Callable[..., Any]:
    """The gradient of a backward pass: an error that names what has none."""

    def refuse(ctx: Any, *gradients: Any) -> Any:
        raise RuntimeError(f"{what} no second derivative: use backend='reference'")

    return refuse

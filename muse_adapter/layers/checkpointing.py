"""Gradient checkpointing that recomputes on the backend of the forward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from muse_adapter.ops import backend_for, use_backend
from muse_adapter.ops.torch_private import saved_tensor_hooks_are_off

_Result = TypeVar("_Result")


def checkpointed(module: Callable[..., _Result], x: Tensor, *args: Any) -> _Result:
    """Run `module(x, *args)`; what it keeps for the backward pass is recomputed there.

    The backward pass may run behind a `with use_backend(...)` block, or in a thread that never saw
    it, and another backend would keep other tensors. In a compiled graph the backend is a constant.

    Raises:
        RuntimeError: A gradient of `torch.func` is being taken.
    """
    if torch.compiler.is_compiling():
        return checkpoint(module, x, *args, use_reentrant=False)
    if saved_tensor_hooks_are_off():
        raise RuntimeError(
            "gradient checkpointing does not work under torch.func's grad, vjp and jacrev, because "
            "torch lets them recompute nothing: call set_grad_checkpointing(False), or take the "
            "gradient by torch.autograd.grad"
        )
    name = backend_for(x.device)

    def on_backend(x: Tensor, *args: Any) -> _Result:
        with use_backend(name):  # entered anew by every backward pass
            return module(x, *args)

    return checkpoint(on_backend, x, *args, use_reentrant=False)

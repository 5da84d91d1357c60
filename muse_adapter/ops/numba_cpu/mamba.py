"""Mixers without a gradient as an operator of torch, which tracing does not look into."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from muse_adapter.ops.autocast import without_autocast
from muse_adapter.ops.dispatch import require
from muse_adapter.ops.library import register
from muse_adapter.ops.mamba import MambaDirection


def mamba_inference(
    tokens: Tensor,
    in_proj: Tensor,
    directions: Sequence[MambaDirection],
    lengths: Tensor | None,
    positions: Tensor | None,
    end: int,
) -> Tensor | None:
    """As in `muse_adapter.ops.mamba`, in float32 and float64, E a multiple of 16."""
    ahead, *back = (list(direction) for direction in directions)
    tensors = [in_proj, *ahead, *(back[0] if back else [])]
    if (
        tokens.dtype not in (torch.float32, torch.float64)
        or any(tensor.dtype != tokens.dtype for tensor in tensors)
        or in_proj.shape[0] % 32
    ):
        return None
    run = torch.ops.muse_adapter.mamba_inference
    result: Tensor = run(tokens, in_proj, ahead, back[0] if back else [], lengths, positions, end)
    return result


def _run(
    tokens: Tensor,
    in_proj: Tensor,
    ahead: list[Tensor],
    back: list[Tensor],
    lengths: Tensor | None,
    positions: Tensor | None,
    end: int,
) -> Tensor:
    require("numba", tokens.device)  # an exported program may run elsewhere
    from muse_adapter.ops.numba_cpu.slices import mix

    directions = [MambaDirection(*weights) for weights in (ahead, back) if weights]
    with without_autocast(tokens.device.type):  # which an exported program may meet
        return mix(tokens, in_proj, directions, lengths, positions, end)


def _fake(tokens: Tensor, in_proj: Tensor, *others: Any) -> Tensor:
    *_, positions, _ = others
    wanted = tokens if positions is None else positions
    return tokens.new_empty(*wanted.shape[:2], in_proj.shape[0] // 2)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Nothing is kept."""


def _refuse(ctx: Any, gradient: Tensor | None) -> Any:
    raise RuntimeError(
        "muse_adapter::mamba_inference has no gradient: it was traced where none was wanted, under "
        "no_grad or with frozen weights"
    )


register(
    "mamba_inference",
    "(Tensor tokens, Tensor in_proj, Tensor[] ahead, Tensor[] back, Tensor? lengths, "
    "Tensor? positions, SymInt end) -> Tensor",
    *(_run, _fake, _refuse, _setup),
)

"""Mixers without a gradient as a custom operator, which tracing does not look into."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from muse_adapter.ops.autocast import without_autocast
from muse_adapter.ops.backend import by_name
from muse_adapter.ops.inputs import state_dtype
from muse_adapter.ops.library import register
from muse_adapter.ops.mixer_inputs import MambaDirection, MixerInputs, MixerState


def mamba_inference(inputs: MixerInputs) -> tuple[Tensor, MixerState | None]:
    """Run a mixer of E channels, a multiple of 16, where no gradient is wanted."""
    tokens, in_proj, (forward, *reverse), lengths, positions, end, state = inputs
    if state is not None:
        y, *last = torch.ops.muse_adapter.mamba_inference_chunk(
            tokens, in_proj, list(forward), *state, lengths, positions
        )
        return y, MixerState(*last)
    y = torch.ops.muse_adapter.mamba_inference(
        tokens, in_proj, list(forward), list(reverse[0]) if reverse else [], lengths, positions, end
    )
    return y, None


def _run(
    tokens: Tensor,
    in_proj: Tensor,
    forward: list[Tensor],
    reverse: list[Tensor],
    lengths: Tensor | None,
    positions: Tensor | None,
    end: int,
) -> Tensor:
    directions = [MambaDirection(*weights) for weights in (forward, reverse) if weights]
    return _mixed(MixerInputs(tokens, in_proj, directions, lengths, positions, end))[0]


def _run_chunk(
    tokens: Tensor,
    in_proj: Tensor,
    direction: list[Tensor],
    conv: Tensor,
    scan: Tensor,
    lengths: Tensor | None,
    positions: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    directions, state = [MambaDirection(*direction)], MixerState(conv, scan)
    y, last = _mixed(
        MixerInputs(tokens, in_proj, directions, lengths, positions, tokens.shape[1], state)
    )
    assert last is not None
    return y, last.conv.to(conv.dtype), last.scan.to(scan.dtype)


def _mixed(inputs: MixerInputs) -> tuple[Tensor, MixerState | None]:
    """Check what an operator was given, and run it."""
    tokens, in_proj = inputs.tokens, inputs.in_proj
    by_name("numba").require(tokens.device)  # an exported program may run elsewhere
    from muse_adapter.ops.numba_cpu.simd import WIDTH
    from muse_adapter.ops.numba_cpu.slices import mix

    inputs.check()
    if in_proj.shape[0] % (2 * WIDTH):
        raise ValueError(
            f"in_proj must have shape (2 E, D) with E a multiple of {WIDTH}, got "
            f"{tuple(in_proj.shape)}"
        )
    with without_autocast(tokens.device.type):
        # Under autocast an exported program may bring other types.
        y, last = mix(inputs.to(state_dtype(tokens)))
    return y.to(tokens.dtype), last


def _fake(tokens: Tensor, in_proj: Tensor, *others: Any) -> Tensor:
    *_, positions, _ = others
    wanted = tokens if positions is None else positions
    return tokens.new_empty(*wanted.shape[:2], in_proj.shape[0] // 2)


def _fake_chunk(
    tokens: Tensor, in_proj: Tensor, direction: list[Tensor], conv: Tensor, scan: Tensor,
    lengths: Tensor | None, positions: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    y = _fake(tokens, in_proj, positions, 0)
    return y, conv.new_empty(conv.shape), scan.new_empty(scan.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """Save nothing."""


def _refuse(ctx: Any, *gradients: Tensor | None) -> Any:
    raise RuntimeError(
        "muse_adapter::mamba_inference has no gradient: it was traced where none was wanted, under "
        "no_grad or with frozen weights"
    )


register(
    "mamba_inference",
    "(Tensor tokens, Tensor in_proj, Tensor[] forward, Tensor[] reverse, Tensor? lengths, "
    "Tensor? positions, SymInt end) -> Tensor",
    *(_run, _fake, _refuse, _setup),
)
register(
    "mamba_inference_chunk",
    "(Tensor tokens, Tensor in_proj, Tensor[] direction, Tensor conv, Tensor scan, "
    "Tensor? lengths, Tensor? positions) -> (Tensor, Tensor, Tensor)",
    *(_run_chunk, _fake_chunk, _refuse, _setup),
)

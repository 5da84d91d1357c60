"""Floating-point operations, counted on tensors without memory by torch's counter.

Matrix products, convolutions and attention are counted by torch's formulas, the scan by the one
below; what is done element by element around them (norms, activations, sums) is left out, in all
heads alike. A multiply-add is two operations, an exponential or a softplus one.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils import flop_counter
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.heads.variants import Variant
from benchmarks.heads.workload import Case
from muse_adapter.ops import use_backend

Shape = torch.Size


def scan_flops(
    x: Shape,
    delta: Shape,
    A: Shape,
    B: Shape,
    C: Shape,
    D: Shape | None,
    delta_bias: Shape | None,
    initial_state: Shape | None,
    lengths: Shape | None,
    delta_softplus: bool,
    *_: Any,
    **__: Any,
) -> int:
    """Count `muse_adapter::scan`: one direction forward, in the algorithm of the definition.

    For each state: dt A (1), its exponential (1), times B (1), the recurrence (2), times C, summed
    (2, but one addition less a channel). For each channel: dt x (1), D x added (2), the bias of dt
    (1), its softplus (1).
    """
    channels, states = _sizes(x, A)
    per_channel = 2 * (D is not None) + (delta_bias is not None) + bool(delta_softplus)
    return 7 * states + per_channel * channels


def scan_backward_flops(
    grad_y: Shape | None, grad_state: Shape | None, kept: Shape, x: Shape, delta: Shape, A: Shape,
    B: Shape, C: Shape, D: Shape | None, delta_bias: Shape | None, initial_state: Shape | None,
    lengths: Shape | None, delta_softplus: bool, *_: Any, **__: Any,
) -> int:  # fmt: skip
    """Count `muse_adapter::scan_backward`.

    For each state: computed anew (5); its gradient, C times that of y (1), added to the carry (1),
    which the decay shrinks (1); summed into the gradients of B, C and the drive (2 each); the
    gradient of dt A (2), summed into those of A and dt (2 each). For each channel: x and dt from
    the drive, dt x and dt from the decay (4), D (4), the bias (1), softplus (2).
    """
    channels, states = _sizes(x, A)
    per_channel = 4 + 4 * (D is not None) + (delta_bias is not None) + 2 * bool(delta_softplus)
    return 20 * states + per_channel * channels


def _sizes(x: Shape, A: Shape) -> tuple[int, int]:
    """Return channels and states of all tokens: B L E, and that times S."""
    channels = x.numel()
    return channels, channels * A[1]


def _flash(query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    return int(flop_counter.sdpa_flop_count(query, key, value))


def _flash_backward(grad: Shape, query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    return int(flop_counter.sdpa_backward_flop_count(grad, query, key, value))


def formulas() -> dict[Any, Any]:
    """Return what torch's counter lacks: the scan, and attention's fused kernel for CPUs."""
    aten, ours = torch.ops.aten, torch.ops.muse_adapter
    return {
        ours.scan: scan_flops,
        ours.scan_backward: scan_backward_flops,
        aten._scaled_dot_product_flash_attention_for_cpu: _flash,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: _flash_backward,
    }


@functools.cache
def count(variant: Variant, case: Case, dim: int) -> int:
    """Count the operations of one run.

    Args:
        variant: One whose kernels can be seen, see `countable`.
        case: The tokens, and what is done with them.
        dim: Width D.

    Returns:
        Their number.
    """
    module, mode, weights = _without_memory(variant, dim)
    training = case.mode == "training"
    module.train(training)
    counter = FlopCounterMode(display=False, custom_mapping=formulas())
    # On a CPU the pyramid that all heads share would run on an operator of ours.
    visible = use_backend("torch")
    with visible, mode, counter, variant.force(), torch.set_grad_enabled(training):
        shape = (case.batch, case.frames, 1 + case.grid[0] * case.grid[1], dim)
        tokens = torch.empty(shape, requires_grad=training)
        embedding = functional_call(module, weights, (tokens,), {"grid": case.grid})
        if training:
            embedding.sum().backward()
    return counter.get_total_flops()


@functools.cache
def _without_memory(variant: Variant, dim: int) -> tuple[nn.Module, FakeTensorMode, dict[str, Any]]:
    """Build a module, and the weights that stand in for its own, of which none holds memory."""
    module, mode = variant.build(dim), FakeTensorMode()
    weights = {name: mode.from_tensor(weight) for name, weight in module.named_parameters()}
    return module.to("meta"), mode, weights

"""Every operator and public function refuses what does not fit, before a kernel reads by address.

An exported program and a raw call of `torch.ops` reach an operator without any public function.
Each table starts from arguments that fit; then every argument in turn gets every other kind of
shape, type and device.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from muse_adapter.ops import (
    Direction,
    MambaDirection,
    bidirectional_scan,
    causal_conv1d_silu,
    mamba_mixer,
)
from muse_adapter.ops.backend import by_name

B, L, E, S, G, R, D, TAPS, P = 2, 5, 32, 3, 2, 2, 8, 4, 2
RUN = torch.ops.muse_adapter


class Wrong(NamedTuple):
    """One wrong tensor in the place of a right one."""

    kind: str
    tensor: Tensor


def wrong_forms(tensor: Tensor) -> list[Wrong]:
    """Every way for a tensor not to fit: one size less or more, an axis less or more, type, device.

    Sizes of 1 are among them: they would be read as if they stood for all.
    """
    forms = []
    for axis, size in enumerate(tensor.shape):
        for other in {size - 1, size + 1, 1, 0} - {size, -1}:
            shape = [*tensor.shape]
            shape[axis] = other
            forms.append(Wrong(f"axis {axis} of {other}", torch.ones(shape, dtype=tensor.dtype)))
    forms.append(Wrong("an axis more", tensor.detach().unsqueeze(0)))
    if tensor.dim() > 1:
        forms.append(Wrong("an axis less", tensor.detach()[0].clone()))
    other = torch.float32 if not tensor.is_floating_point() else torch.int64
    forms.append(Wrong("another type", tensor.detach().to(other)))
    if not tensor.is_floating_point():
        forms.append(Wrong("another type of integers", tensor.to(torch.uint8)))
    forms.append(Wrong("another device", tensor.detach().to("meta")))
    return forms


def scan_arguments():
    return {
        "x": torch.randn(B, L, E), "delta": torch.randn(B, L, E), "A": -torch.rand(E, S),
        "B": torch.randn(B, L, G, S), "C": torch.randn(B, L, G, S), "D": torch.randn(E),
        "delta_bias": torch.randn(E), "initial_state": torch.randn(B, E, S),
        "lengths": torch.tensor([L, 2]),
    }  # fmt: skip


def backward_arguments(name):
    saved = torch.zeros(by_name(name).saved_states_shape(B, L, E, S))
    gradients = {"grad_y": torch.randn(B, L, E), "grad_state": torch.randn(B, E, S)}
    return {**gradients, "saved_states": saved, **scan_arguments()}


def direction_arguments(side):
    return {
        f"{side}.x": torch.randn(B, L, E), f"{side}.delta": torch.randn(B, L, E),
        f"{side}.A": -torch.rand(E, S), f"{side}.B": torch.randn(B, L, S),
        f"{side}.C": torch.randn(B, L, S), f"{side}.D": torch.randn(E),
        f"{side}.delta_bias": torch.randn(E),
    }  # fmt: skip


def run_bidirectional(z, lengths, positions, *tensors, backend):
    forward, reverse = Direction(*tensors[:7]), Direction(*tensors[7:])
    return bidirectional_scan(
        forward, reverse, z, lengths=lengths, positions=positions, backend=backend
    )


def mixer_arguments():
    weights = {
        "conv": torch.randn(E, 1, TAPS), "conv_bias": torch.randn(E),
        "x_proj": torch.randn(R + 2 * S, E), "dt_proj": torch.randn(E, R),
        "dt_bias": torch.randn(E), "A": -torch.rand(E, S), "D": torch.randn(E),
    }  # fmt: skip
    return {
        "tokens": torch.randn(B, L, D), "in_proj": torch.randn(2 * E, D),
        "lengths": torch.tensor([L, 2]), "positions": torch.tensor([[0, 1], [1, 0]]),
        **{f"forward.{name}": tensor for name, tensor in weights.items()},
        **{f"reverse.{name}": tensor.clone() for name, tensor in weights.items()},
    }  # fmt: skip


def run_mixer(tokens, in_proj, lengths, positions, *weights, backend):
    directions = [MambaDirection(*weights[:7]), MambaDirection(*weights[7:])]
    return mamba_mixer(
        tokens, in_proj, directions, lengths=lengths, positions=positions, end=3, backend=backend
    )


def run_raw_mixer(tokens, in_proj, lengths, positions, *weights):
    forward, reverse = list(weights[:7]), list(weights[7:])
    return RUN.mamba_inference(tokens, in_proj, forward, reverse, lengths, positions, 3)


def chunk_arguments():
    arguments = {k: v for k, v in mixer_arguments().items() if not k.startswith("reverse.")}
    state = {"conv": torch.randn(B, TAPS - 1, E), "scan": torch.randn(B, E, S)}
    return {**state, **arguments}


def run_raw_chunk(conv, scan, tokens, in_proj, lengths, positions, *weights):
    return RUN.mamba_inference_chunk(tokens, in_proj, list(weights), conv, scan, lengths, positions)


def public_convolutions():
    return {
        "x": torch.randn(B, L, E),
        "w0": torch.randn(E, 1, TAPS), "b0": torch.randn(E),
        "w1": torch.randn(E, 1, TAPS), "b1": torch.randn(E),
    }  # fmt: skip


def fused_convolutions(gradients=False):
    arguments = {
        "x": torch.randn(B, L, E), "w": torch.randn(2, TAPS, E), "bias": torch.randn(2, E),
    }  # fmt: skip
    results = {"first": torch.randn(B, 3, E), "second": torch.randn(B, L, E)}
    return {**arguments, **results} if gradients else arguments


def maps():
    return {
        "x": torch.randn(B, 4, 5, 32), "weight": torch.randn(48, 32, 3, 3), "bias": torch.randn(48)
    }  # fmt: skip


def triton_arguments():
    fields = [*scan_arguments().items()][:7]
    return {
        **{f"0.{name}": tensor for name, tensor in fields},
        **{f"1.{name}": tensor.clone() for name, tensor in fields},
        "s0": torch.randn(B, E, S), "s1": torch.randn(B, E, S), "lengths": torch.tensor([L, 2]),
    }  # fmt: skip


def run_triton(*tensors):
    return RUN.triton_scan(list(tensors[:14]), list(tensors[14:16]), tensors[16], 2, True, False)


def triton_backward():
    from muse_adapter.ops.triton_gpu.function import CHUNK

    gradients = {"dy0": torch.randn(B, L, E), "dy1": torch.randn(B, L, E)}
    states = {"dlast0": torch.randn(B, E, S), "dlast1": torch.randn(B, E, S)}
    saved = {"saved_states": torch.zeros(-(-L // CHUNK), 2, B, S, E)}
    return {**gradients, **states, **saved, **triton_arguments()}


def run_triton_backward(*tensors):
    dy, dlast, saved, fields = list(tensors[:2]), list(tensors[2:4]), tensors[4], tensors[5:]
    return RUN.triton_scan_backward(
        dy, dlast, saved, list(fields[:14]), list(fields[14:16]), fields[16], 2, True
    )


def gate_arguments():
    return {
        "z": torch.randn(B, P, E), "positions": torch.tensor([[0, 1], [1, 0]]),
        "y0": torch.randn(B, L, E), "y1": torch.randn(B, L, E),
    }  # fmt: skip


# What is called, and its tensors by name.
CASES = {
    **{
        f"scan {name}": (
            lambda *t, name=name: RUN.scan(*t, True, False, name, False),
            scan_arguments,
        )
        for name in ("numba", "torch")
    },
    **{
        f"scan_backward {name}": (
            lambda *t, name=name: RUN.scan_backward(*t, True, False, name),
            lambda name=name: backward_arguments(name),
        )
        for name in ("numba", "torch")
    },
    **{
        f"bidirectional_scan {name}": (
            lambda *t, name=name: run_bidirectional(*t, backend=name),
            lambda: {
                "z": torch.randn(B, P, E),
                "lengths": torch.tensor([L, 2]),
                "positions": torch.tensor([[0, 1], [1, 0]]),
                **direction_arguments("forward"),
                **direction_arguments("backward"),
            },
        )
        for name in ("numba", "reference")
    },
    **{
        f"mamba_mixer {name}": (lambda *t, name=name: run_mixer(*t, backend=name), mixer_arguments)
        for name in ("numba", "torch")
    },
    "mamba_inference": (run_raw_mixer, mixer_arguments),
    "mamba_inference_chunk": (run_raw_chunk, chunk_arguments),
    **{
        f"causal_conv1d_silu {name}": (
            lambda x, w0, b0, w1, b1, name=name: causal_conv1d_silu(
                x, [(w0, b0), (w1, b1)], backend=name
            ),
            public_convolutions,
        )
        for name in ("numba", "reference")
    },
    "causal_conv1d_silu": (lambda *t: RUN.causal_conv1d_silu(*t, 3), fused_convolutions),
    "causal_conv1d_silu_backward": (
        lambda x, w, bias, *grads: RUN.causal_conv1d_silu_backward(x, w, bias, list(grads)),
        lambda: fused_convolutions(gradients=True),
    ),
    "conv3x3": (RUN.conv3x3, maps),
    "conv3x3_weight": (
        RUN.conv3x3_weight,
        lambda: {"x": torch.randn(B, 4, 5, 32), "grad": torch.randn(B, 4, 5, 48)},
    ),
    "triton_scan": (run_triton, triton_arguments),
    "triton_scan_backward": (run_triton_backward, triton_backward),
    "triton_gate": (lambda z, p, y0, y1: RUN.triton_gate(z, p, [y0, y1], False), gate_arguments),
    "triton_gate_backward": (
        lambda grad, z, total: RUN.triton_gate_backward(grad, z, total, False),
        lambda: {name: torch.randn(B, P, E) for name in ("grad", "z", "total")},
    ),
    "triton_convolutions": (
        lambda x, *weights: RUN.triton_convolutions(x, list(weights), 3),
        public_convolutions,
    ),
    "triton_convolutions_backward": (
        lambda x, w0, b0, w1, b1, *grads: RUN.triton_convolutions_backward(
            x, [w0, b0, w1, b1], list(grads), 3
        ),
        lambda: {
            **public_convolutions(),
            "first": torch.randn(B, 3, E),
            "second": torch.randn(B, L, E),
        },
    ),
}


# Axes of a size that no other argument has: any size fits, or (0 taps) another case refuses it.
FREE = {
    "mamba_mixer": {"tokens": {1}, "positions": {1}},
    "mamba_inference": {"tokens": {1}, "positions": {1}},
    "mamba_inference_chunk": {"tokens": {1}, "positions": {1}},
    "causal_conv1d_silu": {"x": {0, 1}, "w": {1}},
    "causal_conv1d_silu_backward": {"w": {1}, "first": {1}},
    "conv3x3": {"x": {0, 1, 2}},
    "triton_gate": {"y0": {1}, "y1": {1}},
    "triton_convolutions": {"x": {0, 1}},
}
PUBLIC = "bidirectional_scan ", "mamba_mixer ", "causal_conv1d_silu "


def fits(case: str, name: str, form: Wrong) -> bool:
    """Whether another form of one argument fits all the same."""
    operator, field = case.partition(" ")[0], name.rpartition(".")[2]
    shape = tuple(form.tensor.shape)
    if form.kind.startswith("another"):
        # With a tensor that has no memory an operator runs no kernel at all.
        return form.kind == "another device" and not case.startswith(PUBLIC)
    if any(form.kind.startswith(f"axis {axis} ") for axis in FREE.get(operator, {}).get(name, ())):
        return True
    if name == "lengths" and shape == (1,):  # the same for all videos
        return case.startswith(("bidirectional_scan", "mamba_mixer"))
    if field in ("B", "C"):  # a size of 1 stands for all, but not in triton's own operator
        allowed = {(1, L, S), (B, 1, S)} if operator == "bidirectional_scan" else set()
        if operator in ("scan", "scan_backward"):
            allowed = {(1, L, G, S), (B, 1, G, S), (B, L, 1, S)}
        return shape in allowed
    return False


@pytest.mark.parametrize("case", CASES)
def test_right_arguments_are_taken(case):
    skip_without(case)
    call, arguments = CASES[case]
    call(*arguments().values())


@pytest.mark.parametrize("case", CASES)
def test_wrong_arguments_are_refused(case):
    skip_without(case)
    call, make = CASES[case]
    accepted, refused = [], 0
    for name, right in make().items():
        for form in wrong_forms(right):
            if fits(case, name, form):
                continue
            arguments = {**make(), name: form.tensor}
            try:
                call(*arguments.values())
            except (ValueError, TypeError) as error:
                refused += 1
                assert "got" in str(error) or "must" in str(error), error
            except RuntimeError as error:  # a device that the backend does not run on
                assert form.kind == "another device", (name, form.kind, error)
                refused += 1
            else:
                accepted.append(f"{name}: {form.kind}")
    assert not accepted and refused > 5, accepted


def skip_without(case):
    name = next((name for name in ("torch", "reference", "triton") if name in case), "numba")
    reason = by_name(name).unavailable(torch.device("cpu"))
    if reason is not None:
        pytest.skip(f"backend {name}: {reason}")


@pytest.mark.parametrize("end", [-1, L + 1, 5000])
@pytest.mark.parametrize("operator", ["numba", "triton"])
def test_an_end_beyond_the_tokens_is_refused(operator, end):
    skip_without(operator)
    x, weight, bias = torch.randn(B, L, E), torch.randn(E, 1, TAPS), torch.randn(E)
    with pytest.raises(ValueError, match=r"end must .*got"):
        if operator == "triton":
            RUN.triton_convolutions(x, [weight, bias], end)
        else:
            RUN.causal_conv1d_silu(x, torch.randn(1, TAPS, E), bias[None], end)


def test_an_unknown_backend_in_a_program_is_refused():
    arguments = (*scan_arguments().values(), True, False)
    with pytest.raises(ValueError, match="unknown backend 'fastest', expected one of"):
        RUN.scan(*arguments, "fastest", False)
    with pytest.raises(ValueError, match="'reference' is not muse_adapter::scan"):
        RUN.scan(*arguments, "reference", False)

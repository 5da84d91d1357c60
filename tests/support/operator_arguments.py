"""Random arguments of every operator: odd sizes, any layout, lengths and positions of no video."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor

from muse_adapter.ops.backend import by_name

DRAW = random.Random()
TYPES = [torch.float32, torch.float32, torch.float64, torch.bfloat16, torch.float16]


def pick(*values: Any) -> Any:
    return DRAW.choice(values)


def numbers(*shape: int, dtype: torch.dtype) -> Tensor:
    """Draw a tensor of any layout: dense, permuted, part of a larger one, expanded, with steps."""
    kind = pick("dense", "dense", "permuted", "part", "expanded", "steps", "negated")
    if kind == "permuted":
        order = DRAW.sample(range(len(shape)), len(shape))
        given = torch.randn([shape[axis] for axis in order])
        return given.permute([order.index(axis) for axis in range(len(shape))]).to(dtype)
    if kind == "part":
        large = torch.randn([size + 3 for size in shape]).to(dtype)
        return large[tuple(slice(1, size + 1) for size in shape)]
    if kind == "expanded" and shape:
        axis = DRAW.randrange(len(shape))
        thin = [1 if i == axis else size for i, size in enumerate(shape)]
        return torch.randn(thin).to(dtype).expand(shape)
    if kind == "steps" and shape:
        return torch.randn(*shape[:-1], 2 * shape[-1]).to(dtype)[..., ::2]
    dense = torch.randn(shape).to(dtype)
    return torch._neg_view(dense) if kind == "negated" else dense


def rates(*shape: int, dtype: torch.dtype) -> Tensor:
    return -torch.rand(shape).to(dtype)


def maybe(tensor: Tensor) -> Tensor | None:
    return tensor if DRAW.random() < 0.7 else None


def integers(bound: int, *shape: int, inside: bool = False) -> Tensor:
    """Draw lengths or positions; also such as no video has."""
    if inside:
        drawn = torch.randint(0, max(1, bound), shape)
    else:
        drawn = torch.randint(-3, bound + 4, shape)
        if DRAW.random() < 0.1 and drawn.numel():
            drawn.view(-1)[0] = pick(2**62, -(2**62))
    return drawn.to(pick(torch.int64, torch.int32))


class Sizes:
    """Sizes of a case, odd ones among them."""

    def __init__(self, *, whole_blocks: bool) -> None:
        self.batch, self.length = pick(1, 1, 2, 3, 0), pick(0, 1, 2, 5, 31, 32, 33, 64, 65, 70)
        self.channels = pick(16, 32, 48) if whole_blocks else pick(1, 3, 15, 16, 17, 32, 33)
        self.states = pick(1, 2, 3, 16, 17)
        self.dtype = pick(*TYPES)


def scan(s: Sizes) -> dict[str, Any]:
    groups = pick(*[g for g in range(1, s.channels + 1) if s.channels % g == 0])
    rows, cols = (s.batch, s.length, s.channels), (groups, s.states)

    def matrix() -> Tensor:
        return numbers(pick(s.batch, 1), pick(s.length, s.length, 1), *cols, dtype=s.dtype)

    return {
        "x": numbers(*rows, dtype=s.dtype),
        "delta": numbers(*rows, dtype=pick(s.dtype, *TYPES)),
        "A": rates(s.channels, s.states, dtype=torch.float32), "B": matrix(), "C": matrix(),
        "D": maybe(numbers(s.channels, dtype=s.dtype)),
        "delta_bias": maybe(numbers(s.channels, dtype=torch.float32)),
        "initial_state": maybe(numbers(s.batch, s.channels, s.states, dtype=torch.float32)),
        "lengths": maybe(integers(s.length, s.batch)),
        "softplus": True, "reverse": pick(True, False), "backend": pick("numba", "numba", "torch"),
    }  # fmt: skip


def forward_scan() -> dict[str, Any]:
    return {**scan(Sizes(whole_blocks=False)), "save": pick(True, False)}


def backward_scan() -> dict[str, Any]:
    s = Sizes(whole_blocks=False)
    inputs = scan(s)
    shape = by_name(inputs["backend"]).saved_states_shape(s.batch, s.length, s.channels, s.states)
    dtype = torch.float64 if s.dtype == torch.float64 else torch.float32
    return {
        "grad_y": maybe(numbers(s.batch, s.length, s.channels, dtype=dtype)),
        "grad_state": maybe(numbers(s.batch, s.channels, s.states, dtype=dtype)),
        "saved_states": torch.randn(shape, dtype=dtype), **inputs,
    }  # fmt: skip


def fused_convolutions() -> dict[str, Any]:
    s = Sizes(whole_blocks=True)
    sides, taps = pick(1, 2), pick(1, 2, 4, 7)
    return {
        "x": numbers(s.batch, s.length, s.channels, dtype=s.dtype),
        "w": numbers(sides, taps, s.channels, dtype=s.dtype),
        "bias": numbers(sides, s.channels, dtype=s.dtype),
        "end": DRAW.randint(0, s.length),
    }  # fmt: skip


def fused_convolutions_backward() -> dict[str, Any]:
    values = fused_convolutions()
    x, end = values["x"], values.pop("end")
    sizes = (end, x.shape[1])[: len(values["w"])]
    grads = [numbers(len(x), size, x.shape[2], dtype=x.dtype) for size in sizes]
    return {**values, "grads": grads}


def maps(*, gradient: bool) -> dict[str, Any]:
    inputs, outputs = pick(16, 32), pick(16, 48)
    size = pick(0, 1, 3), pick(1, 2, 3, 7), pick(1, 2, 5, 14)
    dtype = pick(*TYPES)
    x = numbers(*size, inputs, dtype=dtype)
    if gradient:
        return {"x": x, "grad": numbers(*size, outputs, dtype=dtype)}
    weight = numbers(outputs, inputs, 3, 3, dtype=dtype)
    return {"x": x, "weight": weight, "bias": maybe(numbers(outputs, dtype=dtype))}


def mixer() -> dict[str, Any]:
    s = Sizes(whole_blocks=True)
    width, rank, taps, places = pick(1, 7, 16), pick(1, 2), pick(1, 4), pick(0, 1, 3)
    end = DRAW.randint(1, s.length) if s.length else 0
    positions = maybe(integers(end, s.batch, places, inside=True)) if s.length else None

    def direction() -> list[Tensor]:
        return [
            numbers(s.channels, 1, taps, dtype=s.dtype), numbers(s.channels, dtype=s.dtype),
            numbers(rank + 2 * s.states, s.channels, dtype=s.dtype) / 8,
            numbers(s.channels, rank, dtype=s.dtype), numbers(s.channels, dtype=s.dtype),
            rates(s.channels, s.states, dtype=s.dtype), numbers(s.channels, dtype=s.dtype),
        ]  # fmt: skip

    return {
        "tokens": numbers(s.batch, s.length, width, dtype=s.dtype),
        "in_proj": numbers(2 * s.channels, width, dtype=s.dtype),
        "forward": direction(), "reverse": pick(direction(), []),
        "lengths": maybe(integers(s.length, s.batch)),
        "positions": positions, "end": s.length if positions is None else end,
    }  # fmt: skip


def public_scan() -> dict[str, Any]:
    s = Sizes(whole_blocks=True)
    rows, states = (s.batch, s.length, s.channels), (s.batch, s.length, s.states)
    return {
        "x": numbers(*rows, dtype=s.dtype), "delta": numbers(*rows, dtype=s.dtype),
        "A": rates(s.channels, s.states, dtype=torch.float32),
        "B": numbers(*states, dtype=s.dtype), "C": numbers(*states, dtype=s.dtype),
        "D": numbers(s.channels, dtype=s.dtype), "bias": numbers(s.channels, dtype=s.dtype),
        "z": numbers(*rows, dtype=s.dtype), "lengths": integers(s.length, s.batch),
    }  # fmt: skip


def public_convolution() -> dict[str, Any]:
    s = Sizes(whole_blocks=True)
    return {
        "x": numbers(s.batch, s.length, s.channels, dtype=s.dtype),
        "weight": numbers(s.channels, 1, 4, dtype=s.dtype),
        "bias": numbers(s.channels, dtype=s.dtype),
    }  # fmt: skip


def public_maps() -> dict[str, Any]:
    return {**maps(gradient=False), "bias": torch.randn(48)}


def public_mixer() -> dict[str, Any]:
    values = mixer()
    weights = {f"weight {i}": tensor for i, tensor in enumerate(values["forward"])}
    return {"tokens": values["tokens"], "in_proj": values["in_proj"], **weights}


def triton_scan() -> dict[str, Any]:
    s = Sizes(whole_blocks=False)
    s.batch, s.length = max(1, s.batch), max(1, s.length % 40)
    sides, groups = pick(1, 2), pick(*[g for g in (1, 2, s.channels) if s.channels % g == 0])
    rows, cols = (s.batch, s.length, s.channels), (groups, s.states)
    fields = []
    for _ in range(sides):
        fields += [
            numbers(*rows, dtype=s.dtype), numbers(*rows, dtype=s.dtype),
            rates(s.channels, s.states, dtype=torch.float32),
            numbers(*rows[:2], *cols, dtype=s.dtype), numbers(*rows[:2], *cols, dtype=s.dtype),
            numbers(s.channels, dtype=s.dtype), numbers(s.channels, dtype=torch.float32),
        ]  # fmt: skip
    states = [numbers(s.batch, s.channels, s.states, dtype=torch.float32) for _ in range(sides)]
    return {
        "fields": fields, "initial_states": pick(states, []),
        "lengths": maybe(integers(s.length, s.batch)), "backwards": pick(0, 1),
        "softplus": True, "save": pick(True, False),
    }  # fmt: skip


def triton_convolutions() -> dict[str, Any]:
    s = Sizes(whole_blocks=False)
    s.batch, s.length, taps = max(1, s.batch), max(1, s.length), pick(1, 4, 7)
    weights = []
    for _ in range(pick(1, 2)):
        weights += [
            numbers(s.channels, 1, taps, dtype=s.dtype),
            numbers(s.channels, dtype=s.dtype),
        ]
    return {
        "x": numbers(s.batch, s.length, s.channels, dtype=s.dtype),
        "weights": weights, "end": DRAW.randint(1, s.length),
    }  # fmt: skip


def triton_convolutions_backward() -> dict[str, Any]:
    values = triton_convolutions()
    x, end = values["x"], values["end"]
    sizes = (end, x.shape[1])[: len(values["weights"]) // 2]
    grads = [numbers(len(x), size, x.shape[2], dtype=x.dtype) for size in sizes]
    return {"x": x, "weights": values["weights"], "grads": grads, "end": end}


def triton_gate() -> dict[str, Any]:
    s = Sizes(whole_blocks=False)
    s.batch, s.length, places = max(1, s.batch), max(1, s.length), pick(1, 3)
    return {
        "z": numbers(s.batch, places, s.channels, dtype=s.dtype),
        "positions": integers(s.length, s.batch, places),
        "y": [numbers(s.batch, s.length, s.channels, dtype=torch.float32) for _ in range(2)],
        "save": pick(True, False),
    }  # fmt: skip

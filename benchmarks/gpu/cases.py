"""What `benchmarks.gpu.correctness` compares: outcomes of the operators, with all gradients.

Each function runs on one backend in one type. Its inputs are drawn in float64 from a seed, then
rounded to the type that is tested: `Run.given`; both sides of a comparison read the same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from muse_adapter import MultiScaleMamba
from muse_adapter.ops import (
    Direction,
    bidirectional_scan,
    causal_conv1d_silu,
    selective_scan,
    use_backend,
)

Outcome = dict[str, Tensor]


@dataclass(frozen=True)
class Run:
    """How an outcome is computed.

    Attributes:
        backend: Its name.
        device: Where.
        given: Type that the inputs are rounded to.
        computed: Type that they are then in.
    """

    backend: str
    device: str
    given: torch.dtype
    computed: torch.dtype

    def normal(self, *shape: int, weight: bool = False) -> Tensor:
        """Draw an input; a `weight` is float32 where inputs are narrower, as under autocast."""
        given = torch.promote_types(self.given, torch.float32) if weight else self.given
        computed = torch.promote_types(self.computed, given)
        drawn = torch.randn(shape, dtype=torch.float64, device="cpu").to(given)
        return drawn.to(self.device, computed)


def gradients(results: Mapping[str, Tensor], inputs: Mapping[str, Tensor]) -> Outcome:
    """Return results and the gradients of all inputs, for a cotangent drawn from a seed."""
    torch.manual_seed(1)
    loss = sum(
        (value * torch.randn(value.shape, dtype=torch.float64).to(value)).sum()
        for value in results.values()
    )
    assert isinstance(loss, Tensor)
    grads = torch.autograd.grad(loss, list(inputs.values()), materialize_grads=True)
    found = {name: value.detach() for name, value in results.items()}
    return found | {f"gradient of {k}": v for k, v in zip(inputs, grads, strict=True)}


def both_directions(
    run: Run,
    *,
    lengths: tuple[int, ...],
    channels: int,
    states: int,
    batch: int = 3,
    masked: bool = False,
    positions: bool = False,
    one: bool = False,
) -> Outcome:
    """Scan both directions with the gate, at several lengths.

    Args:
        run: How.
        lengths: L of each scan.
        channels: E.
        states: S.
        batch: Videos; with `masked` a whole one, a half one, the rest without a valid token.
        masked: Videos have lengths of their own, behind which inputs are NaN.
        positions: Only some are wanted, one twice.
        one: The forward direction alone.
    """
    found: Outcome = {}
    for length in lengths:
        torch.manual_seed(length)
        valid = torch.zeros(batch, dtype=torch.int64)
        valid[:2] = torch.tensor([length, length // 2])[:batch]
        valid = valid.to(run.device)
        behind = torch.arange(length, device=run.device) >= valid.unsqueeze(1)

        def tokens(width: int, length: int = length, behind: Tensor = behind) -> Tensor:
            values = run.normal(batch, length, width)
            return values.masked_fill(behind.unsqueeze(2), torch.nan) if masked else values

        wanted = torch.tensor([0, length // 2, length // 2, length - 1], device=run.device)
        z = run.normal(batch, len(wanted) if positions else length, channels)
        inputs = {"z": z.requires_grad_()}
        directions = []
        for side in ("forward", "backward")[: 1 if one else 2]:
            fields = {
                "x": tokens(channels),
                "delta": tokens(channels),
                "A": -run.normal(channels, states, weight=True).abs() * 2,
                "B": tokens(states),
                "C": tokens(states),
                "D": run.normal(channels, weight=True),
                "delta_bias": run.normal(channels, weight=True),
            }
            inputs |= {f"{side} {k}": v.requires_grad_() for k, v in fields.items()}
            directions.append(Direction(**fields))
        y = bidirectional_scan(
            directions[0],
            None if one else directions[1],
            z,
            lengths=valid if masked else None,
            positions=wanted.expand(batch, -1) if positions else None,
            backend=run.backend,
        )
        found |= {f"L={length}: {k}": v for k, v in gradients({"y": y}, inputs).items()}
    return found


def one_direction(
    run: Run,
    *,
    lengths: tuple[int, ...],
    channels: int,
    states: int,
    batch: int = 2,
    groups: int = 1,
    constant: bool = False,
    initial: bool = False,
    reverse: bool = False,
) -> Outcome:
    """Run `selective_scan` with its last state.

    Args:
        run: How.
        lengths: L of each scan.
        channels: E.
        states: S.
        batch: Videos.
        groups: Of B and C.
        constant: B and C are constant in time.
        initial: Start from a state, which has a gradient.
        reverse: Time runs backwards.
    """
    found: Outcome = {}
    for length in lengths:
        torch.manual_seed(length)
        matrix = (channels, states) if constant else (batch, groups, states, length)
        fields = {
            "u": run.normal(batch, channels, length),
            "delta": run.normal(batch, channels, length),
            "A": -run.normal(channels, states, weight=True).abs() * 2,
            "B": run.normal(*matrix),
            "C": run.normal(*matrix),
            "D": run.normal(channels, weight=True),
            "z": run.normal(batch, channels, length),
            "delta_bias": run.normal(channels, weight=True),
        }
        if initial:
            fields["initial_state"] = run.normal(batch, channels, states, weight=True)
        inputs = {name: value.requires_grad_() for name, value in fields.items()}
        y, state = selective_scan(
            **inputs,
            delta_softplus=True,
            return_last_state=True,
            reverse=reverse,
            backend=run.backend,
        )
        results = {"y": y, "last state": state}
        found |= {f"L={length}: {k}": v for k, v in gradients(results, inputs).items()}
    return found


def convolutions(
    run: Run,
    *,
    lengths: tuple[int, ...],
    channels: int,
    taps: int = 4,
    batch: int = 2,
    cut: bool = False,
    one: bool = False,
) -> Outcome:
    """Run the short convolutions.

    Args:
        run: How.
        lengths: L of each run.
        channels: E.
        taps: Of both directions.
        batch: Videos.
        cut: Only the first half of the forward direction is wanted.
        one: The forward direction alone.
    """
    found: Outcome = {}
    for length in lengths:
        torch.manual_seed(length)
        inputs = {"x": run.normal(batch, length, channels)}
        for side in ("forward", "backward")[: 1 if one else 2]:
            inputs[f"{side} weight"] = run.normal(channels, 1, taps, weight=True)
            inputs[f"{side} bias"] = run.normal(channels, weight=True)
        inputs = {name: value.requires_grad_() for name, value in inputs.items()}
        _, *flat = inputs.values()
        y = causal_conv1d_silu(
            inputs["x"],
            list(zip(flat[::2], flat[1::2], strict=True)),
            end=length // 2 + 1 if cut else None,
            backend=run.backend,
        )
        results = {f"result {index}": value for index, value in enumerate(y)}
        found |= {f"L={length}: {k}": v for k, v in gradients(results, inputs).items()}
    return found


def head(run: Run, *, frames: int, side: int, masked: bool = False, **config: object) -> Outcome:
    """Run a whole head without dropout; inputs below float32 mean autocast.

    Args:
        run: How.
        frames: T.
        side: Of the square grid of patches.
        masked: One video is whole, one has holes, the last has no valid frame.
        **config: Fields of `MuseConfig`.
    """
    torch.manual_seed(0)
    module = MultiScaleMamba(init="release", **config).eval()  # type: ignore[arg-type]
    narrow = run.given.itemsize < 4 and run.computed == run.given
    dtype = torch.float32 if narrow else run.computed
    module = module.to(run.device, dtype)
    drawn = torch.randn(3, frames, 1 + side**2, module.config.dim, dtype=torch.float64)
    tokens = drawn.float().to(run.device, dtype).requires_grad_()
    mask = None
    if masked:
        mask = torch.ones(3, frames, dtype=torch.bool, device=run.device)
        mask[1, ::2], mask[2] = False, False
    with (
        use_backend(run.backend),
        torch.autocast(run.device, run.given if narrow else None, enabled=narrow),
    ):
        embedding = module(tokens, mask)
    wanted = {"tokens": tokens, **dict(module.named_parameters())}
    return gradients({"embedding": embedding}, wanted)

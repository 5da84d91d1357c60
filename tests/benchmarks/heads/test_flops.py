"""Operations of the heads, as `python -m benchmarks` counts them, against counts by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.heads.baselines import TemporalTransformer
from benchmarks.heads.flops import count, scan_backward_flops, scan_flops
from benchmarks.heads.variants import Variant, countable
from benchmarks.heads.workload import Case
from muse_adapter.layers.mixers import BiMamba
from muse_adapter.ops.inputs import ScanInputs
from muse_adapter.ops.reference import ReferenceBackend
from tests.support.small_benchmarks import HERE


class ElementCount(TorchDispatchMode):
    """Counts operations element by element, as they are run."""

    ONE = ("add", "mul", "exp", "softplus", "sub", "neg", "div")

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__.rstrip("_")
        if name == "sum":
            self.operations += args[0].numel() - result.numel()
        elif name == "softplus_backward":
            self.operations += 2 * result.numel()
        elif name in self.ONE:
            self.operations += result.numel()
        return result


def scan_inputs(batch: int, length: int, channels: int, states: int) -> dict[str, Tensor]:
    inputs = {
        "x": torch.randn(batch, length, channels),
        "delta": torch.randn(batch, length, channels),
        "A": -torch.rand(channels, states),
        "B": torch.randn(batch, length, 1, states),
        "C": torch.randn(batch, length, 1, states),
        "D": torch.randn(channels),
        "delta_bias": torch.randn(channels),
    }
    return {name: tensor.requires_grad_() for name, tensor in inputs.items()}


def test_operations_of_the_scan_by_hand() -> None:
    """Two tokens, three channels, five states: 30 states, 6 channels."""
    x, A, row = torch.Size((1, 2, 3)), torch.Size((3, 5)), torch.Size((3,))
    gain = torch.Size((1, 2, 1, 5))
    assert scan_flops(x, x, A, gain, gain, None, None, None, None, False) == 7 * 30
    assert scan_flops(x, x, A, gain, gain, row, row, None, None, True) == 7 * 30 + 4 * 6
    given = (x, None, torch.Size((1, 3, 5)), x, x, A, gain, gain)
    assert scan_backward_flops(*given, None, None, None, None, False) == 20 * 30 + 4 * 6
    assert scan_backward_flops(*given, row, row, None, None, True) == 20 * 30 + 11 * 6


def test_operations_of_the_scan_are_those_that_the_definition_runs() -> None:
    inputs = scan_inputs(2, 40, 32, 16)
    shapes = [tensor.shape for tensor in inputs.values()]
    given = ScanInputs(**inputs, delta_softplus=True)
    with torch.no_grad(), ElementCount() as counter:
        ReferenceBackend().scan(given)
    assert counter.operations == scan_flops(*shapes, None, None, True)

    y, _ = ReferenceBackend().scan(given)
    with ElementCount() as counter:
        y.backward(torch.randn_like(y))
    states = inputs["x"].numel() * 16
    # Autograd keeps the states (5 operations each) instead of computing them anew; at the ends of
    # time there is nothing to carry.
    got = counter.operations
    formula = scan_backward_flops(y.shape, None, None, *shapes, None, None, True)
    assert got == pytest.approx(formula - 5 * states, rel=0.03)


class OfSequence(nn.Module):
    """A mixer over all tokens of a video."""

    def __init__(self, mixer: nn.Module) -> None:
        super().__init__()
        self.mixer = mixer

    def forward(self, tokens: Tensor, *, grid: tuple[int, int]) -> Tensor:
        return self.mixer(tokens.flatten(1, 2))


def test_operations_of_a_mixer_by_hand() -> None:
    D, S, R, taps, L = 32, 16, 2, 4, 3 * 5
    made = Variant("mixer", "muse", lambda dim: OfSequence(BiMamba(dim)))
    got = count(countable("mixer", made), Case("inference", 3, (2, 2), 1), D)
    projections = 2 * L * D * 2 * D + 2 * (2 * L * D * (R + 2 * S) + 2 * L * R * D) + 2 * L * D * D
    convolutions = 2 * (2 * taps * D * (L + taps - 1))  # with the border of both directions
    scans = 2 * (7 * L * D * S + 4 * L * D)
    assert got == projections + convolutions + scans


def test_operations_of_the_transformer_by_hand() -> None:
    D, T, depth = 32, 3, 4
    made = Variant("seqTransf", "seqTransf", TemporalTransformer)
    forward = depth * (2 * T * D * (4 * D + 8 * D) + 4 * T * T * D)
    assert count(made, Case("inference", T, (2, 2), 1), D) == forward
    assert count(made, Case("inference", T, (2, 2), 2), D) == 2 * forward
    # Every product has two in the backward pass; the fused attention computes its scores anew.
    backward = depth * (4 * T * D * (4 * D + 8 * D) + 10 * T * T * D)
    assert count(made, Case("training", T, (2, 2), 1), D) == forward + backward


@pytest.mark.parametrize("mode", ["inference", "training"])
def test_operations_are_counted_for_every_head(mode: str) -> None:
    case = Case(mode, 1, (2, 2), 1)
    counted = {name: countable(name, head) for name, head in HERE.items()}
    once = {head: count(head, case, 32) for head in {*counted.values()}}
    counts = {name: once[head] for name, head in counted.items()}
    assert counts["meanP"] == 0 and all(counts[name] > 0 for name in counts if name != "meanP")
    assert counts["conv"] < counts["mamba"] < counts["muse-torch"]
    assert countable("muse-torch", HERE["muse-torch"]) == countable("", HERE["muse-reference"])
    published = Variant("", "muse", lambda dim: nn.Identity())
    assert count(countable("muse-published", published), case, 32) > counts["muse-torch"]

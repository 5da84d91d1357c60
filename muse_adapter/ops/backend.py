"""What a backend of the scan is: one object, whose methods compose the plain operators.

A backend gives `scan`; it overrides the other methods where it does better than one operator after
the other. Arguments have been checked, and come from callers that the public functions of
`muse_adapter.ops` serve: each method has the arguments and results of the function of its name.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from muse_adapter.ops.autocast import without_autocast
from muse_adapter.ops.inputs import ScanInputs, state_dtype
from muse_adapter.ops.mixer_inputs import MixerInputs, MixerState, select
from muse_adapter.ops.short_convolution import short_convolution
from muse_adapter.ops.text_gate_inputs import TextGateInputs
from muse_adapter.ops.top_vectors_inputs import TopProductsInputs
from muse_adapter.ops.unit import unit

_VECTORS = 2048  # that are widened at once: they stay in the cache

_registered: dict[str, Backend] = {}


class Backend:
    """One way to run the scan and what stands around it.

    Attributes:
        name: Its name for users.
        self_checked: Whether it is taken automatically only where a self-check has passed.
    """

    name: str
    self_checked = False

    def __init__(self) -> None:
        _registered[self.name] = self

    def unavailable(self, device: torch.device | None = None) -> str | None:
        """Say why this backend cannot run.

        Args:
            device: Where the tensors are; None asks about the machine.

        Returns:
            None if it can run, else the reason and what would fix it.
        """
        raise NotImplementedError

    def automatic(self, device: torch.device) -> bool:
        """Whether it may be taken on a device without being asked for by name."""
        return True

    def require(self, device: torch.device | None) -> None:
        """Refuse to run where it cannot.

        Raises:
            RuntimeError: The reason, and what would fix it.
        """
        reason = self.unavailable(device)
        if reason is not None:
            raise RuntimeError(
                f"the backend {self.name!r} was asked for by name but cannot run: {reason}"
            )

    def scan(self, inputs: ScanInputs) -> tuple[Tensor, Tensor]:
        """Scan in one direction.

        Args:
            inputs: See `ScanInputs`.

        Returns:
            y (batch, L, E) and the state behind the last step (batch, E, S), both in the type of
            the state: float64 for a float64 x, else float32. Differentiable in every tensor,
            through both results.
        """
        raise NotImplementedError

    def bidirectional_scan(
        self,
        forward: ScanInputs,
        reverse: ScanInputs | None,
        z: Tensor,
        positions: Tensor | None,
    ) -> Tensor:
        """Scan both directions, sum them and gate the sum, see `muse_adapter.ops`."""
        y, _ = self.scan(forward)
        y = y if positions is None else select(y, positions)
        if reverse is not None:
            other, _ = self.scan(reverse)
            y = y + (other if positions is None else select(other, positions))
        return self.gate(y, z, None)

    def gate(self, y: Tensor, z: Tensor, positions: Tensor | None) -> Tensor:
        """Gate the output of a scan at the wanted positions: y * SiLU(z).

        Args:
            y: (batch, L, E), in the type of the state.
            z: (batch, P, E), the gate at the wanted positions.
            positions: (batch, P) integers; None: all.

        Returns:
            (batch, P, E) in z's type.
        """
        y = y if positions is None else select(y, positions)
        return (y * F.silu(z.to(y.dtype))).to(z.dtype)

    def causal_conv1d_silu(
        self, x: Tensor, weights: Sequence[tuple[Tensor, Tensor]], end: int
    ) -> tuple[Tensor, ...]:
        """Convolve in each direction and apply SiLU, see `muse_adapter.ops`."""
        return tuple(
            F.silu(short_convolution(x if index else x[:, :end], *pair, reverse=index == 1))
            for index, pair in enumerate(weights)
        )

    def conv3x3(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Convolve maps, see `muse_adapter.ops`."""
        return F.conv2d(x, weight, bias, padding=1)

    def text_gated_scores(self, inputs: TextGateInputs) -> tuple[Tensor, Tensor]:
        """Compare a text with stored tokens, see `muse_adapter.ops`."""
        return inputs.compose()

    @torch.no_grad()
    def byte_products(self, numbers: Tensor, scales: Tensor, queries: Tensor) -> Tensor:
        """Multiply queries with vectors in int8, see `muse_adapter.ops`."""
        units = unit(queries).double()  # torch may narrow products of float32
        blocks = [units @ block.double().T for block in numbers.split(_VECTORS)]
        return (torch.cat(blocks, 1) * scales).float()

    def top_products(self, inputs: TopProductsInputs) -> tuple[Tensor, Tensor]:
        """Find the largest inner products, see `muse_adapter.ops`."""
        return inputs.compose()

    def mamba_mixer(self, inputs: MixerInputs) -> tuple[Tensor, MixerState | None]:
        """Run a Mamba mixer up to its gated output, see `muse_adapter.ops`.

        Autocast may choose the types of the linear maps, and of nothing else.

        Args:
            inputs: See `MixerInputs`.

        Returns:
            The output, and the state behind the last token if `inputs` has one before the first.
        """
        x, z, previous = inputs.project(), inputs.gate(), inputs.num_previous
        weights = [(direction.conv, direction.conv_bias) for direction in inputs.directions]
        with without_autocast(x.device.type):
            # Nothing behind the last wanted token reaches it in the forward direction.
            convolved = self.causal_conv1d_silu(x, weights, previous + inputs.end)
        state = inputs.state
        initial = None if state is None else state.scan.to(state_dtype(x))
        forward, *reverse = (
            direction.scan_inputs(
                convolved_x[:, previous:] if previous else convolved_x,
                inputs.lengths,
                reverse=index == 1,
                initial_state=initial,
            )
            for index, (direction, convolved_x) in enumerate(
                zip(inputs.directions, convolved, strict=True)
            )
        )
        with without_autocast(x.device.type):
            if state is None:
                reverse_scan = reverse[0] if reverse else None
                return self.bidirectional_scan(forward, reverse_scan, z, inputs.positions), None
            y, last = self.scan(forward)
            y = self.gate(y, z, inputs.positions)
        conv = inputs.last_inputs(x).to(state.conv.dtype)
        return y, MixerState(conv, last.to(state.scan.dtype))


def by_name(name: str) -> Backend:
    """Return the backend of a name.

    Raises:
        ValueError: The name is no backend's.
    """
    if name not in _registered:
        known = ", ".join(sorted(_registered))
        raise ValueError(f"unknown backend {name!r}, expected one of {known}")
    return _registered[name]

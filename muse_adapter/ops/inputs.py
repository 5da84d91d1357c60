"""The inputs of a scan: one tuple for the contract, the operators and the backends."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from muse_adapter.ops.checks import check_rank, check_tensor


class ScanInputs(NamedTuple):
    """The inputs of a scan in one direction, as every backend reads them.

    Attributes:
        x: (batch, L, E), any floating type and strides.
        delta: (batch, L, E), step sizes before bias and softplus.
        A: (E, S).
        B, C: (batch or 1, L or 1, G, S), where a size of 1 stands for all; channel e belongs to
            group e // (E // G).
        D: (E,), skip connection, or None.
        delta_bias: (E,) or None.
        initial_state: (batch, E, S), the state in front of the first step of time; None: zeros.
        lengths: (batch,) integers or None: all. What stands at or behind a video's length is never
            read and gets the output 0 and the gradient 0.
        delta_softplus: Whether step sizes pass through softplus.
        reverse: Whether time runs from the last position to the first.
    """

    x: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None = None
    delta_bias: Tensor | None = None
    initial_state: Tensor | None = None
    lengths: Tensor | None = None
    delta_softplus: bool = False
    reverse: bool = False

    def differentiable(self) -> tuple[Tensor | None, ...]:
        """Return the tensors that have a gradient: all but the lengths."""
        # One by one: torch.compile of torch 2.6 cannot slice a named tuple.
        return (
            *(self.x, self.delta, self.A, self.B, self.C),
            *(self.D, self.delta_bias, self.initial_state),
        )

    def check(self, prefix: str = "") -> None:
        """Refuse inputs that do not fit together.

        Args:
            prefix: Stands before the names in messages.

        Raises:
            ValueError: Shapes or devices that do not fit.
            TypeError: Tensors of another kind of type.
        """
        batch, length, channels = check_rank(f"{prefix}x", self.x, "batch", "L", "E")
        rows, states = check_rank(f"{prefix}A", self.A, "E", "S")
        if rows != channels or rows == 0 or states == 0:
            raise ValueError(
                f"{prefix}A must have shape (E, S) = ({channels}, S) with no size 0, got "
                f"{(rows, states)}"
            )
        like = f"{prefix}x", self.x
        for name, tensor, shape in (
            ("x", self.x, None),
            ("delta", self.delta, (batch, length, channels)),
            ("A", self.A, None),
            ("D", self.D, (channels,)),
            ("delta_bias", self.delta_bias, (channels,)),
            ("initial_state", self.initial_state, (batch, channels, states)),
        ):
            check_tensor(prefix + name, tensor, shape, like)
        for name, matrix in (("B", self.B), ("C", self.C)):
            check_tensor(prefix + name, matrix, None, like)
            videos, steps, groups, width = check_rank(prefix + name, matrix, "batch", "L", "G", "S")
            if not (
                (videos == batch or videos == 1)
                and (steps == length or steps == 1)
                and groups > 0
                and channels % groups == 0
                and width == states
            ):
                raise ValueError(
                    f"{prefix}{name} must have shape (batch or 1, L or 1, G, S) = ({batch} or 1, "
                    f"{length} or 1, G, {states}) with G dividing {channels}, got "
                    f"{(videos, steps, groups, width)}"
                )
        check_tensor(prefix + "lengths", self.lengths, (batch,), like, integer=True)


class Direction(NamedTuple):
    """The inputs of one direction of a bidirectional scan, in the layout of linear layers.

    Attributes:
        x: (batch, L, E), after convolution and SiLU.
        delta: (batch, L, E), step sizes before bias and softplus.
        A: (E, S), negative.
        B, C: (batch, L, S).
        D: (E,), skip connection.
        delta_bias: (E,).
    """

    x: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor
    delta_bias: Tensor

    def scan_inputs(self, lengths: Tensor | None, *, reverse: bool) -> ScanInputs:
        """Return the inputs of its scan."""
        x, delta, A, B, C, D, delta_bias = self
        B, C = B.unsqueeze(2), C.unsqueeze(2)
        return ScanInputs(x, delta, A, B, C, D, delta_bias, None, lengths, True, reverse)


def gradient_wanted(tensors: Iterable[Tensor | None]) -> bool:
    """Whether a gradient of one of the tensors may be asked for."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def state_dtype(x: Tensor) -> torch.dtype:
    """Return the type of states, outputs and sums: float64 for a float64 x, else float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def expand_lengths(lengths: Tensor | None, tokens: Tensor) -> Tensor | None:
    """Give every video its own length: (1,) -> (batch,); any other shape is returned as it is."""
    batch = tokens.shape[0]
    if lengths is None or lengths.dim() != 1 or lengths.shape[0] == batch:
        return lengths
    return lengths.expand(batch) if lengths.shape[0] == 1 else lengths

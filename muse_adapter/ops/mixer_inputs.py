"""The inputs of a Mamba mixer, and its linear maps: what stands around convolution and scan."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from muse_adapter.ops.checks import check_rank, check_tensor
from muse_adapter.ops.inputs import ScanInputs
from muse_adapter.ops.linear_map import linear


class MambaDirection(NamedTuple):
    """The weights of one direction of a mixer with E inner channels.

    Attributes:
        conv: (E, 1, taps), of the short convolution.
        conv_bias: (E,).
        x_proj: (R + 2 S, E), to low-rank step sizes, B and C.
        dt_proj: (E, R), from there to step sizes.
        dt_bias: (E,).
        A: (E, S), negative.
        D: (E,), skip connection.
    """

    conv: Tensor
    conv_bias: Tensor
    x_proj: Tensor
    dt_proj: Tensor
    dt_bias: Tensor
    A: Tensor
    D: Tensor

    def scan_inputs(
        self,
        x: Tensor,
        lengths: Tensor | None,
        *,
        reverse: bool,
        initial_state: Tensor | None = None,
    ) -> ScanInputs:
        """Make the inputs of the scan from the convolved tokens, (batch, L, E)."""
        states = self.A.shape[1]
        sizes = self.dt_proj.shape[1], states, states
        low_rank, B, C = linear(x, self.x_proj).split(sizes, dim=-1)
        delta = linear(low_rank, self.dt_proj)  # its bias is added in the scan, in float32
        B, C = B.unsqueeze(2), C.unsqueeze(2)
        return ScanInputs(
            *(x, delta, self.A, B, C, self.D, self.dt_bias, initial_state, lengths, True, reverse)
        )

    def check(self, channels: int, like: tuple[str, Tensor], prefix: str = "") -> None:
        """Refuse weights that do not fit together; `like` as in `check_tensor`."""
        _, one, _ = check_rank(f"{prefix}conv", self.conv, "E", "1", "taps")
        _, states = check_rank(f"{prefix}A", self.A, "E", "S")
        _, rank = check_rank(f"{prefix}dt_proj", self.dt_proj, "E", "R")
        if one != 1 or 0 in self.conv.shape or 0 in self.A.shape:
            raise ValueError(
                f"{prefix}conv and {prefix}A must have shapes (E, 1, taps) and (E, S) with no "
                f"size 0, got {tuple(self.conv.shape)} and {tuple(self.A.shape)}"
            )
        for name, tensor, shape in (
            ("conv", self.conv, (channels, 1, self.conv.shape[2])),
            ("conv_bias", self.conv_bias, (channels,)),
            ("x_proj", self.x_proj, (rank + 2 * states, channels)),
            ("dt_proj", self.dt_proj, (channels, rank)),
            ("dt_bias", self.dt_bias, (channels,)),
            ("A", self.A, (channels, states)),
            ("D", self.D, (channels,)),
        ):
            check_tensor(prefix + name, tensor, shape, like)


class MixerState(NamedTuple):
    """What a mixer in one direction remembers of the tokens before a chunk.

    Attributes:
        conv: (batch, taps - 1, E), the last inputs of the short convolution; before the first
            token zeros.
        scan: (batch, E, S), the state of the scan.
    """

    conv: Tensor
    scan: Tensor


class MixerInputs(NamedTuple):
    """The inputs of a mixer.

    Attributes:
        tokens: (batch, L, D).
        in_proj: (2 E, D), whose halves make x and the gate z.
        directions: The forward direction, then perhaps the one in which time runs backwards.
        lengths: (batch,) valid tokens of each video, standing in front; None: all of them.
        positions: (batch, P) integers, the positions wanted; None: all.
        end: Exclusive upper bound of `positions`, at most L.
        state: For a chunk of a longer sequence, what stands before it; None: nothing does. With a
            state there is one direction, and `end` is L.
    """

    tokens: Tensor
    in_proj: Tensor
    directions: list[MambaDirection]
    lengths: Tensor | None
    positions: Tensor | None
    end: int
    state: MixerState | None = None

    @property
    def num_previous(self) -> int:
        """How many inputs of the convolution stand in front of the tokens: those of the state."""
        return 0 if self.state is None else self.state.conv.shape[1]

    def tensors(self) -> list[Tensor]:
        """Return all tensors that have a gradient."""
        weights = [tensor for direction in self.directions for tensor in direction]
        return [self.tokens, self.in_proj, *weights, *(self.state or ())]

    def to(self, dtype: torch.dtype) -> MixerInputs:
        """Bring all tensors that have a gradient to one type."""
        directions = [MambaDirection(*(t.to(dtype) for t in w)) for w in self.directions]
        tokens, in_proj = self.tokens.to(dtype), self.in_proj.to(dtype)
        state = None if self.state is None else MixerState(*(t.to(dtype) for t in self.state))
        return self._replace(tokens=tokens, in_proj=in_proj, directions=directions, state=state)

    def check(self) -> None:
        """Refuse inputs that do not fit together.

        Raises:
            ValueError: Shapes or devices that do not fit.
            TypeError: Tensors of another kind of type.
        """
        batch, length, width = check_rank("tokens", self.tokens, "batch", "L", "D")
        rows, columns = check_rank("in_proj", self.in_proj, "2 E", "D")
        like = "tokens", self.tokens
        if rows % 2 or rows == 0 or columns != width:
            raise ValueError(
                f"in_proj must have shape (2 E, D) = (2 E, {width}), got {(rows, columns)}"
            )
        check_tensor("tokens", self.tokens, None, like)
        check_tensor("in_proj", self.in_proj, None, like)
        if len(self.directions) not in (1, 2):
            raise ValueError(f"a mixer has one direction or two, got {len(self.directions)}")
        for index, direction in enumerate(self.directions):
            direction.check(rows // 2, like, f"directions[{index}].")
        first, last = self.directions[0].conv, self.directions[-1].conv
        if first.shape != last.shape:
            raise ValueError(
                f"both directions must have as many taps, got {first.shape[2]} and {last.shape[2]}"
            )
        check_tensor("lengths", self.lengths, (batch,), like, integer=True)
        if self.positions is not None:
            _, places = check_rank("positions", self.positions, "batch", "P")
            check_tensor("positions", self.positions, (batch, places), like, integer=True)
        if not 0 <= self.end <= length or (self.positions is None and self.end != length):
            raise ValueError(
                f"end must lie between 0 and L = {length}, and be L without positions, got "
                f"{self.end}"
            )

        if self.state is not None:
            self._check_state(self.state, batch, rows // 2)

    def _check_state(self, state: MixerState, batch: int, channels: int) -> None:
        if len(self.directions) != 1:
            raise ValueError("a mixer in both directions has no state: its reverse one reads ahead")
        taps, states = self.directions[0].conv.shape[2], self.directions[0].A.shape[1]
        like = "tokens", self.tokens
        check_tensor("state.conv", state.conv, (batch, taps - 1, channels), like)
        check_tensor("state.scan", state.scan, (batch, channels, states), like)

    def project(self) -> Tensor:
        """Make x, (batch, L, E), zero behind the lengths: convolutions read there.

        With a state its inputs of the convolution stand in front: (batch, num_previous + L, E).
        """
        x = linear(self.tokens, self.in_proj.chunk(2)[0])
        if self.lengths is not None:
            x = zero_behind(x, self.lengths)
        return x if self.state is None else torch.cat([self.state.conv.to(x.dtype), x], dim=1)

    def last_inputs(self, x: Tensor) -> Tensor:
        """Take the last valid inputs of the convolution, (batch, num_previous, E).

        Args:
            x: As `project` makes it. Those of the state stand in front, so that there are always
                enough, and without a valid token they are taken again.
        """
        count, length = self.num_previous, self.tokens.shape[1]
        if self.lengths is None:
            return x[:, length:].clone()  # a view would keep all of x
        places = torch.arange(count, device=x.device)
        return select(x, self.lengths.clamp(0, length).unsqueeze(1) + places)

    def gate(self) -> Tensor:
        """Make z at the wanted positions, (batch, P, E), zero behind the lengths."""
        if self.positions is None:
            z = linear(self.tokens, self.in_proj.chunk(2)[1])
            return z if self.lengths is None else zero_behind(z, self.lengths)
        z = linear(select(self.tokens, self.positions), self.in_proj.chunk(2)[1])
        if self.lengths is None:
            return z
        return z.masked_fill_((self.positions >= self.lengths.unsqueeze(1)).unsqueeze(-1), 0)


def zero_behind(x: Tensor, lengths: Tensor) -> Tensor:
    """Set x (batch, L, E) to zero behind the lengths (batch,), in place.

    By filling and not by a product, since 0 * NaN is NaN.
    """
    behind = torch.arange(x.shape[1], device=x.device) >= lengths.unsqueeze(1)
    return x.masked_fill_(behind.unsqueeze(-1), 0)


def select(tensor: Tensor, positions: Tensor) -> Tensor:
    """Take the values at positions: (batch, L, E) and (batch, P) -> (batch, P, E)."""
    return tensor.gather(1, positions.unsqueeze(-1).expand(-1, -1, tensor.shape[-1]))

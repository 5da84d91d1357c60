"""A head on a video that comes in chunks: which heads can, and what is kept between two chunks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from muse_adapter.config import MuseConfig

# What in a head needs frames that have not come yet.
NEEDS_LATER_FRAMES = {
    "bimamba": "its reverse direction starts at the end of the video",
    "attention": "its tokens attend to those of later frames",
    "conv": "its reverse convolution reads later tokens",
    "scale_wise": "it puts a scale's tokens of all frames before those of the next scale",
    "spatial_wise": "it averages each scale over all frames",
}


class StreamState(NamedTuple):
    """What a head remembers of the frames before a chunk: of constant size, however many they are.

    It is a tuple of tensors: `torch.save(tuple(state), file)` stores it so that `torch.load` needs
    no trust in other classes, and the tuple that it returns is a state too. `torch.cat` over the
    first dimension makes a batch of it (`StreamState.cat`).

    Attributes:
        conv: (B, depth, d_conv - 1, E), each layer's last inputs of the short convolution.
        scan: (B, depth, E, S), each layer's state of the scan.
    """

    conv: Tensor
    scan: Tensor

    def to(self, *args: Any, **kwargs: Any) -> StreamState:
        """Move or cast it; arguments as in `torch.Tensor.to`."""
        return StreamState(self.conv.to(*args, **kwargs), self.scan.to(*args, **kwargs))

    def detach(self) -> StreamState:
        """Cut it off from the graph of the chunks before."""
        return StreamState(self.conv.detach(), self.scan.detach())

    @staticmethod
    def cat(states: Sequence[StreamState]) -> StreamState:
        """Make one batch of the states of several."""
        conv, scan = zip(*states, strict=True)
        return StreamState(torch.cat(conv), torch.cat(scan))

    def split(self, sizes: int | list[int] = 1) -> list[StreamState]:
        """Split a batch.

        Args:
            sizes: Videos of each part, or of all parts.

        Returns:
            The parts, which own their memory.
        """
        parts = zip(self.conv.split(sizes), self.scan.split(sizes), strict=True)
        return [StreamState(conv.clone(), scan.clone()) for conv, scan in parts]


def check_streamable(config: MuseConfig) -> None:
    """Refuse a head whose frames depend on later ones.

    Raises:
        ValueError: What needs them.
    """
    for field, needed in (("mixer", "mamba"), ("aggregation", "frame_wise")):
        given = getattr(config, field)
        if given != needed:
            raise ValueError(
                f'forward_chunk needs {field}="{needed}", got {field}="{given}": '
                f"{NEEDS_LATER_FRAMES[given]}"
            )


def layer_states(
    state: StreamState | None, config: MuseConfig, tokens: Tensor
) -> list[tuple[Tensor, Tensor]]:
    """Take a state apart by layers.

    Args:
        state: As `forward_chunk` was given it; None: zeros.
        config: Of the head.
        tokens: (B, T, N, C) in the head's dtype.

    Returns:
        What each layer's mixer remembers, see `BiMamba.forward_hidden_chunk`.

    Raises:
        TypeError: It is not a pair of tensors, or of another dtype than float32 (float64 for a
            float64 head).
        ValueError: It is of another number of videos, another head, or on another device.
    """
    inner = config.expand * config.dim
    dtype = torch.promote_types(tokens.dtype, torch.float32)
    start = tokens.shape[0], config.depth
    shapes = (*start, config.d_conv - 1, inner), (*start, inner, config.d_state)
    if state is None:
        state = StreamState(*(tokens.new_zeros(shape, dtype=dtype) for shape in shapes))
    else:
        _check(state, shapes, dtype, tokens.device)
    conv, scan = state
    return list(zip(conv.unbind(1), scan.unbind(1), strict=True))


def _check(
    state: StreamState,
    shapes: tuple[tuple[int, ...], ...],
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    if not (
        isinstance(state, tuple) and len(state) == 2 and all(isinstance(t, Tensor) for t in state)
    ):
        raise TypeError(
            "state must be the StreamState that the last call returned, or None, got "
            f"{type(state).__name__}"
        )
    axes = "(B, depth, d_conv - 1, E)", "(B, depth, E, S)"
    for name, axis, tensor, shape in zip(StreamState._fields, axes, state, shapes, strict=True):
        if tensor.dim() == len(shape) and tensor.shape[1:] == shape[1:]:
            if tensor.shape[0] != shape[0]:
                raise ValueError(
                    f"state.{name} is of {tensor.shape[0]} videos, tokens are of {shape[0]}"
                )
        else:
            raise ValueError(
                f"state.{name} must have this head's shape {axis} = {shape}, got "
                f"{tuple(tensor.shape)}: is it the state of another head?"
            )
        if tensor.dtype != dtype:
            raise TypeError(f"state.{name} must be {dtype} for this head, got {tensor.dtype}")
        if tensor.device != device:
            raise ValueError(f"state.{name} is on {tensor.device}, the head is on {device}")


def stacked(states: list[tuple[Tensor, Tensor]]) -> StreamState:
    """Put the states of all layers together."""
    conv, scan = zip(*states, strict=True)
    return StreamState(torch.stack(conv, 1), torch.stack(scan, 1))

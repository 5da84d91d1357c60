"""A Mamba mixer from its input to its gated output."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from muse_adapter.ops.choice import choose
from muse_adapter.ops.inputs import expand_lengths
from muse_adapter.ops.mixer_inputs import MambaDirection, MixerInputs, MixerState


def mamba_mixer(
    tokens: Tensor,
    in_proj: Tensor,
    directions: Sequence[MambaDirection],
    *,
    lengths: Tensor | None = None,
    positions: Tensor | None = None,
    end: int | None = None,
    backend: str | None = None,
) -> Tensor:
    """Run a mixer up to its output map: (scan + reversed scan) * SiLU(z).

    Each direction scans what its own short convolution and SiLU make of x; x and z are the halves
    of one linear map of the tokens (Mamba's block; Vim's and MUSE's in both directions).

    Args:
        tokens: (batch, L, D).
        in_proj: (2 E, D), whose halves make x and the gate z.
        directions: The forward direction, then perhaps the one in which time runs backwards.
        lengths: (batch,) valid tokens of each video, standing in front; or (1,), the same for all;
            None: all of them.
        positions: (batch, P) integers, the positions wanted; None: all.
        end: Exclusive upper bound of `positions`, not checked; None: anywhere.
        backend: Name of a backend; None chooses.

    Returns:
        (batch, L, E), or (batch, P, E) at the positions, in the type that the linear maps give.
        Behind `lengths` it is zero.

    Raises:
        ValueError: Shapes that do not fit, an unknown backend.
        TypeError: Tensors of another kind of type.
        RuntimeError: The backend asked for cannot run.
    """
    if positions is None or end is None:
        end = tokens.shape[1]
    lengths = expand_lengths(lengths, tokens)
    inputs = MixerInputs(
        tokens, in_proj, list(directions), lengths, positions, min(end, tokens.shape[1])
    )
    inputs.check()
    return choose(tokens.device, backend).mamba_mixer(inputs)[0]


def mamba_mixer_chunk(
    tokens: Tensor,
    in_proj: Tensor,
    direction: MambaDirection,
    state: MixerState,
    *,
    lengths: Tensor | None = None,
    positions: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, MixerState]:
    """Run a mixer in one direction on the next tokens of a sequence.

    The outputs of all chunks are those of one call of `mamba_mixer` on the whole sequence.

    Args:
        tokens: (batch, L, D), the next tokens.
        in_proj: As in `mamba_mixer`.
        direction: The weights.
        state: What stands before the tokens; zeros before the first. It is not changed.
        lengths: As in `mamba_mixer`. Tokens behind them do not move the state.
        positions: (batch, P) integers, the positions wanted, in this chunk; None: all.
        backend: Name of a backend; None chooses.

    Returns:
        The output, as that of `mamba_mixer`, and the state behind the tokens, in the types of the
        one given. Gradients flow through both, and into `state`.

    Raises:
        ValueError: Shapes that do not fit, an unknown backend.
        TypeError: Tensors of another kind of type.
        RuntimeError: The backend asked for cannot run.
    """
    lengths = expand_lengths(lengths, tokens)
    inputs = MixerInputs(tokens, in_proj, [direction], lengths, positions, tokens.shape[1], state)
    inputs.check()
    y, last = choose(tokens.device, backend).mamba_mixer(inputs)
    assert last is not None
    return y, last

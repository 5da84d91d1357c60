"""The selective scan as its callers see it: shapes, checks, gating; the work is a backend's."""

from __future__ import annotations

from functools import partial

from torch import Tensor
from torch.nn import functional as F

from muse_adapter.ops.autocast import without_autocast
from muse_adapter.ops.bidirectional import Direction, scan_in_turn
from muse_adapter.ops.dispatch import choose


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    *,
    reverse: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Selective state-space scan, a stand-in for mamba-ssm's `selective_scan_fn` with real A.

    h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t and y_t = (<C_t, h_t> + D u_t) SiLU(z_t), with
    dt = softplus(delta + delta_bias) (Gu and Dao, "Mamba", 2023, algorithm 2; B by the Euler rule).
    State, step sizes and sums are float32 whatever the inputs' type; float64 stays float64.

    Args:
        u, delta: (batch, E, L).
        A: (E, S), real.
        B, C: (E, S) constant in time, (batch, S, L), or (batch, G, S, L) where G divides E.
        D: (E,) or None.
        z: (batch, E, L) or None (no gate).
        delta_bias: (E,) or None.
        delta_softplus: pass the step sizes through softplus.
        return_last_state: also return the state behind the last step.
        reverse: time runs from position L - 1 to 0; the last state is the one after position 0.
        backend: name of a backend; None chooses (see `muse_adapter.ops.backends`).

    Returns:
        y (batch, E, L) in u's type; with `return_last_state` also h (batch, E, S) in the state's
        type.

    Raises:
        ValueError: shapes that do not fit, a complex A, an unknown backend.
        TypeError: tensors that are not of floating type.
        RuntimeError: the backend asked for cannot run.
    """
    _check(u, delta, A, B, C, D, z, delta_bias)
    module = choose(u.device, backend)
    with without_autocast(u.device.type):
        y, state = module.scan(
            u.transpose(1, 2),
            delta.transpose(1, 2),
            A,
            _time_first(B),
            _time_first(C),
            D,
            delta_bias,
            delta_softplus=delta_softplus,
            reverse=reverse,
            lengths=None,
        )
        y = y.transpose(1, 2)
        y = (y if z is None else y * F.silu(z.to(y.dtype))).to(u.dtype)
    return (y, state) if return_last_state else y


def bidirectional_scan(
    forward: Direction,
    backward: Direction | None,
    z: Tensor,
    *,
    lengths: Tensor | None = None,
    positions: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Both directions of a mixer at once: (scan forward + scan backward) * SiLU(z).

    Each direction's input stands in the order of time; nothing is flipped. Step sizes pass through
    softplus. Only the outputs at `positions` are formed where they are given; the forward direction
    may then end behind the last of them, since nothing later reaches it.

    Args:
        forward, backward: the inputs of the directions; None: forward only.
        z: (batch, P, E), the gate at the wanted positions (P = L without `positions`).
        lengths: (batch,) valid tokens of each video, standing in front; None: all of them.
        positions: (batch, P) integers, the positions wanted; None: all.
        backend: name of a backend; None chooses.

    Returns:
        (batch, P, E) in z's type. Behind `lengths` the scans are zero.

    Raises:
        ValueError: an unknown backend.
        RuntimeError: the backend asked for cannot run.
    """
    module = choose(z.device, backend)
    with without_autocast(z.device.type):
        run = getattr(module, "bidirectional_scan", None) or partial(scan_in_turn, module.scan)
        return run(forward, backward, z, lengths=lengths, positions=positions)


def _time_first(matrix: Tensor) -> Tensor:
    """B or C in the backends' layout: (batch, L, G, S), or (1, 1, E, S) where constant in time."""
    if matrix.dim() == 2:
        return matrix[None, None]
    grouped = matrix.unsqueeze(1) if matrix.dim() == 3 else matrix
    return grouped.permute(0, 3, 1, 2)


def _check(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
) -> None:
    if u.dim() != 3 or 0 in u.shape:
        raise ValueError(f"u must have shape (batch, E, L) with no size 0, got {tuple(u.shape)}")
    if A.is_complex():
        raise ValueError("complex A is not supported, expected a real A of shape (E, S)")
    batch, channels, length = u.shape
    if A.dim() != 2 or A.shape[0] != channels or A.shape[1] == 0:
        raise ValueError(f"A must have shape (E, S) = ({channels}, S), got {tuple(A.shape)}")
    states = A.shape[1]
    for name, tensor, shape in (
        ("delta", delta, (batch, channels, length)),
        ("z", z, (batch, channels, length)),
        ("D", D, (channels,)),
        ("delta_bias", delta_bias, (channels,)),
    ):
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"{name} must have shape {shape}, got {tuple(tensor.shape)}")
    for name, tensor in (("B", B), ("C", C)):
        given = tuple(tensor.shape)
        groups = given[1] if len(given) == 4 else 1
        if not (
            given == (channels, states)
            or given == (batch, states, length)
            or (given == (batch, groups, states, length) and groups and channels % groups == 0)
        ):
            raise ValueError(
                f"{name} must have shape (E, S) = {(channels, states)}, (batch, S, L) = "
                f"{(batch, states, length)} or (batch, G, S, L) with G dividing {channels}, "
                f"got {given}"
            )
    named = {
        "u": u,
        "delta": delta,
        "A": A,
        "B": B,
        "C": C,
        "D": D,
        "z": z,
        "delta_bias": delta_bias,
    }
    for name, tensor in named.items():
        if tensor is None:
            continue
        if not tensor.is_floating_point():
            raise TypeError(f"{name} must be of a real floating type, got {tensor.dtype}")
        if tensor.device != u.device:
            raise ValueError(f"{name} must be on the device of u, {u.device}, got {tensor.device}")

"""The selective scan as its callers see it: shapes, checks, gating; the work is a backend's."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from muse_adapter.ops.autocast import without_autocast
from muse_adapter.ops.checks import check_rank, check_tensor
from muse_adapter.ops.choice import choose
from muse_adapter.ops.inputs import Direction, ScanInputs, expand_lengths, state_dtype


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
    initial_state: Tensor | None = None,
    reverse: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Run a selective state-space scan: mamba-ssm's `selective_scan_fn` with real A.

    h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t and y_t = (<C_t, h_t> + D u_t) SiLU(z_t), with
    dt = softplus(delta + delta_bias) (Gu and Dao, "Mamba", 2023, algorithm 2; B by the Euler rule).
    State, step sizes and sums are float32 whatever the inputs' type; float64 stays float64.

    Args:
        u: (batch, E, L), the input.
        delta: (batch, E, L), step sizes.
        A: (E, S), real.
        B: (E, S) constant in time, (batch, S, L), or (batch, G, S, L) where G divides E.
        C: As B.
        D: (E,) or None.
        z: (batch, E, L) or None (no gate).
        delta_bias: (E,) or None.
        delta_softplus: Pass the step sizes through softplus.
        return_last_state: Also return the state behind the last step.
        initial_state: (batch, E, S), the state in front of the first step of time; None: zeros.
            The last state of one call is the initial state of the next.
        reverse: Time runs from position L - 1 to 0; the last state is the one after position 0.
        backend: Name of a backend; None chooses (see `muse_adapter.ops.backends`).

    Returns:
        y (batch, E, L) in u's type; with `return_last_state` also h (batch, E, S) in the state's
        type.

    Raises:
        ValueError: Shapes that do not fit, a complex A, an unknown backend.
        TypeError: Tensors that are not of floating type.
        RuntimeError: The backend asked for cannot run.
    """
    _check(u, delta, A, B, C, D, z, delta_bias, initial_state)
    chosen = choose(u.device, backend)
    if initial_state is not None:
        initial_state = initial_state.to(state_dtype(u))
    with without_autocast(u.device.type):
        x, delta, B, C = (
            *(u.transpose(1, 2), delta.transpose(1, 2)),
            *(_time_first(B), _time_first(C)),
        )
        y, state = chosen.scan(
            ScanInputs(
                x, delta, A, B, C, D, delta_bias, initial_state, None, delta_softplus, reverse
            )
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
    """Run both directions of a mixer at once: (scan forward + scan backward) * SiLU(z).

    Each direction's input stands in the order of the tokens; nothing is flipped. Step sizes pass
    through softplus. Only the outputs at `positions` are formed where they are given; the forward
    direction may then end behind the last of them, since nothing later reaches it.

    Args:
        forward: The inputs of the direction of time.
        backward: Those of the reverse direction; None: forward only.
        z: (batch, P, E), the gate at the wanted positions (P = L without `positions`).
        lengths: (batch,) valid tokens of each video, standing in front; or (1,), the same for all;
            None: all of them.
        positions: (batch, P) integers, the positions wanted; None: all.
        backend: Name of a backend; None chooses.

    Returns:
        (batch, P, E) in z's type. Behind `lengths` the scans are zero.

    Raises:
        ValueError: Shapes that do not fit, an unknown backend.
        TypeError: Tensors of another kind of type.
        RuntimeError: The backend asked for cannot run.
    """
    lengths = expand_lengths(lengths, forward.x)
    scans = [forward.scan_inputs(lengths, reverse=False)]
    if backward is not None:
        scans.append(backward.scan_inputs(lengths, reverse=True))
    for name, scan in zip(("forward.", "backward."), scans, strict=False):
        scan.check(name)
    check_gate(z, scans, positions)
    chosen = choose(z.device, backend)
    with without_autocast(z.device.type):
        return chosen.bidirectional_scan(
            scans[0], scans[1] if len(scans) > 1 else None, z, positions
        )


def check_gate(z: Tensor, scans: list[ScanInputs], positions: Tensor | None) -> None:
    """Refuse a gate, positions or two directions that do not fit together.

    Args:
        z: As in `bidirectional_scan`.
        scans: The inputs of each direction, checked alone.
        positions: As in `bidirectional_scan`.
    """
    x = scans[-1].x
    batch, length, channels = x.shape
    like = "x", x
    if scans[0].x.shape[0] != batch or scans[0].x.shape[2] != channels:
        raise ValueError(
            "forward.x and backward.x must have the same batch and channels, got "
            f"{tuple(scans[0].x.shape)} and {tuple(x.shape)}"
        )
    if positions is not None:
        _, places = check_rank("positions", positions, "batch", "P")
        check_tensor("positions", positions, (batch, places), like, integer=True)
        length = places
    elif scans[0].x.shape[1] != length:
        raise ValueError(
            "without positions forward.x and backward.x must have the same length, got "
            f"{scans[0].x.shape[1]} and {length}"
        )
    check_tensor("z", z, (batch, length, channels), like)


def _time_first(matrix: Tensor) -> Tensor:
    """Bring B or C to (batch, L, G, S), or (1, 1, E, S) where it is constant in time."""
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
    initial_state: Tensor | None,
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
    check_tensor("initial_state", initial_state, (batch, channels, states), ("u", u))
    named = {"u": u, "delta": delta, "A": A, "B": B, "C": C, "D": D, "z": z}
    for name, tensor in (*named.items(), ("delta_bias", delta_bias)):
        check_tensor(name, tensor, None, ("u", u))

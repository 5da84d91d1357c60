"""Both directions of a mixer at once, against each video alone, cut and flipped."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from muse_adapter.ops import Direction, bidirectional_scan, selective_scan
from tests.support.scans import draw

pytestmark = pytest.mark.usefixtures("nan_memory")


def directions(length, dtype=torch.float64):
    def one(cut=length):
        a = draw(3, 6, length, 4, dtype)
        in_time = ("u", "delta", "B", "C")
        u, delta, B, C = (a[k].detach().transpose(1, 2)[:, :cut].clone() for k in in_time)
        values = [u, delta, a["A"], B, C]
        return Direction(*(v.detach().requires_grad_() for v in (*values, a["D"], a["delta_bias"])))

    return one


def one_by_one(forward, backward, z, lengths, positions):
    """`bidirectional_scan` by its words: each video alone, cut to its length, flipped in time."""
    rows = []
    for index, length in enumerate(lengths.tolist()):
        total = torch.zeros(forward.x.shape[2], backward.x.shape[1], dtype=z.dtype)
        for direction, flip in ((forward, False), (backward, True)):
            x, delta, A, B, C, D, bias = direction
            cut = min(length, x.shape[1])
            if cut == 0:
                continue
            order = slice(None)
            row = [v[index : index + 1, :cut].transpose(1, 2) for v in (x, delta, B, C)]
            row = [v.flip(-1) if flip else v[..., order] for v in row]
            y = selective_scan(
                row[0], row[1], A, row[2], row[3], D, delta_bias=bias, delta_softplus=True,
                backend="reference",
            )  # fmt: skip
            y = (y.flip(-1) if flip else y)[0]
            total = total + F.pad(y, (0, total.shape[1] - cut))
        rows.append(total.T)
    y = torch.stack(rows)
    y = torch.stack([row[index] for row, index in zip(y, positions, strict=True)])
    return y * F.silu(z)


@pytest.mark.parametrize("shape", [(0, 5), (2, 0)], ids=["no videos", "no tokens"])
def test_nothing_to_scan(backend, shape):
    x = torch.randn(*shape, 6, requires_grad=True)
    gain, weight = torch.randn(*shape, 4), torch.ones(6)
    direction = Direction(x, x, -torch.ones(6, 4), gain, gain, weight, weight)
    y = bidirectional_scan(direction, direction, x, backend=backend)
    assert y.shape == torch.autograd.grad(y.sum(), x)[0].shape == x.shape


@pytest.mark.parametrize("cut", [21, 7], ids=["whole", "forward cut"])
def test_both_directions_with_lengths_and_positions(backend, cut):
    one = directions(21)
    forward, backward = one(cut), one()
    lengths = torch.tensor([21, 0, 9])
    positions = torch.tensor([[0, 3, 6], [1, 2, 0], [6, 0, 5]])
    z = torch.randn(3, 3, 6, dtype=torch.float64, requires_grad=True)
    # What stands behind a video's length is never read, not even to be multiplied by zero.
    behind = torch.arange(21) >= lengths.unsqueeze(1)
    spoilt = [
        Direction(*(
            v.detach().masked_fill(behind[:, : v.shape[1], None], float("nan")).requires_grad_()
            if v.dim() == 3 else v
            for v in direction
        ))
        for direction in (forward, backward)
    ]  # fmt: skip
    got = bidirectional_scan(*spoilt, z, lengths=lengths, positions=positions, backend=backend)
    expected = one_by_one(forward, backward, z, lengths, positions)
    assert (got - expected).abs().max() < 1e-12
    wanted = [v for direction in spoilt for v in direction]
    originals = [v for direction in (forward, backward) for v in direction]
    cotangent = torch.randn_like(expected)
    for a, b in zip(
        torch.autograd.grad((got * cotangent).sum(), [*wanted, z]),
        torch.autograd.grad((expected * cotangent).sum(), [*originals, z]),
        strict=True,
    ):
        assert (a - b).abs().max() < 1e-11


@pytest.mark.parametrize("both", [True, False], ids=["both directions", "one direction"])
@pytest.mark.parametrize("channels", [32, 6])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_inference_is_the_definition(backend, dtype, channels, both):
    """Without gradients a backend may join the directions and the gate."""
    length, lengths = 70, torch.tensor([70, 0, 33])
    behind = torch.arange(length) >= lengths.unsqueeze(1)

    def direction():
        a = {name: t.detach() for name, t in draw(3, channels, length, 4, dtype).items()}
        rows = [a[name].transpose(1, 2) for name in ("u", "delta", "B", "C")]
        u, delta, B, C = (t.masked_fill(behind[:, :, None], float("nan")) for t in rows)
        return Direction(u, delta, a["A"], B, C, a["D"], a["delta_bias"])

    forward, backward = direction(), direction() if both else None
    z = torch.randn(3, length, 2 * channels, dtype=dtype)[..., channels:]  # half of a wider tensor
    got = bidirectional_scan(forward, backward, z, lengths=lengths, backend=backend)
    expected = bidirectional_scan(forward, backward, z, lengths=lengths, backend="reference")
    assert got.dtype == dtype and got.shape == expected.shape
    bound = 1e-12 if dtype == torch.float64 else 1e-5
    assert (got - expected).abs().max() < bound * expected.abs().max()
    assert (got[behind] == 0).all()

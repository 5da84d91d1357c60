"""The comparison with golden files: correct values pass, wrong ones fail."""

from __future__ import annotations

import math

import pytest
import torch

from tests.support.tolerances import TOLERANCES, assert_close

WHOLE = ("bimamba_expand1", "out.y")
SLICED_AXIS = ("head_scale_wise", "out.layers.0")
SLICED_FLAT = ("head_frame_wise", "grad.MS_mamba.0.mamba.in_proj.weight")
NAMES = pytest.mark.parametrize(("name", "key"), [WHOLE, SLICED_AXIS, SLICED_FLAT], ids=str)


def whole_tensor(file, key: str) -> torch.Tensor:
    """Make a full-size tensor with the stored values in its slice, and NaN elsewhere."""
    shapes = {
        "out.layers.0": (2, 765, 32),
        "grad.MS_mamba.0.mamba.in_proj.weight": (64, 32),
    }
    stored = file.stored(key).double()
    whole = torch.full(shapes.get(key, stored.shape), float("nan"), dtype=torch.float64)
    if key == SLICED_FLAT[1]:
        whole.view(-1)[::4] = stored
    elif key == SLICED_AXIS[1]:
        whole[:, ::8] = stored
    else:
        whole[:] = stored
    return whole


@NAMES
def test_stored_value_passes(golden, name: str, key: str) -> None:
    file = golden(name)
    file.check(key, whole_tensor(file, key))
    file.check(key, whole_tensor(file, key).float())


@NAMES
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_value_just_outside_the_tolerance_fails(golden, name, key, dtype) -> None:
    file = golden(name)
    got = whole_tensor(file, key)
    got = (got + 3e-5 * file.stored(key).abs().max()).to(dtype)
    with pytest.raises(AssertionError, match="is off by"):
        file.check(key, got)


@NAMES
def test_nan_fails(golden, name: str, key: str) -> None:
    file = golden(name)
    got = whole_tensor(file, key)
    got.view(-1)[0] = float("nan")
    with pytest.raises(AssertionError, match="off by nan"):
        file.check(key, got)


def test_wrong_shape_fails(golden) -> None:
    with pytest.raises(AssertionError, match="must have shape"):
        golden("bimamba_expand1").check("out.y", torch.zeros(2, 36, 24, dtype=torch.float64))


def test_sliced_tensor_cannot_be_read(golden) -> None:
    with pytest.raises(KeyError, match="compare it, do not read it"):
        golden(SLICED_AXIS[0]).tensor(SLICED_AXIS[1])


def test_bounds(golden) -> None:
    file = golden("head_scale_wise")
    double = torch.zeros(0, dtype=torch.float64)
    bounds = {
        (key, tensor.dtype): file.bound(key, tensor)
        for key in ("out.video", "out.frames", "grad.MS_mamba.0.mamba.D")
        for tensor in (double, double.float())
    }
    assert set(bounds.values()) <= {1e-9, 2e-7, 1e-5}
    assert bounds["grad.MS_mamba.0.mamba.D", torch.float32] == 1e-5


def test_weights_are_only_weights(golden) -> None:
    names = set(golden("head_scale_wise").weights())
    assert names
    assert all(name.startswith(("MS_mamba.", "mamba_stages.")) for name in names)


def test_nan_memory(nan_memory) -> None:
    assert torch.empty(3).isnan().all()
    assert torch.empty_like(torch.zeros(2, 2)).isnan().all()


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_the_table_of_tolerances_is_applied(dtype: torch.dtype) -> None:
    expected = torch.tensor([4.0, -0.5], dtype=torch.float64)
    for kind, bound in TOLERANCES[dtype]._asdict().items():
        off = torch.tensor([0.0, 1.0], dtype=torch.float64) * 4 * bound
        assert_close(expected + 0.99 * off, expected, kind, dtype=dtype)
        with pytest.raises(AssertionError, match="video is off by"):
            assert_close(expected + 1.01 * off, expected, kind, dtype=dtype, name="video")
    with pytest.raises(AssertionError, match="off by nan"):
        assert_close(expected * math.nan, expected, dtype=dtype)
    with pytest.raises(AssertionError, match="got shape"):
        assert_close(expected[:1], expected, dtype=dtype)

"""The comparison with golden files itself: it passes what is right and fails what is not."""

from __future__ import annotations

import pytest
import torch

WHOLE = ("bimamba_expand1", "out.y")
CUT_AXIS = ("head_scale_wise", "out.layers.0")
CUT_FLAT = ("head_frame_wise", "grad.MS_mamba.0.mamba.in_proj.weight")
NAMES = pytest.mark.parametrize(("name", "key"), [WHOLE, CUT_AXIS, CUT_FLAT], ids=str)


def whole_tensor(file, key: str) -> torch.Tensor:
    """A full-size tensor whose cut is what the file stores; NaN where the file says nothing."""
    shapes = {
        "out.layers.0": (2, 765, 32),
        "grad.MS_mamba.0.mamba.in_proj.weight": (64, 32),
    }
    stored = file.stored(key).double()
    whole = torch.full(shapes.get(key, stored.shape), float("nan"), dtype=torch.float64)
    if key == CUT_FLAT[1]:
        whole.view(-1)[::4] = stored
    elif key == CUT_AXIS[1]:
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


def test_cut_tensor_cannot_be_read_as_a_whole(golden) -> None:
    with pytest.raises(KeyError, match="stored cut"):
        golden(CUT_AXIS[0]).tensor(CUT_AXIS[1])


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


def test_weights_are_weights_alone(golden) -> None:
    names = set(golden("head_scale_wise").weights())
    assert names
    assert all(name.startswith(("MS_mamba.", "mamba_stages.")) for name in names)


def test_nan_memory(nan_memory) -> None:
    assert torch.empty(3).isnan().all()
    assert torch.empty_like(torch.zeros(2, 2)).isnan().all()

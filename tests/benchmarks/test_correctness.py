"""No time is given where results differ."""

from __future__ import annotations

import pytest
import torch

from benchmarks.correctness import difference, require_agreement

RIGHT = torch.ones(1000)


@pytest.mark.parametrize(
    ("index", "value", "bound", "message"),
    [
        (slice(None), 1.0, 0.0, None),
        (slice(None), 1.0009, 1e-3, None),
        (slice(None), 1.0011, 1e-3, r"y differs by 3\.5e-02 of 3\.2e\+01, allowed is 0\.001 of it"),
        # One value of a thousand: seen by the largest error, not by the 2-norm.
        (7, 1.0011, 1e-3, r"y differs by 1\.1e-03 of 1\.0e\+00, allowed is 0\.001 of it"),
        (7, float("nan"), 1e-3, "y differs by nan"),
    ],
    ids=["equal", "within", "all", "one value", "nan"],
)
def test_difference(index: slice | int, value: float, bound: float, message: str | None) -> None:
    got = RIGHT.clone()
    got[index] = value
    if message is None:
        assert difference({"y": got}, {"y": RIGHT}, bound) is None
        require_agreement({"y": got}, {"y": RIGHT}, "x", bound)
        return
    with pytest.raises(SystemExit, match=f"x: {message}.*, so no time is given"):
        require_agreement({"y": got}, {"y": RIGHT}, "x", bound)


def test_a_small_tensor_is_measured_against_the_largest() -> None:
    expected = {"large": RIGHT, "small": 1e-6 * RIGHT}
    got = {"large": RIGHT, "small": 2e-6 * RIGHT}
    assert "small differs" in (difference(got, expected, 1e-3) or "")
    assert difference(got, expected, 1e-3, min_scale=1e-2) is None

"""Weights that no head has, damaged content, and configs that ask for too much: one error each."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from muse_adapter.checkpoint import CONFIG_NAME, WEIGHTS_NAME, load_strict, save_pretrained
from muse_adapter.config import MuseConfig
from muse_adapter.models.muse import MultiScaleMamba
from tests.support.checkpoints import (
    CONFIG,
    as_first_release,
    assert_equal,
    copy_of,
    save_head,
)

safetensors = pytest.importorskip("safetensors", reason="checkpoints need safetensors")

State = dict[str, Tensor]
FIRST = "layers.0.fc.weight"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save_head(tmp_path / "saved")


def one(change: Callable[[Tensor], Tensor]) -> Callable[[State], State]:
    return lambda state: {**state, FIRST: change(state[FIRST])}


def every(dtype: torch.dtype) -> Callable[[State], State]:
    return lambda state: {name: tensor.to(dtype) for name, tensor in state.items()}


def with_first(value: float) -> Callable[[Tensor], Tensor]:
    def change(tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        tensor.view(-1)[0] = value
        return tensor

    return change


WEIGHTS = {
    "none": (lambda state: {}, "contains no weights"),
    "complex": (every(torch.complex64), "must have weights of one of .*got torch.complex64"),
    "integers": (every(torch.int32), "must have weights of one of .*got torch.int32"),
    "bool": (every(torch.bool), "got torch.bool"),
    "float8": (every(torch.float8_e4m3fn), "got torch.float8_e4m3fn"),
    "mixed": (one(lambda t: t.double()), rf"got .*torch.float64 \({FIRST}\)"),
    "one of integers": (one(lambda t: t.long()), rf"got .*torch.int64 \({FIRST}\)"),
    "NaN": (one(with_first(float("nan"))), f"weights that are not finite: {FIRST}$"),
    "infinity": (one(with_first(float("inf"))), f"weights that are not finite: {FIRST}$"),
    "all NaN": (
        lambda state: {name: t * float("nan") for name, t in state.items()},
        r"not finite: .* and \d+ others",
    ),
    "empty": (lambda state: {"x": torch.zeros(0)}, r"does not fit the head.*\n  missing"),
}


@pytest.mark.parametrize(("change", "message"), WEIGHTS.values(), ids=WEIGHTS.keys())
def test_weights_that_no_head_has(change: Callable[[State], State], message: str, saved: Path):
    import safetensors.torch

    path = saved / WEIGHTS_NAME
    state = {name: t.clone() for name, t in safetensors.torch.load_file(path).items()}
    safetensors.torch.save_file(change(state), path)
    with pytest.raises(ValueError, match=message):
        MultiScaleMamba.from_pretrained(saved)


@pytest.mark.parametrize("kind", ["mixed", "NaN"])
def test_they_are_not_saved_either(kind: str, saved: Path) -> None:
    before = (saved / WEIGHTS_NAME).read_bytes()
    head = MultiScaleMamba(CONFIG)
    if kind == "mixed":
        head.layers[0].fc.half()
    else:
        head.layers[0].fc.bias.data[0] = float("nan")
    with pytest.raises(ValueError, match=r"the head (must have weights of one of|has weights)"):
        save_pretrained(head, saved)
    assert (saved / WEIGHTS_NAME).read_bytes() == before


def test_load_strict_refuses_weights_that_are_not_finite() -> None:
    head = MultiScaleMamba(CONFIG)
    before = copy_of(head)
    with pytest.raises(ValueError, match=f"{FIRST} must be finite, got NaN or infinity"):
        load_strict(head, one(with_first(float("nan")))(copy_of(head)))
    assert_equal(head.state_dict(), before)


def test_every_flipped_bit_is_found(saved: Path) -> None:
    path = saved / WEIGHTS_NAME
    whole = path.read_bytes()
    for place in (*range(0, 1500, 97), *range(len(whole) - 1, 0, -len(whole) // 15)):
        content = bytearray(whole)
        content[place] ^= 1 << place % 7
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"model\.safetensors|two saves"):
            MultiScaleMamba.from_pretrained(saved)


@pytest.mark.parametrize("field", ["aggregation", "dropout", "num_prefix_tokens", "init"])
def test_a_config_of_another_save(field: str, saved: Path) -> None:
    """The shapes of the weights do not tell, and what is loaded would be another model."""
    other = {"aggregation": "frame_wise", "dropout": 0.9, "num_prefix_tokens": 5, "init": "release"}
    config = dataclasses.replace(CONFIG, **{field: other[field]})
    (saved / CONFIG_NAME).write_text(config.to_json())
    message = f"{field} is {getattr(CONFIG, field)!r} in {WEIGHTS_NAME} and {other[field]!r} in"
    with pytest.raises(ValueError, match=message):
        MultiScaleMamba.from_pretrained(saved)


def test_a_config_written_by_another_version(saved: Path) -> None:
    """Two saves of one config are one head, whoever wrote them."""
    path = saved / CONFIG_NAME
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": "0.0.9"}))
    assert MultiScaleMamba.from_pretrained(saved).config == CONFIG


@pytest.mark.parametrize(
    "change",
    [
        {"depth": 1000}, {"dim": 60_000}, {"d_conv": 1000}, {"d_state": 4000}, {"expand": 200},
        {"in_dim": 60_000},
    ],
    ids=str,
)  # fmt: skip
def test_no_memory_is_taken_for_a_number(change: dict[str, Any], saved: Path) -> None:
    """The weights of the first release have no config beside them, so their shapes must tell."""
    values = json.loads((as_first_release(saved) / CONFIG_NAME).read_text())
    (saved / CONFIG_NAME).write_text(json.dumps({**values, **change}))
    with pytest.raises(ValueError, match=r"do not fit its config: they are|does not fit the head"):
        MultiScaleMamba.from_pretrained(saved)


@pytest.mark.parametrize(
    "field", ["dim", "in_dim", "depth", "d_state", "d_conv", "expand", "num_prefix_tokens"]
)
def test_numbers_have_bounds(field: str) -> None:
    with pytest.raises(ValueError, match=rf"{field} must be at most \d+, got 1000000000000"):
        MuseConfig(**{field: 10**12})


@pytest.mark.parametrize("version", ["-1.0", "0.1.evil<script>", "0.1.", "0.1 ", "99999.0", "0"])
def test_versions_that_are_none(version: str) -> None:
    with pytest.raises(ValueError, match="must have the version of muse-adapter that wrote it"):
        MuseConfig.from_dict({**CONFIG.to_dict(), "version": version})


@pytest.mark.parametrize("version", ["0.0.1", "0.1", "0.1.0", "0.1.2.dev3", "0.1.0rc1.post2"])
def test_versions(version: str) -> None:
    assert MuseConfig.from_dict({**CONFIG.to_dict(), "version": version}) == CONFIG

"""State dicts of the official code: renaming, prefixes, mismatches."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from muse_adapter.checkpoint import load_muse_state_dict
from muse_adapter.config import MuseConfig
from muse_adapter.models.muse import MultiScaleMamba
from tests.support.checkpoints import CONFIG, assert_equal, copy_of, randomised
from tests.support.golden import Golden


def official_names(head: nn.Module) -> dict[str, Tensor]:
    """A head's weights under the official names, written out independently of the loader."""
    state = {}
    for name, value in copy_of(randomised(head)).items():
        kind, *rest = name.split(".")
        if kind == "pyramid":
            state[".".join(["mamba_stages", *rest[1:]])] = value
        else:
            part = {"norm": "layer_norm1", "mixer": "mamba", "fc": "temporal_fc"}[rest[1]]
            state[".".join(["MS_mamba", rest[0], part, *rest[2:]])] = value
    return state


def test_golden_weights_load(golden_head: Golden) -> None:
    weights = golden_head.weights(torch.float32)
    config = MuseConfig(
        dim=golden_head.inputs()["tokens"].shape[-1],
        scales=golden_head.scales,
        depth=len({name.split(".")[1] for name in weights if name.startswith("MS_mamba.")}),
    )
    head = MultiScaleMamba(config)
    load_muse_state_dict(head, weights)
    got = head.state_dict()
    assert len(got) == len(weights)
    layer = "MS_mamba.1"
    for official, ours in {
        f"{layer}.layer_norm1.bias": "layers.1.norm.bias",
        f"{layer}.mamba.A_b_log": "layers.1.mixer.A_b_log",
        f"{layer}.mamba.dt_proj_b.bias": "layers.1.mixer.dt_proj_b.bias",
        f"{layer}.temporal_fc.weight": "layers.1.fc.weight",
        "mamba_stages.0.4.weight": "pyramid.stages.0.4.weight",
    }.items():
        assert torch.equal(got[ours], weights[official])


@pytest.mark.parametrize("prefix", ["", "module.", "module.module."])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_official_names_among_others(prefix: str, dtype: torch.dtype) -> None:
    source = MultiScaleMamba(CONFIG).to(dtype)
    official = {prefix + name: value for name, value in official_names(source).items()}
    official |= {f"{prefix}clip.visual.proj": torch.zeros(3), f"{prefix}loss.module.MS": None}
    head = MultiScaleMamba(CONFIG)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_muse_state_dict(head, official)
    assert_equal(head.state_dict(), {k: v.float() for k, v in source.state_dict().items()})


def test_without_pyramid_the_layers_are_loaded_with_a_warning() -> None:
    source, head = MultiScaleMamba(CONFIG), MultiScaleMamba(CONFIG)
    official = official_names(source)
    official = {name: value for name, value in official.items() if name.startswith("MS_mamba")}
    pyramid = copy_of(head.pyramid)
    with pytest.warns(UserWarning, match="has no pyramid.*stays as it was") as caught:
        load_muse_state_dict(head, official)
    assert caught[0].filename == __file__
    assert_equal(head.pyramid.state_dict(), pyramid)
    assert_equal(head.layers.state_dict(), source.layers.state_dict())


def without(*names: str) -> Callable[[dict], None]:
    def change(state: dict) -> None:
        for name in names:
            del state[name]

    return change


@pytest.mark.parametrize(
    ("fields", "change", "lines"),
    [
        pytest.param(
            {},
            without("mamba_stages.0.1.weight", "mamba_stages.1.5.bias"),
            ["missing mamba_stages.0.1.weight", "missing mamba_stages.1.5.bias"],
            id="a part of the pyramid",
        ),
        pytest.param(
            {},
            without("MS_mamba.1.mamba.D_b", "MS_mamba.0.temporal_fc.bias"),
            ["missing MS_mamba.0.temporal_fc.bias", "missing MS_mamba.1.mamba.D_b"],
            id="a part of the layers",
        ),
        pytest.param(
            {},
            lambda state: state.update(
                {
                    "MS_mamba.0.temporal_fc.bias": torch.zeros(3),
                    "MS_mamba.0.attn.weight": torch.zeros(1),
                    "mamba_stages.2.0.weight": torch.zeros(1),
                    "module.MS_mamba.0.mamba.D": torch.zeros(8),
                }
            ),
            [
                "MS_mamba.0.temporal_fc.bias must have shape (8,), got (3,)",
                "unexpected MS_mamba.0.attn.weight",
                "unexpected mamba_stages.2.0.weight",
                "duplicate MS_mamba.0.mamba.D: with and without the prefix 'module.'",
            ],
            id="everything at once",
        ),
        pytest.param(
            {"depth": 1},
            lambda state: None,
            [f"unexpected MS_mamba.1.mamba.{name}" for name in ("A_log", "A_b_log", "D")],
            id="head of fewer layers",
        ),
        pytest.param(
            {"mixer": "mamba"},
            lambda state: None,
            ["unexpected MS_mamba.0.mamba.A_b_log", "unexpected MS_mamba.1.mamba.conv1d_b.bias"],
            id="head of one direction",
        ),
        pytest.param(
            {"scales": (2.0, 0.5)},
            lambda state: None,
            ["missing mamba_stages.0.0.weight", "unexpected mamba_stages.1.0.weight"],
            id="scales in another order",
        ),
        pytest.param(
            {},
            lambda state: [state.pop(name) for name in list(state) if "MS_mamba" in name],
            ["the state dict must have the layers as MS_mamba.*, got"],
            id="no layers",
        ),
        pytest.param(
            {}, dict.clear, ["as MS_mamba.*, got 0 names without one, such as none"], id="empty"
        ),
        pytest.param(
            {"in_dim": 6},
            lambda state: None,
            ["the official model has no input projection"],
            id="head with a projection",
        ),
    ],
)
def test_official_mismatches_are_listed_and_change_nothing(
    fields: dict, change: Callable[[dict], object], lines: list[str]
) -> None:
    official = official_names(MultiScaleMamba(CONFIG))
    change(official)
    head = MultiScaleMamba(dataclasses.replace(CONFIG, **fields))
    before = copy_of(head)
    with pytest.raises(ValueError) as caught:
        load_muse_state_dict(head, official)
    for line in lines:
        assert line in str(caught.value)
    assert_equal(head.state_dict(), before)

"""Saving and loading: our own files, damaged ones, other configs, official names."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from muse_adapter.checkpoint import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    load_muse_state_dict,
    load_pretrained,
    load_strict,
    save_pretrained,
)
from muse_adapter.config import MuseConfig
from muse_adapter.models.muse import MultiScaleMamba
from tests.conftest import Golden

safetensors = pytest.importorskip("safetensors", reason="checkpoints need safetensors")

CONFIG = MuseConfig(dim=8, scales=(0.5, 2.0), depth=2, d_state=4)


def other_values(head: nn.Module) -> nn.Module:
    """Gives every parameter a value that no initialisation gives."""
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_()
    return head


def copy_of(head: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in head.state_dict().items()}


def assert_equal(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert list(got) == list(wanted)
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    folder = tmp_path / "saved"
    save_pretrained(other_values(MultiScaleMamba(CONFIG)), folder)
    return folder


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        MuseConfig(dim=8, in_dim=6, scales=(4.0, 0.25), depth=1, aggregation="frame_wise"),
        MuseConfig(dim=8, depth=1, mixer="attention", num_prefix_tokens=0, init="release"),
        MuseConfig(dim=8, depth=1, mixer="mamba", expand=2, dropout=0.3),
        MuseConfig(dim=8, depth=1, mixer="conv", aggregation="spatial_wise"),
    ],
    ids=lambda config: f"{config.mixer}-{config.aggregation}",
)
def test_from_pretrained_gives_the_head_back(config: MuseConfig, tmp_path: Path) -> None:
    head = other_values(MultiScaleMamba(config))
    head.save_pretrained(tmp_path / "new" / "folder")
    again = MultiScaleMamba.from_pretrained(tmp_path / "new" / "folder")
    assert again.config == config
    assert_equal(again.state_dict(), head.state_dict())


def test_files_are_plain(saved: Path) -> None:
    assert sorted(path.name for path in saved.iterdir()) == [CONFIG_NAME, WEIGHTS_NAME]
    values = json.loads((saved / CONFIG_NAME).read_text())
    assert MuseConfig.from_dict(values) == CONFIG
    with safetensors.safe_open(saved / WEIGHTS_NAME, framework="pt") as file:
        assert set(file.keys()) == set(MultiScaleMamba(CONFIG).state_dict())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_types_are_kept_in_the_file(dtype: torch.dtype, tmp_path: Path) -> None:
    head = other_values(MultiScaleMamba(CONFIG).to(dtype))
    save_pretrained(head, tmp_path)
    _, state = load_pretrained(tmp_path)
    assert {value.dtype for value in state.values()} == {dtype}
    assert all(torch.equal(state[name], value) for name, value in head.state_dict().items())


def test_channels_last_and_shared_memory_are_saved(tmp_path: Path) -> None:
    head = other_values(MultiScaleMamba(CONFIG)).to(memory_format=torch.channels_last)
    head.layers[1].norm.weight = head.layers[0].norm.weight
    save_pretrained(head, tmp_path)
    assert_equal(MultiScaleMamba.from_pretrained(tmp_path).state_dict(), head.state_dict())


def test_saving_again_replaces(saved: Path) -> None:
    config = dataclasses.replace(CONFIG, depth=1)
    head = other_values(MultiScaleMamba(config))
    head.save_pretrained(saved)
    again = MultiScaleMamba.from_pretrained(str(saved))
    assert again.config == config
    assert_equal(again.state_dict(), head.state_dict())


@pytest.mark.parametrize("when", ["write", "rename"])
def test_a_failed_save_leaves_what_was_there(
    when: str, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in saved.iterdir()}

    def fail(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync" if when == "write" else "replace", fail)
    with pytest.raises(OSError, match=r"cannot write the head to '.*saved'.*No space left"):
        save_pretrained(MultiScaleMamba(CONFIG), saved)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before


@pytest.mark.parametrize("below", ["file", "file/folder"])
def test_a_target_that_cannot_be_a_folder(below: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(OSError, match=r"cannot write the head to .*file"):
        save_pretrained(MultiScaleMamba(CONFIG), tmp_path / below)
    assert (tmp_path / "file").read_text() == "kept"


def test_only_a_head_can_be_saved(tmp_path: Path) -> None:
    wrapper = nn.Sequential(MultiScaleMamba(CONFIG))
    with pytest.raises(TypeError, match=r"a MuseConfig as its config.*got Sequential"):
        save_pretrained(wrapper, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def truncate(folder: Path) -> None:
    path = folder / WEIGHTS_NAME
    path.write_bytes(path.read_bytes()[:-8])


def edit_config(**change: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / CONFIG_NAME
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))

    return edit


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        pytest.param(
            lambda folder: (folder / CONFIG_NAME).unlink(),
            FileNotFoundError,
            "must hold config.json and model.safetensors, found no config.json",
            id="no config",
        ),
        pytest.param(
            lambda folder: (folder / WEIGHTS_NAME).unlink(),
            FileNotFoundError,
            "found no model.safetensors",
            id="no weights",
        ),
        pytest.param(
            truncate, ValueError, "model.safetensors' is truncated or not a saf", id="truncated"
        ),
        pytest.param(
            lambda folder: (folder / WEIGHTS_NAME).write_bytes(b""),
            ValueError,
            "truncated or not a safetensors file",
            id="empty weights",
        ),
        pytest.param(
            lambda folder: torch.save({}, folder / WEIGHTS_NAME),
            ValueError,
            "truncated or not a safetensors file",
            id="a pickle",
        ),
        pytest.param(
            lambda folder: (folder / CONFIG_NAME).write_text("{"),
            ValueError,
            "cannot use '.*config.json': the config is not valid JSON",
            id="half a config",
        ),
        pytest.param(
            lambda folder: (folder / CONFIG_NAME).write_bytes(b"\xff\xfe"),
            ValueError,
            "cannot use '.*config.json'",
            id="config not UTF-8",
        ),
        pytest.param(
            edit_config(heads=8),
            ValueError,
            r"unknown config fields \['heads'\]",
            id="unknown field",
        ),
        pytest.param(
            edit_config(version="99.0"), ValueError, "newer than this one", id="newer version"
        ),
        pytest.param(
            edit_config(depth="2"),
            ValueError,
            "config.json': depth must be an int",
            id="wrong type",
        ),
        pytest.param(
            edit_config(depth=1),
            ValueError,
            r"does not fit the head \(20 problems\):\n  unexpected layers.1.fc.bias\n",
            id="fewer layers",
        ),
        pytest.param(
            edit_config(depth=3), ValueError, "missing layers.2.mixer.A_log", id="more layers"
        ),
        pytest.param(
            edit_config(d_state=8),
            ValueError,
            r"layers.1.mixer.A_log must have shape \(8, 8\), got \(8, 4\)",
            id="another state size",
        ),
    ],
)
def test_refuses_to_load(
    damage: Callable[[Path], object], error: type[Exception], message: str, saved: Path
) -> None:
    damage(saved)
    with pytest.raises(error, match=message):
        MultiScaleMamba.from_pretrained(saved)


@pytest.mark.parametrize(
    "name",
    ["nowhere", "a/b/c", "../up", "./here", "owner/", "/name", "", "owner/na me", "-a/b", "a/b."],
)
def test_names_that_are_nothing(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(FileNotFoundError, match=r"existing folder or a hub id 'owner/name', got '"):
        load_pretrained(name)


def test_a_file_is_no_folder(saved: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"got '.*model.safetensors', which is a file"):
        load_pretrained(saved / WEIGHTS_NAME)


def hub(snapshot_download: Callable[..., str]) -> ModuleType:
    module = ModuleType("huggingface_hub")
    module.snapshot_download = snapshot_download  # type: ignore[attr-defined]
    return module


def test_hub_ids_are_fetched(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def snapshot_download(name: str, *, allow_patterns: list[str]) -> str:
        calls.append((name, allow_patterns))
        return str(saved)

    monkeypatch.setitem(sys.modules, "huggingface_hub", hub(snapshot_download))
    config, state = load_pretrained("some-owner/muse_b.32")
    assert calls == [("some-owner/muse_b.32", [CONFIG_NAME, WEIGHTS_NAME])]
    assert config == CONFIG and set(state) == set(MultiScaleMamba(CONFIG).state_dict())


def test_a_folder_comes_before_the_hub(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(saved.parent.parent)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    config, _ = load_pretrained(f"{saved.parent.name}/saved")
    assert config == CONFIG


def test_a_hub_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot_download(name: str, **_: object) -> str:
        raise RuntimeError("401")

    monkeypatch.setitem(sys.modules, "huggingface_hub", hub(snapshot_download))
    with pytest.raises(OSError, match=r"'owner/name' is not a folder here, and the hub.*: 401"):
        load_pretrained("owner/name")


@pytest.mark.parametrize(
    ("package", "call", "message"),
    [
        (
            "safetensors",
            lambda folder: save_pretrained(MultiScaleMamba(CONFIG), folder / "new"),
            r"needs safetensors: pip install 'muse-adapter\[hub\]'",
        ),
        (
            "safetensors",
            load_pretrained,
            r"needs safetensors: pip install 'muse-adapter\[hub\]'",
        ),
        (
            "huggingface_hub",
            lambda folder: load_pretrained("owner/name"),
            r"'owner/name' is not a folder.*huggingface_hub: pip install 'muse-adapter\[hub\]'",
        ),
    ],
    ids=["save", "load", "hub"],
)
def test_a_missing_extra_is_named(
    package: str,
    call: Callable[[Path], object],
    message: str,
    saved: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=message):
        call(saved)
    assert not (saved / "new").exists()


def test_load_strict_lists_everything_and_changes_nothing() -> None:
    head = MultiScaleMamba(CONFIG)
    before = copy_of(head)
    state: dict = copy_of(other_values(MultiScaleMamba(CONFIG)))
    del state["layers.0.fc.bias"], state["pyramid.stages.1.0.weight"]
    state["extra.weight"] = torch.zeros(2)
    state["layers.1.norm.weight"] = torch.zeros(3)
    state["layers.1.norm.bias"] = torch.zeros(8, dtype=torch.int64)
    state["layers.1.fc.bias"] = [0.0] * 8
    with pytest.raises(ValueError) as caught:
        load_strict(head, state)
    assert str(caught.value).splitlines() == [
        "the state dict does not fit the head (6 problems):",
        "  missing pyramid.stages.1.0.weight",
        "  missing layers.0.fc.bias",
        "  unexpected extra.weight",
        "  layers.1.norm.weight must have shape (8,), got (3,)",
        "  layers.1.norm.bias must be of a type like torch.float32, got torch.int64",
        "  layers.1.fc.bias must be a tensor, got list",
    ]
    assert_equal(head.state_dict(), before)


def test_load_strict_casts() -> None:
    source = copy_of(other_values(MultiScaleMamba(CONFIG)).half())
    head = MultiScaleMamba(CONFIG).double()
    load_strict(head, source)
    assert_equal(head.state_dict(), {name: value.double() for name, value in source.items()})


def official_names(head: nn.Module) -> dict[str, Tensor]:
    """A head's weights under the official names, written out independently of the loader."""
    state = {}
    for name, value in copy_of(other_values(head)).items():
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
    with pytest.warns(UserWarning, match="holds no pyramid.*stays as it was") as caught:
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
                "double MS_mamba.0.mamba.D: with and without 'module.' before it",
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
            ["the state dict must hold the layers as MS_mamba.*, got"],
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

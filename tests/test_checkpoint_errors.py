"""Errors of saving and loading: damaged files, other configs, wrong names, extras, the hub."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from muse_adapter.checkpoint import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    load_pretrained,
    save_pretrained,
)
from muse_adapter.models.muse import MultiScaleMamba
from tests.support.checkpoints import CONFIG, as_first_release, save_head

safetensors = pytest.importorskip("safetensors", reason="checkpoints need safetensors")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save_head(tmp_path / "saved")


def truncate(folder: Path) -> None:
    path = folder / WEIGHTS_NAME
    path.write_bytes(path.read_bytes()[:-8])


def edit_config(**change: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / CONFIG_NAME
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))

    return edit


def edit_first_release(**change: object) -> Callable[[Path], None]:
    return lambda folder: edit_config(**change)(as_first_release(folder))


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        pytest.param(
            lambda folder: (as_first_release(folder) / CONFIG_NAME).unlink(),
            FileNotFoundError,
            "must contain config.json and model.safetensors, found no config.json",
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
            edit_first_release(depth=1),
            ValueError,
            r"does not fit the head \(20 problems\):\n  unexpected layers.1.fc.bias\n",
            id="fewer layers",
        ),
        pytest.param(
            edit_first_release(depth=3),
            ValueError,
            "missing layers.2.mixer.A_log",
            id="more layers",
        ),
        pytest.param(
            edit_first_release(d_state=8),
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
def test_wrong_names(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    with pytest.raises(OSError, match=r"'owner/name' is not a local folder, and the hub.*: 401"):
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
            r"not a local folder.*huggingface_hub: pip install 'muse-adapter\[hub\]'",
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

"""Kept files: damage is named, whatever was damaged."""

from __future__ import annotations

import io
import os
import random
import re
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("av", reason="the quickstart reads videos with PyAV")
pytest.importorskip("matplotlib", reason="the quickstart draws with matplotlib")
pytest.importorskip("tqdm", reason="the quickstart shows progress with tqdm")

from examples.quickstart import runs
from examples.quickstart.files import read_tensors, write_tensors
from examples.quickstart.material import Material
from examples.quickstart.search import write_index
from tests.support.quickstart import TINY, run_command


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04 cut off", b"junk"])
def test_a_damaged_file_is_named(
    content: bytes, tmp_path: Path, material: Material, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "search.pt").write_bytes(content)
    assert run_command("search", "a red circle", "--folder", tmp_path) == 2
    message = f"{tmp_path / 'search.pt'} is damaged, delete it and start again"
    assert message in capsys.readouterr().err

    checkpoint = runs.run_folder(tmp_path, TINY, material) / "checkpoint.pt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(content)
    with pytest.raises(ValueError, match=r"checkpoint\.pt is damaged, delete it and start again"):
        runs.run(TINY, material, tmp_path, progress=False)
    assert checkpoint.read_bytes() == content

    result = checkpoint.with_name("result.json")
    result.write_bytes(content)
    with pytest.raises(ValueError, match=r"result\.json is damaged"):
        runs.finished(TINY, material, tmp_path)


def test_files_of_another_model_are_refused(
    tmp_path: Path, material: Material, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tensors were renamed between versions, and other settings have other tensors."""
    settings = replace(TINY, head="mean_pool", steps=1)
    trained, _ = runs.run(settings, material, tmp_path, progress=False)
    write_index(tmp_path, settings, trained, [material.splits["test"]])
    checkpoint = runs.run_folder(tmp_path, settings, material) / "checkpoint.pt"
    for path in (checkpoint, tmp_path / "search.pt"):
        content = torch.load(path, weights_only=True)
        content["model"]["logit_scale"] = content["model"].pop("_logit_scale")
        write_tensors(path, content)
    message = (
        "of another model or of another version of the quickstart.*: _logit_scale, logit_scale"
    )
    with pytest.raises(ValueError, match=rf"checkpoint\.pt.* {message}"):
        runs.run(settings, material, tmp_path, progress=False)
    assert run_command("search", "a red circle", "--folder", tmp_path) == 2
    assert re.search(rf"search\.pt.* {message}", capsys.readouterr().err)


def test_a_full_disk_is_named_with_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "kept.pt"
    write_tensors(path, {"steps": 1})
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=rf"cannot write {re.escape(str(path))}: No space left"):
        write_tensors(path, {"steps": 2})
    assert [file.name for file in tmp_path.iterdir()] == ["kept.pt"]
    assert read_tensors(path, ["steps"]) == {"steps": 1}


@pytest.mark.parametrize("content", [{"steps": 1, "model": {}}, {"model": {}}, [1, 2]], ids=str)
def test_a_file_of_something_else_is_named(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "kept.pt"
    write_tensors(path, content)
    with pytest.raises(ValueError, match=r"kept\.pt is a file of something else.*hold steps$"):
        read_tensors(path, ["steps"])


# Torch says so of a pickle whose first bytes were changed, before it refuses it.
@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")
def test_any_damage_of_a_kept_file_is_named(tmp_path: Path) -> None:
    """Changed, cut, or another kind of archive or pickle: it is read, or it is refused."""
    path = tmp_path / "kept.pt"
    content = {"numbers": torch.arange(5.0), "names": ["a", "b"], "settings": {"steps": 3}}
    names = list(content)
    write_tensors(path, content)
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    (pickled,) = (name for name in parts if name.endswith("data.pkl"))
    generator = random.Random(0)

    def changed(given: bytes) -> bytes:
        given = bytearray(given)
        for _ in range(generator.choice([1, 2, 8])):
            given[generator.randrange(len(given))] = generator.randrange(256)
        return bytes(given)

    def archive_of(content: bytes) -> bytes:
        """The archive with another pickle, whose checksum is right."""
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            for name, part in parts.items():
                archive.writestr(name, content if name == pickled else part)
        return file.getvalue()

    damaged = [
        *(whole[:length] for length in range(0, len(whole), 50)),
        *(parts[pickled][:length] for length in range(0, len(parts[pickled]), 5)),
        *(archive_of(parts[pickled][:length]) for length in range(0, len(parts[pickled]) - 1, 5)),
    ]
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"is damaged, delete it and start again$"):
            read_tensors(path, names)
    refused = 0
    for _ in range(400):
        path.write_bytes(archive_of(changed(parts[pickled])))
        try:
            read_tensors(path, names)  # where a number or a word was changed, nothing shows it
        except ValueError as error:
            assert "delete it and start again" in str(error)
            refused += 1
    assert refused > 200

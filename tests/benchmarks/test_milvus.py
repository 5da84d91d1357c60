"""The benchmark of an index in Milvus, on a small one in a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import milvus, milvus_server

pytest.importorskip("milvus_lite", reason="milvus-lite is not installed")


def test_a_small_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target, uri = tmp_path / "figures.json", tmp_path / "clips.db"
    milvus.main(
        [
            "--uri",
            str(uri),
            "--sizes",
            "70",
            "--indexes",
            "FLAT",
            "--repeats",
            "2",
            "--json",
            str(target),
        ]
    )
    (row,) = json.loads(target.read_text())["rows"]
    assert (row["segments"], row["store"], row["recall"]) == (70, "FLAT", 1.0)
    printed = capsys.readouterr().out
    assert "| 70 | `FLAT` | " in printed and "| not measured | not measured |" in printed


def test_a_call_goes_on_with_the_one_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target, uri = tmp_path / "figures.json", tmp_path / "clips.db"
    arguments = ["--uri", str(uri), "--sizes", "70", "--indexes", "FLAT", "--repeats", "2"]
    arguments += ["--json", str(target)]
    milvus.main([*arguments, "--only-build", "--busy"])
    assert "Left out, in the time that the calls had: FLAT at 70." in capsys.readouterr().out
    milvus.main(arguments)
    (row,) = json.loads(target.read_text())["rows"]
    assert row["recall"] == 1 and row["busy"]


def test_credentials_are_not_kept(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        milvus.main(["--uri", "http://me:hunter2@host"])
    assert "give credentials in MILVUS_TOKEN" in capsys.readouterr().err


def test_wrong_settings_of_a_server(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(milvus, "missing", lambda: None)
    with pytest.raises(SystemExit):
        milvus.main(["--server", "GOMAXPROCS"])
    assert "--server: expected NAME=VALUE" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        milvus.main(["--uri", "http://host", "--server", "GOMAXPROCS=3"])
    assert "--server is for a server that this benchmark starts" in capsys.readouterr().err
    monkeypatch.setattr(milvus, "missing", lambda: "the package milvus is not installed")
    with pytest.raises(SystemExit):
        milvus.main([])
    assert "give the address of a server: the package milvus is" in capsys.readouterr().err


@pytest.mark.slow(seconds=40)
def test_a_server_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Enough vectors for an index, a setting, and what the server takes."""
    if reason := milvus_server.missing():
        pytest.skip(reason)
    target, folder = tmp_path / "figures.json", tmp_path / "servers"
    setting = "queryNode.segcore.interimIndex.enableIndex=false"
    arguments = ["--sizes", "1100", "--indexes", "IVF_FLAT", "--repeats", "2", "--json"]
    arguments += [str(target), "--folder", str(folder), "--server", setting, "GOMAXPROCS=3"]
    milvus.main([*arguments, "--only-build"])
    configuration = folder / "milvus-IVF_FLAT-1100" / "configs" / "milvus.yaml"
    assert "enableIndex: False" in configuration.read_text()  # as the package writes it
    milvus.main(arguments)
    (row,) = json.loads(target.read_text())["rows"]
    assert row["footprint"]["disk"] > row["empty"]["disk"] > 0
    assert row["footprint"]["peak"] >= row["footprint"]["memory"] > 1100 * 512 * 4
    printed = capsys.readouterr().out
    assert "Each row has a new server." in printed and " GB |" in printed
    assert [path.name for path in folder.iterdir()] == ["bin"]

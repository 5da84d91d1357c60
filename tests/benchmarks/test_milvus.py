"""The benchmark of an index in Milvus, on a small one in a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import milvus

pytest.importorskip("milvus_lite", reason="milvus-lite is not installed")


def test_a_small_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target, uri = tmp_path / "figures.json", tmp_path / "clips.db"
    milvus.main(
        [str(uri), "--sizes", "70", "--indexes", "FLAT", "--repeats", "2", "--json", str(target)]
    )
    (row,) = json.loads(target.read_text())["rows"]
    assert (row["segments"], row["store"], row["recall"]) == (70, "FLAT", 1.0)
    assert "| 70 | `FLAT` | " in capsys.readouterr().out


def test_a_call_goes_on_with_the_one_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target, uri = tmp_path / "figures.json", tmp_path / "clips.db"
    arguments = [str(uri), "--sizes", "70", "--indexes", "FLAT", "--repeats", "2"]
    arguments += ["--json", str(target)]
    milvus.main([*arguments, "--only-build", "--busy"])
    assert "Left out, in the time that the calls had: FLAT at 70." in capsys.readouterr().out
    milvus.main(arguments)
    (row,) = json.loads(target.read_text())["rows"]
    assert row["recall"] == 1 and row["busy"]


def test_credentials_are_not_kept(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        milvus.main(["http://me:hunter2@host"])
    assert "give credentials in MILVUS_TOKEN" in capsys.readouterr().err

"""The benchmark of an index in Milvus, on a small one in a file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import milvus, milvus_server

pytest.importorskip("milvus_lite", reason="milvus-lite is not installed")


@pytest.mark.parametrize("index", ["FLAT", "FLAT, second stage"])
def test_a_small_size(tmp_path: Path, capsys: pytest.CaptureFixture[str], index: str) -> None:
    target, uri = tmp_path / "figures.json", tmp_path / "clips.db"
    milvus.main(
        [
            "--uri",
            str(uri),
            "--sizes",
            "70",
            "--indexes",
            index,
            "--repeats",
            "2",
            "--json",
            str(target),
        ]
    )
    (row,) = json.loads(target.read_text())["rows"]
    assert (row["segments"], row["store"], row["recall"]) == (70, index, 1.0)
    printed = capsys.readouterr().out
    assert (
        f"| 70 | `FLAT`{index.removeprefix('FLAT')} | " in printed
        and "| not measured | not measured |" in printed
    )


def test_a_call_goes_on_with_the_one_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target, uri = tmp_path / "figures.json", tmp_path / "clips.db"
    arguments = ["--uri", str(uri), "--sizes", "70", "--indexes", "FLAT", "--repeats", "2"]
    arguments += ["--json", str(target)]
    milvus.main([*arguments, "--only-build", "--busy"])
    assert "Left out, in the time that the calls had: FLAT at 70." in capsys.readouterr().out

    figures = json.loads(target.read_text())
    (row,) = figures["begun"]
    row["appended"] = 71
    target.write_text(json.dumps(figures))
    with pytest.raises(SystemExit, match=r"FLAT_70 has 70 vectors, .* says 71: give another file"):
        milvus.main(arguments)

    # As of a call that was stopped before the server had built the index.
    assert row["build"] > 0
    del row["best"], row["build"]
    row["appended"] = 70
    target.write_text(json.dumps(figures))
    milvus.main(arguments)
    (row,) = json.loads(target.read_text())["rows"]
    assert row["recall"] == 1 and row["busy"] and row["build"] is None
    assert "| not measured, 0.0 s \\* |" in capsys.readouterr().out


def test_a_begun_row_without_its_folder(tmp_path: Path) -> None:
    options = Namespace(folder=tmp_path, json="figures.json", server={})
    row = {"store": "FLAT", "segments": 70, "appended": 64}
    with (
        pytest.raises(SystemExit, match=r"figures\.json goes on with .*, which is missing: give"),
        milvus.own_server(options, row),
    ):
        pass


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals(number: signal.Signals) -> None:
    before = signal.signal(number, signal.SIG_DFL)  # it may be ignored, as under nohup
    try:
        with (
            pytest.raises(SystemExit, match="stopped by a signal"),
            milvus_server.stopped_by_signals(sys.exit),
        ):
            os.kill(os.getpid(), number)
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, before)


def test_a_server_that_ends_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the package does, with 0, where the server cannot start."""
    import pymilvus

    def client(*arguments: Any, **options: Any) -> None:
        raise pymilvus.MilvusException(2, "server unavailable")

    monkeypatch.setattr(pymilvus, "MilvusClient", client)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "server" / "logs").mkdir(parents=True)
    (tmp_path / "server" / "logs" / "milvus-stderr.log").write_text("panic: no space left")
    server = milvus_server.MilvusServer(Path("server"))
    assert server._etcd == tmp_path / "server" / "etcd.yaml", "the package changes its folder"
    server._process = subprocess.Popen([sys.executable, "-c", ""], start_new_session=True)
    server._process.wait()
    with pytest.raises(RuntimeError, match="the server has ended: panic: no space left"):
        server.client()
    server.kill()


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
    monkeypatch.setitem(sys.modules, "pymilvus", None)
    with pytest.raises(SystemExit):
        milvus.main([])
    assert "pip install 'muse-adapter[milvus]'" in capsys.readouterr().err


def test_unknown_settings_of_a_server(capsys: pytest.CaptureFixture[str]) -> None:
    """The package ignores them."""
    if reason := milvus_server.missing():
        pytest.skip(reason)
    known = ["dataCoord.segment.maxSize", "queryNode.segcore.interimIndex.enableIndex"]
    assert milvus_server.unknown_settings([*known, "GOMAXPROCS"]) == []
    with pytest.raises(SystemExit):
        milvus.main(["--server", "dataCoord.segment.maxsize=1024", "GOMAXPROCS=3"])
    assert "does not know dataCoord.segment.maxsize" in capsys.readouterr().err


@pytest.mark.milvus_server
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

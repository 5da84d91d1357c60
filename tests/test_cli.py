"""The command line."""

from __future__ import annotations

import configparser
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from muse_adapter import __main__ as cli
from muse_adapter import ops
from muse_adapter.ops import self_check
from muse_adapter.ops.backend import by_name
from muse_adapter.version import VERSION

ROOT = Path(__file__).resolve().parent.parent


def test_info_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info"]) == 0
    text = capsys.readouterr().out
    for expected in (VERSION, torch.__version__, "device        cpu", "backends on cpu", "threads"):
        assert expected in text
    for package in cli.PACKAGES:
        assert f"  {package} " in text
    for name in ops.backends():
        assert f"\n  {name} " in text


def test_info_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["muse_adapter"] == VERSION
    assert report["torch"] == torch.__version__
    assert report["threads"]["torch"] == torch.get_num_threads()
    assert "cpu" in report["devices"]
    assert report["packages"]["einops"]
    status = report["backends"]["cpu"]["status"]
    assert set(status) == set(ops.backends())
    assert status[report["backends"]["cpu"]["chosen"]] is None


def test_info_says_why_a_backend_is_missing_and_what_fixes_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reason = "numba is not installed: pip install 'muse-adapter[cpu]'"
    status = {
        "numba": ops.BackendStatus(False, reason),
        "torch": ops.BackendStatus(True, None),
    }
    monkeypatch.setattr(ops, "backends", lambda device=None: status)
    assert cli.main(["info"]) == 0
    assert f"does not run: {reason}" in capsys.readouterr().out


@pytest.mark.parametrize("passed", [True, False], ids=["check passed", "check failed"])
def test_info_says_what_is_taken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], passed: bool
) -> None:
    """Not what could run: a backend by name only, or one that has failed its self-check."""
    monkeypatch.delenv("MUSE_ADAPTER_BACKEND", raising=False)
    monkeypatch.setattr(cli, "find_devices", lambda: {"cpu": "a processor", "cuda:0": "a GPU"})
    for name in ("triton", "mamba_ssm"):
        monkeypatch.setattr(by_name(name), "unavailable", lambda device=None: None)
    monkeypatch.setattr(self_check, "passed", lambda *arguments: passed)
    assert cli.main(["info"]) == 0
    taken = "triton" if passed else "torch"
    text = capsys.readouterr().out
    assert f"backends on cuda:0 (taken: {taken})" in text
    assert f"backends on cpu (taken: {ops.backend_for(torch.device('cpu'))})" in text


def test_info_takes_the_environment_at_its_word(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MUSE_ADAPTER_BACKEND", "reference")
    assert cli.main(["info"]) == 0
    assert "backends on cpu (taken: reference)" in capsys.readouterr().out
    monkeypatch.setenv("MUSE_ADAPTER_BACKEND", "mamba_ssm")
    assert cli.main(["info"]) == 0
    assert "(taken: the backend 'mamba_ssm' was asked for by name but cannot run: " in (
        capsys.readouterr().out
    )


def test_info_names_the_extra_of_a_missing_package(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "installed_version", lambda package: None)
    assert cli.main(["info"]) == 0
    text = capsys.readouterr().out
    for package, extra in cli.PACKAGES.items():
        line = next(line for line in text.splitlines() if line.startswith(f"  {package} "))
        assert "not installed" in line
        assert extra is None or f"pip install 'muse-adapter[{extra}]'" in line


def test_info_knows_the_packages_of_the_extras() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    extras: dict[str, set[str]] = {}
    for extra, lines in config["options.extras_require"].items():
        if extra not in ("docs", "test", "dev"):
            for package in re.findall(r"^[\w-]+", lines, re.MULTILINE):
                extras.setdefault(package.replace("_", "-"), set()).add(extra)
    del extras["muse-adapter"]
    assert set(extras) == {package for package, extra in cli.PACKAGES.items() if extra}
    for package in extras:
        assert cli.PACKAGES[package] in extras[package]


def test_info_reports_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MUSE_ADAPTER_BACKEND", "reference")
    cli.main(["info"])
    assert "MUSE_ADAPTER_BACKEND=reference" in capsys.readouterr().out


def test_version_of_a_package_that_is_not_there() -> None:
    assert cli.installed_version("no-such-package-of-muse-adapter") is None
    assert cli.installed_version("torch") is not None


def test_no_command_prints_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    out = capsys.readouterr().out
    assert "usage: muse-adapter" in out
    assert "info" in out


@pytest.mark.parametrize(
    ("arguments", "status", "stream", "expected"),
    [
        (["--help"], 0, "out", "info"),
        (["info", "--help"], 0, "out", "--json"),
        (["--version"], 0, "out", f"muse-adapter {VERSION}"),
        (["inform"], 2, "err", "invalid choice: 'inform'"),
        (["info", "--yaml"], 2, "err", "unrecognized arguments: --yaml"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_help_and_wrong_arguments(
    arguments: list[str],
    status: int,
    stream: str,
    expected: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main(arguments)
    assert exit_.value.code == status
    assert expected in getattr(capsys.readouterr(), stream)


def test_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "muse_adapter", "--version"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"muse-adapter {VERSION}"

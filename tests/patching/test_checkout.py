"""Files of a checkout: written all or none, with their modes, links and encodings."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from muse_adapter.patching import HOSTS, PatchError, checkout, make_plan
from tests.support.hosts import Host, edit, patch


def test_modes_are_kept(replica: Host) -> None:
    replica.main_file.chmod(0o755)
    replica.model_file.chmod(0o640)
    patch(replica, "--write")
    assert replica.main_file.stat().st_mode & 0o777 == 0o755
    assert replica.model_file.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("at", [1, 2], ids=["first file", "second file"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError], ids=lambda e: e.__name__)
def test_an_interrupt_leaves_the_old_tree(
    replica: Host, at: int, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = replica.contents()
    plan = make_plan(replica.path, HOSTS["clip4clip"])
    real, calls = os.replace, []

    def replace(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == at:
            raise error("now")
        real(source, target)

    monkeypatch.setattr(checkout.os, "replace", replace)
    with pytest.raises(error):
        checkout.replace_files(plan.contents())
    assert len(calls) >= at
    assert replica.contents() == before, "no temporary file may remain"


def test_an_interrupt_while_writing_leaves_the_old_tree(
    replica: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = replica.contents()

    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkout.os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        patch(replica, "--write")
    assert replica.contents() == before


def test_a_concurrent_change_is_not_overwritten(replica: Host) -> None:
    plan = make_plan(replica.path, HOSTS["clip4clip"])
    edit(replica.main_file, "import argparse", "import argparse  # mine")
    before = replica.contents()
    with pytest.raises(PatchError, match="changed in the meantime"):
        checkout.replace_files(plan.contents())
    assert replica.contents() == before


@pytest.mark.parametrize("target", ["file", "folder"])
def test_read_only(replica: Host, target: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = replica.model_file if target == "file" else replica.model_file.parent
    mode = path.stat().st_mode
    before = replica.contents()
    path.chmod(mode & ~0o222)
    try:
        assert patch(replica, "--write") == 2
        assert "is read-only; nothing was written" in capsys.readouterr().err
        assert replica.contents() == before
    finally:
        path.chmod(mode)


def test_links(replica: Host, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inside = replica.path / "modules" / "real.py"
    replica.model_file.rename(inside)
    replica.model_file.symlink_to("real.py")
    assert patch(replica, "--write") == 0
    assert replica.model_file.is_symlink()
    assert "muse_adapter" in inside.read_text()
    assert patch(replica, "--reverse") == 0

    outside = tmp_path / "elsewhere.py"
    inside.rename(outside)
    replica.model_file.unlink()
    replica.model_file.symlink_to(outside)
    capsys.readouterr()
    assert patch(replica, "--write") == 2
    assert "modules/modeling.py is outside of the checkout" in capsys.readouterr().err
    assert "muse_adapter" not in outside.read_text()


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (b"# caf\xe9\n", "byte 0xe9|invalid or missing encoding"),
        (b"\n" * 40 + b"# caf\xe9\n", "is not utf-8: byte 0xe9 in line"),
        (b"# -*- coding: no-such -*-\n", "unknown encoding"),
        (b"\x00\n", "does not compile"),
    ],
    ids=["early", "late", "unknown", "NUL"],
)
def test_files_that_are_not_python(
    replica: Host, head: bytes, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = replica.model_file.read_bytes()
    replica.model_file.write_bytes(head + raw)
    assert patch(replica, "--write") == 2
    err = capsys.readouterr().err
    assert "modules/modeling.py" in err
    assert re.search(message, err)
    assert replica.model_file.read_bytes() == head + raw

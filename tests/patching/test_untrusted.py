"""Checkouts that nobody vouches for: nothing of them runs, and nothing of theirs is deleted."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from muse_adapter.version import VERSION
from tests.support.hosts import Host, edit, patch


def git(host: Host, *arguments: str) -> None:
    """Run git in a checkout, as its author."""
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", *identity, *arguments], cwd=host.path, check=True, capture_output=True)


def commit_all(host: Host) -> None:
    """Make a repository of a checkout, with one commit."""
    git(host, "init", "-q")
    git(host, "add", ".")
    git(host, "commit", "-qm", "start")


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
@pytest.mark.skipif(os.name == "nt", reason="the programs are shell scripts")
@pytest.mark.parametrize("changed", [False, True], ids=["committed", "changed"])
def test_no_program_of_the_checkout_runs(replica: Host, tmp_path: Path, changed: bool) -> None:
    """File monitor, filters, hooks and pager."""
    mark, program = tmp_path / "ran", tmp_path / "program"
    program.write_text(f"#!/bin/sh\ntouch {mark}\ncat\n")
    program.chmod(0o755)
    commit_all(replica)
    hooks = replica.path / ".git" / "hooks"
    hooks.mkdir(exist_ok=True)
    shutil.copy(program, hooks / "post-index-change")
    (replica.path / ".gitattributes").write_text("*.py filter=own diff=own\n")
    for name, value in {
        "core.fsmonitor": str(program),
        "filter.own.clean": str(program),
        "filter.own.process": str(program),
        "diff.own.textconv": str(program),
        "core.pager": str(program),
    }.items():
        git(replica, "config", name, value)
    mark.unlink(missing_ok=True)
    if changed:
        edit(replica.main_file, "import argparse", "import argparse  # mine")
    # Other times than in the index, so that git would look into the files.
    for path in (replica.main_file, replica.model_file):
        os.utime(path, (1, 1))
    assert patch(replica) == 0
    assert patch(replica, "--write") == (2 if changed else 0)
    assert patch(replica, "--write", "--allow-dirty") == 0
    assert patch(replica, "--reverse") == 0
    assert not mark.exists()


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
@pytest.mark.skipif(os.name == "nt", reason="the program is a shell script")
def test_a_partial_clone_fetches_nothing(
    replica: Host, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What git would fetch, by a program of the checkout's choice, is not known to be committed."""
    mark, program = tmp_path / "ran", tmp_path / "program"
    program.write_text(f"#!/bin/sh\ntouch {mark}\n")
    program.chmod(0o755)
    commit_all(replica)
    command = ["git", "rev-parse", f"HEAD:{replica.model_file.parent.name}"]
    tree = subprocess.check_output(command, cwd=replica.path, text=True).strip()
    (replica.path / ".git" / "objects" / tree[:2] / tree[2:]).unlink()
    for name, value in {
        "core.repositoryFormatVersion": "1",
        "extensions.partialClone": "origin",
        "remote.origin.url": f"ext::{program}",
        "remote.origin.promisor": "true",
        "protocol.ext.allow": "always",
    }.items():
        git(replica, "config", name, value)
    with pytest.raises(subprocess.CalledProcessError):
        git(replica, "ls-tree", "-r", "HEAD")
    assert mark.exists(), "git itself runs the program, so that this test can fail"
    mark.unlink()
    before = replica.contents()
    assert patch(replica, "--write") == 2
    message = capsys.readouterr().err
    assert "git cannot tell whether" in message and "--allow-dirty" in message
    assert replica.contents() == before
    assert patch(replica, "--write", "--allow-dirty") == 0
    assert not mark.exists()


MINE = "PRECIOUS = 42"


def inside(host: Host) -> None:
    edit(host.model_file, "# <<< muse-adapter attach", f"{MINE}\n        # <<< muse-adapter attach")


def instead(host: Host) -> None:
    edit(host.model_file, "muse_adapter.clip4clip.attach(self, self.task_config)", MINE)


def on_the_line(host: Host) -> None:
    edit(host.model_file, "self.task_config)\n        # <<<", f"self.task_config); {MINE}\n# <<<")


def in_an_older_block(host: Host) -> None:
    edit(host.model_file, "attach(self, self.task_config)", "attach(self, mine)  # PRECIOUS = 42")
    text = host.model_file.read_text()
    host.model_file.write_text(text.replace(f"muse-adapter {VERSION}", "muse-adapter 0.0.3"))


def own_block(host: Host) -> None:
    block = f"\n# >>> muse-adapter {VERSION} mine\n{MINE}\n# <<< muse-adapter mine\n"
    host.model_file.write_text(host.model_file.read_text() + block)


@pytest.mark.parametrize("option", ["--reverse", "--write"])
@pytest.mark.parametrize(
    "change", [inside, instead, on_the_line, in_an_older_block, own_block], ids=lambda c: c.__name__
)
def test_lines_of_the_user_are_shown_and_kept(
    replica: Host,
    change: Callable[[Host], None],
    option: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    patch(replica, "--write")
    change(replica)
    before = replica.contents()
    capsys.readouterr()
    assert patch(replica, option) == 2
    message = capsys.readouterr().err
    assert "was edited by hand; nothing was written" in message and MINE in message
    assert replica.contents() == before


def test_markers_inside_a_string(replica: Host, capsys: pytest.CaptureFixture[str]) -> None:
    text = f'\nX = """\n# >>> muse-adapter {VERSION} import\nmine\n# <<< muse-adapter import\n"""\n'
    replica.model_file.write_text(replica.model_file.read_text() + text)
    before = replica.contents()
    for options in ([], ["--write"], ["--check"], ["--reverse"]):
        assert patch(replica, *options) == 2
        assert "a marker of muse-adapter inside a string" in capsys.readouterr().err
    assert replica.contents() == before


@pytest.mark.parametrize(
    "coding", ["rot13", "hex", "undefined", "idna", "utf-16", "cp037", "no.such", "../evil"]
)
@pytest.mark.parametrize("option", ["--write", "--reverse"])
def test_codings_that_are_not_of_text(
    replica: Host, coding: str, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = f"# -*- coding: {coding} -*-\n".encode() + replica.model_file.read_bytes()
    replica.model_file.write_bytes(raw)
    status = patch(replica, option)
    assert status == 2 or (option == "--reverse" and status == 0)
    assert replica.model_file.read_bytes() == raw
    assert status == 0 or "modules/modeling.py" in capsys.readouterr().err


@pytest.mark.parametrize(
    "expression",
    ["1+" * 20000 + "1", "-" * 90000 + "1", "(" * 5000 + ")" * 5000, "x" + ".a" * 9000],
    ids=["sum", "signs", "brackets", "attributes"],
)
@pytest.mark.parametrize("at", ["end", "constructor"])
def test_deep_expressions(
    replica: Host, expression: str, at: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if at == "end":
        text = replica.model_file.read_text() + f"\ny = {expression}\n"
        replica.model_file.write_text(text)
    else:
        line = "        self.apply(self.init_weights)\n"
        edit(replica.model_file, line, f"        y = {expression}\n{line}")
    before = replica.contents()
    assert patch(replica, "--write") == 2
    message = capsys.readouterr().err
    assert "nested" in message and "Traceback" not in message
    assert replica.contents() == before


def test_both_files_are_one(replica: Host, capsys: pytest.CaptureFixture[str]) -> None:
    replica.main_file.unlink()
    replica.main_file.symlink_to(replica.model_file)
    for option in ("--write", "--reverse"):
        assert patch(replica, option) == 2
        assert "are the same file" in capsys.readouterr().err


def test_a_loop_of_links(replica: Host, capsys: pytest.CaptureFixture[str]) -> None:
    replica.model_file.unlink()
    replica.model_file.symlink_to(replica.model_file.name)
    assert patch(replica, "--write") == 2
    assert "modules/modeling.py" in capsys.readouterr().err

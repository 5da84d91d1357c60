"""The patch command: diff, write, check and reverse; options, and the scripts in `examples/`."""

from __future__ import annotations

import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from muse_adapter import __main__ as cli
from muse_adapter.patching import HOSTS
from tests.support.hosts import Host, edit, make_host, patch


def test_shows_a_diff_and_changes_nothing(
    host: Host, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    before = host.contents()
    assert patch(host) == 0
    diff = capfdbinary.readouterr().out.decode()
    assert host.contents() == before
    changed = [line for line in diff.splitlines() if re.match(r"[+-](?![+-])", line)]
    assert len(changed) == 18  # six lines with two markers each
    assert all(line.startswith("+") for line in changed), "a line of the host is removed"


def test_the_diff_is_a_patch_for_git(
    host: Host, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    patch(host)
    (tmp_path / "our.patch").write_bytes(capfdbinary.readouterr().out)
    command = ["git", "apply", "--whitespace=nowarn", str(tmp_path / "our.patch")]
    subprocess.run(command, cwd=host.path, check=True)
    assert patch(host, "--check") == 0


def test_write_check_and_reverse(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    before = host.contents()
    assert patch(host, "--check") == 1
    assert patch(host, "--write") == 0
    after = host.contents()
    assert {name for name in after if after[name] != before[name]} == {
        str(path.relative_to(host.path)) for path in (host.model_file, host.main_file)
    }
    assert patch(host, "--check") == 0
    assert patch(host, "--write") == 0  # idempotent
    assert host.contents() == after
    assert "nothing to do" in capsys.readouterr().out
    assert patch(host, "--reverse") == 0
    assert host.contents() == before
    assert patch(host, "--reverse") == 0
    assert host.contents() == before


def test_names_of_a_fork(replica: Host) -> None:
    shutil.move(replica.model_file, replica.path / "modules" / "network.py")
    shutil.move(replica.main_file, replica.path / "train.py")
    shutil.move(replica.path / "modules" / "module_clip.py", replica.path / "vit.py")
    model, main = replica.path / "modules" / "network.py", replica.path / "train.py"
    for path, old, new in (
        (model, "class CLIP4Clip", "class Network"),
        (model, "def get_visual_output", "def frames"),
        (model, "self.clip.encode_image(", "self.clip.see("),
        (main, "def get_args", "def arguments"),
        (main, "def prep_optimizer", "def optimizer_of"),
        (main, "BertAdam(\n", "Adam(\n"),
        (replica.path / "vit.py", "class CLIP(", "class Vit("),
        (replica.path / "vit.py", "def encode_image(", "def see("),
    ):
        edit(path, old, new)
    before = replica.contents()
    names = ["--model-file", "modules/network.py", "--model-class", "Network"]
    names += ["--main-file", "train.py", "--clip-file", "vit.py", "--clip-class", "Vit"]
    names += ["--visual-function", "frames", "--encode-function", "see"]
    names += ["--args-function", "arguments", "--optimizer-function", "optimizer_of"]
    names += ["--optimizer-class", "Adam"]
    assert patch(replica) == 2
    assert patch(replica, "--write", *names) == 0
    assert "video_frame, encode='see')" in model.read_text()
    assert patch(replica, "--check", *names) == 0
    assert patch(replica, "--reverse", *names) == 0
    assert replica.contents() == before


def test_reverse_needs_no_structure(replica: Host) -> None:
    before = replica.contents()
    patch(replica, "--write")
    name = str(replica.model_file.relative_to(replica.path))
    edit(replica.model_file, "def get_visual_output", "def renamed")
    assert patch(replica, "--reverse") == 0
    expected = before[name].replace(b"def get_visual_output", b"def renamed")
    assert replica.model_file.read_bytes() == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["clip4clip", "no-such-folder"], "does not exist"),
        (["xclip", "{path}"], "expected main_xclip.py in .*, found none"),
        (
            ["clip4clip", "{path}", "--model-file", "m.py"],
            "name the file with --model-file",
        ),
        (["clip4clip", "{path}", "--clip-file", "../c.py"], "is outside of the checkout"),
    ],
    ids=["no folder", "another code base", "no file", "outside"],
)
def test_paths(
    replica: Host, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (replica.path / "main_xclip.py").unlink()
    assert cli.main(["patch", *(a.format(path=replica.path) for a in arguments)]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_one_of_two_main_scripts_must_be_named(
    replica: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(replica.main_file, replica.path / "main_clip4clip.py")
    assert patch(replica, "--write") == 2
    assert "found all of them" in capsys.readouterr().err
    assert patch(replica, "--write", "--main-file", "main_clip4clip.py") == 0


@pytest.fixture
def repository(replica: Host) -> Host:
    """The replica as a git repository without changes."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "core.autocrlf=false"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "start"]):
        subprocess.run(["git", *identity, *command], cwd=replica.path, check=True)
    return replica


def test_uncommitted_changes(repository: Host, capsys: pytest.CaptureFixture[str]) -> None:
    edit(repository.main_file, "import argparse", "import argparse  # mine")
    before = repository.contents()
    assert patch(repository) == 0  # showing the diff is allowed
    assert patch(repository, "--write") == 2
    assert "main_task_retrieval.py has uncommitted changes" in capsys.readouterr().err
    assert repository.contents() == before
    assert patch(repository, "--write", "--allow-dirty") == 0
    assert patch(repository, "--reverse") == 0
    assert repository.contents() == before


def test_other_changes_do_not_matter(repository: Host) -> None:
    (repository.path / "notes.txt").write_text("mine")
    edit(repository.path / "modules" / "base.py", "import logging", "import logging  # mine")
    assert patch(repository, "--write") == 0
    assert patch(repository, "--write") == 0  # now changed only by the patch


@pytest.mark.parametrize("kind", HOSTS)
def test_scripts_in_examples(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = make_host(tmp_path, kind)
    script = Path(__file__).parents[2] / "examples" / f"{kind}_patch" / "apply.py"
    monkeypatch.setattr(sys, "argv", [str(script), str(host.path), "--write"])
    with pytest.raises(SystemExit) as done:
        runpy.run_path(str(script), run_name="__main__")
    assert done.value.code == 0
    assert patch(host, "--check") == 0

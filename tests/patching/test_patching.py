"""The patcher, on look-alike checkouts and, where environment variables name them, on real ones."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from muse_adapter import __main__ as cli
from muse_adapter.patching import HOSTS, PatchError, blocks, checkout, make_plan
from muse_adapter.version import VERSION
from tests.support.hosts import IDS, KINDS, Host, make_host

PLACES = {"import", "attach", "fused_frames", "arguments", "optimizer"}


@pytest.fixture(params=KINDS, ids=IDS)
def host(request: pytest.FixtureRequest, tmp_path: Path) -> Host:
    """A checkout of each kind."""
    return make_host(tmp_path, *request.param)


@pytest.fixture
def lookalike(tmp_path: Path) -> Host:
    """The look-alike of CLIP4Clip."""
    return make_host(tmp_path, "clip4clip")


def patch(host: Host, *options: str) -> int:
    return cli.main(["patch", host.kind, str(host.path), *options])


def edit(path: Path, old: str, new: str, count: int = 1) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count(old) >= 1, f"{old!r} is not in {path.name}"
    path.write_text(text.replace(old, new, count), encoding="utf-8", newline="")


def ours(text: str) -> list[str]:
    """Lines between our markers."""
    inside = re.findall(r"# >>> muse-adapter \S+ \S+\n(.*?)\n *# <<< muse-adapter", text, re.S)
    return [line.strip() for line in inside]


def test_shows_a_diff_and_changes_nothing(
    host: Host, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    before = host.contents()
    assert patch(host) == 0
    diff = capfdbinary.readouterr().out.decode()
    assert host.contents() == before
    changed = [line for line in diff.splitlines() if re.match(r"[+-](?![+-])", line)]
    assert len(changed) == 18  # six lines and their markers
    assert all(line.startswith("+") for line in changed), "no line of the host is removed"


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


def test_the_lines_and_where_they_stand(lookalike: Host) -> None:
    patch(lookalike, "--write")
    model = lookalike.model_file.read_text()
    assert ours(model) == [
        "import muse_adapter.clip4clip",
        "muse_adapter.clip4clip.attach(self, self.task_config)",
        "if self.muse is not None: return muse_adapter.clip4clip.fused_frames("
        "self, video, video_mask, video_frame)",
    ]
    main = lookalike.main_file.read_text()
    assert ours(main) == [
        "import muse_adapter.clip4clip",
        "muse_adapter.clip4clip.add_arguments(parser)",
        "groups = muse_adapter.clip4clip.regroup(groups, model, args)",
    ]
    order = [
        "self.apply(self.init_weights)",
        "attach(self",
        "def get_visual_output",
        "fused_frames(self",
        "self.clip.encode_image(",
    ]
    assert sorted(order, key=model.index) == order
    order = ["add_arguments(", "parse_args(", "regroup(", "optimizer = BertAdam("]
    assert sorted(order, key=main.index) == order


def windows(raw: bytes) -> bytes:
    return raw.replace(b"\n", b"\r\n")


def latin(raw: bytes) -> bytes:
    return b"# -*- coding: latin-1 -*-\n# caf\xe9\n" + raw


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(windows, id="CRLF"),
        pytest.param(lambda raw: raw.replace(b"\n", b"\r"), id="CR"),
        pytest.param(lambda raw: raw.replace(b"\n\n", b"\r\n\n"), id="mixed line ends"),
        pytest.param(lambda raw: raw.replace(b"    ", b"\t"), id="tabs"),
        pytest.param(lambda raw: raw.replace(b"    ", b"  "), id="two blanks"),
        pytest.param(lambda raw: b"\xef\xbb\xbf" + raw, id="byte order mark"),
        pytest.param(lambda raw: b"\xef\xbb\xbf" + windows(raw), id="byte order mark and CRLF"),
        pytest.param(latin, id="declared latin-1"),
        pytest.param(lambda raw: "# 视频\n".encode() + raw, id="UTF-8 beyond ASCII"),
        pytest.param(lambda raw: raw.replace(b"\n\n", b"\n\x0c\n"), id="form feeds"),
        pytest.param(lambda raw: raw.rstrip(b"\n"), id="no newline at the end"),
        pytest.param(lambda raw: raw + b"\n\n\n", id="blank lines at the end"),
    ],
)
def test_bytes_are_kept(lookalike: Host, change) -> None:
    for path in (lookalike.model_file, lookalike.main_file):
        path.write_bytes(change(path.read_bytes()))
    before = lookalike.contents()
    assert patch(lookalike, "--write") == 0
    for path in (lookalike.model_file, lookalike.main_file):
        name = str(path.relative_to(lookalike.path))
        raw = path.read_bytes()
        compile(raw, name, "exec")
        # Without our lines it is what it was: none of the host's bytes moved.
        kept = [line for line in raw.splitlines(True) if b"muse" not in line]
        assert b"".join(kept) == before[name]
        ends = {line[len(line.rstrip(b"\r\n")) :] for line in raw.splitlines(True)}
        whole = before[name].splitlines(True)
        assert ends <= {line[len(line.rstrip(b"\r\n")) :] for line in whole}
    assert patch(lookalike, "--check") == 0
    assert patch(lookalike, "--reverse") == 0
    assert lookalike.contents() == before


def test_a_place_in_the_last_line_without_a_newline(lookalike: Host) -> None:
    text = lookalike.model_file.read_text()
    start = text.index("    def __init__")
    end = text.index("    def forward")
    moved = text[:start] + text[end:] + "\n" + text[start:end].rstrip()
    lookalike.model_file.write_text(moved)
    assert moved.endswith("self.apply(self.init_weights)")
    assert patch(lookalike, "--write") == 0
    assert lookalike.model_file.read_text().endswith("# <<< muse-adapter attach")
    assert patch(lookalike, "--reverse") == 0
    assert lookalike.model_file.read_text() == moved


def test_modes_are_kept(lookalike: Host) -> None:
    lookalike.main_file.chmod(0o755)
    lookalike.model_file.chmod(0o640)
    patch(lookalike, "--write")
    assert lookalike.main_file.stat().st_mode & 0o777 == 0o755
    assert lookalike.model_file.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("model", "class CLIP4Clip", "class Other", "exactly one class CLIP4Clip, found none"),
        ("model", "def get_visual_output", "def other", "def get_visual_output in class CLIP4Clip"),
        ("model", "self.apply(self.init_weights)", "pass", r"expected self.apply\(self.init_weig"),
        ("model", "self.task_config = ", "self.other = ", "__init__ sets no task_config"),
        ("model", "video_frame=-1)", "video_frame=-1, audio=None)", "also takes audio"),
        ("model", "shaped=False, video_frame=-1)", "shaped=False)", "no parameter video_frame"),
        ("model", "features.size(-1))\n", "features.size(-1)), 1\n", "it returns 2"),
        (
            "model",
            "        return features.view",
            "        features = self.select(features)\n        return features.view",
            r"does more than reshape .*`features = self.select\(features\)`",
        ),
        (
            "model",
            "features = self.clip.encode_image(",
            "if shaped: features = self.clip.encode_image(",
            "shares its line with other code",
        ),
        (
            "model",
            "        features = self.clip.encode_image(",
            "        if True:\n            features = self.clip.encode_image(",
            "inside another statement",
        ),
        ("model", "self.clip.encode_image(", "self.vision.encode_image(", "not self.clip.encode"),
        (
            "model",
            "        text = self.clip.encode_text(",
            "        self.clip.encode_image(video)\n        text = self.clip.encode_text(",
            "calls encode_image 2 times",
        ),
        ("model", "class CLIP4Clip", "class CLIP4Clip(", "modules/modeling.py, line .* compile"),
        ("main", "def get_args", "def arguments", "exactly one def get_args, found none"),
        ("main", "parser.parse_args()", "parser.parse()", "call of parse_args in get_args, found"),
        ("main", "parser.parse_args()", "make().parse_args()", r"on a variable, got make\(\)"),
        ("main", "BertAdam(\n", "AdamW(\n", "call of BertAdam in prep_optimizer, found none"),
        ("main", "        groups,\n", "        [*groups],\n", "must be a variable"),
        ("main", "def prep_optimizer(args, ", "def prep_optimizer(a, ", "has no parameter args"),
        ("clip", "return feature, tokens", "return tokens", "does not return the pair"),
        (
            "clip",
            "        if return_hidden:\n            return feature, tokens\n",
            "",
            "not return the",
        ),
        ("clip", "return_hidden: bool = False, ", "", "has no parameter return_hidden"),
        ("clip", "class CLIP(", "class Model(", "exactly one class CLIP, found none"),
    ],
)
def test_refuses_what_it_does_not_understand(
    lookalike: Host,
    file: str,
    old: str,
    new: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    paths = {
        "model": lookalike.model_file,
        "main": lookalike.main_file,
        "clip": lookalike.path / "modules" / "module_clip.py",
    }
    edit(paths[file], old, new)
    before = lookalike.contents()
    with pytest.raises(PatchError, match=message):
        make_plan(lookalike.path, HOSTS["clip4clip"])
    for options in ([], ["--write"], ["--check"]):
        assert patch(lookalike, *options) == 2
        assert re.search(message, capsys.readouterr().err)
    assert lookalike.contents() == before


def test_two_of_a_kind_are_refused(lookalike: Host) -> None:
    text = lookalike.main_file.read_text()
    lookalike.main_file.write_text(text + "\n\n" + text[text.index("def get_args") :])
    with pytest.raises(PatchError, match=r"exactly one def get_args, found 2 \(lines"):
        make_plan(lookalike.path, HOSTS["clip4clip"])


def test_the_last_init_weights_counts(lookalike: Host) -> None:
    line = "        self.apply(self.init_weights)\n"
    edit(lookalike.model_file, line, f"{line}        if True:\n    {line}        self.after = 1\n")
    patch(lookalike, "--write")
    text = lookalike.model_file.read_text()
    assert text.rindex(line.strip()) < text.index("attach(self") < text.index("self.after")
    assert "\n        muse_adapter.clip4clip.attach(" in text, "not inside the if"


def test_names_of_a_fork(lookalike: Host) -> None:
    shutil.move(lookalike.model_file, lookalike.path / "modules" / "network.py")
    shutil.move(lookalike.main_file, lookalike.path / "train.py")
    shutil.move(lookalike.path / "modules" / "module_clip.py", lookalike.path / "vit.py")
    model, main = lookalike.path / "modules" / "network.py", lookalike.path / "train.py"
    for path, old, new in (
        (model, "class CLIP4Clip", "class Network"),
        (model, "def get_visual_output", "def frames"),
        (model, "self.clip.encode_image(", "self.clip.see("),
        (main, "def get_args", "def arguments"),
        (main, "def prep_optimizer", "def optimizer_of"),
        (main, "BertAdam(\n", "Adam(\n"),
        (lookalike.path / "vit.py", "class CLIP(", "class Vit("),
        (lookalike.path / "vit.py", "def encode_image(", "def see("),
    ):
        edit(path, old, new)
    before = lookalike.contents()
    names = ["--model-file", "modules/network.py", "--model-class", "Network"]
    names += ["--main-file", "train.py", "--clip-file", "vit.py", "--clip-class", "Vit"]
    names += ["--visual-function", "frames", "--encode-function", "see"]
    names += ["--args-function", "arguments", "--optimizer-function", "optimizer_of"]
    names += ["--optimizer-class", "Adam"]
    assert patch(lookalike) == 2
    assert patch(lookalike, "--write", *names) == 0
    assert "video_frame, encode='see')" in model.read_text()
    assert patch(lookalike, "--check", *names) == 0
    assert patch(lookalike, "--reverse", *names) == 0
    assert lookalike.contents() == before


def test_partly_applied_says_where(lookalike: Host, capsys: pytest.CaptureFixture[str]) -> None:
    patch(lookalike, "--write")
    whole = lookalike.contents()
    text = lookalike.main_file.read_text()
    found = re.search(r" *# >>> \S+ \S+ optimizer\n.*\n.*\n", text)
    assert found
    lookalike.main_file.write_text(text.replace(found[0], ""))
    capsys.readouterr()
    assert patch(lookalike, "--check") == 3
    out = capsys.readouterr().out
    assert "partly applied" in out
    assert re.search(r"main_task_retrieval.py: optimizer is not there \(line \d+\)", out)
    assert patch(lookalike, "--write") == 0
    assert lookalike.contents() == whole


def test_a_moved_block_is_found(lookalike: Host, capsys: pytest.CaptureFixture[str]) -> None:
    patch(lookalike, "--write")
    text = lookalike.model_file.read_text()
    block = re.search(r" *# >>> \S+ \S+ attach\n.*\n.*\n", text)
    assert block
    line = "        self.clip = CLIP("
    text = text.replace(block[0], "").replace(line, block[0] + line)
    lookalike.model_file.write_text(text)
    capsys.readouterr()
    assert patch(lookalike, "--check") == 3
    assert "attach stands elsewhere" in capsys.readouterr().out


def test_an_older_block_is_upgraded(lookalike: Host, capsys: pytest.CaptureFixture[str]) -> None:
    patch(lookalike, "--write")
    whole = lookalike.contents()
    for path in (lookalike.model_file, lookalike.main_file):
        text = path.read_text().replace(f"muse-adapter {VERSION}", "muse-adapter 0.0.3")
        path.write_text(text.replace(", self.task_config)", ")"))
    capsys.readouterr()
    assert patch(lookalike, "--check") == 3
    assert "attach is of version 0.0.3" in capsys.readouterr().out
    assert patch(lookalike, "--write") == 0
    assert lookalike.contents() == whole


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (", self.task_config)", ", config)", "attach was edited by hand"),
        (f"muse-adapter {VERSION} attach", "muse-adapter 99.0.0 attach", "99.0.0, newer than"),
        ("# <<< muse-adapter attach", "#", "a marker of muse-adapter without its partner"),
        (f"# >>> muse-adapter {VERSION} attach", "#", "a marker of muse-adapter without its"),
    ],
    ids=["edited", "newer", "no end", "no beginning"],
)
def test_blocks_that_are_not_ours_to_replace(
    lookalike: Host, old: str, new: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    patch(lookalike, "--write")
    edit(lookalike.model_file, old, new)
    before = lookalike.contents()
    capsys.readouterr()
    assert patch(lookalike, "--write") == 2
    assert message in capsys.readouterr().err
    assert lookalike.contents() == before


def test_reverse_needs_no_structure(lookalike: Host) -> None:
    before = lookalike.contents()
    patch(lookalike, "--write")
    name = str(lookalike.model_file.relative_to(lookalike.path))
    edit(lookalike.model_file, "def get_visual_output", "def renamed")
    assert patch(lookalike, "--reverse") == 0
    expected = before[name].replace(b"def get_visual_output", b"def renamed")
    assert lookalike.model_file.read_bytes() == expected


@pytest.mark.parametrize("at", [1, 2], ids=["first file", "second file"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError], ids=lambda e: e.__name__)
def test_an_interrupt_leaves_the_old_tree(
    lookalike: Host, at: int, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = lookalike.contents()
    plan = make_plan(lookalike.path, HOSTS["clip4clip"])
    real, calls = os.replace, []

    def replace(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == at:
            raise error("now")
        real(source, target)

    monkeypatch.setattr(checkout.os, "replace", replace)
    with pytest.raises(error):
        checkout.write_all(plan.contents())
    assert len(calls) >= at
    assert lookalike.contents() == before, "also no file was left beside"


def test_an_interrupt_while_writing_leaves_the_old_tree(
    lookalike: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = lookalike.contents()

    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkout.os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        patch(lookalike, "--write")
    assert lookalike.contents() == before


def test_a_change_meanwhile_is_not_overwritten(lookalike: Host) -> None:
    plan = make_plan(lookalike.path, HOSTS["clip4clip"])
    edit(lookalike.main_file, "import argparse", "import argparse  # mine")
    before = lookalike.contents()
    with pytest.raises(PatchError, match="changed meanwhile"):
        checkout.write_all(plan.contents())
    assert lookalike.contents() == before


@pytest.mark.parametrize("what", ["file", "folder"])
def test_read_only(lookalike: Host, what: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = lookalike.model_file if what == "file" else lookalike.model_file.parent
    mode = path.stat().st_mode
    before = lookalike.contents()
    path.chmod(mode & ~0o222)
    try:
        assert patch(lookalike, "--write") == 2
        assert "is read-only; nothing was written" in capsys.readouterr().err
        assert lookalike.contents() == before
    finally:
        path.chmod(mode)


def test_links(lookalike: Host, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inside = lookalike.path / "modules" / "real.py"
    lookalike.model_file.rename(inside)
    lookalike.model_file.symlink_to("real.py")
    assert patch(lookalike, "--write") == 0
    assert lookalike.model_file.is_symlink()
    assert "muse_adapter" in inside.read_text()
    assert patch(lookalike, "--reverse") == 0

    outside = tmp_path / "elsewhere.py"
    inside.rename(outside)
    lookalike.model_file.unlink()
    lookalike.model_file.symlink_to(outside)
    capsys.readouterr()
    assert patch(lookalike, "--write") == 2
    assert "modules/modeling.py leads out of the checkout" in capsys.readouterr().err
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
    lookalike: Host, head: bytes, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = lookalike.model_file.read_bytes()
    lookalike.model_file.write_bytes(head + raw)
    assert patch(lookalike, "--write") == 2
    err = capsys.readouterr().err
    assert "modules/modeling.py" in err
    assert re.search(message, err)
    assert lookalike.model_file.read_bytes() == head + raw


@pytest.fixture
def repository(lookalike: Host) -> Host:
    """The look-alike, committed."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "core.autocrlf=false"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "start"]):
        subprocess.run(["git", *identity, *command], cwd=lookalike.path, check=True)
    return lookalike


def test_uncommitted_changes(repository: Host, capsys: pytest.CaptureFixture[str]) -> None:
    edit(repository.main_file, "import argparse", "import argparse  # mine")
    before = repository.contents()
    assert patch(repository) == 0  # looking is free
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
    assert patch(repository, "--write") == 0  # now changed by us alone


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["clip4clip", "no-such-folder"], "is nothing"),
        (["xclip", "{path}"], "expected main_xclip.py, it is not"),
        (
            ["clip4clip", "{path}", "--model-file", "m.py"],
            "another file is named with --model-file",
        ),
        (["clip4clip", "{path}", "--clip-file", "../c.py"], "leads out of the checkout"),
    ],
    ids=["no folder", "another code base", "no file", "outside"],
)
def test_paths(
    lookalike: Host, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (lookalike.path / "main_xclip.py").unlink()
    assert cli.main(["patch", *(a.format(path=lookalike.path) for a in arguments)]) == 2
    assert message in capsys.readouterr().err


def test_two_main_scripts_must_be_told_apart(
    lookalike: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(lookalike.main_file, lookalike.path / "main_clip4clip.py")
    assert patch(lookalike, "--write") == 2
    assert "all of them are" in capsys.readouterr().err
    assert patch(lookalike, "--write", "--main-file", "main_clip4clip.py") == 0


@pytest.mark.parametrize("count", [1, 2])
def test_strip_undoes_insert(count: int) -> None:
    for text in ("", "a", "a\n", "a\r\nb", "a\rb\r"):
        lines = (
            blocks.split_lines(text) if hasattr(blocks, "split_lines") else text.splitlines(True)
        )
        there = [
            blocks.Block(f"p{n}", index, ("x = 1",), "  ")
            for n, index in zip(range(count), (0, len(lines)), strict=False)
        ]
        new = blocks.insert(lines, there) if lines else list(lines)
        assert blocks.strip("file", new)[0] == lines


@pytest.mark.parametrize("kind", HOSTS)
def test_the_scripts_in_examples_do_the_same(kind: str, tmp_path: Path) -> None:
    host = make_host(tmp_path, kind)
    script = Path(__file__).parents[2] / "examples" / f"{kind}_patch" / "apply.py"
    environment = {**os.environ, "PYTHONPATH": str(script.parent.parent.parent)}
    command = [sys.executable, str(script), str(host.path)]
    done = subprocess.run([*command, "--write"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert patch(host, "--check") == 0

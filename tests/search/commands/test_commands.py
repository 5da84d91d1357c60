"""`muse-adapter index` and `muse-adapter search`: what they do, print and return."""

from __future__ import annotations

import json
import os
import re
import shlex
from contextlib import nullcontext
from pathlib import Path

import pytest

pytest.importorskip("sentence_transformers", reason="the commands load models of this library")
pytest.importorskip("fcntl", reason="writing a table needs POSIX locks")

from muse_adapter.__main__ import main
from muse_adapter.search import VideoIndex
from muse_adapter.search.commands import indexing
from muse_adapter.search.commands.processes import Processes
from tests.support.saved_models import save_tiny_model
from tests.support.video_files import grey_video

pytestmark = pytest.mark.usefixtures("torch_scan")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "model")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three videos of 1 to 3 seconds, one that is none, and a note."""
    folder = tmp_path_factory.mktemp("videos")
    (folder / "more").mkdir()
    for number, name in enumerate(["a.mp4", "b.mp4", "more/c.mp4"], start=1):
        grey_video(folder / name, 8 * number)
    (folder / "broken.mp4").write_bytes(b"no video")
    (folder / "notes.txt").write_text("no video either")
    return folder


@pytest.fixture(scope="module")
def made(model: str, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An index of the folder."""
    index = str(tmp_path_factory.mktemp("made") / "clips.index")
    assert main(["index", str(folder), "--model", model, "--to", index, "--quiet"]) == 1
    return index


def test_index(model, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    command = ["index", ".", "--to", str(tmp_path / "i"), "--window", "1", "--stride", "0.5"]
    assert main([*command, "--model", model]) == 1
    output = capsys.readouterr()
    assert output.out.splitlines()[0] == "3 videos added, 0 were in the index, 1 cannot be read"
    assert re.search(r"\n  cannot read .*/broken\.mp4: it is no video", output.out)
    assert output.out.endswith("\nthe index has 3 videos, 9 segments\n")
    assert re.search(r"4 of 4 videos, [0-9.]+ a second, 1 unreadable", output.err)

    # The model is known now, and so are the windows; what is in is skipped.
    grey_video(folder / "d.mp4", 4)
    try:
        assert main([*command, "--quiet", "--batch-size", "2", "--workers", "1"]) == 1
    finally:
        (folder / "d.mp4").unlink()
    output = capsys.readouterr()
    assert output.out.startswith("1 videos added, 3 were in the index, 1 cannot be read\n")
    assert " a second" not in output.err
    assert main(["index", str(folder / "a.mp4"), "--to", str(tmp_path / "i"), "--quiet"]) == 0
    with VideoIndex.open(tmp_path / "i") as index:
        assert {hit.video for hit in index.search("a dog")} == {
            str(folder / name) for name in ("a.mp4", "b.mp4", "more/c.mp4", "d.mp4")
        }


def test_search(made, folder, tmp_path, capsys):
    assert main(["search", "a red dog", "--index", made, "-k", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    with VideoIndex.open(made) as index:
        hits = index.search("a red dog", k=2)
    assert found["query"] == "a red dog"
    assert [hit["video"] for hit in found["hits"]] == [hit.video for hit in hits]
    assert [hit["score"] for hit in found["hits"]] == pytest.approx(
        [hit.score for hit in hits], abs=1e-5
    )
    page = tmp_path / "page.html"
    assert main(["search", "a red dog", "--index", made, "-k", "2", "--html", str(page)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    for line, hit in zip(lines, hits, strict=True):
        seconds = int(hit.end)
        assert re.fullmatch(
            rf" *\d\. +{hit.score:.3f}  0:00\.0 to 0:0{seconds}\.0 +{re.escape(hit.video)}", line
        )
        assert Path(hit.video).as_uri() in page.read_text()


def test_the_second_stage_can_be_left_out(made, capsys):
    assert main(["search", "a red dog", "--index", made, "--json", "--no-rerank"]) == 0
    found = json.loads(capsys.readouterr().out)["hits"]
    with VideoIndex.open(made) as index:
        plain = index.search("a red dog", rerank=False)
    assert [hit["score"] for hit in found] == pytest.approx([h.score for h in plain], abs=1e-5)


def test_names_that_terminals_would_obey(model, folder, tmp_path, capsys):
    name = os.fsdecode(b"\x1b[31m\xff\n.mp4")
    (tmp_path / "videos").mkdir()
    os.link(folder / "a.mp4", tmp_path / "videos" / name)
    (tmp_path / "videos" / f"broken{name}").write_bytes(b"no video")
    index = str(tmp_path / "i")
    assert main(["index", str(tmp_path / "videos"), "--model", model, "--to", index]) == 1
    assert main(["search", "a dog", "--index", index]) == 0
    output = capsys.readouterr()
    assert "\x1b" not in output.out and output.out.count(r"\x1b[31m\udcff\n.mp4") >= 2
    assert main(["search", "a dog", "--index", index, "--json"]) == 0
    (hit,) = json.loads(capsys.readouterr().out)["hits"]
    assert os.fsencode(hit["video"]) == os.fsencode(tmp_path / "videos" / name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("search dog --index {new}", r"there is no index in '.*new/videos'"),
        ("search dog --index {made} -k 0", "k must be an int of at least 1, got 0"),
        ("search dog --index {made} --model {folder}", "is no saved model: it has no modules.json"),
        ("search dog --index {made} --html {new}/page.html", "No such file or directory"),
        ("search dog --index http://127.0.0.1:1?timeout=1", "does not answer|not installed"),
        ("index {folder} --to {new}", "no such index yet: a new one needs --model"),
        ("index {folder} --to {made} --window 2", "was created with --window None, got 2.0"),
        ("index {folder} --to {new} --model {model} --stride 2", "stride=2.0 needs window="),
        ("index {folder} --to {made} --no-frame-features", "was created with frame features, got"),
        ("index {folder} --to {new} --model {model} --batch-size 0", "--batch-size must be at"),
        ("index {folder} --to {new} --model {model} --workers -1", "and --workers at least 0"),
        ("index {folder}/no --to {new} --model {model}", "no such file or folder: '.*/no'"),
        ("index {folder} --to {new} --model nobody", "nobody"),
    ],
)
def test_errors_are_one_line(arguments, message, made, folder, model, tmp_path, capsys):
    paths = {"made": made, "folder": folder, "model": model, "new": tmp_path / "new"}
    words = arguments.format(**paths).split()
    assert main(words) == 2
    output = capsys.readouterr()
    line = output.err.strip().splitlines()[-1]
    assert line.startswith(f"muse-adapter {words[0]}: ") and re.search(message, line), line
    assert "Traceback" not in output.err and not output.out
    assert not paths["new"].exists()


def test_interrupt(made, folder, monkeypatch, capsys):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(VideoIndex, "add", interrupted)
    assert main(["index", str(folder), "--to", made]) == 130
    assert capsys.readouterr().err.endswith("muse-adapter index: interrupted\n")


def test_the_commands_of_the_page(model, folder, tmp_path, monkeypatch, capsys):
    page = (Path(__file__).parents[3] / "docs" / "search.md").read_text(encoding="utf-8")
    section = page.partition("## The command line")[2].partition("\n## ")[0]
    commands = [shlex.split(line) for line in section.splitlines() if line.startswith("muse-adap")]
    assert [command[1] for command in commands] == ["index", "search", "search", "search"]
    os.symlink(model, tmp_path / "my-model")
    os.symlink(folder / "more", tmp_path / "videos")
    monkeypatch.chdir(tmp_path)
    for _, *arguments in commands:
        assert main(arguments) == 0
    assert (tmp_path / "found.html").read_text().count("<video ") == 1
    assert capsys.readouterr().out.count("c.mp4") == 3


class TwoProcesses(Processes):
    """The first of two; the second one has an error, too."""

    def __init__(self):
        super().__init__(0, 2)

    def broadcast(self, value):
        return value

    def gather(self, value):
        return [value, "process 1: its disk is full"]


def test_errors_of_all_processes_are_reported(made, folder, capsys, monkeypatch):
    def refused(*arguments, **options):
        raise BlockingIOError("another process writes")

    monkeypatch.setattr(indexing, "started_processes", lambda: nullcontext(TwoProcesses()))
    monkeypatch.setattr(VideoIndex, "add", refused)
    assert main(["index", str(folder), "--to", str(made)]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.endswith("process 0: another process writes; process 1: its disk is full")

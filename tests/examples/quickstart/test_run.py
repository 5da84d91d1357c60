"""The default run, own material and the study, as a whole."""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("av", reason="the quickstart reads videos with PyAV")
pytest.importorskip("matplotlib", reason="the quickstart draws with matplotlib")
pytest.importorskip("tqdm", reason="the quickstart shows progress with tqdm")

import examples.quickstart.demo as demo_module
from examples.quickstart import compare as study
from examples.quickstart.demo import demo
from examples.quickstart.material import Material
from examples.quickstart.model import HEADS
from examples.quickstart.report import result_table
from examples.quickstart.search import search
from tests.support.quickstart import OWN, TINY, interrupt_in_step, run_command

PNG = b"\x89PNG\r\n\x1a\n"


def test_default_run_leaves_results_pictures_and_an_index(
    material: Material, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = demo(TINY, material, tmp_path, began=time.perf_counter(), progress=False)

    assert json.loads((tmp_path / "results.json").read_text()) == json.loads(json.dumps(summary))
    assert summary["chance_r1"] == pytest.approx(100 / 8)
    assert set(summary["results"]) == {"muse", "mean_pool"}
    for result in summary["results"].values():
        assert set(result["t2v"]) == set(result["v2t"]) == {"R@1", "R@5", "R@10", "MdR", "MnR"}
        assert result["t2v"]["R@10"] == 100  # there are 8 clips
        assert len(result["losses"]) == TINY.steps
        assert 0 <= result["pair_preference"] <= 100
    assert summary["results"]["mean_pool"]["parameters"]["head"] == 0
    assert summary["results"]["muse"]["parameters"]["head"] > 0
    for picture in ("contact_sheet.png", "curves.png"):
        assert (tmp_path / picture).read_bytes().startswith(PNG)
    screen = capsys.readouterr().out
    assert "text to video" in screen and "time reversal" in screen

    capsys.readouterr()
    query = material.splits["train"].clips[3].caption
    assert run_command("search", "--folder", tmp_path, f"{query} zebra") == 0
    output = capsys.readouterr()
    assert "ignored: zebra" in output.err
    shown = [line for line in output.out.splitlines() if line[:1].isdigit()]
    scores = [float(line.split()[1]) for line in shown]
    assert len(scores) == 5 and scores == sorted(scores, reverse=True)
    captions = {clip.caption for clip in material.splits["test"].clips}
    assert {line.split(maxsplit=2)[2] for line in shown} <= captions
    page = tmp_path / "found.html"
    assert run_command("search", query, "--folder", tmp_path, "--html", page) == 0
    assert page.read_text().count("<video ") == 5

    assert run_command("search", "zebra", "--folder", tmp_path) == 2
    assert "no word of 'zebra' occurs in the training captions" in capsys.readouterr().err


def test_slow_backend_announces_the_expected_time(
    material: Material,
    no_pictures: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MUSE_ADAPTER_BACKEND", "torch")
    monkeypatch.setattr(demo_module, "seconds_per_step", lambda *_: 90.0)
    summary = demo(
        replace(TINY, steps=1), material, tmp_path, began=time.perf_counter(), progress=False
    )
    assert (
        "expected time of the training (muse and mean_pool, 1 steps each): about 3 min"
        in capsys.readouterr().out
    )
    assert summary["environment"]["scan_backend"] == "torch"


def test_study_goes_on_where_it_was_interrupted(
    material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(TINY, steps=3)
    options = {"entries": ("mean_pool", "conv"), "seeds": (0, 1), "progress": False}
    with monkeypatch.context() as patch:
        interrupt_in_step(patch, 5)  # in the second run
        with pytest.raises(KeyboardInterrupt):
            study.compare(settings, material, tmp_path, **options)
    written = json.loads((tmp_path / "compare.json").read_text())
    assert [(run["head"], run["seed"]) for run in written["runs"]] == [("mean_pool", 0)]

    started = []
    original = study.run
    monkeypatch.setattr(
        study, "run", lambda s, *a, **k: started.append((s.head, s.seed)) or original(s, *a, **k)
    )
    summary = study.compare(settings, material, tmp_path, **options)
    assert started == [("conv", 0), ("mean_pool", 1), ("conv", 1)]
    assert study.compare(settings, material, tmp_path, **options)["runs"] == summary["runs"]
    assert len(started) == 3

    values = [run["t2v"]["MnR"] for run in summary["runs"] if run["head"] == "conv"]
    column = summary["summary"]["conv"]["columns"]["MnR"]
    assert column["mean"] == pytest.approx(sum(values) / 2)
    assert column["spread"] == pytest.approx(abs(values[0] - values[1]) / math.sqrt(2))
    assert all("losses" not in run for run in summary["runs"])
    table = (tmp_path / "compare.md").read_text().splitlines()
    assert len(table) == 4 and table[3].startswith("| MUSE, convolution | 2 | ")
    assert table[3].count("±") == len(study.COLUMNS)


def test_own_material_is_trained_on_and_searched(
    own: tuple[Path, Path], no_pictures: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    videos, captions = own
    arguments = ["--videos", videos, "--captions", captions, "--folder", tmp_path, *OWN]
    with pytest.warns(UserWarning, match="broken.mp4"):
        assert run_command(*arguments) == 0
    assert "clips: " in capsys.readouterr().out
    found, warnings = search(tmp_path, "circle square", count=100)
    assert len(found) == 12  # all splits, each video once
    assert {Path(hit.video).parent for hit, _ in found} == {videos}
    assert warnings == []
    # Run again, it makes the index anew.
    with pytest.warns(UserWarning, match="broken.mp4"):
        assert run_command(*arguments) == 0
    assert search(tmp_path, "circle square", count=100)[0] == found


def test_interrupt_says_how_to_go_on(
    own: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    interrupt_in_step(monkeypatch, 2)
    arguments = ["--videos", own[0], "--captions", own[1], "--folder", tmp_path, *OWN]
    with pytest.warns(UserWarning, match="broken.mp4"):
        assert run_command(*arguments) == 130
    assert "the same command goes on" in capsys.readouterr().err


def test_other_settings_or_clips_are_another_run(material: Material) -> None:
    names = {
        TINY.run_name("clips"),
        TINY.run_name("other clips"),
        replace(TINY, steps=7).run_name("clips"),
        replace(TINY, seed=1).run_name("clips"),
        replace(TINY, head="conv").run_name("clips"),
        replace(TINY, objective="eercf").run_name("clips"),
    }
    assert len(names) == 6


def test_the_pages_show_the_recorded_runs() -> None:
    root = Path(__file__).parents[3]
    kept = root / "examples" / "quickstart" / "results"
    figures = json.loads((kept / "compare.json").read_text(encoding="utf-8"))
    page = (root / "docs" / "quickstart.md").read_text(encoding="utf-8")
    assert study.markdown_table(figures["summary"]) in page
    for runs_of in figures["summary"].values():
        assert set(runs_of["seeds"]) <= {0, 1, 2}
    assert set(figures["summary"]) == set(HEADS)
    assert figures["summary"]["muse"]["columns"]["T2V R@1"]["mean"] >= 50 * figures["chance_r1"]
    objectives = json.loads((kept / "objectives.json").read_text(encoding="utf-8"))
    assert list(objectives["summary"]) == ["muse", "eercf", "mean_max_sim"]
    assert study.markdown_table(objectives["summary"]) in page
    assert study.markdown_table(objectives["reranked"], study.RERANKED_LABELS) in page
    default = json.loads((kept / "results.json").read_text(encoding="utf-8"))
    # The page includes this part of README.
    readme = (root / "README.md").read_text(encoding="utf-8")
    text = readme.partition("## Quickstart\n")[2].partition("<!-- The quickstart's page")[0]
    assert result_table(default["results"]) in text
    assert f"took {default['seconds']:.0f} s and\n{default['peak_gib']:.1f} GiB" in text
    assert default["seconds"] < 6 * 60 and default["peak_gib"] < 4
    assert (kept / "contact_sheet.png").read_bytes().startswith(PNG)

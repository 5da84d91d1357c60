"""Runs of `python -m benchmarks` on tiny sizes: rows, pictures, README, and what goes wrong."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import fresh, report, rows, timing
from benchmarks.__main__ import main
from benchmarks.contenders import Contender
from benchmarks.settings import PRESETS, Case, Settings
from tests.support.small_benchmarks import HERE, ON_CPU, SMALL, small

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are measured in this process, which has everything loaded."""
    monkeypatch.setattr(rows, "in_fresh_process", lambda function, *given: function(*given))


def test_every_head_is_measured_written_and_drawn(
    here: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target, pictures = tmp_path / "heads.json", tmp_path / "pictures"
    command = [*SMALL, "--frames", "1", "--json", str(target), "--plot", str(pictures)]
    command += ["--limit", "0.05", "--heads", *HERE]
    assert main(command) == 0
    figures, printed = json.loads(target.read_text()), capsys.readouterr().out
    assert {"processor", "threads", "torch", "date", "command", "code"} <= set(figures["machine"])
    assert len(figures["rows"]) == 2 * len(HERE)
    for row in figures["rows"]:
        low, high = row["quartiles_s"]
        assert 0 < low <= row["seconds"] <= high and row["runs"] > 0
        assert row["peak_bytes"] >= 0 and row["held_bytes"] > 0
        assert row["tokens_per_s"] == pytest.approx(5 / row["seconds"])
        assert row["what"] in printed and "date" in row
    sizes = {row["head"]: row["parameters"] for row in figures["rows"]}
    assert sizes["meanP"] == 0 and sizes["muse-torch"] > sizes["mamba"] > sizes["conv"]
    assert "head runs" in printed and "computed from measured parts" in printed
    assert sorted(path.name for path in pictures.iterdir()) == ["memory.png", "time.png"]
    assert all(path.stat().st_size > 10_000 for path in pictures.iterdir())


def test_a_row_of_a_fresh_process() -> None:
    settings = small(threads=1, limit_s=0.05)
    outcome = fresh.in_fresh_process(
        timing.measure, "attention-plain", Case("inference", 16, (8, 8), 1), settings
    )
    assert outcome.median > 0 and outcome.parameters > 0 and len(outcome.result) == 32
    # One layer's scores and their softmax, 16 * (1 + 16 + 64 + 256) tokens squared, in float32.
    weights = 4 * (16 * (1 + 16 + 64 + 256)) ** 2
    assert 2 * weights < outcome.peak_bytes < 4 * weights


def test_fresh_processes_find_the_libraries_loaded() -> None:
    """What fails to load beforehand says nothing, and makes every row half a second slower."""
    expected = {"torch.fx.experimental.symbolic_shapes"}
    if isinstance(ON_CPU["muse-numba"], Contender):
        expected |= {"muse_adapter.ops.numba_cpu.function"}
    # By a function that imports nothing itself.
    assert expected <= fresh.in_fresh_process(eval, "set(__import__('sys').modules)")


def too_much() -> int:
    return torch.empty(1 << 50, dtype=torch.uint8).numel()


def die() -> None:
    os._exit(3)


def fail() -> None:
    raise KeyError("no such thing")


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (too_much, MemoryError, "can't allocate memory"),
        (die, fresh.DiedError, "ended with code 3"),
        (fail, RuntimeError, "KeyError: 'no such thing'"),
    ],
    ids=["memory", "death", "error"],
)
def test_what_goes_wrong_in_a_fresh_process(
    function: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        fresh.in_fresh_process(function)


class Fake:
    """Outcomes without a run: linear time for MUSE, quadratic for attention."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Case]] = []
        self.interrupt_after = math.inf
        self.results: dict[str, float] = {}
        self.spread = 0.01

    def __call__(self, name: str, case: Case, settings: Settings) -> timing.Outcome:
        if len(self.asked) >= self.interrupt_after:
            raise KeyboardInterrupt
        self.asked.append((name, case))
        quadratic = name.startswith("attention")
        seconds = 2e-6 * case.tokens**2 if quadratic else 1e-5 * case.tokens
        if name == "attention-plain" and case.frames == 8:
            raise MemoryError("you tried to allocate 1 byte")
        low, high = seconds * (1 - self.spread), seconds * (1 + self.spread)
        result = [self.results.get(name, 1.0)]
        return timing.Outcome(seconds, low, high, 5, 1000 * case.tokens, 1, 10, result)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    made = Fake()
    monkeypatch.setattr(rows, "_outcome", made)
    monkeypatch.setattr(rows, "count", lambda head, case, dim: 10 * case.tokens)
    monkeypatch.setattr(rows, "against_definition", lambda head, settings: None)
    return made


HEADS = ["--heads", "muse-torch", "attention-flash", "attention-plain"]
RUN = [*SMALL, *HEADS, "--frames", "2", "4", "8", "40"]


def test_an_interrupted_run_goes_on_where_it_was(
    fake: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "heads.json"
    fake.interrupt_after = 5
    assert main([*RUN, "--json", str(target)]) == 130
    assert f"5 rows are kept in {target}" in capsys.readouterr().err
    kept = json.loads(target.read_text())["rows"]
    assert len(kept) == 5
    before, fake.asked, fake.interrupt_after = fake.asked, [], math.inf
    assert main([*RUN, "--json", str(target)]) == 0
    figures = json.loads(target.read_text())
    assert figures["rows"][:5] == kept and len(figures["rows"]) == 2 * 4 * 3
    assert not set(before) & set(fake.asked)
    fake.asked = []
    assert main([*RUN, "--json", str(target)]) == 0
    # What did not fit is not asked for again either.
    assert fake.asked == [] and json.loads(target.read_text())["rows"] == figures["rows"]


def test_rows_of_a_busy_machine_say_so_and_are_measured_again(
    fake: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "heads.json"
    fake.spread = 0.06  # the quartiles are 12 % apart
    assert main([*RUN, "--json", str(target)]) == 0
    assert all(row["busy"] for row in json.loads(target.read_text())["rows"] if "busy" in row)
    assert capsys.readouterr().out.count("busy machine") > 20
    fake.spread, fake.asked = 0.01, []
    assert main([*RUN, "--json", str(target)]) == 0
    measured = [row for row in json.loads(target.read_text())["rows"] if "busy" in row]
    assert len(fake.asked) == len(measured) and not any(row["busy"] for row in measured)


@pytest.mark.parametrize(
    ("low", "high", "runs", "busy"),
    [(1.0, 1.09, 4, False), (0.9, 1.1, 4, True), (1.0, 1.0, 2, True)],
)
def test_when_a_machine_counts_as_busy(low: float, high: float, runs: int, busy: bool) -> None:
    assert timing.Outcome(1.0, low, high, runs, 0, 0, 0, []).busy is busy


def test_other_settings_do_not_go_into_the_same_file(
    fake: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "heads.json"
    main([*RUN, "--json", str(target)])
    before = target.read_bytes()
    with pytest.raises(SystemExit):
        main([*RUN, "--dim", "64", "--json", str(target)])
    assert "dim 32, now 64" in capsys.readouterr().err and target.read_bytes() == before
    figures = json.loads(before)
    figures["machine"]["torch"] = "1.0"
    target.write_text(json.dumps(figures))
    with pytest.raises(SystemExit):
        main([*RUN, "--json", str(target)])
    assert "torch '1.0', now" in capsys.readouterr().err


def test_heads_that_cannot_run_are_named(fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--frames", "2"]) == 0
    assert "attention-cudnn does not run here: torch does not offer" in capsys.readouterr().out


def test_rows_without_a_time_say_why(fake: Fake, tmp_path: Path) -> None:
    target = tmp_path / "heads.json"
    assert main([*RUN, "--json", str(target), "--limit", "0.002"]) == 0
    reasons = {
        (row["head"], row["frames"]): row["not_measured"]
        for row in json.loads(target.read_text())["rows"]
        if row["mode"] == "inference" and "not_measured" in row
    }
    assert reasons["attention-plain", 8].startswith("does not fit into this machine's memory: you")
    assert "over the limit of 0.002 s" in reasons["attention-flash", 40]
    assert ("muse-torch", 2) not in reasons


def test_a_head_that_differs_on_the_timed_tokens_gets_no_time(fake: Fake, tmp_path: Path) -> None:
    target = tmp_path / "heads.json"
    fake.results["attention-plain"] = 1.01
    assert main([*RUN, "--json", str(target)]) == 1
    wrong = [row for row in json.loads(target.read_text())["rows"] if row.get("wrong")]
    assert {row["head"] for row in wrong} == {"attention-plain"}
    assert all("seconds" not in row for row in wrong)
    assert "against attention-flash the result differs by" in wrong[0]["not_measured"]


def test_a_head_that_differs_from_its_definition_is_not_run(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "against_definition", lambda head, _: "it differs by 1")
    target = tmp_path / "heads.json"
    assert main([*RUN, "--json", str(target)]) == 1
    assert fake.asked == []
    reasons = {row["not_measured"] for row in json.loads(target.read_text())["rows"]}
    assert reasons == {"against its definition it differs by 1"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--preset", "slow"], "invalid choice: 'slow'"),
        (["--frames", "0"], "expected a positive whole number, got '0'"),
        (["--batch", "two"], "expected a positive whole number, got 'two'"),
        (["--grid", "1"], "sides of at least 2 patches, such as 7 or 7x14, got '1'"),
        (["--grid", "7x7x7"], "got '7x7x7'"),
        (["--limit", "-1"], "expected seconds above 0, got '-1'"),
        (["--dim", "96"], "expected an even width up to 64 or a multiple of 64"),
        (["--heads", "muse-fast"], "unknown head 'muse-fast', expected some of muse-numba"),
        (["--heads", "attention-cudnn"], "attention-cudnn cannot run here: torch does not offer"),
        (["--json", "no/such/heads.json"], "the folder no/such is not there"),
        (["--plot", "no/such/pictures"], "the folder no/such is not there"),
        (["--json", "."], "is a folder, expected a file"),
    ],
)
def test_bad_options(
    options: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(["--device", "cpu", *options])
    assert stopped.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--device", "cuda"])
    assert "torch finds no GPU" in capsys.readouterr().err


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_presets(preset: Settings) -> None:
    assert {7, 12} & {*preset.frames, preset.grids[0][0]} == {7, 12}
    assert set(preset.leave_out) <= set(ON_CPU)
    cases = list(preset.cases())
    count = len(preset.frames) * len(preset.grids) * len(preset.batches)
    assert len(cases) == len(set(cases)) == 2 * count


@pytest.mark.parametrize("readme", report.SECTIONS)
def test_readmes_show_the_kept_figures(readme: str) -> None:
    text = (ROOT / readme).read_text(encoding="utf-8")
    assert report.with_sections(readme) == text, "run python -m benchmarks.report"


def test_the_kept_table_is_of_the_kept_figures() -> None:
    figures = json.loads((report.RESULTS / "heads.json").read_text(encoding="utf-8"))
    table = (report.RESULTS / "heads.md").read_text(encoding="utf-8")
    assert report.markdown(figures) == table, "run python -m benchmarks.report"


def test_sections_are_made_where_there_are_figures(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    results, readme = tmp_path / "benchmarks" / "results", tmp_path / "README.md"
    of_patches = tmp_path / "examples" / "README.md"
    of_patches.parent.mkdir()
    monkeypatch.setattr(report, "ROOT", tmp_path)
    monkeypatch.setattr(report, "RESULTS", results)
    empty = {}
    for path, names in {readme: report.SECTIONS["README.md"], of_patches: ["heads.json"]}.items():
        marks = "".join(f"<!-- {name} -->\n<!-- end of {name} -->\n" for name in names)
        empty[path] = f"above\n{marks}below\n"
        path.write_text(empty[path])
    report.main()
    assert {path: path.read_text() for path in empty} == empty

    assert main([*RUN, "--json", str(results / "heads.json")]) == 0
    report.main()
    once = readme.read_text()
    report.main()
    assert readme.read_text() == once and once.startswith("above\n") and once.endswith("below\n")
    made = {path.name for path in results.iterdir()}
    assert made == {"heads.json", "heads.md", "time.png", "memory.png"}
    whole = (results / "heads.md").read_text()
    # 40 frames of 5 tokens: 2 ms, linear, against 80 ms, quadratic.
    assert "40 frames of 2x2 patches, batch 1:" in once
    assert "| MUSE, `torch` | 10 | 2.0 ± 0.02 |" in once
    assert "| MUSE, `torch` | 1.00 ± 0.00 | 1.00 ± 0.00 | 1.00 ± 0.00 | 1.00 ± 0.00 |" in whole
    assert "| attention, SDPA flash | 2.00 ± 0.00 |" in whole
    assert "| time | none within the measured range (10 to 200 tokens): cheaper" in once
    shown = of_patches.read_text()
    assert shown.startswith("above\n") and "Measured by `python -m benchmarks" in shown
    for text in (once, shown):
        assert "| 1,000 x 1,000 | 111,556 | 334 |" in text and "| measured |" in text
    readme.write_text("no marks\n")
    with pytest.raises(ValueError, match=r"must have the marks <!-- head\.json -->"):
        report.main()

"""Rows of `python -m benchmarks`: interrupted, busy, wrong and too slow ones."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.heads import rows
from tests.support.small_benchmarks import RUN, SMALL, FakeMeasure


def test_an_interrupted_run_goes_on_where_it_was(
    fake: FakeMeasure, tmp_path: Path, capsys: pytest.CaptureFixture[str]
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
    fake: FakeMeasure, tmp_path: Path, capsys: pytest.CaptureFixture[str]
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


def test_other_settings_do_not_go_into_the_same_file(
    fake: FakeMeasure, tmp_path: Path, capsys: pytest.CaptureFixture[str]
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


def test_heads_that_cannot_run_are_named(
    fake: FakeMeasure, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*SMALL, "--frames", "2"]) == 0
    assert "attention-cudnn does not run here: torch does not offer" in capsys.readouterr().out


def test_rows_without_a_time_say_why(fake: FakeMeasure, tmp_path: Path) -> None:
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


def test_a_head_that_differs_on_the_timed_tokens_gets_no_time(
    fake: FakeMeasure, tmp_path: Path
) -> None:
    target = tmp_path / "heads.json"
    fake.results["attention-plain"] = 1.01
    assert main([*RUN, "--json", str(target)]) == 1
    wrong = [row for row in json.loads(target.read_text())["rows"] if row.get("wrong")]
    assert {row["head"] for row in wrong} == {"attention-plain"}
    assert all("seconds" not in row for row in wrong)
    assert "against attention-flash the result differs by" in wrong[0]["not_measured"]


def test_a_head_that_differs_from_its_definition_is_not_run(
    fake: FakeMeasure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "against_definition", lambda head, _: "it differs by 1")
    target = tmp_path / "heads.json"
    assert main([*RUN, "--json", str(target)]) == 1
    assert fake.asked == []
    reasons = {row["not_measured"] for row in json.loads(target.read_text())["rows"]}
    assert reasons == {"against its definition it differs by 1"}

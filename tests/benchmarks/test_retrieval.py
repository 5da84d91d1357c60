"""The benchmark of search from coarse to fine, on sizes that take no time."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import measure
from benchmarks.retrieval import checks, rounding, subjects, table
from benchmarks.retrieval.__main__ import main
from benchmarks.retrieval.baselines import XClip
from benchmarks.retrieval.corpus import Corpus, Shape, feature_rows, in_bytes, in_parts

SHAPE = Shape(frames=3, patches=4, dim=64, words=5, distinct=60, distinct_patches=20, queries=6)


def test_it_runs_and_prints_what_it_keeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    monkeypatch.setattr(measure, "MIN_BLOCK_S", 0.0)  # each search once a round
    target = tmp_path / "figures.json"
    options = ["--repeats", "1", "--json", str(target), "--sizes"]
    threads = torch.get_num_threads()
    main([*options, "20", "150"], SHAPE)
    printed = capsys.readouterr().out
    assert torch.get_num_threads() == threads
    figures = json.loads(target.read_text())
    assert {row["videos"] for row in figures["rows"]} == {20, 150}
    assert {row["threads"] for row in figures["rows"]} == {1}
    assert subjects.FAISS in figures["not_here"] and subjects.FAISS in printed
    for row in figures["rows"]:
        assert row["query_ms"]["minimum"] > 0 and f"| {row['subject']} |" in printed
        if row["videos"] == 20 and row["subject"] == subjects.FRAMES:  # all are candidates
            assert row["same_first"] == 1
        if row["videos"] == 150 and "patches" in row["subject"]:  # reused: without a meaning
            assert row["same_first"] is None and row["right_first"] is None
    whole, close = figures["in_bytes"]  # where all videos have patches of their own
    assert (whole["videos"], whole["alike"]) == (20, 0) and close["alike"] > 0
    assert "| 50, 90% alike |" in printed
    main([*options, "20"], SHAPE)
    assert json.loads(target.read_text()) == figures, "what is kept is not measured again"


def test_a_wrong_scorer_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = XClip.scores

    def transposed(self: XClip, *arguments: object) -> torch.Tensor:
        kept = self.matrices
        self.matrices = kept | {"local": kept["local"].T}
        scores = right(self, *arguments)  # type: ignore[arg-type]
        self.matrices = kept
        return scores

    monkeypatch.setattr(XClip, "scores", transposed)
    with pytest.raises(SystemExit, match="X-CLIP's scorer"):
        checks.check(SHAPE)


def test_features_are_reused_in_turn() -> None:
    corpus = Corpus(150, SHAPE)
    assert len(corpus.frames) == 60 and len(corpus.patches) == 20 and len(corpus.vectors) == 150
    rows = feature_rows(150, frames=corpus.frames, patches=corpus.patches)[[149, 3]]
    assert torch.equal(rows["frames"][0], corpus.frames[29])
    assert torch.equal(rows["patches"][0], corpus.patches[9])
    parts = list(in_parts(150, corpus.frames, corpus.patches))
    frames, patches = (torch.cat(part) for part in zip(*parts, strict=True))
    assert torch.equal(frames, torch.cat([corpus.frames, corpus.frames, corpus.frames[:30]]))
    assert torch.equal(patches, corpus.patches.repeat(8, 1, 1, 1)[:150])


@torch.no_grad()
def test_coarser_numbers_cost_order() -> None:
    """The same patches in other numbers change nothing; with 15 values an entry the order moves."""
    corpus = rounding.near_duplicates(SHAPE)
    assert len(corpus.vectors) == len(corpus.text) == subjects.CANDIDATES
    same = rounding.order_in_bytes(corpus, 2 * corpus.patches)
    assert same["same_ten"] == 1 and same["places_off"] == 0
    assert same["right_first"]["half"] == same["right_first"]["int8"]
    fine, coarse = (
        rounding.order_in_bytes(corpus, numbers)
        for numbers in (None, (in_bytes(corpus.patches) / 18).round().to(torch.int8))
    )
    assert 0 < fine["places_off"] < coarse["places_off"]
    assert coarse["same_ten"] < fine["same_ten"]


def test_near_duplicates_are_alike() -> None:
    corpus, other = rounding.near_duplicates(SHAPE), Corpus(50, SHAPE)
    first, second = corpus.patches[:2].flatten(1).float()
    assert torch.cosine_similarity(first, second, 0) > 0.9
    assert torch.cosine_similarity(*other.patches[:2].flatten(1).float(), 0) < 0.5


def test_operations_are_those_of_the_paper() -> None:
    """EERCF's cost model: 16,205 for MSR-VTT's 1,000 videos with 50 candidates."""
    counts = subjects.operations(Shape(), 1_000)
    assert counts["two, patches"] == pytest.approx(16_205, rel=1e-3)
    assert counts["xclip"] / counts["two, patches"] == pytest.approx(15, abs=0.5)


def test_targets_and_losses_are_named() -> None:
    def row(subject: str, milliseconds: float, busy: bool = False) -> table.Row:
        times = {"median": milliseconds, "minimum": milliseconds}
        own = {"subject": subject, "videos": 3_000, "threads": 1}
        return {**own, "query_ms": times, "busy": busy}

    for busy, mark in ((False, ""), (True, ", busy machine")):
        rows = [row(subjects.FRAMES, 1.0, busy), row(subjects.XCLIP, 60.0)]
        (line,) = table.outcomes(rows)
        assert line.endswith(f"60.0 times faster, target 50: met{mark}")
    lines = list(table.outcomes([row(subjects.FRAMES, 3.0), row(subjects.XCLIP, 2.0)]))
    assert lines[0].endswith("missed") and "loses to X-CLIP's scorer" in lines[1]

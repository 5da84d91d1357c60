"""The ablation: what it switches off changes no result, and rows replace older ones."""

from __future__ import annotations

import functools
import json

import pytest

from muse_adapter.ops import backends

if not backends("cpu")["numba"].available:
    pytest.skip("needs the numba backend", allow_module_level=True)

from benchmarks import ablation


@pytest.fixture(scope="module")
def subjects():
    """Make a small subject of either kind, once: `subjects(training)`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ablation, "SIDES", {170: 4})
        patch.setattr(ablation, "FRAMES", 2)
        patch.setattr(ablation, "DIM", 64)
        yield functools.cache(lambda training: ablation.Subject(170, training=training))


@pytest.mark.slow
@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("name", ablation.WITHOUT)
def test_the_head_without_a_mechanism_computes_the_same(subjects, threads, name, training):
    subject = subjects(training)
    threads(2)
    with ablation.WITHOUT[name]():
        subject.check(name)


@pytest.mark.slow
@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
def test_what_the_head_is_compared_with_runs(subjects, training):
    subjects(training).run_floor()
    subjects(training).run_attention()


def test_a_wrong_head_is_not_timed(subjects, monkeypatch):
    subject = subjects(False)
    wrong = {"the embedding": subject.expected["the embedding"] + 0.01}
    monkeypatch.setattr(subject, "expected", wrong)
    with pytest.raises(SystemExit, match="the embedding differs"):
        subject.check("the head")


def test_rows_replace_those_of_the_same_cell(tmp_path):
    path = tmp_path / "results" / "ablation.json"
    old, new, other = (
        {"cell": cell, "what": "head / floor", "ratio": ratio}
        for cell, ratio in (("a", 1.5), ("a", 1.0), ("b", 2.0))
    )
    ablation.keep(path, [old, other])
    ablation.keep(path, [new])
    assert json.loads(path.read_text())["rows"] == [new, other]

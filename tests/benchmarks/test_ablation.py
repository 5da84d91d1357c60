"""The ablation: what it switches off changes no result, and rows replace older ones."""

from __future__ import annotations

import json

import pytest

from muse_adapter.ops import backends

if not backends("cpu")["numba"].available:
    pytest.skip("needs the numba backend", allow_module_level=True)

from benchmarks import ablation


@pytest.mark.slow
@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("name", ablation.WITHOUT)
def test_the_head_without_a_mechanism_computes_the_same(monkeypatch, threads, name, training):
    monkeypatch.setattr(ablation, "SIDES", {170: 4})
    monkeypatch.setattr(ablation, "FRAMES", 2)
    monkeypatch.setattr(ablation, "DIM", 64)
    subject = ablation.Subject(170, training=training)
    threads(2)
    with ablation.WITHOUT[name]():
        subject.check(name)
    subject.run_floor()
    subject.run_attention()


def test_a_wrong_head_is_not_timed(monkeypatch):
    monkeypatch.setattr(ablation, "SIDES", {170: 4})
    monkeypatch.setattr(ablation, "FRAMES", 2)
    monkeypatch.setattr(ablation, "DIM", 64)
    subject = ablation.Subject(170, training=False)
    subject.expected["the embedding"] += 0.01
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

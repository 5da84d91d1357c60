"""The benchmark of the Triton kernels: floors and checks anywhere, its parts at tiny sizes."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import correctness, floors, kernels, part, published, tests, workload
from benchmarks.gpu.__main__ import LIMITS
from benchmarks.machine import ROOT

SCRIPT = ROOT / "benchmarks" / "gpu_day.sh"


def gpu_day(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the script as a user does."""
    return subprocess.run(
        ["bash", str(SCRIPT), *arguments],
        env={**os.environ, "PYTHON": sys.executable},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_parts_say_what_they_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["scan.py"])
    with pytest.raises(SystemExit, match="needs a GPU"):
        part.run_part(lambda options: iter([]), "")


def test_floors_on_a_gpu_of_round_numbers() -> None:
    rates = {"processors": 100, "clock_hz": 1e9, "copy_bytes_per_s": 1e12}
    size = workload.Sizes(1, 10, 100)
    states = 2 * 10 * 100 * 16
    for training, moved, passes, operations in (
        (True, 2 * 18 * 1000 + 2 * 3 * (2 * 2 * 10 * 16), 2, 15),
        (False, 2 * 7 * 1000 + 2 * (2 * 2 * 10 * 16), 1, 4),
    ):
        found = floors.floors(size, rates, training=training)
        assert found["exponentials"]["seconds"] == pytest.approx(passes * states / 1.6e12)
        assert found["multiply_adds"]["seconds"] == pytest.approx(operations * states / 1.28e13)
        assert found["bytes"]["seconds"] == pytest.approx(moved / 1e12)
        assert f"{moved:,}" in found["bytes"]["arithmetic"]
    around = floors.floors_around(size, rates)
    assert around["gate, forward"]["seconds"] == pytest.approx(14 * 1000 / 1e12)


def test_no_time_is_given_where_results_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    def step(given: dict, backend: str) -> dict:
        return {"y": torch.full((3,), 1.1 if backend == "triton" else 1.0)}

    monkeypatch.setattr(workload, "inputs", lambda *sizes: {"x": torch.ones(1)})
    monkeypatch.setattr(workload, "step", step)
    with pytest.raises(SystemExit, match=r"backend triton: y differs by 1\.7e-01 of"):
        workload.check(workload.TINY, "cpu")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda calls: 1 + 1e-3, "y is off by 1.0e-03, allowed is 5e-05"),
        (lambda calls: float("nan"), "y is off by nan"),
        (lambda calls: 1 + calls * 1e-6, "a second call gives other bits of y"),
    ],
    ids=["value", "nan", "not deterministic"],
)
def test_a_wrong_result_fails_its_case(wrong: Any, message: str) -> None:
    calls = []

    def outcome(run: Any) -> dict:
        calls.append(run.backend)
        factor = wrong(len(calls)) if run.backend == "triton" else 1.0
        return {"y": torch.ones(3, dtype=run.computed) * factor}

    row = correctness.compare(correctness.Case("", outcome, torch.float32), "cpu")
    assert message in row["failed"] and calls == ["triton", "triton", "torch"]


def test_time_by_kernel() -> None:
    a = torch.randn(64, 64)
    found = kernels.seconds_by_kernel(lambda: (a @ a).exp(), "cpu")
    assert found["aten::mm"] > 0 and found["aten::exp"] > 0
    assert sum(found.values()) == pytest.approx(2 * found["all"])


def test_layout_of_mamba_ssm() -> None:
    """There and back; the backward direction's own tensors are flipped in time."""
    given = workload.inputs(workload.TINY, "cpu")
    other = published.published_inputs(given)
    assert other["x"].equal(given["x"].transpose(1, 2))
    assert other["backward B"].equal(given["backward B"].transpose(1, 2).flip(2))
    for name, tensor in other.items():
        assert published._turned(name, tensor, 2).equal(given[name]), name


@pytest.mark.parametrize(
    ("line", "outcome", "test"),
    [
        ("[gw1] [ 50%] PASSED tests/ops/a.py::test[x y] ", "PASSED", "tests/ops/a.py::test[x y]"),
        ("tests/ops/a.py::test[x] FAILED         [ 50%]", "FAILED", "tests/ops/a.py::test[x]"),
        ("tests/ops/a.py::t SKIPPED (needs a GPU) [ 50%]", "SKIPPED", "tests/ops/a.py::t"),
    ],
    ids=["with xdist", "without", "skipped"],
)
def test_lines_of_pytest(line: str, outcome: str, test: str) -> None:
    assert tests.OUTCOME.search(line)[1] == outcome
    assert tests.TEST.search(line)[0].strip() == test
    assert all((ROOT / file).exists() for file in tests.FILES)


@pytest.mark.slow
def test_a_part_that_fails_does_not_stop_the_next(tmp_path: Path) -> None:
    """Without a GPU every part fails; what is in the folder stays."""
    (tmp_path / "gpu_day.json").write_text('{"scan": {"outcome": "done"}}')
    (tmp_path / "logs.txt").write_text("of an earlier run\n")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = gpu_day(tmp_path, str(tmp_path), "environment", "published")
    assert done.returncode == 1 and done.stdout.count("needs a GPU that Triton runs on") == 2
    figures = json.loads((tmp_path / "gpu_day.json").read_text())
    assert figures["scan"] == {"outcome": "done"}
    assert all(
        figures[name]["outcome"] == "failed with exit code 1"
        for name in ("environment", "published")
    )
    assert (tmp_path / "logs.txt").read_text().startswith("of an earlier run\n")


def test_no_part_begins_behind_the_deadline(tmp_path: Path) -> None:
    done = gpu_day(tmp_path, "--total", "1", "out", "scan", "head")
    assert done.returncode == 1 and done.stdout.count("skipped: no time is left") == 2


@pytest.mark.parametrize("arguments", [["scan"], ["out", "scn"]], ids=["no folder", "no part"])
def test_bad_arguments(tmp_path: Path, arguments: list[str]) -> None:
    done = gpu_day(tmp_path, *arguments)
    assert done.returncode == 2 and "expected FOLDER, then some of environment" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow(seconds=20)
def test_parts_in_processes_of_their_own(tmp_path: Path) -> None:
    """Those that compute nothing at tiny sizes; the others are run below, in this process."""
    parts = ["environment", "tests", "published"]
    done = gpu_day(tmp_path, "--tiny", "out", *parts)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "gpu_day.json",
        "logs.txt",
    ]
    figures = json.loads((tmp_path / "out" / "gpu_day.json").read_text())
    assert list(figures) == parts
    assert "===== environment: done" in (tmp_path / "out" / "logs.txt").read_text()
    assert figures["environment"]["rows"][0]["what"].startswith("no GPU")
    for name in parts:
        assert figures[name]["outcome"] == "done" and figures[name]["rows"], name
        assert figures[name]["machine"]["command"].startswith(f"python -m benchmarks.gpu.{name}")
    assert "not_measured" in figures["published"]["rows"][0]


def check_correctness(rows: list[dict[str, Any]]) -> None:
    assert {"head, float32", "head, autocast, bfloat16"} <= {row["what"] for row in rows}


def check_scan(rows: list[dict[str, Any]]) -> None:
    assert rows[0]["seconds"]["training"] > 0 and rows[0]["forward_kernels_s"]["all"] > 0


def check_head(rows: list[dict[str, Any]]) -> None:
    for mixer in ("bimamba", "attention"):
        assert {f"{mixer} training", f"{mixer} inference"} <= set(rows[0]["seconds"])
    assert rows[0]["tokens"] == 5 and rows[0]["training_times_faster"] > 0


def check_compiled(rows: list[dict[str, Any]]) -> None:
    assert [row["times_faster"] > 0 for row in rows] == [True, True]


CHECKS = {
    "correctness": check_correctness,
    "scan": check_scan,
    "head": check_head,
    "compiled": check_compiled,
}


def test_every_part_is_run_here_or_above() -> None:
    """But for `tuning`, which takes a minute."""
    assert {"environment", "tests", "published", "tuning", *CHECKS} == set(LIMITS)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="here the kernels are those of the GPU")
@pytest.mark.parametrize("name", CHECKS)
def test_part(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from muse_adapter.ops.triton_gpu import function

    for constant in ("CHUNK", "SHORTEST"):  # a part changes them for its process
        monkeypatch.setattr(function, constant, getattr(function, constant))
    target = tmp_path / "figures.json"
    monkeypatch.setattr(sys, "argv", [name, "--tiny", "--json", str(target)])
    torch._dynamo.reset()
    importlib.import_module(f"benchmarks.gpu.{name}").main()
    torch._dynamo.reset()
    CHECKS[name](json.loads(target.read_text())["rows"])

"""The benchmark of the Triton kernels: its floors and its check anywhere, its times on a GPU."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: torch finds none")


def test_gpu_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    with pytest.raises(SystemExit, match="needs a GPU"):
        gpu.main()


def test_floors_on_a_gpu_of_round_numbers() -> None:
    about = {"processors": 100, "clock_hz": 1e9, "copy_bytes_per_s": 1e12}
    floors = gpu.floors(1, 10, 100, about)
    states = 2 * 10 * 100 * 16
    assert floors["exponentials"]["seconds"] == pytest.approx(2 * states / 1.6e12)
    assert floors["multiply_adds"]["seconds"] == pytest.approx(15 * states / 1.28e13)
    moved = 2 * 18 * 1000 + 2 * 3 * (2 * 2 * 10 * 16)
    assert floors["bytes"]["seconds"] == pytest.approx(moved / 1e12)
    assert f"{moved:,}" in floors["bytes"]["arithmetic"]


def test_gpu_gives_no_time_where_results_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    def step(given: dict, backend: str) -> dict:
        return {"y": torch.full((3,), 1.1 if backend == "triton" else 1.0)}

    monkeypatch.setattr(gpu, "inputs", lambda *sizes: {"x": torch.ones(1)})
    monkeypatch.setattr(gpu, "step", step)
    with pytest.raises(SystemExit, match=r"backend triton: y differs by 1\.7e-01 of"):
        gpu.check(argparse.Namespace(batch=1, length=1, dim=1))


@on_gpu
def test_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "figures.json"
    sizes = ["--batch", "1", "--length", "100", "--dim", "64", "--repeats", "1", "--no-heads"]
    monkeypatch.setattr(sys, "argv", ["gpu.py", *sizes, "--json", str(target)])
    gpu.main()
    figures = json.loads(target.read_text())
    assert figures["scan"]["seconds"]["triton"] > 0 and figures["machine"]["gpu"]

"""The benchmark beside a busy process: its workers on a small head, and its table."""

from __future__ import annotations

import json
import threading
from multiprocessing import Pipe
from pathlib import Path

import pytest
import torch

from muse_adapter.ops import FreeThreads, backends

if not backends("cpu")["numba"].available:
    pytest.skip("needs the numba backend", allow_module_level=True)

from benchmarks import ablation, shared_machine


class FakeWorker:
    """Takes a second for a floor, two for a head, three for one with fewer threads."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment

    def wait_until_ready(self) -> None:
        pass

    def seconds(self, step: str) -> float:
        return {"floor": 1.0, "head": 2.0}.get(step, 3.0)

    def stop(self) -> None:
        pass


def test_rows_of_all_settings_are_kept_and_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(shared_machine, "Worker", FakeWorker)
    target = tmp_path / "shared_machine.json"
    for load in ("busy", "quiet"):
        given = ["--machine", load, "--repeats", "2", "--json", str(target)]
        shared_machine.main(given)
    table = shared_machine.markdown_table(json.loads(target.read_text()))
    half = "2.00 (2.00 to 2.00) | 1.00 | 2.00"
    less = "3.00 (3.00 to 3.00) | |"
    assert f"| 1 thread | {half} | {half} |" in table
    assert f"| 2 threads, `GOMP_SPINCOUNT=0` | {half} | {half} |" in table
    assert f"| 2 threads, torch on 1 | {less} | {less} |" in table
    assert f"| 2 threads, `FreeThreads` | {less} | {less} |" in table
    assert table.count("\n| ") == 1 + len(shared_machine.SETTINGS) + 3


@pytest.mark.slow(seconds=5)
def test_a_worker_times_every_step_of_a_checked_head(
    monkeypatch: pytest.MonkeyPatch, threads: object
) -> None:
    monkeypatch.setattr(ablation, "SIDES", {shared_machine.TOKENS: 4})
    monkeypatch.setattr(ablation, "FRAMES", 2)
    monkeypatch.setattr(ablation, "DIM", 64)
    monkeypatch.setattr(shared_machine, "LOOK_S", 0.1)
    ours, theirs = Pipe()
    thread = threading.Thread(target=shared_machine._serve, args=(theirs,))
    thread.start()
    assert ours.recv() == ""
    for step in shared_machine.STEPS:
        ours.send(step)
        assert ours.recv() > 0
    ours.close()
    thread.join()


def test_threads_are_given_up_after_a_step_and_come_back(threads, monkeypatch) -> None:
    threads(2)
    seen: list[int] = []
    monkeypatch.setattr(shared_machine, "LOOK_S", 0.05)
    monkeypatch.setattr(FreeThreads, "adjust", lambda _: torch.set_num_threads(1))
    with shared_machine.free_threads(lambda: seen.append(torch.get_num_threads())):
        inside = torch.get_num_threads()
    assert set(seen) == {2} and inside == 1 and torch.get_num_threads() == 2


def test_torch_alone_has_one_thread(threads) -> None:
    threads(2)
    inside = []
    with shared_machine.torch_on_one_thread():
        inside.append(torch.get_num_threads())  # what the kernels ask
        assert "at::get_num_threads() : 1" in torch.__config__.parallel_info()
    assert inside == [2] and torch.get_num_threads() == 2

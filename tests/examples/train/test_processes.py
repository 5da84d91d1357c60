"""What fails on one process fails on all, is reported once, and all read the same folders."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sentence_transformers", reason="needs sentence-transformers")
pytest.importorskip("datasets", reason="needs datasets: muse-adapter[train]")

from examples.train import __main__ as command
from examples.train import processes, trainer
from examples.train.folder import LeftOut, keep_run
from examples.train.processes import ReportedError, on_all, same_on_all
from examples.train.settings import Execution, RunSettings
from examples.train.trainer import RetrievalTrainer, SentenceTransformerTrainer

SCRIPT = Path(command.__file__).with_name("run.sh")


def fail() -> None:
    raise OSError("disk full")


@pytest.mark.parametrize(
    ("rank", "work", "error", "message"),
    [
        (0, fail, OSError, "disk full"),
        (0, lambda: None, RuntimeError, "process 1 failed: OSError: disk full"),
        (1, fail, ReportedError, "disk full"),
        (2, lambda: None, ReportedError, "process 1 failed"),
    ],
    ids=["first, own", "first, another's", "another, own", "another, another's"],
)
def test_an_error_is_reported_by_the_first_process(
    rank: int, work: Any, error: type, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", str(rank))
    others = [None, "OSError: disk full", None]
    monkeypatch.setattr(
        processes, "gather", lambda own: [own if i == rank else o for i, o in enumerate(others)]
    )
    with pytest.raises(error, match=message):
        on_all(work)


def test_folders_that_are_not_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint that one process alone finds: it would go on from it without the others."""
    assert same_on_all(lambda: "checkpoint-2") == "checkpoint-2"
    answers = iter([[None, None], ["checkpoint-2", None]])
    monkeypatch.setattr(processes, "gather", lambda own: next(answers))
    with pytest.raises(
        ValueError, match=r"process 1 does not find .* a disk that all processes sh"
    ):
        same_on_all(lambda: "checkpoint-2")


def test_a_checkpoint_is_marked_once_all_have_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trainer writes the marker behind the random numbers."""
    calls: list[str] = []
    monkeypatch.setattr(
        SentenceTransformerTrainer, "_save_rng_state", lambda self, folder: calls.append(folder)
    )

    def on_all_and_wait(work: Any) -> None:
        work()
        calls.append("all")

    monkeypatch.setattr(trainer, "on_all", on_all_and_wait)
    RetrievalTrainer.__new__(RetrievalTrainer)._save_rng_state("folder")
    assert calls == ["folder", "all"]


@pytest.mark.parametrize("rank", [0, 1])
def test_one_process_prints(
    rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where the command is wrong, and where the run was finished before."""
    monkeypatch.setenv("RANK", str(rank))
    places = {"annotations": "a", "videos": "v", "model": "m"}
    keep_run(RunSettings.of("msvd", **places), Execution(output=tmp_path), LeftOut([], {}))
    (tmp_path / "results.json").write_text('{"test": {"t2v_R@1": 50.0}, "tested": "best"}')
    options = [part for name, place in places.items() for part in (f"--{name}", place)]
    arguments = ["msvd", *options, "--output", str(tmp_path)]
    assert command.main(arguments) == 0
    assert command.main([*arguments, "--epochs", "0"]) == 2
    assert command.main([*arguments, "--lr", "1"]) == 2
    with pytest.raises(SystemExit):
        command.main([*arguments, "--unknown"])
    printed = capsys.readouterr()
    if rank > 0:
        assert (printed.out, printed.err) == ("", "")
        return
    assert "test, best epoch:" in printed.out and "50.00" in printed.out
    for message in ("epochs must be at least 1", "holds a run with lr", "--unknown"):
        assert message in printed.err


@pytest.mark.skipif(os.name != "posix", reason="a script of bash")
@pytest.mark.parametrize(
    ("visible", "gpus", "expected"),
    [
        (None, "GPU 0: H200 (UUID: GPU-1)\n  MIG 1g.18gb (UUID: MIG-1)\nGPU 1: H200", "2"),
        (None, "No devices were found", ""),
        ("0,2,3", "GPU 0: H200", "3"),
        ("1", "GPU 0: H200\nGPU 1: H200", ""),
        ("", "GPU 0: H200\nGPU 1: H200", ""),
    ],
    ids=["two", "none", "three chosen", "one chosen", "hidden"],
)
def test_the_script_starts_a_process_for_each_gpu(
    visible: str | None, gpus: str, expected: str, tmp_path: Path
) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "run.sh").write_text(SCRIPT.read_text())
    for name, content in {
        "quickstart/run.sh": 'echo "${LAUNCH:-}"',
        "bin/nvidia-smi": f"echo '{gpus}'",
    }.items():
        file = tmp_path / name
        file.parent.mkdir()
        file.write_text(f"#!/usr/bin/env bash\n{content}\n")
        file.chmod(0o755)
    environment = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    if visible is not None:
        environment["CUDA_VISIBLE_DEVICES"] = visible
    said = subprocess.run(
        ["bash", tmp_path / "train" / "run.sh"],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    start = f"torch.distributed.run --standalone --nproc-per-node {expected} -m\n"
    assert said == (start if expected else "\n")

"""The scripts that train a patched checkout: their arguments, and torchrun itself."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from muse_adapter import PAPER_SETTINGS

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SCRIPTS = {"clip4clip": "main_task_retrieval.py", "xclip": "main_xclip.py"}
NAMES = {"msrvtt": "msrvtt", "didemo": "didemo", "activity": "activitynet"}

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="run.sh needs bash")


@pytest.fixture(params=SCRIPTS)
def checkout(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    """A folder whose main script writes down what it was given."""
    folder = tmp_path / "a checkout"
    folder.mkdir()
    (folder / SCRIPTS[request.param]).write_text(
        "# muse_adapter.clip4clip.regroup\n"
        "import json, os, sys\n"
        "name = 'seen.' + os.environ.get('RANK', '0') + '.json'\n"
        "json.dump({'argv': sys.argv[1:], 'rank': os.environ['LOCAL_RANK']}, open(name, 'w'))\n"
    )
    return request.param, folder


def run(kind: str, folder: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """`run.sh DATASET CHECKOUT DATA OUTPUT ...`, with this Python."""
    bin_folder = folder.parent / "bin"
    bin_folder.mkdir(exist_ok=True)
    if not (bin_folder / "python").exists():
        (bin_folder / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        (bin_folder / "python").chmod(0o755)
    environment = {**os.environ, "PATH": f"{bin_folder}:{os.environ['PATH']}", **more}
    return subprocess.run(
        ["bash", str(EXAMPLES / f"{kind}_patch" / "run.sh"), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def options(argv: list[str]) -> dict[str, str]:
    """Option -> value; the last one counts, as for argparse."""
    following = [*argv[1:], "--"]
    return {a: b for a, b in zip(argv, following, strict=True) if a.startswith("--")}


@pytest.mark.parametrize("dataset", NAMES)
def test_the_papers_settings(checkout: tuple[str, Path], dataset: str, tmp_path: Path) -> None:
    kind, folder = checkout
    # A torchrun that runs its command once: the settings are what counts here.
    fake = tmp_path / "bin"
    fake.mkdir()
    (fake / "python").write_text(
        f'#!/bin/bash\nif [ "$1" != -m ]; then exec "{sys.executable}" "$@"; fi\n'
        'while [ "$1" != bash ]; do shift; done\nLOCAL_RANK=0 exec "$@"\n'
    )
    (fake / "python").chmod(0o755)
    data, output = tmp_path / "my data", tmp_path / "out"
    data.mkdir()
    done = run(kind, folder, dataset, str(folder), str(data), str(output), GPUS="1")
    assert done.returncode == 0, done.stderr
    seen = json.loads((folder / "seen.0.json").read_text())
    given, paper = options(seen["argv"]), PAPER_SETTINGS[NAMES[dataset]]
    assert "--muse" in given
    assert int(given["--max_frames"]) == paper.frames
    assert int(given["--max_words"]) == paper.words
    assert float(given["--lr"]) == paper.lr
    assert float(given["--coef_lr"]) == paper.backbone_lr_scale
    assert float(given["--muse_lr_scale"]) == paper.head_lr_scale
    assert float(given["--warmup_proportion"]) == paper.warmup
    assert paper.batch_size in (None, int(given["--batch_size"]))
    assert paper.epochs in (None, int(given["--epochs"]))
    assert given["--datatype"] == dataset
    assert given["--data_path"].startswith(str(data))
    assert given["--output_dir"] == str(output)
    assert given["--local_rank"] == "0"


@pytest.mark.slow
def test_torchrun_gives_each_process_its_rank(checkout: tuple[str, Path], tmp_path: Path) -> None:
    kind, folder = checkout
    arguments = ["didemo", str(folder), str(tmp_path), str(tmp_path / "out"), "--lr", "5e-5"]
    done = run(kind, folder, *arguments, GPUS="2", EPOCHS="3", BATCH_SIZE="16")
    assert done.returncode == 0, done.stderr
    for rank in ("0", "1"):
        seen = json.loads((folder / f"seen.{rank}.json").read_text())
        assert options(seen["argv"])["--local_rank"] == rank == seen["rank"]
        given = options(seen["argv"])
        assert (given["--lr"], given["--epochs"], given["--batch_size"]) == ("5e-5", "3", "16")


@pytest.mark.parametrize(
    "arguments", [[], ["vatex", ".", ".", "out"]], ids=["nothing", "unknown data"]
)
def test_usage(checkout: tuple[str, Path], arguments: list[str]) -> None:
    kind, folder = checkout
    done = subprocess.run(
        ["bash", str(EXAMPLES / f"{kind}_patch" / "run.sh"), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert "run.sh msrvtt|didemo|activity CHECKOUT DATA OUTPUT" in done.stderr


def test_an_unpatched_checkout_is_named(checkout: tuple[str, Path], tmp_path: Path) -> None:
    kind, folder = checkout
    (folder / SCRIPTS[kind]).write_text("pass\n")
    done = run(kind, folder, "msrvtt", str(folder), str(tmp_path), str(tmp_path / "out"))
    assert done.returncode == 1
    assert f"muse-adapter patch {kind} {folder} --write" in done.stderr


@pytest.mark.parametrize("kind", SCRIPTS)
def test_the_readme_shows_the_lines_of_the_patch(kind: str, tmp_path: Path) -> None:
    from muse_adapter.patching import HOSTS, make_plan
    from tests.support.hosts import make_host

    host = make_host(tmp_path, kind)
    # The variable's name in the real scripts, where the look-alike has a shorter one.
    text = (EXAMPLES / f"{kind}_patch" / "README.md").read_text()
    text = text.replace("optimizer_grouped_parameters", "groups")
    table = (EXAMPLES / "README.md").read_text().replace("optimizer_grouped_parameters", "groups")
    for change in make_plan(host.path, HOSTS[kind]).changes:
        for block in change.expected:
            assert block.code[0] in text
            assert f"`{block.code[0]}`" in table

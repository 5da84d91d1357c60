"""What the package says about itself, and what the wheel holds."""

from __future__ import annotations

import configparser
import email
import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

import muse_adapter
from muse_adapter.version import VERSION

ROOT = Path(__file__).resolve().parent.parent

EXTRAS = {
    "cpu": {"numba", "numpy"},
    "triton": {"triton"},
    "mamba": {"mamba-ssm", "causal-conv1d"},
    "hub": {"safetensors", "numpy", "huggingface-hub"},
    "video": {"av", "numpy"},
    "prvr": {"h5py", "numpy"},
    "search": {"muse-adapter", "sentence-transformers", "transformers", "pillow"},
    "bench": {"matplotlib", "tqdm"},
    "docs": {"sphinx", "myst-parser", "pydata-sphinx-theme"},
}
CORE = {"torch>=2.6", "einops"}
# In the version that fits the machine's torch (which, for GPUs, asks for its triton) or compiler.
UNPINNED = {"triton", "mamba-ssm", "causal-conv1d", "muse-adapter"}


@pytest.fixture(scope="module")
def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def distribution_name(requirement: str) -> str:
    return re.split(r"[\s\[<>=!~;]", requirement)[0].lower().replace("_", "-")


def test_core_requirements(setup_cfg: configparser.ConfigParser) -> None:
    assert set(lines(setup_cfg["options"]["install_requires"])) == CORE
    assert setup_cfg["options"]["python_requires"] == ">=3.10"


@pytest.mark.parametrize("extra", EXTRAS)
def test_extras(setup_cfg: configparser.ConfigParser, extra: str) -> None:
    requirements = lines(setup_cfg["options.extras_require"][extra])
    assert {distribution_name(line) for line in requirements} == EXTRAS[extra]


def test_messages_name_extras_that_exist(setup_cfg: configparser.ConfigParser) -> None:
    named = {}
    for path in (ROOT / "muse_adapter").rglob("*.py"):
        for names in re.findall(r"muse-adapter\[([\w, -]+)\]", path.read_text(encoding="utf-8")):
            named.update({name.strip(): path.name for name in names.split(",")})
    assert named
    assert set(named) <= set(setup_cfg["options.extras_require"]), named


def test_one_version_everywhere(setup_cfg: configparser.ConfigParser) -> None:
    assert setup_cfg["metadata"]["version"] == "attr: muse_adapter.version.VERSION"
    assert muse_adapter.__version__ == VERSION
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r"^version: (.+)$", citation, re.MULTILINE)[1] == VERSION


def test_metadata_stands_in_setup_cfg_alone(setup_cfg: configparser.ConfigParser) -> None:
    assert setup_cfg["metadata"]["name"] == "muse-adapter"
    assert setup_cfg["metadata"]["license"] == "MIT"
    assert not (ROOT / "setup.py").exists()
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    tables = set(re.findall(r"^\[+([\w-]+)", pyproject, re.MULTILINE))
    assert tables == {"build-system", "tool"}


def test_constraints_pin_what_is_installed_here(setup_cfg: configparser.ConfigParser) -> None:
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    pinned = {}
    for line in lines(text):
        if not line.startswith("#"):
            pin = re.fullmatch(r"([a-z0-9-]+)==([\w.]+)(; python_version >= \"3.\d+\")?", line)
            assert pin, f"expected 'name==version', optionally for a Python, got {line!r}"
            pinned[pin[1]] = pin[2]
    assert pinned["torch"] == "2.13.0"
    options = setup_cfg["options"], setup_cfg["options.extras_require"]
    listed = [options[0]["install_requires"], *options[1].values()]
    wanted = {distribution_name(line) for text in listed for line in lines(text)}
    libraries = (ROOT / "tests" / "backbone-libraries.txt").read_text(encoding="utf-8")
    wanted |= {distribution_name(line) for line in lines(libraries) if not line.startswith("#")}
    assert wanted - UNPINNED <= set(pinned)
    assert not UNPINNED & set(pinned), "pip must choose these for the torch it installs"


def test_the_workflow_runs_every_stage_and_every_python(
    setup_cfg: configparser.ConfigParser,
) -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    stages = re.search(r"^all=\((.*)\)$", script, re.MULTILINE)[1].split()
    pinned, matrix = workflow.split("  matrix:\n", 1)
    calls = re.findall(r"run: \.ci/run (.*)", pinned)
    assert " ".join(calls).split() == stages

    classifiers = setup_cfg["metadata"]["classifiers"]
    supported = set(re.findall(r"Python :: (3\.\d+)", classifiers))
    entries = re.findall(r'python: "([\d.]+)", torch: "([^"]*)"', matrix)
    assert {python for python, _ in entries} == supported
    assert {python for python, torch in entries if torch == "torch torchvision"} == supported
    oldest = re.search(r"torch>=([\d.]+)", setup_cfg["options"]["install_requires"])[1]
    assert any(torch.startswith(f"torch=={oldest}.*") for _, torch in entries)


def test_every_folder_of_the_package_is_a_package() -> None:
    folders = {path.parent for path in (ROOT / "muse_adapter").rglob("*.py")}
    assert not [folder for folder in folders if not (folder / "__init__.py").is_file()]


def test_installed_metadata() -> None:
    try:
        installed = metadata.distribution("muse-adapter")
    except metadata.PackageNotFoundError:
        pytest.skip("the checkout is not installed: pip install -e .")
    assert installed.version == VERSION
    required = [line for line in installed.requires or [] if "extra ==" not in line]
    assert set(required) == CORE
    scripts = {entry.name: entry.value for entry in installed.entry_points}
    assert scripts == {"muse-adapter": "muse_adapter.__main__:main"}


@pytest.mark.slow
def test_wheel_is_pure_and_holds_the_package_alone(tmp_path: Path) -> None:
    pytest.importorskip(
        "setuptools", reason="building the wheel without a network needs setuptools"
    )
    source = tmp_path / "source"
    source.mkdir()
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("muse_adapter", "tests", "examples", "benchmarks"):
        ignored = shutil.ignore_patterns("__pycache__", "golden")
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    done = subprocess.run(
        [*command, "--wheel-dir", str(tmp_path), str(source)],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr

    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name == f"muse_adapter-{VERSION}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        info = f"muse_adapter-{VERSION}.dist-info"
        tags = email.message_from_bytes(archive.read(f"{info}/WHEEL"))
        about = email.message_from_bytes(archive.read(f"{info}/METADATA"))
        scripts = archive.read(f"{info}/entry_points.txt").decode()
    assert tags["Root-Is-Purelib"] == "true"
    assert {name.partition("/")[0] for name in names} == {"muse_adapter", info}
    expected = {str(path.relative_to(ROOT)) for path in (ROOT / "muse_adapter").rglob("*.py")}
    held = {name for name in names if name.startswith("muse_adapter/")}
    data = {"muse_adapter/py.typed", "muse_adapter/sentence_transformers/model_card.md"}
    assert held == expected | data
    assert f"{info}/licenses/LICENSE" in names
    required = [line for line in about.get_all("Requires-Dist") if "extra ==" not in line]
    assert set(required) == CORE
    assert "muse-adapter = muse_adapter.__main__:main" in scripts


def test_a_failed_installation_leaves_no_process(tmp_path: Path) -> None:
    """`tests/run.sh` waits for the installation in the background, and ends as the other one."""
    python, done = tmp_path / "bin" / "python", tmp_path / "done"
    python.parent.mkdir()
    python.write_text(
        f"""#!/bin/sh
case "$*" in
    *--target*) sleep 0.3; touch {done} ;;
    *--editable*) exit 3 ;;
esac
"""
    )
    python.chmod(0o755)
    environment = os.environ | {"PYTHON": sys.executable, "VENV": str(tmp_path), "TORCH_INDEX": ""}
    # No pipes, on whose end `subprocess.run` would wait.
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    result = subprocess.run([ROOT / "tests" / "run.sh"], env=environment, **quiet)
    assert result.returncode == 3 and done.exists()

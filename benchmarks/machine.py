"""What a figure must be read with: machine, versions, sources, date and command."""

from __future__ import annotations

import datetime
import hashlib
import json
import platform
import shlex
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from muse_adapter import __version__
from muse_adapter.files import write_whole

ROOT = Path(__file__).resolve().parent.parent


def machine(device: str = "cpu") -> dict[str, Any]:
    """Describe the machine, the versions and sources that run, and this command.

    Args:
        device: "cpu" or "cuda", whose GPU is named too.
    """
    found = {
        "processor": _processor(),
        "vectors": torch.backends.cpu.get_cpu_capability(),  # a name may stand for several kinds
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "muse_adapter": __version__,
        "date": now(),
        "command": shlex.join(["python", "-m", _module(), *sys.argv[1:]]),
        "code": _code(),
    }
    for package in ("numba", "triton", "mamba-ssm", "causal-conv1d"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    if device == "cuda":
        found |= {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    return found


def where(about: Mapping[str, Any]) -> str:
    """Put in words what `machine` found: the command, what it ran on, and when."""
    vectors = f" ({about['vectors']})" if "vectors" in about else ""  # older figures lack it
    device = about.get("gpu") or f"{about['threads']} threads of an {about['processor']}{vectors}"
    return f"`{about['command']}` on {device}, torch {about['torch']}, {about['date'][:10]}"


def now() -> str:
    """Return the date and time, UTC."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def write_json(path: Path, figures: dict[str, Any]) -> None:
    """Keep figures in a file: an interrupt leaves the old one or the new one."""
    write_whole({path: (json.dumps(figures, indent=2) + "\n").encode()})


def _module() -> str:
    """Name the benchmark that was started, as in `benchmarks.gpu.head`."""
    path = Path(sys.argv[0]).with_suffix("")
    names = path.relative_to(ROOT).parts if path.is_relative_to(ROOT) else ("benchmarks", path.name)
    return ".".join(name for name in names if name != "__main__")


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _code() -> str:
    """Fingerprint the sources that are measured and that measure."""
    digest = hashlib.sha256()
    for folder in ("muse_adapter", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:12]

"""The command line: `muse-adapter info`, `patch`, `index`, `search` and `export`.

Also `python -m muse_adapter`.

A command is a function that takes the parsed arguments and returns the exit status, and one that
adds its parser and names the former there; `COMMANDS` lists the latter.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import torch

from muse_adapter import ops
from muse_adapter.onnx.command import add_export
from muse_adapter.patching.command import add_patch
from muse_adapter.search.commands import add_index, add_search
from muse_adapter.version import VERSION

# Every package we can use, with the extra that brings it (None: always there). Versions are read
# from the metadata: importing all would take seconds, and a broken one must not stop the report.
PACKAGES = {
    "einops": None,
    "numpy": "cpu",
    "numba": "cpu",
    "triton": "triton",
    "mamba-ssm": "mamba",
    "causal-conv1d": "mamba",
    "safetensors": "hub",
    "huggingface-hub": "hub",
    "av": "video",
    "sentence-transformers": "search",
    "transformers": "search",
    "pillow": "search",
    "pymilvus": "milvus",
    "milvus-lite": "milvus",
    "mteb": "mteb",
    "datasets": "train",
    "accelerate": "train",
    "tensorboard": "train",
    "h5py": "prvr",
    "onnx": "onnx",
    "onnxscript": "onnx",
    "onnxruntime": "onnx",
    "matplotlib": "bench",
    "tqdm": "bench",
}

VARIABLES = (
    "MUSE_ADAPTER_BACKEND",
    "OMP_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
)


def installed_version(package: str) -> str | None:
    """Version of an installed distribution, None if there is none."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def find_devices() -> dict[str, str]:
    """Devices that torch can use here: name -> what it is."""
    devices = {"cpu": platform.processor() or platform.machine()}
    for index in range(torch.cuda.device_count()):
        devices[f"cuda:{index}"] = torch.cuda.get_device_name(index)
    if torch.backends.mps.is_available():
        devices["mps"] = "Apple GPU"
    return devices


def describe_backends(device: str) -> dict[str, Any]:
    """Say what runs the scan on a device.

    Args:
        device: Name of a device.

    Returns:
        `chosen`: The backend that a scan there takes now, by name or automatically, or None;
        `error`: Then why none is taken, or None. `status`: Backend -> None where it runs, otherwise
        why it does not and what would fix it.
    """
    chosen, error = None, None
    try:
        chosen = ops.backend_for(torch.device(device))
    except (RuntimeError, ValueError) as refusal:  # one that is named by the environment
        error = str(refusal)
    status = {name: backend.reason for name, backend in ops.backends(device).items()}
    return {"chosen": chosen, "error": error, "status": status}


def collect() -> dict[str, Any]:
    """Everything a bug report should hold, as plain values."""
    devices = find_devices()
    return {
        "muse_adapter": VERSION,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "threads": {"torch": torch.get_num_threads(), "processors": os.cpu_count()},
        "devices": devices,
        "packages": {package: installed_version(package) for package in PACKAGES},
        "backends": {device: describe_backends(device) for device in devices},
        "environment": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def as_text(report: dict[str, Any]) -> str:
    """Format the report of `collect` as text."""
    threads = report["threads"]
    lines = [
        f"muse-adapter  {report['muse_adapter']}",
        f"python        {report['python']}",
        f"platform      {report['platform']}",
        f"torch         {report['torch']} (CUDA: {report['cuda'] or 'built without'})",
        f"threads       {threads['torch']} of torch, {threads['processors']} processors",
    ]
    lines += [f"device        {name}: {what}" for name, what in report["devices"].items()]
    lines += [f"environment   {name}={value}" for name, value in report["environment"].items()]
    lines += ["", "packages"]
    for package, version in report["packages"].items():
        extra = PACKAGES[package]
        missing = (
            f"not installed: pip install 'muse-adapter[{extra}]'" if extra else "not installed"
        )
        lines.append(f"  {package:<23}{version or missing}")
    for device, backends in report["backends"].items():
        lines += ["", f"backends on {device} (taken: {backends['chosen'] or backends['error']})"]
        for name, reason in backends["status"].items():
            lines.append(f"  {name:<23}{'runs' if reason is None else f'does not run: {reason}'}")
    return "\n".join(lines)


def info(arguments: argparse.Namespace) -> int:
    """Print the report."""
    report = collect()
    print(json.dumps(report, indent=2) if arguments.json else as_text(report))
    return 0


def add_info(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `info` to the commands."""
    summary = "show versions, devices and backends, for a bug report"
    parser = commands.add_parser(
        "info",
        help=summary,
        description=f"{summary.capitalize()}. For each backend that cannot run here it says why "
        "and what would fix it. Nothing is sent anywhere.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    parser.set_defaults(run=info)


COMMANDS = (add_info, add_patch, add_index, add_search, add_export)


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="muse-adapter",
        description="A multi-scale, linear-time video head for text-video retrieval.",
        epilog="muse-adapter COMMAND --help explains a command.",
    )
    parser.add_argument("--version", action="version", version=f"muse-adapter {VERSION}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add in COMMANDS:
        add(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        arguments: What stands behind the program's name; None: the process's own.

    Returns:
        The exit status. Wrong arguments leave through SystemExit(2), as argparse does.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = build_parser()
    if not arguments:
        parser.print_help()
        return 0
    parsed = parser.parse_args(arguments)
    status: int = parsed.run(parsed)
    return status


if __name__ == "__main__":
    sys.exit(main())

"""What runs: GPU, driver, clocks, versions; and the rates that floors are made of, measured.

python -m benchmarks.gpu.environment --json FILE
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator

import torch

from benchmarks.gpu.part import Options, Row, run_part, times
from muse_adapter.ops import backends


def main() -> None:
    """Run the part."""
    run_part(rows, __doc__.splitlines()[0])


def rows(options: Options) -> Iterator[Row]:
    """Describe the machine and measure its rates."""
    if options.tiny:
        yield {"what": "no GPU: Triton's interpreter on the CPU"}
    else:
        yield {"what": torch.cuda.get_device_name(), **gpu()}
    found = backends(options.device)
    yield {"what": "backends", **{name: status.reason or "runs" for name, status in found.items()}}
    yield {"what": "rates", **rates(options), "bf16_matmul_flop_per_s": matmul_rate(options)}


def gpu() -> Row:
    """Describe the GPU and what drives it."""
    about = torch.cuda.get_device_properties(0)
    return {
        "capability": f"{about.major}.{about.minor}",
        "memory_bytes": about.total_memory,
        "free_bytes": torch.cuda.mem_get_info()[0],
        "cudnn": torch.backends.cudnn.version(),
        "cores": os.cpu_count(),
        "nvidia_smi": _nvidia_smi(),
    }


def rates(options: Options) -> Row:
    """Return the processors, their highest clock, and the bytes a second of a copy.

    A CPU's are invented round numbers, but for the copy.
    """
    found: Row = {"copy_bytes_per_s": copy_bandwidth(options)}
    if options.tiny:
        return {"processors": 1, "clock_hz": 1e9, **found}
    from triton.runtime import driver

    about = driver.active.utils.get_device_properties(torch.cuda.current_device())
    return {
        "processors": about["multiprocessor_count"],
        "clock_hz": about["sm_clock_rate"] * 1e3,
        **found,
    }


def copy_bandwidth(options: Options) -> float:
    """Return bytes a second, read and written, of a copy of 1 GiB."""
    source = torch.zeros(1 << (12 if options.tiny else 28), device=options.device)
    target = torch.empty_like(source)
    seconds = times({"copy": lambda: target.copy_(source)}, options)["seconds"]["copy"]
    return 2 * source.nbytes / seconds


def matmul_rate(options: Options) -> float:
    """Return multiplications and additions a second of a product of bfloat16 matrices."""
    side = 64 if options.tiny else 8192
    a, b = torch.randn(2, side, side, device=options.device).bfloat16()
    return 2 * side**3 / times({"product": lambda: a @ b}, options)["seconds"]["product"]


def _nvidia_smi() -> str:
    """Return driver, clocks, power and temperature, in words."""
    if shutil.which("nvidia-smi") is None:
        return "not found"
    query = "driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit,temperature.gpu"
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    return (done.stdout or done.stderr).strip()


if __name__ == "__main__":
    main()

"""Where the time of a run goes, kernel by kernel, as torch's profiler sees it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

RUNS = {"cuda": 5, "cpu": 1}
MAX_NAMES, MAX_NAME = 16, 90  # kernels listed, and characters of their names


def seconds_by_kernel(run: Callable[[], Any], device: str) -> dict[str, float]:
    """Profile a function that has been warmed up.

    Args:
        run: The function.
        device: "cuda"; "cpu": operators instead of kernels.

    Returns:
        Seconds of a run by kernel, the longest first, and those of all.
    """
    on_gpu = device == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as seen:
        for _ in range(RUNS[device]):
            run()
        if on_gpu:
            torch.cuda.synchronize()
    seconds: Counter[str] = Counter()
    for event in seen.key_averages():
        spent = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        if spent > 0:
            seconds[event.key[:MAX_NAME]] += spent / 1e6 / RUNS[device]
    listed = dict(seconds.most_common(MAX_NAMES))
    rest = sum(seconds.values()) - sum(listed.values())
    return {**listed, **({"others": rest} if rest else {}), "all": sum(seconds.values())}

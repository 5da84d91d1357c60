"""Every operator of the triton backend, and the head, against `torch` in float64.

    python -m benchmarks.gpu.correctness --json FILE

Results and all gradients; every case runs twice and must give the same bits. Cases run side by
side, so that kernels are compiled side by side. One row is of the automatic choice.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Any

import torch

from benchmarks.gpu.cases import (
    Outcome,
    Run,
    both_directions,
    convolutions,
    head,
    one_direction,
)
from benchmarks.gpu.part import Options, Row, run_part, shorten_kernels
from muse_adapter.ops import backend_for, self_check
from muse_adapter.ops.recurrent import TORCH
from muse_adapter.ops.triton_gpu import TRITON

WORKERS = 8
DOUBLE, SINGLE, BFLOAT, HALF = torch.float64, torch.float32, torch.bfloat16, torch.float16
# max|got - exact| / max|exact|. The exponential of a GPU is good to 2 units in the last place of
# float32, and a state remembers hundreds of them; narrow results and gradients are rounded.
OPERATOR_BOUNDS = {DOUBLE: 1e-11, SINGLE: 5e-5, BFLOAT: 3 * 2.0**-7, HALF: 3 * 2.0**-10}
# A head's: its residual stream is rounded at every layer. Gradients are measured against at least
# a hundredth of the largest one, since sums that cancel keep no digits.
HEAD_BOUNDS = {SINGLE: 1e-4, BFLOAT: 1e-1}
MIN_SCALE = 1e-2


@dataclass(frozen=True)
class Case:
    """An outcome on the triton backend.

    Attributes:
        what: What the row says.
        function: One of `benchmarks.gpu.cases`.
        given: Type of the inputs.
        sizes: The function's arguments.
    """

    what: str
    function: Callable[..., Outcome]
    given: torch.dtype
    sizes: dict[str, Any] = field(default_factory=dict)


WIDE = {"lengths": (1, 37, 257), "channels": 96, "states": 16}
NARROW = {"lengths": (1, 37, 257), "channels": 40, "states": 3}
HEAD: dict[str, Any] = {"frames": 3, "side": 4, "dim": 64, "depth": 2}
# The longest to compile first.
CASES = [
    Case("head", head, SINGLE, HEAD),
    Case("head, masked", head, SINGLE, {**HEAD, "masked": True}),
    Case("head, masked, autocast", head, BFLOAT, {**HEAD, "masked": True}),
    Case(
        "both directions at the paper's size",
        both_directions,
        BFLOAT,
        {"lengths": (3060,), "channels": 512, "states": 16, "batch": 2},
    ),
    Case("both directions", both_directions, SINGLE, WIDE),
    Case("both directions", both_directions, BFLOAT, WIDE),
    Case("both directions", both_directions, HALF, WIDE),
    Case("both directions", both_directions, DOUBLE, WIDE),
    Case("both directions, odd sizes", both_directions, SINGLE, NARROW),
    Case("both directions, masked", both_directions, SINGLE, {**WIDE, "masked": True}),
    Case(
        "both directions, masked, at positions",
        both_directions,
        SINGLE,
        {**NARROW, "masked": True, "positions": True},
    ),
    Case(
        "both directions, masked, at positions",
        both_directions,
        BFLOAT,
        {**WIDE, "masked": True, "positions": True},
    ),
    Case("forward alone", both_directions, SINGLE, {**WIDE, "one": True}),
    Case("one direction, groups", one_direction, SINGLE, {**WIDE, "groups": 2, "initial": True}),
    Case(
        "one direction backwards, from a state",
        one_direction,
        SINGLE,
        {**NARROW, "initial": True, "reverse": True},
    ),
    Case("one direction, constant B and C", one_direction, SINGLE, {**WIDE, "constant": True}),
    Case("convolutions", convolutions, SINGLE, {"lengths": (1, 37, 257), "channels": 96}),
    Case("convolutions", convolutions, BFLOAT, {"lengths": (1, 37, 3060), "channels": 512}),
    Case(
        "convolutions, cut, 3 taps",
        convolutions,
        SINGLE,
        {"lengths": (1, 37, 257), "channels": 40, "taps": 3, "cut": True},
    ),
    Case(
        "convolution of one direction",
        convolutions,
        SINGLE,
        {"lengths": (37,), "channels": 96, "one": True},
    ),
    Case("head, frame-wise", head, SINGLE, {**HEAD, "aggregation": "frame_wise", "masked": True}),
    Case("head, one direction", head, SINGLE, {**HEAD, "mixer": "mamba", "masked": True}),
]
SHORT = {"lengths": (3,), "channels": 5, "states": 3}
SHORT_HEAD = {"frames": 2, "side": 1, "dim": 16, "depth": 1, "scales": (1.0,)}
TINY = [
    Case("both directions", both_directions, SINGLE, {**SHORT, "masked": True}),
    Case("at positions", both_directions, BFLOAT, {**SHORT, "positions": True}),
    Case(
        "one direction",
        one_direction,
        SINGLE,
        {**SHORT, "lengths": (1, 3), "groups": 1, "initial": True},
    ),
    Case("convolutions", convolutions, SINGLE, {"lengths": (3,), "channels": 5, "cut": True}),
    Case("head", head, SINGLE, {**SHORT_HEAD, "masked": True}),
    Case("head, autocast", head, BFLOAT, SHORT_HEAD),
]


def main() -> None:
    """Run the part."""
    run_part(rows, __doc__.splitlines()[0])


def rows(options: Options) -> Iterator[Row]:
    """Compare every case, as they end, and look at the automatic choice."""
    cases = TINY if options.tiny else CASES
    workers = 1 if options.tiny else WORKERS
    with ProcessPoolExecutor(workers, get_context("spawn"), prepare, (options,)) as pool:
        waiting = {pool.submit(automatic_choice, options): "self-check, automatic choice"}
        for case in cases:
            dtype = str(case.given).removeprefix("torch.")
            waiting[pool.submit(compare, case, options.device)] = f"{case.what}, {dtype}"
        for done in as_completed(waiting):
            row: Row = {"what": waiting[done]}
            try:
                row |= done.result()
            except Exception as error:  # a compiler, or the pool, raises whatever it likes
                row["failed"] = f"{type(error).__name__}: {error}"
            yield row


def prepare(options: Options) -> None:
    """Set up a process that runs cases."""
    if options.tiny:
        shorten_kernels()
    torch.set_num_threads(1)
    torch.backends.cudnn.allow_tf32 = False  # the pyramid's convolutions have 11 bits with it
    # Two calls are compared bit by bit; the pyramid's convolutions promise that only when asked.
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.use_deterministic_algorithms(True)


def compare(case: Case, device: str) -> Row:
    """Compare a case with `torch` in float64, and with itself."""
    begin = time.perf_counter()
    run = Run("triton", device, case.given, case.given)
    got = case.function(run, **case.sizes)
    seconds = time.perf_counter() - begin
    again = case.function(run, **case.sizes)
    exact = case.function(Run("torch", device, case.given, DOUBLE), **case.sizes)
    whole = case.function is head
    bound = (HEAD_BOUNDS if whole else OPERATOR_BOUNDS)[case.given]
    of, error = largest_error(got, exact, MIN_SCALE if whole else 0.0)
    row: Row = {
        "largest_error": error,
        "of": of,
        "bound": bound,
        "tensors": len(exact),
        "first_seconds": seconds,
        "seconds": time.perf_counter() - begin,
    }
    different = [name for name in got if not torch.equal(got[name], again[name])]
    if not error <= bound:  # NaN, too
        row["failed"] = f"{of} is off by {error:.1e}, allowed is {bound:.0e}"
    elif different:
        row["failed"] = f"a second call gives other bits of {', '.join(different)}"
    return row


def largest_error(got: Outcome, exact: Outcome, min_scale: float) -> tuple[str, float]:
    """Return the tensor with the largest max|got - exact| / max|exact|, and that error.

    Args:
        got: Tensors by name.
        exact: Likewise, in float64.
        min_scale: A gradient is measured against at least this part of the largest one.
    """
    scales = {name: value.abs().max().item() for name, value in exact.items()}
    floor = min_scale * max(
        (scale for name, scale in scales.items() if name.startswith("gradient")), default=0.0
    )
    worst = "", -1.0
    for name, value in exact.items():
        scale = max(scales[name], floor if name.startswith("gradient") else 0.0, 1e-30)
        error = (got[name].double() - value).abs().max().item() / scale
        if not error <= worst[1]:
            worst = name, error
    return worst


def automatic_choice(options: Options) -> Row:
    """Run the self-check anew, as on a machine that has never run it, and ask what is chosen."""
    device = torch.device(options.device)
    if options.tiny:  # the interpreter is never chosen, and takes a minute for the whole check
        return {"chosen": backend_for(device)}
    begin = time.perf_counter()
    wrong = self_check.difference(TRITON, TORCH, device)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        row: Row = {"chosen": backend_for(device), "seconds": time.perf_counter() - begin}
    if wrong or row["chosen"] != "triton":
        row["failed"] = wrong or f"{row['chosen']} is chosen"
    return row


if __name__ == "__main__":
    main()

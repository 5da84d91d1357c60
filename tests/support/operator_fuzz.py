"""Random calls of every operator, right and wrong, in guarded memory; see `tests.ops.test_memory`.

    python -m tests.support.operator_fuzz FIRST COUNT [operators|triton|programs] [PLANTED]

Every case has a number, its seed, which is printed before it runs; the process ends with a signal
where an operator leaves its tensors. `programs` are exported ones, which are run without the
guards on their inputs. PLANTED is a fault to be found: `kernel` or `checks`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_flatten, tree_map

from tests.support.guard_pages import SIDES, guard_operators

SIDE = [SIDES[0]]
guard_operators(lambda: SIDE[0])

from muse_adapter import ops  # noqa: E402
from tests.support import operator_arguments as make  # noqa: E402
from tests.support.operator_arguments import DRAW, pick  # noqa: E402
from tests.support.triton_interpreter import shorten_interpreter  # noqa: E402

RUN = torch.ops.muse_adapter
REFUSALS = ValueError, TypeError, RuntimeError, IndexError


OPERATORS: dict[str, tuple[Any, Callable[[], dict[str, Any]]]] = {
    "scan": (RUN.scan, make.forward_scan),
    "scan_backward": (RUN.scan_backward, make.backward_scan),
    "causal_conv1d_silu": (RUN.causal_conv1d_silu, make.fused_convolutions),
    "causal_conv1d_silu_backward": (
        RUN.causal_conv1d_silu_backward,
        make.fused_convolutions_backward,
    ),
    "conv3x3": (RUN.conv3x3, lambda: make.maps(gradient=False)),
    "conv3x3_weight": (RUN.conv3x3_weight, lambda: make.maps(gradient=True)),
    "mamba_inference": (RUN.mamba_inference, make.mixer),
}

TRITON: dict[str, tuple[Any, Callable[[], dict[str, Any]]]] = {
    "triton_scan": (RUN.triton_scan, make.triton_scan),
    "triton_convolutions": (RUN.triton_convolutions, make.triton_convolutions),
    "triton_convolutions_backward": (
        RUN.triton_convolutions_backward,
        make.triton_convolutions_backward,
    ),
    "triton_gate": (RUN.triton_gate, make.triton_gate),
}


class Program(torch.nn.Module):
    """A function as a module, to be exported."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *tensors: Tensor) -> Any:
        return self.function(*tensors)


def export_programs() -> dict[str, tuple[Any, Callable[[], dict[str, Any]]]]:
    """Export the public functions with all sizes dynamic; the results run without guards."""
    from muse_adapter.ops import numba_cpu

    functions = {
        "bidirectional_scan": (
            lambda *t: ops.bidirectional_scan(
                ops.Direction(*t[:7]), None, t[7], lengths=t[8], backend="numba"
            ),
            make.public_scan,
        ),
        "causal_conv1d_silu": (
            lambda x, w, b: ops.causal_conv1d_silu(x, [(w, b)], backend="numba"),
            make.public_convolution,
        ),
        "conv3x3": (
            lambda x, w, b: ops.conv3x3(x.permute(0, 3, 1, 2), w, b, backend="numba"),
            make.public_maps,
        ),
        "mamba_mixer": (
            lambda tokens, in_proj, *w: ops.mamba_mixer(
                tokens, in_proj, [ops.MambaDirection(*w)], backend="numba"
            ),
            make.public_mixer,
        ),
    }
    programs = {}
    for name, (function, draw) in functions.items():
        DRAW.seed(1)
        arguments = draw()
        while min(next(iter(arguments.values())).shape) < 2:  # export takes 0 and 1 as constants
            arguments = draw()
        tensors = tuple(
            torch.ones(t.shape, dtype=t.dtype if key == "lengths" else torch.float32)
            for key, t in arguments.items()
        )
        shapes = (tuple({i: torch.export.Dim.AUTO for i in range(t.dim())} for t in tensors),)
        # Our convolution, also on a processor where torch's is taken.
        with torch.no_grad(), patch.object(numba_cpu, "onednn_convolves_faster", lambda: False):
            program = torch.export.export(Program(function), tensors, dynamic_shapes=shapes)
        assert "muse_adapter" in str(program.graph), f"{name} holds no operator of ours"
        programs[f"exported {name}"] = torch.fx.Interpreter(program.graph_module).run, draw
    return programs


def spoiled(value: Any) -> Any:
    """Make another value in the place of one: a tensor of another shape or type, another number."""
    if isinstance(value, list) and value:
        place = DRAW.randrange(len(value))
        return [spoiled(v) if i == place else v for i, v in enumerate(value)]
    if isinstance(value, bool) or value is None or isinstance(value, (str, list)):
        return value
    if isinstance(value, int):
        return pick(-1, value + 1, 10**6, 2**40)
    shape = [*value.shape]
    kind = pick("axis", "axis", "axis", "less", "more", "type")
    if kind == "axis" and shape:
        axis = DRAW.randrange(len(shape))
        shape[axis] = pick(0, 1, max(0, shape[axis] - 1), shape[axis] + 1, 7 * shape[axis] + 16)
    elif kind == "less" and shape:
        shape.pop(DRAW.randrange(len(shape)))
    elif kind == "more":
        shape.insert(0, pick(1, 2))
    else:
        return value.to(pick(torch.int64, torch.complex64, torch.float64, torch.uint8))
    return torch.ones(shape, dtype=value.dtype)


def run_case(seed: int) -> str:
    """Run one case; the result says what came of it."""
    DRAW.seed(seed)
    torch.manual_seed(seed)
    SIDE[0] = SIDES[seed % 2]
    name = list(OPERATORS)[seed % len(OPERATORS)]
    operator, draw = OPERATORS[name]
    arguments = draw()
    wrong = [] if DRAW.random() < 0.5 else DRAW.sample(list(arguments), pick(1, 1, 2))
    for field in wrong:
        arguments[field] = spoiled(arguments[field])
    described = {key: _described(value) for key, value in arguments.items()}
    print(f"seed {seed}, {SIDE[0]}: {name}({described}), wrong: {wrong}", flush=True)
    try:
        results = operator(*arguments.values())
    except REFUSALS as error:
        if not wrong and not name.startswith("exported"):  # those may have a size as a constant
            raise AssertionError("right arguments were refused") from error
        return "refused"
    if not wrong:
        # What lies outside of a tensor, or was never written, is NaN.
        flat = tree_flatten(results)[0]
        if name.endswith("scan") and not name.startswith("exported"):
            flat.pop()  # saved states behind a length are never written, and never read
        for index, result in enumerate(flat):
            wide = result.dtype in (torch.float32, torch.float64)
            assert not wide or result.isfinite().all(), f"result {index} has NaN"
        if not name.startswith("exported"):
            check_traced(operator, arguments, results)
    return "accepted"


def check_traced(operator: Any, arguments: dict[str, Any], results: Any) -> None:
    """Check that tracing foresees the results: compiled code reads as much as it was told."""
    with FakeTensorMode() as mode:
        fakes = tree_map(
            lambda v: mode.from_tensor(v) if isinstance(v, Tensor) else v, list(arguments.values())
        )
        foreseen = tree_flatten(operator(*fakes))[0]
    for index, (real, fake) in enumerate(zip(tree_flatten(results)[0], foreseen, strict=True)):
        layouts = [(t.dtype, tuple(t.shape), t.is_contiguous()) for t in (real, fake)]
        assert layouts[0] == layouts[1], f"result {index} is {layouts[0]}, traced as {layouts[1]}"


def _described(value: Any) -> Any:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{[*value.shape]}{[*value.stride()]}"
    return [_described(v) for v in value] if isinstance(value, list) else value


def plant(fault: str) -> None:
    """Plant a fault that the cases have to find."""
    if fault == "checks":
        from muse_adapter.ops import inputs

        inputs.ScanInputs.check = lambda self, prefix="": None
    elif fault == "kernel":
        from muse_adapter.ops.numba_cpu import function

        enough = function.forward_work_size
        function.forward_work_size = lambda chunk: enough(chunk) - 1
    else:
        raise ValueError(f"unknown fault {fault!r}")


def main(first: int, count: int, what: str = "operators", fault: str | None = None) -> None:
    """Run cases, and print how many were accepted."""
    torch.set_num_threads(1)
    if what != "operators":
        chosen = TRITON if what == "triton" else export_programs()
        OPERATORS.clear()
        OPERATORS.update(chosen)
    if what == "triton":
        shorten_interpreter()
    if fault is not None:
        plant(fault)
    outcomes = [run_case(seed) for seed in range(first, first + count)]
    print("accepted", outcomes.count("accepted"), "refused", outcomes.count("refused"), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])

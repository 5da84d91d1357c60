"""32-bit integers of the kernels at the largest sizes, without a GPU and without memory.

The interpreter refuses every 32-bit sum and product that overflows. Of a launch it runs the last
program alone, which computes the largest offsets; loads give zeros, stores do nothing.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from tests.support.triton_scans import in_interpreter

pytestmark = in_interpreter


class LastProgram:
    """Stands for a kernel: notes its name, and runs the last program of its grid."""

    def __init__(self, name, kernel, replay):
        self.name, self.kernel, self.replay = name, kernel, replay

    def __getitem__(self, grid):
        def launch(*arguments, **options):
            self.replay.grid = grid
            tensors = [
                torch.empty(1, dtype=a.dtype) if torch.is_tensor(a) else a for a in arguments
            ]
            self.kernel[(1,)](*tensors, **options)
            self.replay.ran.append(self.name)

        return launch


class Replay:
    """The interpreter's view of a launch, of which it knows one program."""

    def __init__(self):
        self.grid, self.ran = (), []

    def program(self, axis):
        return self._number(self.grid[axis] - 1)

    def programs(self, axis):
        return self._number(self.grid[axis])

    def _number(self, value):
        import triton.language as tl
        from triton.runtime.interpreter import TensorHandle

        return TensorHandle(np.array([value], dtype=np.int32), tl.int32)


def zeros(pointers, mask, other, *_):
    """Stand for a load of whatever lies there."""
    from triton.runtime.interpreter import TensorHandle, _get_np_dtype

    if other is not None:
        return other
    kind = pointers.get_element_ty()
    return TensorHandle(np.zeros_like(pointers.data, dtype=_get_np_dtype(kind)), kind)


@pytest.fixture
def checked(monkeypatch):
    """Let the interpreter check 32-bit integers, as Triton does in debug mode."""
    from triton.runtime.interpreter import interpreter_builder

    options = dataclasses.replace(interpreter_builder.options, debug=True)
    monkeypatch.setattr(interpreter_builder, "options", options)


@pytest.fixture
def replay(monkeypatch, checked):
    from triton.runtime.interpreter import interpreter_builder

    from muse_adapter.ops.triton_gpu import convolution, function, gate

    replay = Replay()
    for name, stand_in in (
        ("create_get_program_id", replay.program),
        ("create_get_num_programs", replay.programs),
        ("create_masked_load", zeros),
        ("create_masked_store", lambda *_: None),
    ):
        monkeypatch.setattr(interpreter_builder, name, stand_in)
    for module in (convolution, function, gate):
        for name, value in vars(module).copy().items():
            if getattr(value, "kwargs", {}).get("do_not_specialize"):  # a kernel, no part of one
                monkeypatch.setattr(module, name, LastProgram(name, value, replay))
    return replay


def meta(*shape):
    return torch.empty(shape, device="meta")


def scan(batch, length, channels, states, directions, backwards):
    """Run both passes of scans over the same videos."""
    from muse_adapter.ops.triton_gpu import function

    row, matrix = meta(batch, length, channels), meta(batch, length, 1, states)
    weight, A = meta(channels), meta(channels, states)
    side = function.Side(row, row, A, matrix, matrix, weight, weight)
    plan = function.Plan([side] * directions, backwards, True, None)
    saved_states = plan.empty(*plan.shape(plan.chunks))
    function.run_forward(plan, None, saved_states)
    function.run_backward(plan, saved_states, [row] * directions, None, initial=True)


def convolve(batch, length, channels, taps=4):
    """Run both passes of convolutions in both directions."""
    from muse_adapter.ops.triton_gpu import convolution

    x, weights = meta(batch, length, channels), [meta(channels, 1, taps), meta(channels)] * 2
    y = convolution.run_forward(x, weights, length)
    convolution.run_backward(x, weights, y, length)


def gate_of(batch, length, channels):
    """Run both passes of the gate, at chosen positions."""
    from muse_adapter.ops.triton_gpu import gate

    z = meta(batch, length, channels)
    positions = torch.empty(batch, length, dtype=torch.int64, device="meta")
    _, total = gate.run_forward(z, positions, [z, z], True)
    gate.run_backward(z, z, total, torch.float32)


def test_the_interpreter_sees_an_overflow(checked):
    """What the tests below rely on."""
    import triton
    import triton.language as tl

    @triton.jit(do_not_specialize=["number"])
    def square(number, result):
        tl.store(result, number * number)

    square[(1,)](46_340, torch.empty(1, dtype=torch.int32))
    with pytest.raises(Exception, match="int32 overflow"):
        square[(1,)](46_341, torch.empty(1, dtype=torch.int32))


@pytest.mark.parametrize("length", [5, 40], ids=lambda length: f"{length} steps")
def test_scan_of_most_videos(replay, length):
    scan((1 << 30) - 1, length, 32, 16, directions=2, backwards=0b10)
    assert replay.ran == ["outputs", "gradients"]


def test_scan_of_a_longest_video(replay, monkeypatch):
    from muse_adapter.ops.triton_gpu import elementary, function

    monkeypatch.setattr(function, "ENOUGH_FORWARD", 1 << 40)
    monkeypatch.setattr(function, "ENOUGH_BACKWARD", 1 << 40)
    # It walks through all segments, of which there never are so many.
    monkeypatch.setattr(function, "carries", {(16,): lambda *_, **__: None})
    scan(1, elementary.MOST_NUMBERS // 512, 512, 16, directions=1, backwards=0)
    assert replay.ran == ["summaries", "outputs", "gradient_summaries", "gradients"]


@pytest.mark.parametrize(
    ("batch", "length", "channels"),
    [((1 << 31) - 1, 5, 32), (2, ((1 << 31) - (1 << 20)) // 64, 64), (1, 1, 1 << 21)],
    ids=["videos", "tokens", "channels"],
)
def test_convolutions(replay, monkeypatch, batch, length, channels):
    from muse_adapter.ops.triton_gpu import convolution

    # The longest video leaves 4 steps to the last segment, which the last program walks through.
    monkeypatch.setattr(convolution, "SEGMENT", 732)
    convolve(batch, length, channels)
    assert replay.ran == ["convolve_forward", "convolve_backward"]


@pytest.mark.parametrize(
    ("batch", "length", "channels"),
    [((1 << 30) - 1, 2, 64), (2, (1 << 30) - 1, 64), (1, 1, 1 << 24)],
    ids=["videos", "tokens", "channels"],
)
def test_gate(replay, batch, length, channels):
    gate_of(batch, length, channels)
    assert replay.ran == ["gate_forward", "gate_backward"]


def test_launches_that_cuda_refuses(replay):
    """Before the launch, and in words."""
    with pytest.raises(ValueError, match="beyond CUDA's limits: use fewer videos"):
        gate_of(1 << 30, 2, 64)
    with pytest.raises(ValueError, match="beyond CUDA's limits: use fewer videos"):
        convolve(1 << 31, 5, 32)
    with pytest.raises(ValueError, match="beyond CUDA's limits: use fewer videos"):
        scan(1 << 30, 5, 32, 16, directions=2, backwards=0)
    with pytest.raises(ValueError, match="at most 2146435072 numbers, got 2147483648"):
        convolve(1, 1, 1 << 28, taps=7)
    for length, channels in ((40, 1 << 24), (1, 1 << 27)):
        with pytest.raises(ValueError, match="at most 2146435072 numbers"):
            scan(1, length, channels, 16, directions=1, backwards=0)
    assert not replay.ran

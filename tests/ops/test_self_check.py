"""The self-check in front of the automatic choice on a GPU, by a fake device.

Triton's interpreter stands for the GPU: names say `cuda`, tensors are on the CPU.
"""

from __future__ import annotations

import json
import warnings

import pytest
import torch

from muse_adapter.ops import backend_for, self_check, use_backend
from muse_adapter.ops.choice import ENVIRONMENT
from muse_adapter.ops.recurrent import TORCH
from muse_adapter.ops.triton_gpu import TRITON

if torch.cuda.is_available():
    pytest.skip("shows the interpreter's side, and there is a GPU", allow_module_level=True)
if TRITON.unavailable(torch.device("cpu")) is not None:
    pytest.skip(f"backend triton: {TRITON.unavailable()}", allow_module_level=True)

GPU = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def fake_gpu(monkeypatch, tmp_path):
    """A GPU by name, an empty cache, a process that has checked nothing; lists the checks."""
    checked = []
    monkeypatch.setattr(
        self_check, "difference", lambda candidate, trusted, device: checked.append(device)
    )
    monkeypatch.setattr(self_check, "_results", {})
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Fake GPU")
    monkeypatch.setattr(TRITON, "unavailable", lambda device=None: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    return checked


difference = self_check.difference


@pytest.fixture
def interpreter(monkeypatch, fake_gpu):
    """The check really runs, on CPU tensors and as small as can be."""

    def on_cpu(candidate, trusted, device):
        fake_gpu.append(device)
        return difference(candidate, trusted, torch.device("cpu"))

    monkeypatch.setattr(self_check, "difference", on_cpu)
    for name, size in (("LENGTH", 4), ("CHANNELS", 4), ("STATES", 2), ("TAPS", 2)):
        monkeypatch.setattr(self_check, name, size)


real = pytest.mark.usefixtures("interpreter")


@pytest.fixture
def wrong_kernel(monkeypatch):
    """The scan's kernels, but one number of one video is not what it was."""
    from muse_adapter.ops.triton_gpu import function

    right = function.run_forward

    def wrong(*arguments):
        y, last = right(*arguments)
        y[0][0, 1, 2] += 0.5
        return y, last

    monkeypatch.setattr(function, "run_forward", wrong)


def cached(tmp_path):
    return list((tmp_path / "muse-adapter" / "self-check").glob("*"))


def new_process(monkeypatch):
    monkeypatch.setattr(self_check, "_results", {})


@real
def test_what_passes_is_taken_and_remembered(monkeypatch, tmp_path, fake_gpu):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [backend_for(GPU) for _ in range(3)] == ["triton"] * 3
    assert fake_gpu == [GPU]
    (file,) = cached(tmp_path)
    known = json.loads(file.read_text(encoding="utf-8"))["passed"]
    assert known["device"] == "Fake GPU" and known["torch"] == torch.__version__
    assert set(known) == {"device", "triton", "torch", "muse_adapter"}
    new_process(monkeypatch)
    assert backend_for(GPU) == "triton" and fake_gpu == [GPU], "the cache was not read"


def test_a_known_result_needs_no_look_at_versions(monkeypatch, fake_gpu):
    assert backend_for(GPU) == "triton"
    monkeypatch.setattr(self_check, "metadata", None)
    assert backend_for(GPU) == "triton"


@pytest.mark.parametrize("what", ["device", "torch", "triton", "muse_adapter"])
def test_another_device_or_version_is_checked_anew(monkeypatch, fake_gpu, what):
    assert backend_for(GPU) == "triton"
    new_process(monkeypatch)
    if what == "device":
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Other GPU")
    elif what == "torch":
        monkeypatch.setattr(torch, "__version__", "0.0")
    elif what == "triton":
        monkeypatch.setattr(self_check.metadata, "version", lambda name: "0.0")
    else:
        monkeypatch.setattr(self_check, "VERSION", "0.0")
    assert backend_for(GPU) == "triton" and len(fake_gpu) == 2


@pytest.mark.parametrize(
    "damage", ["", "{", "[]", '{"passed": true}', '{"passed": {"device": "Fake GPU"}}', "\ud800"]
)
def test_a_damaged_file_is_checked_anew(monkeypatch, tmp_path, fake_gpu, damage):
    assert backend_for(GPU) == "triton"
    (file,) = cached(tmp_path)
    whole = file.read_text(encoding="utf-8")
    file.write_bytes(damage.encode("utf-8", "surrogatepass"))
    new_process(monkeypatch)
    assert backend_for(GPU) == "triton" and len(fake_gpu) == 2
    assert file.read_text(encoding="utf-8") == whole and cached(tmp_path) == [file]


def test_a_folder_that_cannot_be_written(monkeypatch, tmp_path, fake_gpu):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert backend_for(GPU) == backend_for(GPU) == "triton"
    assert fake_gpu == [GPU]


@real
def test_a_wrong_kernel_is_not_taken(monkeypatch, tmp_path, fake_gpu, wrong_kernel):
    pattern = r"'triton' does not agree with 'torch' on Fake GPU: y in torch.float32 is off by"
    with pytest.warns(RuntimeWarning, match=pattern) as caught:
        assert [backend_for(GPU) for _ in range(3)] == ["torch"] * 3
    assert len(caught) == 1 and fake_gpu == [GPU]
    assert cached(tmp_path) == [], "a failure may be gone in the next process"


@real
def test_a_wrong_gradient_is_not_taken(monkeypatch, fake_gpu):
    from muse_adapter.ops.triton_gpu import function

    right = function.run_backward

    def wrong(*arguments, **options):
        gradients = right(*arguments, **options)
        gradients.gains[2].mul_(1.001)
        return gradients

    monkeypatch.setattr(function, "run_backward", wrong)
    with pytest.warns(RuntimeWarning, match="the gradient of reverse B in torch.float32 is off by"):
        assert backend_for(GPU) == "torch"


@real
def test_nan_is_not_taken(monkeypatch, fake_gpu):
    from muse_adapter.ops.triton_gpu import convolution

    right = convolution.run_forward
    monkeypatch.setattr(
        convolution, "run_forward", lambda *given: [y * float("nan") for y in right(*given)]
    )
    with pytest.warns(RuntimeWarning, match="forward convolution in torch.float32 is off by nan"):
        assert backend_for(GPU) == "torch"


@real
def test_what_does_not_compile_is_not_taken(monkeypatch, fake_gpu):
    from muse_adapter.ops.triton_gpu import function

    def broken(*arguments):
        raise SyntaxError("the compiler gave up")

    monkeypatch.setattr(function, "run_forward", broken)
    with pytest.warns(RuntimeWarning, match="Fake GPU: SyntaxError: the compiler gave up"):
        assert backend_for(GPU) == "torch"


def test_a_choice_by_name_is_not_checked(monkeypatch, fake_gpu, wrong_kernel):
    with use_backend("triton"):
        assert backend_for(GPU) == "triton"
    monkeypatch.setenv(ENVIRONMENT, "triton")
    assert backend_for(GPU) == "triton"
    assert fake_gpu == []


@real
def test_modes_of_the_caller_do_not_reach_the_check(fake_gpu):
    """Autocast, inference, tracing with tensors that have no memory, another default type."""
    from torch._subclasses import FakeTensorMode

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    state = torch.random.get_rng_state()
    try:
        with (
            FakeTensorMode(),
            torch.inference_mode(),
            torch.autocast("cpu", torch.bfloat16),
            torch.device("meta"),
        ):
            assert backend_for(GPU) == "triton"
    finally:
        torch.set_default_dtype(before)
    assert torch.equal(torch.random.get_rng_state(), state), "it draws from a generator of its own"


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # torch's own
def test_a_check_while_tracing_leaves_one_graph(fake_gpu):
    def double(x):
        return x * (2 if backend_for(GPU) == "triton" else 3)

    compiled = torch.compile(double, fullgraph=True, backend="eager")
    assert compiled(torch.ones(2)).tolist() == [2, 2]
    assert fake_gpu == [GPU]
    torch._dynamo.reset()


def test_nothing_is_checked_while_a_graph_is_captured(monkeypatch, fake_gpu):
    with monkeypatch.context() as context:
        context.setattr(torch.cuda, "is_available", lambda: True)
        context.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        with pytest.warns(RuntimeWarning, match="while a CUDA graph is captured"):
            assert backend_for(GPU) == "torch"
    assert fake_gpu == []
    assert backend_for(GPU) == "triton", "outside of the capture it is checked"
    with monkeypatch.context() as context, warnings.catch_warnings():
        warnings.simplefilter("error")
        context.setattr(torch.cuda, "is_available", lambda: True)
        context.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        assert backend_for(GPU) == "triton", "what is known is known"


def test_the_torch_backend_agrees_with_itself():
    assert difference(TORCH, TORCH, torch.device("cpu")) is None

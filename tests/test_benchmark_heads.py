"""`python -m benchmarks`: counts, fits, gates, rows, pictures and README, on tiny sizes."""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import fresh, pair_loop, report, rows, timing
from benchmarks.__main__ import main
from benchmarks.baselines import (
    TemporalTransformer,
    WrittenOutAttention,
    mamba_ssm_kernels,
    own_kernels,
    published_way,
)
from benchmarks.contenders import Contender, contenders, countable
from benchmarks.flops import count, scan_backward_flops, scan_flops
from benchmarks.gate import against_definition
from benchmarks.growth import compare, fit
from benchmarks.settings import PRESETS, Case, Settings
from muse_adapter import MultiScaleMamba
from muse_adapter.layers.mixers import BiMamba
from muse_adapter.ops import backends, reference, selective_scan

ROOT = Path(__file__).resolve().parent.parent
ON_CPU = contenders("cpu", torch.float32)
HERE = {name: head for name, head in ON_CPU.items() if isinstance(head, Contender)}
THREADS = str(torch.get_num_threads())
SMALL = ["--device", "cpu", "--dim", "32", "--grid", "2", "--limit", "5", "--threads", THREADS]
SMALL += ["--pairs", "3", "--batch", "1"]


def small(**changes: Any) -> Settings:
    given = {"frames": (2, 3), "grids": ((2, 2),), "batches": (1,), "limit_s": 0.05}
    return Settings(**{**given, "pairs": 3, "pair_batch": 2, "dim": 32, **changes})


# Operations


class ElementCount(TorchDispatchMode):
    """Counts operations element by element, as they are run."""

    ONE = ("add", "mul", "exp", "softplus", "sub", "neg", "div")

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__.rstrip("_")
        if name == "sum":
            self.operations += args[0].numel() - result.numel()
        elif name == "softplus_backward":
            self.operations += 2 * result.numel()
        elif name in self.ONE:
            self.operations += result.numel()
        return result


def scan_inputs(batch: int, length: int, channels: int, states: int) -> dict[str, Tensor]:
    inputs = {
        "x": torch.randn(batch, length, channels),
        "delta": torch.randn(batch, length, channels),
        "A": -torch.rand(channels, states),
        "B": torch.randn(batch, length, 1, states),
        "C": torch.randn(batch, length, 1, states),
        "D": torch.randn(channels),
        "delta_bias": torch.randn(channels),
    }
    return {name: tensor.requires_grad_() for name, tensor in inputs.items()}


def test_operations_of_the_scan_by_hand() -> None:
    """Two tokens, three channels, five states: 30 states, 6 channels."""
    x, A, row = torch.Size((1, 2, 3)), torch.Size((3, 5)), torch.Size((3,))
    gain = torch.Size((1, 2, 1, 5))
    assert scan_flops(x, x, A, gain, gain, None, None, None, False) == 7 * 30
    assert scan_flops(x, x, A, gain, gain, row, row, None, True) == 7 * 30 + 4 * 6
    given = (x, None, torch.Size((1, 3, 5)), x, x, A, gain, gain)
    assert scan_backward_flops(*given, None, None, None, False) == 20 * 30 + 4 * 6
    assert scan_backward_flops(*given, row, row, None, True) == 20 * 30 + 11 * 6


def test_operations_of_the_scan_are_those_that_the_definition_runs() -> None:
    inputs = scan_inputs(2, 40, 32, 16)
    shapes = [tensor.shape for tensor in inputs.values()]
    with torch.no_grad(), ElementCount() as counter:
        reference.scan(**inputs, delta_softplus=True, reverse=False, lengths=None)
    assert counter.operations == scan_flops(*shapes, None, True)

    y, _ = reference.scan(**inputs, delta_softplus=True, reverse=False, lengths=None)
    with ElementCount() as counter:
        y.backward(torch.randn_like(y))
    states = inputs["x"].numel() * 16
    # Autograd keeps the states (5 operations each) instead of computing them anew; at the ends of
    # time there is nothing to carry.
    got, formula = counter.operations, scan_backward_flops(y.shape, None, None, *shapes, None, True)
    assert got == pytest.approx(formula - 5 * states, rel=0.03)


class OfSequence(nn.Module):
    """A mixer over all tokens of a video."""

    def __init__(self, mixer: nn.Module) -> None:
        super().__init__()
        self.mixer = mixer

    def forward(self, tokens: Tensor, *, grid: tuple[int, int]) -> Tensor:
        return self.mixer(tokens.flatten(1, 2))


def test_operations_of_a_mixer_by_hand() -> None:
    D, S, R, taps, L = 32, 16, 2, 4, 3 * 5
    made = Contender("mixer", "muse", lambda dim: OfSequence(BiMamba(dim)))
    got = count(countable("mixer", made), Case("inference", 3, (2, 2), 1), D)
    projections = 2 * L * D * 2 * D + 2 * (2 * L * D * (R + 2 * S) + 2 * L * R * D) + 2 * L * D * D
    convolutions = 2 * (2 * taps * D * (L + taps - 1))  # with the border of both directions
    scans = 2 * (7 * L * D * S + 4 * L * D)
    assert got == projections + convolutions + scans


def test_operations_of_the_transformer_by_hand() -> None:
    D, T, depth = 32, 3, 4
    made = Contender("seqTransf", "seqTransf", TemporalTransformer)
    forward = depth * (2 * T * D * (4 * D + 8 * D) + 4 * T * T * D)
    assert count(made, Case("inference", T, (2, 2), 1), D) == forward
    assert count(made, Case("inference", T, (2, 2), 2), D) == 2 * forward
    # Every product has two in the backward pass; the fused attention computes its scores anew.
    backward = depth * (4 * T * D * (4 * D + 8 * D) + 10 * T * T * D)
    assert count(made, Case("training", T, (2, 2), 1), D) == forward + backward


@pytest.mark.parametrize("mode", ["inference", "training"])
def test_operations_are_counted_for_every_head(mode: str) -> None:
    case = Case(mode, 2, (2, 2), 1)
    counts = {name: count(countable(name, head), case, 32) for name, head in HERE.items()}
    assert counts["meanP"] == 0 and all(counts[name] > 0 for name in counts if name != "meanP")
    assert counts["conv"] < counts["mamba"] < counts["muse-torch"]
    published = Contender("", "muse", lambda dim: nn.Identity())
    assert count(countable("muse-published", published), case, 32) > counts["muse-torch"]


# Heads and gates


@pytest.mark.parametrize("name", HERE)
def test_every_head_agrees_with_its_definition(name: str) -> None:
    assert against_definition(HERE[name], small()) is None


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
@pytest.mark.parametrize("name", ["muse-torch", "attention-flash", "attention-plain", "seqTransf"])
def test_heads_agree_in_other_types(name: str, dtype: str) -> None:
    assert against_definition(HERE[name], small(dtype=dtype)) is None


def test_the_published_way_agrees_with_the_definition() -> None:
    def build(dim: int) -> nn.Module:
        return published_way(MultiScaleMamba(dim=dim, init="release"), own_kernels())

    assert against_definition(Contender("", "muse", build), small()) is None


@pytest.mark.parametrize(
    ("function", "wrong", "message"),
    [
        ("muse", "embedding", "the embedding differs by"),
        ("attention", "gradient", "the gradient of layers.0.fc.bias differs by"),
        ("meanP", "parameter", "only one of them has the gradient of extra"),
    ],
)
def test_a_wrong_head_is_not_timed(function: str, wrong: str, message: str) -> None:
    right = {"muse": "muse-torch", "attention": "attention-flash", "meanP": "meanP"}[function]

    def build(dim: int) -> nn.Module:
        module = HERE[right].build(dim)
        if wrong == "embedding":
            module.register_forward_hook(lambda _, __, result: result * 1.001)
        elif wrong == "gradient":
            module.get_parameter("layers.0.fc.bias").register_hook(lambda grad: grad * 1.001)
        else:
            module.register_parameter("extra", nn.Parameter(torch.ones(())))
            module.register_forward_hook(lambda m, __, result: result * m.extra)
        return module

    assert message in (against_definition(Contender("", function, build), small()) or "")


def test_what_cannot_run_here_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(backends()) <= {name.removeprefix("muse-") for name in ON_CPU}
    for name, reason in {
        "muse-triton": "",
        "muse-mamba_ssm": "GPUs only",
        "muse-published": "GPUs only",
        "attention-cudnn": "does not offer",
    }.items():
        assert isinstance(found := ON_CPU[name], str) and reason in found
    monkeypatch.setattr("muse_adapter.ops.triton_gpu.unavailable", lambda device=None: None)
    assert "interpreter" in contenders("cpu", torch.float32)["muse-triton"]
    monkeypatch.setattr("muse_adapter.ops.mamba_ssm.unavailable", lambda device=None: None)
    monkeypatch.setattr("muse_adapter.ops.mamba_ssm._convolution_error", lambda: None)
    assert isinstance(contenders("cpu", torch.float32)["muse-published"], Contender)
    exact = contenders("cpu", torch.float64)
    assert exact["muse-mamba_ssm"] == exact["muse-published"] == "mamba-ssm has no float64 kernels"


def test_mixers_for_benchmarks_refuse_masks() -> None:
    mixer = published_way(MultiScaleMamba(dim=32), own_kernels()).layers[0].mixer
    for refusing in (mixer, WrittenOutAttention(32)):
        with pytest.raises(ValueError, match="no frame mask"):
            refusing(torch.randn(1, 4, 32), torch.tensor([3]))


def test_what_mamba_ssm_is_called_with(monkeypatch: pytest.MonkeyPatch) -> None:
    def selective_scan_fn(u, delta, A, B, C, D, z, delta_bias, delta_softplus):
        for tensor in (u, delta, A, B, C, D, z, delta_bias):
            assert tensor.is_contiguous()
        assert B.shape == C.shape == (2, 16, 9) and u.shape == z.shape == (2, 32, 9)
        return selective_scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus)

    def causal_conv1d_fn(x, weight, bias, activation):
        assert weight.shape == (32, 4) and activation == "silu" and x.is_contiguous()
        y = F.conv1d(x, weight.unsqueeze(1), bias, padding=3, groups=32)[..., : x.shape[2]]
        return F.silu(y)

    for name, attributes in {
        "causal_conv1d": {"causal_conv1d_fn": causal_conv1d_fn},
        "mamba_ssm": {},
        "mamba_ssm.ops": {},
        "mamba_ssm.ops.selective_scan_interface": {"selective_scan_fn": selective_scan_fn},
    }.items():
        module = ModuleType(name)
        vars(module).update(attributes)
        monkeypatch.setitem(sys.modules, name, module)
    head = MultiScaleMamba(dim=32, init="release")
    tokens = torch.randn(2, 9, 32)
    expected = head.layers[0].mixer(tokens)
    got = published_way(head, mamba_ssm_kernels()).layers[0].mixer(tokens)
    assert (got - expected).abs().max() < 1e-5 * expected.abs().max()


# Growth


def test_exponents_and_their_errors() -> None:
    exact = fit({n: 3.0 * n**1.5 for n in (10, 20, 50, 80)})
    assert exact is not None and exact.points == 4
    assert exact.exponent == pytest.approx(1.5) and exact.error == pytest.approx(0, abs=1e-6)
    # Through (0, 0), (1, 1), (2, 3) in logarithms: slope 1.5, residuals 1/6, -1/3, 1/6.
    noisy = fit({1: 1.0, 3: math.exp(math.log(3)), 9: math.exp(3 * math.log(3))})
    assert noisy is not None and noisy.exponent == pytest.approx(1.5)
    assert noisy.error == pytest.approx(math.sqrt(1 / 6 / 2))
    assert fit({1: 1.0, 2: 2.0}) is None and fit({1: 1.0, 2: 2.0, 3: 0.0}) is None


LINEAR = {10: 10.0, 100: 100.0, 1000: 1000.0}


@pytest.mark.parametrize(
    ("other", "crossings", "says"),
    [
        ({10: 20, 100: 200, 1000: 2000}, (), "(10 to 1,000 tokens): cheaper throughout"),
        ({10: 5, 100: 50, 1000: 500}, (), "none within the measured range"),
        # 10 n above 31.6 tokens: as much at 10^0.5 below as it is at 10^0.5 above.
        ({10: 1, 100: 1000, 1000: 1e5}, (10**1.5,), "dearer up to 32 tokens, cheaper from there"),
        ({10: 20, 1000: 20}, (20,), "cheaper up to 20 tokens, dearer from there (10 to 1,000 "),
        ({10: 100, 100: 10, 1000: 10_000}, (10**1.5, 10**2.5), "dearer up to 316, cheaper from"),
        ({5: 1, 10: 10, 100: 200}, (), "(10 to 100 tokens): cheaper throughout"),
    ],
    ids=["cheaper", "dearer", "once", "two lengths", "twice", "equal first"],
)
def test_crossing_lengths(other: dict[int, float], crossings: tuple[float, ...], says: str) -> None:
    found = compare(LINEAR, other)
    assert found is not None and says in str(found)
    assert found.crossings == pytest.approx(crossings)


def test_no_crossing_is_given_where_nothing_can_be_compared() -> None:
    assert compare({10: 1.0, 20: 2.0}, {20: 1.0, 40: 2.0}) is None
    assert compare(LINEAR, LINEAR) is None


# A run


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are measured in this process, which has everything loaded."""
    monkeypatch.setattr(rows, "in_fresh_process", lambda function, *given: function(*given))


def test_every_head_is_measured_written_and_drawn(
    here: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target, pictures = tmp_path / "heads.json", tmp_path / "pictures"
    command = [*SMALL, "--frames", "1", "--json", str(target), "--plot", str(pictures)]
    command += ["--limit", "0.05", "--heads", *HERE]
    assert main(command) == 0
    figures, printed = json.loads(target.read_text()), capsys.readouterr().out
    assert {"processor", "threads", "torch", "date", "command", "code"} <= set(figures["machine"])
    assert len(figures["rows"]) == 2 * len(HERE)
    for row in figures["rows"]:
        low, high = row["quartiles_s"]
        assert 0 < low <= row["seconds"] <= high and row["runs"] > 0
        assert row["peak_bytes"] >= 0 and row["held_bytes"] > 0
        assert row["tokens_per_s"] == pytest.approx(5 / row["seconds"])
        assert row["what"] in printed and "date" in row
    sizes = {row["head"]: row["parameters"] for row in figures["rows"]}
    assert sizes["meanP"] == 0 and sizes["muse-torch"] > sizes["mamba"] > sizes["conv"]
    assert "head runs" in printed and "computed from measured parts" in printed
    assert sorted(path.name for path in pictures.iterdir()) == ["memory.png", "time.png"]
    assert all(path.stat().st_size > 10_000 for path in pictures.iterdir())


def test_a_row_of_a_fresh_process() -> None:
    settings = small(threads=1, limit_s=0.05)
    outcome = fresh.in_fresh_process(
        timing.measure, "attention-plain", Case("inference", 16, (8, 8), 1), settings
    )
    assert outcome.median > 0 and outcome.parameters > 0 and len(outcome.result) == 32
    # One layer's scores and their softmax, 16 * (1 + 16 + 64 + 256) tokens squared, in float32.
    weights = 4 * (16 * (1 + 16 + 64 + 256)) ** 2
    assert 2 * weights < outcome.peak_bytes < 4 * weights


def test_fresh_processes_find_the_libraries_loaded() -> None:
    """What fails to load beforehand says nothing, and makes every row half a second slower."""
    expected = {"torch.fx.experimental.symbolic_shapes"}
    if isinstance(ON_CPU["muse-numba"], Contender):
        expected |= {"muse_adapter.ops.numba_cpu.function"}
    # By a function that imports nothing itself.
    assert expected <= fresh.in_fresh_process(eval, "set(__import__('sys').modules)")


def too_much() -> int:
    return torch.empty(1 << 50, dtype=torch.uint8).numel()


def die() -> None:
    os._exit(3)


def fail() -> None:
    raise KeyError("no such thing")


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (too_much, MemoryError, "can't allocate memory"),
        (die, fresh.DiedError, "ended with code 3"),
        (fail, RuntimeError, "KeyError: 'no such thing'"),
    ],
    ids=["memory", "death", "error"],
)
def test_what_goes_wrong_in_a_fresh_process(
    function: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        fresh.in_fresh_process(function)


class Fake:
    """Outcomes without a run: linear time for MUSE, quadratic for attention."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Case]] = []
        self.interrupt_after = math.inf
        self.results: dict[str, float] = {}
        self.spread = 0.01

    def __call__(self, name: str, case: Case, settings: Settings) -> timing.Outcome:
        if len(self.asked) >= self.interrupt_after:
            raise KeyboardInterrupt
        self.asked.append((name, case))
        quadratic = name.startswith("attention")
        seconds = 2e-6 * case.tokens**2 if quadratic else 1e-5 * case.tokens
        if name == "attention-plain" and case.frames == 8:
            raise MemoryError("you tried to allocate 1 byte")
        low, high = seconds * (1 - self.spread), seconds * (1 + self.spread)
        result = [self.results.get(name, 1.0)]
        return timing.Outcome(seconds, low, high, 5, 1000 * case.tokens, 1, 10, result)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    made = Fake()
    monkeypatch.setattr(rows, "_outcome", made)
    monkeypatch.setattr(rows, "count", lambda head, case, dim: 10 * case.tokens)
    monkeypatch.setattr(rows, "against_definition", lambda head, settings: None)
    return made


HEADS = ["--heads", "muse-torch", "attention-flash", "attention-plain"]
RUN = [*SMALL, *HEADS, "--frames", "2", "4", "8", "40"]


def test_an_interrupted_run_goes_on_where_it_was(
    fake: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "heads.json"
    fake.interrupt_after = 5
    assert main([*RUN, "--json", str(target)]) == 130
    assert f"5 rows are kept in {target}" in capsys.readouterr().err
    kept = json.loads(target.read_text())["rows"]
    assert len(kept) == 5
    before, fake.asked, fake.interrupt_after = fake.asked, [], math.inf
    assert main([*RUN, "--json", str(target)]) == 0
    figures = json.loads(target.read_text())
    assert figures["rows"][:5] == kept and len(figures["rows"]) == 2 * 4 * 3
    assert not set(before) & set(fake.asked)
    fake.asked = []
    assert main([*RUN, "--json", str(target)]) == 0
    # What did not fit is not asked for again either.
    assert fake.asked == [] and json.loads(target.read_text())["rows"] == figures["rows"]


def test_rows_of_a_busy_machine_say_so_and_are_measured_again(
    fake: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "heads.json"
    fake.spread = 0.06  # the quartiles are 12 % apart
    assert main([*RUN, "--json", str(target)]) == 0
    assert all(row["busy"] for row in json.loads(target.read_text())["rows"] if "busy" in row)
    assert capsys.readouterr().out.count("busy machine") > 20
    fake.spread, fake.asked = 0.01, []
    assert main([*RUN, "--json", str(target)]) == 0
    measured = [row for row in json.loads(target.read_text())["rows"] if "busy" in row]
    assert len(fake.asked) == len(measured) and not any(row["busy"] for row in measured)


@pytest.mark.parametrize(
    ("low", "high", "runs", "busy"),
    [(1.0, 1.09, 4, False), (0.9, 1.1, 4, True), (1.0, 1.0, 2, True)],
)
def test_when_a_machine_counts_as_busy(low: float, high: float, runs: int, busy: bool) -> None:
    assert timing.Outcome(1.0, low, high, runs, 0, 0, 0, []).busy is busy


def test_other_settings_do_not_go_into_the_same_file(
    fake: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "heads.json"
    main([*RUN, "--json", str(target)])
    before = target.read_bytes()
    with pytest.raises(SystemExit):
        main([*RUN, "--dim", "64", "--json", str(target)])
    assert "dim 32, now 64" in capsys.readouterr().err and target.read_bytes() == before
    figures = json.loads(before)
    figures["machine"]["torch"] = "1.0"
    target.write_text(json.dumps(figures))
    with pytest.raises(SystemExit):
        main([*RUN, "--json", str(target)])
    assert "torch '1.0', now" in capsys.readouterr().err


def test_heads_that_cannot_run_are_named(fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--frames", "2"]) == 0
    assert "attention-cudnn does not run here: torch does not offer" in capsys.readouterr().out


def test_rows_without_a_time_say_why(fake: Fake, tmp_path: Path) -> None:
    target = tmp_path / "heads.json"
    assert main([*RUN, "--json", str(target), "--limit", "0.002"]) == 0
    reasons = {
        (row["head"], row["frames"]): row["not_measured"]
        for row in json.loads(target.read_text())["rows"]
        if row["mode"] == "inference" and "not_measured" in row
    }
    assert reasons["attention-plain", 8].startswith("does not fit into this machine's memory: you")
    assert "over the limit of 0.002 s" in reasons["attention-flash", 40]
    assert ("muse-torch", 2) not in reasons


def test_a_head_that_differs_on_the_timed_tokens_gets_no_time(fake: Fake, tmp_path: Path) -> None:
    target = tmp_path / "heads.json"
    fake.results["attention-plain"] = 1.01
    assert main([*RUN, "--json", str(target)]) == 1
    wrong = [row for row in json.loads(target.read_text())["rows"] if row.get("wrong")]
    assert {row["head"] for row in wrong} == {"attention-plain"}
    assert all("seconds" not in row for row in wrong)
    assert "against attention-flash the result differs by" in wrong[0]["not_measured"]


def test_a_head_that_differs_from_its_definition_is_not_run(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "against_definition", lambda head, _: "it differs by 1")
    target = tmp_path / "heads.json"
    assert main([*RUN, "--json", str(target)]) == 1
    assert fake.asked == []
    reasons = {row["not_measured"] for row in json.loads(target.read_text())["rows"]}
    assert reasons == {"against its definition it differs by 1"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--preset", "slow"], "invalid choice: 'slow'"),
        (["--frames", "0"], "expected a positive whole number, got '0'"),
        (["--batch", "two"], "expected a positive whole number, got 'two'"),
        (["--grid", "1"], "sides of at least 2 patches, such as 7 or 7x14, got '1'"),
        (["--grid", "7x7x7"], "got '7x7x7'"),
        (["--limit", "-1"], "expected seconds above 0, got '-1'"),
        (["--dim", "96"], "expected an even width up to 64 or a multiple of 64"),
        (["--heads", "muse-fast"], "unknown head 'muse-fast', expected some of muse-numba"),
        (["--heads", "attention-cudnn"], "attention-cudnn cannot run here: torch does not offer"),
        (["--json", "no/such/heads.json"], "the folder no/such is not there"),
        (["--plot", "no/such/pictures"], "the folder no/such is not there"),
        (["--json", "."], "is a folder, expected a file"),
    ],
)
def test_bad_options(
    options: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(["--device", "cpu", *options])
    assert stopped.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--device", "cuda"])
    assert "torch finds no GPU" in capsys.readouterr().err


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_presets(preset: Settings) -> None:
    assert {7, 12} & {*preset.frames, preset.grids[0][0]} == {7, 12}
    assert set(preset.leave_out) <= set(ON_CPU)
    cases = list(preset.cases())
    count = len(preset.frames) * len(preset.grids) * len(preset.batches)
    assert len(cases) == len(set(cases)) == 2 * count


# The evaluation as a whole


def test_pair_loop() -> None:
    row = pair_loop.measure_pairs(small(pairs=5, pair_batch=2, threads=int(THREADS)))
    measured, computed = row["measured"], {part["size"]: part for part in row["computed"]}
    assert measured["size"] == 5 and measured["head_runs"] == {"ours": 3, "published": 9}
    assert 0 < measured["seconds"]["ours"] < measured["seconds"]["published"]
    assert computed.keys() == {5, 200, 1000}
    assert computed[1000]["head_runs"] == {"ours": 500, "published": 250_000}
    head, product = row["head_run_s"][1], row["product_s"][1]
    assert computed[200]["seconds"]["ours"] == pytest.approx(100 * head + 10_000 * product)
    assert computed[200]["seconds"]["published"] == pytest.approx(10_000 * (head + product))


def test_the_ways_of_evaluating_must_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    original = pair_loop.Evaluation.ours
    monkeypatch.setattr(pair_loop.Evaluation, "ours", lambda self: original(self) * 1.01)
    with pytest.raises(RuntimeError, match="the similarity differs by"):
        pair_loop.measure_pairs(small(threads=int(THREADS)))


# README


@pytest.mark.parametrize("readme", report.SECTIONS)
def test_readmes_show_the_kept_figures(readme: str) -> None:
    text = (ROOT / readme).read_text(encoding="utf-8")
    assert report.with_sections(readme) == text, "run python -m benchmarks.report"


def test_the_kept_table_is_of_the_kept_figures() -> None:
    figures = json.loads((report.RESULTS / "heads.json").read_text(encoding="utf-8"))
    table = (report.RESULTS / "heads.md").read_text(encoding="utf-8")
    assert report.markdown(figures) == table, "run python -m benchmarks.report"


def test_sections_are_made_where_there_are_figures(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    results, readme = tmp_path / "benchmarks" / "results", tmp_path / "README.md"
    of_patches = tmp_path / "examples" / "README.md"
    of_patches.parent.mkdir()
    monkeypatch.setattr(report, "ROOT", tmp_path)
    monkeypatch.setattr(report, "RESULTS", results)
    empty = {}
    for path, names in {readme: report.SECTIONS["README.md"], of_patches: ["heads.json"]}.items():
        marks = "".join(f"<!-- {name} -->\n<!-- end of {name} -->\n" for name in names)
        empty[path] = f"above\n{marks}below\n"
        path.write_text(empty[path])
    report.main()
    assert {path: path.read_text() for path in empty} == empty

    assert main([*RUN, "--json", str(results / "heads.json")]) == 0
    report.main()
    once = readme.read_text()
    report.main()
    assert readme.read_text() == once and once.startswith("above\n") and once.endswith("below\n")
    made = {path.name for path in results.iterdir()}
    assert made == {"heads.json", "heads.md", "time.png", "memory.png"}
    whole = (results / "heads.md").read_text()
    # 40 frames of 5 tokens: 2 ms, linear, against 80 ms, quadratic.
    assert "40 frames of 2x2 patches, batch 1:" in once
    assert "| MUSE, `torch` | 10 | 2.0 ± 0.02 |" in once
    assert "| MUSE, `torch` | 1.00 ± 0.00 | 1.00 ± 0.00 | 1.00 ± 0.00 | 1.00 ± 0.00 |" in whole
    assert "| attention, SDPA flash | 2.00 ± 0.00 |" in whole
    assert "| time | none within the measured range (10 to 200 tokens): cheaper" in once
    shown = of_patches.read_text()
    assert shown.startswith("above\n") and "Measured by `python -m benchmarks" in shown
    for text in (once, shown):
        assert "| 1,000 x 1,000 | 111,556 | 334 |" in text and "| measured |" in text
    readme.write_text("no marks\n")
    with pytest.raises(ValueError, match=r"must have the marks <!-- head\.json -->"):
        report.main()

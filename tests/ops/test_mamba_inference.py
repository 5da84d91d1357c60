"""Mixers without a gradient: in slices of the sequence, against the parts one after the other."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from muse_adapter.layers.mixers import BiMamba, GatedConvolution
from muse_adapter.layers.sequence import Readout
from muse_adapter.ops import backends, mamba_mixer, use_backend
from muse_adapter.ops.backend import Backend
from muse_adapter.ops.mixer_inputs import MixerInputs

if backends("cpu")["numba"].reason is not None:
    pytest.skip(backends("cpu")["numba"].reason, allow_module_level=True)

from muse_adapter.ops.numba_cpu import slices

pytestmark = pytest.mark.usefixtures("nan_memory")

BOUND = {torch.float64: 1e-12, torch.float32: 1e-5}
both_ways = pytest.mark.parametrize("both", [True, False], ids=["both directions", "one direction"])


@pytest.fixture(params=[7, 16, 1000], ids="slices of {}".format)
def rows(request, monkeypatch, threads):
    """Slices so short that a video has several, that several videos are one, and neither."""
    threads(1)
    monkeypatch.setattr(slices, "ROWS", request.param)


def mixer(both=True, dtype=torch.float64, **options):
    torch.manual_seed(0)
    return BiMamba(32, d_state=5, bidirectional=both, **options).to(dtype)


def weights(of):
    reverses = (False, True) if of.bidirectional else (False,)
    return [of._weights(reverse=reverse) for reverse in reverses]


def answers(of, *arguments):
    """Of the numba backend, then of the definition."""
    results = []
    for backend in ("numba", "reference"):
        with use_backend(backend), torch.no_grad():
            results.append(of.forward_hidden(*arguments))
    return results


def close(got, expected):
    assert got.dtype == expected.dtype and got.shape == expected.shape
    return (got - expected).abs().max() <= BOUND[expected.dtype] * expected.abs().max()


@both_ways
@pytest.mark.parametrize("dtype", BOUND, ids=["float64", "float32"])
@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 300])
def test_all_positions(rows, both, dtype, length):
    assert close(*answers(mixer(both, dtype), torch.randn(3, length, 32, dtype=dtype)))


@both_ways
def test_what_stands_behind_the_lengths_is_never_read(rows, both):
    lengths = torch.tensor([20, 0, 9, 7])
    behind = torch.arange(20) >= lengths.unsqueeze(1)
    tokens = torch.randn(4, 20, 32, dtype=torch.float64)
    spoilt = tokens.masked_fill(behind.unsqueeze(-1), float("nan"))
    _, expected = answers(mixer(both), tokens, lengths)
    for got in answers(mixer(both), spoilt, lengths):
        assert close(got, expected)
        assert (got[behind] == 0).all()


@both_ways
def test_positions_behind_the_lengths_are_zero(rows, both):
    lengths, positions = torch.tensor([9, 0]), torch.tensor([[0, 9, 19], [0, 1, 2]])
    behind = torch.arange(20) >= lengths.unsqueeze(1)
    tokens = torch.randn(2, 20, 32, dtype=torch.float64).masked_fill(
        behind.unsqueeze(-1), torch.nan
    )
    for got in answers(mixer(both), tokens, lengths, Readout(positions, 20)):
        assert got[0, 0].isfinite().all() and (got[0, 1:] == 0).all() and (got[1] == 0).all()


@both_ways
def test_more_taps_than_a_slice_has_tokens(both, monkeypatch, threads):
    threads(2)
    monkeypatch.setattr(slices, "ROWS", 3)
    of = mixer(both, d_conv=9)
    assert close(*answers(of, torch.randn(2, 40, 32, dtype=torch.float64)))
    sliced = slices._SlicedMixer(
        MixerInputs(torch.randn(1, 40, 32), torch.randn(64, 32), weights(of), None, None, 40),
        torch.empty(2, 9, 32), torch.empty(2, 32), torch.empty(1, 40, 32),
    )  # fmt: skip
    reads = [sliced.slices[i] for i in sliced._read_by(0, 5)]
    begin, end = sliced.slices[5]
    assert reads[0][0] <= begin - 8 < reads[0][1] and reads[-1][1] == end


@both_ways
@pytest.mark.parametrize("end", [20, 12])
@pytest.mark.parametrize("lengths", [None, [20, 3, 12]], ids=["whole", "lengths"])
def test_some_positions(rows, both, lengths, end):
    positions = torch.tensor([[0, 11, 3], [0, 2, 2], [8, 7, 6]])
    readout = Readout(positions, end)
    lengths = None if lengths is None else torch.tensor(lengths)
    tokens = torch.randn(3, 20, 32, dtype=torch.float64)
    got, expected = answers(mixer(both), tokens, lengths, readout)
    assert close(got, expected)
    everywhere, _ = answers(mixer(both), tokens, lengths)
    assert close(got, readout.select(everywhere))
    if lengths is not None:
        behind = torch.arange(20) >= lengths.unsqueeze(1)
        tokens = tokens.masked_fill(behind.unsqueeze(-1), float("nan"))
        assert torch.equal(answers(mixer(both), tokens, lengths, readout)[0], got)


@pytest.mark.parametrize("options", [{"expand": 2}, {"d_conv": 2}, {"divide_out": True}], ids=str)
def test_other_mixers(rows, options):
    assert close(*answers(mixer(**options), torch.randn(2, 20, 32, dtype=torch.float64)))


def test_tokens_of_any_strides(rows):
    tokens = torch.randn(20, 3, 64, dtype=torch.float64).transpose(0, 1)[..., ::2]
    assert close(*answers(mixer(), tokens))


def test_one_length_for_all_videos(rows):
    tokens = torch.randn(5, 20, 32, dtype=torch.float64)
    assert close(*answers(mixer(), tokens, torch.tensor([7])))


def test_weights_of_any_strides(rows):
    of, tokens = mixer().requires_grad_(False), torch.randn(2, 20, 32, dtype=torch.float64)
    spread = [
        type(given)(*(torch.stack([weight, weight], -1)[..., 0] for weight in given))
        for given in weights(of)
    ]
    assert spread[0].D.stride() == (2,)
    got = mamba_mixer(tokens, of.in_proj.weight, spread, end=3, backend="numba")
    assert close(got, answers(of, tokens)[1])


def test_no_tokens():
    of = mixer()
    with torch.no_grad(), use_backend("numba"):
        assert of.forward_hidden(torch.empty(2, 0, 32, dtype=torch.float64)).shape == (2, 0, 32)
        assert of.forward_hidden(torch.empty(0, 9, 32, dtype=torch.float64)).shape == (0, 9, 32)


@pytest.mark.parametrize("kind", [BiMamba, GatedConvolution])
def test_an_exported_program_under_autocast(kind):
    """What was asked when it was traced no longer holds."""
    torch.manual_seed(0)
    of, tokens = kind(32), torch.randn(2, 9, 32)
    with torch.no_grad(), use_backend("numba"):
        program = torch.export.export(of, (tokens,)).module()
        expected = of(tokens)
        with torch.autocast("cpu", torch.bfloat16):
            got = program(tokens)
    assert (got - expected).abs().max() < 0.02 * expected.abs().max()


def test_a_gradient_that_was_not_wanted_before_is_refused_by_name():
    of, tokens = mixer(dtype=torch.float32).requires_grad_(False), torch.randn(2, 9, 32)
    with use_backend("numba"):
        program = torch.export.export(of, (tokens,)).module()
    with pytest.raises(RuntimeError, match="mamba_inference has no gradient"):
        program(tokens.requires_grad_()).sum().backward()


def test_nan_stays_in_its_video(rows):
    tokens = torch.randn(3, 20, 32)
    clean, _ = answers(mixer(dtype=torch.float32), tokens)
    tokens[1, 5, 0] = float("nan")
    got, _ = answers(mixer(dtype=torch.float32), tokens)
    assert close(got[::2], clean[::2]) and got[1].isnan().any()


def test_where_it_does_not_serve(monkeypatch):
    """Then the parts run one after the other, with the same result."""
    tokens = torch.randn(2, 9, 32)
    of = mixer(dtype=torch.float32)
    composed = []
    original = Backend.mamba_mixer
    monkeypatch.setattr(
        Backend, "mamba_mixer", lambda *given: composed.append(given) or original(*given)
    )

    def served(tokens, of=of, backend="numba"):
        composed.clear()
        y = mamba_mixer(tokens, of.in_proj.weight, weights(of), backend=backend)
        assert y.shape == tokens.shape
        return not composed

    assert not served(tokens), "the weights want gradients"
    with torch.no_grad():
        assert served(tokens)
        assert not served(tokens.bfloat16(), mixer(dtype=torch.bfloat16))
        assert not served(tokens, backend="torch")
        with torch.autocast("cpu", torch.bfloat16):
            assert not served(tokens)
        narrow = BiMamba(24, d_state=5)
        assert not served(torch.randn(2, 9, 24), narrow)
        assert close(*answers(narrow, torch.randn(2, 9, 24)))


@both_ways
@pytest.mark.parametrize("some", [False, True], ids=["all positions", "some positions"])
def test_it_is_one_operator(both, some):
    of, tokens = mixer(both, torch.float32), torch.randn(2, 9, 32)
    forward, *reverse = (list(direction) for direction in weights(of.requires_grad_(False)))
    lengths = torch.tensor([9, 4])
    readout = Readout(torch.tensor([[0, 3], [2, 1]]), 4) if some else None
    positions, end = readout or (None, 9)
    torch.library.opcheck(
        torch.ops.muse_adapter.mamba_inference.default,
        (tokens, of.in_proj.weight, forward, reverse[0] if both else [], lengths, positions, end),
    )

    def hidden(tokens):
        return of.forward_hidden(tokens, lengths, readout)

    calls = CompileCounterWithBackend("aot_eager")
    with use_backend("numba"):
        assert torch.equal(
            torch.compile(hidden, fullgraph=True, backend=calls)(tokens), hidden(tokens)
        )
    (graph,) = calls.graphs
    operators = [str(n.target) for n in graph.graph.nodes if "muse_adapter" in str(n.target)]
    assert operators == ["muse_adapter.mamba_inference"]


def test_bits_do_not_depend_on_which_direction_comes_first(monkeypatch, threads):
    threads(1)
    monkeypatch.setattr(slices, "ROWS", 16)
    of, tokens = mixer(dtype=torch.float32), torch.randn(1, 90, 32)
    results = []
    for last in (False, True):

        def run(tasks, threads, last=last):
            ready = [task for task in tasks if not task.missing]
            while ready:
                task = ready.pop(-1 if last else 0)
                task.run()
                for dependent in task.dependents:
                    dependent.missing -= 1
                    if not dependent.missing:
                        ready.append(dependent)

        monkeypatch.setattr(slices, "run_tasks", run)
        results.append(answers(of, tokens)[0])
    assert torch.equal(*results)

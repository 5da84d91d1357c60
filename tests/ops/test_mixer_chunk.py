"""A mixer in chunks of the sequence against one call, on outputs, states and all gradients."""

from __future__ import annotations

import pytest
import torch

from muse_adapter.layers.mixers import BiMamba
from muse_adapter.layers.sequence import valid_first
from muse_adapter.ops import MixerState, mamba_mixer, mamba_mixer_chunk
from muse_adapter.ops.numba_cpu import NUMBA
from muse_adapter.ops.triton_gpu import TRITON
from tests.support.tolerances import relative_error

BATCH, LENGTH, DIM, STATES = 3, 9, 16, 5
CUTS = {"one by one": [1] * 9, "short and long": [2, 6, 1], "in one": [9]}
# Valid tokens, from all of a chunk to none of it.
VALID = torch.tensor([[1] * 9, [0, 0, 1, 0, 1, 1, 0, 0, 1], [0] * 8 + [1]], dtype=torch.bool)


def make_mixer(**options):
    torch.manual_seed(0)
    options = {"d_state": STATES, "bidirectional": False, **options}
    of = BiMamba(DIM, **options).double()
    for parameter in of.parameters():  # at its start the scan hardly shows beside the convolution
        torch.nn.init.normal_(parameter, std=0.5)
    return of


def zeros(of, batch=BATCH):
    inner, _, taps = of.conv1d.weight.shape
    like = of.conv1d.weight
    return MixerState(
        like.new_zeros(batch, taps - 1, inner), like.new_zeros(batch, inner, of.d_state)
    )


def whole(of, tokens, valid, backend):
    lengths = None if valid is None else valid.sum(1)
    given = tokens if valid is None else valid_first(tokens, valid)
    y = mamba_mixer(
        given, of.in_proj.weight, [of._weights(reverse=False)], lengths=lengths, backend=backend
    )
    return y if valid is None else [row[:n] for row, n in zip(y, lengths.tolist(), strict=True)]


def in_chunks(of, tokens, valid, sizes, backend):
    """Return outputs as `whole` does, and the last state."""
    state, parts = zeros(of, len(tokens)), []
    masks = [None] * len(sizes) if valid is None else valid.split(sizes, 1)
    for chunk, mask in zip(tokens.split(sizes, 1), masks, strict=True):
        lengths = None if mask is None else mask.sum(1)
        y, state = mamba_mixer_chunk(
            chunk if mask is None else valid_first(chunk, mask),
            of.in_proj.weight, of._weights(reverse=False), state,
            lengths=lengths, backend=backend,
        )  # fmt: skip
        parts.append(y)
        if mask is not None:
            parts[-1] = [row[:n] for row, n in zip(y, lengths.tolist(), strict=True)]
    if valid is None:
        return torch.cat(parts, 1), state
    return [torch.cat(rows) for rows in zip(*parts, strict=True)], state


def check(backend, valid, sizes, **options):
    of = make_mixer(**options)
    batch, length = (BATCH, LENGTH) if valid is None else valid.shape
    tokens = torch.randn(batch, length, DIM, dtype=torch.float64, requires_grad=True)
    wanted = [tokens, *of.parameters()]
    results = []
    for y in (
        whole(of, tokens, valid, backend),
        in_chunks(of, tokens, valid, sizes, backend)[0],
    ):
        flat = torch.cat([row.flatten() for row in y])
        loss = (flat * torch.linspace(-1, 1, len(flat), dtype=flat.dtype)).sum()
        grads = torch.autograd.grad(loss, wanted, allow_unused=True)
        results.append([flat, *(g for g in grads if g is not None)])
    expected, got = results
    assert len(got) == len(expected)
    for one, other in zip(got, expected, strict=True):
        assert relative_error(one, other) <= 1e-10
    with torch.no_grad():
        y, state = in_chunks(of, tokens, valid, sizes, backend)
        assert relative_error(torch.cat([row.flatten() for row in y]), expected[0]) <= 1e-10
        _, at_once = in_chunks(of, tokens, valid, [length], backend)
        for one, other in zip(state, at_once, strict=True):
            assert not other.numel() or relative_error(one, other) <= 1e-10
    assert [tuple(t.shape) for t in state] == [tuple(t.shape) for t in zeros(of, batch)]


@pytest.mark.parametrize("valid", [None, VALID], ids=["whole", "lengths"])
@pytest.mark.parametrize("sizes", CUTS.values(), ids=CUTS)
def test_chunks_equal_one_call(backend, valid, sizes):
    check(backend, valid, sizes)


@pytest.mark.parametrize("options", [{"d_conv": 1}, {"d_conv": 7}, {"expand": 2}], ids=str)
def test_other_mixers(backend, options):
    check(backend, VALID, [2, 6, 1], **options)


@pytest.mark.parametrize("rows", [2, 20], ids="slices of {}".format)
def test_numba_in_slices(rows, monkeypatch):
    """Several slices of one video, and several videos in one slice."""
    if (reason := NUMBA.unavailable()) is not None:
        pytest.skip(f"backend numba: {reason}")
    monkeypatch.setattr("muse_adapter.ops.numba_cpu.slices.ROWS", rows)
    monkeypatch.setattr("muse_adapter.ops.numba_cpu.MIN_SLICED_CHUNK", 0)
    check("numba", VALID, [2, 6, 1])
    check("numba", None, [2, 6, 1])


@pytest.mark.skipif(
    TRITON.unavailable(torch.device("cpu")) is not None,
    reason=f"backend triton on CPU: {TRITON.unavailable(torch.device('cpu'))}",
)
def test_triton_in_its_interpreter():
    check("triton", VALID[1:, :4], [1, 3], d_state=2)


def test_the_state_is_not_ignored(backend):
    of = make_mixer()
    tokens = torch.randn(BATCH, LENGTH, DIM, dtype=torch.float64)
    _, state = in_chunks(of, tokens, None, [LENGTH], backend)
    for zeroed in MixerState._fields:
        spoilt = state._replace(**{zeroed: torch.zeros_like(getattr(state, zeroed))})
        results = [
            mamba_mixer_chunk(
                *(tokens, of.in_proj.weight, of._weights(reverse=False), given), backend=backend
            )[0]
            for given in (state, spoilt)
        ]
        assert relative_error(*results) > 1e-3


def test_nothing_valid_moves_nothing(backend):
    of = make_mixer()
    tokens = torch.randn(BATCH, LENGTH, DIM, dtype=torch.float64)
    _, before = in_chunks(of, tokens, None, [LENGTH], backend)
    _, after = mamba_mixer_chunk(
        torch.full_like(tokens, float("nan")),
        of.in_proj.weight, of._weights(reverse=False), before,
        lengths=torch.tensor([0]), backend=backend,
    )  # fmt: skip
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))


def test_the_state_keeps_no_more_than_itself(backend):
    of = make_mixer()
    tokens = torch.randn(BATCH, LENGTH, DIM, dtype=torch.float64)
    _, state = in_chunks(of, tokens, None, [LENGTH], backend)
    assert all(t.untyped_storage().nbytes() == t.nbytes for t in state)


# id: (state of zeros -> the one given, message)
WRONG = {
    "batch": (lambda s: MixerState(s.conv[:1], s.scan), r"state.conv must have shape \(3, 3, 16\)"),
    "taps": (lambda s: MixerState(s.conv[:, 1:], s.scan), r"got \(3, 2, 16\)"),
    "states": (lambda s: MixerState(s.conv, s.scan[..., 1:]), r"state.scan must have shape"),
    "device": (lambda s: MixerState(s.conv.to("meta"), s.scan), r"state.conv must be on the dev"),
}


@pytest.mark.parametrize(("spoil", "message"), WRONG.values(), ids=WRONG)
def test_wrong_states(spoil, message):
    of = make_mixer()
    tokens = torch.randn(BATCH, LENGTH, DIM, dtype=torch.float64)
    with pytest.raises(ValueError, match=message):
        mamba_mixer_chunk(tokens, of.in_proj.weight, of._weights(reverse=False), spoil(zeros(of)))

"""The head on videos that come in chunks: it is one call on the whole, on every backend."""

from __future__ import annotations

import math
import warnings

import pytest
import torch

from muse_adapter import MultiScaleMamba, RunningMean, StreamState
from muse_adapter.config import AGGREGATIONS, MIXERS
from muse_adapter.ops import use_backend
from muse_adapter.ops.triton_gpu import TRITON
from tests.support.tolerances import relative_error

FRAMES, GRID = 6, (2, 3)
CUTS = {"one by one": [1] * 6, "unequal": [1, 3, 2], "in one": [6]}
# The second video has no real frame in its first chunk, holes, and padding.
MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 1, 0, 1, 0]], dtype=torch.bool)
CASES = pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "mask"])


def make_head(dtype=torch.float64, dim=16, **fields):
    """Random everywhere, with a dt so long that frames further back count."""
    torch.manual_seed(0)
    defaults = {"scales": (0.5, 1.0), "depth": 2, "d_state": 4, "dropout": 0.0, "in_dim": 6}
    defaults |= {"mixer": "mamba", "aggregation": "frame_wise"}
    head = MultiScaleMamba(dim=dim, **{**defaults, **fields}).to(dtype)
    for name, parameter in head.named_parameters():
        if not name.endswith("A_log"):
            torch.nn.init.normal_(parameter, std=0.4)
    return head


def make_tokens(dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    shape = (2, FRAMES, 1 + math.prod(GRID), 6)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def stream(head, tokens, mask=None, sizes=(1, 3, 2), state=None):
    """Return the frames of all chunks and the last state."""
    parts = []
    masks = [None] * len(sizes) if mask is None else mask.split(sizes, 1)
    for chunk, chunk_mask in zip(tokens.split(sizes, 1), masks, strict=True):
        frames, state = head.forward_chunk(chunk, state, chunk_mask, grid=GRID)
        parts.append(frames)
    return torch.cat(parts, 1), state


def check(mask, sizes, **fields):
    """Compare frames and all gradients, and the frames without gradients."""
    head, tokens = make_head(**fields), make_tokens().requires_grad_()
    results = []
    for frames in (
        head.forward_features(tokens, mask, grid=GRID),
        stream(head, tokens, mask, sizes)[0],
    ):
        loss = (frames * torch.linspace(-1, 1, frames.numel()).view_as(frames)).sum()
        results.append([frames, *torch.autograd.grad(loss, [tokens, *head.parameters()])])
    for expected, got in zip(*results, strict=True):
        assert relative_error(got, expected) <= 1e-10
    head.eval()
    with torch.no_grad():
        assert relative_error(stream(head, tokens, mask, sizes)[0], results[0][0]) <= 1e-10


@CASES
@pytest.mark.parametrize("sizes", CUTS.values(), ids=CUTS)
def test_any_cutting_equals_one_call(backend, mask, sizes):
    with use_backend(backend):
        check(mask, sizes)


@pytest.mark.slow
@pytest.mark.skipif(
    TRITON.unavailable(torch.device("cpu")) is not None,
    reason=f"backend triton on CPU: {TRITON.unavailable(torch.device('cpu'))}",
)
def test_triton_in_its_interpreter():
    """One layer and one scale, which it computes for seconds."""
    with use_backend("triton"):
        check(MASK, [1, 3, 2], depth=1, scales=(1.0,))


def test_other_heads():
    check(MASK, [1, 3, 2], d_conv=1, expand=2, scales=(1.0,), depth=1)


def test_gradient_checkpointing():
    head, tokens = make_head(), make_tokens()
    gradients = []
    for enable in (False, True):
        head.set_grad_checkpointing(enable)
        loss = stream(head, tokens, MASK)[0].square().sum()
        gradients.append(torch.autograd.grad(loss, list(head.parameters())))
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


def test_frames_before_a_chunk_count():
    head, tokens = make_head(), make_tokens()
    _, state = stream(head, tokens[:, :4], sizes=(4,))
    frames, fresh = (head.forward_chunk(tokens[:, 4:], s, grid=GRID)[0] for s in (state, None))
    for spoilt in (state._replace(conv=state.conv * 0), state._replace(scan=state.scan * 0)):
        got, _ = head.forward_chunk(tokens[:, 4:], spoilt, grid=GRID)
        assert relative_error(got, frames) > 1e-3
    assert relative_error(fresh, frames) > 1e-3


def test_a_masked_frame_moves_nothing_and_warns_of_nothing():
    head, tokens = make_head(), make_tokens()
    _, before = stream(head, tokens)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frames, after = head.forward_chunk(
            torch.full_like(tokens, math.nan), before, torch.zeros(2, FRAMES), grid=GRID
        )
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))
    assert frames.isfinite().all()


def test_what_is_masked_may_be_nan():
    head, tokens = make_head(), make_tokens()
    expected, _ = stream(head, tokens, MASK)
    spoilt = tokens.masked_fill(~MASK[:, :, None, None], math.nan).requires_grad_()
    got, _ = stream(head, spoilt, MASK)
    assert torch.equal(got[MASK], expected[MASK])
    got.sum().backward()
    assert spoilt.grad.isfinite().all() and not spoilt.grad[~MASK].any()


def test_the_embedding_of_a_stream_is_that_of_the_video():
    head, tokens = make_head(), make_tokens()
    mean, state = RunningMean(), None
    for chunk, mask in zip(tokens.split(2, 1), MASK.split(2, 1), strict=True):
        frames, state = head.forward_chunk(chunk, state, mask, grid=GRID)
        mean.update(frames, mask)
    assert relative_error(mean.embedding, head(tokens, MASK, grid=GRID)) <= 1e-12


def test_states_are_batched_split_saved_and_moved(tmp_path):
    """Two streams begin alone, go on as a batch, and end alone."""
    head, tokens = make_head(), make_tokens()
    expected = head.forward_features(tokens, grid=GRID)
    _, first = stream(head, tokens[:1, :1], sizes=(1,))
    _, second = stream(head, tokens[1:, :1], sizes=(1,))
    frames, state = stream(head, tokens[:, 1:4], sizes=(3,), state=StreamState.cat([first, second]))
    assert relative_error(frames, expected[:, 1:4]) <= 1e-10
    parts = state.detach().split()
    assert [part.conv.untyped_storage().nbytes() for part in parts] == [2 * 3 * 16 * 8] * 2
    torch.save(tuple(parts[1]), tmp_path / "state.pt")
    loaded = StreamState(*torch.load(tmp_path / "state.pt"))
    frames, _ = stream(head, tokens[1:, 4:], sizes=(2,), state=loaded.to("cpu"))
    assert relative_error(frames, expected[1:, 4:]) <= 1e-10


def test_the_state_has_the_documented_size_and_owns_its_memory():
    head = MultiScaleMamba(
        dim=64, mixer="mamba", aggregation="frame_wise", scales=(1.0,), expand=2
    ).eval()
    with torch.no_grad():
        _, state = head.forward_chunk(torch.randn(3, 4, 5, 64))
    assert state.conv.shape == (3, 4, 3, 128) and state.scan.shape == (3, 4, 128, 16)
    for tensor in state:
        assert tensor.untyped_storage().nbytes() == 4 * tensor.numel()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_heads_of_half_precision_keep_a_float32_state(dtype):
    head, tokens = make_head(dtype), make_tokens(dtype)
    frames, state = stream(head, tokens, MASK)
    assert frames.dtype == dtype and {t.dtype for t in state} == {torch.float32}
    bound = {torch.float16: 1e-2, torch.bfloat16: 8e-2}[dtype]
    assert relative_error(frames, head.forward_features(tokens, MASK, grid=GRID)) <= bound


def test_autocast_may_change_between_chunks():
    head, tokens = make_head(torch.float32), make_tokens(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        expected = head.forward_features(tokens, MASK, grid=GRID)
        got, state = stream(head, tokens, MASK)
    assert got.dtype == expected.dtype and {t.dtype for t in state} == {torch.float32}
    assert relative_error(got, expected) <= 5e-2
    assert head.forward_chunk(tokens, state, grid=GRID)[0].dtype == torch.float32


@pytest.mark.slow
@pytest.mark.parametrize("enabled", [pytest.param(True, id="gradients"), False])
def test_compiles_as_one_graph(enabled):
    head, tokens = make_head(dim=32, depth=1, scales=(1.0,)), make_tokens()
    compiled = torch.compile(head.forward_chunk, fullgraph=True, backend="aot_eager")
    with torch.set_grad_enabled(enabled):
        _, state = head.forward_chunk(tokens, grid=GRID)
        expected, after = head.forward_chunk(tokens, state, MASK, grid=GRID)
        got, got_after = compiled(tokens, state, MASK, grid=GRID)
    torch._dynamo.reset()
    for one, other in ((got, expected), *zip(got_after, after, strict=True)):
        assert relative_error(one, other) <= 1e-10


REASONS = {
    "bimamba": "its reverse direction starts at the end of the video",
    "attention": "its tokens attend to those of later frames",
    "conv": "its reverse convolution reads later tokens",
    "scale_wise": "it puts a scale's tokens of all frames before those of the next scale",
    "spatial_wise": "it averages each scale over all frames",
}


@pytest.mark.parametrize("given", [*MIXERS, *AGGREGATIONS])
def test_other_heads_are_refused_by_name(given):
    field = "mixer" if given in MIXERS else "aggregation"
    head, tokens = make_head(**{field: given}), make_tokens()
    if given in ("mamba", "frame_wise"):
        head.forward_chunk(tokens, grid=GRID)
        return
    with pytest.raises(ValueError, match=f'got {field}="{given}": {REASONS[given]}'):
        head.forward_chunk(tokens, grid=GRID)


def state_with(**fields):
    state = StreamState(torch.zeros(2, 2, 3, 16).double(), torch.zeros(2, 2, 16, 4).double())
    return state._replace(**fields)


# id: (state, error, message)
WRONG = {
    "videos": (
        state_with(conv=torch.zeros(3, 2, 3, 16).double()),
        *(ValueError, "state.conv is of 3 videos, tokens are of 2"),
    ),
    "another head's depth": (
        state_with(conv=torch.zeros(2, 4, 3, 16).double()),
        *(ValueError, r"depth, d_conv - 1, E\) = \(2, 2, 3, 16\), got \(2, 4, 3, 16\): is it the"),
    ),
    "another head's d_state": (
        state_with(scan=torch.zeros(2, 2, 16, 8).double()),
        *(ValueError, r"state.scan must have this head's shape \(B, depth, E, S\) = \(2, 2, 16, 4"),
    ),
    "dtype": (
        state_with(scan=torch.zeros(2, 2, 16, 4)),
        *(TypeError, "state.scan must be torch.float64 for this head, got torch.float32"),
    ),
    "device": (
        state_with(conv=torch.zeros(2, 2, 3, 16, device="meta").double()),
        *(ValueError, "state.conv is on meta, the head is on cpu"),
    ),
    "no state": (torch.zeros(2, 2), TypeError, "or None, got Tensor"),
    "a list": ([1, 2], TypeError, "must be the StreamState that the last call returned"),
}


@pytest.mark.parametrize(("state", "error", "message"), WRONG.values(), ids=WRONG)
def test_wrong_states(state, error, message):
    with pytest.raises(error, match=message):
        make_head().forward_chunk(make_tokens(), state, grid=GRID)


def test_wrong_tokens():
    with pytest.raises(ValueError, match=r"tokens must have shape \(B, T, N, C\), got \(6, 7, 6\)"):
        make_head().forward_chunk(make_tokens()[0], grid=GRID)


@pytest.mark.slow(seconds=25)
def test_memory_does_not_grow(run_python):
    """100,000 frames: the resident peak after 1,000 of them is that of all, within 2 %."""
    done = run_python(
        """
        from benchmarks.streaming import peaks
        first, last = peaks(frames=100_000, after=1_000, dim=16, depth=4, scales=(0.5,))
        print(first, last)
        """
    )
    assert done.returncode == 0, done.stderr
    first, last = map(int, done.stdout.split()[-2:])
    assert 0 < first <= last <= 1.02 * first

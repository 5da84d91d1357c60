"""The numba backend against a loop over time in float64."""

from __future__ import annotations

import functools

import pytest
import torch

from muse_adapter.ops.numba_cpu import NUMBA as backend
from tests.support.numba_scans import (
    BOUND,
    NAMES,
    agree,
    cotangents_of,
    draw,
    gradients,
    identical,
    naive,
    options,
    scan,
)

if backend.unavailable() is not None:
    pytest.skip(f"backend numba: {backend.unavailable()}", allow_module_level=True)


pytestmark = pytest.mark.usefixtures("nan_memory")

dtypes = pytest.mark.parametrize("dtype", BOUND, ids=["float64", "float32"])
directions = pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])


# batch, length, channels, states, then what is special
CASES = {
    "one step, one channel, one state": (1, 1, 1, 1, {}),
    "two steps": (2, 2, 16, 16, {}),
    "channels below a block": (2, 15, 3, 4, {}),
    "one whole block": (1, 63, 16, 5, {}),
    "blocks and a rest": (2, 63, 37, 16, {}),
    "several blocks in a job": (1, 33, 512, 3, {}),
    "longer than a few chunks": (1, 257, 37, 3, {}),
    "long": (1, 1000, 16, 2, {}),
    "empty and partial videos": (4, 63, 37, 4, {"lengths": [0, 63, 1, 32]}),
    "only empty videos": (2, 5, 3, 4, {"lengths": [0, 0]}),
    "chunk borders": (4, 65, 16, 2, {"lengths": [31, 32, 33, 64]}),
    "no D": (2, 15, 37, 4, {"without": ("D",)}),
    "no bias": (2, 15, 37, 4, {"without": ("bias",)}),
    "no softplus": (2, 15, 37, 4, {"softplus": False, "without": ("D", "bias")}),
    "B in groups of whole blocks": (2, 17, 64, 4, {"b": 2, "c": 2}),
    "groups of three and six blocks": (2, 9, 768, 3, {"b": 16, "c": 8}),
    "groups smaller than a block": (2, 17, 64, 4, {"b": 16, "c": 16}),
    "groups across blocks": (2, 17, 37 * 2, 4, {"b": 2, "c": 2}),
    "every channel its own B and C": (2, 17, 37, 4, {"b": 37, "c": 37}),
    "other groups for C": (2, 17, 24, 4, {"b": 3, "c": 8}),
    "B shared, C of each channel": (2, 17, 64, 4, {"b": 1, "c": 64}),
    "B constant": (2, 40, 37, 4, {"b": "constant"}),
    "C constant": (2, 40, 64, 4, {"c": "constant", "lengths": [40, 7]}),
    "B and C constant": (2, 40, 16, 4, {"b": "constant", "c": "constant"}),
    "B constant in each video": (3, 40, 37, 4, {"b": "video", "c": "video"}),
    "sixteen states": (3, 97, 48, 16, {"lengths": [97, 0, 33]}),
    "sixteen states, chunk borders": (4, 65, 16, 16, {"lengths": [31, 32, 33, 64]}),
    "sixteen states, several blocks in a job": (1, 70, 512, 16, {}),
    "sixteen states, groups": (2, 70, 128, 16, {"b": 2, "c": 4}),
    "sixteen states, B of each channel": (2, 40, 32, 16, {"b": 32}),
    "sixteen states, C constant": (2, 40, 32, 16, {"c": "constant"}),
    "sixteen states, constant in each video": (3, 40, 37, 16, {"b": "video", "c": "video"}),
    "sixteen states, nothing else": (2, 40, 32, 16, {"softplus": False, "without": ("D", "bias")}),
}


@functools.cache
def case_and_answer(case, reverse):
    """A case's arguments, cotangents and options, and what the loop makes of them."""
    *shape, special = CASES[case]
    how = {key: special[key] for key in ("b", "c", "without") if key in special}
    # Drawn in float32, so that one answer serves both types.
    arguments = [
        None if t is None else t.detach().double() for t in draw(torch.float32, *shape, **how)
    ]
    if not special.get("softplus", True):
        arguments[1].abs_()  # states grow where dt is negative
    arguments = [None if tensor is None else tensor.requires_grad_() for tensor in arguments]
    cotangents = cotangents_of(torch.float32, *shape)
    lengths = special.get("lengths")
    lengths = None if lengths is None else torch.tensor(lengths)
    given = options(reverse, lengths, special.get("softplus", True))
    return arguments, cotangents, given, gradients(naive, arguments, cotangents, **given)


@directions
@pytest.mark.parametrize("case", CASES)
@dtypes
def test_agrees_with_the_loop(dtype, case, reverse):
    arguments, cotangents, given, expected = case_and_answer(case, reverse)
    arguments = [None if t is None else t.detach().to(dtype).requires_grad_() for t in arguments]
    got = gradients(scan, arguments, cotangents, **given)
    assert got["y"].dtype == got["state"].dtype == dtype
    agree(got, expected, BOUND[dtype])


@pytest.mark.parametrize("used", ["y", "state"])
def test_one_output_used(used):
    shape = (2, 40, 37, 4)
    arguments = draw(torch.float64, *shape)
    which = ["y", "state"].index(used)
    cotangent = cotangents_of(torch.float64, *shape)[which]
    results = []
    for function in (scan, naive):
        output = function(*arguments, **options())[which]
        # The state depends neither on C nor on D, which the loop then has no gradient for.
        given = torch.autograd.grad(
            output, arguments, cotangent, allow_unused=True, materialize_grads=True
        )
        results.append(dict(zip(NAMES, given, strict=True)))
    agree(*results, 1e-12)


@directions
def test_other_memory_layouts(reverse):
    """Transposed, cut, expanded and flipped arguments, and a cotangent that is one number."""
    x, delta, A, B, C, D, bias = draw(torch.float64, 2, 40, 37, 4)
    odd = (
        x.detach().transpose(1, 2).contiguous().transpose(1, 2),
        torch.cat([delta, delta], 2).detach()[..., :37],
        A.detach().t().contiguous().t(),
        B.detach()[:, :1].expand(-1, 40, 37, -1),
        torch.cat([C, C], 3).detach()[..., ::2],
        D.detach().flip(0)[::1],
        torch.stack([bias, bias], 1).detach()[:, 0],
    )
    odd = [tensor.requires_grad_() for tensor in odd]
    plain = [tensor.detach().clone().contiguous().requires_grad_() for tensor in odd]
    lengths = torch.tensor([[40, 0], [13, 0]], dtype=torch.int32)[:, 0]
    cotangents = (torch.ones(()).double().expand(2, 40, 37), torch.ones(()).expand(2, 37, 4))
    got = gradients(scan, odd, cotangents, **options(reverse, lengths))
    agree(got, gradients(naive, plain, cotangents, **options(reverse, lengths)), 1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_half_precision_is_computed_in_float32(dtype):
    arguments = draw(dtype, 2, 40, 37, 4)
    cotangents = cotangents_of(torch.float32, 2, 40, 37, 4)
    got = gradients(scan, arguments, cotangents, **options())
    assert got["y"].dtype == got["state"].dtype == torch.float32
    assert all(got[f"grad {name}"].dtype == dtype for name in NAMES)
    expected = gradients(naive, arguments, cotangents, **options())
    agree({"y": got["y"]}, {"y": expected["y"]}, 1e-5)
    identical({"x": got["grad x"].isfinite()}, {"x": torch.ones(2, 40, 37, dtype=torch.bool)})


def test_no_gradient_wanted():
    arguments = draw(torch.float64, 2, 40, 37, 4)
    with torch.no_grad():
        y, state = scan(*arguments, **options())
    assert not y.requires_grad and not state.requires_grad
    expected, _ = scan(*arguments, **options())
    agree({"y": y}, {"y": expected}, BOUND[torch.float64])


@pytest.mark.parametrize("only", range(7), ids=NAMES)
def test_gradient_of_one_argument(only):
    arguments = draw(torch.float64, 1, 20, 16, 4)
    dy = torch.randn(1, 20, 16, dtype=torch.float64)
    expected = torch.autograd.grad(naive(*arguments, **options())[0], arguments[only], dy)[0]
    alone = [tensor.detach() for tensor in arguments]
    alone[only].requires_grad_()
    scan(*alone, **options())[0].backward(dy)
    agree({"grad": alone[only].grad}, {"grad": expected}, 1e-12)
    assert all(tensor.grad is None for i, tensor in enumerate(alone) if i != only)


@directions
def test_gradcheck(reverse):
    arguments = draw(torch.float64, 2, 5, 3, 2)
    lengths = torch.tensor([5, 3])
    assert torch.autograd.gradcheck(
        lambda *tensors: scan(*tensors, **options(reverse, lengths)), arguments
    )


def test_a_second_derivative_is_refused():
    arguments = draw(torch.float64, 1, 5, 3, 2)
    y, _ = scan(*arguments, **options())
    (dx,) = torch.autograd.grad(y.sum(), arguments[0], create_graph=True)
    with pytest.raises(RuntimeError, match="has no second derivative: use backend='reference'"):
        torch.autograd.grad(dx.sum(), arguments[1])


@pytest.mark.parametrize("kind", [1, "constant", "video"])
@dtypes
def test_no_tokens(dtype, kind):
    arguments = draw(dtype, 2, 0, 16, 3, b=kind, c=kind)
    y, state = scan(*arguments, **options())
    assert y.shape == (2, 0, 16) and (state == 0).all()
    for gradient in torch.autograd.grad(y.sum() + state.sum(), arguments):
        assert (gradient == 0).all()


few_and_many_states = pytest.mark.parametrize("states", [4, 16])


@few_and_many_states
@directions
def test_float32_over_sixteen_thousand_steps(reverse, states):
    """States that live for thousands of steps add up their rounding."""
    arguments = draw(torch.float32, 1, 16000, 16, states)
    with torch.no_grad():
        arguments[1].sub_(4)
        arguments[2].copy_(-torch.linspace(0.1, 16, 16 * states).view(16, states))
    exact = [tensor.detach().double().requires_grad_() for tensor in arguments]
    cotangents = cotangents_of(torch.float32, 1, 16000, 16, states)
    got = gradients(scan, arguments, cotangents, **options(reverse))
    agree(got, gradients(scan, exact, cotangents, **options(reverse)), 1e-5)


@dtypes
@few_and_many_states
@directions
def test_nan_stays_in_its_video_and_channel(reverse, states, dtype):
    shape = (3, 70, 37, states)
    clean = draw(dtype, *shape)
    cotangents = (torch.randn(3, 70, 37, dtype=dtype), None)
    expected = gradients(scan, clean, cotangents, **options(reverse))
    dirty = [tensor.detach().clone().requires_grad_() for tensor in clean]
    with torch.no_grad():
        dirty[0][1, 35, 5] = float("nan")
        dirty[1][1, 50, 20] = float("nan")
        dirty[3][2, 20] = float("nan")
    got = gradients(scan, dirty, cotangents, **options(reverse))
    for name in ("y", "state", "grad x", "grad delta", "grad B", "grad C"):
        assert torch.equal(got[name][0], expected[name][0]), f"{name} of a clean video"
    for channel, first in ((5, 35), (20, 50)):
        hit = slice(0, first + 1) if reverse else slice(first, None)
        assert got["y"][1, hit, channel].isnan().all()
    others = [channel for channel in range(37) if channel not in (5, 20)]
    assert torch.equal(got["y"][1][:, others], expected["y"][1][:, others])
    before, after = slice(0, 20), slice(21, None)
    untouched, hit = (after, before) if reverse else (before, after)
    assert got["y"][2, hit].isnan().all()
    assert torch.equal(got["y"][2, untouched], expected["y"][2, untouched])


@dtypes
@few_and_many_states
@directions
def test_padding_is_never_read(reverse, states, dtype):
    shape = (3, 40, 37, states)
    lengths = torch.tensor([40, 17, 0])
    clean = draw(dtype, *shape)
    dirty = [tensor.detach().clone().requires_grad_() for tensor in clean]
    dy, dstate = cotangents_of(dtype, *shape)
    wild = dy.clone()
    with torch.no_grad():
        for video, valid in enumerate(lengths.tolist()):
            for tensor in (dirty[0], dirty[1], dirty[3], dirty[4], wild):
                tensor[video, valid:] = float("nan")
    given = options(reverse, lengths)
    got = gradients(scan, dirty, (wild, dstate), **given)
    identical(got, gradients(scan, clean, (dy, dstate), **given))
    for name in ("y", "grad x", "grad delta", "grad B", "grad C"):
        assert (got[name][1, 17:] == 0).all() and (got[name][2] == 0).all(), name
    assert (got["state"][2] == 0).all()

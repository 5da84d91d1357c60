"""Small random heads, and their embeddings with all gradients."""

from __future__ import annotations

import itertools

import pytest
import torch

from muse_adapter import MultiScaleMamba
from muse_adapter.config import AGGREGATIONS, MIXERS

MASK = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 1, 0]], dtype=torch.bool)
# Mixer, aggregation, mask and depth. Only the last layer knows of the aggregation, as the positions
# that it reads out: every aggregation with `bimamba` and a mask, and every mixer in two of them, in
# one with a mask and in the other without. A layer before the last is there once for each mixer
# with a mask, and once without.
FORMS = [
    *((mixer, "scale_wise", MASK, 2) for mixer in MIXERS),
    *(("bimamba", other, MASK, 1) for other in AGGREGATIONS if other != "scale_wise"),
    ("bimamba", "scale_wise", None, 2),
    *(
        (mixer, aggregation, None, 1)
        for mixer, aggregation in zip(MIXERS[1:], itertools.cycle(AGGREGATIONS[1:]))
    ),
]
# The same operations in another grouping; in bfloat16 each rounds at 4e-3.
BOUND = {torch.float32: 1e-5, torch.bfloat16: 3e-2}


def every_form(*, fast):
    """Run a test with every form; the fast suite takes the first `fast` of them."""
    return pytest.mark.parametrize(
        ("mixer", "aggregation", "mask", "depth"),
        [
            pytest.param(
                *form,
                id=f"{form[0]}-{form[1]}-{'whole' if form[2] is None else 'masked'}",
                marks=[] if number < fast else pytest.mark.slow,
            )
            for number, form in enumerate(FORMS)
        ],
    )


def small_head(**fields):
    """Two layers, the last of which only reads out; random everywhere, zero nowhere."""
    fields = {"depth": 2, "d_state": 4, "scales": (1.0,), "dropout": 0.0, **fields}
    head = MultiScaleMamba(dim=16, **fields)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return head


def small_tokens(batch=3, frames=3, **options):
    return torch.randn(batch, frames, 5, 16, **options)  # a class token and 2x2 patches


def embed(function, head, tokens, mask, autocast=False):
    """Embedding, then the gradients of the tokens and of all parameters."""
    tokens = tokens.detach().clone().requires_grad_()
    with torch.autocast(tokens.device.type, torch.bfloat16, enabled=autocast):
        video = function(tokens, mask)
    loss = (video.float() * torch.arange(16.0, device=video.device)).sum()
    names = ["tokens", *(name for name, _ in head.named_parameters())]
    wanted = [tokens, *head.parameters()]
    gradients = torch.autograd.grad(loss, wanted, allow_unused=True)
    return {"video": video.detach(), **dict(zip(names, gradients, strict=True))}


def agree(got, expected, bound=BOUND[torch.float32]):
    for name, value in expected.items():
        assert (got[name] is None) == (value is None), name
        if value is not None:
            error = (got[name] - value).abs().max().item() / max(value.abs().max().item(), 1e-30)
            assert error <= bound, f"{name} is off by {error:.1e}"  # NaN fails too

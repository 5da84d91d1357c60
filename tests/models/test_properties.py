"""Properties over random shapes, masks, grids, scales and prefix tokens (hypothesis)."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from muse_adapter import MultiScaleMamba
from muse_adapter.config import AGGREGATIONS, MIXERS, SCALES
from tests.support.tolerances import assert_close

SIDES = {0.25: lambda side: side // 4, 0.5: lambda side: side // 2}


@st.composite
def cases(draw):
    scales = draw(st.lists(st.sampled_from(SCALES), min_size=1, max_size=3, unique=True))
    smallest = max(1, round(1 / min(scales)))
    grid = tuple(draw(st.integers(smallest, smallest + 3)) for _ in range(2))
    frames = draw(st.integers(1, 4))
    batch = draw(st.integers(1, 3))
    rows = st.lists(st.booleans(), min_size=frames, max_size=frames).filter(any)
    return {
        "config": {
            "dim": 4,
            "depth": draw(st.integers(1, 2)),
            "scales": scales,
            "aggregation": draw(st.sampled_from(AGGREGATIONS)),
            "mixer": draw(st.sampled_from(MIXERS)),
            "num_prefix_tokens": draw(st.integers(0, 2)),
            "in_dim": draw(st.sampled_from([None, 3])),
            "d_state": 2,
            "init": "release",
        },
        "grid": grid,
        "mask": torch.tensor([draw(rows) for _ in range(batch)]),
        "seed": draw(st.integers(0, 9)),
    }


def build(case):
    torch.manual_seed(case["seed"])
    head = MultiScaleMamba(**case["config"]).double().eval()
    patches = case["grid"][0] * case["grid"][1]
    width = head.config.in_dim or head.config.dim
    per_frame = head.config.num_prefix_tokens + patches
    tokens = torch.randn(*case["mask"].shape, per_frame, width).double()
    return head, tokens


@given(cases())
def test_a_masked_video_equals_the_video_without_its_masked_frames(case):
    head, tokens = build(case)
    mask = case["mask"]
    video = head(tokens, mask, grid=case["grid"])
    assert video.shape == (len(mask), head.config.dim)
    assert_close(video.norm(dim=-1), torch.ones(len(mask)).double())
    for index, keep in enumerate(mask):
        alone = head(tokens[index : index + 1, keep], grid=case["grid"])
        assert_close(video[index], alone[0])


@given(cases())
def test_the_sequence_has_the_length_of_the_formula(case):
    head, tokens = build(case)
    frames = tokens.shape[1]
    per_frame = sum(
        SIDES.get(s, lambda side, s=s: int(side * s))(case["grid"][0])
        * SIDES.get(s, lambda side, s=s: int(side * s))(case["grid"][1])
        for s in head.config.scales
    )
    spatial = head.config.aggregation == "spatial_wise"
    expected = frames + per_frame if spatial else frames * (1 + per_frame)
    lengths = []
    norm = head.layers[0].norm
    norm.register_forward_hook(lambda _m, args, _out: lengths.append(args[0].shape[1]))
    head.forward_features(tokens, case["mask"], grid=case["grid"])
    assert lengths == [expected]


@given(cases())
def test_gradients_stay_where_they_belong(case):
    head, tokens = build(case)
    tokens.requires_grad_()
    video = head(tokens, case["mask"], grid=case["grid"])
    (video * torch.linspace(-1, 1, video.shape[-1])).sum().backward()
    assert tokens.grad.isfinite().all()
    assert not tokens.grad[~case["mask"]].any()
    registers = tokens.grad[:, :, 1 : head.config.num_prefix_tokens]
    assert not registers.any()


@given(cases())
def test_save_and_load_give_the_same_head(case):
    head, tokens = build(case)
    again = MultiScaleMamba(type(head.config).from_json(head.config.to_json())).double().eval()
    again.load_state_dict(head.state_dict())
    grid, mask = case["grid"], case["mask"]
    assert torch.equal(again(tokens, mask, grid=grid), head(tokens, mask, grid=grid))

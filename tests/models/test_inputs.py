"""Invalid inputs of the head: the message says what was given and what was expected."""

# The tables have one case per line, however long it is.
# ruff: noqa: E501

from __future__ import annotations

import pytest
import torch

from muse_adapter import MultiScaleMamba

TOKENS = torch.zeros(2, 3, 17, 8)

# id: (tokens, frame_mask, keywords, error, message)
HEAD_CASES = {
    "N is not prefix + a square": (TOKENS[:, :, :16], None, {}, ValueError, r"N = 16 tokens are not 1 prefix"),
    "grid against N": (TOKENS, None, {"grid": (3, 5)}, ValueError, r"grid=\(3, 5\) does not fit N = 17"),
    "grid of zero": (TOKENS, None, {"grid": (0, 16)}, ValueError, r"grid=\(0, 16\) does not fit"),
    "rank 2": (TOKENS[0, 0], None, {}, ValueError, r"\(B, T, N, C\) or \(B\*T, N, C\), got \(17, 8\)"),
    "rank 5": (TOKENS[None], None, {}, ValueError, r"got \(1, 2, 3, 17, 8\)"),
    "width": (TOKENS[..., :6], None, {}, ValueError, r"input width C = 8, got 6"),
    "integer tokens": (TOKENS.long(), None, {}, TypeError, r"floating type, got torch.int64"),
    "no tensor": (TOKENS.tolist(), None, {}, TypeError, r"floating type, got list"),
    "another type": (TOKENS.half(), None, {}, TypeError, r"tokens are torch.float16, the head is torch.float32"),
    "another device": (TOKENS.to("meta"), None, {}, ValueError, r"tokens are on meta, the head is on cpu"),
    "num_frames divides not": (TOKENS.flatten(0, 1), None, {"num_frames": 4}, ValueError, r"divide B\*T = 6, got 4"),
    "num_frames of 0": (TOKENS.flatten(0, 1), None, {"num_frames": 0}, ValueError, r"got 0"),
    "num_frames missing": (TOKENS.flatten(0, 1), None, {}, ValueError, r"need num_frames=T"),
    "num_frames with 4-D": (TOKENS, None, {"num_frames": 3}, ValueError, r"have T = 3, got num_frames=3"),
    "num_frames no int": (TOKENS.flatten(0, 1), None, {"num_frames": 3.0}, ValueError, r"divide B\*T = 6, got 3.0"),
    "grid no pair": (TOKENS, None, {"grid": 4}, TypeError, r"pair of ints \(H, W\), got 4"),
    "grid of three": (TOKENS, None, {"grid": (2, 2, 4)}, TypeError, r"pair of ints \(H, W\), got \(2, 2, 4\)"),
    "mask no tensor": (TOKENS, [[1, 1, 1]] * 2, {}, TypeError, r"frame_mask must be a tensor, got list"),
    "B of 0": (TOKENS[:0], None, {}, ValueError, r"no size 0, got \(0, 3, 17, 8\)"),
    "T of 0": (TOKENS[:, :0], None, {}, ValueError, r"no size 0, got \(2, 0, 17, 8\)"),
    "no patch token": (TOKENS[:, :, :1], None, {}, ValueError, r"at least one patch token per frame, got N = 1"),
    "grid too small": (TOKENS[:, :, :2], None, {}, ValueError, r"scale 0.5 needs a patch grid of at least 2 a side, got 1x1"),
    "mask shape": (TOKENS, torch.ones(2, 4), {}, ValueError, r"\(B, T\) = \(2, 3\), got \(2, 4\)"),
    "mask values": (TOKENS, torch.tensor([[1, 2, 1], [1, 1, -1]]), {}, ValueError, r"only 0 and 1 .*got values \[-1, 2\]"),
    "mask fractions": (TOKENS, torch.full((2, 3), 0.5), {}, ValueError, r"got values \[0.5\]"),
    "mask device": (TOKENS, torch.ones(2, 3, device="meta"), {}, ValueError, r"device of the tokens, cpu, got meta"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("tokens", "mask", "options", "error", "message"), HEAD_CASES.values(), ids=HEAD_CASES
)
def test_head(tokens, mask, options, error, message):
    head = MultiScaleMamba(dim=8, depth=1)
    with pytest.raises(error, match=message):
        head(tokens, mask, **options)


def test_forward_head():
    head = MultiScaleMamba(dim=8, depth=1)
    with pytest.raises(
        ValueError, match=r"frames must have shape \(B, T, D\) .*got \(2, 3, 17, 8\)"
    ):
        head.forward_head(TOKENS)
    with pytest.raises(ValueError, match=r"\(B, T\) = \(2, 3\), got \(3, 2\)"):
        head.forward_head(TOKENS[:, :, 0], torch.ones(3, 2))


FIELD_CASES = {
    "aggregation": ({"aggregation": "time_wise"}, r"time_wise.*scale_wise"),
    "mixer": ({"mixer": "lstm"}, r"lstm.*bimamba"),
    "repeated scales": ({"scales": (1, 1.0)}, r"scales must not repeat, got \[1.0, 1.0\]"),
    "no scales": ({"scales": ()}, r"at least one factor, got none"),
    "unknown scale": ({"scales": (3,)}, r"unknown scales \[3.*known are \[0.25"),
    "odd dim": ({"dim": 7}, r"scale 2 needs a dim divisible by 2, got dim=7"),
    "dim for scale 4": ({"dim": 6, "scales": (4,)}, r"divisible by 4, got dim=6"),
    "dim for attention heads": ({"dim": 100, "mixer": "attention"}, r"heads of 64.*dim=100"),
    "depth": ({"depth": 0}, r"depth must be at least 1, got 0"),
    "dropout": ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
}


@pytest.mark.parametrize(("fields", "message"), FIELD_CASES.values(), ids=FIELD_CASES)
def test_fields(fields, message):
    with pytest.raises(ValueError, match=message):
        MultiScaleMamba(**{"dim": 8, **fields})

"""The order of the token sequence, with tokens that are labels: frame, scale, position."""

from __future__ import annotations

import pytest
import torch

from muse_adapter.config import AGGREGATIONS
from muse_adapter.layers.sequence import build_sequence
from tests.support.tolerances import assert_close

SIZES = (1, 4)  # tokens per frame of each scale
CLS = 9.0  # the "scale" of a class token


def labels(frames: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Class tokens (1, T, 3) and maps (1, T, N_s, 3), each token its own label."""
    cls_tokens = torch.tensor([[[t, CLS, 0.0] for t in range(frames)]])
    maps = [
        torch.tensor([[[[t, s, n] for n in range(size)] for t in range(frames)]]).float()
        for s, size in enumerate(SIZES)
    ]
    return cls_tokens, maps


def expected_order(aggregation: str, frames: list[int], class_last: bool) -> list[list[float]]:
    """Labels of the valid tokens in the order of the definition."""
    cls_tokens = {t: [[t, CLS, 0.0]] for t in frames}
    if aggregation == "frame_wise":
        order = []
        for t in frames:
            tokens = [[t, s, n] for s, size in enumerate(SIZES) for n in range(size)]
            order += tokens + cls_tokens[t] if class_last else cls_tokens[t] + tokens
        return order
    if aggregation == "scale_wise":
        tokens = [[t, s, n] for s, size in enumerate(SIZES) for t in frames for n in range(size)]
    else:
        mean = sum(frames) / len(frames)
        tokens = [[mean, s, n] for s, size in enumerate(SIZES) for n in range(size)]
    first = [token for t in frames for token in cls_tokens[t]]
    return tokens + first if class_last else first + tokens


@pytest.mark.parametrize("class_last", [False, True], ids=["class first", "class last"])
@pytest.mark.parametrize("mask", [None, [1, 1, 0], [0, 1, 1], [1, 0, 1]], ids=str)
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_order(aggregation, mask, class_last):
    cls_tokens, maps = labels(3)
    given = None if mask is None else torch.tensor([mask], dtype=torch.bool)
    tokens, lengths, readout = build_sequence(
        cls_tokens, maps, given, aggregation=aggregation, class_last=class_last
    )
    real = [t for t in range(3) if mask is None or mask[t]]
    expected = torch.tensor(expected_order(aggregation, real, class_last))
    assert (lengths is None) == (mask is None)
    valid = tokens.shape[1] if lengths is None else int(lengths)
    assert_close(tokens[0, :valid], expected, "rounding")
    assert torch.equal(readout.select(tokens)[0, real], cls_tokens[0, real])
    assert readout.positions.max() < readout.end


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_a_video_without_a_real_frame_has_no_valid_token(aggregation):
    cls_tokens, maps = labels(2)
    mask = torch.zeros(1, 2, dtype=torch.bool)
    tokens, lengths, readout = build_sequence(
        cls_tokens, maps, mask, aggregation=aggregation, class_last=False
    )
    assert lengths.tolist() == [0]
    assert readout.select(tokens).shape == cls_tokens.shape

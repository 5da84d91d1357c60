"""The residual layer: one merged linear map at inference."""

from __future__ import annotations

import pytest
import torch

from muse_adapter.config import MIXERS
from tests.support.head_forms import perturbed
from tests.support.tolerances import assert_close


@pytest.mark.parametrize("mixer", MIXERS)
def test_merged_output_agrees_and_never_goes_stale(mixer):
    head = perturbed(mixer=mixer)
    x = torch.randn(2, 40, 8, dtype=torch.float64)
    layer = head.layers[0]
    for _ in range(2):
        separate = layer(x).detach()
        with torch.no_grad():
            merged = layer(x)
            assert_close(merged, separate, "rounding")
            layer.fc.weight.mul_(-2)  # as an optimiser step or loading does
            layer.mixer.out_proj.weight.add_(0.1)


def test_merges_only_where_that_is_cheaper(monkeypatch):
    layer = perturbed().layers[0]
    calls = []
    original = layer._merged_output
    monkeypatch.setattr(layer, "_merged_output", lambda: calls.append(1) or original())
    with torch.no_grad():
        layer(torch.randn(1, 8, 8, dtype=torch.float64))  # as many tokens as channels
        assert not calls
        layer(torch.randn(1, 9, 8, dtype=torch.float64))
        assert calls
        layer.train()(torch.randn(1, 9, 8, dtype=torch.float64))
        assert len(calls) == 1

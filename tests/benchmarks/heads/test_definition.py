"""A head whose results differ from those of its definition is not timed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.heads.definition import against_definition
from benchmarks.heads.variants import Variant
from tests.support.small_benchmarks import HERE, small


@pytest.mark.parametrize(
    ("function", "wrong", "message"),
    [
        ("conv", "embedding", "the embedding differs by"),
        ("attention", "gradient", "the gradient of layers.0.fc.bias differs by"),
        ("meanP", "parameter", "only one of them has the gradient of extra"),
    ],
)
def test_a_wrong_head_is_not_timed(function: str, wrong: str, message: str) -> None:
    right = {"conv": "conv", "attention": "attention-flash", "meanP": "meanP"}[function]

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

    assert message in (against_definition(Variant("", function, build), small()) or "")

"""What a step keeps, against a count by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

pytest.importorskip("transformers", reason="needs transformers")

from transformers import CLIPConfig, CLIPModel

from examples.train import memory
from examples.train.memory import clip_bytes, kept_for_backward, state_bytes


def make_model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


def test_kept_tensors_of_a_small_model() -> None:
    model, x = make_model(), torch.randn(5, 8)
    # The first linear map keeps its input; ReLU its output, which is the second one's input.
    assert kept_for_backward(lambda: model(x), model) == 4 * (5 * 8 + 5 * 16)
    # A checkpoint keeps its input alone.
    assert kept_for_backward(lambda: checkpoint(model, x, use_reentrant=False), model) == 4 * 5 * 8


def test_states_of_a_small_model() -> None:
    numbers = 8 * 16 + 16 + 16 * 4 + 4
    assert state_bytes(make_model()) == 4 * 4 * numbers


def test_clip_grows_linearly_and_less_with_checkpointing(monkeypatch: pytest.MonkeyPatch) -> None:
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 8}
    vision = tower | {"image_size": 32, "num_attention_heads": 2}
    text = tower | {"num_attention_heads": 2}
    config = CLIPConfig(vision_config=vision, text_config=text, projection_dim=8)
    monkeypatch.setattr(memory, "clip_vit_b32", lambda: CLIPModel(config))
    one, two, three = (clip_bytes(videos, 3, 8, checkpointing=False) for videos in (1, 2, 3))
    assert 0 < two - one == three - two
    assert clip_bytes(3, 3, 8, checkpointing=True) < three / 2

"""VideoTextModel's objectives: SigLIP's, EERCF's, and several texts of one video."""

from __future__ import annotations

import pytest
import torch

from muse_adapter import EERCF, VideoTextModel, losses
from tests.support.contrastive_steps import small_model
from tests.support.small_encoders import double_encoder
from tests.support.tiny_clips import Words, token_ids
from tests.support.tolerances import assert_close

pytestmark = pytest.mark.usefixtures("torch_scan")
FRAMES = (3, 2, 3, 16, 16)
MASK = torch.tensor([[1, 1], [1, 0], [1, 1]])


def test_sigmoid() -> None:
    model = small_model("sigmoid")
    assert model.logit_bias.item() == -10 and model.logit_scale.exp().item() == pytest.approx(10)
    frames, ids, targets = torch.randn(FRAMES).double(), token_ids(4), torch.tensor([2, 0, 0, 1])
    similarity = model.similarity(model.encode_text(ids), model.encode_video(frames, MASK))
    expected = losses.sigmoid_loss(model.logit_scale.exp() * similarity - 10, targets)
    assert_close(model(frames, ids, MASK, targets), expected)


def test_several_texts_of_one_video() -> None:
    model = small_model()
    frames, ids, targets = torch.randn(FRAMES).double(), token_ids(4), torch.tensor([2, 0, 0, 1])
    similarity = model.similarity(model.encode_text(ids), model.encode_video(frames, MASK))
    expected = losses.contrastive_loss(similarity * model.logit_scale.exp(), targets)
    assert_close(model(frames, ids, MASK, targets), expected)


@pytest.mark.parametrize("objective", ["EERCF", "EERCF without patches"])
def test_eercf(objective: str) -> None:
    model = small_model(objective)
    frames, ids = torch.randn(FRAMES).double(), token_ids(3)
    tokens = model.encoder.forward_tokens(frames, MASK)
    fused = model.encoder.head.forward_features(tokens, MASK)
    expected = model.scorer.loss(
        model.encode_text(ids),
        tokens[:, :, 0],
        fused,
        tokens[:, :, 1:] if objective == "EERCF" else None,
        MASK,
        logit_scale=model.logit_scale,
    )
    loss = model(frames, ids, MASK)
    assert_close(loss, expected.total)
    loss.backward()
    unused = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not unused
    with pytest.raises(ValueError, match="no targets"):
        model(frames, ids, MASK, torch.arange(3))


def test_refuses() -> None:
    encoder = double_encoder()
    with pytest.raises(ValueError, match="objective must be"):
        VideoTextModel(encoder, Words(), objective="triplet")
    with pytest.raises(ValueError, match="objective must be"):
        VideoTextModel(encoder, Words(), scorer=EERCF(12), objective="sigmoid")
    with pytest.raises(TypeError, match="scorer must be an EERCF or None, got Words"):
        VideoTextModel(encoder, Words(), scorer=Words())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="needs a model with a scorer"):
        small_model().score_loss(torch.zeros(1, 12), [], torch.ones(1, 2))

"""VideoTextModel's objectives: SigLIP's, EERCF's, MeanMaxSim, several texts of one video."""

from __future__ import annotations

import pytest
import torch

from muse_adapter import EERCF, MeanMaxSim, VideoEncoder, VideoTextModel, late_interaction, losses
from tests.support.contrastive_steps import small_model
from tests.support.real_backbones import CLIP, hf
from tests.support.small_encoders import double_encoder
from tests.support.tiny_clips import WordFeatures, Words, token_ids
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


@pytest.mark.parametrize("objective", ["sigmoid", "contrastive"])
@pytest.mark.parametrize("targets", [None, torch.tensor([2, 0, 0])], ids=["pairs", "targets"])
def test_mean_max_sim(objective: str, targets: torch.Tensor | None) -> None:
    encoder = double_encoder()
    scorer = MeanMaxSim((0.5, 1.0))
    model = VideoTextModel(encoder, WordFeatures(), scorer=scorer, objective=objective).double()
    frames, ids = torch.randn(FRAMES).double(), token_ids(3)
    ids[1, 4:] = 0  # padding
    words, word_mask = model.encode_words(ids)
    tokens = encoder.forward_tokens(frames, MASK)
    expected = torch.zeros((), dtype=torch.float64)
    for weight, features in (
        (0.5, tokens[:, :, 0]),
        (1.0, encoder.head.forward_features(tokens, MASK)),
    ):
        logits = model.logit_scale.exp() * late_interaction(words, features, word_mask, MASK)
        if objective == "sigmoid":
            expected = expected + weight * losses.sigmoid_loss(logits - 10, targets)
        else:
            expected = expected + weight * losses.contrastive_loss(logits, targets)
    loss = model(frames, ids, MASK, targets)
    assert_close(loss, expected)
    loss.backward()
    unused = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not unused
    assert model.text.words.weight.grad[ids[0]].abs().sum() > 0
    assert model.text.words.weight.grad[0].abs().sum() == 0  # the padding


def test_words_of_a_whole_model_are_trained() -> None:
    """One CLIP is both towers; every parameter has a gradient, as DDP needs it."""
    clip = hf("CLIPModel", "CLIPConfig", **CLIP)()
    model = VideoTextModel(VideoEncoder(clip), clip, scorer=MeanMaxSim(), objective="sigmoid")
    model(torch.randn(2, 1, 3, 16, 16), token_ids(2)).backward()
    unused = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not unused


def test_refuses() -> None:
    encoder = double_encoder()
    with pytest.raises(ValueError, match="objective must be"):
        VideoTextModel(encoder, Words(), objective="triplet")
    with pytest.raises(ValueError, match="objective must be"):
        VideoTextModel(encoder, Words(), scorer=EERCF(12), objective="sigmoid")
    with pytest.raises(TypeError, match="an EERCF, a MeanMaxSim or None, got Words"):
        VideoTextModel(encoder, Words(), scorer=Words())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="needs a model with an EERCF"):
        small_model().score_loss(torch.zeros(1, 12), [], torch.ones(1, 2))
    words, mask = torch.zeros(2, 3, 12), torch.ones(2, 3)
    with pytest.raises(ValueError, match="needs a model with a MeanMaxSim"):
        small_model().word_loss(words, mask, [], torch.ones(1, 2))
    with pytest.raises(ValueError, match="one video for each text, or targets, got 2 texts and 1"):
        small_model("MeanMaxSim").word_loss(words, mask, [], torch.ones(1, 2))

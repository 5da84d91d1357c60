"""Embeddings of a whole data set: those of one call, without gradients, the mode left alone."""

from __future__ import annotations

from collections import UserDict

import pytest
import torch
from torch import Tensor

from muse_adapter.encoders import embed_texts, embed_videos
from muse_adapter.ops import use_backend
from tests.support.contrastive_steps import small_model
from tests.support.tolerances import assert_close

COUNT = 5


@pytest.mark.parametrize("masked", [False, True], ids=["no_mask", "mask"])
@pytest.mark.parametrize("batch_size", [2, 5, 100])
def test_videos(batch_size: int, masked: bool) -> None:
    model = small_model().train()
    frames = torch.randn(COUNT, 2, 3, 16, 16, dtype=torch.float64)
    mask = torch.tensor([[1, 1], [1, 0], [1, 1], [0, 1], [1, 1]]) if masked else None
    seen = []
    model.encoder.register_forward_hook(lambda _, args, __: seen.append(len(args[0])))
    with use_backend("torch"):
        videos = embed_videos(model, frames, mask, batch_size=batch_size)
        assert model.training, "the mode is restored"
        wanted = model.eval().encode_video(frames, mask)
    assert seen[:-1] == [min(batch_size, COUNT - i) for i in range(0, COUNT, batch_size)]
    check(videos, wanted)


@pytest.mark.parametrize("kind", ["ids", "mapping"])
def test_texts(kind: str) -> None:
    model = small_model().eval()
    ids = torch.randint(0, 50, (COUNT, 8))
    if kind == "mapping":
        # The tower of the test takes ids; those of Hugging Face take a mapping by name.
        tower = model.text
        tower.get_text_features = lambda input_ids, attention_mask: tower(input_ids)
    given = ids if kind == "ids" else UserDict(input_ids=ids, attention_mask=torch.ones_like(ids))
    texts = embed_texts(model, given, batch_size=2)
    assert not model.training
    check(texts, model.encode_text(given))


def check(embeddings: Tensor, wanted: Tensor) -> None:
    assert embeddings.dtype == torch.float32 and embeddings.device.type == "cpu"
    assert not embeddings.requires_grad
    assert_close(embeddings, wanted, "rounding")


def test_the_mode_is_restored_after_an_error() -> None:
    model = small_model().train()
    with pytest.raises(ValueError, match="frames must have shape"):
        embed_videos(model, torch.randn(2, 3, 16, 16))
    assert model.training


def test_a_batch_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        embed_texts(small_model(), torch.zeros(2, 8, dtype=torch.long), batch_size=0)


def test_no_videos_and_no_texts_are_refused() -> None:
    with pytest.raises(ValueError, match="expected at least one video or text to embed, got none"):
        embed_texts(small_model(), torch.empty(0, 5, dtype=torch.int64))


def test_a_probe_can_be_trained_on_the_embeddings() -> None:
    embeddings = embed_texts(small_model(), torch.randint(0, 50, (COUNT, 8)))
    weight = torch.ones(embeddings.shape[1], requires_grad=True)
    (embeddings @ weight).sum().backward()
    assert weight.grad is not None

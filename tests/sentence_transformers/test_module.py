"""VideoTransformer in a SentenceTransformer: the embeddings of the encoder and the text tower."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("sentence_transformers", reason="needs sentence-transformers")

from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss as Cached,
)
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import Pooling

from muse_adapter import MultiScaleMamba, VideoEncoder
from muse_adapter.data import read_frames
from muse_adapter.sentence_transformers import UnreadableVideos, VideoTransformer
from tests.support.small_encoders import ROUNDING, small_head
from tests.support.tiny_towers import TOWERS, tiny_clip, tiny_transformer

pytestmark = pytest.mark.usefixtures("torch_scan")

TEXTS = ["a small red dog", "the ball moves left"]
CLOSE = ROUNDING[torch.float32]
families = pytest.mark.parametrize("family", TOWERS)


def sentence_model(family: str = "CLIP", **options: Any) -> SentenceTransformer:
    return SentenceTransformer(modules=[tiny_transformer(family, **options)], device="cpu")


def encode(model: SentenceTransformer, inputs: Any, **options: Any) -> Tensor:
    return model.encode(inputs, convert_to_tensor=True, show_progress_bar=False, **options)


@families
def test_video_is_that_of_the_encoder(family: str, videos: list[str]) -> None:
    model = sentence_model(family)
    module: Any = model[0]
    embeddings = encode(model, videos)
    encoder = VideoEncoder(module.encoder.backbone, module.head).eval()
    for path, embedding in zip(videos, embeddings, strict=True):
        frames, mask = read_frames(path, 12)
        processed = module.frame_inputs.processor(
            images=list(frames[mask].numpy()),
            input_data_format="channels_first",
            return_tensors="pt",
        )["pixel_values"]
        with torch.no_grad():
            alone = encoder(processed[None])[0]  # the shorter one was padded in the batch
        torch.testing.assert_close(embedding, alone, **CLOSE)
    assert not torch.allclose(embeddings[0], embeddings[1], atol=1e-2)


@families
def test_text_is_that_of_the_model(family: str) -> None:
    model = sentence_model(family)
    module: Any = model[0]
    settings: dict[str, Any] = {"padding": True}
    if family != "CLIP":  # trained with the full length, without a mask
        settings = {"padding": "max_length", "max_length": 8, "padding_side": "right"}
    tokens = module.tokenizer(TEXTS, truncation=True, return_tensors="pt", **settings)
    if family != "CLIP":
        tokens = {"input_ids": tokens["input_ids"]}
    with torch.no_grad():
        expected = module.encoder.backbone.get_text_features(**tokens).pooler_output
    torch.testing.assert_close(encode(model, TEXTS), F.normalize(expected, dim=-1), **CLOSE)
    # Nothing depends on the other texts of the batch.
    alone = torch.stack([encode(model, text) for text in TEXTS])
    torch.testing.assert_close(alone, encode(model, TEXTS), **CLOSE)


@families
def test_word_at_the_pooled_position_is_the_text(family: str) -> None:
    """The words are projected as the text is: CLIP reads its end, SigLIP the last token."""
    module = tiny_transformer(family).eval()
    with torch.no_grad():
        features = module(module.preprocess(TEXTS))
    words, mask = features["token_embeddings"], features["attention_mask"]
    assert words.shape[:2] == mask.shape
    last = mask.sum(1) - 1 if family == "CLIP" else torch.tensor([-1, -1])
    torch.testing.assert_close(words[[0, 1], last], features["sentence_embedding"], **CLOSE)
    if family == "SigLIP":
        assert mask.tolist() == [[1] * 5 + [0, 0, 1]] * 2, "padding is no word, but the last token"


def test_frames_are_those_of_the_head(videos: list[str]) -> None:
    module = tiny_transformer(num_frames=6).eval()
    features = module.preprocess(videos)
    assert features["pixel_values_videos"].shape == (2, 6, 3, 16, 16)
    assert features["attention_mask"].tolist() == [[1] * 6, [1] * 5 + [0]]
    with torch.no_grad():
        output = module(features)
        _, fused = module.encoder(
            features["pixel_values_videos"], features["attention_mask"], output_frames=True
        )
    torch.testing.assert_close(output["token_embeddings"], F.normalize(fused, dim=-1), **CLOSE)
    # That library's mean of the frames points where the head's own does.
    pooled = Pooling(12)({**output})["sentence_embedding"]
    torch.testing.assert_close(F.normalize(pooled, dim=-1), output["sentence_embedding"], **CLOSE)


def test_that_library_truncates_and_pools(videos: list[str]) -> None:
    model = sentence_model()
    full = encode(model, videos)
    torch.testing.assert_close(encode(model, videos, truncate_dim=4), full[:, :4])
    frames = model.encode(videos, output_value="token_embeddings", show_progress_bar=False)
    assert [tuple(video.shape) for video in frames] == [(12, 12), (5, 12)]
    assert model.get_embedding_dimension() == 12
    assert model.similarity(encode(model, TEXTS), full).shape == (2, 2)


def test_an_image_is_a_video_of_one_frame(videos: list[str]) -> None:
    model = sentence_model()
    frame = read_frames(videos[0], 1)[0][0]
    embeddings = [encode(model, form) for form in (frame, [frame[None]][0], {"image": frame})]
    for embedding in embeddings[1:]:
        torch.testing.assert_close(embedding, embeddings[0])


def test_a_call_may_sample_otherwise(videos: list[str]) -> None:
    model = sentence_model()
    by_call = encode(model, videos, processing_kwargs={"video": {"num_frames": 3, "fps": 2}})
    torch.testing.assert_close(by_call, encode(sentence_model(num_frames=3, fps=2), videos))
    assert not torch.allclose(by_call, encode(model, videos), atol=1e-3)
    with pytest.raises(ValueError, match="unknown processing_kwargs of a video: frames; known are"):
        encode(model, videos, processing_kwargs={"video": {"frames": 3}})


def test_unreadable_videos_in_a_batch(videos: list[str]) -> None:
    model = sentence_model()
    inputs = [videos[0], "missing.mp4", "gone.mkv"]
    with pytest.raises(UnreadableVideos) as caught:
        encode(model, inputs)
    assert set(caught.value.reasons) == {"missing.mp4", "gone.mkv"}
    skip = {"video": {"skip_unreadable": True}}
    with pytest.warns(UserWarning, match="cannot read 2 of 3 videos"), pytest.warns(match="frame"):
        embeddings = encode(model, inputs, processing_kwargs=skip)
    assert embeddings[1:].count_nonzero() == 0
    torch.testing.assert_close(embeddings[:1], encode(model, videos[:1]), **CLOSE)
    with pytest.warns(UserWarning, match="cannot read 1 of 1"), pytest.warns(match="frame"):
        assert encode(sentence_model(skip_unreadable=True), ["gone.mp4"]).count_nonzero() == 0


def test_prompts_and_lengths_of_texts() -> None:
    model = sentence_model()
    prompted = encode(model, ["red dog"], prompt="a small ")
    torch.testing.assert_close(prompted, encode(model, ["a small red dog"]))
    model.max_seq_length = 4
    cut = encode(model, ["a small red dog"])
    torch.testing.assert_close(cut, encode(model, ["a small"]), **CLOSE)
    with pytest.raises(ValueError, match=r"max_seq_length must be in 1\.\.8, got 9"):
        model.max_seq_length = 9
    with pytest.raises(ValueError, match="trained with texts padded to 8 tokens"):
        sentence_model("SigLIP").max_seq_length = 4


@families
def test_a_training_step_reaches_both_towers_and_the_head(family: str, videos: list[str]) -> None:
    model = sentence_model(family).train()
    loss = MultipleNegativesRankingLoss(model)
    loss([model.preprocess(TEXTS), model.preprocess(videos)], None).backward()
    module: Any = model[0]
    for part in (module.head, module.encoder.backbone.text_model):
        grads = [p.grad for p in part.parameters() if p.grad is not None]
        assert grads and all(grad.isfinite().all() for grad in grads)
        assert any(grad.abs().sum() > 0 for grad in grads)
    assert module.encoder.backbone.vision_model.embeddings.patch_embedding.weight.grad is not None


def test_losses_in_small_batches_have_the_same_gradient(videos: list[str]) -> None:
    model = sentence_model().eval()  # without dropout
    gradients = []
    for loss in (MultipleNegativesRankingLoss(model), Cached(model, mini_batch_size=1)):
        model.zero_grad()
        loss([model.preprocess(TEXTS), model.preprocess(videos)], None).backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(*gradients, **CLOSE)


def test_copied_and_pickled_models_are_the_same() -> None:
    model = sentence_model()
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(encode(copied, TEXTS), encode(model, TEXTS))
        assert copied.model_card_data.generate_usage_snippet().startswith("```python")


def test_frozen_model_and_checkpointing(videos: list[str]) -> None:
    model = sentence_model(freeze=True).train()
    module: Any = model[0]
    assert module.freeze and not module.encoder.backbone.training
    model.gradient_checkpointing_enable()
    loss = MultipleNegativesRankingLoss(model)
    loss([model.preprocess(TEXTS), model.preprocess(videos)], None).backward()
    trained = [name for name, p in module.named_parameters() if p.grad is not None]
    assert trained and all(name.startswith("encoder.head.") for name in trained)


def test_the_head_is_made_for_the_model() -> None:
    model, processor = tiny_clip()
    assert VideoTransformer(model, processor=processor).head.config.dim == 12


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"processor": None}, TypeError, "needs its processor="),
        ({"revision": "main"}, TypeError, "takes no revision"),
        ({"head": torch.nn.Linear(2, 2)}, TypeError, "MultiScaleMamba or None, got Linear"),
        ({"head": lambda: small_head(8)}, ValueError, "head takes tokens of width 8"),
        (
            {"head": lambda: MultiScaleMamba(dim=8, in_dim=12, depth=1)},
            ValueError,
            "texts of this model have width 12",
        ),
        ({"num_frames": 0}, ValueError, "num_frames must be an integer of at least 1"),
        ({"fps": 0}, ValueError, "fps must be above 0"),
    ],
    ids=lambda value: str(value)[:30] if isinstance(value, str) else "",
)
def test_wrong_settings(options: dict[str, Any], error: type[Exception], message: str) -> None:
    model, processor = tiny_clip()
    if callable(options.get("head")) and not isinstance(options["head"], torch.nn.Module):
        options = {"head": options["head"]()}
    with pytest.raises(error, match=message):
        VideoTransformer(model, **{"processor": processor, **options})


def test_models_that_do_not_fit() -> None:
    model, processor = tiny_clip()
    with pytest.raises(TypeError, match="loaded with its own processor"):
        VideoTransformer("a/name", processor=processor)
    with pytest.raises(TypeError, match=r"a text tower beside its vision tower .* got CLIPVis"):
        VideoTransformer(model.vision_model, processor=processor)


def test_chat_of_one_content_is_that_content(videos: list[str]) -> None:
    model = sentence_model()
    chat = [{"role": "user", "content": [{"type": "video", "video": videos[0]}]}]
    torch.testing.assert_close(encode(model, chat), encode(model, videos[0]))
    with pytest.raises(ValueError, match="texts, or videos and images, not both"):
        encode(model, [TEXTS[0], videos[0]])

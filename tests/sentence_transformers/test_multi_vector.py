"""Late interaction: the same module in a MultiVectorEncoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("sentence_transformers", reason="needs sentence-transformers")

from sentence_transformers import MultiVectorEncoder, SentenceTransformer

from muse_adapter import late_interaction
from muse_adapter.sentence_transformers import load
from tests.support.small_encoders import ROUNDING
from tests.support.tiny_towers import TOWERS, tiny_transformer

pytestmark = pytest.mark.usefixtures("torch_scan")

TEXTS = ["a small red dog", "the ball"]
REDUCE = {"maxsim": "sum", "meanmaxsim": "mean"}


def embeddings(model: MultiVectorEncoder, videos: list[str]) -> tuple[Any, Any]:
    texts = model.encode_query(TEXTS, show_progress_bar=False)
    return texts, model.encode_document(videos, show_progress_bar=False)


@pytest.mark.parametrize("similarity", REDUCE)
@pytest.mark.parametrize("family", TOWERS)
def test_scores_are_those_of_late_interaction(
    family: str, similarity: str, videos: list[str]
) -> None:
    module = tiny_transformer(family)
    model = MultiVectorEncoder(modules=[module], device="cpu", similarity_fn_name=similarity)
    scores = model.similarity(*embeddings(model, videos))
    with torch.no_grad():
        text, video = (module(module.preprocess(inputs)) for inputs in (TEXTS, videos))
    expected = late_interaction(
        text["token_embeddings"],
        video["token_embeddings"],
        text["attention_mask"],
        video["attention_mask"],
        reduce=REDUCE[similarity],
    )
    torch.testing.assert_close(scores, expected, **ROUNDING[torch.float32])


@pytest.mark.parametrize("family", TOWERS)
def test_saved_and_loaded_to_the_last_digit(family: str, videos: list[str], tmp_path: Path) -> None:
    modules = [tiny_transformer(family)]
    model = MultiVectorEncoder(modules=modules, device="cpu", similarity_fn_name="meanmaxsim")
    model.save_pretrained(str(tmp_path))
    loaded = load(tmp_path, device="cpu")
    assert isinstance(loaded, MultiVectorEncoder)
    assert loaded.similarity_fn_name == "meanmaxsim"
    for before, after in zip(embeddings(model, videos), embeddings(loaded, videos), strict=True):
        assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))
    trusted = MultiVectorEncoder(str(tmp_path), trust_remote_code=True, device="cpu")
    scores = [model.similarity(*embeddings(m, videos)) for m in (model, trusted)]
    assert torch.equal(*scores)


def test_model_of_single_vectors_becomes_one_of_many(videos: list[str], tmp_path: Path) -> None:
    module = tiny_transformer()
    prompts = {"query": "a ", "document": ""}
    single = SentenceTransformer(modules=[module], prompts=prompts, device="cpu")
    single.save_pretrained(str(tmp_path))
    model = load(tmp_path, MultiVectorEncoder, device="cpu")
    expected = MultiVectorEncoder(modules=[module], prompts=prompts, device="cpu")
    for ours, theirs in zip(embeddings(model, videos), embeddings(expected, videos), strict=True):
        assert all(torch.equal(x, y) for x, y in zip(ours, theirs, strict=True))
    model.save_pretrained(str(tmp_path / "many"))
    with pytest.raises(ValueError, match="saved MultiVectorEncoder cannot be loaded as Sentence"):
        load(tmp_path / "many", SentenceTransformer)

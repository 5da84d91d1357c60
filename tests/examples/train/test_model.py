"""The model of a run."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("sentence_transformers", reason="needs sentence-transformers")

from examples.train.model import build_model
from tests.support.training_corpus import settings_of


@pytest.mark.parametrize(("words", "read"), [(5, 5), (8, 8), (9, 8)], ids=str)
def test_captions_longer_than_the_model_takes(
    words: int, read: int, corpus: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = settings_of(corpus, words=words)
    assert build_model(settings)[0].max_seq_length == read
    said = f"captions are cut to 8 tokens, as {settings.model} needs, and not to 9"
    assert (said in caplog.text) == (words > read)

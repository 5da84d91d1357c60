"""What the tests of the training share: a small corpus."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with videos, captions.csv and a tiny CLIP."""
    for library in ("datasets", "accelerate", "sentence_transformers", "av"):
        pytest.importorskip(library, reason=f"training needs {library}: muse-adapter[train]")
    from tests.support.training_corpus import write_corpus

    folder = tmp_path_factory.mktemp("training")
    write_corpus(folder)
    return folder

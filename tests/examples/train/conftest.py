"""What the tests of the training share: a small corpus, and one uninterrupted run on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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


@pytest.fixture(scope="session")
def uninterrupted(corpus: Path) -> tuple[Path, dict[str, Any]]:
    """The folder and the result of a run on one process."""
    from examples.train.run import run
    from examples.train.settings import Execution
    from tests.support.training_corpus import settings_of

    folder = corpus / "uninterrupted"
    execution = Execution(output=folder, save_steps=2, progress=False, eval_batch_size=4)
    return folder, run(settings_of(corpus), execution)

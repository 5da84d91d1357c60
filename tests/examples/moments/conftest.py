"""The example as a whole, made once for all tests that look at it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from examples.moments.material import Material


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Material]:
    """A tiny corpus with its tower and features, and the folder that they are in."""
    pytest.importorskip("av", reason="rendering videos needs PyAV: muse-adapter[video]")
    pytest.importorskip("tqdm", reason="the example shows progress with tqdm")
    from examples.moments.material import load_material
    from tests.support.moments import CORPUS, TOWER

    folder = tmp_path_factory.mktemp("moments")
    return folder, load_material(CORPUS, TOWER, folder, progress=False)

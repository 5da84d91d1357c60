"""Examples in docstrings run as they stand."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
FILES = [
    path
    for path in sorted((ROOT / "muse_adapter").rglob("*.py"))
    if ">>> " in path.read_text(encoding="utf-8").replace("# >>> ", "")
]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_examples_in_docstrings(path: Path) -> None:
    module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    failed, tried = doctest.testmod(module, extraglobs={"torch": torch})
    assert tried and not failed

"""A tiny model of sentence-transformers in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support.tiny_towers import tiny_transformer


def tiny_model() -> Any:
    """Build a `SentenceTransformer` of a CLIP with random weights, of 6 frames a video."""
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(modules=[tiny_transformer(num_frames=6)], device="cpu")


def save_tiny_model(folder: Path) -> str:
    """Save `tiny_model`, and return its folder."""
    tiny_model().save_pretrained(str(folder))
    return str(folder)

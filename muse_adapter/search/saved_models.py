"""The model of an index, loaded from where it was saved."""

from __future__ import annotations

import os
from typing import Any

import torch

from muse_adapter.search.identity import check_same, model_class, saved_in


def load_model(name: str, *, revision: str | None = None) -> Any:
    """Load a saved model by `muse_adapter.sentence_transformers.load`.

    Args:
        name: A folder, or a name on the Hugging Face hub.
        revision: Branch, tag or commit of the hub.

    Raises:
        ImportError: sentence-transformers is not installed.
        OSError: It is not there.
        ValueError: It needs classes that are not trusted.
    """
    # An index takes any model: only what was saved by that library needs it.
    from muse_adapter.sentence_transformers import load

    return load(name, revision=revision, device=_device())


def _device() -> str | None:
    """Return the GPU of this process under torchrun, shared if there are fewer; else None."""
    rank, count = os.environ.get("LOCAL_RANK"), torch.cuda.device_count()
    return None if rank is None or not count else f"cuda:{int(rank) % count}"


def load_model_of(identity: bytes, purpose: str) -> Any:
    """Load the model of an index.

    Args:
        identity: Of the model.
        purpose: What needs it, as in "adding videos"; the error message starts with it.

    Raises:
        FileNotFoundError: It is no longer where it was saved.
        ImportError: sentence-transformers is not installed.
        ValueError: It was never saved, it needs classes that are not trusted, or there is another
            model now.
    """
    place, other = saved_in(identity), "VideoIndex.open(uri, model=...)"
    if place is None:
        raise ValueError(
            f"{purpose} needs the model of the index, a {model_class(identity)}: {other}, since "
            "the index does not know where it was saved"
        )
    name, revision = place
    if os.path.isabs(name) and not os.path.isdir(name):
        raise FileNotFoundError(
            f"{purpose} needs the model of the index, which was saved in {name!r} and is not there "
            f"now: {other} gives a copy"
        )
    model = load_model(name, revision=revision)
    try:
        check_same(identity, model)
    except ValueError as error:
        raise ValueError(f"{error}; loaded from {name!r}, {other} gives another") from error
    return model

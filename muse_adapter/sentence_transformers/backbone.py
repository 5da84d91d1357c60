"""A Hugging Face model with a vision and a text tower, with its processor."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Any

from sentence_transformers.util import load_file_path
from transformers import AutoConfig, AutoModel, AutoProcessor


@dataclass
class Backbone:
    """A model and its processor.

    Attributes:
        model: The model, with `get_text_features`.
        processor: Its processor, with an `image_processor` and a `tokenizer`.
        base_model: Name on the Hugging Face hub that the weights come from, or None.
        base_model_revision: Commit of that name, or None.
    """

    model: Any
    processor: Any
    base_model: str | None = None
    base_model_revision: str | None = None


def load_backbone(
    name: str | os.PathLike[str],
    *,
    subfolder: str = "",
    revision: str | None = None,
    token: bool | str | None = None,
    cache_folder: str | None = None,
    local_files_only: bool = False,
    model_kwargs: dict[str, Any] | None = None,
    processor_kwargs: dict[str, Any] | None = None,
    config_kwargs: dict[str, Any] | None = None,
) -> Backbone:
    """Load a model and its processor, both of one commit, and without code of the repository.

    Args:
        name: A folder, or a name on the Hugging Face hub.
        subfolder: Where in it.
        revision: Branch, tag or commit; None: the main branch as it is now.
        token: Access token of the hub.
        cache_folder: Where the hub's files are kept.
        local_files_only: Whether to ask the hub for nothing.
        model_kwargs: Of `AutoModel.from_pretrained`, such as `dtype`.
        processor_kwargs: Of `AutoProcessor.from_pretrained`.
        config_kwargs: Of `AutoConfig.from_pretrained`.
    """
    # A branch may move between two downloads: the first file tells the commit of all.
    commit = None
    if not os.path.isdir(name):
        first = load_file_path(
            os.fspath(name),
            "config.json",
            subfolder=subfolder,
            token=token,
            cache_folder=cache_folder,
            revision=revision,
            local_files_only=local_files_only,
        )
        commit = None if first is None else commit_of(first)
    hub = {
        "subfolder": subfolder,
        "revision": commit or revision,
        "token": token,
        "cache_dir": cache_folder,
        "local_files_only": local_files_only,
    }
    config = AutoConfig.from_pretrained(name, **{**hub, **(config_kwargs or {})})
    model = AutoModel.from_pretrained(name, config=config, **{**hub, **(model_kwargs or {})})
    processor = AutoProcessor.from_pretrained(name, **{**hub, **(processor_kwargs or {})})
    return Backbone(model, processor, None if commit is None else os.fspath(name), commit)


def commit_of(path: str) -> str | None:
    """Return the commit of a file in the cache of the hub's client."""
    found = re.search(r"[\\/]snapshots[\\/]([0-9a-f]{40})[\\/]", path)
    return None if found is None else found[1]

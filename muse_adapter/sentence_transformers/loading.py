"""`load`: a saved model, without code that came with it."""

from __future__ import annotations

import json
import os
import re
from typing import Any

from sentence_transformers import MultiVectorEncoder, SentenceTransformer
from sentence_transformers.base.modules import Normalize
from sentence_transformers.sentence_transformer.modules import Pooling
from sentence_transformers.util import import_from_string, load_file_path
from torch import nn

from muse_adapter.sentence_transformers.backbone import commit_of
from muse_adapter.sentence_transformers.module import VideoTransformer

CLASSES = {cls.__name__: cls for cls in (SentenceTransformer, MultiVectorEncoder)}
OURS = {f"{VideoTransformer.__module__}.{VideoTransformer.__name__}": VideoTransformer}
LIBRARY = "sentence_transformers."
HUB_ID = re.compile(r"\w([\w.-]*\w)?/\w([\w.-]*\w)?", re.ASCII)


def load(
    name: str | os.PathLike[str],
    model_class: Any = None,
    *,
    revision: str | None = None,
    **kwargs: Any,
) -> Any:
    """Load a saved model; only classes of sentence-transformers and of this package are trusted.

    Args:
        name: A folder, or a name on the Hugging Face hub, "owner/name".
        model_class: `SentenceTransformer` or `MultiVectorEncoder` (None: the one that was saved). A
            model of single vectors becomes one of many, by its frames and words.
        revision: Branch, tag or commit of the hub; all files are of one commit.
        **kwargs: Of the class: `device`, `token`, `cache_folder`, `local_files_only`, …

    Returns:
        The model.

    Raises:
        FileNotFoundError: `name` is neither, or holds no saved model.
        ValueError: It needs another class; the message names it.
    """
    keys = ("token", "cache_folder", "local_files_only")
    hub: dict[str, Any] = {k: kwargs[k] for k in keys if k in kwargs}
    name = os.fspath(name)
    if not os.path.isdir(name) and (os.path.exists(name) or not HUB_ID.fullmatch(name)):
        raise FileNotFoundError(f"expected a folder or a hub id 'owner/name', got {name!r}")
    path, modules = _read_json(name, "modules.json", revision=revision, **hub)
    # A branch may move between two downloads: the first file tells the commit of all.
    if not os.path.isdir(name):
        revision = commit_of(path) or revision
    others = [module["type"] for module in modules if not _is_trusted(module["type"])]
    if others:
        raise ValueError(
            f"{name!r} needs classes neither of sentence-transformers nor of muse-adapter: "
            f"{', '.join(others)}. Where you trust them: SentenceTransformer({name!r}, "
            "trust_remote_code=True)"
        )
    _, settings = _read_json(name, "config_sentence_transformers.json", revision=revision, **hub)
    saved = settings.get("model_type", "SentenceTransformer")
    if saved not in CLASSES:
        raise ValueError(f"{name!r} is a {saved}; known are {', '.join(CLASSES)}")
    # Not through trust_remote_code, which would also run what the configs of a repository name.
    model = CLASSES[saved]._load_with_module_classes(
        name, OURS, revision=revision, trust_remote_code=False, **kwargs
    )
    if model_class is None or model_class is CLASSES[saved]:
        return model
    if (CLASSES[saved], model_class) == (SentenceTransformer, MultiVectorEncoder):
        return _multi_vector(model)
    raise ValueError(f"a saved {saved} cannot be loaded as {model_class.__name__}")


def _is_trusted(name: str) -> bool:
    """Return whether a name is that of our module, or of a module which that library defines."""
    if name in OURS:
        return True
    if not name.startswith(LIBRARY):
        return False
    try:
        found = import_from_string(name)
    except ImportError:
        return False
    # Not what its files import: torch, json, ...
    is_module = isinstance(found, type) and issubclass(found, nn.Module)
    return is_module and found.__module__.startswith(LIBRARY)


def _multi_vector(model: SentenceTransformer) -> MultiVectorEncoder:
    """Return the model of all frames and words of a model of single vectors."""
    modules = [
        module
        for module in model
        if not isinstance(module, Pooling)
        and not (isinstance(module, Normalize) and module.module_input_name == "sentence_embedding")
    ]
    device = str(model.device)
    return MultiVectorEncoder(modules=modules, prompts=dict(model.prompts), device=device)


def _read_json(name: str, file: str, **hub: Any) -> tuple[str, Any]:
    """Return the path of a file of a model, and its content."""
    path = load_file_path(name, file, **hub)
    if path is None:
        raise FileNotFoundError(f"{name!r} is no saved model: it has no {file}")
    with open(path, encoding="utf-8") as opened:
        return path, json.load(opened)

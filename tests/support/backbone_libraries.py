"""Import timm, open_clip and others that need torchvision, with a torch that has none.

`tests/run.sh` installs them in a separate folder, named by BACKBONE_LIBRARIES, that only the tests
use: transformers imports torchvision whenever it is installed, and a torchvision built for GPUs
breaks that import with a torch for CPUs.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch


def import_openai_clip() -> ModuleType | None:
    """Import OpenAI's clip; return None if it is not installed.

    It imports `packaging` from pkg_resources, which current setuptools no longer has.
    """
    if importlib.util.find_spec("clip") is None:
        return None
    if importlib.util.find_spec("pkg_resources") is not None:
        return importlib.import_module("clip")
    stand_in: Any = ModuleType("pkg_resources")
    importlib.import_module("packaging.version")
    stand_in.packaging = sys.modules["packaging"]
    sys.modules["pkg_resources"] = stand_in
    try:
        return importlib.import_module("clip")
    finally:
        del sys.modules["pkg_resources"]


def make_importable() -> torch.library.Library | None:
    """Add the folder to the path, and declare the operators that torchvision cannot load.

    Returns:
        The declaration, to be kept alive while torchvision is in use; None if none is needed.
    """
    if folder := os.environ.get("BACKBONE_LIBRARIES"):
        sys.path.append(folder)
    found = importlib.util.find_spec("torchvision")
    if found is None or found.origin is None:
        return None
    about = (Path(found.origin).parent / "version.py").read_text(encoding="utf-8")
    built_for_gpu = re.search(r"^__version__ = '[\d.]+\+cu", about, re.MULTILINE)
    if torch.version.cuda is not None or not built_for_gpu:
        return None
    # Its library cannot be loaded, but its Python registers shape functions for these operators.
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library

"""Saving and loading of models: our own files, and state dicts with official names."""

from muse_adapter.checkpoint.muse_names import (
    convert_official,
    is_official,
    load_muse_state_dict,
)
from muse_adapter.checkpoint.pretrained import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    load_pretrained,
    save_pretrained,
)
from muse_adapter.checkpoint.state_dicts import (
    check_fits,
    convert_names,
    load_strict,
    without_wrappers,
)

__all__ = [
    "CONFIG_NAME",
    "WEIGHTS_NAME",
    "check_fits",
    "convert_names",
    "convert_official",
    "is_official",
    "load_muse_state_dict",
    "load_pretrained",
    "load_strict",
    "save_pretrained",
    "without_wrappers",
]

"""Weights of EERCF under the names of the official code."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from muse_adapter.checkpoint import load_strict
from muse_adapter.models.eercf import EERCF


def load_eercf_state_dict(scorer: EERCF, state_dict: Mapping[str, Tensor]) -> None:
    """Load a scorer from a state dict with the names of the official EERCF code.

    They are `global_mat_weight` and, for a scorer with `num_frames`, `frame_logit_weight`, after
    any number of `module.` prefixes; other names belong to the rest of the model and are ignored.

    Args:
        scorer: The scorer; values are cast to the dtypes of its parameters.
        state_dict: The state dict of the whole official model.

    Raises:
        ValueError: A name is missing, has another shape, or is there for a scorer without
            `num_frames` (all are listed). The scorer is unchanged.
    """
    names = {full_name: re.sub(r"^(module\.)+", "", full_name) for full_name in state_dict}
    official = ("global_mat_weight", "frame_logit_weight")
    found = {name: state_dict[full] for full, name in names.items() if name in official}
    load_strict(scorer, found)

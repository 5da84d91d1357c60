"""State dicts with the names of the official MamFusion code."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping

from torch import Tensor

from muse_adapter.checkpoint import convert_names, without_wrappers
from muse_adapter.models.mamfusion import MamFusion

# Applied one after the other to our names.
_OFFICIAL_NAMES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^word_branch\.", "query_branch."),
        (r"^(\w+)_branch\.embed\.norm_in\.", r"\1_input_proj.LayerNorm."),
        (r"^(\w+)_branch\.embed\.proj\.", r"\1_input_proj.net.1."),
        (r"^(\w+)_branch\.embed\.positions\.", r"\1_pos_embed.position_embeddings."),
        (r"^(\w+)_branch\.embed\.norm\.", r"\1_pos_embed.LayerNorm."),
        # Before the encoders get their names: inside an attention layer and a Mamba branch.
        (r"(\.layers\.\d|\.attention)\.(query|key|value)\.", r"\1.self.\2."),
        (r"(\.layers\.\d|\.attention)\.out\.", r"\1.output.dense."),
        (r"(\.layers\.\d|\.attention)\.norm\.", r"\1.output.LayerNorm."),
        (r"(\.mamba\.\d)\.mixer\.", r"\1.0."),
        (r"(\.mamba\.\d)\.norm\.", r"\1.1."),
        (r"^clip_branch\.(gaussian|mamba)\.0\.", r"clip_encoder.\1."),
        (r"^clip_branch\.(gaussian|mamba)\.1\.", r"clip_encoder_2.\1."),
        (r"^frame_branch\.(gaussian|mamba)\.0\.", r"frame_encoder_1.\1."),
        (r"^frame_branch\.(gaussian|mamba)\.1\.", r"frame_encoder_2.\1."),
        (r"\.gaussian\.layers\.", ".attn"),
        (r"\.mamba\.", "_mamba."),
        (r"^query_branch\.attention\.", "query_encoder."),
        (r"^query_branch\.pool\.score\.", "modular_vector_mapping."),
        (r"^frame_pool\.score\.", "modular_vector_mapping_2."),
    )
)
_NEVER_USED = re.compile(r"(v2t|t2v)_fusion\.vid_embed_proj\.")
_BATCH_FUSION = re.compile(r"(v2t|t2v)_fusion\.multihead_attn\.")
_CLIP_POSITIONS = "clip_pos_embed.position_embeddings.weight"
_OURS_ALONE = ("projections.", "word_branch.projection.", "fusion.")


def load_mamfusion_state_dict(model: MamFusion, state_dict: Mapping[str, Tensor]) -> None:
    """Load a model from a state dict with the names of the official MamFusion code.

    Names may have any number of `module.` prefixes. The fusion over the batch (`v2t_fusion`,
    `t2v_fusion`), which no score needs, is left aside with a warning; its `vid_embed_proj`, which
    that code never uses, may be there or not. Of the clips' positions the first `num_clips` are
    taken. What our options add to the published model stays as it is.

    Args:
        model: The model; values are cast to the dtypes of its parameters.
        state_dict: The state dict of the whole official model, in any floating dtype.

    Raises:
        ValueError: Names are missing, unknown or duplicate, or values do not fit (all are listed).
            The model is unchanged.
    """
    official, problems = without_wrappers(state_dict)
    aside = [name for name in official if _BATCH_FUSION.match(name)]
    official = {
        name: value
        for name, value in official.items()
        if not (_BATCH_FUSION.match(name) or _NEVER_USED.match(name))
    }
    positions = official.get(_CLIP_POSITIONS)
    if isinstance(positions, Tensor) and positions.dim() == 2:
        official[_CLIP_POSITIONS] = positions[: model.config.num_clips]
    names = {
        name: _official_name(name)
        for name in model.state_dict()
        if not name.startswith(_OURS_ALONE)
    }
    model.load_state_dict(convert_names(model, official, names, problems))
    if aside:
        warnings.warn(
            f"{len(aside)} tensors of the fusion over the batch ({aside[0]}, ...) were left aside: "
            "they have part in the published loss only, not in a score",
            stacklevel=2,
        )


def _official_name(name: str) -> str:
    for pattern, replacement in _OFFICIAL_NAMES:
        name = pattern.sub(replacement, name)
    return name

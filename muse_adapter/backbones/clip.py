"""Patch tokens of CLIP as implemented by OpenAI, CLIP4Clip (and X-CLIP) and open_clip."""

from __future__ import annotations

import inspect
import math
from typing import Any

from torch import Tensor, nn

from muse_adapter.backbones.timm_vit import is_timm_vit, timm_dtype, timm_grid, timm_size
from muse_adapter.backbones.tokens import Grid, PatchTokens, prepend_embedding


def find_clip4clip(backbone: Any) -> PatchTokens | None:
    """Match the CLIP inside CLIP4Clip, X-CLIP and their forks.

    Its `encode_image(..., return_hidden=True)` returns every token normalised and projected.

    Raises:
        ValueError: Its patches span several frames.
    """
    encode = getattr(backbone, "encode_image", None)
    if not callable(encode) or "return_hidden" not in inspect.signature(encode).parameters:
        return None
    tower: Any = getattr(backbone, "visual", None)
    if not _is_clip_tower(tower) or tower.proj is None:
        return None
    _reject_3d_patches(tower)
    width = tower.proj.shape[1]
    return PatchTokens("CLIP4Clip CLIP", width, 1, _read_clip4clip, _conv1_grid, _conv1_size)


def _read_clip4clip(backbone: Any, frames: Tensor) -> Tensor:
    return backbone.encode_image(frames, return_hidden=True)[1]


def find_openai_clip(backbone: Any) -> PatchTokens | None:
    """Match OpenAI's CLIP or its `visual`.

    Every token is normalised and projected as the class token is.

    Raises:
        ValueError: Its patches span several frames.
    """
    tower = _tower(backbone)
    if not _is_clip_tower(tower) or hasattr(tower, "output_tokens"):
        return None
    _reject_3d_patches(tower)
    width = _projected_width(tower)
    return PatchTokens("OpenAI CLIP", width, 1, _read_openai, _conv1_grid, _conv1_size)


def _read_openai(backbone: Any, frames: Tensor) -> Tensor:
    tower = _tower(backbone)
    output, _ = _run_and_capture(tower, frames)
    return _project(tower, output.transpose(0, 1))  # its transformer works on (N, n, C)


def find_open_clip(backbone: Any) -> PatchTokens | None:
    """Match open_clip's own ViT, pooled by the class token or by the mean of the patches.

    Raises:
        ValueError: It has an attentional pool, whose embedding is in another space than its tokens.
    """
    tower = _tower(backbone)
    if not _is_clip_tower(tower) or not hasattr(tower, "output_tokens"):
        return None
    if getattr(tower, "attn_pool", None) is not None:
        raise ValueError(
            "open_clip towers with an attentional pool (CoCa) replace the patch grid by learned "
            "queries, so their patch tokens are not in the space of their embedding; choose the "
            "tokens with VideoEncoder(backbone, head, tokens=my_function)"
        )
    width = _projected_width(tower)
    return PatchTokens("open_clip ViT", width, 1, _read_open_clip, _conv1_grid, _conv1_size)


def _read_open_clip(backbone: Any, frames: Tensor) -> Tensor:
    tower = _tower(backbone)
    output, result = _run_and_capture(tower, frames)
    if not hasattr(tower.transformer, "batch_first"):  # before open_clip 2.28: (N, n, C)
        output = output.transpose(0, 1)
    tokens = _project(tower, output)
    if getattr(tower, "pool_type", "tok") != "avg":
        return tokens
    embedding = result[0] if isinstance(result, tuple) else result
    return prepend_embedding(embedding, tokens[:, 1:])


def find_open_clip_timm(backbone: Any) -> PatchTokens | None:
    """Match open_clip with a timm ViT as tower (SigLIP, EVA-02, PE, ViTamin)."""
    tower = _tower(backbone)
    trunk: Any = getattr(tower, "trunk", None)
    head = getattr(tower, "head", None)
    if not isinstance(head, nn.Module) or not is_timm_vit(trunk):
        return None
    linears = [m for part in (trunk.head, head) for m in part.modules() if isinstance(m, nn.Linear)]
    width = linears[-1].out_features if linears else trunk.num_features
    return PatchTokens(
        "open_clip timm ViT", width, 1, _read_open_clip_timm, _trunk_grid, _trunk_size
    )


def _read_open_clip_timm(backbone: Any, frames: Tensor) -> Tensor:
    tower = _tower(backbone)
    trunk = tower.trunk
    features = trunk.forward_features(frames.to(timm_dtype(trunk)))
    patches = trunk.fc_norm(features[:, trunk.num_prefix_tokens :])
    return prepend_embedding(
        tower.head(trunk.forward_head(features)), tower.head(trunk.head(trunk.head_drop(patches)))
    )


def _tower(backbone: Any) -> Any:
    return getattr(backbone, "visual", backbone)


def _is_clip_tower(tower: Any) -> bool:
    names = ("conv1", "class_embedding", "transformer", "ln_post", "proj")
    return isinstance(tower, nn.Module) and all(hasattr(tower, name) for name in names)


def _reject_3d_patches(tower: Any) -> None:
    if getattr(tower, "linear_patch", "2d") == "3d":
        raise ValueError(
            "this CLIP was built with linear_patch='3d': its patches span several frames, so "
            "frames cannot be encoded one by one; build it with linear_patch='2d'"
        )


def _projected_width(tower: Any) -> int:
    return tower.conv1.out_channels if tower.proj is None else tower.proj.shape[1]


def _project(tower: Any, output: Tensor) -> Tensor:
    tokens = tower.ln_post(output)
    return tokens if tower.proj is None else tokens @ tower.proj


def _run_and_capture(tower: Any, frames: Tensor) -> tuple[Tensor, Any]:
    """Run the tower unchanged; return its transformer's output and its own result.

    With a hook the tower itself computes everything up to the transformer, also in forks that
    changed it.
    """
    outputs: list[Tensor] = []
    handle = tower.transformer.register_forward_hook(lambda _m, _a, output: outputs.append(output))
    try:
        result = tower(frames.to(tower.conv1.weight.dtype))
    finally:
        handle.remove()
    return outputs[-1], result


def _conv1_grid(backbone: Any, size: Grid) -> Grid:
    patch = _tower(backbone).conv1.stride
    return size[0] // patch[0], size[1] // patch[1]


def _conv1_size(backbone: Any) -> Grid | None:
    """Return the frame size of a tower, whose positions are those of one patch grid."""
    tower = _tower(backbone)
    positions = getattr(tower, "positional_embedding", None)
    if positions is None:
        return None
    count, patch = len(positions) - 1, tower.conv1.stride
    side = math.isqrt(count)
    # Only open_clip's grids need not be square, and those it names.
    rows, columns = getattr(tower, "grid_size", (side, side))
    return (rows * patch[0], columns * patch[1]) if rows * columns == count else None


def _trunk_size(backbone: Any) -> Grid | None:
    return timm_size(_tower(backbone).trunk)


def _trunk_grid(backbone: Any, size: Grid) -> Grid:
    return timm_grid(_tower(backbone).trunk, size)

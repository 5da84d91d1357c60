"""VideoEncoder: from frames to a video embedding, with any backbone and the multi-scale head."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from muse_adapter.backbones.checkpointing import set_grad_checkpointing
from muse_adapter.backbones.find import find_patch_tokens
from muse_adapter.backbones.tokens import Grid, PatchTokens
from muse_adapter.encoders.checks import (
    check_custom_tokens,
    check_frames,
    check_head_fits,
    check_options,
    check_tokens_fn,
)
from muse_adapter.models.muse import MultiScaleMamba


class VideoEncoder(nn.Module):
    """Embed videos with an image backbone and a head on its patch tokens.

    Parameters of the backbone that its tokens do not depend on (a text tower, a classifier) get no
    gradient; under DistributedDataParallel freeze or remove them, or wrap a model that uses them.

    Args:
        backbone: The backbone; `find_patch_tokens` lists the supported families. Frames are passed
            to it unchanged: preprocess them with the backbone's processor.
        head: The head, of the backbone's width and number of prefix tokens (or 0: it then gets
            the patches alone). None: a `MultiScaleMamba` with the default settings for this
            backbone, on its device. Any other module with the same call works too; it gets all
            tokens.
        tokens: For a custom backbone, a function from frames (n, 3, height, width) to tokens
            (n, N, C), N = `num_prefix_tokens` of the head + H*W. Needs `head`.
        freeze: Whether the whole backbone, including a text tower in it, gets no gradient and stays
            in evaluation mode, also after `.train()`.
        frames_per_slice: Largest number of frames that the backbone encodes at once. None: all.

    Raises:
        TypeError: The backbone is unknown, or `head` or `tokens` is of the wrong type.
        ValueError: The head does not fit the backbone, the backbone cannot encode frames one by
            one, `tokens` is given without a head, or `frames_per_slice` is below 1.
    """

    def __init__(
        self,
        backbone: nn.Module,
        head: nn.Module | None = None,
        *,
        tokens: Callable[[Tensor], Tensor] | None = None,
        freeze: bool = False,
        frames_per_slice: int | None = None,
    ) -> None:
        super().__init__()
        if tokens is not None:
            check_tokens_fn(backbone, head, tokens)
        check_options(head, frames_per_slice)
        self.patch_tokens: PatchTokens | None = None
        if tokens is None:
            self.patch_tokens = find_patch_tokens(backbone)
            head = _head_for(backbone, self.patch_tokens) if head is None else head
            check_head_fits(head, self.patch_tokens)
        self.tokens_fn = tokens
        self.backbone = backbone
        self.head: Any = head
        self.frozen = freeze
        self.frames_per_slice = frames_per_slice
        if freeze:
            self.backbone.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> VideoEncoder:
        """Set the mode of the head and, unless it is frozen, of the backbone."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass, in the head and in the backbone if it can.

        A frozen backbone keeps no activations anyway.
        """
        if hasattr(self.head, "set_grad_checkpointing"):
            self.head.set_grad_checkpointing(enable)
        if not self.frozen:
            set_grad_checkpointing(self.backbone, enable)

    def forward(
        self,
        frames: Tensor,
        frame_mask: Tensor | None = None,
        *,
        grid: Grid | None = None,
        output_frames: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Embed videos.

        Args:
            frames: (B, T, 3, height, width), floating point, preprocessed for the backbone.
            frame_mask: (B, T), True or 1 = real frame; None: all real. Masked frames may hold any
                values; they are not encoded (inside a compiled graph: encoded as black).
            grid: Patch grid (H, W) for a custom `tokens` function; None: square.
            output_frames: Whether to return the fused frame features too.

        Returns:
            The embedding (B, D), of unit norm; with `output_frames` a pair of the embedding and the
            frame features (B, T, D).

        Raises:
            TypeError: `frames` is not a floating-point tensor.
            ValueError: A shape is wrong, or `grid` is not that of the backbone.
        """
        tokens = self.forward_tokens(frames, frame_mask)
        grid = self.grid_of(frames, grid)
        if not output_frames:
            return self.head(tokens, frame_mask, grid=grid)
        features = self.head.forward_features(tokens, frame_mask, grid=grid)
        return self.head.forward_head(features, frame_mask), features

    def forward_tokens(self, frames: Tensor, frame_mask: Tensor | None = None) -> Tensor:
        """Read the patch tokens that are the head's input.

        Args:
            frames: (B, T, 3, height, width), as in `forward`.
            frame_mask: (B, T), as in `forward`.

        Returns:
            Tokens (B, T, N, C) in the dtype of the head; zeros for masked frames.

        Raises:
            TypeError: `frames` is not a floating-point tensor.
            ValueError: A shape is wrong.
        """
        check_frames(frames, frame_mask)
        flat = frames.flatten(0, 1)
        mask = None if frame_mask is None else frame_mask.to(flat.device).flatten() != 0
        tokens = self._masked_tokens(flat, mask).unflatten(0, frames.shape[:2])
        # The backbone may be in half precision; the head computes in the dtype of its weights.
        parameter = next(_floating(self.head), None)
        return tokens if parameter is None else tokens.to(parameter.dtype)

    def forward_levels(
        self, frames: Tensor, frame_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute features of every level, as scorers from coarse to fine compare them.

        Args:
            frames: (B, T, 3, height, width), as in `forward`.
            frame_mask: (B, T), as in `forward`.

        Returns:
            The backbone's class tokens (B, T, D), or the mean of the patches where it has none; the
            frame features of the head (B, T, D); the patch tokens (B, T, P, D). Class and patch
            tokens have passed the head's input projection, if it has one.

        Raises:
            TypeError: `frames` is not a floating-point tensor.
            ValueError: A shape is wrong.
        """
        tokens = self.forward_tokens(frames, frame_mask)
        fused = self.head.forward_features(tokens, frame_mask, grid=self.grid_of(frames))
        prefix = self._num_prefix_tokens()
        projection = getattr(self.head, "proj", None)
        tokens = tokens if projection is None else projection(tokens)
        patches = tokens[:, :, prefix:]
        return (tokens[:, :, 0] if prefix else patches.mean(2)), fused, patches

    def frame_tokens(self, frames: Tensor) -> Tensor:
        """Read the tokens of single frames, in slices of `frames_per_slice`.

        Args:
            frames: (n, 3, height, width), floating point, preprocessed for the backbone.

        Returns:
            Tokens (n, N, C) in the dtype of the backbone's output.
        """
        size = self.frames_per_slice  # None: one, also where their number is symbolic
        slices = [frames] if size is None else frames.split(size)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            tokens = [self._read(part) for part in slices]
        return torch.cat(tokens) if len(tokens) > 1 else tokens[0]

    def grid_of(self, frames: Tensor, grid: Grid | None = None) -> Grid | None:
        """Return the patch grid of frames.

        Args:
            frames: (..., height, width).
            grid: The grid for a custom `tokens` function; otherwise None or the backbone's grid.

        Returns:
            (H, W); None (square) for a custom function without a given grid.

        Raises:
            ValueError: `grid` is not that of the backbone.
        """
        if self.patch_tokens is None:
            return grid
        known = self.patch_tokens.grid_of(self.backbone, (frames.shape[-2], frames.shape[-1]))
        if grid is not None and tuple(grid) != known:
            raise ValueError(f"grid of these frames is (H, W) = {known}, got {tuple(grid)}")
        return known

    def _masked_tokens(self, frames: Tensor, mask: Tensor | None) -> Tensor:
        """Read tokens (n, N, C) of frames (n, 3, height, width); zeros where mask (n,) is False."""
        if mask is not None and torch.compiler.is_compiling():
            # Shapes in a graph must not depend on the mask: masked frames are encoded as black.
            tokens = self.frame_tokens(torch.where(mask[:, None, None, None], frames, 0))
            return torch.where(mask[:, None, None], tokens, 0)
        if mask is None or bool(mask.all()):
            return self.frame_tokens(frames)
        index = mask.nonzero().squeeze(1)
        if index.numel():
            tokens = self.frame_tokens(frames[index])
        else:
            # One black frame, masked as well: under DDP every rank must run the backbone.
            index = index.new_zeros(1)
            tokens = self.frame_tokens(torch.zeros_like(frames[:1]))
        return tokens.new_zeros(len(frames), *tokens.shape[1:]).index_copy(0, index, tokens)

    def _num_prefix_tokens(self) -> int:
        if isinstance(self.head, MultiScaleMamba):
            return self.head.config.num_prefix_tokens
        return 1 if self.patch_tokens is None else self.patch_tokens.num_prefix_tokens

    def _read(self, frames: Tensor) -> Tensor:
        if self.tokens_fn is not None:
            tokens = self.tokens_fn(frames)
            check_custom_tokens(tokens, frames)
            return tokens
        assert self.patch_tokens is not None
        tokens = self.patch_tokens.read(self.backbone, frames)
        if isinstance(self.head, MultiScaleMamba) and self.head.config.num_prefix_tokens == 0:
            tokens = tokens[:, self.patch_tokens.num_prefix_tokens :]
        return tokens

    def extra_repr(self) -> str:
        """Return the settings shown by `repr`."""
        family = "own function" if self.patch_tokens is None else self.patch_tokens.family
        return f"tokens={family}, freeze={self.frozen}, frames_per_slice={self.frames_per_slice}"


def _head_for(backbone: nn.Module, found: PatchTokens) -> MultiScaleMamba:
    head = MultiScaleMamba(dim=found.width, num_prefix_tokens=found.num_prefix_tokens)
    parameter = next(_floating(backbone), None)
    if parameter is None:
        return head
    # Only the backbone may be in half precision: the head's weights are trained.
    wide = torch.float64 if parameter.dtype == torch.float64 else torch.float32
    return head.to(device=parameter.device, dtype=wide)


def _floating(module: nn.Module) -> Iterator[nn.Parameter]:
    return (parameter for parameter in module.parameters() if parameter.is_floating_point())

"""The head: patch tokens -> pyramid -> sequence -> residual mixer layers -> pool -> embedding."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from muse_adapter.checkpoint import load_pretrained, load_strict, save_pretrained
from muse_adapter.config import MuseConfig
from muse_adapter.layers.block import ResidualLayer
from muse_adapter.layers.checkpointing import checkpointed
from muse_adapter.layers.mixers import Attention, BiMamba, GatedConvolution, Mixer
from muse_adapter.layers.pool import mean_pool
from muse_adapter.layers.pyramid import FeaturePyramid, check_grid
from muse_adapter.layers.sequence import build_sequence
from muse_adapter.layers.tokens import as_frame_mask, as_video_tokens, patch_grid


class MultiScaleMamba(nn.Module):
    """Multi-scale video head for text-video retrieval (MUSE, AAAI 2025).

    Args:
        config: a `MuseConfig`; or its fields as keywords, `MultiScaleMamba(dim=512, depth=4)`.

    Raises:
        TypeError: a config and keywords together, or unknown keywords.
        ValueError: impossible values (see `MuseConfig`).
    """

    def __init__(self, config: MuseConfig | None = None, **fields: Any) -> None:
        super().__init__()
        if config is not None and fields:
            raise TypeError(
                f"give a MuseConfig or its fields, not both: got a config and {sorted(fields)}"
            )
        if config is not None and not isinstance(config, MuseConfig):
            raise TypeError(f"config must be a MuseConfig, got {type(config).__name__}")
        config = MuseConfig(**fields) if config is None else config
        self.config = config
        self.grad_checkpointing = False
        projects = config.in_dim not in (None, config.dim)
        self.proj = (
            nn.Linear(config.in_dim or config.dim, config.dim) if projects else nn.Identity()
        )
        self.pyramid = FeaturePyramid(config.dim, config.scales)
        rates = torch.linspace(0, config.dropout, config.depth).tolist()
        self.layers = nn.ModuleList(
            ResidualLayer(config.dim, _mixer(config), dropout=rate) for rate in rates
        )
        self.reset_parameters()

    def forward(
        self,
        tokens: Tensor,
        frame_mask: Tensor | None = None,
        *,
        num_frames: int | None = None,
        grid: tuple[int, int] | None = None,
    ) -> Tensor:
        """Embed videos.

        Args:
            tokens: (B, T, N, C) patch tokens of each frame, or (B*T, N, C) with `num_frames`;
                N = num_prefix_tokens + H*W, prefix first, then the grid row by row. In the head's
                type and on its device (under autocast any floating type).
            frame_mask: (B, T), True or 1 for a real frame; None: all are real. Masked frames
                influence nothing, whatever they hold.
            num_frames: T, with three-dimensional tokens.
            grid: (H, W) where the grid is not square.

        Returns:
            (B, D) of unit norm; zero for a video without a real frame.

        Raises:
            ValueError: shapes, grid or mask that do not fit.
            TypeError: a type that does not fit.
        """
        frames = self.forward_features(tokens, frame_mask, num_frames=num_frames, grid=grid)
        return mean_pool(frames, None if frame_mask is None else frame_mask.to(torch.bool))

    def forward_features(
        self,
        tokens: Tensor,
        frame_mask: Tensor | None = None,
        *,
        num_frames: int | None = None,
        grid: tuple[int, int] | None = None,
    ) -> Tensor:
        """Fused frame features; arguments and errors as in `forward`.

        Returns:
            (B, T, D). At a masked frame, its class feature as it came in (projected, without
            gradient); where that has no direction, a constant one, since hosts divide by the norm
            before they mask.
        """
        config = self.config
        tokens = self._cast(as_video_tokens(tokens, num_frames))
        grid = patch_grid(tokens.shape[2], config.num_prefix_tokens, grid)
        check_grid(grid, config.scales)
        mask = as_frame_mask(frame_mask, (tokens.shape[0], tokens.shape[1]), tokens.device)

        given = tokens
        if mask is not None:
            tokens = torch.where(mask[:, :, None, None], tokens, 0)
        cls_tokens, patches = self._project(tokens)
        maps = rearrange(patches, "b t (h w) d -> (b t) d h w", h=grid[0])
        levels = [
            rearrange(level, "(b t) d h w -> b t (h w) d", t=tokens.shape[1])
            for level in self.pyramid(maps, self._run)
        ]
        x, lengths, readout = build_sequence(
            cls_tokens,
            levels,
            mask,
            aggregation=config.aggregation,
            class_last=config.mixer
            == "mamba",  # a causal mixer shows a token only what stands before it
        )
        *first, last = self.layers
        for layer in first:
            x = self._run(layer, x, lengths)
        frames = self._run(last, x, lengths, readout)
        return (
            frames
            if mask is None
            else torch.where(mask.unsqueeze(-1), frames, self._masked_features(given))
        )

    def forward_head(self, frames: Tensor, frame_mask: Tensor | None = None) -> Tensor:
        """Pool frame features: normalised, averaged over the real frames, normalised.

        Args:
            frames: (B, T, D).
            frame_mask: (B, T), True or 1 for a real frame; None: all.

        Returns:
            (B, D) of unit norm; zero, with gradient zero, for a video without a real frame.

        Raises:
            ValueError: shapes that do not fit.
        """
        if frames.dim() != 3 or 0 in frames.shape:
            raise ValueError(
                f"frames must have shape (B, T, D) with no size 0, got {tuple(frames.shape)}"
            )
        mask = as_frame_mask(frame_mask, (frames.shape[0], frames.shape[1]), frames.device)
        return mean_pool(frames, mask)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw all parameters anew as `config.init` says: for hosts that re-initialise all modules.

        "identity": torch's defaults, Mamba's own for the scan, and zero for the last map of each
        layer, so that the head changes nothing at first. "release": what takes effect in the
        official code, N(0, 0.02) and bias zero in every linear layer, dt and that last map
        included.
        """
        for module in self.modules():
            if module is not self and callable(reset := getattr(module, "reset_parameters", None)):
                reset()
        for module in self.modules():
            if isinstance(module, BiMamba):
                module.reset_scan()
        if self.config.init == "release":
            for module in self.modules():
                if isinstance(module, nn.Linear):
                    nn.init.normal_(module.weight, std=0.02)
                    if module.bias is not None:
                        nn.init.zeros_(module.bias)
        else:
            for layer in self.layers:
                assert isinstance(layer, ResidualLayer)
                layer.zero_init_output()

    def freeze_pyramid(self) -> None:
        """Keep the pyramid at its random start, as it was in the run behind the paper's number."""
        self.pyramid.requires_grad_(False)

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that must not decay (beside biases and norms)."""
        return {
            f"{prefix}.{name}"
            for prefix, module in self.named_modules()
            if isinstance(module, BiMamba)
            for name in module.no_weight_decay()
        }

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute pyramid stages and layers in the backward pass: less memory, more time."""
        self.grad_checkpointing = enable

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write the head's weights (safetensors) and config (JSON) into `folder`."""
        save_pretrained(self, folder)

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike[str]) -> MultiScaleMamba:
        """Load what `save_pretrained` wrote, in its type; a folder or a hub id "owner/name"."""
        config, state_dict = load_pretrained(name)
        head = cls(config).to(next(iter(state_dict.values())).dtype)
        load_strict(head, state_dict)
        return head

    def extra_repr(self) -> str:
        """The settings that the submodules do not show."""
        config = self.config
        return f"scales={config.scales}, aggregation={config.aggregation!r}, mixer={config.mixer!r}"

    def _cast(self, tokens: Tensor) -> Tensor:
        weight = next(self.layers.parameters())
        width = self.config.in_dim or self.config.dim
        if tokens.shape[-1] != width:
            raise ValueError(
                f"tokens must have the head's input width C = {width}, got {tokens.shape[-1]}; "
                f"another width is given as in_dim in the config"
            )
        if tokens.device != weight.device:
            raise ValueError(f"tokens are on {tokens.device}, the head is on {weight.device}")
        if tokens.dtype != weight.dtype and not torch.is_autocast_enabled(tokens.device.type):
            raise TypeError(
                f"tokens are {tokens.dtype}, the head is {weight.dtype}: cast one of them, or use "
                "autocast"
            )
        return tokens.to(weight.dtype)

    def _project(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Class feature (B, T, D) and patches (B, T, H*W, D) of tokens (B, T, N, C)."""
        prefix = self.config.num_prefix_tokens
        # Back to the head's type, which autocast leaves: the residual stream starts here.
        patches = self.proj(tokens[:, :, prefix:]).to(tokens.dtype)
        cls_tokens = self.proj(tokens[:, :, 0]).to(tokens.dtype) if prefix else patches.mean(2)
        return cls_tokens, patches

    @torch.no_grad()
    def _masked_features(self, tokens: Tensor) -> Tensor:
        """What stands in for masked frames, (B, T, D): finite and never zero, without gradient."""
        prefix = self.config.num_prefix_tokens
        cls_tokens = self.proj(tokens[:, :, 0] if prefix else tokens.mean(2))
        norm = cls_tokens.float().norm(dim=-1, keepdim=True)
        usable = (norm > 0) & norm.isfinite()
        return torch.where(usable, cls_tokens, cls_tokens.shape[-1] ** -0.5)

    def _run(self, module: Callable[..., Tensor], *args: Any) -> Tensor:
        if self.grad_checkpointing and torch.is_grad_enabled():
            return checkpointed(module, *args)
        return module(*args)


def _mixer(config: MuseConfig) -> Mixer:
    if config.mixer == "attention":
        return Attention(config.dim)
    if config.mixer == "conv":
        return GatedConvolution(config.dim, d_conv=config.d_conv, expand=config.expand)
    return BiMamba(
        config.dim,
        d_state=config.d_state,
        d_conv=config.d_conv,
        expand=config.expand,
        bidirectional=config.mixer == "bimamba",
    )

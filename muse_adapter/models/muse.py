"""The MUSE head: patch tokens -> pyramid -> sequence -> mixer layers -> pool -> embedding."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from einops import rearrange
from torch import Tensor, nn

from muse_adapter.checkpoint import load_pretrained, load_strict, save_pretrained
from muse_adapter.config import MuseConfig
from muse_adapter.layers.block import ResidualLayer
from muse_adapter.layers.checkpointing import checkpointed
from muse_adapter.layers.linear import Linear
from muse_adapter.layers.mixers import BiMamba, undecayed_parameters
from muse_adapter.layers.pool import check_frames, mean_pool
from muse_adapter.layers.pyramid import FeaturePyramid, check_grid
from muse_adapter.layers.sequence import TokenSequence, build_sequence
from muse_adapter.layers.tokens import as_frame_mask, as_video_tokens, patch_grid
from muse_adapter.models.muse_mixers import fewest_weights, make_mixer
from muse_adapter.models.streaming import StreamState, check_streamable, layer_states, stacked

_Result = TypeVar("_Result")


class MultiScaleMamba(nn.Module):
    """Multi-scale video head for text-video retrieval (MUSE, AAAI 2025).

    Args:
        config: Configuration of the head.
        **fields: Fields of a `MuseConfig`, in place of `config`: `MultiScaleMamba(dim=512)`.

    Raises:
        TypeError: Both a config and fields are given, or a field is unknown or of the wrong type.
        ValueError: A field has an invalid value (see `MuseConfig`).
    """

    def __init__(self, config: MuseConfig | None = None, **fields: Any) -> None:
        super().__init__()
        if config is not None and fields:
            raise TypeError(
                f"give a MuseConfig or its fields, not both: got a config and {sorted(fields)}"
            )
        if config is not None and not isinstance(config, MuseConfig):
            hint = f"; a width is given as dim={config}" if isinstance(config, int) else ""
            raise TypeError(f"config must be a MuseConfig, got {type(config).__name__}{hint}")
        config = MuseConfig(**fields) if config is None else config
        self.config = config
        self.grad_checkpointing = False
        projects = config.in_dim not in (None, config.dim)
        self.proj = Linear(config.in_dim or config.dim, config.dim) if projects else nn.Identity()
        self.pyramid = FeaturePyramid(config.dim, config.scales)
        rates = torch.linspace(0, config.dropout, config.depth).tolist()
        self.layers = nn.ModuleList(
            ResidualLayer(config.dim, make_mixer(config), dropout=rate) for rate in rates
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
            tokens: (B, T, N, C) tokens of each frame, or (B*T, N, C) with `num_frames`;
                N = num_prefix_tokens + H*W, the prefix first, then the grid row by row. They have
                the head's dtype and device (under autocast any floating dtype).
            frame_mask: (B, T), True or 1 for a real frame; None: all are real. Masked frames
                influence nothing, whatever they contain.
            num_frames: T, for three-dimensional tokens only.
            grid: (H, W); None: the grid is square.

        Returns:
            (B, D) of unit norm; zero for a video without a real frame.

        Raises:
            TypeError: An argument has the wrong type or dtype.
            ValueError: The shapes, the grid or the mask do not fit.
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
        """Fuse the tokens of each video into frame features; arguments and errors as in `forward`.

        Returns:
            (B, T, D). A masked frame has its own class feature (projected, without gradient), or a
            constant where that is zero or not finite: hosts divide by the norm before they mask.
        """
        tokens = self._cast(as_video_tokens(tokens, num_frames))
        mask = as_frame_mask(frame_mask, (tokens.shape[0], tokens.shape[1]), tokens.device)
        x, lengths, readout = self._sequence(tokens, mask, grid)
        *first, last = self.layers
        for layer in first:
            x = self._run(layer, x, lengths)
        return self._with_masked(self._run(last, x, lengths, readout), tokens, mask)

    def forward_chunk(
        self,
        tokens: Tensor,
        state: StreamState | None = None,
        frame_mask: Tensor | None = None,
        *,
        grid: tuple[int, int] | None = None,
    ) -> tuple[Tensor, StreamState]:
        """Continue `forward_features` with the next frames of each video.

        The frames of all chunks are those of one call on the whole video. It takes a head with
        `mixer="mamba"` and `aggregation="frame_wise"`, since no other knows a frame before the
        video has ended. A masked frame does not move the state.

        Args:
            tokens: (B, T, N, C), the next T frames, as in `forward`.
            state: What the last call returned; None: the videos begin.
            frame_mask: As in `forward`, of this chunk; a video may have no real frame in it.
            grid: As in `forward`.

        Returns:
            (B, T, D), as `forward_features` gives them, and the state for the next chunk, which has
            the size of the one before. With gradients it holds the graph of all chunks: see
            `StreamState.detach`.

        Raises:
            TypeError: An argument has the wrong type or dtype.
            ValueError: The head is another one, or the shapes, the grid, the mask or the state do
                not fit.
        """
        check_streamable(self.config)
        if isinstance(tokens, Tensor) and tokens.dim() != 4:
            raise ValueError(f"tokens must have shape (B, T, N, C), got {tuple(tokens.shape)}")
        tokens = self._cast(as_video_tokens(tokens, None))
        mask = as_frame_mask(
            frame_mask, (tokens.shape[0], tokens.shape[1]), tokens.device, warn_empty=False
        )
        before = layer_states(state, self.config, tokens)
        after: list[tuple[Tensor, Tensor]] = []
        x, lengths, readout = self._sequence(tokens, mask, grid)
        for layer, memory in zip(self.layers, before, strict=True):
            assert isinstance(layer, ResidualLayer)
            wanted = readout if len(after) == len(before) - 1 else None
            x, memory = self._run(layer.forward_chunk, x, memory, lengths, wanted)
            after.append(memory)
        return self._with_masked(x, tokens, mask), stacked(after)

    def forward_head(self, frames: Tensor, frame_mask: Tensor | None = None) -> Tensor:
        """Pool frame features: normalise, average the real frames, normalise.

        Args:
            frames: (B, T, D).
            frame_mask: (B, T), True or 1 for a real frame; None: all are real.

        Returns:
            (B, D) of unit norm; zero, with zero gradient, for a video without a real frame.

        Raises:
            ValueError: The shapes do not fit.
        """
        check_frames(frames)
        mask = as_frame_mask(frame_mask, (frames.shape[0], frames.shape[1]), frames.device)
        return mean_pool(frames, mask)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise all parameters as `config.init` says.

        Call it after a host has re-initialised all of its modules.

        * "identity": the defaults of torch, those of Mamba for the scan, and zero for the last
          linear map of each layer, so that the layers start as identities.
        * "release": what takes effect in the official code: N(0, 0.02) and zero biases in every
          linear map, including dt's and the last one.
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
        """Keep the pyramid at its random initialisation, as in the paper's published run."""
        self.pyramid.requires_grad_(False)

    def no_weight_decay(self) -> set[str]:
        """Name the parameters that must not decay, apart from biases and norms."""
        return undecayed_parameters(self)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute pyramid stages and layers in the backward pass: less memory, more time.

        Args:
            enable: False turns it off again.
        """
        self.grad_checkpointing = enable

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Save the weights (safetensors) and the config (JSON).

        Args:
            folder: Created if needed; its files of an earlier save are replaced.

        Raises:
            ImportError: safetensors is not installed.
            OSError: The folder cannot be written.
            ValueError: The weights are not finite, or of several dtypes; nothing is written.
        """
        save_pretrained(self, folder)

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike[str]) -> MultiScaleMamba:
        """Load a head that `save_pretrained` saved.

        Args:
            name: A folder, or `owner/name` of a model on the Hugging Face hub.

        Returns:
            The head, in the dtype of the saved weights.

        Raises:
            FileNotFoundError: `name` is neither a folder nor `owner/name`, or a file is missing.
            ImportError: safetensors (or, for the hub, huggingface_hub) is not installed.
            OSError: The hub does not provide the model.
            ValueError: A file is damaged, the files are of two saves, the config is invalid or
                newer than this package, or the weights do not fit it, are not finite or of several
                dtypes.
        """
        config, state_dict = load_pretrained(name, MuseConfig)
        # Before memory is taken for what a damaged number asks for; `load_strict` lists the rest.
        given, asked = sum(t.numel() for t in state_dict.values()), fewest_weights(config)
        if asked > 4 * given + 10_000:
            raise ValueError(
                f"the weights in {str(name)!r} do not fit its config: they are {given} numbers, "
                f"those of {config} at least {asked}"
            )
        head = cls(config).to(next(iter(state_dict.values())).dtype)
        load_strict(head, state_dict)
        return head

    def extra_repr(self) -> str:
        """Show the settings that the submodules do not show."""
        config = self.config
        return f"scales={config.scales}, aggregation={config.aggregation!r}, mixer={config.mixer!r}"

    def _cast(self, tokens: Tensor) -> Tensor:
        weight = next(self.layers.parameters())
        width = self.config.in_dim or self.config.dim
        if tokens.shape[-1] != width:
            raise ValueError(
                f"tokens must have the head's input width C = {width}, got {tokens.shape[-1]}; "
                "set in_dim in the config for another one"
            )
        if tokens.device != weight.device:
            raise ValueError(f"tokens are on {tokens.device}, the head is on {weight.device}")
        if tokens.dtype != weight.dtype and not torch.is_autocast_enabled(tokens.device.type):
            raise TypeError(
                f"tokens are {tokens.dtype}, the head is {weight.dtype}: cast one of them or use "
                "autocast"
            )
        return tokens.to(weight.dtype)

    def _sequence(
        self, tokens: Tensor, mask: Tensor | None, grid: tuple[int, int] | None
    ) -> TokenSequence:
        """Make the sequence of the layers of tokens (B, T, N, C) and a mask (B, T)."""
        config = self.config
        grid = patch_grid(tokens.shape[2], config.num_prefix_tokens, grid)
        check_grid(grid, config.scales)
        if mask is not None:
            tokens = torch.where(mask[:, :, None, None], tokens, 0)
        cls_tokens, patches = self._project(tokens)
        maps = rearrange(patches, "b t (h w) d -> (b t) d h w", h=grid[0])
        levels = [
            rearrange(level, "(b t) d h w -> b t (h w) d", t=tokens.shape[1])
            for level in self.pyramid(maps, self._run)
        ]
        return build_sequence(
            cls_tokens,
            levels,
            mask,
            aggregation=config.aggregation,
            # A causal mixer reads only what precedes a token.
            class_last=config.mixer == "mamba",
        )

    def _project(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Split and project tokens (B, T, N, C): class tokens (B, T, D), patches (B, T, H*W, D)."""
        prefix = self.config.num_prefix_tokens
        # Autocast changes the dtype; the residual stream starts here and keeps the head's.
        patches = self.proj(tokens[:, :, prefix:]).to(tokens.dtype)
        cls_tokens = self.proj(tokens[:, :, 0]).to(tokens.dtype) if prefix else patches.mean(2)
        return cls_tokens, patches

    def _with_masked(self, frames: Tensor, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Give masked frames their features; `tokens` are the given ones, (B, T, N, C)."""
        if mask is None:
            return frames
        return torch.where(mask.unsqueeze(-1), frames, self._masked_features(tokens))

    @torch.no_grad()
    def _masked_features(self, tokens: Tensor) -> Tensor:
        """Compute the features of masked frames, (B, T, D): finite, not zero, without gradient."""
        prefix = self.config.num_prefix_tokens
        cls_tokens = self.proj(tokens[:, :, 0] if prefix else tokens.mean(2))
        norm = cls_tokens.float().norm(dim=-1, keepdim=True)
        usable = (norm > 0) & norm.isfinite()
        return torch.where(usable, cls_tokens, cls_tokens.shape[-1] ** -0.5)

    def _run(self, module: Callable[..., _Result], *args: Any) -> _Result:
        if self.grad_checkpointing and torch.is_grad_enabled():
            return checkpointed(module, *args)
        return module(*args)

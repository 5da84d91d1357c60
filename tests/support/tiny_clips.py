"""Minimal backbones with the names and tensor layouts of OpenAI's CLIP, CLIP4Clip and timm."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def shake(module: nn.Module, std: float = 0.3) -> nn.Module:
    """Randomise every parameter, norms too, so that an omitted or repeated step is visible."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) * std + (parameter.ndim < 2) * 0.5)
    return module


class Block(nn.Module):
    """Attention with a residual, on (N, n, C) unless `batch_first`."""

    def __init__(self, width: int, batch_first: bool = False) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, 2, batch_first=batch_first)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.attn(x, x, x, need_weights=False)[0]


class ClipTower(nn.Module):
    """The ViT of OpenAI's CLIP, which returns the projected class token."""

    def __init__(
        self, width: int = 16, out: int | None = 12, patch: int = 4, side: int = 16
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.positional_embedding = nn.Parameter(torch.zeros((side // patch) ** 2 + 1, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = nn.Sequential(Block(width), Block(width))
        self.ln_post = nn.LayerNorm(width)
        self.proj = None if out is None else nn.Parameter(torch.zeros(width, out))

    def embed(self, x: Tensor) -> Tensor:
        """Return every token after the transformer, (n, N, C)."""
        x = self.conv1(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.to(x.dtype).expand(len(x), 1, -1), x], dim=1)
        x = self.ln_pre(x + self.positional_embedding.to(x.dtype))
        return self.transformer(x.transpose(0, 1)).transpose(0, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.ln_post(self.embed(x)[:, 0])
        return x if self.proj is None else x @ self.proj


class OpenAIClip(nn.Module):
    """The image part of OpenAI's CLIP."""

    def __init__(self, **tower: int | None) -> None:
        super().__init__()
        self.visual = ClipTower(**tower)
        shake(self)

    def encode_image(self, image: Tensor) -> Tensor:
        return self.visual(image.type(self.visual.conv1.weight.dtype))


class Clip4ClipTower(ClipTower):
    """The ViT of CLIP4Clip, which leaves norm and projection to `encode_image`."""

    linear_patch = "2d"

    def forward(self, x: Tensor, video_frame: int = -1) -> Tensor:
        return self.embed(x)


class Clip4ClipClip(nn.Module):
    """The CLIP inside CLIP4Clip and X-CLIP."""

    def __init__(self) -> None:
        super().__init__()
        self.visual = Clip4ClipTower()
        shake(self)

    def encode_image(
        self, image: Tensor, return_hidden: bool = False, video_frame: int = -1
    ) -> Tensor | tuple[Tensor, Tensor]:
        tower = self.visual
        hidden = (
            tower.ln_post(tower(image.type(tower.conv1.weight.dtype), video_frame)) @ tower.proj
        )
        return (hidden[:, 0], hidden) if return_hidden else hidden[:, 0]


class PatchEmbed(nn.Module):
    """timm's patch embedding."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.patch_size = (patch, patch)
        self.proj = nn.Conv2d(3, width, patch, patch)

    def dynamic_feat_size(self, size: tuple[int, int]) -> tuple[int, int]:
        return size[0] // self.patch_size[0], size[1] // self.patch_size[1]

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class TimmVit(nn.Module):
    """A timm ViT with or without class token and registers, and each kind of pooling."""

    def __init__(
        self, *, pool: str = "token", cls: bool = True, registers: int = 0, fc_norm: bool = False
    ) -> None:
        super().__init__()
        self.num_features = 16
        self.global_pool = pool
        self.num_prefix_tokens = int(cls) + registers
        self.patch_embed = PatchEmbed(16, 4)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 16)) if cls else None
        self.reg_token = nn.Parameter(torch.zeros(1, registers, 16)) if registers else None
        self.blocks = nn.Sequential(Block(16, batch_first=True), Block(16, batch_first=True))
        self.norm = nn.Identity() if fc_norm else nn.LayerNorm(16)
        self.fc_norm = nn.LayerNorm(16) if fc_norm else nn.Identity()
        self.head_drop = nn.Dropout(0.0)
        self.head = nn.Linear(16, 5)
        shake(self)

    def forward_features(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x)
        prefix = [
            t.expand(len(x), -1, -1) for t in (self.cls_token, self.reg_token) if t is not None
        ]
        return self.norm(self.blocks(torch.cat([*prefix, x], dim=1)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        if self.global_pool == "token":
            x = x[:, 0]
        elif self.global_pool == "avg":
            x = x[:, self.num_prefix_tokens :].mean(1)
        x = self.head_drop(self.fc_norm(x))
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


class Words(nn.Module):
    """A text tower: the mean of word embeddings."""

    def __init__(self, dim: int = 12) -> None:
        super().__init__()
        self.words = nn.Embedding(50, dim)

    def forward(self, ids: Tensor) -> Tensor:
        return self.words(ids).mean(1)


class WordFeatures(Words):
    """A text tower that returns words and their mask; ids below 10 are padding.

    It cuts off the tokens behind the last word of its batch, as towers that pad to the longest
    text do.
    """

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        mask = ids >= 10
        length = int(mask.any(0).nonzero().max()) + 1
        return self.words(ids[:, :length]), mask[:, :length]


def token_ids(count: int = 3) -> Tensor:
    """Draw the token ids (count, 8) of texts."""
    return torch.randint(3, 50, (count, 8))

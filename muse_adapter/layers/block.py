"""The residual layer around a mixer."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from muse_adapter.layers.mixers import Mixer
from muse_adapter.layers.sequence import Readout
from muse_adapter.ops.autocast import without_autocast


class ResidualLayer(nn.Module):
    """y = x + FC(dropout(mixer(LN(x)))) (MUSE, section 3).

    Args:
        dim: width D.
        mixer: maps (B, L, D) to (B, L, D).
        dropout: rate in front of the FC.
    """

    def __init__(self, dim: int, mixer: Mixer, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.mixer = mixer
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(dim, dim)

    def forward(
        self, x: Tensor, lengths: Tensor | None = None, readout: Readout | None = None
    ) -> Tensor:
        """Apply the layer.

        Args:
            x: (B, L, D).
            lengths: (B,) valid tokens, standing in front; None: all.
            readout: the positions wanted; what serves only others is left out. None: all.

        Returns:
            (B, L, D), or (B, T, D) at the wanted positions.
        """
        mixed = self.mixer.forward_hidden(self.norm(x), lengths, readout)
        kept = x if readout is None else readout.select(x)
        # Where a graph is made, the number of videos may be unknown, and must not be asked for.
        compiling = torch.compiler.is_compiling()
        tokens = mixed.shape[1] if compiling else mixed.shape[:-1].numel()
        if torch.is_grad_enabled() or self.training or tokens <= mixed.shape[-1]:
            return kept + self.fc(self.dropout(self.mixer.out_proj(mixed)))
        return kept + F.linear(mixed, *self._merged_output())

    @torch.no_grad()
    def zero_init_output(self) -> None:
        """Set the FC to zero: the layer passes its input on unchanged until it has learnt."""
        nn.init.zeros_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)

    def _merged_output(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of FC after `out_proj`, as one map.

        Made anew at each call, so that it never goes stale: worth it as soon as there are more
        tokens than channels.
        """
        out = self.mixer.out_proj
        with without_autocast(self.fc.weight.device.type):
            weight = self.fc.weight @ out.weight
            bias = self.fc.bias if out.bias is None else self.fc.bias + self.fc.weight @ out.bias
        return weight, bias

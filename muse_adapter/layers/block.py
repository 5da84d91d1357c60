"""The residual layers around a mixer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from muse_adapter.layers.linear import Linear
from muse_adapter.layers.mixers import BiMamba, Mixer
from muse_adapter.layers.sequence import Readout
from muse_adapter.ops import linear
from muse_adapter.ops.autocast import without_autocast
from muse_adapter.ops.onnx_export import exporting_to_onnx


class ResidualLayer(nn.Module):
    """Residual layer: y = x + FC(dropout(mixer(LN(x)))) (MUSE, section 3).

    Args:
        dim: Width D.
        mixer: Maps (B, L, D) to (B, L, D).
        dropout: Rate of the dropout before the FC.
    """

    def __init__(self, dim: int, mixer: Mixer, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.mixer = mixer
        self.dropout = nn.Dropout(dropout)
        self.fc = Linear(dim, dim)

    def forward(
        self, x: Tensor, lengths: Tensor | None = None, readout: Readout | None = None
    ) -> Tensor:
        """Apply the layer.

        Args:
            x: (B, L, D).
            lengths: (B,) number of valid tokens, which come first; None: all are valid.
            readout: Positions to compute; work that only other positions need is skipped. None:
                all positions.

        Returns:
            (B, L, D), or (B, T, D) with a `readout`.
        """
        return self._output(x, self.mixer.forward_hidden(self.norm(x), lengths, readout), readout)

    def forward_chunk(
        self,
        x: Tensor,
        state: tuple[Tensor, Tensor],
        lengths: Tensor | None = None,
        readout: Readout | None = None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Apply the layer to the next tokens of each video; its mixer is Mamba in one direction.

        Args:
            x: (B, L, D).
            state: What the mixer remembers of the tokens before.
            lengths: As in `forward`.
            readout: As in `forward`.

        Returns:
            The output, as that of `forward`, and the state behind the tokens.
        """
        assert isinstance(self.mixer, BiMamba)
        hidden, state = self.mixer.forward_hidden_chunk(self.norm(x), state, lengths, readout)
        return self._output(x, hidden, readout), state

    def _output(self, x: Tensor, hidden: Tensor, readout: Readout | None) -> Tensor:
        residual = x if readout is None else readout.select(x)
        # While a graph is traced, the batch size may be symbolic and must not be branched on.
        compiling = torch.compiler.is_compiling()
        tokens = hidden.shape[1] if compiling else hidden.shape[:-1].numel()
        # For ONNX always: runtimes merge weights once, as they load them.
        if (
            torch.is_grad_enabled()
            or self.training
            or (not exporting_to_onnx() and tokens <= hidden.shape[-1])
        ):
            return residual + self.fc(self.dropout(self.mixer.out_proj(hidden)))
        return residual + linear(hidden, *self._merged_output())

    @torch.no_grad()
    def zero_init_output(self) -> None:
        """Set the FC to zero, so that the layer starts as the identity."""
        nn.init.zeros_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)

    def _merged_output(self) -> tuple[Tensor, Tensor]:
        """Merge `out_proj` and the FC into the weight and bias of one linear map.

        Computed at each call, so that it never goes stale; this pays off once there are more tokens
        than channels.
        """
        out = self.mixer.out_proj
        with without_autocast(self.fc.weight.device.type):
            weight = linear(self.fc.weight, out.weight.t())
            bias = self.fc.bias if out.bias is None else self.fc.bias + self.fc.weight @ out.bias
        return weight, bias


class PostNormLayer(nn.Module):
    """Residual layer with the norm behind the mixer: y = x + LN(mixer(x)) (MamFusion's branch).

    Args:
        dim: Width D.
        mixer: Maps (B, L, D) to (B, L, D).
    """

    def __init__(self, dim: int, mixer: Mixer) -> None:
        super().__init__()
        self.mixer = mixer
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Apply the layer.

        Args:
            x: (B, L, D).
            lengths: (B,) number of valid tokens, which come first; None: all are valid.

        Returns:
            (B, L, D).
        """
        return x + self.norm(self.mixer(x, lengths))

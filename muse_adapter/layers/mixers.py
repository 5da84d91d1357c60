"""Token mixers: bidirectional Mamba, and what the paper compares it with.

The others are Mamba in one direction, attention, and the convolutions without the scan. A mixer
has `forward_hidden`, everything before its last linear map, and that map, `out_proj`, so that a
layer can merge it with its own.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from muse_adapter.layers.linear import Linear
from muse_adapter.layers.sequence import Readout
from muse_adapter.ops import (
    MambaDirection,
    MixerState,
    causal_conv1d_silu,
    linear,
    mamba_mixer,
    mamba_mixer_chunk,
)
from muse_adapter.ops.mixer_inputs import zero_behind


class Mixer(nn.Module):
    """What a layer knows of its mixer."""

    out_proj: nn.Linear

    def forward_hidden(
        self, tokens: Tensor, lengths: Tensor | None = None, readout: Readout | None = None
    ) -> Tensor:
        """Everything before `out_proj`; arguments as in `forward`."""
        raise NotImplementedError

    def forward(
        self, tokens: Tensor, lengths: Tensor | None = None, readout: Readout | None = None
    ) -> Tensor:
        """Mix the tokens of each video.

        Args:
            tokens: (B, L, D).
            lengths: (B,) valid tokens, standing in front; None: all. The rest influences none of
                them.
            readout: the positions wanted; None: all.

        Returns:
            (B, L, D), or (B, T, D) at the wanted positions.
        """
        return self.out_proj(self.forward_hidden(tokens, lengths, readout))


def _bias(conv: nn.Conv1d) -> Tensor:
    assert conv.bias is not None
    return conv.bias


class GatedConvolution(Mixer):
    """The bidirectional mixer without the scan: both convolutions, summed, gated by SiLU(z).

    Args:
        dim: width D.
        d_conv: taps of the convolutions.
        expand: inner width E as a multiple of D.
        bidirectional: also convolve the reversed sequence.
    """

    def __init__(
        self, dim: int, *, d_conv: int = 4, expand: int = 1, bidirectional: bool = True
    ) -> None:
        super().__init__()
        inner = expand * dim
        self.bidirectional = bidirectional
        self.in_proj = nn.Linear(dim, 2 * inner, bias=False)
        # Names and shapes are those of `Conv1d`; the layout is the linear layers' (B, L, E).
        self.conv1d = nn.Conv1d(inner, inner, d_conv, groups=inner)
        if bidirectional:
            self.conv1d_b = nn.Conv1d(inner, inner, d_conv, groups=inner)
        self.out_proj = Linear(inner, dim, bias=False)

    def forward_hidden(
        self, tokens: Tensor, lengths: Tensor | None = None, readout: Readout | None = None
    ) -> Tensor:
        """Convolve and gate; see `Mixer.forward`."""
        weight_x, weight_z = self.in_proj.weight.chunk(2)
        x = linear(tokens, weight_x)
        if lengths is not None:
            x = zero_behind(x, lengths)
        z = linear(tokens if readout is None else readout.select(tokens), weight_z)
        convs = [self.conv1d, self.conv1d_b] if self.bidirectional else [self.conv1d]
        y, *rest = causal_conv1d_silu(x, [(conv.weight, _bias(conv)) for conv in convs])
        if rest:
            y = y + rest[0]
        return (y if readout is None else readout.select(y)) * F.silu(z)


def undecayed_parameters(model: nn.Module) -> set[str]:
    """Name the parameters of all mixers in a model that must not decay, apart from biases."""
    return {
        f"{prefix}.{name}"
        for prefix, module in model.named_modules()
        if isinstance(module, BiMamba)
        for name in module.no_weight_decay()
    }


class BiMamba(GatedConvolution):
    """Mamba in both directions, input and output maps shared (Vim's "v2"; MUSE, section 3).

    out_proj(scan(x) + reversed scan of reversed x), each times SiLU(z). Parameter names are those
    of Vim's v2 Mamba; `_b` is the direction that reads the sequence backwards.

    Args:
        dim: width D.
        d_state: state size S.
        d_conv: taps of the short convolutions.
        expand: inner width E as a multiple of D.
        bidirectional: False: the forward direction only, which is Mamba itself.
        divide_out: halve the sum of the two directions.
    """

    def __init__(
        self,
        dim: int,
        *,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 1,
        bidirectional: bool = True,
        divide_out: bool = False,
    ) -> None:
        super().__init__(dim, d_conv=d_conv, expand=expand, bidirectional=bidirectional)
        inner = expand * dim
        self.dt_rank = math.ceil(dim / 16)
        self.d_state = d_state
        self.divide_out = divide_out
        self.x_proj = nn.Linear(inner, self.dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, inner)
        self.A_log = nn.Parameter(torch.empty(inner, d_state))
        self.D = nn.Parameter(torch.empty(inner))
        if bidirectional:
            self.x_proj_b = nn.Linear(inner, self.dt_rank + 2 * d_state, bias=False)
            self.dt_proj_b = nn.Linear(self.dt_rank, inner)
            self.A_b_log = nn.Parameter(torch.empty(inner, d_state))
            self.D_b = nn.Parameter(torch.empty(inner))
        self.reset_scan()

    @torch.no_grad()
    def reset_scan(self) -> None:
        """Give both directions Mamba's start.

        A = -(1, ..., S), D = 1, dt log-uniform in [0.001, 0.1]. Vim leaves the backward direction's
        dt at the default of a linear layer.
        """
        directions = [(self.A_log, self.D, self.dt_proj)]
        if self.bidirectional:
            directions.append((self.A_b_log, self.D_b, self.dt_proj_b))
        for a_log, skip, dt_proj in directions:
            a_log.copy_(
                torch.arange(1, self.d_state + 1, dtype=torch.float32).log().expand_as(a_log)
            )
            skip.fill_(1)
            nn.init.uniform_(dt_proj.weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
            dt = torch.empty_like(skip).uniform_(math.log(0.001), math.log(0.1)).exp()
            dt_proj.bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # inverse of softplus

    def no_weight_decay(self) -> set[str]:
        """Name the parameters that must not decay: they set time scales, not magnitudes."""
        # Exactly those that stand outside the linear maps and convolutions: A and D, per direction.
        return {name for name, _ in self.named_parameters(recurse=False)}

    def forward_hidden(
        self, tokens: Tensor, lengths: Tensor | None = None, readout: Readout | None = None
    ) -> Tensor:
        """Scan both directions and gate; see `Mixer.forward`."""
        reverses = (False, True) if self.bidirectional else (False,)
        positions, end = (None, None) if readout is None else readout
        y = mamba_mixer(
            tokens,
            self.in_proj.weight,
            [self._weights(reverse=reverse) for reverse in reverses],
            lengths=lengths,
            positions=positions,
            end=end,
        )
        return y / 2 if self.divide_out and self.bidirectional else y

    def forward_hidden_chunk(
        self,
        tokens: Tensor,
        state: tuple[Tensor, Tensor],
        lengths: Tensor | None = None,
        readout: Readout | None = None,
    ) -> tuple[Tensor, MixerState]:
        """Continue `forward_hidden` with the next tokens of each video, in one direction.

        Args:
            tokens: (B, L, D).
            state: What the mixer remembers of the tokens before them, the two tensors of
                `muse_adapter.ops.MixerState`.
            lengths: (B,) valid tokens, standing in front; None: all. The rest does not move the
                state.
            readout: The positions wanted; None: all.

        Returns:
            (B, L, E), or (B, T, E) at the wanted positions, and the state behind the tokens.
        """
        return mamba_mixer_chunk(
            tokens,
            self.in_proj.weight,
            self._weights(reverse=False),
            MixerState(*state),
            lengths=lengths,
            positions=None if readout is None else readout.positions,
        )

    def _weights(self, *, reverse: bool) -> MambaDirection:
        conv, x_proj, dt_proj, a_log, skip = (
            (self.conv1d_b, self.x_proj_b, self.dt_proj_b, self.A_b_log, self.D_b)
            if reverse
            else (self.conv1d, self.x_proj, self.dt_proj, self.A_log, self.D)
        )
        A = -torch.exp(a_log.to(torch.promote_types(a_log.dtype, torch.float32)))
        return MambaDirection(
            *(conv.weight, _bias(conv), x_proj.weight, dt_proj.weight, dt_proj.bias, A, skip)
        )


class Attention(Mixer):
    """Multi-head self-attention over the valid tokens.

    Args:
        dim: Width D.
        head_dim: Channels of a head; a narrower `dim` is one head.
    """

    def __init__(self, dim: int, *, head_dim: int) -> None:
        super().__init__()
        self.heads = max(dim // head_dim, 1)
        self.in_proj = nn.Linear(dim, 3 * dim)
        self.out_proj = Linear(dim, dim)

    def forward_hidden(
        self, tokens: Tensor, lengths: Tensor | None = None, readout: Readout | None = None
    ) -> Tensor:
        """Attend; see `Mixer.forward`."""
        dim = tokens.shape[-1]
        weights, biases = (
            self.in_proj.weight.split((dim, 2 * dim)),
            self.in_proj.bias.split((dim, 2 * dim)),
        )
        query = linear(tokens if readout is None else readout.select(tokens), weights[0], biases[0])
        key, value = linear(tokens, weights[1], biases[1]).chunk(2, dim=-1)
        query, key, value = (
            t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (query, key, value)
        )  # (B, heads, tokens, D/heads)
        keys = None
        if lengths is not None:
            # A video without a valid token attends to its first (overwritten) one: softmax of
            # nothing is NaN.
            positions = torch.arange(tokens.shape[1], device=tokens.device)
            keys = (positions < lengths.clamp(min=1).unsqueeze(1))[:, None, None]
        y = F.scaled_dot_product_attention(query, key, value, attn_mask=keys)
        return y.transpose(1, 2).flatten(2)

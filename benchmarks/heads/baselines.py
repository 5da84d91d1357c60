"""What one would use instead of the head, on the same tokens, and the head as it was published."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from muse_adapter import MultiScaleMamba
from muse_adapter.config import ATTENTION_HEAD_DIM
from muse_adapter.layers.block import ResidualLayer
from muse_adapter.layers.mixers import Attention, BiMamba
from muse_adapter.layers.pool import mean_pool
from muse_adapter.layers.sequence import Readout
from muse_adapter.ops import selective_scan, short_convolution

POSITIONS = 128  # frames that the temporal transformer has positions for


class MeanPooling(nn.Module):
    """CLIP4Clip's meanP: the mean of the frames' class tokens."""

    def forward(self, tokens: Tensor, *, grid: tuple[int, int] | None = None) -> Tensor:
        """Embed tokens (B, T, N, D): (B, D) of unit norm."""
        return mean_pool(tokens[:, :, 0], None)


class TemporalTransformer(nn.Module):
    """CLIP4Clip's seqTransf: a transformer over the frames' class tokens, added to them.

    Args:
        dim: Width D; heads of 64 channels (one head below 64).
        depth: Layers.
    """

    def __init__(self, dim: int, *, depth: int = 4) -> None:
        super().__init__()
        self.positions = nn.Parameter(0.02 * torch.randn(POSITIONS, dim))
        self.layers = nn.ModuleList(TransformerLayer(dim) for _ in range(depth))

    def forward(self, tokens: Tensor, *, grid: tuple[int, int] | None = None) -> Tensor:
        """Embed tokens (B, T, N, D): (B, D) of unit norm."""
        frames = tokens[:, :, 0]
        x = frames + self.positions[: frames.shape[1]]
        for layer in self.layers:
            x = layer(x)
        return mean_pool(frames + x, None)


class TransformerLayer(nn.Module):
    """Pre-norm self-attention and a perceptron four times as wide."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(2))
        self.attention = Attention(dim, head_dim=ATTENTION_HEAD_DIM)
        self.perceptron = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer, (B, T, D) -> (B, T, D)."""
        x = x + self.attention(self.norms[0](x))
        return x + self.perceptron(self.norms[1](x))


class WrittenOutAttention(Attention):
    """softmax(Q K^T) V as the formula reads, with all weights in memory."""

    def forward_hidden(
        self, tokens: Tensor, lengths: Tensor | None = None, readout: Readout | None = None
    ) -> Tensor:
        """Attend to all tokens; see `Mixer.forward`.

        Raises:
            ValueError: Lengths are given.
        """
        _without_lengths(lengths)
        wanted = tokens if readout is None else readout.select(tokens)
        dim = tokens.shape[-1]
        weights, biases = self.in_proj.weight.split((dim, 2 * dim)), self.in_proj.bias
        query = F.linear(wanted, weights[0], biases[:dim])
        key, value = F.linear(tokens, weights[1], biases[dim:]).chunk(2, dim=-1)
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (query, key, value)
        )  # (B, heads, tokens, D/heads)
        scores = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
        return (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)


class Kernels(NamedTuple):
    """The two functions that the published mixer stands on.

    Attributes:
        convolve: x (B, E, L), weight (E, taps), bias (E,) -> SiLU of the causal convolution.
        scan: u, delta (B, E, L), A (E, S), B, C (B, S, L), D, z, delta_bias -> (B, E, L), gated.
    """

    convolve: Callable[[Tensor, Tensor, Tensor], Tensor]
    scan: Callable[..., Tensor]


def mamba_ssm_kernels() -> Kernels:
    """Load the CUDA kernels of causal-conv1d and mamba-ssm."""
    from causal_conv1d import causal_conv1d_fn
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    def convolve(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y: Tensor = causal_conv1d_fn(
            x=x.contiguous(), weight=weight.to(x.dtype), bias=bias.to(x.dtype), activation="silu"
        )
        return y

    def scan(*tensors: Tensor) -> Tensor:
        u, delta, A, B, C, D, z, delta_bias = (tensor.contiguous() for tensor in tensors)
        y: Tensor = selective_scan_fn(
            u=u,
            delta=delta,
            A=A,
            B=B,
            C=C,
            D=D,
            z=z,
            delta_bias=delta_bias,
            delta_softplus=True,
        )
        return y

    return Kernels(convolve, scan)


def own_kernels() -> Kernels:
    """Return the same functions by this package's `torch` backend, on any device."""

    def convolve(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y = short_convolution(x.transpose(1, 2), weight.unsqueeze(1), bias)
        return F.silu(y).transpose(1, 2)

    def scan(*tensors: Tensor) -> Tensor:
        u, delta, A, B, C, D, z, delta_bias = tensors
        y = selective_scan(
            u, delta, A, B, C, D, z, delta_bias, delta_softplus=True, backend="torch"
        )
        assert isinstance(y, Tensor)
        return y

    return Kernels(convolve, scan)


class PublishedMixer(BiMamba):
    """`BiMamba` the published way: two calls, the second on flipped tokens, nothing left out.

    Args:
        dim: Width D.
        kernels: What convolves and scans.
    """

    def __init__(self, dim: int, kernels: Kernels) -> None:
        super().__init__(dim)
        self.kernels = kernels

    def forward_hidden(
        self, tokens: Tensor, lengths: Tensor | None = None, readout: Readout | None = None
    ) -> Tensor:
        """Scan both directions and gate, at all positions; see `Mixer.forward`.

        Raises:
            ValueError: Lengths are given.
        """
        _without_lengths(lengths)
        xz = self.in_proj(tokens).transpose(1, 2)  # (B, 2 E, L)
        y = self._one_way(xz, "") + self._one_way(xz.flip(-1), "_b").flip(-1)
        return y.transpose(1, 2)

    def _one_way(self, xz: Tensor, suffix: str) -> Tensor:
        """Convolution, projections and scan of one direction, (B, E, L)."""
        x, z = xz.chunk(2, dim=1)
        conv, x_proj, dt_proj, D = (
            getattr(self, name + suffix) for name in ("conv1d", "x_proj", "dt_proj", "D")
        )
        x = self.kernels.convolve(x, conv.weight.squeeze(1), conv.bias)
        sizes = (self.dt_rank, self.d_state, self.d_state)
        low_rank, B, C = x_proj(x.transpose(1, 2)).split(sizes, dim=-1)
        delta = F.linear(low_rank, dt_proj.weight)
        delta, B, C = (part.transpose(1, 2) for part in (delta, B, C))
        A = -torch.exp(self.A_b_log if suffix else self.A_log)
        return self.kernels.scan(x, delta, A, B, C, D, z, dt_proj.bias)


class PublishedLayer(ResidualLayer):
    """The residual layer over all tokens, of which the wanted ones are taken afterwards."""

    def forward(
        self, x: Tensor, lengths: Tensor | None = None, readout: Readout | None = None
    ) -> Tensor:
        """Apply the layer; see `ResidualLayer.forward`."""
        y = x + self.fc(self.dropout(self.mixer(self.norm(x), lengths)))
        return y if readout is None else readout.select(y)


def with_written_out_attention(head: MultiScaleMamba) -> MultiScaleMamba:
    """Exchange the attention of a head, in place; the weights stay."""
    for layer in head.layers:
        assert isinstance(layer, ResidualLayer)
        mixer = WrittenOutAttention(head.config.dim, head_dim=ATTENTION_HEAD_DIM)
        mixer.load_state_dict(layer.mixer.state_dict())
        layer.mixer = mixer
    return head


def published_way(head: MultiScaleMamba, kernels: Kernels) -> MultiScaleMamba:
    """Exchange the layers of a head, in place; the weights stay."""
    for index, layer in enumerate(head.layers):
        assert isinstance(layer, ResidualLayer)
        mixer = PublishedMixer(head.config.dim, kernels)
        published = PublishedLayer(head.config.dim, mixer, dropout=layer.dropout.p)
        published.load_state_dict(layer.state_dict())
        head.layers[index] = published
    return head


def _without_lengths(lengths: Tensor | None) -> None:
    if lengths is not None:
        raise ValueError(
            "this mixer is for benchmarks: it knows no frame mask, expected lengths=None"
        )

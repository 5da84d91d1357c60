"""What a config of the MUSE head asks for: the mixer of a layer, and at least so many weights."""

from __future__ import annotations

from muse_adapter.config import ATTENTION_HEAD_DIM, MuseConfig
from muse_adapter.layers.mixers import Attention, BiMamba, GatedConvolution, Mixer


def make_mixer(config: MuseConfig) -> Mixer:
    """Make the mixer of one layer."""
    if config.mixer == "attention":
        return Attention(config.dim, head_dim=ATTENTION_HEAD_DIM)
    if config.mixer == "conv":
        return GatedConvolution(config.dim, d_conv=config.d_conv, expand=config.expand)
    return BiMamba(
        config.dim,
        d_state=config.d_state,
        d_conv=config.d_conv,
        expand=config.expand,
        bidirectional=config.mixer == "bimamba",
    )


def fewest_weights(config: MuseConfig) -> int:
    """Count the weights that a head has in any case: those of the layers' largest parts."""
    dim, inner = config.dim, config.expand * config.dim
    in_layer = dim * dim
    if config.mixer != "attention":
        in_layer += inner * (2 * dim + config.d_conv)
    if config.mixer in ("bimamba", "mamba"):
        in_layer += inner * config.d_state
    return config.depth * in_layer + dim * (config.in_dim or 0) * (config.in_dim != dim)

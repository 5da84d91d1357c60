"""The selective scan and what stands around it: one contract (`Backend`), several backends."""

from muse_adapter.ops.byte_vectors import byte_products
from muse_adapter.ops.choice import BackendStatus, backend_for, backends, use_backend
from muse_adapter.ops.convolution import causal_conv1d_silu, conv3x3
from muse_adapter.ops.free_threads import FreeThreads
from muse_adapter.ops.inputs import Direction
from muse_adapter.ops.linear_map import linear
from muse_adapter.ops.mixer import mamba_mixer, mamba_mixer_chunk
from muse_adapter.ops.mixer_inputs import MambaDirection, MixerState
from muse_adapter.ops.scan import bidirectional_scan, selective_scan
from muse_adapter.ops.short_convolution import short_convolution
from muse_adapter.ops.text_gate import text_gated_scores
from muse_adapter.ops.top_vectors import top_products

__all__ = [
    "BackendStatus",
    "Direction",
    "FreeThreads",
    "MambaDirection",
    "MixerState",
    "backend_for",
    "backends",
    "bidirectional_scan",
    "byte_products",
    "causal_conv1d_silu",
    "conv3x3",
    "linear",
    "mamba_mixer",
    "mamba_mixer_chunk",
    "selective_scan",
    "short_convolution",
    "text_gated_scores",
    "top_products",
    "use_backend",
]

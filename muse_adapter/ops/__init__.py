"""The selective scan: one contract (`scan`), several backends (one file each)."""

from muse_adapter.ops.convolution import causal_conv1d_silu, conv3x3, short_convolution
from muse_adapter.ops.dispatch import BackendStatus, backend_for, backends, load, use_backend
from muse_adapter.ops.mamba import MambaDirection, mamba_inference
from muse_adapter.ops.scan import Direction, bidirectional_scan, selective_scan

load()  # here, and not when first asked for, which may be while torch.compile traces

__all__ = [
    "BackendStatus",
    "Direction",
    "MambaDirection",
    "backend_for",
    "backends",
    "bidirectional_scan",
    "causal_conv1d_silu",
    "conv3x3",
    "mamba_inference",
    "selective_scan",
    "short_convolution",
    "use_backend",
]

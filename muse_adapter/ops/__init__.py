"""The selective scan: one contract (`scan`), several backends (one file each)."""

from muse_adapter.ops.convolution import short_convolution, silu_convolutions
from muse_adapter.ops.dispatch import BackendStatus, backend_for, backends, load, use_backend
from muse_adapter.ops.mamba import MambaDirection, mamba_inference
from muse_adapter.ops.map_convolution import map_convolution
from muse_adapter.ops.scan import Direction, bidirectional_scan, selective_scan

load()  # here, and not when first asked for, which may be while torch.compile traces

__all__ = [
    "BackendStatus",
    "Direction",
    "MambaDirection",
    "backend_for",
    "backends",
    "bidirectional_scan",
    "mamba_inference",
    "map_convolution",
    "selective_scan",
    "short_convolution",
    "silu_convolutions",
    "use_backend",
]

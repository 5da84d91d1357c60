"""Functions that a patched CLIP4Clip or X-CLIP calls.

`muse-adapter patch` inserts one-line calls of them: `add_arguments` and `attach`, `fused_frames`
in every forward pass, and `regroup` before the optimizer is built.
"""

from muse_adapter.clip4clip.head import HostHead
from muse_adapter.clip4clip.host import add_arguments, attach, fused_frames, regroup

__all__ = ["HostHead", "add_arguments", "attach", "fused_frames", "regroup"]

"""What a patched CLIP4Clip or X-CLIP calls: arguments, the head, fused frames, optimizer groups.

The patch (`muse-adapter patch`) inserts one-line calls of the four public functions; what they do
is here: `add_arguments`, then `attach`, `fused_frames` in every forward, and `regroup`.
"""

from muse_adapter.clip4clip.head import HostHead
from muse_adapter.clip4clip.host import add_arguments, attach, fused_frames, regroup

__all__ = ["HostHead", "add_arguments", "attach", "fused_frames", "regroup"]

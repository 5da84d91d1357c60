"""How the C library treats memory that has been freed."""

from __future__ import annotations

import torch

_LARGEST = 31 << 20  # bytes; glibc goes no further than 32 MiB


def keep_freed() -> None:
    """Have glibc keep up to 64 MB of freed memory, as after any large tensor.

    It gives memory back to the system when more is free than twice the largest block that was ever
    given back by itself, and then the same tensors of the next call come anew, each page with a
    fault: a tenth of the head's time. So one such block is freed. It is never written to, and costs
    nothing; elsewhere than under glibc nothing changes.
    """
    torch.empty(_LARGEST, dtype=torch.uint8)

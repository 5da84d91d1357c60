"""How the C library treats memory that has been freed."""

from __future__ import annotations

import numpy as np

_LARGEST = 31 << 20  # bytes; glibc learns from no block beyond 32 MiB


def keep_freed() -> None:
    """Have glibc keep what is freed, as it does once a program has freed a large tensor.

    Until then it returns every block of more than its threshold (128 KiB at first, later the
    largest block that was returned) to the system at once, and what lies free at the end of the
    heap. The same tensors of the next call come anew, each page with a fault: up to a tenth of the
    head's time. So one large block is freed here; it is never written to. From then on smaller ones
    come from the heap, and what is free below one in use stays with the process. Elsewhere than
    under glibc nothing changes.
    """
    np.empty(_LARGEST, np.uint8)  # torch might allocate elsewhere, or only pretend to

"""What every isolated process would load for itself, loaded once by the server that forks them."""

import torch.fx.experimental.symbolic_shapes  # noqa: F401  torch wants it at the first backward pass

import benchmarks.heads.workload  # noqa: F401
from muse_adapter.ops import backends

# Saying what runs here imports the libraries of what does.
if backends("cpu")["numba"].available:
    import numba

    numba.njit(lambda: None)()  # numba sets itself up at the first call

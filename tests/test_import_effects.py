"""Importing the package changes nothing in the process that imports it."""

from __future__ import annotations

import _ctypes
import sys

import pytest

if sys.platform != "linux":
    pytest.skip("reads /proc", allow_module_level=True)

WATCH = """
import sys
import torch, einops
from tests.support.process_state import differences, process_state

process_state()  # loads what it needs itself
before = process_state()
"""


# Each step, and what it may change.
STEPS = {
    "import muse_adapter": set(),
    "from muse_adapter import ops": set(),
    # Weights are drawn at random.
    "muse_adapter.MultiScaleMamba(dim=64)": {"random numbers"},
    # Numba is loaded; nothing of ours is there before the first call.
    "import muse_adapter.ops.numba_cpu.kernel": {"libraries", "exit hooks"},
}
CHECK = """
found = differences(before, process_state())
assert set(found) <= {may_change}, found
before = process_state()
"""


EFFECTS = {
    "fork hooks": "import os; os.register_at_fork(before=print)",
    "threads": "from threading import *; Thread(target=Event().wait, daemon=True).start()",
    "torch threads": "torch.set_num_threads(torch.get_num_threads() + 1)",
    "flushed denormals": "torch.set_flush_denormal(True)",
    "torch defaults": "torch.set_default_dtype(torch.float64)",
    "torch deterministic": "torch.use_deterministic_algorithms(True)",
    "torch grad": "torch.set_grad_enabled(False)",
    "torch backends": "torch.backends.cudnn.benchmark = True",
    "environment": "import os; os.environ['MUSE'] = '1'",
    "signal handlers": "import signal; signal.signal(signal.SIGUSR1, lambda *_: None)",
    "warnings filters": "import warnings; warnings.simplefilter('ignore')",
    "logging": "import logging; logging.basicConfig(force=True)",
    "import system": "sys.meta_path.append(sys.meta_path[-1])",
    "exit hooks": "import atexit; atexit.register(print)",
    "allocator": "torch.empty(31 << 20, dtype=torch.uint8)",
    "libraries": "import ctypes, shutil; ctypes.CDLL(shutil.copy(sys.argv[1], sys.argv[2]))",
}


def test_no_effect_and_every_kind_is_seen(run_python, tmp_path):
    """In one process, which imports for seconds: our steps, then planted effects, all named."""
    lines = [WATCH]
    for step, may_change in STEPS.items():
        lines += [step, CHECK.format(may_change=may_change)]
    for name, effect in EFFECTS.items():
        lines += [effect, f"assert {name!r} in differences(before, process_state()), {name!r}"]
    done = run_python("\n".join(lines), _ctypes.__file__, str(tmp_path))
    assert done.returncode == 0, done.stderr

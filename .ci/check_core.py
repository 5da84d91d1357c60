"""Run where only the wheel and what it requires are installed: the package works without extras."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import torch

before = set(sys.modules)
import muse_adapter  # noqa: E402 - what it loads beyond torch is the question
from muse_adapter import ops  # noqa: E402

OPTIONAL = (
    "numpy",
    "numba",
    "safetensors",
    "huggingface_hub",
    "av",
    "h5py",
    "matplotlib",
    "transformers",
)

installed = [name for name in OPTIONAL if importlib.util.find_spec(name)]
assert not installed, f"this environment must hold no extra, found {installed}"
package = Path(muse_adapter.__file__).parent
assert "site-packages" in package.parts, f"the wheel is to be checked, not {package}"
assert (package / "py.typed").is_file(), "py.typed is missing from the wheel"

head = muse_adapter.MultiScaleMamba(dim=16, depth=1)
tokens = torch.randn(2, 3, 50, 16, requires_grad=True)
frame_mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
video = head(tokens, frame_mask)
video.square().sum().backward()
assert video.shape == (2, 16), video.shape
assert tokens.grad is not None and torch.isfinite(tokens.grad).all()

numba = ops.backends()["numba"]
assert not numba.available and "muse-adapter[cpu]" in (numba.reason or ""), numba

try:
    head.save_pretrained("head")
except ImportError as error:
    assert "muse-adapter[hub]" in str(error), error
else:
    raise AssertionError("saving needs the hub extra and must say so")
assert not Path("head").exists(), "nothing half-written may remain"

names = sorted({name.partition(".")[0] for name in set(sys.modules) - before})
print(f"core only: muse_adapter {muse_adapter.__version__}, torch {torch.__version__}")
print(f"modules loaded beyond torch's: {', '.join(names)}")

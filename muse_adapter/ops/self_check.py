"""Check a backend on a device before it is taken there without being asked for.

Kernels are compiled for each kind of GPU, and no test has run on all of them. So on first use a
small masked bidirectional scan and its convolutions, with all gradients, in float32 and bfloat16,
are compared with the plain operations of torch on the same device. What has passed is remembered in
this process and, by GPU, versions and backend, in the user's cache folder; what has failed only in
this process, since the cause may be gone in the next.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import threading
import warnings
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import torch
from torch import Tensor

from muse_adapter.ops.backend import Backend
from muse_adapter.ops.inputs import Direction
from muse_adapter.version import VERSION

# Two blocks of channels, one of them partial; two segments of time and several chunks.
BATCH, LENGTH, CHANNELS, STATES, TAPS = 3, 150, 40, 16, 4
# max|got - expected| / max|expected|: in float32 the exponentials of a GPU are good to 2 units in
# the last place, and a state remembers hundreds of them; in bfloat16 results are rounded at 2**-8.
BOUNDS = {torch.float32: 1e-4, torch.bfloat16: 3 * 2.0**-7}

_lock = threading.Lock()
_results: dict[tuple[str, str], bool] = {}  # by backend and GPU


def passed(candidate: Backend, trusted: Backend, device: torch.device) -> bool:
    """Say whether a backend agrees with another one on a device; warn once where it does not.

    Args:
        candidate: The backend to check.
        trusted: The backend that is right.
        device: A GPU.
    """
    known = candidate.name, _name(device)
    if known in _results:  # asked before every scan, so without looking up versions
        return _results[known]
    with _lock:
        if known not in _results:
            key = _key(candidate, device)
            if _read(key):
                _results[known] = True
            elif torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
                # Nothing may wait for the GPU now. The next call outside of a capture checks.
                warnings.warn(
                    f"the backend {candidate.name!r} has not been checked on {_name(device)} yet, "
                    f"and cannot be while a CUDA graph is captured: {trusted.name!r} is captured. "
                    "Run the model once before.",
                    RuntimeWarning,
                    stacklevel=2,
                )
                return False
            else:
                _results[known] = _check(candidate, trusted, device, key)
    return _results[known]


def _check(candidate: Backend, trusted: Backend, device: torch.device, key: str) -> bool:
    found = _in_thread(lambda: difference(candidate, trusted, device))
    if found is None:
        _write(key)
        return True
    warnings.warn(
        f"the backend {candidate.name!r} does not agree with {trusted.name!r} on "
        f"{_name(device)}: {found}. {trusted.name!r} runs instead, more slowly; "
        f"MUSE_ADAPTER_BACKEND={candidate.name} takes it all the same.",
        RuntimeWarning,
        stacklevel=2,
    )
    return False


def _in_thread(function: Callable[[], str | None]) -> str | None:
    """Call a function where no mode of the caller is on: autocast, tracing, inference, transforms.

    They belong to threads, and a new one has none of them.
    """
    results: list[str | None] = []

    def run() -> None:
        try:
            results.append(function())
        except BaseException as error:  # a compiler raises whatever it likes, SystemExit too
            results.append(f"{type(error).__name__}: {error}")

    thread = threading.Thread(target=run, name="muse-adapter-self-check")
    thread.start()
    thread.join()
    return results[0]


def difference(candidate: Backend, trusted: Backend, device: torch.device) -> str | None:
    """Compare two backends on a device.

    Returns:
        What differed first, and by how much; None: they agree.
    """
    for dtype, bound in BOUNDS.items():
        got, expected = (_outcome(backend, device, dtype) for backend in (candidate, trusted))
        for name, value in expected.items():
            error = (got[name] - value).abs().max() / value.abs().max().clamp(min=1e-30)
            if not error <= bound:  # NaN, too
                return f"{name} in {dtype} is off by {error.item():.1e}, allowed {bound:.0e}"
    return None


def _outcome(backend: Backend, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """Results and gradients of a scan with its gate and of the convolutions, in float32."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        values = torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")
        return values.to(device, dtype)

    lengths = torch.tensor([LENGTH, LENGTH // 2, 0], device="cpu").to(device)
    behind = torch.arange(LENGTH, device=device) >= lengths.unsqueeze(1)

    def padded(width: int) -> Tensor:
        """Values whose padding is NaN, which must reach nothing."""
        values = normal(BATCH, LENGTH, width, dtype=dtype)
        return values.masked_fill(behind.unsqueeze(-1), float("nan"))

    def direction() -> dict[str, Tensor]:
        return {
            "x": padded(CHANNELS),
            "delta": padded(CHANNELS),
            "A": -normal(CHANNELS, STATES).abs(),
            "B": padded(STATES),
            "C": padded(STATES),
            "D": normal(CHANNELS),
            "delta_bias": normal(CHANNELS),
        }

    inputs = {f"{side} {k}": v for side in ("forward", "reverse") for k, v in direction().items()}
    inputs["z"] = normal(BATCH, LENGTH, CHANNELS, dtype=dtype)
    inputs["tokens"] = normal(BATCH, LENGTH, CHANNELS, dtype=dtype)
    for side in ("forward", "reverse"):
        inputs[f"{side} weight"] = normal(CHANNELS, 1, TAPS)
        inputs[f"{side} bias"] = normal(CHANNELS)
    inputs = {name: value.requires_grad_() for name, value in inputs.items()}

    forward, reverse = (
        Direction(*(inputs[f"{side} {name}"] for name in Direction._fields)).scan_inputs(
            lengths, reverse=side == "reverse"
        )
        for side in ("forward", "reverse")
    )
    y = backend.bidirectional_scan(forward, reverse, inputs["z"], None)
    weights = [
        (inputs[f"{side} weight"], inputs[f"{side} bias"]) for side in ("forward", "reverse")
    ]
    convolved = backend.causal_conv1d_silu(inputs["tokens"], weights, LENGTH)
    results = {"y": y, "forward convolution": convolved[0], "reverse convolution": convolved[1]}
    cotangents = [normal(*value.shape, dtype=value.dtype) for value in results.values()]
    gradients = torch.autograd.grad(list(results.values()), list(inputs.values()), cotangents)
    results |= {
        f"the gradient of {name}": value for name, value in zip(inputs, gradients, strict=True)
    }
    return {name: value.detach().float() for name, value in results.items()}


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device)


def _key(candidate: Backend, device: torch.device) -> str:
    """Describe what a result depends on, as JSON."""
    try:
        version = metadata.version(candidate.name)
    except metadata.PackageNotFoundError:
        version = "unknown"
    return json.dumps(
        {
            "device": _name(device),
            candidate.name: version,
            "torch": torch.__version__,
            "muse_adapter": VERSION,
        },
        sort_keys=True,
    )


def _path(key: str) -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    name = hashlib.sha256(key.encode()).hexdigest()[:16]
    return Path(cache) / "muse-adapter" / "self-check" / f"{name}.json"


def _read(key: str) -> bool:
    """Whether the cache says that the check has passed; no, where it cannot be read."""
    try:
        return bool(json.loads(_path(key).read_text(encoding="utf-8"))["passed"] == json.loads(key))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError):
        return False


def _write(key: str) -> None:
    """Remember that the check has passed; a folder that cannot be written is no error."""
    try:
        path = _path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(dir=path.parent, suffix=".part")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump({"passed": json.loads(key)}, file)
        os.replace(part, path)
    except (OSError, RuntimeError):
        return

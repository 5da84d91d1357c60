"""Write a model as an ONNX file, after a comparison with torch in onnxruntime."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from muse_adapter.encoders import VideoEncoder
from muse_adapter.models import MultiScaleMamba
from muse_adapter.onnx.publishing import publish, unique_name

PACKAGES = "onnx", "onnxscript", "onnxruntime"
# Loggers that warn of what no model of ours has: torchvision's operators, parts not folded.
CHATTY = "torch.onnx._internal.exporter._registration", "onnxscript.optimizer._constant_folding"
# A protobuf, which an ONNX file is, ends at 2 GiB; some are left for the graph.
MAX_BYTES_INSIDE = 2**31 - 2**26
# Batch and frames of the comparison: one video, and several of another length.
SIZES = (1, 5), (3, 4)
# Rounding makes 1e-6 of the largest value; a mistake, such as a lost mask, makes 1e-2.
BOUND = 1e-4


def export(
    model: MultiScaleMamba | VideoEncoder,
    path: str | os.PathLike[str],
    example: Tensor,
    *,
    grid: tuple[int, int] | None = None,
    features: bool = False,
) -> float:
    """Write a head or a video encoder as an ONNX file.

    Its inputs are `tokens` (B, T, N, C), or `frames` (B, T, 3, height, width) of a video encoder,
    and `frame_mask` (B, T), bool, all True for videos without padding. Its output is
    `video_embedding` (B, D). B and T are free. What is written has been run by onnxruntime and
    compared with torch, on random videos of two sizes. Torch takes a minute or more to trace it.

    Args:
        model: The model, in float32. It is exported as in evaluation mode.
        path: The file. Weights of more than 2 GB go into a second one beside it, see `publish`,
            which has to stay with it. An existing model is replaced.
        example: An input of the model; only its sizes behind (B, T) count.
        grid: (H, W), as in the model's call; None: square, or the backbone's.
        features: Give the fused frame features too, as an output `frame_features` (B, T, D).

    Returns:
        The largest difference between onnxruntime and torch, relative to the largest value where
        that is above 1.

    Raises:
        ImportError: The extra `onnx` is not installed.
        OSError: A file cannot be written.
        RuntimeError: The difference is not one of rounding; nothing is written.
        TypeError: The model is another one, or not in float32.
        ValueError: The model refuses the example.
    """
    _check(model)
    path = Path(path)
    if not path.parent.is_dir():  # before the trace, which takes long
        raise FileNotFoundError(f"no such folder: {path.parent}")
    whole = _Whole(model, grid, features)
    shape = tuple(example.shape[2:])
    with _evaluating(whole), tempfile.TemporaryDirectory() as folder, torch.no_grad():
        whole(*_random_inputs(model, (1, 1), shape))  # says what does not fit
        program = _translate(whole, _random_inputs(model, (2, 3), shape))
        file = Path(folder, unique_name(path))
        program.save(file, external_data=_weight_bytes(model) > MAX_BYTES_INSIDE)
        found = [_difference(whole, file, _random_inputs(model, size, shape)) for size in SIZES]
        difference = torch.tensor(found).max().item()  # NaN, where one is
        if not difference <= BOUND:
            raise RuntimeError(
                f"nothing was written: onnxruntime differs from torch by {difference:.1e}, and "
                f"rounding explains {BOUND:.0e}"
            )
        publish(file, path)
    return difference


class _Whole(nn.Module):
    """The model with the inputs and outputs of the file."""

    def __init__(self, model: Any, grid: tuple[int, int] | None, features: bool) -> None:
        super().__init__()
        self.model, self.grid, self.features = model, grid, features
        self.inputs = ["frames" if isinstance(model, VideoEncoder) else "tokens", "frame_mask"]
        self.outputs = ["video_embedding", *(["frame_features"] if features else [])]

    def forward(self, inputs: Tensor, frame_mask: Tensor) -> tuple[Tensor, ...]:
        """Run the model, see `export`."""
        if isinstance(self.model, VideoEncoder):
            video, frames = self.model(inputs, frame_mask, grid=self.grid, output_frames=True)
        else:
            frames = self.model.forward_features(inputs, frame_mask, grid=self.grid)
            video = self.model.forward_head(frames, frame_mask)
        return (video, frames) if self.features else (video,)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Inside the `with` block loggers of the exporter report errors only."""
    loggers = [logging.getLogger(name) for name in CHATTY]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _translate(whole: _Whole, inputs: tuple[Tensor, Tensor]) -> Any:
    free = {0: "batch", 1: "frames"}
    with _quiet(), warnings.catch_warnings():
        # That both inputs have these axes, which is meant; and what torch tells itself.
        warnings.filterwarnings("ignore", "# The axis name: .* will not be used", UserWarning)
        warnings.simplefilter("ignore", FutureWarning)
        program = torch.onnx.export(
            whole,
            inputs,
            dynamo=True,
            verbose=False,
            input_names=whole.inputs,
            output_names=whole.outputs,
            dynamic_shapes=(free, free),
        )
    assert program is not None
    return program


def _difference(whole: _Whole, file: Path, inputs: tuple[Tensor, Tensor]) -> float:
    """Compare onnxruntime with torch; NaN where either has one."""
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    arrays = [tensor.cpu().numpy() for tensor in inputs]
    results = session.run(whole.outputs, dict(zip(whole.inputs, arrays, strict=True)))
    differences = []
    for result, expected in zip(results, whole(*inputs), strict=True):
        difference = (torch.from_numpy(result) - expected.cpu()).abs().max()
        differences.append(difference / expected.abs().max().clamp(min=1).cpu())
    return torch.stack(differences).max().item()


def _random_inputs(
    model: Any, size: tuple[int, int], shape: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Make videos (B, T) of a size, the same at each call, and a mask with a hole in the first."""
    device = next(model.parameters()).device
    inputs = torch.randn(*size, *shape, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(size, dtype=torch.bool)
    mask[0, 1:3] = False
    return inputs.to(device), mask.to(device)


def _check(model: Any) -> None:
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f"{', '.join(missing)} not installed, which ONNX files need: "
            "pip install 'muse-adapter[onnx]'"
        )
    if not isinstance(model, (MultiScaleMamba, VideoEncoder)):
        raise TypeError(
            f"model must be a MultiScaleMamba or a VideoEncoder, got {type(model).__name__}"
        )
    types = {p.dtype for p in model.parameters() if p.is_floating_point()}
    if types != {torch.float32}:
        names = ", ".join(sorted(map(str, types)))
        raise TypeError(f"model must be in float32, got {names}: export model.float()")


def _weight_bytes(model: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


@contextlib.contextmanager
def _evaluating(whole: _Whole) -> Iterator[None]:
    """Inside the `with` block all is in evaluation mode, and frames are encoded at once."""
    modes = [(module, module.training) for module in whole.modules()]
    encoder = whole.model if isinstance(whole.model, VideoEncoder) else None
    size = encoder.frames_per_slice if encoder else None
    whole.eval()
    if encoder:  # how many slices there are would be a constant of the graph
        encoder.frames_per_slice = None
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        if encoder:
            encoder.frames_per_slice = size

"""`muse_adapter.onnx.export`, and `torch.onnx.export` of what this package computes."""

from __future__ import annotations

import itertools
import re
from contextlib import nullcontext

import pytest
import torch
from torch import nn

import muse_adapter.onnx.exporting as exporting
from muse_adapter import VideoEncoder, ops
from muse_adapter.onnx import export
from muse_adapter.ops import MambaDirection, choice, mamba_mixer, selective_scan, use_backend
from muse_adapter.ops.onnx_export import ONNX, _softplus
from tests.support.onnx_files import close, make_masks, run_file
from tests.support.small_heads import small_head

for name in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(name, reason=f"{name} is not installed")


class Scan(nn.Module):
    """A scan with groups, a gate, an initial and a last state, against time."""

    def forward(self, u, delta, A, B, C, D, z, bias, state):
        return selective_scan(
            u, delta, A, B, C, D, z, bias, True, True, initial_state=state, reverse=True
        )


def scan_arguments(batch, length):
    return (
        *torch.randn(2, batch, 6, length),
        -torch.rand(6, 3),
        *(torch.randn(batch, 2, 3, length), torch.randn(batch, 3, length)),
        torch.randn(6),
        *(torch.randn(batch, 6, length), torch.randn(6), torch.randn(batch, 6, 3)),
    )


def test_scan_of_any_length():
    free, batch = {0: "batch", 2: "length"}, {0: "batch"}
    shapes = (free, free, None, {0: "batch", 3: "length"}, free, None, free, None, batch)
    with torch.no_grad():
        program = torch.onnx.export(
            Scan().eval(), scan_arguments(2, 5), dynamo=True, dynamic_shapes=shapes, verbose=False
        )
    file = program.model_proto.SerializeToString()
    for batch, length in ((1, 1), (3, 16), (2, 17), (2, 40)):
        arguments = scan_arguments(batch, length)
        with use_backend("reference"):
            expected = Scan()(*arguments)
        for got, value in zip(run_file(file, *arguments), expected, strict=True):
            close(got, value)


class MambaMixer(nn.Module):
    """A mixer of some directions, of whole sequences or up to lengths."""

    def __init__(self, directions, with_lengths):
        super().__init__()
        self.with_lengths = with_lengths
        shapes = (8, 1, 3), (8,), (10, 8), (8, 2), (8,), (8, 4), (8,)
        weights = [[torch.randn(shape) for shape in shapes] for _ in range(directions)]
        for tensors in weights:
            tensors[5] = -tensors[5].exp()
        self.in_proj = nn.Parameter(torch.randn(16, 6))
        self.weights = nn.ModuleList(nn.ParameterList(tensors) for tensors in weights)

    def forward(self, tokens, lengths):
        directions = [MambaDirection(*weights) for weights in self.weights]
        return mamba_mixer(
            tokens, self.in_proj, directions, lengths=lengths if self.with_lengths else None
        )


@pytest.mark.slow(seconds=10)
@pytest.mark.parametrize(
    ("directions", "with_lengths"), [(2, True), (1, False)], ids=["lengths", "one direction"]
)
def test_mixer(directions, with_lengths):
    """Tokens behind the lengths are not read, and their outputs are zero."""
    torch.manual_seed(0)
    mixer = MambaMixer(directions, with_lengths).eval()
    shapes = {0: "batch", 1: "length"}, {0: "batch"}
    example = torch.randn(2, 5, 6), torch.tensor([3, 5])
    with torch.no_grad():
        program = torch.onnx.export(
            mixer, example, dynamo=True, dynamic_shapes=shapes, verbose=False
        )
    file = program.model_proto.SerializeToString()
    for length, lengths in ((1, [1]), (16, [16, 0, 9]), (21, [21, 20])):
        tokens, lengths = torch.randn(len(lengths), length, 6), torch.tensor(lengths)
        behind = torch.arange(length) >= lengths.unsqueeze(1)
        if with_lengths:
            tokens[behind] = torch.nan
        with torch.no_grad(), use_backend("reference"):
            expected = mixer(tokens, lengths)
        (got,) = run_file(file, tokens, lengths)
        close(got, expected)
        assert not with_lengths or (got[behind] == 0).all()


def test_softplus_keeps_the_last_digits():
    """Small and large ones, within three roundings of what float64 gives."""
    x = torch.cat([torch.linspace(-87, 100, 10_001), torch.tensor([0.0, -torch.inf, torch.inf])])
    expected = nn.functional.softplus(x.double(), threshold=1000)
    assert (_softplus(x[:-2]) / expected[:-2] - 1).abs().max() < 3 * torch.finfo(x.dtype).eps
    assert _softplus(x[-2:]).tolist() == [0, torch.inf]
    assert _softplus(torch.tensor(torch.nan)).isnan()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Linear(16, 16), "must be a MultiScaleMamba or a VideoEncoder, got Linear"),
        (small_head().double(), "must be in float32, got torch.float64"),
    ],
    ids=["another model", "double"],
)
def test_refused_models(model, message, tmp_path):
    with pytest.raises(TypeError, match=message):
        export(model, tmp_path / "model.onnx", torch.empty(1, 1, 5, 16))
    assert not list(tmp_path.iterdir())


class Program:
    """What torch.onnx gives, for tests that do not look into it."""

    def save(self, file, external_data):
        assert not external_data
        file.write_bytes(b"new")


@pytest.mark.parametrize("difference", [1e-3, float("nan")])
def test_a_wrong_file_gets_no_name(difference, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "_translate", lambda *arguments: Program())
    differences = iter([1e-8, difference])
    monkeypatch.setattr(exporting, "_difference", lambda *arguments: next(differences))
    file = tmp_path / "model.onnx"
    file.write_bytes(b"old")
    head = small_head(depth=1).train()
    with pytest.raises(RuntimeError, match=r"nothing was written: .* differs .* by (1\.0e-03|nan)"):
        export(head, file, torch.empty(1, 1, 5, 16))
    assert file.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1
    assert all(module.training for module in head.modules())
    monkeypatch.setattr(exporting, "_difference", lambda *arguments: 1e-7)
    assert export(head, file, torch.empty(1, 1, 5, 16)) == pytest.approx(1e-7)
    assert file.read_bytes() == b"new"


def test_the_example_must_fit_the_model(tmp_path):
    with pytest.raises(ValueError, match="input width C = 16, got 8"):
        export(small_head(depth=1), tmp_path / "model.onnx", torch.empty(1, 1, 5, 8))


def test_a_folder_that_is_missing_is_named_before_the_trace(tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "_translate", lambda *arguments: pytest.fail("traced"))
    with pytest.raises(FileNotFoundError, match=r"no such folder: .*nowhere"):
        export(small_head(depth=1), tmp_path / "nowhere" / "model.onnx", torch.empty(1, 1, 5, 16))


def torch_export(head):
    """Export as torch documents it, without a function of ours."""
    free = {0: "batch", 1: "frames"}
    inputs = torch.randn(2, 3, 5, 16), make_masks(2, 3)
    with torch.no_grad():
        program = torch.onnx.export(
            head, inputs, dynamo=True, dynamic_shapes=(free, free), verbose=False
        )
    return program.model_proto.SerializeToString()


def check_embedding(head, file):
    for batch, frames in ((1, 9), (3, 4)):
        tokens, mask = torch.randn(batch, frames, 5, 16), make_masks(batch, frames)
        with torch.no_grad():
            close(run_file(file, tokens, mask)[0], head(tokens, mask))


# With `bimamba` and "scale_wise", what the command exports (`test_command.py`), each mixer and each
# aggregation once; in the graph, mixers know nothing of aggregations.
FORMS = [("mamba", "frame_wise"), ("attention", "spatial_wise"), ("conv", "scale_wise")]


@pytest.mark.slow(seconds=20)
@pytest.mark.filterwarnings("ignore:videos .* have no valid frame")
@pytest.mark.parametrize(("mixer", "aggregation"), FORMS)
def test_mixers_and_aggregations(mixer, aggregation):
    head = small_head(mixer=mixer, aggregation=aggregation, depth=1).eval()
    check_embedding(head, torch_export(head))


@pytest.mark.parametrize("backend", ops.backends("cpu"))
def test_no_backend_runs_in_an_export(backend, monkeypatch):
    """Whatever was chosen: runtimes have none of their kernels."""
    monkeypatch.setattr(choice, "exporting_to_onnx", lambda: True)
    with use_backend(backend) if ops.backends("cpu")[backend].available else nullcontext():
        assert choice.choose(torch.device("cpu"), None) is ONNX


@pytest.mark.slow(seconds=20)
def test_video_encoder_and_weights_in_a_second_file(tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.CLIPVisionConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        image_size=16, patch_size=8, projection_dim=16,
    )  # fmt: skip
    backbone = transformers.CLIPVisionModelWithProjection(config)
    head = small_head(mixer="attention", depth=1)  # traced in the shortest time
    encoder = VideoEncoder(backbone, head, frames_per_slice=2).eval()
    monkeypatch.setattr(exporting, "MAX_BYTES_INSIDE", 1000)
    file = tmp_path / "model.onnx"
    assert export(encoder, file, torch.empty(1, 1, 3, 16, 16)) < 1e-5
    assert encoder.frames_per_slice == 2
    graph, weights = sorted(other.name for other in tmp_path.iterdir())
    assert graph == "model.onnx" and re.fullmatch(r"model\.onnx\.[0-9a-f]{16}\.data", weights)
    for batch, frames in itertools.product((1, 2), (1, 7)):
        videos = torch.randn(batch, frames, 3, 16, 16)
        mask = torch.ones(batch, frames, dtype=torch.bool)
        with torch.no_grad():
            close(run_file(file, videos, mask)[0], encoder(videos, mask))

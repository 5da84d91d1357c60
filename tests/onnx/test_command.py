"""`muse-adapter export`: one export, of the whole command, looked at from all sides."""

from __future__ import annotations

import warnings

import pytest
import torch

from muse_adapter import __main__ as cli
from tests.support.onnx_files import close, make_masks, run_file
from tests.support.small_heads import small_head

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
pytest.importorskip("onnxscript", reason="onnxscript is not installed")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("onnx")
    torch.manual_seed(0)
    head = small_head().eval()
    head.save_pretrained(folder / "head")
    to = folder / "model.onnx"
    arguments = [str(folder / "head"), "--to", str(to), "--grid", "2", "3", "--features"]
    assert cli.main(["export", *arguments]) == 0
    return head, to


@pytest.mark.slow(seconds=45)
def test_any_batch_and_frames_with_the_mask(exported):
    head, file = exported
    for batch, frames in ((1, 1), (2, 3), (3, 20)):
        tokens, mask = torch.randn(batch, frames, 7, 16), make_masks(batch, frames)
        tokens[~mask] = torch.nan
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a video without a valid frame
            expected = head(tokens, mask, grid=(2, 3))
            features = head.forward_features(tokens, mask, grid=(2, 3))
        video, fused = run_file(file, tokens, mask)
        close(video, expected)
        close(fused, features)


@pytest.mark.slow(seconds=44)  # after the one whose file it reads
def test_one_file_with_standard_operators_and_named_axes(exported):
    _, file = exported
    assert [other.name for other in file.parent.iterdir() if other.is_file()] == [file.name]
    model = onnx.load(file)
    onnx.checker.check_model(model, full_check=True)
    assert {entry.domain for entry in model.opset_import} <= {"", "ai.onnx"}
    axes = {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert axes == {
        "tokens": ["batch", "frames", 7, 16],
        "frame_mask": ["batch", "frames"],
        "video_embedding": ["batch", 16],
        "frame_features": ["batch", "frames", 16],
    }
    assert [node.op_type for node in model.graph.node].count("Scan") == 3  # both, forward, reverse


def test_says_what_is_wrong(tmp_path, capsys):
    missing = str(tmp_path / "nothing")
    assert cli.main(["export", missing, "--to", str(tmp_path / "model.onnx")]) == 2
    assert "muse-adapter export: " in capsys.readouterr().err
    assert not list(tmp_path.iterdir())

"""MamFusion against the golden files of the published formulas: values, losses, all gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from muse_adapter.config import MamFusionConfig
from muse_adapter.models.mamfusion import MamFusion
from muse_adapter.models.mamfusion_checkpoint import load_mamfusion_state_dict
from muse_adapter.models.mamfusion_objective import BatchGate, mamfusion_loss
from muse_adapter.models.video_code import VideoCode, pair_cosines, pair_scores
from muse_adapter.training.losses import query_diverse_loss
from tests.support.golden import Golden

pytestmark = pytest.mark.usefixtures("torch_scan")
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)


def load(file: Golden, dtype: torch.dtype) -> MamFusion:
    """Build the whole network with the file's weights, in evaluation mode."""
    config = MamFusionConfig(
        visual_width=file.number("visual"),
        text_width=file.number("words"),
        hidden=file.number("hidden"),
        heads=file.number("heads"),
        num_clips=4,
        max_frames=9,
        max_words=6,
    )
    model = MamFusion(config).to(dtype).eval()
    with pytest.warns(UserWarning, match="8 tensors of the fusion over the batch"):
        load_mamfusion_state_dict(model, file.weights())
    return model


def load_gate(file: Golden, dtype: torch.dtype) -> BatchGate:
    weights = file.weights(dtype)
    gate = BatchGate(len(weights["v2t_fusion.multihead_attn.out_proj.bias"]), file.number("heads"))
    gate.to(dtype)
    names = {"v2t_fusion": gate.video_to_text, "t2v_fusion": gate.text_to_video}
    for name, module in names.items():
        prefix = f"{name}.multihead_attn."
        module.load_state_dict(
            {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
        )
    return gate


def check_scores(file: Golden, prefix: str, query: Tensor, code: VideoCode) -> None:
    """Check the scores of clips and of the frames, with and without norms."""
    for name, scores in zip(("clip_raw", "frame_raw"), pair_scores(query, code), strict=True):
        file.check(f"{prefix}.{name}", scores)
    for name, scores in zip(("clip", "frame"), pair_cosines(query, code), strict=True):
        file.check(f"{prefix}.{name}", scores)


@DTYPES
def test_whole_network(golden, dtype: torch.dtype) -> None:
    """Videos of a padded batch: windows over each video's own length, so `video_unpadded`."""
    file = golden("mamfusion_encoder")
    model, inputs = load(file, dtype), file.inputs(dtype)
    mask, word_mask = inputs["frame_mask"].bool(), inputs["word_mask"].bool()
    clips = model.encode_clips(inputs["clips"])
    video = model.encode_frames(inputs["frames"], mask.sum(1))
    query = model.word_branch.pool(model.word_branch.encode(inputs["words"], word_mask), word_mask)
    file.check("out.clips", clips)
    file.check("out.video_unpadded", video)
    file.check("out.query", query)
    file.check("out.fused_query", load_gate(file, dtype)(query, file.tensor("out.video", dtype))[0])


@DTYPES
def test_windows_over_the_padded_length(golden, dtype: torch.dtype) -> None:
    """As published: the video without padding, and the scores of the file's own vectors."""
    file = golden("mamfusion_encoder")
    model, inputs = load(file, dtype), file.inputs(dtype)
    unpadded = model.encode_frames(inputs["frames"][:1])
    assert inputs["frame_mask"][0].all()
    assert file.error("out.video_unpadded", unpadded.expand(3, -1)) > 1e-3  # videos differ
    for key in ("out.video", "out.video_unpadded"):
        first = file.tensor(key, dtype)[:1]
        assert (first - unpadded).abs().max() <= file.bound(key, unpadded) * first.abs().max()
    query = file.tensor("out.query", dtype)
    code = VideoCode(file.tensor("out.clips", dtype), file.tensor("out.video", dtype))
    check_scores(file, "out.score", query, code)
    file.check("out.score.combined", model.similarity(query, code))


@DTYPES
def test_scores_and_losses(golden, dtype: torch.dtype) -> None:
    file = golden("mamfusion_scores")
    inputs = file.inputs(dtype)
    leaves = {name: inputs[name].requires_grad_() for name in ("query", "clips", "video")}
    code = VideoCode(inputs["clips"], inputs["video"])
    check_scores(file, "out", inputs["query"], code)
    model = MamFusion(visual_width=4, text_width=4, hidden=16)
    combined = model.similarity(inputs["query"], code)
    file.check("out.combined", combined)
    right = combined.gather(1, inputs["labels"][:, None])
    assert torch.equal((combined > right).sum(1), file.stored("out.rank"))
    loss = mamfusion_loss(
        inputs["query"],
        code,
        inputs["labels"],
        negatives=(inputs["t2v_negative"], inputs["v2t_negative"]),
    )
    for name, value in loss._asdict().items():
        file.check(f"out.loss.{name}", value)
    loss.total.backward()
    for name, leaf in leaves.items():
        file.check(f"grad.in.{name}", leaf.grad)


@DTYPES
def test_gate_over_the_batch(golden, dtype: torch.dtype) -> None:
    file = golden("mamfusion_fusion")
    gate, inputs = load_gate(file, dtype), file.inputs(dtype)
    for value in inputs.values():
        value.requires_grad_()
    query, video = gate(inputs["query"], inputs["video"])
    file.check("out.query", query)
    file.check("out.video", video)
    (query * file.tensor("cot.query", dtype)).sum().backward()
    for name, value in inputs.items():
        file.check(f"grad.in.{name}", value.grad)
    tiled_query, tiled_video = gate(inputs["query"], inputs["video"].repeat(4, 1))
    file.check("out.tiled4.query", tiled_query)
    file.check("out.tiled4.video", tiled_video)


def test_only_the_query_diverse_loss_trains_the_gate(golden) -> None:
    file = golden("mamfusion_scores")
    inputs, gate = file.inputs(), BatchGate(16, 2).double()
    code = VideoCode(inputs["clips"], inputs["video"])
    options = {"negatives": (inputs["t2v_negative"], inputs["v2t_negative"]), "gate": gate}
    loss = mamfusion_loss(inputs["query"], code, inputs["labels"], **options)
    for name in ("clip_nce", "clip_triplet", "frame_nce", "frame_triplet"):
        file.check(f"out.loss.{name}", getattr(loss, name))
    gated, _ = gate(inputs["query"], inputs["video"])
    assert torch.equal(loss.query_diverse, query_diverse_loss(gated, inputs["labels"]))
    loss.total.backward()
    assert all(parameter.grad is not None for parameter in gate.parameters())
    without = mamfusion_loss(
        inputs["query"], code, inputs["labels"], weights=(0.027, 0.045, 0.0), **options
    )
    gate.zero_grad()
    without.total.backward()
    assert not any(parameter.grad.any() for parameter in gate.parameters())

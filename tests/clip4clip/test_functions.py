"""The functions that inserted lines call, with a stub of a host."""

from __future__ import annotations

import argparse
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from muse_adapter import MultiScaleMamba
from muse_adapter.clip4clip import HostHead, add_arguments, attach, fused_frames, regroup
from tests.support.hosts import FRAMES

pytestmark = pytest.mark.usefixtures("torch_scan")


class Stub(nn.Module):
    """A host whose CLIP returns a given result."""

    def __init__(self, result: Any = None, dim: int = 16, tokens: int = 5) -> None:
        super().__init__()
        self.clip = nn.Module()
        self.clip.visual = nn.Module()
        self.clip.visual.proj = nn.Parameter(torch.zeros(24, dim))
        self.clip.visual.positional_embedding = nn.Parameter(torch.zeros(tokens, 24))
        self.clip.encode_image = lambda video, return_hidden, video_frame: result


def settings(*given: str, **more: Any) -> Any:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sim_header", choices=["meanP"], default="meanP")
    add_arguments(parser)
    args = parser.parse_args(given)
    vars(args).update(more)
    return args


def test_defaults_are_those_of_the_paper() -> None:
    args = settings("--muse")
    model = Stub()
    attach(model, args)
    assert model.muse.config == MultiScaleMamba(dim=16).config
    assert args.muse_lr_scale == 10


def test_arguments_of_another_host() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)  # no --sim_header there
    assert not parser.parse_args([]).muse
    model = Stub()
    attach(model, SimpleNamespace())  # a main script without the arguments of the head
    assert model.muse is None


@pytest.mark.parametrize(
    ("given", "more", "message"),
    [
        (["--sim_header", "MUSE"], {"loose_type": False}, "add --loose_type"),
        (["--muse", "--muse_depth", "0"], {}, "depth must be at least 1"),
        (["--muse", "--muse_scales", "3"], {}, "unknown scales"),
    ],
    ids=["tight similarity", "depth", "scales"],
)
def test_attach_with_invalid_settings(given: list[str], more: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attach(Stub(), settings(*given, **more))


def test_shuffled_frames_give_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    attach(Stub(), settings("--muse", train_frame_order=2))
    assert "train_frame_order 2 shuffles the frames" in caplog.text


def small(result: Any, **fields: Any) -> Any:
    model = Stub(result)
    attach(model, settings("--muse", "--muse_depth", "1"))
    model.eval()
    return model


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_tokens_of_any_dtype_become_float32(dtype: torch.dtype) -> None:
    tokens = torch.randn(2 * FRAMES, 5, 16).to(dtype)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    frames = fused_frames(small((tokens[:, 0], tokens)), torch.empty(0), mask, FRAMES)
    assert frames.dtype == torch.float32
    assert frames.is_contiguous()
    # The head is an identity: CLIP's own features, also at masked frames.
    assert torch.equal(frames, tokens[:, 0].float().view(2, FRAMES, 16))


@pytest.mark.parametrize("alone", [False, True], ids=["pair", "tokens alone"])
def test_tokens_without_class_features(alone: bool) -> None:
    tokens = torch.randn(FRAMES, 5, 16)
    result = tokens if alone else (tokens[:, 0], tokens)
    frames = fused_frames(small(result), torch.empty(0), torch.ones(1, FRAMES), FRAMES)
    assert torch.equal(frames[0], tokens[:, 0])


@pytest.mark.parametrize(
    ("result", "got"),
    [
        (torch.zeros(FRAMES, 16), r"a tensor \(4, 16\)"),
        ((torch.zeros(FRAMES, 16), torch.zeros(FRAMES, 4, 16)), r"2 values .*\(4, 4, 16\)"),
        (torch.zeros(FRAMES, 5, 24), r"\(4, 5, 24\)"),
        (torch.zeros(FRAMES - 1, 5, 16), r"\(3, 5, 16\)"),
        ((1, 2, 3), "3 values"),
        (None, "NoneType"),
    ],
    ids=["features only", "a token short", "width", "frames", "three values", "nothing"],
)
def test_unexpected_results_raise(result: Any, got: str) -> None:
    with pytest.raises(ValueError, match=rf"all projected tokens \(4, 5, 16\).* got .*{got}"):
        fused_frames(small(result), torch.empty(0), torch.ones(1, FRAMES), FRAMES)


def test_a_video_without_frames_keeps_its_class_features() -> None:
    tokens = torch.randn(2 * FRAMES, 5, 16, requires_grad=True)
    mask = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0]])
    model = small((tokens[:, 0], tokens))
    model.train()
    frames = fused_frames(model, torch.empty(0), mask, FRAMES)
    assert mask.tolist() == [[1, 1, 0, 0], [1, 0, 0, 0]]
    frames.sum().backward()
    gradient = tokens.grad.view(2, FRAMES, -1)
    assert not gradient[1].any(), "a video without frames must not be learned from"
    assert gradient[0, :2].any()
    assert not gradient[0, 2:].any()


def test_regroup_without_a_head_returns_the_same_list() -> None:
    model = Stub()
    attach(model, settings())
    groups: list[dict[str, Any]] = [{"params": list(model.parameters())}]
    assert regroup(groups, model, settings()) is groups


def test_regroup_by_identity() -> None:
    model = Stub()
    attach(model, settings("--muse", "--muse_lr_scale", "3"))
    inside = [p for p in model.muse.parameters()]
    clip = {"params": list(model.clip.parameters()), "lr": 1e-7, "weight_decay": 0.3}
    mixed = {"params": [model.clip.visual.proj, *inside[:5]], "weight_decay": 0.1, "extra": "kept"}
    groups = [clip, mixed, {"params": inside[5:], "weight_decay": 0.0}]
    wrapped = SimpleNamespace(module=model)
    result = regroup(groups, wrapped, SimpleNamespace(lr=1e-2, muse_lr_scale=3.0))
    assert result[0] is clip
    assert result[1]["extra"] == "kept"
    assert [id(p) for p in result[1]["params"]] == [id(model.clip.visual.proj)]
    assert result[2]["params"] == []
    assert len(mixed["params"]) == 6, "the host's own groups are not changed"
    assert [g["name"] for g in result[3:]] == ["muse.decay", "muse.no_decay"]
    assert {g["lr"] for g in result[3:]} == {1e-2 * 3.0}
    assert [g["weight_decay"] for g in result[3:]] == [0.1, 0.0]
    assert {id(p) for g in result[3:] for p in g["params"]} == {id(p) for p in inside}


def test_dropout_draws_from_its_own_stream() -> None:
    tokens = torch.randn(FRAMES, 5, 16)
    model = small((tokens[:, 0], tokens))
    nn.init.normal_(model.muse.layers[0].fc.weight)
    nn.init.normal_(model.muse.layers[0].fc.bias)
    model.muse.layers[0].dropout.p = 0.5
    model.train()
    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    outputs = [fused_frames(model, torch.empty(0), torch.ones(1, FRAMES), FRAMES) for _ in range(2)]
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not torch.equal(*outputs), "each step must draw other numbers"
    model.muse.steps = 0
    again = fused_frames(model, torch.empty(0), torch.ones(1, FRAMES), FRAMES)
    assert torch.equal(again, outputs[0])


def test_parameter_names_work_with_the_hosts_loaders() -> None:
    names = dict(HostHead(dim=16).named_parameters())
    renamed = [name for name in names if any(part in name for part in ("gamma", "beta", "clip."))]
    assert not renamed, "the hosts rename the first two, and the third is CLIP's"

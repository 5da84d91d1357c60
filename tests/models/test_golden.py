"""The head against the official code: values and all gradients, on every backend."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from muse_adapter import MultiScaleMamba, load_muse_state_dict
from muse_adapter.ops import use_backend
from tests.support.backends import cpu_backends
from tests.support.golden import golden_names

TYPES = [torch.float64, torch.float32]
DTYPES = pytest.mark.parametrize("dtype", TYPES, ids=["float64", "float32"])

# Official name of a layer's part -> ours.
LAYER = {"layer_norm1": "norm", "mamba": "mixer", "temporal_fc": "fc"}


def our_name(official: str) -> str:
    if official.startswith("mamba_stages."):
        return official.replace("mamba_stages.", "pyramid.stages.")
    _, index, part, *leaf = official.split(".")
    return ".".join(["layers", index, LAYER[part], *leaf])


def build_head(golden, dtype):
    head = MultiScaleMamba(
        dim=golden.number("width"),
        scales=golden.scales,
        aggregation=golden.meta["aggregation"],
        depth=golden.number("layers"),
    ).to(dtype)
    load_muse_state_dict(head, golden.weights(dtype))
    return head.eval()


def head_inputs(golden, dtype):
    tokens = golden.tensor("in.tokens", dtype)
    frames = golden.number("frames")
    return tokens.unflatten(1, (frames, -1)).requires_grad_(), golden.tensor("in.video_mask")


def values_and_gradients(name, backend, dtype):
    """Return the parameters of one case; the definition takes the longest sequence step by step."""
    slow = backend == "reference" and name == "head_five_scales"
    label = f"{name}-{backend}-{str(dtype)[6:]}"
    return pytest.param(name, backend, dtype, id=label, marks=[pytest.mark.slow] if slow else [])


@pytest.mark.parametrize(
    ("golden_head", "backend", "dtype"),
    [
        values_and_gradients(name, backend, dtype)
        for name in golden_names("head_")
        for backend in cpu_backends()
        for dtype in TYPES
        # The definition is slow, and the official formulas themselves.
        if (backend, dtype) != ("reference", torch.float32)
    ],
    indirect=["golden_head"],
)
def test_head_values_and_gradients(golden_head, dtype, backend):
    head = build_head(golden_head, dtype)
    tokens, mask = head_inputs(golden_head, dtype)
    with use_backend(backend):
        frames = head.forward_features(tokens)  # the official code ignores the mask inside the head
        video = head.forward_head(frames, mask)
        (frames * golden_head.tensor("cot.frames", dtype)).sum().backward()
    golden_head.check("out.frames", frames)
    golden_head.check("out.video", video)
    golden_head.check("grad.in.tokens", tokens.grad.flatten(1, 2))
    parameters = dict(head.named_parameters())
    for name in golden_head.weights():
        golden_head.check(f"grad.{name}", parameters.pop(our_name(name)).grad)
    assert not parameters, "the official code lacks these weights"


@DTYPES
def test_head_intermediate_values(golden_head, dtype):
    head = build_head(golden_head, dtype)
    tokens, _ = head_inputs(golden_head, dtype)
    seen = {}
    for index, stage in enumerate(head.pyramid.stages):
        stage.register_forward_hook(
            lambda _m, _i, out, key=index: seen.update({f"out.pyramid.{key}": out})
        )
    for index, layer in enumerate(head.layers):
        layer.register_forward_hook(
            lambda _m, args, out, key=index: seen.update(
                {f"in.{key}": args[0], f"out.layers.{key}": out}
            )
        )
    with torch.no_grad():
        head.forward_features(tokens)
        # Without a readout, the last layer computes all positions.
        last = len(head.layers) - 1
        seen[f"out.layers.{last}"] = head.layers[-1](seen[f"in.{last}"])
    seen["out.sequence"] = seen["in.0"]
    stored = golden_head.keys("out.layers.") + golden_head.keys("out.pyramid.") + ["out.sequence"]
    assert len(stored) > len(head.layers)
    for key in stored:
        golden_head.check(key, seen[key])


@DTYPES
def test_pooling_and_loss(golden_head, dtype):
    mask = golden_head.tensor("in.video_mask")
    head = MultiScaleMamba(dim=golden_head.number("width"), depth=1)
    frames = golden_head.tensor("out.frames", dtype).requires_grad_()
    (head.forward_head(frames, mask) * golden_head.tensor("cot.video", dtype)).sum().backward()
    golden_head.check("grad_video.out.frames", frames.grad)
    if "out.loss" not in golden_head:
        return
    frames.grad = None
    text = golden_head.tensor("in.text", dtype).requires_grad_()
    scale = golden_head.tensor("in.logit_scale", dtype).requires_grad_()
    logits = scale.exp() * F.normalize(text[:, 0], dim=-1) @ head.forward_head(frames, mask).T
    target = torch.arange(len(text))
    loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    loss.backward()
    golden_head.check("out.logits", logits)
    golden_head.check("out.loss", loss)
    golden_head.check("grad_loss.out.frames", frames.grad)
    golden_head.check("grad_loss.in.text", text.grad)
    golden_head.check("grad_loss.in.logit_scale", scale.grad)

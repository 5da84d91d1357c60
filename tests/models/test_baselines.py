"""The baseline heads: against plain formulas and torch's own layer, with masks, in an encoder."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from muse_adapter import VideoEncoder
from muse_adapter.layers.transformer import TransformerLayer
from muse_adapter.models import MeanPool, TemporalTransformer
from tests.support.tolerances import assert_close

DIM, FRAMES = 128, 5  # two attention heads


def transformer() -> TemporalTransformer:
    return TemporalTransformer(DIM, depth=2, max_frames=FRAMES, position_std=0.3).double()


HEADS = {"mean_pool": lambda: MeanPool(), "temporal_transformer": transformer}


@pytest.fixture(params=HEADS)
def head(request: pytest.FixtureRequest) -> MeanPool:
    return HEADS[request.param]()


def make_tokens(batch: int = 3, frames: int = FRAMES) -> Tensor:
    return torch.randn(batch, frames, 1 + 4, DIM, dtype=torch.float64)


def test_mean_pool_is_the_normalised_mean_of_class_tokens() -> None:
    tokens = make_tokens()
    wanted = normalize(normalize(tokens[:, :, 0], dim=-1).mean(1), dim=-1)
    assert_close(MeanPool()(tokens), wanted)
    assert list(MeanPool().parameters()) == []


NAMES = {  # of torch's layer, and ours
    "norm1": "norm1",
    "norm2": "norm2",
    "self_attn.in_proj_": "qkv.",
    "self_attn.out_proj": "out",
    "linear1": "mlp.0",
    "linear2": "mlp.2",
}


def our_name(name: str) -> str:
    (ours,) = (name.replace(theirs, ours) for theirs, ours in NAMES.items() if theirs in name)
    return ours


def reference_layer(layer: TransformerLayer) -> nn.TransformerEncoderLayer:
    """Torch's own pre-norm layer with the same weights."""
    reference = nn.TransformerEncoderLayer(
        DIM, layer.heads, 4 * DIM, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    ).double()
    weights = layer.state_dict()
    reference.load_state_dict({name: weights[our_name(name)] for name in reference.state_dict()})
    return reference


def test_layer_equals_that_of_torch_with_all_gradients() -> None:
    layer = TransformerLayer(DIM, 2).double()
    reference = reference_layer(layer)
    x = torch.randn(3, FRAMES, DIM, dtype=torch.float64)
    keep = torch.tensor([[1, 1, 1, 0, 0], [1, 0, 1, 0, 1], [1, 1, 1, 1, 1]], dtype=torch.bool)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [
        layer(inputs[0], keep),
        reference(inputs[1], src_key_padding_mask=~keep),
    ]
    assert_close(outputs[0], outputs[1])
    weight = torch.randn_like(x)
    for output in outputs:
        (output * weight).sum().backward()
    assert_close(inputs[0].grad, inputs[1].grad, "gradients")
    gradients = {name: parameter.grad for name, parameter in layer.named_parameters()}
    for name, parameter in reference.named_parameters():
        assert_close(gradients.pop(our_name(name)), parameter.grad, "gradients", name=name)
    assert not gradients


def test_temporal_transformer_adds_the_transformer_to_the_frames() -> None:
    head, tokens = transformer(), make_tokens()
    x = tokens[:, :, 0] + head.positions
    for layer in head.layers:
        x = reference_layer(layer)(x)
    features = tokens[:, :, 0] + x
    assert_close(head.forward_features(tokens), features)
    wanted = normalize(normalize(features, dim=-1).mean(1), dim=-1)
    assert_close(head(tokens), wanted)


@pytest.mark.filterwarnings("ignore:videos .* have no valid frame")
@pytest.mark.parametrize("filler", [7.0, float("nan")], ids=["numbers", "nan"])
def test_masked_frames_influence_nothing(head: MeanPool, filler: float) -> None:
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]], dtype=torch.bool)
    tokens = make_tokens()
    alone = head(tokens[:1, :3])
    tokens[~mask] = filler
    tokens.requires_grad_()
    video = head(tokens, mask)
    assert_close(video[:1], alone)
    assert_close(video.norm(dim=-1), torch.tensor([1.0, 1.0, 0.0]).double())
    assert_close(head.forward_head(head.forward_features(tokens, mask), mask), video)
    (video * torch.randn_like(video)).sum().backward()
    assert tokens.grad is not None
    assert not tokens.grad[~mask].any() and tokens.grad[mask][:, 0].all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())


def test_holes_in_the_mask(head: MeanPool) -> None:
    """What stands in a hole does not matter; the others keep their positions."""
    mask = torch.tensor([[1, 0, 1, 0, 1]] * 3, dtype=torch.int64)
    tokens, other = make_tokens(), make_tokens()
    other[:, ::2] = tokens[:, ::2]
    assert_close(head(tokens, mask), head(other, mask))
    features = head.forward_features(tokens, mask)
    assert torch.equal(features[:, 1::2], tokens[:, 1::2, 0])


def test_only_the_transformer_sees_order() -> None:
    tokens = make_tokens()
    for name, build in HEADS.items():
        head = build()
        same = torch.allclose(head(tokens), head(tokens.flip(1)))
        assert same is (name == "mean_pool"), name


def test_flat_tokens_and_grid(head: MeanPool) -> None:
    tokens = make_tokens()
    flat = head(tokens.flatten(0, 1), num_frames=FRAMES, grid=(1, 4))
    assert_close(flat, head(tokens, grid=(2, 2)))


def test_in_a_video_encoder(head: MeanPool) -> None:
    backbone = nn.Conv2d(3, DIM, 4, stride=4).double()
    encoder = VideoEncoder(
        backbone, head, tokens=lambda frames: backbone(frames).flatten(2).transpose(1, 2)
    )
    frames = torch.randn(2, 3, 3, 8, 8, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    video, features = encoder(frames, mask, output_frames=True)
    assert video.shape == (2, DIM) and features.shape == (2, 3, DIM)
    assert_close(encoder(frames, mask), video)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: transformer()(make_tokens(frames=6)), ValueError, "at most max_frames = 5.*got 6"),
        (lambda: MeanPool()(make_tokens(), torch.ones(3, 4)), ValueError, r"\(B, T\) = \(3, 5\)"),
        (lambda: MeanPool()(make_tokens()[:, 0]), ValueError, "need num_frames=T"),
        (lambda: TransformerLayer(10, 3), ValueError, "dim must be divisible by heads, got 10"),
    ],
    ids=["too many frames", "mask", "flat tokens", "heads"],
)
def test_wrong_inputs(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()

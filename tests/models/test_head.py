"""What the head promises about masks, its start, its savings and its parameters."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from muse_adapter import MultiScaleMamba
from muse_adapter.config import MIXERS
from muse_adapter.layers.mixers import BiMamba
from muse_adapter.ops import use_backend
from tests.support.head_forms import EVERY_FORM


def awake(**fields) -> MultiScaleMamba:
    """A float64 head in evaluation mode whose every parameter matters: no zeros, no unit norms."""
    torch.manual_seed(0)
    head = MultiScaleMamba(**{"dim": 8, "depth": 2, **fields}).double().eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in head.named_parameters():
            if not name.endswith(("A_log", "A_b_log")):
                noise = torch.rand(parameter.shape, generator=generator, dtype=torch.float64) - 0.5
                parameter.add_(noise)
    return head


def videos(batch=2, frames=5, grid=(2, 2), width=8, prefix=1):
    generator = torch.Generator().manual_seed(3)
    shape = (batch, frames, prefix + grid[0] * grid[1], width)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def relative(got: torch.Tensor, expected: torch.Tensor) -> float:
    return ((got - expected).abs().max() / expected.abs().max().clamp(min=1e-30)).item()


# Real frames of each video: padding behind, holes, and the first frame missing.
MASKS = {"padding": [1, 1, 1, 0, 0], "holes": [1, 0, 1, 0, 1], "late start": [0, 0, 1, 1, 1]}


@EVERY_FORM
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("filling", [1e6, math.nan])
def test_masked_frames_influence_nothing(aggregation, mixer, mask, filling):
    check_masked_frames(aggregation, mixer, mask, filling)


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_masked_frames_influence_nothing_on_any_backend(backend, mask):
    with use_backend(backend):
        check_masked_frames("scale_wise", "bimamba", mask, math.nan)


def check_masked_frames(aggregation, mixer, mask, filling):
    """Outputs and gradients are those of the videos without their masked frames."""
    head = awake(aggregation=aggregation, mixer=mixer)
    mask = torch.tensor([[1] * 5, mask], dtype=torch.bool)
    tokens = videos()
    alone = tokens[1:, mask[1]].clone().requires_grad_()
    given = torch.where(mask[:, :, None, None], tokens, filling).requires_grad_()

    expected_frames = head.forward_features(alone)
    expected = head.forward_head(expected_frames)
    frames = head.forward_features(given, mask)
    got = head(given, mask)
    assert relative(frames[1, mask[1]], expected_frames[0]) < 1e-12
    assert relative(got[1], expected[0]) < 1e-12

    cotangent = torch.randn_like(expected)
    expected_gradients = torch.autograd.grad(
        (expected * cotangent).sum(), [alone, *head.parameters()], allow_unused=True
    )
    gradients = torch.autograd.grad((got[1:] * cotangent).sum(), [given, *head.parameters()])
    assert torch.equal(gradients[0][~mask], torch.zeros_like(gradients[0][~mask]))
    assert relative(gradients[0][1, mask[1]], expected_gradients[0][0]) < 1e-11
    for name, got_one, expected_one in zip(
        dict(head.named_parameters()), gradients[1:], expected_gradients[1:], strict=True
    ):
        # Sums over masked places are sums of zeros; only their order differs.
        bound = 1e-11 * max(g.abs().max().item() for g in expected_gradients[1:])
        assert (got_one - expected_one).abs().max().item() <= bound, name


@EVERY_FORM
def test_a_video_does_not_depend_on_its_batch(aggregation, mixer):
    head = awake(aggregation=aggregation, mixer=mixer)
    tokens = videos(batch=3)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 1, 1, 1]])
    expected = head(tokens[1:2], mask[1:2])
    spoilt = tokens.clone()
    spoilt[0, 2] = math.nan
    for batch in (tokens, tokens * torch.tensor([1e3, 1, -1]).reshape(3, 1, 1, 1), spoilt):
        assert relative(head(batch, mask)[1:2], expected) < 1e-12
    result = head(spoilt, mask)
    assert result[0].isnan().any()
    assert result[1:].isfinite().all()


@pytest.mark.parametrize("prefix", [0, 1, 5])
@EVERY_FORM
def test_the_head_starts_as_mean_pooling_of_the_class_tokens(aggregation, mixer, prefix):
    head = MultiScaleMamba(
        dim=8, depth=2, aggregation=aggregation, mixer=mixer, num_prefix_tokens=prefix
    ).double()
    tokens = videos(prefix=prefix)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 1, 0]], dtype=torch.float64)
    classes = tokens[:, :, 0] if prefix else tokens.mean(2)
    unit = F.normalize(classes, dim=-1) * mask.unsqueeze(-1)
    expected = F.normalize(unit.sum(1) / mask.sum(1, keepdim=True), dim=-1)
    assert relative(head.train()(tokens, mask), expected) < 1e-14
    assert torch.equal(head.forward_features(tokens), classes)


def test_a_projection_comes_first_where_the_widths_differ():
    head = awake(in_dim=6)
    tokens = videos(width=6)
    same = awake()
    same.load_state_dict(
        {name: value for name, value in head.state_dict().items() if not name.startswith("proj")}
    )
    assert torch.equal(head(tokens), same(head.proj(tokens)))


def test_masked_frames_give_their_class_feature_or_a_constant_one():
    head = awake(in_dim=6)
    tokens = videos(width=6)
    mask = torch.tensor([[True] * 5, [True, False, False, False, True]])
    tokens[1, 2], tokens[1, 3] = 0, math.nan
    with torch.no_grad():
        head.proj.bias.zero_()
    tokens.requires_grad_()
    frames = head.forward_features(tokens, mask)
    assert relative(frames[1, 1], head.proj(tokens[1, 1, 0])) < 1e-14
    constant = torch.full((2, 8), 8**-0.5, dtype=torch.float64)
    assert torch.equal(frames[1, 2:4], constant)
    # A host divides by the norm first and masks by a product then.
    hosts = (frames / frames.norm(dim=-1, keepdim=True)) * mask.unsqueeze(-1)
    pooled = F.normalize(hosts.sum(1), dim=-1)
    assert relative(pooled, head(tokens, mask)) < 1e-12
    pooled.sum().backward()
    assert not tokens.grad[1, 1:4].any()


@EVERY_FORM
def test_a_video_without_frames_is_zero_with_zero_gradient(aggregation, mixer):
    head = awake(aggregation=aggregation, mixer=mixer)
    tokens = videos().requires_grad_()
    mask = torch.tensor([[1] * 5, [0] * 5])
    with pytest.warns(UserWarning, match=r"videos \[1\] have no valid frame"):
        video = head(tokens, mask)
    video.sum().backward()
    assert not video[1].any() and not tokens.grad[1].any()
    assert relative(video[0], head(tokens[:1])[0]) < 1e-12
    for parameter in head.parameters():
        assert parameter.grad.isfinite().all()


def test_the_mask_may_have_any_type():
    head = awake()
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 0, 1, 0, 1]])
    expected = head(videos(), mask.bool())
    for dtype in (torch.int64, torch.uint8, torch.float32, torch.float64):
        assert torch.equal(head(videos(), mask.to(dtype)), expected)


def test_flat_tokens_and_other_grids():
    head = awake()
    tokens = videos(grid=(2, 8))
    flat = tokens.flatten(0, 1)
    expected = head(tokens, grid=(2, 8))
    assert torch.equal(head(flat, num_frames=5, grid=(2, 8)), expected)
    assert relative(head(tokens, grid=(8, 2)), expected) > 1e-6
    square = videos(grid=(4, 4))
    assert torch.equal(head(square), head(square, grid=(4, 4)))


def test_registers_are_dropped():
    tokens = videos(prefix=5)
    kept = torch.cat([tokens[:, :, :1], tokens[:, :, 5:]], dim=2)
    assert relative(awake(num_prefix_tokens=5)(tokens), awake()(kept)) < 1e-14


@EVERY_FORM
@pytest.mark.parametrize("masked", [False, True], ids=["all frames", "masked"])
def test_the_last_layer_saves_only_what_nobody_reads(aggregation, mixer, masked):
    """Trimmed to the class tokens, the last layer gives the numbers and gradients of the whole."""
    head = awake(aggregation=aggregation, mixer=mixer)
    tokens = videos().requires_grad_()
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 0, 1, 1, 0]]) if masked else None
    layer = head.layers[-1]

    def results():
        frames = head.forward_features(tokens, mask)
        if masked:
            frames = frames[mask.bool()]
        cotangent = torch.linspace(-1, 1, frames.numel(), dtype=torch.float64).reshape(frames.shape)
        wanted = [tokens, *head.parameters()]
        return [frames, *torch.autograd.grad((frames * cotangent).sum(), wanted)]

    trimmed = results()
    whole = layer.forward
    layer.forward = lambda x, lengths, readout: readout.select(whole(x, lengths))
    for one, other in zip(trimmed, results(), strict=True):
        assert (one - other).abs().max() <= 1e-12 * max(other.abs().max(), 1)


@pytest.mark.parametrize("mixer", MIXERS)
def test_merged_output_maps_agree_and_never_go_stale(mixer):
    head = awake(mixer=mixer)
    x = torch.randn(2, 40, 8, dtype=torch.float64)
    layer = head.layers[0]
    for _ in range(2):
        apart = layer(x).detach()
        with torch.no_grad():
            joined = layer(x)
            assert relative(joined, apart) < 1e-13
            layer.fc.weight.mul_(-2)  # as an optimiser step or a load would change it
            layer.mixer.out_proj.weight.add_(0.1)


def test_merging_is_left_out_where_it_is_dearer(monkeypatch):
    layer = awake().layers[0]
    calls = []
    original = layer._merged_output
    monkeypatch.setattr(layer, "_merged_output", lambda: calls.append(1) or original())
    with torch.no_grad():
        layer(torch.randn(1, 8, 8, dtype=torch.float64))  # as many tokens as channels
        assert not calls
        layer(torch.randn(1, 9, 8, dtype=torch.float64))
        assert calls
        layer.train()(torch.randn(1, 9, 8, dtype=torch.float64))
        assert len(calls) == 1


@EVERY_FORM
@pytest.mark.parametrize("init", ["identity", "release"])
def test_every_parameter_learns_is_saved_and_moves(aggregation, mixer, init):
    head = MultiScaleMamba(
        dim=8,
        depth=2,
        aggregation=aggregation,
        mixer=mixer,
        init=init,
        scales=(0.25, 0.5, 1, 2, 4),
        in_dim=6,
    )
    assert set(dict(head.named_parameters())) == set(head.state_dict())
    head(videos(width=6, grid=(4, 4)).float()).sum().backward()
    assert [name for name, p in head.named_parameters() if p.grad is None] == []
    head.to(torch.float64)
    assert {p.dtype for p in head.parameters()} == {torch.float64}
    assert head(videos(width=6, grid=(4, 4))).dtype == torch.float64


def test_reset_parameters_undoes_a_host_that_re_initialised_everything():
    head = MultiScaleMamba(dim=8, depth=2)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    head.reset_parameters()
    tokens = videos().float()
    assert torch.equal(head.forward_features(tokens), tokens[:, :, 0])
    mixer = head.layers[0].mixer
    for a_log, skip, dt_proj in (
        (mixer.A_log, mixer.D, mixer.dt_proj),
        (mixer.A_b_log, mixer.D_b, mixer.dt_proj_b),
    ):
        assert torch.allclose(a_log.exp(), torch.arange(1.0, 17).expand(8, 16), rtol=1e-6)
        assert torch.equal(skip, torch.ones(8))
        dt = F.softplus(dt_proj.bias)
        assert (dt > 0.9e-3).all() and (dt < 0.11).all()
    for module in head.modules():
        if isinstance(module, torch.nn.LayerNorm):
            assert torch.equal(module.weight, torch.ones_like(module.weight))


def test_release_initialisation_is_what_takes_effect_in_the_official_code():
    head = MultiScaleMamba(dim=64, depth=2, init="release")
    for name, module in head.named_modules():
        if isinstance(module, torch.nn.Linear):
            assert 0.015 < module.weight.std() < 0.025, name
            assert module.bias is None or not module.bias.any(), name
    conv = head.layers[0].mixer.conv1d
    assert conv.weight.abs().max() <= 0.5 and conv.bias.any()
    assert torch.equal(head.layers[0].mixer.D, torch.ones(64))


def test_dropout_rates_rise_linearly():
    rates = [layer.dropout.p for layer in MultiScaleMamba(dim=8).layers]
    assert rates == pytest.approx([0, 0.1 / 3, 0.2 / 3, 0.1])


def test_parameter_counts_are_the_papers():
    head = MultiScaleMamba()
    count = sum(p.numel() for p in head.pyramid.parameters())
    assert count == 8_267_008
    assert sum(p.numel() for p in head.layers.parameters()) == 4_687_872


def test_freeze_pyramid():
    head = MultiScaleMamba(dim=8, depth=1)
    head.freeze_pyramid()
    head(videos().float()).sum().backward()
    assert all(p.grad is None for p in head.pyramid.parameters())
    assert all(p.grad is not None for p in head.layers.parameters())


def test_no_weight_decay_names_parameters():
    head = MultiScaleMamba(dim=8, depth=2)
    names = head.no_weight_decay()
    assert "layers.1.mixer.A_b_log" in names and len(names) == 8
    assert names <= set(dict(head.named_parameters()))
    assert MultiScaleMamba(dim=8, depth=1, mixer="conv").no_weight_decay() == set()


def test_a_config_or_its_fields():
    head = MultiScaleMamba(dim=8, depth=1)
    assert MultiScaleMamba(head.config).config == head.config
    with pytest.raises(TypeError, match="not both"):
        MultiScaleMamba(head.config, depth=3)
    with pytest.raises(TypeError, match="must be a MuseConfig, got int"):
        MultiScaleMamba(512)
    assert "scale_wise" in repr(head)


@pytest.mark.parametrize(
    "options", [{}, {"bidirectional": False}, {"divide_out": True}, {"expand": 2}], ids=str
)
def test_mixer_gradients_by_finite_differences(options):
    torch.manual_seed(1)
    mixer = BiMamba(4, d_state=2, d_conv=3, **options).double()
    x = torch.randn(2, 5, 4, dtype=torch.float64, requires_grad=True)
    lengths = torch.tensor([5, 3])
    assert torch.autograd.gradcheck(mixer, (x,), fast_mode=True)
    parameters = tuple(mixer.parameters())

    def of_parameters(*values):
        names = dict(zip(dict(mixer.named_parameters()), values, strict=True))
        return torch.func.functional_call(mixer, names, (x.detach(), lengths))[:, :3]

    assert torch.autograd.gradcheck(of_parameters, parameters, fast_mode=True)

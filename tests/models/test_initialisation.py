"""How a head starts, and its parameters: counts, dropout rates, decay, training."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from muse_adapter import MultiScaleMamba
from tests.support.head_forms import EVERY_FORM, random_tokens
from tests.support.tolerances import assert_close


@pytest.mark.parametrize("prefix", [0, 1, 5])
@EVERY_FORM
def test_the_head_starts_as_mean_pooling_of_the_class_tokens(aggregation, mixer, prefix):
    head = MultiScaleMamba(
        dim=8, depth=2, aggregation=aggregation, mixer=mixer, num_prefix_tokens=prefix
    ).double()
    tokens = random_tokens(prefix=prefix)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 1, 0]], dtype=torch.float64)
    cls_tokens = tokens[:, :, 0] if prefix else tokens.mean(2)
    unit = F.normalize(cls_tokens, dim=-1) * mask.unsqueeze(-1)
    expected = F.normalize(unit.sum(1) / mask.sum(1, keepdim=True), dim=-1)
    assert_close(head.train()(tokens, mask), expected, "rounding")
    assert_close(head.forward_features(tokens), cls_tokens, "rounding")


def test_reset_parameters_after_a_host_has_initialised_everything():
    head = MultiScaleMamba(dim=8, depth=2)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    head.reset_parameters()
    tokens = random_tokens().float()
    assert_close(head.forward_features(tokens), tokens[:, :, 0], "rounding")
    mixer = head.layers[0].mixer
    for a_log, skip, dt_proj in (
        (mixer.A_log, mixer.D, mixer.dt_proj),
        (mixer.A_b_log, mixer.D_b, mixer.dt_proj_b),
    ):
        assert_close(a_log.exp(), torch.arange(1.0, 17).expand(8, 16), "rounding")
        assert (skip == 1).all()
        dt = F.softplus(dt_proj.bias)
        assert (dt > 0.9e-3).all() and (dt < 0.11).all()
    for module in head.modules():
        if isinstance(module, torch.nn.LayerNorm):
            assert (module.weight == 1).all()


def test_release_initialisation_is_what_takes_effect_in_the_official_code():
    head = MultiScaleMamba(dim=64, depth=2, init="release")
    for name, module in head.named_modules():
        if isinstance(module, torch.nn.Linear):
            assert 0.015 < module.weight.std() < 0.025, name
            assert module.bias is None or not module.bias.any(), name
    conv = head.layers[0].mixer.conv1d
    assert conv.weight.abs().max() <= 0.5 and conv.bias.any()
    assert (head.layers[0].mixer.D == 1).all()


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
    head(random_tokens(width=6, grid=(4, 4)).float()).sum().backward()
    assert [name for name, p in head.named_parameters() if p.grad is None] == []
    head.to(torch.float64)
    assert {p.dtype for p in head.parameters()} == {torch.float64}
    assert head(random_tokens(width=6, grid=(4, 4))).dtype == torch.float64


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
    head(random_tokens().float()).sum().backward()
    assert all(p.grad is None for p in head.pyramid.parameters())
    assert all(p.grad is not None for p in head.layers.parameters())


def test_no_weight_decay_names_parameters():
    head = MultiScaleMamba(dim=8, depth=2)
    names = head.no_weight_decay()
    assert "layers.1.mixer.A_b_log" in names and len(names) == 8
    assert names <= set(dict(head.named_parameters()))
    assert MultiScaleMamba(dim=8, depth=1, mixer="conv").no_weight_decay() == set()

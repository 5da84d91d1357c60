"""The inputs that a head takes, and the work that it skips."""

from __future__ import annotations

import pytest
import torch

from muse_adapter import MultiScaleMamba
from tests.support.head_forms import EVERY_FORM, perturbed, random_tokens
from tests.support.tolerances import TOLERANCES, assert_close, relative_error


def test_a_config_or_its_fields():
    head = MultiScaleMamba(dim=8, depth=1)
    assert MultiScaleMamba(head.config).config == head.config
    with pytest.raises(TypeError, match="not both"):
        MultiScaleMamba(head.config, depth=3)
    with pytest.raises(
        TypeError, match="must be a MuseConfig, got int; a width is given as dim=512"
    ):
        MultiScaleMamba(512)
    assert "scale_wise" in repr(head)


def test_a_projection_comes_first_where_the_widths_differ():
    head = perturbed(in_dim=6)
    tokens = random_tokens(width=6)
    same = perturbed()
    same.load_state_dict(
        {name: value for name, value in head.state_dict().items() if not name.startswith("proj")}
    )
    assert_close(head(tokens), same(head.proj(tokens)))


def test_flat_tokens_and_other_grids():
    head = perturbed()
    tokens = random_tokens(grid=(2, 8))
    flat = tokens.flatten(0, 1)
    expected = head(tokens, grid=(2, 8))
    assert torch.equal(head(flat, num_frames=5, grid=(2, 8)), expected)
    assert relative_error(head(tokens, grid=(8, 2)), expected) > 1e-6
    square = random_tokens(grid=(4, 4))
    assert torch.equal(head(square), head(square, grid=(4, 4)))


def test_registers_are_dropped():
    tokens = random_tokens(prefix=5)
    without = torch.cat([tokens[:, :, :1], tokens[:, :, 5:]], dim=2)
    assert_close(perturbed(num_prefix_tokens=5)(tokens), perturbed()(without), "rounding")


@EVERY_FORM
@pytest.mark.parametrize("masked", [False, True], ids=["all frames", "masked"])
def test_the_trimmed_last_layer_equals_the_whole_one(aggregation, mixer, masked):
    """Computing only the class tokens changes neither the results nor the gradients."""
    head = perturbed(aggregation=aggregation, mixer=mixer)
    tokens = random_tokens().requires_grad_()
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 0, 1, 1, 0]]) if masked else None
    layer = head.layers[-1]

    def results():
        frames = head.forward_features(tokens, mask)
        if masked:
            frames = frames[mask.bool()]
        cotangent = torch.linspace(-1, 1, frames.numel(), dtype=torch.float64).reshape(frames.shape)
        inputs = [tokens, *head.parameters()]
        return [frames, *torch.autograd.grad((frames * cotangent).sum(), inputs)]

    trimmed = results()
    whole = layer.forward
    layer.forward = lambda x, lengths, readout: readout.select(whole(x, lengths))
    for one, other in zip(trimmed, results(), strict=True):
        bound = TOLERANCES[torch.float64].values * max(other.abs().max().item(), 1)
        assert (one - other).abs().max().item() <= bound

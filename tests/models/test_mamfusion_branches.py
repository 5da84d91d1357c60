"""What stands in the way of streaming, as docs/streaming.md says."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from muse_adapter import MamFusionConfig
from muse_adapter.models.mamfusion_branches import VideoBranch

CONFIG = MamFusionConfig(visual_width=6, text_width=4, hidden=8, heads=2)


class Skip(nn.Module):
    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        return x


def test_only_the_gaussian_blocks_look_ahead(torch_scan: None) -> None:
    branch = VideoBranch(CONFIG, max_length=9).double().eval()
    x = torch.randn(1, 9, 6, dtype=torch.float64)
    continued = torch.cat([x[:, :5], torch.randn(1, 4, 6, dtype=torch.float64)], dim=1)
    with torch.no_grad():
        assert (branch(x) - branch(continued))[:, :5].abs().max() > 1e-3
        branch.gaussian = nn.ModuleList(Skip() for _ in branch.gaussian)
        assert (branch(x) - branch(continued))[:, :5].abs().max() < 1e-14
        assert (branch(x) - branch(continued))[:, 5:].abs().max() > 1e-3

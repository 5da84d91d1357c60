"""Rows gathered from two processes, and a contrastive loss over them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from muse_adapter.training.distributed import gather_rows
from tests.support.contrastive_steps import three_steps
from tests.support.small_encoders import ROUNDING

RANK = """
from muse_adapter.training.distributed import gather_rows
from tests.support.contrastive_steps import three_steps
from torch.nn.parallel import DistributedDataParallel

torch.manual_seed(0)
rows = torch.randn(5, 3)[:2] if rank == 0 else torch.randn(5, 3)[2:]
rows.requires_grad_()
joined = gather_rows(rows)
(joined * torch.arange(15.0).view(5, 3) * (rank + 1)).sum().backward()
result = {"joined": joined.detach(), "gradient": rows.grad}
for first in (2, 3):
    pairs = slice(0, first) if rank == 0 else slice(first, 4)
    result[f"split {first}"] = three_steps(pairs, DistributedDataParallel)
torch.save(result, f"{arguments[0]}/{rank}")
"""


def test_one_process_gathers_its_own_rows() -> None:
    rows = torch.randn(2, 3)
    assert gather_rows(rows) is rows


@pytest.mark.usefixtures("torch_scan")
def test_two_processes(tmp_path: Path, two_processes: Callable[..., None]) -> None:
    """Different numbers of rows; a model with two pairs each, and with three and one."""
    expected = three_steps(slice(0, 4))
    losses = expected["losses"]
    assert losses[2] < losses[0]
    two_processes(RANK, str(tmp_path), MUSE_ADAPTER_BACKEND="torch")
    results = [torch.load(tmp_path / str(rank), weights_only=True) for rank in (0, 1)]

    torch.manual_seed(0)
    rows = torch.randn(5, 3)
    # The sum over both ranks of the weights of a row: once times 1 and once times 2.
    gradient = 3 * torch.arange(15.0).view(5, 3)
    for result in results:
        assert torch.equal(result["joined"], rows)
        for split in ("split 2", "split 3"):
            trained = result[split]
            for name, value in expected.items():
                torch.testing.assert_close(
                    trained[name], value, **ROUNDING[torch.float64], msg=f"{split}: {name}"
                )
    assert torch.equal(torch.cat([result["gradient"] for result in results]), gradient)

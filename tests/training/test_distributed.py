"""Two processes: rows gathered from them, a contrastive loss over these, the head in DDP.

A process imports for seconds, so one pair of them computes what all tests look at.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from muse_adapter.config import AGGREGATIONS, MIXERS
from muse_adapter.training.distributed import gather_rows
from tests.support import head_forms
from tests.support.contrastive_steps import OBJECTIVES, small_model, three_steps
from tests.support.small_encoders import ROUNDING
from tests.support.tolerances import assert_close

# Aggregation and mixer of the heads: every mixer, every aggregation.
HEADS = [("scale_wise", mixer) for mixer in MIXERS]
HEADS += [(aggregation, "bimamba") for aggregation in AGGREGATIONS if aggregation != "scale_wise"]

RANK = """
from muse_adapter.training.distributed import gather_rows
from tests.support import head_forms
from tests.support.contrastive_steps import OBJECTIVES, small_model, three_steps
from tests.training.test_distributed import HEADS, drawn, drawn_words
from torch.nn.parallel import DistributedDataParallel

torch.manual_seed(0)
rows = torch.randn(5, 3)[:2] if rank == 0 else torch.randn(5, 3)[2:]
rows.requires_grad_()
joined = gather_rows(rows)
(joined * torch.arange(15.0).view(5, 3) * (rank + 1)).sum().backward()
result = {"joined": joined.detach(), "gradient": rows.grad}
for first, objective in [(2, "contrastive"), *((3, name) for name in OBJECTIVES)]:
    pairs = slice(0, first) if rank == 0 else slice(first, 4)
    result[f"{objective} {first}"] = three_steps(pairs, DistributedDataParallel, objective)
texts, videos = drawn()
mine, targets = (videos[:2], [1, 0, 1]) if rank == 0 else (videos[2:], [0, 0])
texts = texts[:3] if rank == 0 else texts[3:]
loss = small_model().loss(texts, mine, torch.tensor(targets))
loss.backward()
words, mask = drawn_words()
words, mask = (words[:3], mask[:3]) if rank == 0 else (words[3:, :2], mask[3:, :2])
levels = [mine.unflatten(1, (2, 6)), 2 * mine.unflatten(1, (2, 6))]
by_words = small_model("MeanMaxSim").word_loss(
    words, mask, levels, torch.ones(len(mine), 2), torch.tensor(targets)
)
result["loss of words"] = by_words.detach()
result |= {"loss": loss.detach(), "gradient of videos": videos.grad}
half = slice(2 * rank, 2 * rank + 2)
result["heads"] = [
    head_forms.three_steps(*form, half, DistributedDataParallel)[1] for form in HEADS
]
torch.save(result, f"{arguments[0]}/{rank}")
"""


def drawn() -> tuple[Tensor, Tensor]:
    """Draw five texts, and three videos with gradients."""
    generator = torch.Generator().manual_seed(0)
    texts = torch.randn(5, 12, generator=generator, dtype=torch.float64)
    videos = torch.randn(3, 12, generator=generator, dtype=torch.float64)
    return normalize(texts, dim=1), normalize(videos, dim=1).requires_grad_()


def drawn_words() -> tuple[Tensor, Tensor]:
    """Draw the words of five texts and their mask; those of the last two have two words at most."""
    generator = torch.Generator().manual_seed(1)
    words = torch.randn(5, 4, 6, generator=generator, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 1, 0], [1, 1, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0]])
    return words, mask


def test_one_process_gathers_its_own_rows() -> None:
    rows = torch.randn(2, 3)
    assert gather_rows(rows) is rows


@pytest.fixture(scope="module")
def results(
    two_processes: Callable[..., None], tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    """Return what each of the two processes computed."""
    folder = tmp_path_factory.mktemp("results")
    two_processes(RANK, str(folder), MUSE_ADAPTER_BACKEND="torch")
    return [torch.load(folder / str(rank), weights_only=True) for rank in (0, 1)]


def test_gathered_rows(results: list[dict[str, Any]]) -> None:
    """The processes have two rows and three."""
    torch.manual_seed(0)
    rows = torch.randn(5, 3)
    # The sum over both ranks of the weights of a row: once times 1 and once times 2.
    gradient = 3 * torch.arange(15.0).view(5, 3)
    assert all(torch.equal(result["joined"], rows) for result in results)
    assert torch.equal(torch.cat([result["gradient"] for result in results]), gradient)


@pytest.mark.usefixtures("torch_scan")
def test_every_objective_equals_one_process(results: list[dict[str, Any]]) -> None:
    """Equal numbers of pairs, and different ones."""
    expected = {name: three_steps(slice(0, 4), objective=name) for name in OBJECTIVES}
    assert all(result["losses"][2] < result["losses"][0] for result in expected.values())
    for result in results:
        for split in ("contrastive 2", *(f"{name} 3" for name in OBJECTIVES)):
            trained = result[split]
            for name, value in expected[split[:-2]].items():
                torch.testing.assert_close(
                    trained[name], value, **ROUNDING[torch.float64], msg=f"{split}: {name}"
                )


def test_targets(results: list[dict[str, Any]]) -> None:
    """Several texts of a video; losses of embeddings and of words."""
    texts, videos = drawn()
    loss = small_model().loss(texts, videos, torch.tensor([1, 0, 1, 2, 2]))
    loss.backward()
    frames = videos.unflatten(1, (2, 6))
    by_words = small_model("MeanMaxSim").word_loss(
        *drawn_words(), [frames, 2 * frames], torch.ones(3, 2), torch.tensor([1, 0, 1, 2, 2])
    )
    for result in results:
        assert_close(result["loss"], loss)
        assert_close(result["loss of words"], by_words)
    # Each rank has the gradients of its own videos, of the losses of both ranks.
    got = sum(result["gradient of videos"] for result in results)
    assert_close(got, 2 * videos.grad)


@pytest.mark.usefixtures("torch_scan")
@pytest.mark.filterwarnings("ignore:videos .* have no valid frame")
def test_heads_equal_one_process_on_the_joint_batch(results: list[dict[str, Any]]) -> None:
    """DDP would stop at a parameter without a gradient."""
    for form, trained in zip(HEADS, results[0]["heads"], strict=True):
        start, expected = head_forms.three_steps(*form, slice(0, 4))
        assert not torch.allclose(start["layers.0.fc.weight"], expected["layers.0.fc.weight"])
        for name, value in expected.items():
            torch.testing.assert_close(
                trained[name], value, rtol=1e-9, atol=1e-12, msg=f"{form}: {name}"
            )

"""What is trained beside the model is clipped and saved too; videos without frames are left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("sentence_transformers", reason="needs sentence-transformers")
pytest.importorskip("datasets", reason="needs datasets: muse-adapter[train]")

from examples.train.data import load_parts
from examples.train.evaluation import RetrievalEvaluator
from examples.train.model import build_model
from examples.train.objective import Objective
from examples.train.run import build_trainer, save, training_arguments
from examples.train.settings import Execution
from tests.support.training_corpus import settings_of

# They say so at each layer, beside the warning that names the video.
pytestmark = pytest.mark.filterwarnings("ignore:videos .* have no valid frame")


def build(corpus: Path, name: str = "eercf", **options: Any) -> Objective:
    torch.manual_seed(0)
    settings = settings_of(corpus, objective=name, dropout=0.0)
    return Objective(build_model(settings), name, **options)


def features_of(objective: Objective, corpus: Path, numbers: list[int]) -> list[dict[str, Any]]:
    part = load_parts(settings_of(corpus))["train"]
    texts = [part.captions[2 * i] for i in numbers]
    videos = [part.videos[i] for i in numbers]
    return [objective.model.preprocess(texts), objective.model.preprocess(videos)]


# A matrix, and the bias that CLIP lacks.
@pytest.mark.parametrize("name", ["eercf", pytest.param("sigmoid", marks=pytest.mark.slow)])
def test_all_that_is_trained_is_clipped(name: str, corpus: Path, tmp_path: Path) -> None:
    settings = settings_of(corpus, objective=name, validate=False)
    execution = Execution(output=tmp_path, progress=False)
    objective = build(corpus, name)
    arguments = training_arguments(settings, execution)
    trainer = build_trainer(settings, execution, arguments, objective, load_parts(settings))
    trained = [p for p in objective.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.grad = torch.full_like(parameter, 3.0)
    before = torch.stack([p.grad.norm() for p in trained if p.grad is not None]).norm()
    assert objective.own_parameters()
    torch.testing.assert_close(trainer._clip_grad_norm(objective.model), before)
    after = torch.stack([p.grad.norm() for p in trained if p.grad is not None]).norm()
    torch.testing.assert_close(after, torch.ones(()))


def test_saved_with_the_model(corpus: Path, tmp_path: Path) -> None:
    objective = build(corpus)
    own = objective.own_parameters()
    with torch.no_grad():
        for parameter in own.values():
            parameter.normal_()
    save(objective.model, objective, tmp_path / "best")
    loaded = Objective.load(tmp_path / "best", device="cpu")
    assert loaded.name == "eercf" and own.keys() == loaded.own_parameters().keys()
    part = load_parts(settings_of(corpus))["test"]
    scores = [
        RetrievalEvaluator(part, each, batch_size=4).scores(each.model)[0]
        for each in (objective.eval(), loaded.eval())
    ]
    torch.testing.assert_close(*scores, rtol=0.0, atol=0.0)
    with pytest.raises(ValueError, match=r"is of another objective: video_text\.scorer"):
        build(corpus, "contrastive").load_own(tmp_path / "best")


@pytest.mark.parametrize(
    "name",
    [
        *("contrastive", "eercf"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("sigmoid", "video-colbert")),
    ],
)
def test_loss_of_videos_without_frames(name: str, corpus: Path) -> None:
    """It is that of the other pairs, with their gradients."""
    objective = build(corpus, name, skip_unreadable=True).eval()
    # The others are of one length, so that both batches are padded to the same.
    all_of_them = features_of(objective, corpus, [1, 4, 7])
    all_of_them[1]["attention_mask"][1] = 0
    others = features_of(objective, corpus, [1, 7])
    results = []
    for features in (all_of_them, others):
        objective.zero_grad()
        loss = objective(features)
        loss.backward()
        grads = {n: p.grad.clone() for n, p in objective.named_parameters() if p.grad is not None}
        results.append((loss.detach(), grads))
    (loss, grads), (expected, expected_grads) = results
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    assert grads.keys() == expected_grads.keys()
    for key, gradient in expected_grads.items():
        torch.testing.assert_close(grads[key], gradient, rtol=1e-3, atol=1e-5, msg=key)


def test_evaluation_counts_videos_without_frames(corpus: Path, tmp_path: Path) -> None:
    objective = build(corpus, "contrastive").eval()
    objective.model.skip_unreadable = True
    part = load_parts(settings_of(corpus))["train"]
    whole = RetrievalEvaluator(part, objective, batch_size=4)(objective.model)
    assert (whole["videos"], whole["left_out"]) == (8, 0)
    (tmp_path / "v3.mp4").touch()
    videos = [str(tmp_path / "v3.mp4") if "v3." in video else video for video in part.videos]
    broken = type(part)(part.captions, videos, part.targets, left_out=1)
    with pytest.warns(UserWarning, match="v3"):
        found = RetrievalEvaluator(broken, objective, batch_size=4)(objective.model)
    expected = RetrievalEvaluator(part.without([part.videos[3]]), objective, batch_size=4)(
        objective.model
    )
    assert (found.pop("videos"), found.pop("left_out")) == (7, 2)
    assert found == {name: expected[name] for name in found}

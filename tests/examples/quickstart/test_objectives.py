"""Training and scoring by EERCF's objective and by MeanMaxSim."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("av", reason="the quickstart reads videos with PyAV")
pytest.importorskip("matplotlib", reason="the quickstart draws with matplotlib")
pytest.importorskip("tqdm", reason="the quickstart shows progress with tqdm")

from examples.quickstart import compare as study
from examples.quickstart.material import Material
from examples.quickstart.model import QuickstartModel, Tokenizer, build_model, build_tokenizer
from examples.quickstart.objectives import training_loss
from examples.quickstart.scoring import embed_levels, score_all, score_in_two_stages
from examples.quickstart.settings import Settings
from muse_adapter.encoders import embed_texts
from muse_adapter.training.losses import sigmoid_loss
from tests.support.quickstart import TINY
from tests.support.tolerances import assert_close


def built(objective: str, material: Material) -> tuple[QuickstartModel, Tokenizer]:
    settings = replace(TINY, objective=objective)
    tokenizer = build_tokenizer(settings, material.splits["train"].captions)
    model = build_model(settings, tokenizer)
    for parameter in model.encoder.head.parameters():  # a new head is an identity
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model, tokenizer


def test_all_candidates_are_the_full_ranking(material: Material) -> None:
    (model, tokenizer), test = built("eercf", material), material.splits["test"]
    levels = embed_levels(model, test)
    texts = embed_texts(model, tokenizer(test.captions))
    full = model.scorer.rerank(texts, **levels).detach()
    for scores in score_in_two_stages(model, tokenizer, test):
        assert_close(scores, full)


def test_candidates_come_first_in_both_directions(material: Material) -> None:
    (model, tokenizer), test = built("eercf", material), material.splits["test"]
    coarse = score_all(model, tokenizer, test)
    full, _ = score_in_two_stages(model, tokenizer, test)
    by_text, by_video = score_in_two_stages(model, tokenizer, test, candidates=3)
    for first, fine, ranked in ((coarse, full, by_text), (coarse.T, full.T, by_video.T)):
        order = ranked.argsort(1, descending=True)
        chosen = first.topk(3, 1).indices
        assert torch.equal(order[:, :3].sort(1).values, chosen.sort(1).values)
        assert_close(ranked.gather(1, chosen), fine.gather(1, chosen))
        rest = first.scatter(1, chosen, -torch.inf).argsort(1, descending=True)[:, :-3]
        assert torch.equal(order[:, 3:], rest)


def test_mean_max_sim_leaves_out_what_belongs_together(material: Material) -> None:
    (model, tokenizer), train = built("mean_max_sim", material), material.splits["train"]
    ids, frames, mask = tokenizer(train.captions[:3]), train.frames[:3], train.mask[:3]
    caption = torch.tensor([0, 1, 1])
    loss = training_loss(model.eval(), ids, frames, mask, torch.arange(3), caption)
    words, word_mask = model.encode_words(ids)
    scores = model.scorer.scores(words, *model.encode_levels(frames, mask)[:2], word_mask, mask)
    expected = torch.zeros(())
    for score in scores:
        # The pairs (1, 2) and (2, 1) are of one caption: each is a logit of no weight.
        whole, without = sigmoid_loss(model.logits(score)), model.logits(score)[[1, 2], [2, 1]]
        expected = expected + whole + torch.nn.functional.logsigmoid(-without).sum() / 3
    assert_close(loss, expected)


@pytest.mark.parametrize("objective", ["contrastive", "eercf", "mean_max_sim"])
def test_tokens_of_a_frozen_clip_stand_for_its_frames(objective: str, clip_folder: Path) -> None:
    settings = Settings(
        objective=objective, depth=1, size=16, num_frames=2, backbone=str(clip_folder)
    )
    tokenizer = build_tokenizer(settings, [])
    model = build_model(settings, tokenizer).eval()
    ids = tokenizer(["a red circle", "blue", "a small square"])
    frames, mask = torch.randint(0, 256, (3, 2, 3, 16, 16)).byte(), torch.ones(3, 2).bool()
    mask[1, 1] = False
    tokens = model.encoder.forward_tokens(model.prepare(frames), mask)
    of_frames, of_tokens = (
        training_loss(model, ids, videos, mask, torch.arange(3), torch.arange(3))
        for videos in (frames, tokens)
    )
    assert_close(of_tokens, of_frames)


def test_reranked_results_stand_apart(material: Material, tmp_path: Path) -> None:
    summary = study.compare(
        replace(TINY, steps=1),
        material,
        tmp_path,
        entries=("eercf", "mean_max_sim"),
        seeds=(0,),
        progress=False,
    )
    assert list(summary["summary"]) == ["eercf", "mean_max_sim"]
    assert list(summary["reranked"]) == ["eercf"]
    run = summary["runs"][0]
    assert set(run["reranked"]) == {"t2v", "v2t", "pair_preference"}
    column = summary["reranked"]["eercf"]["columns"]["MnR"]
    assert column["mean"] == run["reranked"]["t2v"]["MnR"]
    assert json.loads((tmp_path / "compare.json").read_text())["reranked"] == summary["reranked"]
    plain, reranked = (tmp_path / "compare.md").read_text().split("\n\n")
    assert "reranked" not in plain and plain.count("| MUSE, ") == 2
    assert reranked.count("| MUSE, ") == 1 and "best 50 reranked" in reranked


def test_unknown_objective(material: Material) -> None:
    with pytest.raises(ValueError, match="objective must be one of contrastive, eercf, mean_max"):
        built("triplet", material)

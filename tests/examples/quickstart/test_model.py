"""The model: tokenizer, towers, heads, a pretrained CLIP in their place."""

from __future__ import annotations

import operator
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("av", reason="the quickstart reads videos with PyAV")
pytest.importorskip("matplotlib", reason="the quickstart draws with matplotlib")
pytest.importorskip("tqdm", reason="the quickstart shows progress with tqdm")

from examples.quickstart.model import HEADS, build_head, build_model, build_tokenizer
from examples.quickstart.search import search
from examples.quickstart.settings import Settings
from examples.quickstart.tokenizer import WordTokenizer
from tests.support.quickstart import TINY, run_command


def test_word_tokenizer() -> None:
    tokenizer = WordTokenizer.from_captions(["A red circle.", "a blue, BIG square"])
    assert tokenizer.vocabulary == ["a", "big", "blue", "circle", "red", "square"]
    ids = tokenizer(["red zebra circle", "a a a a a a"])
    assert ids.tolist() == [[1, 6, 5, 0, 0], [1, 2, 2, 2, 2]]
    assert tokenizer.warnings("a blue square") == []
    assert tokenizer.warnings("a zebra") == ["not in the training captions, ignored: zebra"]
    assert tokenizer.warnings("a a a a a") == ["only the first 4 known words are read"]
    assert WordTokenizer(**tokenizer.state())(["big circle"]).tolist() == [[1, 3, 5, 0, 0]]


def test_towers_of_one_seed_start_equal_under_every_head() -> None:
    tokenizer = WordTokenizer.from_captions(["a red circle"])
    models = [build_model(replace(TINY, head=head), tokenizer) for head in HEADS]
    for model in models:
        for tower in ("text", "encoder.backbone"):
            state = operator.attrgetter(tower)(model).state_dict()
            wanted = operator.attrgetter(tower)(models[0]).state_dict()
            assert all(torch.equal(state[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("head", HEADS)
def test_heads_ignore_masked_frames(head: str) -> None:
    module = build_head(head, dim=16, depth=2, num_frames=5).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    tokens, mask = torch.randn(2, 5, 1 + 4, 16), torch.ones(2, 5, dtype=torch.bool)
    mask[1, 3:] = False
    other = tokens.clone()
    other[1, 3:] = 7.0
    with torch.inference_mode():
        one, two = module(tokens, mask, grid=(2, 2)), module(other, mask, grid=(2, 2))
        reverse = module(tokens.flip(1), mask, grid=(2, 2))
    torch.testing.assert_close(one, two)
    torch.testing.assert_close(one.norm(dim=-1), torch.ones(2))
    # Without positions attention is blind to order too: only a scan or a convolution brings it in.
    sees_order = head not in ("mean_pool", "attention")
    assert torch.allclose(one[0], reverse[0], atol=1e-5) is not sees_order


@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained"])
def test_pretrained_clip_as_backbone(
    trained: bool, clip_folder: Path, own: tuple[Path, Path], no_pictures: None, tmp_path: Path
) -> None:
    from transformers import CLIPModel

    videos, captions = own
    arguments = ["--videos", videos, "--captions", captions, "--folder", tmp_path, "--quiet",
                 "--steps", 2, "--num-frames", 3, "--backbone", clip_folder]  # fmt: skip
    with pytest.warns(UserWarning, match="broken.mp4"):
        assert run_command(*arguments, *(["--train-backbone"] if trained else [])) == 0
    content = torch.load(tmp_path / "search.pt", weights_only=True)
    assert content["settings"]["lr"] == 1e-4 and content["settings"]["size"] == 16
    name = "encoder.backbone.visual_projection.weight"
    assert (name in content["model"]) is trained
    assert "encoder.backbone.logit_scale" in content["model"], "it learns beside frozen towers too"
    if trained:
        before = CLIPModel.from_pretrained(clip_folder).visual_projection.weight
        assert not torch.equal(before, content["model"][name])
    hits, warnings = search(tmp_path, "a red circle")
    assert len(hits) == 5 and warnings == []
    _, warnings = search(tmp_path, "a red circle " * 10)
    assert "only the first 60 of" in warnings[0]


def test_frozen_clip_with_mean_pooling_is_clip_itself(clip_folder: Path) -> None:
    from transformers import CLIPModel

    settings = Settings(head="mean_pool", size=16, num_frames=1, backbone=str(clip_folder))
    tokenizer = build_tokenizer(settings, [])
    model = build_model(settings, tokenizer).eval()
    clip = CLIPModel.from_pretrained(clip_folder).eval()
    frames = torch.randint(0, 256, (3, 1, 3, 16, 16), dtype=torch.uint8)
    mean = torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)
    std = torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)
    ids = tokenizer(["a red circle", "blue"])
    with torch.inference_mode():
        video = model.encode_video(frames, torch.ones(3, 1, dtype=torch.bool))
        logits = model.logit_scale.exp() * model.similarity(model.encode_text(ids), video)
        wanted = clip(input_ids=ids, pixel_values=(frames[:, 0] / 255 - mean) / std)
    torch.testing.assert_close(logits, wanted.logits_per_text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("other type", "expects a CLIP (model_type 'clip')"),
        ("no weights", "expects weights in safetensors"),
        ("other size", "--size must be that of the backbone, 16, got 32"),
    ],
)
def test_backbone_folder_says_what_is_wrong(
    change: str,
    message: str,
    clip_folder: Path,
    own: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "clip"
    shutil.copytree(clip_folder, folder)
    arguments = ["--backbone", folder, "--folder", tmp_path / "output", "--quiet"]
    arguments += ["--videos", own[0], "--captions", own[1], "--num-frames", 2]
    if change == "other type":
        (folder / "config.json").write_text('{"model_type": "siglip"}')
    elif change == "no weights":
        (folder / "model.safetensors").unlink()
    else:
        arguments += ["--size", 32]
    if change == "no weights":
        with pytest.warns(UserWarning, match="broken.mp4"):
            assert run_command(*arguments) == 2
    else:
        assert run_command(*arguments) == 2
    assert message in capsys.readouterr().err

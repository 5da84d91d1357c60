"""The quickstart: training, resuming, evaluation, search, own material, the study."""

from __future__ import annotations

import io
import json
import math
import random
import shutil
import string
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

pytest.importorskip("av", reason="the quickstart reads videos with PyAV")
pytest.importorskip("matplotlib", reason="the quickstart draws with matplotlib")
pytest.importorskip("tqdm", reason="the quickstart shows progress with tqdm")

import examples.quickstart.demo as demo_module
from examples.quickstart import __main__ as command
from examples.quickstart import compare as study
from examples.quickstart import runs, train
from examples.quickstart.batches import TrainingSet, batch_of
from examples.quickstart.data import Clip, Part
from examples.quickstart.demo import demo
from examples.quickstart.evaluate import evaluate, pair_preference, videos_of
from examples.quickstart.files import read_tensors, write_tensors
from examples.quickstart.heads import HEADS, build_head
from examples.quickstart.material import Material, load_material
from examples.quickstart.report import result_table
from examples.quickstart.search import search
from examples.quickstart.settings import Settings
from examples.quickstart.text import WordTokenizer

PNG = b"\x89PNG\r\n\x1a\n"
TINY = Settings(width=16, depth=2, text_layers=1, vision_layers=1, size=16, num_frames=4,
                steps=6, batch_size=8)  # fmt: skip
OWN = ["--quiet", "--steps", "3", "--size", "16", "--num-frames", "3"]


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    """A tiny rendered corpus."""
    return load_material(
        tmp_path_factory.mktemp("corpus"),
        num_frames=TINY.num_frames,
        size=TINY.size,
        corpus_sizes={"train": 20, "validation": 4, "test": 8},
        progress=False,
    )


@pytest.fixture(scope="module")
def own(material: Material, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder of videos, one of them broken, and the CSV of their captions."""
    folder = tmp_path_factory.mktemp("own")
    lines = ["video,caption"]
    for clip in material.parts["train"].clips[:12]:
        shutil.copy(clip.path, folder)
        lines.append(f"{clip.path.name},{clip.caption}")
    first = material.parts["train"].clips[0].path.name
    lines.append(f"{first},the same video in other words")
    (folder / "broken.mp4").write_bytes(b"no video")
    lines.append("broken.mp4,something that cannot be read")
    captions = folder.parent / f"{folder.name}.csv"
    captions.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder, captions


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face CLIP with random weights and a tokenizer of single letters."""
    transformers = pytest.importorskip("transformers", reason="a CLIP folder needs transformers")
    pytest.importorskip("safetensors", reason="a CLIP folder needs safetensors")
    folder = tmp_path_factory.mktemp("clip")
    letters = string.ascii_lowercase
    end = "<|endoftext|>"
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", end]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    special = {"bos_token": "<|startoftext|>", "eos_token": end, "unk_token": end, "pad_token": end}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", **special})
    )
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]})
    )
    tower = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1,
             "num_attention_heads": 2, "projection_dim": 16}  # fmt: skip
    torch.manual_seed(0)
    config = transformers.CLIPConfig(
        text_config={**tower, "vocab_size": len(words), "max_position_embeddings": 60,
                     "bos_token_id": 52, "eos_token_id": 53, "pad_token_id": 53},
        vision_config={**tower, "image_size": 16, "patch_size": 8},
        projection_dim=16,
    )  # fmt: skip
    transformers.CLIPModel(config).save_pretrained(folder)
    return folder


def run_command(*arguments: str | Path) -> int:
    """The exit status of a command line."""
    return command.main([str(argument) for argument in arguments])


def test_default_run_leaves_results_pictures_and_an_index(
    material: Material, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = demo(TINY, material, tmp_path, began=time.perf_counter(), progress=False)

    assert json.loads((tmp_path / "results.json").read_text()) == json.loads(json.dumps(summary))
    assert summary["chance_r1"] == pytest.approx(100 / 8)
    assert set(summary["results"]) == {"muse", "mean_pool"}
    for result in summary["results"].values():
        assert set(result["t2v"]) == set(result["v2t"]) == {"R@1", "R@5", "R@10", "MdR", "MnR"}
        assert result["t2v"]["R@10"] == 100  # there are 8 clips
        assert len(result["losses"]) == TINY.steps
        assert 0 <= result["pair_preference"] <= 100
    assert summary["results"]["mean_pool"]["parameters"]["head"] == 0
    assert summary["results"]["muse"]["parameters"]["head"] > 0
    for picture in ("contact_sheet.png", "curves.png"):
        assert (tmp_path / picture).read_bytes().startswith(PNG)
    screen = capsys.readouterr().out
    assert "text to video" in screen and "time reversal" in screen

    capsys.readouterr()
    query = material.parts["train"].clips[3].caption
    assert run_command("search", "--folder", tmp_path, f"{query} zebra") == 0
    output = capsys.readouterr()
    assert "ignored: zebra" in output.err
    shown = [line for line in output.out.splitlines() if line[:1].isdigit()]
    scores = [float(line.split()[1]) for line in shown]
    assert len(scores) == 5 and scores == sorted(scores, reverse=True)
    captions = {clip.caption for clip in material.parts["test"].clips}
    assert {line.split(maxsplit=2)[2] for line in shown} <= captions

    assert run_command("search", "zebra", "--folder", tmp_path) == 2
    assert "no word of 'zebra' occurs in the training captions" in capsys.readouterr().err


def test_slow_backend_announces_the_expected_time(
    material: Material,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MUSE_ADAPTER_BACKEND", "torch")
    monkeypatch.setattr(demo_module, "seconds_per_step", lambda *_: 90.0)
    summary = demo(
        replace(TINY, steps=1), material, tmp_path, began=time.perf_counter(), progress=False
    )
    assert "expected time of the two trainings: about 3 min" in capsys.readouterr().out
    assert summary["environment"]["scan_backend"] == "torch"


def interrupt_in_step(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Let the training step of this number, counted over all runs, be interrupted."""
    original, count = train.train_step, 0

    def step(*arguments: object) -> float:
        nonlocal count
        count += 1
        if count == number:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(train, "train_step", step)


@pytest.mark.parametrize("head", ["muse", "mean_pool", "temporal_transformer"])
def test_resumed_run_equals_the_uninterrupted_one_bit_for_bit(
    head: str, material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(TINY, head=head)
    monkeypatch.setattr(train, "CHECKPOINT_EVERY", 2)
    monkeypatch.setattr(train, "VALIDATE_EVERY", 3)
    parts = material.parts["train"], material.parts["validation"]
    straight = train.train(settings, *parts, tmp_path / "straight.pt", progress=False)
    with monkeypatch.context() as patch:
        interrupt_in_step(patch, 6)  # two steps behind the last checkpoint but one
        with pytest.raises(KeyboardInterrupt):
            train.train(settings, *parts, tmp_path / "resumed.pt", progress=False)
    torch.manual_seed(123)  # another process would have another random state
    resumed = train.train(settings, *parts, tmp_path / "resumed.pt", progress=False)

    assert resumed.losses == straight.losses
    assert resumed.validation == straight.validation
    wanted, state = straight.model.state_dict(), resumed.model.state_dict()
    assert wanted.keys() == state.keys()
    assert [name for name in wanted if not torch.equal(wanted[name], state[name])] == []
    initial = runs.build_model(settings, straight.tokenizer).state_dict()
    assert any(not torch.equal(initial[name], state[name]) for name in state)


@pytest.mark.slow
def test_training_learns_order_too(tmp_path: Path) -> None:
    """Twenty clips by heart: each caption finds its clip, beside the reversal of that clip."""
    settings = Settings(steps=100, batch_size=20)
    sizes = {"train": 20, "validation": 4, "test": 4}
    material = load_material(tmp_path, num_frames=8, size=32, corpus_sizes=sizes, progress=False)
    part = material.parts["train"]
    run = train.train(
        settings, part, material.parts["validation"], tmp_path / "checkpoint.pt", progress=False
    )
    result = evaluate(run.model, run.tokenizer, part)
    assert result["t2v"]["R@1"] >= 95 and result["v2t"]["R@1"] >= 95, result
    assert result["pair_preference"] >= 95, result


def test_towers_of_one_seed_start_equal_under_every_head(material: Material) -> None:
    tokenizer = WordTokenizer.from_captions(["a red circle"])
    models = [runs.build_model(replace(TINY, head=head), tokenizer) for head in HEADS]
    for model in models:
        assert torch.equal(model.text.words.weight, models[0].text.words.weight)
        assert torch.equal(model.video.backbone.embed.weight, models[0].video.backbone.embed.weight)


def test_study_goes_on_where_it_was_interrupted(
    material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(TINY, steps=3)
    options = {"heads": ("mean_pool", "conv"), "seeds": (0, 1), "progress": False}
    with monkeypatch.context() as patch:
        interrupt_in_step(patch, 5)  # in the second run
        with pytest.raises(KeyboardInterrupt):
            study.compare(settings, material, tmp_path, **options)
    written = json.loads((tmp_path / "compare.json").read_text())
    assert [(run["head"], run["seed"]) for run in written["runs"]] == [("mean_pool", 0)]

    started = []
    original = study.run
    monkeypatch.setattr(
        study, "run", lambda s, *a, **k: started.append((s.head, s.seed)) or original(s, *a, **k)
    )
    summary = study.compare(settings, material, tmp_path, **options)
    assert started == [("conv", 0), ("mean_pool", 1), ("conv", 1)]
    assert study.compare(settings, material, tmp_path, **options)["runs"] == summary["runs"]
    assert len(started) == 3

    values = [run["t2v"]["MnR"] for run in summary["runs"] if run["head"] == "conv"]
    column = summary["summary"]["conv"]["columns"]["MnR"]
    assert column["mean"] == pytest.approx(sum(values) / 2)
    assert column["spread"] == pytest.approx(abs(values[0] - values[1]) / math.sqrt(2))
    assert all("losses" not in run for run in summary["runs"])
    table = (tmp_path / "compare.md").read_text().splitlines()
    assert len(table) == 4 and table[3].startswith("| MUSE, convolution | 2 | ")
    assert table[3].count("±") == len(study.COLUMNS)


def test_own_material_is_trained_on_and_searched(
    own: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    videos, captions = own
    arguments = ["--videos", videos, "--captions", captions, "--folder", tmp_path, *OWN]
    with pytest.warns(UserWarning, match="broken.mp4"):
        assert run_command(*arguments) == 0
    assert "clips: " in capsys.readouterr().out
    hits, warnings = search(tmp_path, "circle square", count=100)
    assert len(hits) == 12  # all parts, each video once
    assert {Path(hit.path).parent for hit in hits} == {videos}
    assert warnings == []


@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained"])
def test_pretrained_clip_as_backbone(
    trained: bool, clip_folder: Path, own: tuple[Path, Path], tmp_path: Path
) -> None:
    from transformers import CLIPModel

    videos, captions = own
    arguments = ["--videos", videos, "--captions", captions, "--folder", tmp_path, "--quiet",
                 "--steps", 2, "--num-frames", 3, "--backbone", clip_folder]  # fmt: skip
    with pytest.warns(UserWarning, match="broken.mp4"):
        assert run_command(*arguments, *(["--train-backbone"] if trained else [])) == 0
    content = torch.load(tmp_path / "search.pt", weights_only=True)
    assert content["settings"]["lr"] == 1e-4 and content["settings"]["size"] == 16
    name = "video.backbone.visual_projection.weight"
    assert (name in content["model"]) is trained
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
    tokenizer = runs.build_tokenizer(settings, [])
    model = runs.build_model(settings, tokenizer).eval()
    clip = CLIPModel.from_pretrained(clip_folder).eval()
    frames = torch.randint(0, 256, (3, 1, 3, 16, 16), dtype=torch.uint8)
    mean = torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)
    std = torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)
    ids = tokenizer(["a red circle", "blue"])
    with torch.inference_mode():
        logits = model(ids, frames, torch.ones(3, 1, dtype=torch.bool))
        wanted = clip(input_ids=ids, pixel_values=(frames[:, 0] / 255 - mean) / std)
    torch.testing.assert_close(logits, wanted.logits_per_text)


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


def test_contrastive_loss_leaves_out_what_belongs_together() -> None:
    logits = torch.tensor([[1.0, 5.0, 0.0], [2.0, 1.0, 0.5], [0.0, 3.0, 2.0]])
    equal = torch.eye(3, dtype=torch.bool)
    equal[0, 1] = equal[1, 0] = True
    rows = -torch.tensor([
        math.log(math.e / (math.e + 1)),
        math.log(math.exp(1) / (math.exp(1) + math.exp(0.5))),
        math.log(math.exp(2) / (1 + math.exp(3) + math.exp(2))),
    ])  # fmt: skip
    columns = -torch.tensor([
        math.log(math.e / (math.e + 1)),
        math.log(math.exp(1) / (math.exp(1) + math.exp(3))),
        math.log(math.exp(2) / (1 + math.exp(0.5) + math.exp(2))),
    ])  # fmt: skip
    wanted = 0.5 * (rows.mean() + columns.mean())
    torch.testing.assert_close(train.contrastive_loss(logits, equal), wanted)


def test_each_epoch_is_another_order_of_all_clips() -> None:
    settings = Settings(batch_size=4, seed=3)
    groups = [[0, 1], [2, 3], [4, 5], [6, 7], [8], [9], [10], [11]]
    steps = [batch_of(step, groups, settings) for step in range(6)]
    epochs = [torch.cat(steps[:3]), torch.cat(steps[3:])]
    for epoch in epochs:
        assert sorted(epoch.tolist()) == list(range(12))
    assert not torch.equal(*epochs)
    assert len(batch_of(0, [[0], [1], [2]], settings)) == 3  # fewer clips than a batch


def test_a_clip_and_its_reversal_share_a_batch() -> None:
    clips = [("a", "B"), ("x", None), ("b", "a"), ("B", "a"), ("y", "not here"), ("z", "z")]
    part = part_of(*[(id, f"{id}.mp4", reversal) for id, reversal in clips])
    groups = TrainingSet.of(part, WordTokenizer([], max_words=4)).groups
    assert groups == [[0, 3], [1], [2], [4], [5]]
    pairs = [[2 * i, 2 * i + 1] for i in range(10)]
    for step in range(20):
        batch = set(batch_of(step, pairs, Settings(batch_size=4)).tolist())
        assert len(batch) == 4 and all((row ^ 1) in batch for row in batch)


def test_learning_rate_rises_then_falls() -> None:
    rates = [train.learning_rate(step, Settings(steps=100)) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[10] == 1 and rates[55] == pytest.approx(0.5) and rates[99] < 1e-3
    assert all(a > b for a, b in pairwise(rates[10:]))


def part_of(*clips: tuple[str, str, str | None]) -> Part:
    """A part without frames from (id, video, reversal)."""
    listed = [Clip(id, Path(video), f"caption of {id}", reversal) for id, video, reversal in clips]
    return Part(listed, torch.zeros(len(clips)), torch.zeros(len(clips)))


@pytest.mark.parametrize(
    ("similarity", "percent"),
    [
        ([[0.9, 0.1, 0.0], [0.2, 0.3, 0.9], [0.0, 0.0, 0.0]], 100.0),
        ([[0.1, 0.9, 0.0], [0.2, 0.3, 0.9], [0.0, 0.0, 0.0]], 50.0),
        ([[0.5, 0.5, 0.0], [0.3, 0.3, 0.9], [0.0, 0.0, 0.0]], 50.0),
        ([[0.1, 0.9, 0.0], [0.4, 0.3, 0.9], [0.0, 0.0, 0.0]], 0.0),
    ],
    ids=["both", "one", "ties", "none"],
)
def test_pair_preference_by_hand(similarity: list[list[float]], percent: float) -> None:
    part = part_of(("a", "1", "b"), ("b", "2", "a"), ("c", "3", None))
    assert pair_preference(torch.tensor(similarity), torch.arange(3), part) == percent


def test_pair_preference_without_pairs_is_none() -> None:
    part = part_of(("a", "1", None), ("b", "2", None))
    assert pair_preference(torch.eye(2), torch.arange(2), part) is None


def test_videos_with_several_captions_stand_once() -> None:
    rows, targets = videos_of(part_of(("a", "1", None), ("b", "2", None), ("c", "1", None)))
    assert rows.tolist() == [0, 1] and targets.tolist() == [0, 1, 0]


def test_word_tokenizer() -> None:
    tokenizer = WordTokenizer.from_captions(["A red circle.", "a blue, BIG square"])
    assert tokenizer.vocabulary == ["a", "big", "blue", "circle", "red", "square"]
    ids = tokenizer(["red zebra circle", "a a a a a a"])
    assert ids.tolist() == [[1, 6, 5, 0, 0], [1, 2, 2, 2, 2]]
    assert tokenizer.warnings("a blue square") == []
    assert tokenizer.warnings("a zebra") == ["not in the training captions, ignored: zebra"]
    assert tokenizer.warnings("a a a a a") == ["only the first 4 known words are read"]
    assert WordTokenizer(**tokenizer.state())(["big circle"]).tolist() == [[1, 3, 5, 0, 0]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search"], "search expects words"),
        (["search", "a red circle"], "nothing was trained in"),
        (["--videos", "somewhere"], "--videos and --captions belong together"),
        (["--captions", "some.csv"], "--videos and --captions belong together"),
        (["--videos", "nowhere", "--captions", "no.csv"], "no such file of captions: no.csv"),
        (["--train-backbone"], "--train-backbone needs --backbone FOLDER"),
        (["--backbone", "nowhere"], "expects the folder of a Hugging Face CLIP"),
        (["--steps", "0"], "steps must be at least 1, got 0"),
        (["--size", "30"], "size must be a multiple of 8, got 30"),
        (["--num-frames", "0"], "num_frames must be at least 1, got 0"),
        (["--threads", "0"], "--threads must be at least 1, got 0"),
        (["--device", "tpu"], "--device must be cpu or cuda, got tpu"),
        (["--compare", "--seed", "1"], "--compare runs the seeds 0, 1 and 2, got --seed 1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_command_line_says_what_is_wrong(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_command(*arguments) == 2
    assert message in capsys.readouterr().err


def test_a_device_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run_command("--device", "cuda:1") == 2
    assert "--device cuda:1 is not there: torch finds no CUDA device" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04 cut off", b"junk"])
def test_a_damaged_file_is_named(
    content: bytes, tmp_path: Path, material: Material, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "search.pt").write_bytes(content)
    assert run_command("search", "a red circle", "--folder", tmp_path) == 2
    message = f"{tmp_path / 'search.pt'} is damaged, delete it and start again"
    assert message in capsys.readouterr().err

    checkpoint = runs.run_folder(tmp_path, TINY, material) / "checkpoint.pt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(content)
    with pytest.raises(ValueError, match=r"checkpoint\.pt is damaged, delete it and start again"):
        runs.run(TINY, material, tmp_path, progress=False)
    assert checkpoint.read_bytes() == content

    result = checkpoint.with_name("result.json")
    result.write_bytes(content)
    with pytest.raises(ValueError, match=r"result\.json is damaged"):
        runs.finished(TINY, material, tmp_path)


# Torch says so of a pickle whose first bytes were changed, before it refuses it.
@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")
def test_any_damage_of_a_kept_file_is_named(tmp_path: Path) -> None:
    """Changed, cut, or another kind of archive or pickle: it is read, or it is called damaged."""
    path = tmp_path / "kept.pt"
    content = {"numbers": torch.arange(5.0), "names": ["a", "b"], "settings": {"steps": 3}}
    write_tensors(path, content)
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    (pickled,) = (name for name in parts if name.endswith("data.pkl"))
    generator = random.Random(0)

    def changed(given: bytes) -> bytes:
        given = bytearray(given)
        for _ in range(generator.choice([1, 2, 8])):
            given[generator.randrange(len(given))] = generator.randrange(256)
        return bytes(given)

    def archive_of(content: bytes) -> bytes:
        """The archive with another pickle, whose checksum is right."""
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            for name, part in parts.items():
                archive.writestr(name, content if name == pickled else part)
        return file.getvalue()

    damaged = [
        *(whole[:length] for length in range(0, len(whole), 50)),
        *(parts[pickled][:length] for length in range(0, len(parts[pickled]), 5)),
        *(archive_of(parts[pickled][:length]) for length in range(0, len(parts[pickled]) - 1, 5)),
    ]
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"is damaged, delete it and start again$"):
            read_tensors(path)
    refused = 0
    for _ in range(400):
        path.write_bytes(archive_of(changed(parts[pickled])))
        try:
            read_tensors(path)  # where a number or a name was changed, nothing shows it
        except ValueError as error:
            assert "is damaged, delete it and start again" in str(error)
            refused += 1
    assert refused > 200


def test_progress_bars_are_named_with_their_install_line() -> None:
    code = "import sys; sys.modules['tqdm'] = None; import examples.quickstart"
    root = Path(__file__).parents[2]
    run = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert "ImportError: the quickstart needs tqdm: pip install 'muse-adapter[bench]'" in run.stderr


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


def test_interrupt_says_how_to_go_on(
    own: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    interrupt_in_step(monkeypatch, 2)
    arguments = ["--videos", own[0], "--captions", own[1], "--folder", tmp_path, *OWN]
    with pytest.warns(UserWarning, match="broken.mp4"):
        assert run_command(*arguments) == 130
    assert "the same command goes on" in capsys.readouterr().err


def test_other_settings_or_clips_are_another_run(material: Material) -> None:
    names = {
        TINY.run_name("clips"),
        TINY.run_name("other clips"),
        replace(TINY, steps=7).run_name("clips"),
        replace(TINY, seed=1).run_name("clips"),
        replace(TINY, head="conv").run_name("clips"),
    }
    assert len(names) == 5


def test_the_table_in_the_readme_is_the_one_of_the_kept_study() -> None:
    root = Path(__file__).parents[2]
    kept = root / "examples" / "quickstart" / "results"
    figures = json.loads((kept / "compare.json").read_text(encoding="utf-8"))
    text = (root / "README.md").read_text(encoding="utf-8")
    assert study.markdown_table(figures["summary"]) in text
    for runs_of in figures["summary"].values():
        assert set(runs_of["seeds"]) <= {0, 1, 2}
    assert set(figures["summary"]) == set(HEADS)
    assert figures["summary"]["muse"]["columns"]["T2V R@1"]["mean"] >= 50 * figures["chance_r1"]
    default = json.loads((kept / "results.json").read_text(encoding="utf-8"))
    assert result_table(default["results"]) in text
    assert f"took {default['seconds']:.0f} s and\n{default['peak_gib']:.1f} GiB" in text
    assert default["seconds"] < 6 * 60 and default["peak_gib"] < 4
    assert (kept / "contact_sheet.png").read_bytes().startswith(PNG)

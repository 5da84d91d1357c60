"""The stages on the disk, the default run and the study, as a whole."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("av", reason="the videos are written and read with PyAV")
pytest.importorskip("matplotlib", reason="the contact sheet is drawn with matplotlib")
pytest.importorskip("tqdm", reason="the example shows progress with tqdm")

from examples.moments import corpus, material, runs, train
from examples.moments.compare import compare, markdown_table
from examples.moments.confirm import confirm
from examples.moments.corpus import draw, path_of
from examples.moments.demo import demo
from examples.moments.material import Material, load_material
from examples.moments.models import ClipModel
from examples.moments.moments import sample_videos
from examples.moments.runs import measure, run
from examples.moments.search import index_videos
from examples.moments.settings import RunSettings
from examples.quickstart.files import read_tensors, write_tensors
from muse_adapter.data.video import read_frames
from tests.support.moments import CORPUS, RUN, TOWER

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("torch_scan")]
PNG = b"\x89PNG\r\n\x1a\n"
Prepared = tuple[Path, Material]


@pytest.fixture(autouse=True)
def render_in_this_process(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    """Render without processes, each of which imports torch for a second or two.

    `prepared` was rendered in processes, and `test_corpus` tests them.
    """
    pool = SimpleNamespace(map=lambda function, items, chunksize: map(function, items))
    monkeypatch.setattr(corpus, "ProcessPoolExecutor", lambda *_: nullcontext(pool))


def test_files_hold_what_was_drawn(prepared: Prepared) -> None:
    folder, made = prepared
    video = made.videos["test"][0]
    frames, _ = read_frames(path_of(video, folder / "videos"), video.num_frames)
    drawn = torch.from_numpy(draw(video)).permute(0, 3, 1, 2)
    assert frames.shape == drawn.shape
    assert (frames.float() - drawn.float()).abs().mean() < 6  # what the codec loses
    listed = json.loads((folder / "videos" / "test.json").read_text())
    assert [entry["video"] for entry in listed] == [
        path_of(video, folder).name for video in made.videos["test"]
    ]
    for entry, video in zip(listed, made.videos["test"], strict=True):
        assert [m["sentence"] for m in entry["moments"]] == [m.sentence for m in video.moments]
        assert entry["moments"][-1]["end"] == video.num_frames / 8
    features = made.features["test"]
    assert features.frame_mask.sum(1).tolist() == [v.num_frames for v in made.videos["test"]]


def test_stages_are_taken_up_from_the_disk(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, made = prepared

    def never(*_: object, **__: object) -> None:
        raise AssertionError("done already")

    for module, name in ((corpus, "_make"), (material, "train_tower")):
        monkeypatch.setattr(module, name, never)
    again = load_material(CORPUS, TOWER, folder, progress=False)
    assert again.fingerprint == made.fingerprint
    for name, features in made.features.items():
        for key, value in vars(features).items():
            assert value is None or torch.equal(value, getattr(again.features[name], key))
    assert sample_videos("test", CORPUS.test, CORPUS.test_seed) == again.videos["test"]


def test_damaged_tower_is_named(prepared: Prepared, tmp_path: Path) -> None:
    folder, _ = prepared
    (tmp_path / "videos").symlink_to(folder / "videos")
    tower = next(folder.glob("tower-*.pt"))
    (tmp_path / tower.name).write_bytes(tower.read_bytes()[:100])
    with pytest.raises(ValueError, match=rf"{tower.name} is damaged, delete it and start again"):
        load_material(CORPUS, TOWER, tmp_path, progress=False)


def test_features_are_of_the_tower_beside_them(prepared: Prepared, tmp_path: Path) -> None:
    folder, made = prepared
    for path in folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    tower = next(tmp_path.glob("tower-*.pt"))
    content = read_tensors(tower, ["tower", "losses"])
    content["tower"]["images.class_token"] += 1
    tower.unlink()
    write_tensors(tower, content)
    other = load_material(CORPUS, TOWER, tmp_path, progress=False)
    assert not torch.equal(other.features["test"].frames, made.features["test"].frames)
    assert other.fingerprint != made.fingerprint


def test_default_run_leaves_results_and_a_picture(
    prepared: Prepared, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = demo(RUN, prepared[1], tmp_path, began=time.perf_counter(), progress=False)
    assert json.loads((tmp_path / "results.json").read_text()) == json.loads(json.dumps(summary))
    assert list(summary["results"]) == ["max_frames", "windows", "mamfusion"]
    for result in summary["results"].values():
        for kind in ("all", "static", "ordered"):
            assert result[kind]["R@10"] == 100  # there are 4 videos
        assert 0 <= result["order_right"] <= 100
    assert (tmp_path / "contact_sheet.png").read_bytes().startswith(PNG)
    assert "MamFusion, clip branch" in capsys.readouterr().out


def test_the_index_scores_as_the_model(prepared: Prepared, tmp_path: Path) -> None:
    made = prepared[1]
    videos, features = made.videos["test"], made.features["test"]
    trained, _ = run(RUN, made, tmp_path, progress=False)
    model = trained.model
    assert isinstance(model, ClipModel)
    with torch.inference_mode():
        expected = model.score(features)
    spans = {
        str(path_of(video, made.folder)): model.model.clip_spans(video.num_frames).tolist()
        for video in videos
    }
    moments = [moment for video in videos for moment in video.moments]
    for _ in range(2):  # the second index takes the place of the first
        with index_videos(tmp_path, model, made) as index:
            assert (len(index), index.segments) == (len(videos), sum(map(len, spans.values())))
            for row, moment in enumerate(moments):
                hits = {hit.video: hit for hit in index.search(moment.sentence, k=len(videos))}
                found = [hits[video].score for video in spans]
                # The vectors are kept in half precision.
                assert found == pytest.approx(expected[row].tolist(), abs=2e-3)
                for video, hit in hits.items():
                    frames = [round(8 * hit.start, 6), round(8 * hit.end - 1, 6)]
                    assert frames in spans[video]


def test_training_goes_on_to_the_same_bits(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = prepared[1]
    monkeypatch.setattr(train, "CHECKPOINT_EVERY", 1)
    whole, result = run(RUN, made, tmp_path / "whole", progress=False)

    interrupted = _interrupt(3, train.batch_of)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train, "batch_of", interrupted)
        run(RUN, made, tmp_path / "parts", progress=False)
    parts, again = run(RUN, made, tmp_path / "parts", progress=False)
    assert len(parts.losses) == 4 and parts.losses == whole.losses
    assert again["test"] == result["test"]
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, parts.model.state_dict()[name]), name


def test_study_runs_methods_once(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = prepared[1]
    methods = ("published", "muse", "fused")
    fields = {"epochs": 1, "batch_videos": 4, "hidden": 16, "num_clips": 8}
    options = {
        "methods": methods,
        "rates": (1e-3, 3e-3),
        "seeds": (0, 1),
        "progress": False,
        **fields,
    }
    summary = compare(made, tmp_path, **options)
    assert {(one["method"], one["seed"]) for one in summary["runs"]} == {
        (method, seed) for method in methods for seed in (0, 1)
    }
    for method in methods:
        rates = summary["rates"][method]
        best = max(rates, key=rates.__getitem__)
        assert {one["lr"] for one in summary["runs"] if one["method"] == method} == {float(best)}
    table = markdown_table(summary)
    assert (tmp_path / "compare.md").read_text() == table
    assert len(table.splitlines()) == 2 + 2 + len(methods)

    monkeypatch.setattr(runs, "train", lambda *_, **__: pytest.fail("done already"))
    again = compare(made, tmp_path, **options)
    assert again["runs"] == json.loads(json.dumps(summary["runs"]))


def test_study_is_confirmed_on_fresh_videos(prepared: Prepared, tmp_path: Path) -> None:
    folder, made = prepared
    study = tmp_path / "study"
    shutil.copytree(folder, study)
    with pytest.raises(ValueError, match=r"there is no study in .*: run --compare first"):
        confirm(CORPUS, TOWER, study, 7, progress=False)
    fields = {"epochs": 1, "batch_videos": 4, "hidden": 16, "num_clips": 8}
    compared = compare(
        made, study, methods=("mamba", "muse"), rates=(3e-3,), seeds=(0,), progress=False, **fields
    )
    with pytest.raises(ValueError, match="seed 1 is that of the study's own test videos"):
        confirm(CORPUS, TOWER, study, CORPUS.test_seed, progress=False)

    summary = confirm(CORPUS, TOWER, study, 7, progress=False)
    assert json.loads((study / "confirm.json").read_text()) == json.loads(json.dumps(summary))
    assert (study / "confirm.md").read_text() == markdown_table(summary)
    assert [one["method"] for one in summary["runs"]] == ["mamba", "muse"]
    listed = [(place / "videos" / "test.json").read_text() for place in (folder, study)]
    assert listed[0] == listed[1]  # of the study's own test videos
    assert summary["untrained"] != compared["untrained"]
    # The trained model itself, on videos that were drawn anew.
    fresh = load_material(replace(CORPUS, test_seed=7), TOWER, study, progress=False)
    assert fresh.videos["test"] == sample_videos("test", CORPUS.test, 7)
    trained, result = run(
        RunSettings.of("mamba", **fields), made, study, progress=False
    )  # taken up, finished
    assert result["test"] == compared["runs"][0]["test"]
    assert summary["runs"][0]["test"] == measure(fresh, "test", trained.model.score)

    checkpoint = next((study / "runs").glob("mamba-*")) / "checkpoint.pt"
    checkpoint.unlink()
    with pytest.raises(ValueError, match=r"the study's checkpoint .*checkpoint.pt is missing"):
        confirm(CORPUS, TOWER, study, 7, progress=False)


def test_other_settings_are_another_run(prepared: Prepared) -> None:
    from examples.moments.runs import run_folder

    changed = [RUN, replace(RUN, lr=1e-4), replace(RUN, seed=1), replace(RUN, method="mamba")]
    folders = {run_folder(Path(), settings, prepared[1]) for settings in changed}
    assert len(folders) == 4


def _interrupt(call: int, function: Callable) -> Callable:
    """Let a function be interrupted at its call of this number."""
    count = 0

    def counted(*arguments: object) -> object:
        nonlocal count
        count += 1
        if count == call:
            raise KeyboardInterrupt
        return function(*arguments)

    return counted

"""Tokens of a frozen model are kept by the names of videos, and refused where they are others."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("sentence_transformers", reason="needs sentence-transformers")
pytest.importorskip("datasets", reason="needs datasets: muse-adapter[train]")

from examples.train.folder import SETTINGS_FILE
from examples.train.model import build_model
from examples.train.run import read_tokens, run
from examples.train.settings import Execution, RunSettings
from examples.train.token_list import LIST_FILE
from examples.train.tokens import TokenFolder
from muse_adapter import CachedTokens, files
from tests.support.training_corpus import settings_of


def settings(corpus: Path, **fields: Any) -> RunSettings:
    return settings_of(corpus, **{"freeze": True, "cache_dtype": "float32", **fields})


def videos_of(corpus: Path) -> list[str]:
    return sorted(map(str, (corpus / "videos").iterdir()))[:4]


def store(
    corpus: Path,
    folder: Path,
    videos: list[str] | None = None,
    root: str | None = None,
    **fields: Any,
) -> Any:
    """Return a model that reads from the folder, after writing what is missing."""
    tokens = folder_of(corpus, folder, videos, root, **fields)
    tokens.check()
    model: Any = tokens.model
    model.read_from(tokens.store(progress=False))
    return model


def folder_of(
    corpus: Path,
    folder: Path,
    videos: list[str] | None = None,
    root: str | None = None,
    **fields: Any,
) -> TokenFolder:
    torch.manual_seed(0)
    wanted = settings(corpus, **fields)
    return TokenFolder(
        folder,
        build_model(wanted).eval(),
        videos_of(corpus) if videos is None else videos,
        root or wanted.videos,
        getattr(torch, str(wanted.cache_dtype)),
    )


@pytest.fixture(scope="module")
def kept(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the tokens of four videos."""
    folder = tmp_path_factory.mktemp("kept") / "tokens"
    store(corpus, folder)
    return folder


def test_the_patch_grid_is_kept(corpus: Path, kept: Path) -> None:
    frames = build_model(settings(corpus)).preprocess(videos_of(corpus)[:1])["pixel_values_videos"]
    grid = build_model(settings(corpus))[0].encoder.grid_of(frames)
    assert grid is not None
    model = store(corpus, kept)
    tokens = model.preprocess(videos_of(corpus)[:1])["pixel_values_videos"]
    assert model[0].encoder.grid_of(tokens) == CachedTokens(kept).grid == grid


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float16", marks=pytest.mark.slow)])
def test_features_are_those_of_the_videos(dtype: str, corpus: Path, tmp_path: Path) -> None:
    model = store(corpus, tmp_path / "tokens", cache_dtype=dtype)
    videos = list(reversed(videos_of(corpus)))  # of 3, 4, and 5 frames
    from_tokens = model(model.preprocess(videos), output_levels=True)
    model.stored = None
    from_frames = model(model.preprocess(videos), output_levels=True)
    assert from_tokens.keys() == from_frames.keys()
    mask = from_frames["attention_mask"]
    torch.testing.assert_close(from_tokens["attention_mask"], mask)
    tolerance = {"float32": 1e-6, "float16": 5e-3}[dtype]  # tokens below 8 have steps of 2**-8
    for name in ("sentence_embedding", "cls_embeddings", "patch_embeddings"):
        difference = from_tokens[name] - from_frames[name]
        if name != "sentence_embedding":
            difference = difference[mask.bool()]
        assert difference.abs().max() < tolerance, name


def test_the_size_is_said_first_and_then_the_folder_is_read(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "tokens"
    store(corpus, folder)
    written = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    said = capsys.readouterr().out
    assert "4 of 4 videos, up to 4 frames of " in said and " on the disk, where " in said
    model = store(corpus, folder, videos_of(corpus)[1:3])  # some of them will do
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == written
    assert capsys.readouterr().out == ""
    assert model.preprocess(videos_of(corpus)[1:3])["pixel_values_videos"].ndim == 4


def test_videos_may_move(corpus: Path, kept: Path, tmp_path: Path) -> None:
    moved = tmp_path / "videos"
    shutil.copytree(corpus / "videos", moved)
    videos = sorted(map(str, moved.iterdir()))[:4]
    model = store(corpus, kept, videos, root=str(moved))
    assert model.preprocess(videos)["pixel_values_videos"].ndim == 4


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"frames": 3}, r"holds tokens with frames 4 and not 3: use another --cache-tokens"),
        ({"fps": 4.0}, r"with fps 8\.0 and not 4\.0"),
        ({"cache_dtype": "float16"}, "with dtype float32 and not float16"),
    ],
)
def test_other_tokens_are_refused(
    fields: dict[str, Any], message: str, corpus: Path, kept: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        store(corpus, kept, **fields)


def other_clip(corpus: Path, folder: Path, change: Any) -> str:
    shutil.copytree(corpus / "clip", folder)
    change(folder)
    return str(folder)


def test_another_model_is_refused(corpus: Path, kept: Path, tmp_path: Path) -> None:
    def change(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        weights = load_file(folder / "model.safetensors")
        weights["visual_projection.weight"] *= 1.1
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    model = other_clip(corpus, tmp_path / "clip", change)
    with pytest.raises(ValueError, match="tokens: the tokens in the folder come from another enc"):
        store(corpus, kept, model=model)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("image_mean", [0.1, 0.2, 0.3]),
        ("crop_size", {"height": 32, "width": 32}),
        ("do_normalize", False),
    ],
)
def test_other_pixels_are_refused(
    name: str, value: Any, corpus: Path, kept: Path, tmp_path: Path
) -> None:
    def change(folder: Path) -> None:
        (path,) = folder.glob("*processor_config.json")
        content = json.loads(path.read_text())
        content.get("image_processor", content)[name] = value
        path.write_text(json.dumps(content))

    model = other_clip(corpus, tmp_path / "clip", change)
    expected = re.escape(f"'{name}': {value}")
    with pytest.raises(ValueError, match=rf"with pixels .* and not .*{expected}"):
        store(corpus, kept, model=model)


def test_videos_that_are_not_kept_are_named(corpus: Path, kept: Path) -> None:
    videos = sorted(map(str, (corpus / "videos").iterdir()))[:6]
    with pytest.raises(ValueError, match="tokens of 4 videos, but not of 2, the first v2"):
        store(corpus, kept, videos)


def test_videos_that_were_replaced_are_named(corpus: Path, kept: Path, tmp_path: Path) -> None:
    """They have the names of videos whose tokens are kept."""
    moved = tmp_path / "videos"
    shutil.copytree(corpus / "videos", moved)
    shutil.copyfile(moved / "v0.mp4", moved / "v1.mp4")
    videos = [str(moved / Path(video).name) for video in videos_of(corpus)]
    with pytest.raises(
        ValueError, match=r"other files, by their sizes, for 1 videos: v1\.mp4; use"
    ):
        folder_of(corpus, kept, videos, root=str(moved)).check()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "[]",
            r"videos\.json is damaged \(it must be an object, got list\): use another --cache-t",
        ),
        ("{}", r"videos\.json is damaged \(it lists no videos\)"),
        (None, r"holds the tokens of 4 videos, but videos\.json lists 3: use another"),
    ],
    ids=["list", "empty", "one less"],
)
def test_a_damaged_list(
    content: str | None, message: str, corpus: Path, kept: Path, tmp_path: Path
) -> None:
    shutil.copytree(kept, tmp_path / "tokens")
    path = tmp_path / "tokens" / LIST_FILE
    if content is None:
        listed = json.loads(path.read_text())
        listed["videos"].pop("v11.mp4")
        content = json.dumps(listed)
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        folder_of(corpus, path.parent, videos_of(corpus)[:1]).check()


def test_other_tokens_leave_no_settings(corpus: Path, kept: Path, tmp_path: Path) -> None:
    """So that --output can be used again with another folder of tokens."""
    how = Execution(output=tmp_path / "run", cache_tokens=kept, progress=False)
    with pytest.raises(ValueError, match="tokens of 4 videos, but not of 8"):
        run(settings(corpus), how)
    assert not (how.output / SETTINGS_FILE).exists()


def test_a_check_writes_nothing(corpus: Path, tmp_path: Path) -> None:
    """Neither does it mind what a killed process left; the list of another is read."""
    folder = tmp_path / "tokens"
    tokens = folder_of(corpus, folder)
    tokens.check()
    assert not folder.exists()
    folder.mkdir()
    left = folder / f".{LIST_FILE}.01234567-1-89abcdef.part"
    left.write_text("{")
    tokens.check()
    assert list(folder.iterdir()) == [left]
    write_whole = files.write_whole

    def slower_than_another(contents: Any, **options: Any) -> None:
        write_whole(contents, **options)
        written = folder / LIST_FILE
        before = written.stat().st_ino
        write_whole(contents, **options)
        assert written.stat().st_ino == before

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("examples.train.token_list.write_whole", slower_than_another)
        assert len(tokens.store(progress=False).cached) == 4


def test_a_list_that_is_written_while_the_folder_is_read(
    corpus: Path, kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "tokens"
    folder.mkdir()
    iterate = Path.iterdir

    def write_first(self: Path) -> Any:
        shutil.copytree(kept, self, dirs_exist_ok=True)
        return iterate(self)

    tokens = folder_of(corpus, folder)
    monkeypatch.setattr(Path, "iterdir", write_first)
    tokens.check()


def test_videos_without_frames(
    corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A run that left them out kept their tokens: another is not to use them without a word."""
    shutil.copytree(corpus / "videos", tmp_path / "videos")
    size = (tmp_path / "videos" / "v0.mp4").stat().st_size
    (tmp_path / "videos" / "v0.mp4").write_bytes(bytes(size))
    videos = [str(tmp_path / "videos" / f"v{i}.mp4") for i in range(2)]
    tokens = folder_of(corpus, tmp_path / "tokens", videos, root=str(tmp_path / "videos"))
    model: Any = tokens.model
    model.skip_unreadable = True
    skipping = Execution(output=tmp_path, skip_unreadable=True, progress=False)
    with pytest.warns(UserWarning, match="no video, or its header is damaged"):
        read_tokens(model, tokens, skipping)
    file = tmp_path / "tokens" / "tokens-00000.safetensors"
    assert f"1 of 2 videos cannot be read:\n  {videos[0]} has no frames in {file}" in caplog.text
    strict = Execution(output=tmp_path, progress=False)
    with pytest.raises(
        ValueError, match=r"(?s)v0\.mp4 has no frames .* or delete these files"
    ) as e:
        read_tokens(model, tokens, strict)
    assert "--skip-unreadable" in str(e.value)
    shutil.copyfile(corpus / "videos" / "v0.mp4", videos[0])
    file.unlink()
    model.stored = None
    read_tokens(model, tokens, strict)
    assert model.stored.features(videos)["attention_mask"].any(1).all()


def test_other_folders_are_refused(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    with pytest.raises(ValueError, match="neither empty nor a folder of --cache-tokens"):
        store(corpus, tmp_path)

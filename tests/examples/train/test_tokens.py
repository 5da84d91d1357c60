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

from examples.train.model import build_model
from examples.train.settings import RunSettings
from examples.train.tokens import StoredTokens, store_tokens
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
    torch.manual_seed(0)
    wanted = settings(corpus, **fields)
    model = build_model(wanted).eval()
    stored = store_tokens(
        model,
        videos_of(corpus) if videos is None else videos,
        root or wanted.videos,
        folder,
        dtype=getattr(torch, str(wanted.cache_dtype)),
        progress=False,
    )
    assert isinstance(stored, StoredTokens)
    model.read_from(stored)
    return model


@pytest.fixture(scope="module")
def kept(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the tokens of four videos."""
    folder = tmp_path_factory.mktemp("kept") / "tokens"
    store(corpus, folder)
    return folder


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
    assert "4 videos, up to 4 frames of " in said and " on the disk, where " in said
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
    [("image_mean", [0.1, 0.2, 0.3]), ("crop_size", {"height": 32, "width": 32})],
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


def test_other_folders_are_refused(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    with pytest.raises(ValueError, match="neither empty nor a folder of --cache-tokens"):
        store(corpus, tmp_path)

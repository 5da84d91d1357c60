"""Folders of cached tokens that are damaged or belong to another encoder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from muse_adapter import CachedTokens, VideoEncoder, cache_tokens
from tests.support.cached_tokens import (
    COUNT,
    T,
    cache,
    frozen_encoder,
    make_frames,
    other_weights,
)
from tests.support.small_encoders import small_head
from tests.support.tiny_clips import TimmVit

pytest.importorskip("safetensors", reason="cached tokens are safetensors files")
pytestmark = pytest.mark.usefixtures("torch_scan")


def cut_shard(folder: Path) -> None:
    path = folder / "tokens-00001.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def empty_shard(folder: Path) -> None:
    (folder / "tokens-00001.safetensors").write_bytes(b"")


def swap_shards(folder: Path) -> None:
    (folder / "tokens-00001.safetensors").write_bytes(
        (folder / "tokens-00000.safetensors").read_bytes()
    )


def other_tokens(folder: Path) -> None:
    import safetensors.torch

    path = folder / "tokens-00001.safetensors"
    state = safetensors.torch.load_file(path)
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    narrow = {name: t[..., :3].contiguous() for name, t in state.items()}
    safetensors.torch.save_file(narrow, path, metadata=metadata)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_shard, "damaged"),
        (empty_shard, "damaged"),
        (swap_shards, "must contain the videos 2 to 3"),
        (other_tokens, r"video 2 has tokens of shape \(1, 17, 3\) .*expected \(1, 17, 12\)"),
    ],
)
def test_damaged_shards(tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    cache(tmp_path)
    damage(tmp_path)
    for read in (CachedTokens, cache):
        with pytest.raises(ValueError, match=message) as caught:
            read(tmp_path)
        assert "tokens-00001.safetensors" in str(caught.value)
        assert "delete it and call cache_tokens again" in str(caught.value)
    (tmp_path / "tokens-00001.safetensors").unlink()
    assert len(cache(tmp_path)) == COUNT


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "damaged"),
        ("[]", "damaged"),
        ('{"format": 1, "muse_adapter_version": "0"}', "damaged.*num_videos"),
        ('{"format": 3, "muse_adapter_version": "9"}', "format 3, this version reads 1 and 2"),
    ],
)
def test_damaged_description(tmp_path: Path, content: str, message: str) -> None:
    cache(tmp_path)
    (tmp_path / "tokens.json").write_text(content)
    for read in (CachedTokens, cache):
        with pytest.raises(ValueError, match=message):
            read(tmp_path)


def test_missing_probe(tmp_path: Path) -> None:
    cache(tmp_path)
    (tmp_path / "probe.safetensors").unlink()
    with pytest.raises(ValueError, match="missing or damaged"):
        cache(tmp_path)
    assert len(CachedTokens(tmp_path)) == COUNT, "it is only needed to compare encoders"


def test_other_folders(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"was not written by cache_tokens"):
        CachedTokens(tmp_path)
    (tmp_path / "tokens-00000.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"but no tokens\.json that describes them"):
        cache(tmp_path)


OTHERS = {
    "weights": (other_weights, {}, r"another encoder .*differ by 1\.0% of their norm"),
    "precision": (
        lambda: frozen_encoder().float(),
        {},
        "computed is 'float64' in the folder and 'float32' now",
    ),
    "family": (
        lambda: VideoEncoder(TimmVit(), small_head(16), freeze=True).double(),
        {},
        r"family is 'OpenAI CLIP' in the folder and 'timm ViT' now\n  width is 12 .* 16 now",
    ),
    "stored type": (
        frozen_encoder,
        {"dtype": torch.float16},
        "stored is 'float64' .* 'float16' now",
    ),
    "file size": (
        frozen_encoder,
        {"videos_per_shard": 4},
        "videos_per_shard is 2 in the folder and 4 now",
    ),
}


@pytest.mark.parametrize(("build", "options", "message"), OTHERS.values(), ids=OTHERS.keys())
def test_other_call(
    tmp_path: Path, build: Callable[[], VideoEncoder], options: dict[str, Any], message: str
) -> None:
    cache(tmp_path)
    with pytest.raises(ValueError, match=message):
        cache(tmp_path, build(), **options)


@pytest.mark.parametrize(
    ("videos", "message"),
    [
        (make_frames()[:3], "num_videos is 5 in the folder and 3 now"),
        (
            torch.zeros(COUNT, T, 3, 16, 20, dtype=torch.float64),
            r"frame_size is \(16, 16\) .* \(16, 20\) now\n  grid is \(4, 4\) .* \(4, 5\) now",
        ),
    ],
    ids=["number of videos", "grid"],
)
def test_other_videos(tmp_path: Path, videos: Tensor, message: str) -> None:
    """Encoders without position embeddings take frames of any size."""
    encoder = VideoEncoder(TimmVit(), small_head(16), freeze=True).double()
    cache_tokens(encoder, make_frames(), tmp_path)
    with pytest.raises(ValueError, match=message):
        cache_tokens(encoder, videos, tmp_path)


def test_reader_checks_the_encoder(tmp_path: Path) -> None:
    encoder = frozen_encoder()
    cache(tmp_path, encoder)
    CachedTokens(tmp_path, encoder=encoder)
    CachedTokens(tmp_path, encoder=VideoEncoder(encoder.backbone, small_head(), freeze=True))
    with pytest.raises(ValueError, match=r"differ by 1\.0%"):
        CachedTokens(tmp_path, encoder=other_weights())
    (tmp_path / "tokens-00001.safetensors").unlink()  # a folder that is not complete yet
    with pytest.raises(ValueError, match=r"differ by 1\.0%"):
        CachedTokens(tmp_path, encoder=other_weights())
    with pytest.raises(FileNotFoundError, match=r"lacks tokens-00001"):
        CachedTokens(tmp_path, encoder=encoder)
    with pytest.raises(ValueError, match=r"\(17, 12\), float64 in the folder and .* float32 now"):
        CachedTokens(tmp_path, encoder=encoder.float())

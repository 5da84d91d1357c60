"""Checksums of cached tokens, and numbers in their description that nothing can be built of."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from muse_adapter import CachedTokens
from muse_adapter.data.token_cache.description import Description
from tests.support.cached_tokens import COUNT, cache, file_names, frozen_encoder, other_weights

safetensors = pytest.importorskip("safetensors", reason="cached tokens are safetensors files")
pytestmark = pytest.mark.usefixtures("torch_scan")

SHARD = "tokens-00001.safetensors"  # of the videos 2 and 3


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, torch_scan: None) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    cache(folder)
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "tokens")


def resave(path: Path, change: Callable[[dict[str, Any]], None], *, keep: bool = True) -> None:
    """Change the tensors of a file; keep its metadata or leave them out."""
    import safetensors.torch

    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata() if keep else None
    state = {name: t.clone() for name, t in safetensors.torch.load_file(path).items()}
    change(state)
    safetensors.torch.save_file(state, path, metadata=metadata)


def as_format_1(folder: Path) -> None:
    """Rewrite a folder as the first release did, without checksums."""
    for path in folder.glob("*.safetensors"):
        resave(path, lambda state: None, keep=False)
    path = folder / "tokens.json"
    values = {**json.loads(path.read_text()), "format": 1}
    del values["crc32"]
    path.write_text(json.dumps(values))


def read_all(folder: Path) -> None:
    cached = CachedTokens(folder)
    for index in range(len(cached)):
        cached[index]


def test_a_flipped_bit_is_named_when_its_video_is_read(folder: Path) -> None:
    path = folder / SHARD
    content = bytearray(path.read_bytes())
    content[-3] ^= 64
    path.write_bytes(content)
    cached = CachedTokens(folder)
    damaged = []
    for index in range(COUNT):
        try:
            cached[index]
        except ValueError as error:
            assert SHARD in str(error) and "delete it and call cache_tokens again" in str(error)
            damaged.append(index)
    assert len(damaged) == 1 and damaged[0] in (2, 3)
    with pytest.raises(ValueError, match=f"video {damaged[0]} has the checksum"):
        cache(folder)
    path.unlink()
    cache(folder)
    read_all(folder)


def test_every_video_is_compared_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from muse_adapter.data.token_cache import read

    seen: list[int] = []
    monkeypatch.setattr(read, "check_video", lambda path, file, index, *_: seen.append(index))
    cached = CachedTokens(folder)
    assert seen == [], "opening must not read all tokens"
    for index in (0, 1, 0, -COUNT, 1):
        cached[index]
    assert seen == [0, 1]


def set_nan(state: dict[str, Any]) -> None:
    state["2.tokens"].fill_(float("nan"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: resave(f / SHARD, set_nan), "video 2 has the checksum"),
        (lambda f: resave(f / SHARD, set_nan, keep=False), "must have a checksum of every video"),
        (lambda f: (as_format_1(f), resave(f / SHARD, set_nan)), "video 2 .*not finite"),
        (
            lambda f: resave(f / "probe.safetensors", lambda s: None, keep=False),
            "it is of another folder|damaged",
        ),
        (lambda f: ((f / SHARD).unlink(), (f / SHARD).mkdir()), "is no file"),
        (lambda f: ((f / SHARD).unlink(), os.mkfifo(f / SHARD)), "is no file"),
    ],
    ids=["values", "no checksums", "NaN in format 1", "probe", "folder", "pipe"],
)
def test_damage(folder: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(folder)
    with pytest.raises(ValueError, match=message):
        read_all(folder)
        CachedTokens(folder, encoder=frozen_encoder())


def test_a_shard_of_another_folder(folder: Path, tmp_path: Path) -> None:
    """Its shapes are right, its tokens are those of another encoder."""
    cache(tmp_path / "other", other_weights())
    shutil.copy(tmp_path / "other" / SHARD, folder / SHARD)
    with pytest.raises(ValueError, match=f"{SHARD}' is damaged .it is of another folder"):
        CachedTokens(folder)


def test_folders_of_the_first_release(folder: Path) -> None:
    expected = [CachedTokens(folder)[index] for index in range(COUNT)]
    as_format_1(folder)
    (folder / SHARD).unlink()
    cached = cache(folder)  # goes on with it
    assert cached.description.format == 1
    for index, (tokens, mask) in enumerate(expected):
        assert torch.equal(cached[index][0], tokens) and torch.equal(cached[index][1], mask)
    CachedTokens(folder, encoder=frozen_encoder())


@pytest.mark.parametrize("change", [{"num_videos": 4}, {"grid": [2, 2]}, {"family": "timm ViT"}])
def test_an_edited_description(folder: Path, change: dict[str, Any]) -> None:
    path = folder / "tokens.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match=r"tokens.json' is damaged: its content has the checksum"):
        CachedTokens(folder)


RIGHT: dict[str, Any] = {
    "family": "timm ViT", "frame_size": (16, 16), "frame_type": "float32", "grid": (4, 4),
    "num_tokens": 17, "width": 12, "computed": "float32", "stored": "float16",
    "num_videos": 5, "videos_per_shard": 2,
}  # fmt: skip


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[
            (field, value)
            for field in ("num_tokens", "width", "num_videos", "videos_per_shard")
            for value in (0, -3, 10**12, 1.5, "6", True, None)
        ],
        *[("frame_size", v) for v in ((10**6, 10**6), "ab", (1, 2, 3), (0, 4), (1.0, 2), None)],
        *[("grid", value) for value in ((5, 4), "xy", 5, (0, 1), (1, 2, 3))],
        *[(f, v) for f in ("stored", "computed", "frame_type") for v in ("int8", "load", 5, None)],
        ("family", 3),
    ],
)
def test_descriptions_that_cannot_be(field: str, value: Any) -> None:
    Description(**RIGHT)
    with pytest.raises((TypeError, ValueError), match=f"{field} must"):
        Description(**{**RIGHT, field: value})


@pytest.mark.parametrize("change", [{"num_videos": 10**9}, {"videos_per_shard": 10**9}])
def test_large_numbers_take_no_time(folder: Path, change: dict[str, int]) -> None:
    """A folder of format 1 has no checksum of its description."""
    as_format_1(folder)
    path = folder / "tokens.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises((ValueError, FileNotFoundError), match=r"lacks tokens-00003|0 to 4"):
        CachedTokens(folder)


def test_a_full_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / SHARD).unlink()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    before = file_names(folder)
    with monkeypatch.context() as context:
        context.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"cannot write the tokens to '.*tokens'.*No space left"):
            cache(folder)
    assert file_names(folder) == before
    cache(folder)
    read_all(folder)

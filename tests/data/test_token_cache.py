"""Cached tokens: what is read back, going on after an interrupt, and what is refused."""

from __future__ import annotations

import copy
import json
import os
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from muse_adapter import CachedTokens, MultiScaleMamba, VideoEncoder, cache_tokens
from muse_adapter.ops import use_backend
from tests.support.tiny_clips import OpenAIClip, TimmVit

pytest.importorskip("safetensors", reason="cached tokens are safetensors files")

# One frame at a time or six: other batches of the same matrix products.
ROUNDING = {"rtol": 1e-9, "atol": 1e-12}
COUNT, T, PER_SHARD = 5, 3, 2
MASKS = torch.tensor([[1, 1, 1], [1, 1, 0], [0, 1, 0], [1, 0, 1], [1, 1, 1]], dtype=torch.bool)
FILES = {
    "tokens.json",
    "probe.safetensors",
    "tokens-00000.safetensors",
    "tokens-00001.safetensors",
    "tokens-00002.safetensors",
}


@pytest.fixture(autouse=True)
def torch_scan() -> Iterator[None]:
    with use_backend("torch"):
        yield


def small_head(dim: int = 12, **fields: Any) -> MultiScaleMamba:
    fields = {"depth": 1, "dropout": 0.0, "d_state": 4, "init": "release"} | fields
    return MultiScaleMamba(dim=dim, **fields)


def frozen(backbone: nn.Module | None = None, **options: Any) -> VideoEncoder:
    torch.manual_seed(0)  # the same encoder at every call
    backbone = OpenAIClip() if backbone is None else backbone
    return VideoEncoder(backbone, small_head(), freeze=True, **options).double()


def make_frames(dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(COUNT, T, 3, 16, 16, generator=generator, dtype=dtype)


class Videos:
    """Videos with masks, read by index; breaks off at one of them."""

    def __init__(self, frames: Tensor | None = None, stop_at: int = COUNT) -> None:
        self.frames = make_frames() if frames is None else frames
        self.stop_at = stop_at
        self.read: list[int] = []

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if index >= self.stop_at:
            raise KeyboardInterrupt
        self.read.append(index)
        return self.frames[index], MASKS[index]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def cached(folder: Path, encoder: VideoEncoder | None = None, **options: Any) -> CachedTokens:
    encoder = frozen() if encoder is None else encoder
    return cache_tokens(encoder, Videos(), folder, **{"videos_per_shard": PER_SHARD} | options)


# --- What is read back --------------------------------------------------------------------------


def test_tokens_are_those_the_head_gets(tmp_path: Path) -> None:
    encoder = frozen(frames_per_slice=2)
    data = cached(tmp_path, encoder)
    expected = encoder.forward_tokens(make_frames(), MASKS)
    assert len(data) == COUNT and data.grid == (4, 4) and names(tmp_path) == FILES
    for index, (tokens, mask) in enumerate(data[i] for i in range(COUNT)):
        torch.testing.assert_close(tokens, expected[index], **ROUNDING)
        assert mask.dtype == torch.bool and torch.equal(mask, MASKS[index])
    torch.testing.assert_close(data[-1][0], data[COUNT - 1][0], rtol=0, atol=0)
    for index in (COUNT, -COUNT - 1):
        with pytest.raises(IndexError, match=f"video {index} of {COUNT}"):
            data[index]


def train(head: MultiScaleMamba, videos: Callable[[list[int]], Tensor]) -> list[Tensor]:
    """Three steps; videos is a function from indices to embeddings (2, D)."""
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
    weight = torch.arange(24, dtype=torch.float64).view(2, 12).sin()
    for indices in ([0, 1], [2, 3], [4, 1]):
        optimizer.zero_grad()
        (videos(indices) * weight).sum().backward()
        optimizer.step()
    return [parameter.detach() for parameter in head.parameters()]


def test_head_trains_alone_as_it_trains_behind_the_frozen_backbone(tmp_path: Path) -> None:
    encoder = frozen()
    alone = copy.deepcopy(encoder.head)
    start = [parameter.detach().clone() for parameter in alone.parameters()]
    data = cached(tmp_path, encoder)

    def from_disk(indices: list[int]) -> Tensor:
        tokens, mask = next(iter(DataLoader(data, batch_size=2, sampler=indices)))
        return alone(tokens, mask, grid=data.grid)

    frames = make_frames()
    behind = train(encoder.head, lambda indices: encoder(frames[indices], MASKS[indices]))
    for ours, expected in zip(train(alone, from_disk), behind, strict=True):
        torch.testing.assert_close(ours, expected, **ROUNDING)
    changed = [not torch.equal(*pair) for pair in zip(behind, start, strict=True)]
    assert sum(changed) > len(changed) / 2


@pytest.mark.parametrize(
    ("dtype", "error"), [(torch.float16, 2**-11), (torch.bfloat16, 2**-8)], ids=str
)
def test_half_precision(tmp_path: Path, dtype: torch.dtype, error: float) -> None:
    """Half the size, and each value to half a unit of its last place; read as float32."""
    encoder = frozen().float()
    videos = Videos(make_frames(torch.float32))
    whole = cache_tokens(encoder, videos, tmp_path / "whole")
    half = cache_tokens(encoder, videos, tmp_path / "half", dtype=dtype)
    for (tokens, _), (rounded, _) in zip((whole[0], whole[3]), (half[0], half[3]), strict=True):
        assert tokens.dtype == rounded.dtype == torch.float32
        torch.testing.assert_close(rounded, tokens, rtol=error, atol=1e-7)
        assert not torch.equal(rounded, tokens)
    sizes = [
        (tmp_path / name / "tokens-00000.safetensors").stat().st_size for name in ("half", "whole")
    ]
    assert 0.5 <= sizes[0] / sizes[1] < 0.6
    again = CachedTokens(tmp_path / "half", dtype=dtype)
    assert again[0][0].dtype == dtype


def test_tokens_stay_as_a_half_precision_backbone_gives_them(tmp_path: Path) -> None:
    encoder = VideoEncoder(OpenAIClip().bfloat16(), small_head(), freeze=True)
    data = cache_tokens(encoder, Videos(make_frames(torch.float32)), tmp_path)
    assert (data.description.computed, data.description.stored) == ("bfloat16", "bfloat16")
    expected = encoder.forward_tokens(make_frames(torch.float32)[:1])
    torch.testing.assert_close(data[0][0], expected[0], rtol=0, atol=0.05)


def test_autocast_reaches_the_backbone(tmp_path: Path) -> None:
    encoder = frozen().float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        data = cache_tokens(encoder, Videos(make_frames(torch.float32)), tmp_path)
    assert data.description.computed == "bfloat16"


def test_frames_alone_and_videos_of_other_lengths(tmp_path: Path) -> None:
    frames = make_frames()
    videos = [frames[0], frames[1, :1], (frames[2], torch.zeros(T)), (frames[3], MASKS[3].int())]
    encoder = frozen()
    data = cache_tokens(encoder, videos, tmp_path)
    assert [tuple(data[i][1].tolist()) for i in range(4)] == [
        (True,) * 3,
        (True,),
        (False,) * 3,
        (True, False, True),
    ]
    torch.testing.assert_close(data[1][0], encoder.forward_tokens(frames[1:2, :1])[0], **ROUNDING)
    assert data[2][0].shape == (T, 17, 12) and (data[2][0] == 0).all()


def test_own_function_and_wide_grid(tmp_path: Path) -> None:
    conv = nn.Conv2d(3, 12, (8, 4), (8, 4)).double()

    def tokens(frames: Tensor) -> Tensor:
        return conv(frames).flatten(2).transpose(1, 2)

    head = small_head(num_prefix_tokens=0)
    encoder = VideoEncoder(conv, head, tokens=tokens, freeze=True).double()
    data = cache_tokens(encoder, Videos(), tmp_path, grid=(2, 4))
    batch = next(iter(DataLoader(data, batch_size=COUNT)))
    video = head(*batch, grid=data.grid)
    torch.testing.assert_close(video, encoder(make_frames(), MASKS, grid=(2, 4)), **ROUNDING)


def test_patches_alone_for_a_head_without_class_token(tmp_path: Path) -> None:
    encoder = VideoEncoder(OpenAIClip(), small_head(num_prefix_tokens=0), freeze=True).double()
    assert cached(tmp_path, encoder)[0][0].shape == (T, 16, 12)


def test_readers_change_in_place_what_is_theirs(tmp_path: Path) -> None:
    data = cached(tmp_path)
    tokens, mask = data[0]
    expected = tokens.clone()
    tokens.zero_()
    mask.zero_()
    torch.testing.assert_close(data[0][0], expected, rtol=0, atol=0)
    assert data[0][1].all()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc to see mappings")
def test_files_are_mapped_when_they_are_read(tmp_path: Path) -> None:
    data = cached(tmp_path)
    mapped = lambda: {n for n in FILES if str(tmp_path / n) in Path("/proc/self/maps").read_text()}  # noqa: E731
    assert not mapped()
    data[3]
    assert mapped() == {"tokens-00001.safetensors"}


def test_worker_processes_and_pickle(tmp_path: Path) -> None:
    data = cached(tmp_path, num_workers=1)
    expected = torch.stack([data[i][0] for i in range(COUNT)])
    (batch,) = DataLoader(data, batch_size=COUNT, num_workers=1)
    torch.testing.assert_close(batch[0], expected, rtol=0, atol=0)
    copied = pickle.loads(pickle.dumps(data))
    torch.testing.assert_close(copied[4][0], expected[4], rtol=0, atol=0)


# --- Going on -----------------------------------------------------------------------------------


def test_an_interrupted_call_goes_on_where_it_stopped(tmp_path: Path) -> None:
    encoder = frozen()
    with pytest.raises(KeyboardInterrupt):
        cache_tokens(encoder, Videos(stop_at=3), tmp_path, videos_per_shard=PER_SHARD)
    # Video 2 was encoded, but its file was not whole.
    assert names(tmp_path) == FILES - {"tokens-00001.safetensors", "tokens-00002.safetensors"}
    with pytest.raises(
        FileNotFoundError, match=r"lacks 2 of 3 files, .* tokens-00001\.safe.*again"
    ):
        CachedTokens(tmp_path)
    before = (tmp_path / "tokens-00000.safetensors").stat().st_mtime_ns
    videos = Videos()
    data = cache_tokens(encoder, videos, tmp_path, videos_per_shard=PER_SHARD)
    assert videos.read == [0, 2, 3, 4], "the first one, for the size of frames, and the missing"
    assert (tmp_path / "tokens-00000.safetensors").stat().st_mtime_ns == before
    expected = encoder.forward_tokens(make_frames(), MASKS)
    for index in range(COUNT):
        torch.testing.assert_close(data[index][0], expected[index], **ROUNDING)
    done = Videos()
    cache_tokens(encoder, done, tmp_path, videos_per_shard=PER_SHARD)
    assert done.read == [0]


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("after", [0, 2, 3])
def test_nothing_half_written_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, after: int
) -> None:
    """The disk is full at the first, third or fourth file; each one there is whole."""
    calls = []
    original = getattr(os, call)

    def fail(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) > after:
            raise OSError("no space left on device")
        original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(OSError, match="no space"):
            cached(tmp_path)
    left = names(tmp_path)
    assert left <= FILES, "no part of a file may stay"
    assert len(left) == after
    assert len(cached(tmp_path)) == COUNT


def test_probe_without_description_is_a_beginning(tmp_path: Path) -> None:
    """What a crash between the two renames leaves."""
    cached(tmp_path / "other")
    (tmp_path / "probe.safetensors").write_bytes(b"of another encoder")
    assert len(cached(tmp_path)) == COUNT


# --- What is refused ----------------------------------------------------------------------------


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
    safetensors.torch.save_file({name: t[..., :3].contiguous() for name, t in state.items()}, path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_shard, "damaged"),
        (empty_shard, "damaged"),
        (swap_shards, "must hold the videos 2 to 3"),
        (other_tokens, r"video 2 has tokens of shape \(1, 17, 3\) .*expected \(1, 17, 12\)"),
    ],
)
def test_damaged_shards(tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    cached(tmp_path)
    damage(tmp_path)
    for read in (CachedTokens, cached):
        with pytest.raises(ValueError, match=message) as caught:
            read(tmp_path)
        assert "tokens-00001.safetensors" in str(caught.value)
        assert "delete it and call cache_tokens again" in str(caught.value)
    (tmp_path / "tokens-00001.safetensors").unlink()
    assert len(cached(tmp_path)) == COUNT


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "damaged"),
        ("[]", "damaged"),
        ('{"format": 1, "muse_adapter_version": "0"}', "damaged.*num_videos"),
        ('{"format": 2, "muse_adapter_version": "9"}', "format 2, this version reads 1"),
    ],
)
def test_damaged_description(tmp_path: Path, content: str, message: str) -> None:
    cached(tmp_path)
    (tmp_path / "tokens.json").write_text(content)
    for read in (CachedTokens, cached):
        with pytest.raises(ValueError, match=message):
            read(tmp_path)


def test_missing_probe(tmp_path: Path) -> None:
    cached(tmp_path)
    (tmp_path / "probe.safetensors").unlink()
    with pytest.raises(ValueError, match="missing or damaged"):
        cached(tmp_path)
    assert len(CachedTokens(tmp_path)) == COUNT, "it is needed to compare encoders alone"


def test_folders_of_others(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"is no folder that cache_tokens wrote"):
        CachedTokens(tmp_path)
    (tmp_path / "tokens-00000.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"but no tokens\.json that says what they are"):
        cached(tmp_path)


def other_weights(factor: float = 1.01) -> VideoEncoder:
    encoder = frozen()
    with torch.no_grad():
        encoder.backbone.visual.proj.mul_(factor)
    return encoder


OTHERS = {
    "weights": (other_weights, {}, r"another encoder .*differ by 1\.0% of their norm"),
    "precision": (
        lambda: frozen().float(),
        {},
        "computed is 'float64' in the folder and 'float32' now",
    ),
    "family": (
        lambda: VideoEncoder(TimmVit(), small_head(16), freeze=True).double(),
        {},
        r"family is 'OpenAI CLIP' in the folder and 'timm ViT' now\n  width is 12 .* 16 now",
    ),
    "stored type": (frozen, {"dtype": torch.float16}, "stored is 'float64' .* 'float16' now"),
    "file size": (frozen, {"videos_per_shard": 4}, "videos_per_shard is 2 in the folder and 4 now"),
}


@pytest.mark.parametrize(("build", "options", "message"), OTHERS.values(), ids=OTHERS.keys())
def test_other_call(
    tmp_path: Path, build: Callable[[], VideoEncoder], options: dict[str, Any], message: str
) -> None:
    cached(tmp_path)
    with pytest.raises(ValueError, match=message):
        cached(tmp_path, build(), **options)


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
    """Encoders whose tokens do not depend on positions take frames of any size."""
    encoder = VideoEncoder(TimmVit(), small_head(16), freeze=True).double()
    cache_tokens(encoder, make_frames(), tmp_path)
    with pytest.raises(ValueError, match=message):
        cache_tokens(encoder, videos, tmp_path)


def test_reader_checks_the_encoder(tmp_path: Path) -> None:
    encoder = frozen()
    cached(tmp_path, encoder)
    CachedTokens(tmp_path, encoder=encoder)
    CachedTokens(tmp_path, encoder=VideoEncoder(encoder.backbone, small_head(), freeze=True))
    with pytest.raises(ValueError, match=r"differ by 1\.0%"):
        CachedTokens(tmp_path, encoder=other_weights())
    with pytest.raises(ValueError, match=r"\(17, 12\), float64 in the folder and .* float32 now"):
        CachedTokens(tmp_path, encoder=encoder.float())


FRAMES = make_frames()
WRONG = {
    "backbone that trains": (
        lambda: VideoEncoder(OpenAIClip(), small_head()),
        FRAMES,
        {},
        ValueError,
        r"frozen backbone.*VideoEncoder\(backbone, freeze=True\)",
    ),
    "no encoder": (OpenAIClip, FRAMES, {}, TypeError, "must be a VideoEncoder, got OpenAIClip"),
    "no videos": (frozen, [], {}, ValueError, "at least one video, got none"),
    "generator": (frozen, iter(FRAMES), {}, TypeError, "read by index .* got tuple_iterator"),
    "integers": (frozen, FRAMES.byte(), {}, TypeError, r"video 0: frames must be floating point"),
    "names": (frozen, ["a.mp4"], {}, TypeError, r"video 0: expected frames or \(frames, mask\)"),
    "other size": (
        lambda: VideoEncoder(TimmVit(), small_head(16), freeze=True).double(),
        [FRAMES[0], FRAMES[1, ..., :12]],
        {},
        ValueError,
        "video 1: frames are 16x12 pixels, those of the folder 16x16",
    ),
    "mask of another length": (
        frozen,
        [FRAMES[0], (FRAMES[1], torch.ones(2))],
        {},
        ValueError,
        r"video 1: frame_mask must have shape \(B, T\) = \(1, 3\), got \(1, 2\)",
    ),
    "too large for float16": (
        lambda: other_weights(1e8),
        FRAMES,
        {"dtype": torch.float16},
        ValueError,
        r"video 0: tokens up to \S+ are not finite in torch\.float16",
    ),
    "NaN": (
        frozen,
        [FRAMES[0], FRAMES[1] * float("nan")],
        {},
        ValueError,
        r"video 1: tokens up to nan are not finite in torch\.float64",
    ),
    "integers stored": (frozen, FRAMES, {"dtype": torch.int8}, TypeError, "got torch.int8"),
    "empty files": (frozen, FRAMES, {"videos_per_shard": 0}, ValueError, "at least 1, got 0"),
    "grid": (frozen, FRAMES, {"grid": (2, 8)}, ValueError, r"\(H, W\) = \(4, 4\), got \(2, 8\)"),
}


@pytest.mark.parametrize(
    ("build", "videos", "options", "error", "message"), WRONG.values(), ids=WRONG.keys()
)
def test_wrong_call(
    tmp_path: Path,
    build: Callable[[], Any],
    videos: Any,
    options: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        cache_tokens(build(), videos, tmp_path, **options)


def test_missing_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    for call in (lambda: cached(tmp_path), lambda: CachedTokens(tmp_path)):
        with pytest.raises(ImportError, match=r"caching tokens needs .*muse-adapter\[hub\]"):
            call()
    assert not list(tmp_path.iterdir())


def test_description_is_readable(tmp_path: Path) -> None:
    cached(tmp_path, dtype=torch.float16)
    values = json.loads((tmp_path / "tokens.json").read_text())
    assert values["format"] == 1 and values["family"] == "OpenAI CLIP"
    assert (values["grid"], values["num_tokens"], values["width"]) == ([4, 4], 17, 12)
    assert (values["computed"], values["stored"], values["num_videos"]) == ("float64", "float16", 5)

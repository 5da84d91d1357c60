"""Cached tokens: equal to the head's input, in every dtype, mapped and in worker processes."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from muse_adapter import CachedTokens, MultiScaleMamba, VideoEncoder, cache_tokens
from tests.support.cached_tokens import (
    COUNT,
    FILES,
    MASKS,
    T,
    Videos,
    cache,
    file_names,
    frozen_encoder,
    make_frames,
)
from tests.support.small_encoders import ROUNDING, small_head
from tests.support.tiny_clips import OpenAIClip

pytest.importorskip("safetensors", reason="cached tokens are safetensors files")
pytestmark = pytest.mark.usefixtures("torch_scan")


def test_tokens_are_the_input_of_the_head(tmp_path: Path) -> None:
    encoder = frozen_encoder(frames_per_slice=2)
    data = cache(tmp_path, encoder)
    expected = encoder.forward_tokens(make_frames(), MASKS)
    assert len(data) == COUNT and data.grid == (4, 4) and file_names(tmp_path) == FILES
    for index, (tokens, mask) in enumerate(data[i] for i in range(COUNT)):
        torch.testing.assert_close(tokens, expected[index], **ROUNDING[torch.float64])
        assert mask.dtype == torch.bool and torch.equal(mask, MASKS[index])
    torch.testing.assert_close(data[-1][0], data[COUNT - 1][0], rtol=0, atol=0)
    for index in (COUNT, -COUNT - 1):
        with pytest.raises(IndexError, match=f"video {index} of {COUNT}"):
            data[index]


def train(head: MultiScaleMamba, videos: Callable[[list[int]], Tensor]) -> list[Tensor]:
    """Train three steps; `videos` maps indices to embeddings (2, D)."""
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
    weight = torch.arange(24, dtype=torch.float64).view(2, 12).sin()
    for indices in ([0, 1], [2, 3], [4, 1]):
        optimizer.zero_grad()
        (videos(indices) * weight).sum().backward()
        optimizer.step()
    return [parameter.detach() for parameter in head.parameters()]


def test_head_trains_as_with_the_frozen_backbone(tmp_path: Path) -> None:
    encoder = frozen_encoder()
    alone = copy.deepcopy(encoder.head)
    start = [parameter.detach().clone() for parameter in alone.parameters()]
    data = cache(tmp_path, encoder)

    def from_disk(indices: list[int]) -> Tensor:
        tokens, mask = next(iter(DataLoader(data, batch_size=2, sampler=indices)))
        return alone(tokens, mask, grid=data.grid)

    frames = make_frames()
    expected = train(encoder.head, lambda indices: encoder(frames[indices], MASKS[indices]))
    for trained, reference in zip(train(alone, from_disk), expected, strict=True):
        torch.testing.assert_close(trained, reference, **ROUNDING[torch.float64])
    changed = [not torch.equal(*pair) for pair in zip(expected, start, strict=True)]
    assert sum(changed) > len(changed) / 2


@pytest.mark.parametrize(
    ("dtype", "error"), [(torch.float16, 2**-11), (torch.bfloat16, 2**-8)], ids=str
)
def test_half_precision(tmp_path: Path, dtype: torch.dtype, error: float) -> None:
    """Half the size, each value within half a unit in its last place; read as float32."""
    encoder = frozen_encoder().float()
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


def test_tokens_of_a_half_precision_backbone(tmp_path: Path) -> None:
    encoder = VideoEncoder(OpenAIClip().bfloat16(), small_head(), freeze=True)
    data = cache_tokens(encoder, Videos(make_frames(torch.float32)), tmp_path)
    assert (data.description.computed, data.description.stored) == ("bfloat16", "bfloat16")
    expected = encoder.forward_tokens(make_frames(torch.float32)[:1])
    torch.testing.assert_close(data[0][0], expected[0], **ROUNDING[torch.bfloat16])


def test_autocast_applies_to_the_backbone(tmp_path: Path) -> None:
    encoder = frozen_encoder().float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        data = cache_tokens(encoder, Videos(make_frames(torch.float32)), tmp_path)
    assert data.description.computed == "bfloat16"


def test_frames_without_mask_and_videos_of_different_lengths(tmp_path: Path) -> None:
    frames = make_frames()
    videos = [frames[0], frames[1, :1], (frames[2], torch.zeros(T)), (frames[3], MASKS[3].int())]
    encoder = frozen_encoder()
    data = cache_tokens(encoder, videos, tmp_path)
    assert [tuple(data[i][1].tolist()) for i in range(4)] == [
        (True,) * 3,
        (True,),
        (False,) * 3,
        (True, False, True),
    ]
    torch.testing.assert_close(
        data[1][0], encoder.forward_tokens(frames[1:2, :1])[0], **ROUNDING[torch.float64]
    )
    assert data[2][0].shape == (T, 17, 12) and (data[2][0] == 0).all()
    assert all(torch.equal(data.mask(i), data[i][1]) for i in (0, 1, 2, 3, -1))
    assert {data.file_of(i).name for i in (0, -1)} == {"tokens-00000.safetensors"}
    with pytest.raises(IndexError, match="video 4 of 4"):
        data.mask(4)


def test_custom_tokens_and_wide_grid(tmp_path: Path) -> None:
    conv = nn.Conv2d(3, 12, (8, 4), (8, 4)).double()

    def tokens(frames: Tensor) -> Tensor:
        return conv(frames).flatten(2).transpose(1, 2)

    head = small_head(num_prefix_tokens=0)
    encoder = VideoEncoder(conv, head, tokens=tokens, freeze=True).double()
    data = cache_tokens(encoder, Videos(), tmp_path, grid=(2, 4))
    batch = next(iter(DataLoader(data, batch_size=COUNT)))
    video = head(*batch, grid=data.grid)
    torch.testing.assert_close(
        video, encoder(make_frames(), MASKS, grid=(2, 4)), **ROUNDING[torch.float64]
    )


def test_patches_alone_for_a_head_without_class_token(tmp_path: Path) -> None:
    encoder = VideoEncoder(OpenAIClip(), small_head(num_prefix_tokens=0), freeze=True).double()
    assert cache(tmp_path, encoder)[0][0].shape == (T, 16, 12)


def test_items_may_be_changed_in_place(tmp_path: Path) -> None:
    data = cache(tmp_path)
    tokens, mask = data[0]
    expected = tokens.clone()
    tokens.zero_()
    mask.zero_()
    torch.testing.assert_close(data[0][0], expected, rtol=0, atol=0)
    assert data[0][1].all()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc to list mappings")
def test_files_are_mapped_when_they_are_read(tmp_path: Path) -> None:
    data = cache(tmp_path)

    def mapped() -> set[str]:
        maps = Path("/proc/self/maps").read_text()
        return {name for name in FILES if str(tmp_path / name) in maps}

    assert not mapped()
    data[3]
    assert mapped() == {"tokens-00001.safetensors"}


def test_worker_processes_and_pickle(tmp_path: Path) -> None:
    data = cache(tmp_path, num_workers=1)
    expected = torch.stack([data[i][0] for i in range(COUNT)])
    (batch,) = DataLoader(data, batch_size=COUNT, num_workers=1)
    torch.testing.assert_close(batch[0], expected, rtol=0, atol=0)
    copied = pickle.loads(pickle.dumps(data))
    torch.testing.assert_close(copied[4][0], expected[4], rtol=0, atol=0)


def test_description_is_readable(tmp_path: Path) -> None:
    cache(tmp_path, dtype=torch.float16)
    values = json.loads((tmp_path / "tokens.json").read_text())
    assert values["format"] == 2 and values["family"] == "OpenAI CLIP"
    assert (values["grid"], values["num_tokens"], values["width"]) == ([4, 4], 17, 12)
    assert (values["computed"], values["stored"], values["num_videos"]) == ("float64", "float16", 5)

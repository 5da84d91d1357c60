"""Several processes that fill one folder with cached tokens, started at the same instant."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from muse_adapter import CachedTokens, cache_tokens, files
from muse_adapter.data.token_cache import write_tokens
from tests.support.cached_tokens import (
    COUNT,
    FILES,
    PER_SHARD,
    Videos,
    cache,
    file_names,
    frozen_encoder,
    other_weights,
)

pytest.importorskip("safetensors", reason="cached tokens are safetensors files")
pytestmark = pytest.mark.usefixtures("torch_scan")

# Encoders that differ by rounding, as on other devices: probes with other checksums, all accepted.
# The processes are forked from one, which has imported torch, and meet at a barrier.
TOGETHER = """
    import multiprocessing, sys
    from tests.support.cached_tokens import cache, other_weights

    encoders = [other_weights(1 + 1e-9 * rank) for rank in range(3)]

    def fill(barrier, folder, rank):
        barrier.wait()
        cache(folder, encoders[rank])

    context = multiprocessing.get_context("fork")
    for folder in sys.argv[1:]:
        barrier = context.Barrier(3)
        group = [context.Process(target=fill, args=(barrier, folder, rank)) for rank in range(3)]
        for process in group:
            process.start()
        for process in group:
            process.join()
        assert [process.exitcode for process in group] == [0, 0, 0], folder
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
def test_processes_that_start_at_once(tmp_path: Path, run_python: Callable[..., Any]) -> None:
    folders = [tmp_path / str(turn) for turn in range(8)]
    done = run_python(TOGETHER, *map(str, folders))
    assert done.returncode == 0, done.stderr
    for folder in folders:
        assert file_names(folder) == FILES
        assert len(CachedTokens(folder, encoder=frozen_encoder())) == COUNT


def test_the_files_of_a_faster_process_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one is done between this one's look for a description and its first file."""
    create, others = files._create, [other_weights(1 + 1e-9)]

    def created(part: Path, path: Path) -> None:
        if others:
            cache(tmp_path, others.pop())
        create(part, path)

    monkeypatch.setattr(files, "_create", created)
    videos = Videos()
    data = cache_tokens(frozen_encoder(), videos, tmp_path, videos_per_shard=PER_SHARD)
    assert not others and len(data) == COUNT and videos.read == [0]


def test_a_process_that_is_done_is_no_foreign_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one is done between this one's look for a description and for other files."""
    glob, others = Path.glob, [frozen_encoder()]

    def globbed(folder: Path, pattern: str) -> Any:
        if others and folder == tmp_path:
            cache(tmp_path, others.pop())
        return glob(folder, pattern)

    monkeypatch.setattr(Path, "glob", globbed)
    assert len(cache(tmp_path)) == COUNT and not others


def test_shards_of_a_faster_process_stay(tmp_path: Path) -> None:
    """Another one writes the same file, up to rounding, while this one encodes its videos."""
    shard = tmp_path / "tokens-00001.safetensors"
    written: list[bytes] = []

    class Slower(Videos):
        def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
            if index == 3:
                cache(tmp_path, other_weights(1 + 1e-9))
                written.append(shard.read_bytes())
            return super().__getitem__(index)

    data = cache_tokens(frozen_encoder(), Slower(), tmp_path, videos_per_shard=PER_SHARD)
    assert len(data) == COUNT and [shard.read_bytes()] == written


@pytest.mark.parametrize("links", [True, False], ids=["hard links", "no hard links"])
def test_existing_files_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError("operation not permitted")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_bytes(b"first")
    files.write_whole({old: b"second", new: b"second"}, keep_existing=True)
    assert old.read_bytes() == b"first" and new.read_bytes() == b"second"
    assert file_names(tmp_path) == {"old", "new"}


def test_processes_share_the_files(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []

    def write(rank: int) -> list[int]:
        videos = Videos()
        write_tokens(
            frozen_encoder(),
            videos,
            tmp_path,
            videos_per_shard=PER_SHARD,
            share=(rank, 2),
            progress=lambda done, count: told.append((done, count)),
        )
        return videos.read

    assert write(1) == [0, 2, 3]  # the first tells the size of the frames
    with pytest.raises(FileNotFoundError, match="lacks tokens-00000"):
        CachedTokens(tmp_path)
    assert write(0) == [0, 0, 1, 4]
    assert told == [(0, 2), (2, 2), (0, 3), (2, 3), (3, 3)]
    assert len(CachedTokens(tmp_path, encoder=frozen_encoder())) == COUNT
    told.clear()
    assert write(0) == [0] and told == [(3, 3)]

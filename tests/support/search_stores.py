"""What a table must hold and find, for the tests of stores."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from muse_adapter.search.segments import Segment, VideoSegments
from muse_adapter.search.store import Store
from tests.support.search_models import DIM, segments_of


def videos(count: int, seed: int = 0) -> dict[str, VideoSegments]:
    return {f"v{i}.mp4": segments_of(f"v{i}.mp4", seed + i, count=1 + i % 4) for i in range(count)}


def append(store: Store, content: dict[str, VideoSegments]) -> None:
    with store.write() as writer:
        writer.append(list(content.values()))


def expected_hits(content: dict[str, VideoSegments], query: Tensor) -> list[tuple[float, Segment]]:
    """Rank all videos by their best segments, by the definition, from what is stored: halves."""
    best = []
    for video in content.values():
        scores = video.vectors.half().double() @ query.double()
        number = int(scores.argmax())
        best.append((float(scores[number]), Segment(video.video, *video.spans[number])))
    return sorted(best, reverse=True)


def assert_same(store: Store, content: dict[str, VideoSegments], k: int = 5) -> None:
    """Assert that a store has these videos and no others, and ranks them right."""
    table = store.read()
    assert table.num_videos == len(content)
    assert table.num_segments == sum(len(video.spans) for video in content.values())
    assert_found(store, content, k)


def assert_found(store: Store, content: dict[str, VideoSegments], k: int = 5) -> None:
    """Assert that a search ranks these videos right, and finds no others."""
    table = store.read()
    queries = F.normalize(torch.randn(3, DIM, generator=torch.Generator().manual_seed(9)), dim=1)
    for count in (k, len(content) + 3):
        scores, ids = table.search(queries, count)
        for query, found_scores, found_ids in zip(queries, scores, ids, strict=True):
            expected = expected_hits(content, query)[:count]
            found = table.segments(found_ids)
            assert found == [segment for _, segment in expected]
            assert found_scores == pytest.approx([score for score, _ in expected], abs=1e-6)
            for segment, frames in zip(found, table.frames(found_ids), strict=True):
                video = content[segment.video]
                number = video.spans.index((segment.start, segment.end))
                assert video.frames is not None
                torch.testing.assert_close(frames, video.frames[number].half(), rtol=0, atol=0)

"""One state of a local table."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from muse_adapter.retrieval.exact_recall import NotFiniteError
from muse_adapter.search.local.columns import (
    HALF,
    REMOVED_ROW,
    SEGMENT_ROW,
    VIDEO_ROW,
    PackedVideo,
    decode_name,
    map_file,
    map_tensor,
)
from muse_adapter.search.local.manifest import COLUMNS, Manifest, column_path
from muse_adapter.search.local.recall import GrowingRecall
from muse_adapter.search.segments import Segment

_ROW = VIDEO_ROW.size // 8  # numbers of a video
# Segments that are searched for each wanted video at most, before a second search for more.
_SEGMENTS_PER_VIDEO = 8
_SPARE = 32  # segments beyond them, since some videos are removed


class LocalTable:
    """One state of a local table: the bytes that a manifest names, mapped.

    Opening it reads none of them but the list of removed videos. What a search shows of a video is
    compared with its checksum when it is read for the first time; `damaged` compares everything.

    Args:
        folder: Of the table.
        manifest: Of the state.
        earlier: An earlier state, for what was prepared for its searches.

    Raises:
        FileNotFoundError: A file is missing, perhaps since another state is current.
        ValueError: A file is damaged.
    """

    def __init__(self, folder: Path, manifest: Manifest, earlier: LocalTable | None = None) -> None:
        self.folder, self.manifest = folder, manifest
        self._memory = {
            name: map_file(column_path(folder, name, manifest.generation), manifest.sizes[name])
            for name in COLUMNS
        }
        # Numbers one by one, which tensors would make slow.
        self._rows = self._memory["videos"].cast("q")
        self.count = len(self._rows) // _ROW
        dim = manifest.settings.dim
        self.vectors = map_tensor(self._memory["vectors"], torch.float16, dim)
        self._frames = map_tensor(
            self._memory["frames"], torch.float16, max(1, manifest.frame_width)
        )
        if zlib.crc32(self._memory["removed"]) != manifest.removed_crc:
            raise ValueError(f"{str(folder)!r} is damaged: its list of removed videos")
        self.removed = {number for (number,) in REMOVED_ROW.iter_unpack(self._memory["removed"])}
        self._checked: set[tuple[int, str]] = set()
        self._earlier = None
        if earlier is not None and earlier.manifest.generation == manifest.generation:
            # Not the state itself, which has one before, and so on.
            self._earlier = earlier.__dict__.get("_recall", earlier._earlier)

    @property
    def num_videos(self) -> int:
        """Number of videos that are not removed."""
        return self.manifest.num_videos

    @property
    def num_segments(self) -> int:
        """Number of segments of these videos."""
        return self.manifest.num_segments

    def search(self, vectors: Tensor, k: int) -> tuple[list[list[float]], list[list[int]]]:
        """Find the k videos with the largest inner products, each by its best segment.

        Args:
            vectors: (A, D).
            k: How many videos to find; fewer if there are fewer.

        Returns:
            For each query: scores, best first, and rows of segments.

        Raises:
            ValueError: A vector is damaged: it is not finite.
        """
        scores: list[list[float]] = [[] for _ in range(len(vectors))]
        rows: list[list[int]] = [[] for _ in range(len(vectors))]
        wanted, count = min(k, self.num_videos), len(self.vectors)
        pending = list(range(len(vectors))) if wanted else []
        per_video = min(_SEGMENTS_PER_VIDEO, -(-count // max(1, self.count)))
        width = wanted * per_video + _SPARE
        while pending:
            width = min(width, count)
            try:
                found, positions = self._recall.search(vectors[pending], width)
            except NotFiniteError as error:  # a damaged number may be infinite
                raise self._damage(str(error)) from error
            videos = self._videos_of(positions)
            for i, query in enumerate(pending):
                best = self._best(videos[i].tolist(), wanted)
                scores[query] = found[i, best].tolist()
                rows[query] = positions[i, best].tolist()
            if width == count:
                break
            pending = [query for query in pending if len(rows[query]) < wanted]
            width *= 4
        return scores, rows

    def segments(self, rows: Sequence[int]) -> list[Segment]:
        """Return segments by their rows.

        Raises:
            ValueError: The data of a video are damaged.
        """
        found = []
        for row, video in zip(rows, self._videos_of(torch.tensor(rows)).tolist(), strict=True):
            packed = self._checked_video(video, "segments")
            start, end, _ = SEGMENT_ROW.unpack_from(
                self._memory["segments"], row * SEGMENT_ROW.size
            )
            found.append(Segment(decode_name(packed.name), start, end))
        return found

    def frames(self, rows: Sequence[int]) -> list[Tensor]:
        """Return the frame features (T, F) of segments by their rows, in mapped memory.

        Raises:
            ValueError: The data of a video are damaged.
        """
        found = []
        for row, video in zip(rows, self._videos_of(torch.tensor(rows)).tolist(), strict=True):
            packed = self._checked_video(video, "frames")
            lengths = [length for _, _, length in SEGMENT_ROW.iter_unpack(packed.segments)]
            position = row - self._starts(video)[1]
            start = self._starts(video)[2] + sum(lengths[:position])
            found.append(self._frames[start : start + lengths[position]])
        return found

    def name(self, video: int) -> str:
        """Return the path of a video by its number."""
        start, end = self._starts(video)[0], self._rows[video * _ROW]
        return decode_name(self._memory["names"][max(0, start) : max(0, end)])

    @property
    def last_ends(self) -> tuple[int, int]:
        """Number of segments and of frames, those of removed videos too."""
        sizes, width = self.manifest.sizes, max(1, self.manifest.frame_width)
        return sizes["segments"] // SEGMENT_ROW.size, sizes["frames"] // (width * HALF)

    def num_segments_of(self, video: int) -> int:
        """Return how many segments a video has, by its number."""
        return len(self.packed(video).segments) // SEGMENT_ROW.size

    def live(self) -> Iterator[int]:
        """Iterate over the numbers of the videos that are not removed."""
        return (video for video in range(self.count) if video not in self.removed)

    def packed(self, video: int) -> PackedVideo:
        """Return the bytes of a video by its number, in mapped memory; they may be damaged."""
        name, segment, frame = self._starts(video)
        name_end, segment_end, frame_end, crc, frames_crc = self._rows[
            video * _ROW : (video + 1) * _ROW
        ]

        def part(column: str, start: int, end: int, size: int) -> memoryview:
            return self._memory[column][max(0, start) * size : max(0, end) * size]

        return PackedVideo(
            part("names", name, name_end, 1),
            part("segments", segment, segment_end, SEGMENT_ROW.size),
            part("vectors", segment, segment_end, self.manifest.settings.dim * HALF),
            part("frames", frame, frame_end, self.manifest.frame_width * HALF),
            frame_end - frame,
            crc,
            frames_crc,
        )

    def damaged(self) -> list[str]:
        """Compare all videos with their checksums, and return the damaged ones."""
        videos = ((video, self.packed(video)) for video in self.live())
        return [
            self.name(video)
            for video, packed in videos
            if not (packed.is_whole() and packed.frames_are_whole())
        ]

    @functools.cached_property
    def _recall(self) -> GrowingRecall:
        return GrowingRecall(self.vectors, self._earlier, self.manifest.max_norm)

    @functools.cached_property
    def _segment_ends(self) -> Tensor:
        rows = map_tensor(self._memory["videos"], torch.int64, _ROW)
        return rows[:, 1].contiguous()

    def _videos_of(self, rows: Tensor) -> Tensor:
        """Return the numbers of the videos of segments, in the same shape."""
        videos = torch.searchsorted(self._segment_ends, rows.long(), right=True)
        if rows.numel() and int(videos.max()) >= self.count:
            raise self._damage("its list of videos")
        return videos

    def _best(self, videos: list[int], count: int) -> list[int]:
        """Return the positions of the first `count` different videos that are not removed."""
        first: dict[int, int] = {}
        for position, video in enumerate(videos):
            if video not in first and video not in self.removed:
                first[video] = position
                if len(first) == count:
                    break
        return list(first.values())

    def _starts(self, video: int) -> tuple[int, int, int]:
        """Return where a video begins in names, segments and frames."""
        if not video:
            return 0, 0, 0
        row = (video - 1) * _ROW
        return self._rows[row], self._rows[row + 1], self._rows[row + 2]

    def _checked_video(self, video: int, what: str) -> PackedVideo:
        packed = self.packed(video)
        if (video, what) not in self._checked:
            if not (packed.is_whole() and (what != "frames" or packed.frames_are_whole())):
                raise self._damage(f"the {what} of {decode_name(packed.name)!r}")
            self._checked.add((video, what))
        return packed

    def _damage(self, what: str) -> ValueError:
        return ValueError(
            f"{str(self.folder)!r} is damaged: {what}. VideoIndex.verify() lists the damaged "
            "videos, to be removed and added again"
        )

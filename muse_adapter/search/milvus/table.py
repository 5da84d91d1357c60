"""Searching a table in Milvus."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from torch import Tensor

from muse_adapter.search.milvus.address import GROUPED
from muse_adapter.search.milvus.client import Client
from muse_adapter.search.milvus.rows import PLACE_FIELDS, row_frames, row_segment, video_of
from muse_adapter.search.segments import Segment, Settings

IDS_AT_ONCE = 1000  # in a request
_QUERIES_AT_ONCE = 64
_MOST_ROWS = 16384  # that Milvus returns at once
# Segments that are asked for first: for each wanted video, and beyond.
_SEGMENTS_PER_VIDEO = 8
_SPARE = 32

Row = Mapping[str, Any]
T = TypeVar("T")


class MilvusTable:
    """The table as it is when it is asked: Milvus keeps no earlier states.

    Args:
        client: Of the server.
        name: Of the collection.
        settings: Of the index.
        index: Its kind.
        search: Parameters of this kind.
    """

    def __init__(
        self,
        client: Client,
        name: str,
        settings: Settings,
        index: str,
        search: Mapping[str, int],
    ) -> None:
        self._client, self._name, self._settings = client, name, settings
        self._index, self._search = index, search
        self._consistency = client.address.consistency

    @property
    def num_videos(self) -> int:
        """Number of videos."""
        return self._count("number == 0")

    @property
    def num_segments(self) -> int:
        """Number of segments, and of rows that an interrupted addition has left."""
        return self._count("")

    def search(self, vectors: Tensor, k: int) -> tuple[list[list[float]], list[list[Row]]]:
        """Find the k videos with the largest inner products, each by its best segment.

        Args:
            vectors: (A, D).
            k: How many videos to find; fewer if there are fewer.

        Returns:
            For each query: scores, best first, and rows of segments without their data.

        Raises:
            OSError: Milvus reports an error.
            ValueError: The vectors have another width than the index.
        """
        if vectors.shape[1] != self._settings.dim:
            raise ValueError(
                f"the index has vectors of the width {self._settings.dim}, got {vectors.shape[1]}"
            )
        queries = vectors.detach().float().cpu()
        found = [_Found(k) for _ in range(len(queries))]
        for numbers in batches(range(len(queries)), _QUERIES_AT_ONCE):
            self._search_round(queries[list(numbers)].tolist(), [found[i] for i in numbers])
            for i in numbers:
                while not found[i].is_done:
                    self._search_round([queries[i].tolist()], [found[i]])
        return (
            [[row["distance"] for row in each.best] for each in found],
            [[row["entity"] for row in each.best] for each in found],
        )

    def _search_round(self, queries: list[list[float]], found: list[_Found]) -> None:
        """Ask for the best segments of all videos but those that were seen, and take them."""
        seen = found[0].seen  # of a single query, or empty
        # Segments of one video may fill an answer: then the next is wider, and leaves it out.
        grouping = self._index in GROUPED and self._client.knows_grouping()
        per_video = 1 if grouping else _SEGMENTS_PER_VIDEO
        limit = min((found[0].wanted * per_video + _SPARE) << found[0].rounds, _MOST_ROWS)
        parameters = {
            name: max(v, limit) if name == "ef" else v for name, v in self._search.items()
        }
        answers = self._client.call(
            "search",
            self._name,
            queries,
            filter=f"addition not in {quoted(sorted(seen))}" if seen else "",
            limit=limit,
            output_fields=PLACE_FIELDS,
            search_params={"metric_type": "IP", "params": parameters},
            consistency_level=self._consistency,
            **({"group_by_field": "addition"} if grouping else {}),
        )
        rows = [[dict(row) for row in answer] for answer in answers]
        current = self.current(
            row["entity"]["addition"]
            for answer in rows
            for row in answer
            if row["entity"]["count"] > 1
        )
        for each, answer in zip(found, rows, strict=True):
            each.take(answer, current, is_last=len(answer) < (1 if grouping else limit))

    def current(self, additions: Iterable[str], consistency: str = "") -> set[str]:
        """Return which additions of these videos are in the table, by the videos' first rows."""
        videos = list(dict.fromkeys(map(video_of, additions)))
        rows = self.rows(videos, ["addition"], consistency)
        return {row["addition"] for row in rows}

    def rows(self, ids: Sequence[str], fields: list[str], consistency: str = "") -> list[Row]:
        """Return the rows with these ids, in any order."""
        return [
            row
            for some in batches(ids, IDS_AT_ONCE)
            for row in self._client.call(
                "query",
                self._name,
                filter=f"id in {quoted(some)}",
                output_fields=["id", *fields],
                consistency_level=consistency or self._consistency,
            )
        ]

    def scan(self, condition: str, fields: list[str]) -> Iterator[list[Row]]:
        """Iterate over all rows that meet a condition, in blocks.

        Rows come in the order of their ids, so that after a lost connection the scan goes on behind
        the last one.
        """
        iterator, last = None, ""

        def next_block(client: Any, timeout: float) -> list[Row]:
            nonlocal iterator
            try:
                if iterator is None:
                    conditions = [condition] * bool(condition) + [f'id > "{last}"'] * bool(last)
                    # Later blocks have this time, too; where it is too short, it is made again.
                    iterator = client.query_iterator(
                        self._name,
                        batch_size=IDS_AT_ONCE,
                        filter=" and ".join(conditions),
                        output_fields=["id", *fields],
                        consistency_level="Strong",
                        timeout=timeout,
                    )
                block: list[Row] = iterator.next()
            except BaseException:
                iterator = None
                raise
            return block

        try:
            while block := self._client.attempt(next_block, self._name):
                last = block[-1]["id"]
                yield block
        finally:
            if iterator is not None:
                iterator.close()

    def segments(self, ids: Sequence[Row]) -> list[Segment]:
        """Return segments as `search` found them."""
        return [row_segment(row) for row in ids]

    def frames(self, ids: Sequence[Row]) -> list[Tensor]:
        """Return the frame features (T, F) of segments.

        Raises:
            ValueError: A video was removed since it was found, or is damaged.
        """
        names = [_row_id(row) for row in ids]
        rows = {row["id"]: row for row in self.rows(names, ["num_frames", "frames"])}
        if missing := [row for row, name in zip(ids, names, strict=True) if name not in rows]:
            video = row_segment(missing[0]).video
            raise ValueError(f"{video!r} was removed while it was searched: search again")
        found = []
        for row, name in zip(ids, names, strict=True):
            try:
                found.append(row_frames(rows[name]))
            except (ValueError, RuntimeError) as error:
                raise ValueError(
                    f"{row_segment(row).video!r} is damaged: {error}. VideoIndex.verify() lists "
                    "the damaged videos, to be removed and added again"
                ) from error
        return found

    def _count(self, condition: str) -> int:
        answer = self._client.call(
            "query",
            self._name,
            filter=condition,
            output_fields=["count(*)"],
            consistency_level="Strong",
        )
        return int(answer[0]["count(*)"])


class _Found:
    """The videos that were found for a query, best first."""

    def __init__(self, wanted: int) -> None:
        self.wanted = wanted
        self.best: list[dict[str, Any]] = []
        self.seen: set[str] = set()  # additions
        self.rounds = 0
        self.is_done = False

    def take(self, rows: list[dict[str, Any]], current: set[str], *, is_last: bool) -> None:
        """Take the next rows, best first; those of several segments only if they are current."""
        for row in rows:
            place = row["entity"]
            if place["addition"] not in self.seen and len(self.best) < self.wanted:
                self.seen.add(place["addition"])
                if place["count"] == 1 or place["addition"] in current:
                    self.best.append(row)
        self.rounds += 1
        self.is_done = is_last or len(self.best) == self.wanted


def _row_id(place: Row) -> str:
    addition, number = place["addition"], place["number"]
    return f"{addition}/{number}" if number else video_of(addition)


def quoted(texts: Sequence[str]) -> str:
    """Write a list of texts in the language of filters."""
    return "[" + ", ".join(f'"{text}"' for text in texts) + "]"


def batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Cut a sequence into parts of a size at most."""
    return (items[start : start + size] for start in range(0, len(items), size))

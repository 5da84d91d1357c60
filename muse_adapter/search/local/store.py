"""Creating, opening, reading and writing a local table."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from muse_adapter.files import sync_folder, write_errors, write_whole
from muse_adapter.search.local.columns import Appender, pack_video
from muse_adapter.search.local.lock import LOCK_NAME, writer_lock
from muse_adapter.search.local.manifest import (
    COLUMNS,
    MANIFEST_NAME,
    Manifest,
    column_path,
    read_manifest,
    write_manifest,
)
from muse_adapter.search.local.table import LocalTable
from muse_adapter.search.segments import Settings, VideoSegments

MODEL_NAME = "model.safetensors"
_COLUMN_FILE = re.compile(rf"({'|'.join(COLUMNS)})-(?P<generation>\d+)\.bin")
# How often a state is looked for, while others compact the table one time after the other.
_ATTEMPTS = 10
_VIDEOS_AT_ONCE = 64  # that are copied in memory


class LocalStore:
    """A table of segments in a folder, see the package's docstring.

    Args:
        folder: Of an existing table.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is damaged, or of another version of the format.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._table: LocalTable | None = None
        self._numbers = _Numbers()
        self.settings: Settings = self.read().manifest.settings
        try:
            self.model = (folder / MODEL_NAME).read_bytes()
        except FileNotFoundError as error:
            raise ValueError(f"{str(folder)!r} is damaged: it has no {MODEL_NAME}") from error

    @classmethod
    def create(cls, folder: Path, settings: Settings, model: bytes) -> LocalStore:
        """Create an empty table in a folder that is empty or does not exist.

        Raises:
            FileExistsError: There is a table, or something else.
            BlockingIOError: Another process creates one.
        """
        with write_errors("an index", folder):
            created = [parent for parent in folder.parents if not parent.exists()]
            folder.mkdir(parents=True, exist_ok=True)
        with writer_lock(folder):
            if (folder / MANIFEST_NAME).exists():
                raise FileExistsError(
                    f"there is an index in {str(folder)!r}: open it with VideoIndex.open"
                )
            ours = re.compile(rf"{LOCK_NAME}|{MODEL_NAME}|\..*\.part")
            if others := [path.name for path in folder.iterdir() if not ours.fullmatch(path.name)]:
                raise FileExistsError(
                    f"{str(folder)!r} must be empty for an index, it has {sorted(others)[0]!r}"
                )
            with write_errors("an index", folder):
                write_whole({folder / MODEL_NAME: model})
                write_manifest(folder, Manifest(settings))
                for parent in (folder.parent, *(path.parent for path in created)):
                    sync_folder(parent)
        return cls(folder)

    def read(self) -> LocalTable:
        """Return the current state.

        Raises:
            FileNotFoundError: The table was deleted.
            ValueError: It is damaged, or another one was created in its place.
        """
        for attempt in itertools.count(1):
            manifest = read_manifest(self._folder)
            if self._table is not None:
                if self._table.manifest == manifest:
                    return self._table
                if self._table.manifest.table != manifest.table:
                    raise ValueError(
                        f"another index was created in {str(self._folder)!r} since this one was "
                        "opened: open it again"
                    )
            try:
                self._table = LocalTable(self._folder, manifest, self._table)
            except FileNotFoundError as error:
                # Compacted since the manifest was read, unless it is the same manifest again.
                if read_manifest(self._folder) == manifest or attempt == _ATTEMPTS:
                    raise ValueError(f"{str(self._folder)!r} is damaged: {error}") from error
            else:
                return self._table
        raise AssertionError("the loop ends by itself")

    @contextlib.contextmanager
    def write(self) -> Iterator[LocalWriter]:
        """Begin to write; a second writer is refused until the context ends.

        Raises:
            BlockingIOError: Another one writes; the message names its process and host.
        """
        with writer_lock(self._folder):
            self._remove_leftovers()
            yield LocalWriter(self._folder, self, self._numbers)

    def verify(self) -> list[str]:
        """Compare all data with their checksums, and return the damaged videos."""
        return self.read().damaged()

    def close(self) -> None:
        """Let go of the mapped files."""
        self._table = None

    def _remove_leftovers(self) -> None:
        """Delete files of other generations: a writer was killed before it did."""
        generation = self.read().manifest.generation
        for path in self._folder.iterdir():
            match = _COLUMN_FILE.fullmatch(path.name)
            if match and int(match["generation"]) != generation:
                path.unlink(missing_ok=True)


class LocalWriter:
    """Changes a table while it holds the lock.

    Args:
        folder: Of the table.
        store: Reads its current state.
        numbers: Of its videos, kept from one writer to the next.
    """

    def __init__(self, folder: Path, store: LocalStore, numbers: _Numbers) -> None:
        self._folder, self._store, self._numbers = folder, store, numbers
        self._table = store.read()  # the current state, since nobody else writes

    def present(self, videos: Sequence[str]) -> set[str]:
        """Return which of these videos are in the table."""
        return self._numbers.of(self._table).keys() & set(videos)

    def append(self, videos: Sequence[VideoSegments]) -> None:
        """Add videos that are not in the table: all of them, or none after a crash.

        Raises:
            ValueError: A value is not finite in half precision, or a width is another one.
        """
        manifest = self._table.manifest
        widths = {manifest.frame_width} - {0}
        widths |= {frames.shape[1] for video in videos for frames in video.frames or ()}
        if len(widths) > 1:
            raise ValueError(f"frame features must be of one width, got {sorted(widths)}")
        appender = self._appender(manifest)
        packed = [pack_video(video) for video in videos]
        with write_errors("an index", self._folder):
            appender.append(packed)
        self._commit(
            manifest,
            appender,
            frame_width=max(widths, default=0),
            max_norm=_max_norm(manifest.max_norm, videos),
            num_videos=manifest.num_videos + len(videos),
            num_segments=manifest.num_segments + sum(len(video.spans) for video in videos),
        )

    def remove(self, videos: Iterable[str]) -> None:
        """Remove videos that are in the table, all or none.

        Raises:
            KeyError: A video is not in the table.
        """
        table = self._table
        known, names = self._numbers.of(table), dict.fromkeys(videos)
        if unknown := [video for video in names if video not in known]:
            others = f" and {len(unknown) - 1} others" if len(unknown) > 1 else ""
            raise KeyError(f"not in the index: {unknown[0]!r}{others}")
        numbers, manifest = sorted(known[video] for video in names), table.manifest
        if not numbers:
            return
        appender = self._appender(manifest)
        with write_errors("an index", self._folder):
            content = appender.append_removed(numbers)
        segments = sum(table.num_segments_of(number) for number in numbers)
        self._commit(
            manifest,
            appender,
            num_videos=manifest.num_videos - len(numbers),
            num_segments=max(0, manifest.num_segments - segments),
            removed_crc=zlib.crc32(content, manifest.removed_crc),
        )

    def compact(self) -> None:
        """Copy the videos that are not removed to new files, and delete the old ones.

        Raises:
            ValueError: The data of a video are damaged; nothing has changed.
        """
        table, manifest = self._table, self._table.manifest
        if not table.removed:
            return
        if damaged := table.damaged():
            raise ValueError(
                f"{str(self._folder)!r} has damaged videos, to be removed first: {damaged[:3]}"
                + (f" and {len(damaged) - 3} others" if len(damaged) > 3 else "")
            )
        generation = manifest.generation + 1
        appender = Appender(self._folder, generation, dict.fromkeys(COLUMNS, 0), (0, 0))
        numbers = table.live()
        with write_errors("an index", self._folder):
            while some := list(itertools.islice(numbers, _VIDEOS_AT_ONCE)):
                appender.append(map(table.packed, some))
        num_segments, _ = appender.ends  # also where damage had led to another count
        self._commit(
            manifest,
            appender,
            generation=generation,
            num_segments=num_segments,
            removed_crc=0,
        )
        for name in COLUMNS:
            column_path(self._folder, name, manifest.generation).unlink(missing_ok=True)

    def _appender(self, manifest: Manifest) -> Appender:
        ends = self._table.last_ends
        return Appender(self._folder, manifest.generation, manifest.sizes, ends)

    def _commit(self, manifest: Manifest, appender: Appender, **changes: Any) -> None:
        """Bring all files to the disk, then the manifest that names their new bytes."""
        changed = dataclasses.replace(
            manifest, commit=manifest.commit + 1, sizes=appender.sizes, **changes
        )
        try:
            with write_errors("an index", self._folder):
                appender.sync()
                sync_folder(self._folder)
                write_manifest(self._folder, changed)
        finally:  # an error may come after the manifest was renamed
            self._table = self._store.read()


def _max_norm(known: float | None, videos: Sequence[VideoSegments]) -> float | None:
    """Return a bound on norms that also holds for the vectors of `videos`, as they are stored."""
    if known is None or not videos:
        return known
    stored = torch.cat([video.vectors.detach().cpu() for video in videos]).half().double()
    return max([known, *torch.linalg.vector_norm(stored, dim=1).tolist()])


class _Numbers:
    """The numbers of videos by their names, kept up with a growing table."""

    def __init__(self) -> None:
        self._by_name: dict[str, int] = {}
        self._removed: set[int] = set()
        self._generation = self._seen = 0
        self._commit = -1

    def of(self, table: LocalTable) -> dict[str, int]:
        """Return the numbers of the videos of a table, not of an earlier one than before."""
        if table.manifest.commit == self._commit:
            return self._by_name
        if table.manifest.generation != self._generation:
            self._by_name, self._removed, self._seen = {}, set(), 0
            self._generation = table.manifest.generation
        for number in range(self._seen, table.count):
            self._by_name[table.name(number)] = number
            self._seen = number + 1
        for number in table.removed - self._removed:
            # It may have been added again since.
            if self._by_name.get(table.name(number)) == number:
                del self._by_name[table.name(number)]
        self._removed |= table.removed
        self._commit = table.manifest.commit  # last: an interrupted call is made again
        return self._by_name

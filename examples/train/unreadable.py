"""Videos that cannot be read, found before a run begins; all processes agree on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from tqdm import tqdm

from examples.train.processes import gather, on_all, rank_and_world
from muse_adapter.data.annotations import why_unreadable

LISTED = 10


def find_unreadable(files: Sequence[str], *, progress: bool = True) -> dict[str, str]:
    """Open each video and decode its first frame; the processes share the work.

    Args:
        files: The videos.
        progress: Whether the first process shows a bar.

    Returns:
        The reason for each that cannot be read, in the given order.
    """
    rank, world = rank_and_world()
    own = files[rank::world]
    found = on_all(lambda: _reasons(own, progress=progress and rank == 0))
    reasons = {file: reason for part in gather(found) for file, reason in part.items()}
    return {file: reasons[file] for file in files if file in reasons}


def describe(unreadable: Mapping[str, str], total: int) -> str:
    """Say how many videos cannot be read, and of the first ones why."""
    lines = [f"{len(unreadable)} of {total} videos cannot be read:"]
    lines += [f"  {reason}" for reason in list(unreadable.values())[:LISTED]]
    if len(unreadable) > LISTED:
        lines.append(f"  and {len(unreadable) - LISTED} more")
    return "\n".join(lines)


def _reasons(files: Sequence[str], *, progress: bool) -> dict[str, str]:
    pool = ThreadPoolExecutor()  # FFmpeg works, and waits for the disk, outside Python's lock
    try:
        reasons = tqdm(
            pool.map(why_unreadable, files),
            total=len(files),
            desc="checking videos",
            disable=not progress,
        )
        return {
            file: reason for file, reason in zip(files, reasons, strict=True) if reason is not None
        }
    finally:
        pool.shutdown(cancel_futures=True)

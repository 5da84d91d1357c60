"""What a run that was killed goes on from."""

from __future__ import annotations

import json
from pathlib import Path

STATE = "trainer_state.json"  # written last, see `RetrievalTrainer`


def last_checkpoint(folder: Path, processes: int) -> Path | None:
    """Find the newest checkpoint that was written completely.

    Args:
        folder: Where the trainer keeps its checkpoints.
        processes: Number of processes, each with a state of its random numbers.

    Returns:
        Its folder; None where there is none.
    """
    found = [path for path in folder.glob("checkpoint-*") if _is_complete(path, processes)]
    return max(found, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def _is_complete(checkpoint: Path, processes: int) -> bool:
    ranks = [""] if processes == 1 else [f"_{rank}" for rank in range(processes)]
    try:
        json.loads((checkpoint / STATE).read_text())
    except (OSError, ValueError):
        return False
    return all((checkpoint / f"rng_state{rank}.pth").is_file() for rank in ranks)

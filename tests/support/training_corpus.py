"""A corpus of small videos, its CSV and a tiny CLIP in files, to train on."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np

COLOURS = {"red": (200, 40, 40), "green": (40, 200, 40)}
THINGS = {"dog": 4, "cat": 8, "ball": 12}
PARTS = {"train": 8, "validation": 2, "test": 2}


def write_corpus(folder: Path) -> None:
    """Write 12 videos, two captions of each, and a CLIP of random weights."""
    from tests.support.video_files import write_video

    rows = ["video,caption,split"]
    parts = [part for part, count in PARTS.items() for _ in range(count)]
    kinds = [(c, t, m) for c in COLOURS for t in THINGS for m in (1, -1)]
    (folder / "videos").mkdir()
    for i, ((colour, thing, motion), part) in enumerate(zip(kinds, parts, strict=True)):
        picture = np.full((32, 32, 3), 90, np.uint8)
        picture[8 : 8 + THINGS[thing], 8 : 8 + THINGS[thing]] = COLOURS[colour]
        # Some are shorter than the frames that are sampled, so that batches are padded.
        frames = [np.roll(picture, 3 * motion * t, axis=1) for t in range(3 + i % 3)]
        write_video(folder / "videos" / f"v{i}.mp4", frames)
        side = "right" if motion == 1 else "left"
        rows.append(f"v{i},a {colour} {thing} moves {side},{part}")
        rows.append(f"v{i},the {thing} moves {side},{part}")
    (folder / "captions.csv").write_text("\n".join(rows))
    write_clip(folder / "clip")


def write_clip(folder: Path) -> None:
    """Save a tiny CLIP with its processor."""
    import torch

    from tests.support.tiny_towers import tiny_clip

    torch.manual_seed(0)
    model, processor = tiny_clip()
    with torch.no_grad():
        model.logit_scale.fill_(3.0)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def settings_of(folder: Path, **fields: Any) -> Any:
    """Make the settings of a run on the corpus: 4 steps an epoch, 2 epochs."""
    from examples.train.settings import RunSettings

    defaults: dict[str, Any] = {
        "annotations": str(folder / "captions.csv"),
        "videos": str(folder / "videos"),
        "model": str(folder / "clip"),
        **{"frames": 4, "fps": 8.0, "batch_size": 4, "epochs": 2},
        **{"lr": 1e-3, "backbone_lr_scale": 1.0},
    }
    return RunSettings.of("csv", **defaults | fields)


def run_in_process(
    settings: Any,
    execution: Any,
    environment: dict[str, str],
    kill_at: int | None = None,
    kill_saving: int | None = None,
) -> None:
    """Run in a process of its own, which may end itself with SIGKILL.

    Args:
        settings: Of the run.
        execution: How it is carried out.
        environment: As torchrun sets it.
        kill_at: At the end of this step.
        kill_saving: While it writes its random numbers to the checkpoint of this step.
    """
    os.environ.update(environment)
    # The path is that of the tests, where a torchvision may be that cannot be loaded here.
    sys.path = [path for path in sys.path if path != os.environ.get("BACKBONE_LIBRARIES")]
    import torch

    from examples.train import run, trainer

    torch.set_num_threads(1)
    if kill_at is not None:
        limit = trainer.LimitLogitScale.on_step_end

        def kill(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            limit(self, args, state, control, **kwargs)
            if state.global_step == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

        trainer.LimitLogitScale.on_step_end = kill  # type: ignore[method-assign]
    if kill_saving is not None:

        def write_half(self: Any, folder: str) -> None:
            if self.state.global_step == kill_saving:
                Path(folder, f"rng_state_{self.args.process_index}.pth").write_bytes(b"PK")
                os.kill(os.getpid(), signal.SIGKILL)
            save(self, folder)

        save = trainer.SentenceTransformerTrainer._save_rng_state
        trainer.SentenceTransformerTrainer._save_rng_state = write_half
    run.run(settings, execution)


def start(*runs: tuple[Any, ...]) -> list[int | None]:
    """Run processes at the same time and return their exit codes; they import once, together.

    Args:
        runs: The arguments of `run_in_process`, for each.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["examples.train.run"])
    processes = [context.Process(target=run_in_process, args=run) for run in runs]
    for process in processes:
        process.start()
    for process in processes:
        process.join(150)
        assert process.exitcode is not None, "a process hangs"
    return [process.exitcode for process in processes]


def launch(processes: int) -> list[dict[str, str]]:
    """Return the environment of each process, as torchrun sets it."""
    if processes == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
    return [{**group, "RANK": str(r), "LOCAL_RANK": str(r)} for r in range(processes)]


def weights(folder: Path) -> dict[str, Any]:
    """Read the weights of a saved model, and what was trained beside it."""
    from safetensors.torch import load_file

    parts = {
        "clip": folder / "model.safetensors",
        "head": folder / "muse_head" / "model.safetensors",
        "objective": folder / "objective.safetensors",
    }
    return {
        f"{part}.{name}": tensor
        for part, file in parts.items()
        for name, tensor in load_file(file).items()
    }

"""Host checkouts for the tests: small replicas, and real ones named by environment variables.

If `MUSE_ADAPTER_CLIP4CLIP` and `MUSE_ADAPTER_XCLIP` hold paths of checkouts (CLIP4Clip 508ffa3,
X-CLIP 6b5344f), the same tests also run on copies of those. They need the libraries in `NEEDED`.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import random
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from muse_adapter import __main__ as cli

HERE = Path(__file__).resolve().parent
VARIABLES = {"clip4clip": "MUSE_ADAPTER_CLIP4CLIP", "xclip": "MUSE_ADAPTER_XCLIP"}
FILES = {
    "clip4clip": ("modules/modeling.py", "main_task_retrieval.py", "CLIP4Clip"),
    "xclip": ("modules/modeling_xclip.py", "main_xclip.py", "XCLIP"),
}
NEEDED = ("cv2", "ftfy", "regex", "tqdm", "boto3", "requests", "pandas", "torchvision")
EVERY_HOST = [
    pytest.param((kind, real), id=f"{kind}-{'real' if real else 'replica'}")
    for kind in FILES
    for real in (False, True)
    if not real or os.environ.get(VARIABLES[kind])
]
DIM, WORDS, FRAMES, PATCH, SIDE = 64, 8, 4, 8, 4
SHAPES = {
    "visual.proj": (128, DIM),
    "visual.conv1.weight": (128, 3, PATCH, PATCH),
    "visual.positional_embedding": (1 + SIDE * SIDE, 128),
    "visual.transformer.resblocks.0.attn.in_proj_weight": (384, 128),
    "text_projection": (DIM, DIM),
    "positional_embedding": (16, DIM),
    "token_embedding.weight": (50, DIM),
    "ln_final.weight": (DIM,),
    "transformer.resblocks.0.ln_1.weight": (DIM,),
}


@dataclass
class Host:
    """A checkout on disk.

    Attributes:
        kind: "clip4clip" or "xclip".
        path: Its folder, a copy that tests may change.
        real: Whether it is a real checkout, not a replica.
    """

    kind: str
    path: Path
    real: bool

    @property
    def model_file(self) -> Path:
        """Path of the model's file."""
        return self.path / FILES[self.kind][0]

    @property
    def main_file(self) -> Path:
        """Path of the main script."""
        return self.path / FILES[self.kind][1]

    def contents(self) -> dict[str, bytes]:
        """Return the bytes of every file by name."""
        files = (path for path in self.path.rglob("*") if path.is_file())
        return {
            str(path.relative_to(self.path)): path.read_bytes()
            for path in files
            if "__pycache__" not in path.parts and ".git" not in path.parts
        }


def make_host(folder: Path, kind: str, real: bool = False) -> Host:
    """Copy a checkout into a folder."""
    path = folder / kind
    if real:
        ignored = shutil.ignore_patterns("__pycache__", "*.part", ".git")
        shutil.copytree(os.environ[VARIABLES[kind]], path, ignore=ignored)
    else:
        shutil.copytree(HERE / "host_replicas", path, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(HERE / "bert_adam.py", path / "modules" / "optimization.py")
    return Host(kind, path, real)


def patch(host: Host, *options: str) -> int:
    """Run `muse-adapter patch` on a checkout; return its exit status."""
    return cli.main(["patch", host.kind, str(host.path), *options])


def edit(path: Path, old: str, new: str) -> None:
    """Replace the first occurrence of a text in a file, which must be there."""
    text = path.read_text(encoding="utf-8")
    assert old in text, f"{old!r} is not in {path.name}"
    path.write_text(text.replace(old, new, 1), encoding="utf-8", newline="")


class Unwrapped(nn.Module):
    """A stand-in for DistributedDataParallel, which the real hosts use with devices."""

    def __init__(self, module: nn.Module, **_: Any) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any) -> Any:
        return self.module(*args)


class Session:
    """The modules of a host, imported from its folder."""

    def __init__(self, host: Host, modeling: ModuleType, main: ModuleType) -> None:
        self.host, self.modeling, self.main = host, modeling, main

    def args(self, *given: str) -> Any:
        """Return the arguments as the main script parses them."""
        base = ["main", "--do_train", "--output_dir", "out", "--loose_type", "--lr", "1e-3"]
        base += ["--coef_lr", "0.1", "--max_words", str(WORDS), "--max_frames", str(FRAMES)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [*base, *given])
            args = self.main.get_args()
        args.local_rank, args.rank, args.world_size = 0, 0, 1
        return args

    def build(self, args: Any, seed: int = 0) -> Any:
        """Build the model from a seed."""
        torch.manual_seed(seed)
        state = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
        cross = importlib.import_module("modules.module_cross")
        config = cross.CrossConfig(50, hidden_size=DIM, max_position_embeddings=128)
        with pytest.MonkeyPatch.context() as patch:
            if self.host.real:  # no half precision on a CPU
                patch.setattr(self.modeling, "convert_weights", lambda model: None)
            return getattr(self.modeling, FILES[self.host.kind][2])(config, state, args)

    def optimizer(self, args: Any, model: Any, steps: int = 10) -> Any:
        """Build the optimizer as the main script does."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.nn.parallel, "DistributedDataParallel", Unwrapped)
            return self.main.prep_optimizer(
                args, model, steps, torch.device("cpu"), 1, 0, coef_lr=args.coef_lr
            )[0]

    def load(self, args: Any, state: Any, seed: int = 1) -> Any:
        """Build a model and load a checkpoint as the host does."""
        model = self.build(args, seed)
        return type(model).init_preweight(model, state, task_config=args)

    def similarity(self, model: Any, batch: tuple[Tensor, ...]) -> Tensor:
        """Compute the similarities (texts, videos) as the host's evaluation does."""
        ids, mask, types, video, video_mask = batch
        model.eval()
        with torch.no_grad():
            text, frames = model.get_sequence_visual_output(ids, types, mask, video, video_mask)
            text = text if isinstance(text, tuple) else (text,)
            return model.get_similarity_logits(
                *text, frames, mask, video_mask, loose_type=model.loose_type
            )[0]

    def train(self, model: Any, optimizer: Any, batches: list[tuple[Tensor, ...]]) -> list[float]:
        """Train as the main script does; return the losses."""
        model.train()
        losses = []
        for ids, mask, types, video, video_mask in batches:
            loss = model(ids, types, mask, video, video_mask)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        return losses


def make_batch(seed: int = 0, videos: int = 3, frames: tuple[int, ...] = (4, 2, 3)) -> Any:
    """Draw ids, mask, types (B, 1, words), video (B, 1, T, 1, 3, h, w), video mask (B, 1, T)."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 49, (videos, 1, WORDS), generator=draw)
    ids[..., -1] = 49  # the real CLIP reads at the end of text
    size = PATCH * SIDE
    video = torch.randn(videos, 1, FRAMES, 1, 3, size, size, generator=draw)
    video_mask = (torch.arange(FRAMES) < torch.tensor(frames)[:, None]).long().unsqueeze(1)
    video[video_mask[:, :, :, None, None, None, None].expand_as(video) == 0] = 0
    return ids, torch.ones_like(ids), torch.zeros_like(ids), video, video_mask


@contextlib.contextmanager
def imported(host: Host) -> Iterator[Session]:
    """Import a host from its folder, and remove its modules afterwards."""
    before = set(sys.modules)
    made_group = False
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(host.path))
        patch.setattr(sys, "dont_write_bytecode", True)
        if host.real:
            for name in NEEDED:
                pytest.importorskip(name, reason=f"a real checkout needs {name}")
            if not torch.distributed.is_initialized():
                store = torch.distributed.HashStore()
                torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
                made_group = True
            patch.setattr(torch.distributed, "init_process_group", lambda **_: None)
        try:
            modeling = importlib.import_module(f"modules.{host.model_file.stem}")
            main = importlib.import_module(host.main_file.stem)
            state = random.getstate()
            yield Session(host, modeling, main)
            random.setstate(state)
        finally:
            if made_group:
                torch.distributed.destroy_process_group()
            for name in set(sys.modules) - before:
                if lies_in(host.path, sys.modules[name]):
                    del sys.modules[name]


def lies_in(folder: Path, module: ModuleType) -> bool:
    """Return whether a module comes from a folder; one without `__init__.py` has no file."""
    file = getattr(module, "__file__", None)
    places = [file] if file else getattr(module, "__path__", [])
    return any(Path(place).is_relative_to(folder) for place in places)

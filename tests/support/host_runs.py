"""Training runs of host checkouts with a small head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.support.hosts import Session, make_batch

SMALL = ["--muse", "--muse_depth", "2", "--muse_d_state", "4", "--muse_scales", "0.5", "1"]


def same(first: Any, second: Any) -> bool:
    """Return whether tensors and numbers in nested containers are bit-identical."""
    if isinstance(first, Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return list(first) == list(second) and all(same(first[k], second[k]) for k in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


def run(session: Session, *options: str, steps: int = 3) -> dict[str, Any]:
    """Train from the start; return losses, groups, similarities, weights and random state."""
    args = session.args(*options)
    model = session.build(args)
    optimizer = session.optimizer(args, model)
    names = {id(p): name for name, p in model.named_parameters()}
    groups = [
        {
            **{k: v for k, v in g.items() if k != "params"},
            "names": [names[id(p)] for p in g["params"]],
        }
        for g in optimizer.param_groups
    ]
    losses = session.train(model, optimizer, [make_batch(seed) for seed in range(steps)])
    return {
        "losses": losses,
        "groups": groups,
        "similarity": session.similarity(model, make_batch(9)),
        "state": dict(model.state_dict()),
        "random": torch.random.get_rng_state(),
    }


def train(session: Session, *options: str) -> tuple[Any, Any, Any]:
    """Train three steps; return arguments, model and optimizer."""
    args = session.args(*SMALL, *options)
    model = session.build(args)
    optimizer = session.optimizer(args, model)
    session.train(model, optimizer, [make_batch(seed) for seed in range(3)])
    return args, model, optimizer


def save_and_load(state: Any, folder: Path) -> Any:
    """Write a state to a file and read it back."""
    torch.save(state, folder / "state.bin")
    return torch.load(folder / "state.bin", weights_only=True)

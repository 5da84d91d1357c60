"""MamFusion on features of real data: the files of PRVR code, with the published settings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from examples.quickstart.files import ensure_folder, read_tensors, write_json, write_tensors
from muse_adapter import MamFusion, param_groups
from muse_adapter.data.prvr import PrvrDataset, collate_prvr, evaluate_prvr
from muse_adapter.presets import MamFusionSettings

EVALUATION_BATCH = 32


def train_on_features(
    splits: Mapping[str, PrvrDataset],
    preset: MamFusionSettings,
    folder: Path,
    *,
    seed: int = 0,
    epochs: int | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Train MamFusion as published, keep the best by SumR on validation, evaluate it on the test.

    A checkpoint is written after each epoch; the same call goes on from there. Two things differ
    from the published code: the optimiser is AdamW with gradients clipped together, and hard
    negatives are the hardest of both directions.

    Args:
        splits: The data sets "train", "val" and "test", as from `open_prvr`.
        preset: Settings of the data set; the widths are those of the features.
        folder: Gets the checkpoint, `model`, the best weights, and `results.json`.
        seed: Of the weights, the order of the videos and the dropout.
        epochs: Passes over the data; None: those of the preset.
        progress: Whether to show a progress bar.

    Returns:
        What was written to `results.json`.

    Raises:
        ValueError: The checkpoint is of other settings or damaged.
        FloatingPointError: The loss is not finite.
    """
    ensure_folder(folder)
    epochs = preset.epochs if epochs is None else epochs
    frames, words, _ = splits["train"][0]
    config = replace(preset.config, visual_width=frames.shape[-1], text_width=words[0].shape[-1])
    torch.manual_seed(seed)
    model = MamFusion(config)
    optimizer = torch.optim.AdamW(
        param_groups(
            model, model, lr=preset.lr, head_lr_scale=1.0, weight_decay=preset.weight_decay
        )
    )
    path = folder / "checkpoint.pt"
    key = {"config": config.to_dict(), "seed": seed, "epochs": epochs}
    curve: list[float] = []
    if path.is_file():
        content = read_tensors(path, ["key", "model", "optimizer", "random", "curve"])
        if content["key"] != key:
            raise ValueError(f"{path} is of other settings or features, delete it and start again")
        model.load_state_dict(content["model"])
        optimizer.load_state_dict(content["optimizer"])
        torch.set_rng_state(content["random"])
        curve = content["curve"]
    for epoch in range(len(curve), epochs):
        if curve and len(curve) - 1 - curve.index(max(curve)) >= preset.patience:
            break
        _train_epoch(model, optimizer, splits["train"], preset, epoch, epochs, seed, progress)
        curve.append(evaluate_prvr(model, _loader(splits["val"]))["SumR"])
        if curve[-1] == max(curve):
            model.save_pretrained(folder / "model")
        content = {"key": key, "model": model.state_dict(), "optimizer": optimizer.state_dict(),
                   "random": torch.get_rng_state(), "curve": curve}  # fmt: skip
        write_tensors(path, content)
    best = MamFusion.from_pretrained(folder / "model")
    results = {
        "videos": {name: len(split) for name, split in splits.items()},
        "validation_sum_r": curve,
        "test": evaluate_prvr(best, _loader(splits["test"])),
    }
    write_json(folder / "results.json", results)
    return results


def _train_epoch(
    model: MamFusion,
    optimizer: torch.optim.Optimizer,
    training: PrvrDataset,
    preset: MamFusionSettings,
    epoch: int,
    epochs: int,
    seed: int,
    progress: bool,
) -> None:
    generator = torch.Generator().manual_seed(1_000_003 * seed + epoch)
    loader = DataLoader(
        training, preset.batch_size, shuffle=True, generator=generator, collate_fn=collate_prvr
    )
    model.train()
    bar = tqdm(loader, desc=f"epoch {epoch + 1}", unit="step", disable=not progress)
    for number, batch in enumerate(bar):
        rate = preset.lr * linear_rate(
            epoch * len(loader) + number, epochs * len(loader), preset.warmup
        )
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = model.loss(
            **{name: value for name, value in batch._asdict().items() if name != "sentence"},
            negatives="hardest" if epoch >= preset.hard_negatives_from else "random",
            weights=preset.weights,
            margin=preset.margin,
            delta=preset.delta,
        ).total
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"the loss is {loss.item()} in epoch {epoch + 1}")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)


def linear_rate(step: int, steps: int, warmup: float) -> float:
    """Factor of the learning rate in step `step` (from 0): a linear rise, then a fall to 0."""
    warm = max(1, round(warmup * steps))
    return (step + 1) / warm if step < warm else (steps - step) / max(1, steps - warm)


def _loader(split: PrvrDataset) -> DataLoader:
    return DataLoader(split, EVALUATION_BATCH, collate_fn=collate_prvr)

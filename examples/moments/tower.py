"""The frozen tower: a tiny dual encoder trained on frames, as CLIP is on pictures.

It sees the moments of the training videos one by one. What is trained on its features does not: a
sentence belongs to a whole video there, without times.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from examples.moments.moments import LongVideo, Moment
from examples.moments.settings import TowerSettings
from examples.quickstart.files import read_tensors, write_tensors
from examples.quickstart.objectives import batch_loss
from examples.quickstart.schedule import warmup_cosine
from examples.quickstart.tokenizer import WordTokenizer
from examples.quickstart.towers import ImageTower, TextTower
from examples.quickstart.train import MAX_LOGIT_SCALE

WARMUP = 0.1


class Tower(nn.Module):
    """Frames and words to features of one space.

    Args:
        settings: The settings.
        tokenizer: Of the sentences.
        size: Side of a frame in pixels.
    """

    def __init__(self, settings: TowerSettings, tokenizer: WordTokenizer, size: int) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.images = ImageTower(
            size=size, patch=settings.patch, width=settings.width, layers=settings.layers
        )
        self.text = TextTower(
            vocabulary=len(tokenizer),
            length=1 + tokenizer.max_words,
            width=settings.width,
            layers=settings.layers,
        )
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def encode_frames(self, frames: Tensor) -> Tensor:
        """Encode frames: uint8 (M, 3, size, size) to (M, 1 + H*W, D), the class token first."""
        return self.images(frames / 127.5 - 1)

    def encode_words(self, sentences: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Encode words: (Q, W, D), in the space of the class tokens, and their mask (Q, W)."""
        words, keep = self.text.encode_words(self.tokenizer(sentences))
        return self.text.project(words), keep

    def encode_sentences(self, sentences: Sequence[str]) -> Tensor:
        """Encode sentences: (Q, D), the mean of their words."""
        return self.text(self.tokenizer(sentences))


def train_tower(
    settings: TowerSettings,
    videos: Sequence[LongVideo],
    frames: Sequence[Tensor],
    path: Path,
    *,
    progress: bool = True,
) -> Tower:
    """Train the tower.

    Args:
        settings: The settings.
        videos: Training videos.
        frames: Their frames.
        path: File of the trained tower.
        progress: Whether to show a progress bar.
    """
    tower = build_tower(settings, videos, frames[0].shape[-1])
    samples = [
        (number, place)
        for number, video in enumerate(videos)
        for place in range(len(video.moments))
    ]
    static = [at for at in samples if not videos[at[0]].moments[at[1]].ordered]
    stages = [(static, 1)] * settings.picture_steps + [(samples, 2)] * settings.pair_steps
    optimizer = torch.optim.AdamW(
        [
            {"params": [*tower.images.parameters(), tower.logit_scale], "lr": settings.lr},
            {"params": tower.text.parameters(), "lr": settings.lr * settings.text_lr_scale},
        ],
        betas=(0.9, 0.98),
        weight_decay=0.05,
        fused=True,  # of hundreds of small tensors: one by one they take a tenth of a step
    )
    peaks = [group["lr"] for group in optimizer.param_groups]
    rng = np.random.default_rng(settings.seed)
    bar = tqdm(stages, desc="train tower", unit="step", disable=not progress)
    losses = []
    for step, (pool, count) in enumerate(bar):
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * warmup_cosine(step, len(stages), WARMUP)
        chosen = [pool[i] for i in rng.permutation(len(pool))[: settings.batch_size]]
        moments = [videos[number].moments[place] for number, place in chosen]
        pictures = torch.cat(
            [_pick(videos[n], frames[n], place, count, rng) for n, place in chosen]
        )
        classes = F.normalize(tower.encode_frames(pictures)[:, 0], dim=-1)
        seen = classes.unflatten(0, (len(chosen), count)).mean(1)
        texts = tower.encode_sentences([moment.sentence for moment in moments])
        cosines = F.normalize(texts, dim=-1) @ F.normalize(seen, dim=-1).T
        group_of = _same_things(moments)
        loss = batch_loss(tower.logit_scale.exp() * cosines, torch.arange(len(chosen)), group_of)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(tower.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            tower.logit_scale.clamp_(max=MAX_LOGIT_SCALE)
        losses.append(loss.item())
        bar.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
    write_tensors(path, {"tower": tower.state_dict(), "losses": losses})
    return tower.eval().requires_grad_(False)


def build_tower(settings: TowerSettings, videos: Sequence[LongVideo], size: int) -> Tower:
    """Build the tower with the words of the training videos, drawn from its seed."""
    sentences = [moment.sentence for video in videos for moment in video.moments]
    torch.manual_seed(settings.seed)
    return Tower(settings, WordTokenizer.from_captions(sentences), size)


def load_tower(tower: Tower, path: Path) -> Tower:
    """Load the weights that `train_tower` wrote.

    Raises:
        ValueError: The file is damaged, or of another tower.
    """
    try:
        tower.load_state_dict(read_tensors(path, ["tower", "losses"])["tower"])
    except RuntimeError as error:
        raise ValueError(f"{path} is of another tower, delete it and start again") from error
    return tower.eval().requires_grad_(False)


def _pick(
    video: LongVideo, frames: Tensor, place: int, count: int, rng: np.random.Generator
) -> Tensor:
    """Pick frames of a moment, one of each half, or one at all: (count, 3, size, size)."""
    first, last = video.spans[place]
    if count == 1:
        return frames[int(rng.integers(first, last + 1))][None]
    cut = first + video.cuts[place]
    return frames[[int(rng.integers(first, cut)), int(rng.integers(cut, last + 1))]]


def _same_things(moments: Sequence[Moment]) -> Tensor:
    """Return numbers (B,), equal for moments that show the same in any order."""
    numbers: dict[frozenset, int] = {}
    return torch.tensor(
        [numbers.setdefault(frozenset(moment.states), len(numbers)) for moment in moments]
    )

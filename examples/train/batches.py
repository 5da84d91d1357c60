"""Batches in which no video occurs twice, the same for every number of processes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

import torch
from sentence_transformers.base.sampler import DefaultBatchSampler


class DistinctVideos(DefaultBatchSampler):
    """Draw batches of captions of different videos, for the data set of a `Part`.

    A contrastive loss takes the other pairs of a step for negatives, also those of other processes.
    So a step is drawn as a whole and then cut into the batches of the processes.

    Args:
        targets: The video of each caption.
        batch_size: Captions in the batch of one process.
        processes: Number of processes.
        epochs: Number of epochs. All have the number of steps of the shortest.
        seed: Of the order.

    Raises:
        ValueError: There are fewer videos than captions in a step.
    """

    def __init__(
        self, targets: Sequence[int], *, batch_size: int, processes: int, epochs: int, seed: int
    ) -> None:
        super().__init__(range(len(targets)), batch_size=batch_size, drop_last=True)
        step = batch_size * processes
        videos = len(set(targets))
        if videos < step:
            raise ValueError(f"a step has {step} different videos, but there are only {videos}")
        self.steps = [draw_steps(targets, step, seed + epoch) for epoch in range(epochs)]
        self.processes = processes

    def __len__(self) -> int:
        return min(map(len, self.steps)) * self.processes

    def __iter__(self) -> Iterator[list[int]]:
        batches = (
            step[start : start + self.batch_size]
            for step in self.steps[self.epoch]
            for start in range(0, len(step), self.batch_size)
        )
        for _, batch in zip(range(len(self)), batches, strict=False):
            yield batch


def draw_steps(targets: Sequence[int], size: int, seed: int) -> list[list[int]]:
    """Draw steps of `size` captions of different videos, in a random order.

    A caption whose video is already in the step waits for the next one.

    Args:
        targets: The video of each caption.
        size: Captions in a step.
        seed: Of the order.

    Returns:
        The captions of each step; what does not fill a step is left out.
    """
    generator = torch.Generator().manual_seed(seed)
    order = deque(torch.randperm(len(targets), generator=generator).tolist())
    steps = []
    while len(order) >= size:
        step: dict[int, int] = {}  # caption by video
        waiting = []
        while order and len(step) < size:
            caption = order.popleft()
            if targets[caption] in step:
                waiting.append(caption)
            else:
                step[targets[caption]] = caption
        if len(step) < size:
            break
        steps.append(list(step.values()))
        order.extendleft(reversed(waiting))
    return steps

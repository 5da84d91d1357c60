"""The learning rate over the steps of a training."""

from __future__ import annotations

import math


def warmup_cosine(step: int, steps: int, warmup: float) -> float:
    """Return the factor of the learning rate: a linear warm-up, then a half cosine.

    Args:
        step: The step, from 0.
        steps: Number of steps.
        warmup: Share of the steps in which the rate rises.
    """
    warm = max(1, round(warmup * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))

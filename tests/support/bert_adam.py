"""BertAdam, the optimiser of the hosts; `test_optimisers.py` compares it with the official one."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


class BertAdam(torch.optim.Optimizer):
    """CLIP4Clip's optimiser: Adam without bias correction, warm-up, then a cosine schedule.

    Args:
        params: Groups, each optionally with its own lr and weight_decay.
        lr: Peak learning rate of groups without one.
        warmup: Fraction of `t_total` with a linearly rising rate.
        t_total: Number of steps.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        *,
        warmup: float,
        t_total: int,
        b1: float,
        b2: float,
        eps: float,
        weight_decay: float,
        max_grad_norm: float,
    ) -> None:
        defaults = {"lr": lr, "weight_decay": weight_decay}
        super().__init__(params, defaults)
        self.warmup, self.t_total, self.max_grad_norm = warmup, t_total, max_grad_norm
        self.b1, self.b2, self.eps = b1, b2, eps

    def rate(self, group: dict[str, Any], steps_taken: int) -> float:
        progress = steps_taken / self.t_total
        if progress < self.warmup:
            return group["lr"] * progress / self.warmup
        return group["lr"] * 0.5 * (1 + math.cos(math.pi * progress))

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["steps"] = 0
                    state["m"], state["v"] = (
                        torch.zeros_like(parameter),
                        torch.zeros_like(parameter),
                    )
                nn.utils.clip_grad_norm_(parameter, self.max_grad_norm)
                gradient: Tensor = parameter.grad
                state["m"].mul_(self.b1).add_(gradient, alpha=1 - self.b1)
                state["v"].mul_(self.b2).addcmul_(gradient, gradient, value=1 - self.b2)
                update = state["m"] / (state["v"].sqrt() + self.eps)
                update += group["weight_decay"] * parameter
                parameter -= self.rate(group, state["steps"]) * update
                state["steps"] += 1

    def get_lr(self) -> list[float]:
        """Compute the rate of the next step, for each parameter with a gradient."""
        return [
            self.rate(group, self.state[parameter]["steps"])
            for group in self.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]

"""One head on one case, ready to run again and again."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from benchmarks.contenders import Contender
from benchmarks.settings import DTYPES, Case, Settings

SAMPLED = 1 << 12  # numbers of a result that are kept


class Work:
    """A head with its weights, and the tokens of a case.

    The same seed gives every head of one function the same weights, and all heads the same tokens.

    Args:
        contender: the head.
        case: the tokens, and what is done with them.
        settings: device, type and width.
        module: the head itself, if it is there already.
    """

    def __init__(
        self,
        contender: Contender,
        case: Case,
        settings: Settings,
        module: nn.Module | None = None,
    ) -> None:
        self.contender, self.case, self.settings = contender, case, settings
        self.training = case.mode == "training"
        # Half precision is autocast's, as in the hosts: weights and tokens stay float32.
        dtype = torch.float64 if settings.dtype == "float64" else torch.float32
        torch.manual_seed(0)
        self.module = contender.build(settings.dim) if module is None else module
        self.module.to(settings.device, dtype).train(self.training)
        torch.manual_seed(1)
        tokens_a_frame = 1 + case.grid[0] * case.grid[1]
        tokens = torch.randn(case.batch, case.frames, tokens_a_frame, settings.dim)
        direction = torch.randn(case.batch, settings.dim)
        self.tokens = tokens.to(settings.device, dtype).requires_grad_(self.training)
        self.direction = direction.to(settings.device, dtype)  # the gradient that comes in

    def __call__(self) -> Tensor:
        """Run once: the embeddings, or in training the gradient of the tokens."""
        if not self.training:
            with torch.no_grad(), self.contender.force(), self._autocast():
                embedding: Tensor = self.module(self.tokens, grid=self.case.grid)
            return embedding
        self.step()
        assert self.tokens.grad is not None
        return self.tokens.grad

    def step(self) -> Tensor:
        """Forward and backward: the embeddings; gradients are left in weights and tokens."""
        self.module.zero_grad(set_to_none=True)
        self.tokens.grad = None
        with self.contender.force():
            with self._autocast():
                embedding: Tensor = self.module(self.tokens, grid=self.case.grid)
            embedding.backward(self.direction.to(embedding.dtype))
        return embedding

    def _autocast(self) -> AbstractContextManager[object]:
        if self.settings.dtype in ("float32", "float64"):
            return contextlib.nullcontext()
        return torch.autocast(self.settings.device, DTYPES[self.settings.dtype])


def sample(result: Tensor) -> list[float]:
    """Numbers from all over a result, to compare it by: all of a small one."""
    step = result.numel() // SAMPLED | 1  # odd, so that no width hides a channel from it
    return result.detach().flatten()[::step].double().tolist()

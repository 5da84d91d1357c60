"""The common part of both models: initialisation and loading as in the hosts, and the loss."""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn
from torch.nn import functional as F

logger = logging.getLogger(__name__)


class PreTrained(nn.Module):
    def __init__(self, config) -> None:
        super().__init__()
        self.config = config

    def init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    @classmethod
    def init_preweight(cls, model, state_dict, prefix=None, task_config=None):
        """Load module by module, rename old keys, and only log mismatches."""
        renamed = {
            key.replace("gamma", "weight").replace("beta", "bias"): key for key in state_dict
        }
        metadata = getattr(state_dict, "_metadata", {})
        values = {new: state_dict[old] for new, old in renamed.items()}
        missing: list[str] = []
        unexpected: list[str] = []
        errors: list[str] = []

        def load(module: nn.Module, prefix: str) -> None:
            own = metadata.get(prefix[:-1], {})
            module._load_from_state_dict(values, prefix, own, True, missing, unexpected, errors)
            for name, child in module.named_children():
                load(child, f"{prefix}{name}.")

        load(model, "")
        logger.info("not found %s, errors %s", missing, errors)
        return model


def contrast(similarity: Tensor) -> Tensor:
    target = torch.arange(len(similarity), device=similarity.device)
    return (F.cross_entropy(similarity, target) + F.cross_entropy(similarity.T, target)) / 2


def pooled(frames: Tensor, mask: Tensor) -> Tensor:
    """Normalise frames, average the real ones, and normalise the mean."""
    frames = frames / frames.norm(dim=-1, keepdim=True)
    weights = mask.float().unsqueeze(-1)
    count = weights.sum(1)
    count[count == 0] = 1
    mean = (frames * weights).sum(1) / count
    return mean / mean.norm(dim=-1, keepdim=True)

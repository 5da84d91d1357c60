"""Training: losses, optimiser groups, embeddings gathered from all processes."""

from muse_adapter.training import losses
from muse_adapter.training.distributed import gather_rows
from muse_adapter.training.losses import contrastive_loss
from muse_adapter.training.optim import param_groups

__all__ = ["contrastive_loss", "gather_rows", "losses", "param_groups"]

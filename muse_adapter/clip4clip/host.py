"""The four functions that the inserted lines call."""

from __future__ import annotations

import argparse
import logging
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from muse_adapter.checkpoint import convert_official, is_official
from muse_adapter.clip4clip.head import HostHead
from muse_adapter.config import AGGREGATIONS, INITS, MIXERS, MuseConfig
from muse_adapter.training.optim import undecayed_ids

logger = logging.getLogger(__name__)

# Value of --sim_header in the published command line: the head, pooled by the host's "meanP".
ALIAS = "MUSE"

# Fields of MuseConfig that are arguments, with their argparse options except the default.
SETTINGS: dict[str, dict[str, Any]] = {
    "scales": {"type": float, "nargs": "+", "help": "factors on the patch grid"},
    "aggregation": {"choices": AGGREGATIONS, "help": "order of the sequence"},
    "depth": {"type": int, "help": "mixer layers"},
    "mixer": {"choices": MIXERS, "help": "sequence mixer"},
    "d_state": {"type": int, "help": "state size of the scan"},
    "d_conv": {"type": int, "help": "taps of the mixer's convolution"},
    "expand": {"type": int, "help": "inner width of the mixer, as a multiple of its width"},
    "dropout": {"type": float, "help": "rate in the last layer, rising linearly from 0"},
    "init": {
        "choices": INITS,
        "help": "identity: the head starts as an identity; release: as in the official code",
    },
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--muse` and its settings, and the value MUSE for the host's `--sim_header` if any.

    Args:
        parser: The host's parser, with all of the host's arguments.
    """
    group = parser.add_argument_group("MUSE head (muse-adapter)")
    group.add_argument("--muse", action="store_true", help="enable the head")
    for name, options in SETTINGS.items():
        default = getattr(MuseConfig, name)
        summary = f"{options['help']} (default: {_command_line_form(default)})"
        group.add_argument(f"--muse_{name}", **{**options, "default": default, "help": summary})
    group.add_argument(
        "--muse_lr_scale", type=float, default=10.0, help="factor on --lr for the head (default 10)"
    )
    group.add_argument(
        "--muse_freeze_pyramid",
        action="store_true",
        help="keep the pyramid at its random initialisation, as in the official code",
    )
    group.add_argument(
        "--muse_grad_checkpointing",
        action="store_true",
        help="recompute the head in the backward pass: less memory, more time",
    )
    for action in parser._actions:
        if action.dest == "sim_header" and action.choices and ALIAS not in action.choices:
            action.choices = [*action.choices, ALIAS]


def attach(model: nn.Module, task_config: Any) -> None:
    """Set `model.muse` to the head, or to None if the head is disabled.

    Call it after the host's last `init_weights`, which would re-initialise the head's linear
    layers. Building the head does not change the host's random numbers.

    Args:
        model: A CLIP4Clip, an X-CLIP or a descendant, with its CLIP as `model.clip`.
        task_config: The parsed arguments. Without those of `add_arguments` the head is disabled.

    Raises:
        ValueError: `--sim_header MUSE` is given without `--loose_type`, or settings are invalid.
    """
    host: Any = model
    alias = getattr(task_config, "sim_header", None) == ALIAS
    if not (alias or getattr(task_config, "muse", False)):
        host.muse = None
        model._register_load_state_dict_pre_hook(_reject_head)
        return
    if alias:
        if not getattr(task_config, "loose_type", True):
            raise ValueError("--sim_header MUSE needs a loose similarity: add --loose_type")
        host.sim_header = "meanP"
    for name in ("train_frame_order", "eval_frame_order"):
        if getattr(task_config, name, 0) == 2:
            logger.warning("%s 2 shuffles the frames: MUSE cannot learn their order", name)
    config = MuseConfig(
        dim=host.clip.visual.proj.shape[1],
        **{name: getattr(task_config, f"muse_{name}") for name in SETTINGS},
    )
    # The random state is restored: the host draws the same numbers as without the head.
    with torch.random.fork_rng(devices=[]):
        head = HostHead(config)
    if task_config.muse_freeze_pyramid:
        head.freeze_pyramid()
    head.set_grad_checkpointing(task_config.muse_grad_checkpointing)
    host.muse = head
    model._register_load_state_dict_pre_hook(partial(_convert_official, head))


def fused_frames(
    model: nn.Module,
    video: Tensor,
    video_mask: Tensor,
    video_frame: int,
    encode: str = "encode_image",
) -> Tensor:
    """Compute the fused frame features that replace the host's frame features.

    A video without a real frame (an unreadable file) keeps the class feature of its padding, and
    its first frame is marked as real **in `video_mask` itself**: otherwise the host's mean over no
    frames divides by zero and the loss is NaN.

    Args:
        model: The host, with `muse` and `clip`.
        video: (B*T, 3, height, width), frames as for the host's `encode_image`.
        video_mask: (B, T), 1 for a real frame; changed in place for videos without one.
        video_frame: T.
        encode: Name of that method of `model.clip`. With `return_hidden=True` it must return a pair
            (class features, all projected tokens), or those tokens alone.

    Returns:
        (B, T, D) in float32, contiguous; at masked frames CLIP's class feature.

    Raises:
        RuntimeError: The host re-initialised the head: `attach` comes before `init_weights`.
        ValueError: `encode_image` returned tokens of an unexpected shape.
    """
    host: Any = model
    head: HostHead = host.muse
    head.check_start()
    encoded = getattr(host.clip, encode)(video, return_hidden=True, video_frame=video_frame)
    hidden = encoded[1] if isinstance(encoded, tuple) and len(encoded) == 2 else encoded
    num_tokens = host.clip.visual.positional_embedding.shape[0]  # 1 + H*W
    expected = (video_mask.shape[0] * video_frame, num_tokens, head.config.dim)
    if not isinstance(hidden, Tensor) or tuple(hidden.shape) != expected:
        raise ValueError(
            f"{encode}(..., return_hidden=True) must return (class features, all projected tokens "
            f"{expected}) or those tokens alone, got {_describe(encoded)}"
        )
    tokens = hidden.float().unflatten(0, (-1, video_frame))  # (B, T, 1+H*W, D)
    empty = ~video_mask.bool().any(1)
    video_mask[:, 0].masked_fill_(empty, 1)
    with head.own_random_numbers(tokens.device):
        frames = head.forward_features(tokens, video_mask)
    frames = torch.where(empty[:, None, None], tokens[:, :, 0].detach(), frames)
    return frames.contiguous()


def regroup(groups: list[dict[str, Any]], model: nn.Module, args: Any) -> list[dict[str, Any]]:
    """Move the head's parameters, by identity, into optimizer groups of their own.

    Norms, biases, `A_log` and `D` are not decayed; the others get the largest weight decay of the
    groups they come from. The first process logs all groups, because the hosts' own log of learning
    rates is empty with current torch versions.

    Args:
        groups: The host's complete list of groups.
        model: The host, or a wrapper with the host as `module`.
        args: The parsed arguments; the head's learning rate is `args.lr * args.muse_lr_scale`.

    Returns:
        `groups` itself if there is no head. Otherwise a new list: the host's groups without the
        head's parameters, in the same order, followed by the head's groups.
    """
    head = getattr(getattr(model, "module", model), "muse", None)
    if head is None:
        return groups
    head_ids = {id(parameter) for parameter in head.parameters()}
    regrouped, decays = [], [0.0]
    for group in groups:
        params = list(group["params"])
        others = [parameter for parameter in params if id(parameter) not in head_ids]
        if len(others) == len(params):
            regrouped.append(group)
            continue
        regrouped.append({**group, "params": others})
        decays.append(group.get("weight_decay", 0.0))
    undecayed = undecayed_ids(head)
    trained = [parameter for parameter in head.parameters() if parameter.requires_grad]
    lr = args.lr * args.muse_lr_scale
    for name, decay in (("muse.decay", max(decays)), ("muse.no_decay", 0.0)):
        params = [p for p in trained if (id(p) in undecayed) == (name == "muse.no_decay")]
        regrouped.append({"name": name, "params": params, "lr": lr, "weight_decay": decay})
    if not (torch.distributed.is_initialized() and torch.distributed.get_rank()):
        for index, group in enumerate(regrouped):
            logger.info(
                "optimizer group %d (%s): %d tensors, lr %g, weight decay %s",
                index,
                group.get("name", "host"),
                len(group["params"]),
                group.get("lr", args.lr),
                group.get("weight_decay", "default"),
            )
    return regrouped


def _reject_head(state_dict: Any, prefix: str, *_: Any) -> None:
    """Raise if a checkpoint contains a head that a host without one would silently drop."""
    ours = (name for name in state_dict if name.startswith(f"{prefix}muse.") or is_official(name))
    name = next(ours, None)
    if name is not None:
        raise ValueError(
            f"the checkpoint contains a MUSE head ({name}, ...), but --muse is not given; its CLIP "
            "was trained with the head and gives other results without it"
        )


def _convert_official(head: HostHead, state_dict: Any, prefix: str, *_: Any) -> None:
    """Rename the head of an official MUSE checkpoint, which the host would silently drop."""
    official = [name for name in state_dict if is_official(name)]
    if not official:
        return
    if any(name.startswith(f"{prefix}muse.") for name in state_dict):
        raise ValueError(
            f"the checkpoint contains two MUSE heads: {official[0]}, ... of the official code and "
            f"{prefix}muse.*"
        )
    converted = convert_official(head, {name: state_dict[name] for name in official})
    for name in official:
        del state_dict[name]
    state_dict.update({f"{prefix}muse.{name}": value for name, value in converted.items()})
    logger.info("converted the MUSE head of an official checkpoint (%d tensors)", len(official))


def _command_line_form(value: Any) -> str:
    return " ".join(f"{v:g}" for v in value) if isinstance(value, tuple) else str(value)


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)}"
    if isinstance(value, (tuple, list)):
        return f"{len(value)} values ({', '.join(map(_describe, value))})"
    return type(value).__name__

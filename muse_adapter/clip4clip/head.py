"""The head as it lives inside a host: guarded, and with random numbers of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from muse_adapter.config import MuseConfig
from muse_adapter.models.muse import MultiScaleMamba

# Settings of training alone: a checkpoint made with others still is of the same head.
TRAINING_ONLY = ("version", "dropout", "init")


class HostHead(MultiScaleMamba):
    """The head inside a host: guards its weights and keeps its random numbers to itself.

    Its checkpoint entries carry, as metadata beside the tensors, the configuration and the number
    of training steps, so that a mismatch is found and a resumed run repeats the same dropout.
    """

    def __init__(self, config: MuseConfig | None = None, **fields: Any) -> None:
        super().__init__(config, **fields)
        self.steps = 0
        self._start_checked = False

    def check_start(self) -> None:
        """At the first call: raises RuntimeError if the host re-initialised the head's layers."""
        if self._start_checked:
            return
        self._start_checked = True
        maps: list[Any] = [layer.fc for layer in self.layers]
        # An identity start has zero weights, a trained layer a bias: neither has weights alone.
        if self.config.init == "identity" and all(
            bool(fc.weight.any()) and not bool(fc.bias.any()) for fc in maps
        ):
            raise RuntimeError(
                "the weights of the MUSE head were drawn anew by the host: the line with attach "
                "must stand after the last self.apply(self.init_weights)"
            )

    @contextlib.contextmanager
    def own_random_numbers(self, device: torch.device) -> Iterator[None]:
        """Dropout draws from a stream of its own, set by the number of training steps.

        The host's random numbers stay what they are without the head, and a run that goes on from a
        checkpoint draws what the uninterrupted one would.
        """
        if not self.training:
            yield
            return
        cuda = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda):
            seed = torch.initial_seed() + self.steps
            torch.default_generator.manual_seed(seed)
            for one in cuda:
                with torch.cuda.device(one):
                    torch.cuda.manual_seed(seed)
            self.steps += 1
            yield

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        metadata = getattr(destination, "_metadata", {}).get(prefix[:-1])
        if metadata is not None:
            metadata["muse"] = {"config": self.config.to_dict(), "steps": self.steps}

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: Any, *args: Any
    ) -> None:
        # The hosts call this module by module and only log what does not fit, so it must raise.
        given = {name: value for name, value in state_dict.items() if name.startswith(prefix)}
        if given:
            record = (local_metadata or {}).get("muse", {})
            self._raise_if_other(given, prefix, record.get("config", {}))
            self.steps = record.get("steps", 0)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    def _raise_if_other(self, given: dict[str, Any], prefix: str, config: dict[str, Any]) -> None:
        wanted = {prefix + name: tensor for name, tensor in self.state_dict().items()}
        ours = self.config.to_dict()
        problems = [
            f"--muse_{name} was {value!r}, is {ours.get(name)!r}"
            for name, value in config.items()
            if name not in TRAINING_ONLY and ours.get(name) != value
        ]
        problems += [f"{name} is missing" for name in wanted if name not in given]
        problems += [f"{name} is unknown" for name in given if name not in wanted]
        problems += [
            f"{name} must have shape {tuple(tensor.shape)}, got {tuple(given[name].shape)}"
            for name, tensor in wanted.items()
            if name in given and given[name].shape != tensor.shape
        ]
        if problems:
            lines = "".join(f"\n  {problem}" for problem in problems)
            raise ValueError(
                f"the checkpoint's MUSE head is not this one ({len(problems)} problems):{lines}"
            )

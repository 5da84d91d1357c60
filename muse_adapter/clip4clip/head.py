"""The head inside a host code base: checked weights and a separate random number stream."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from muse_adapter.config import MuseConfig
from muse_adapter.models.muse import MultiScaleMamba

# Fields that only affect training: a checkpoint may have been made with other values.
TRAINING_ONLY = ("version", "dropout", "init")


class HostHead(MultiScaleMamba):
    """The head inside a host: checks its weights and draws from its own random number stream.

    Its state dict carries, as metadata, the configuration and the number of training steps: loading
    finds a mismatch, and a resumed run repeats the same dropout.
    """

    def __init__(self, config: MuseConfig | None = None, **fields: Any) -> None:
        super().__init__(config, **fields)
        self.steps = 0
        self._start_checked = False

    def check_start(self) -> None:
        """Check, at the first call, that the host did not re-initialise the head.

        Raises:
            RuntimeError: It did.
        """
        if self._start_checked:
            return
        self._start_checked = True
        projections: list[Any] = [layer.fc for layer in self.layers]
        # With identity initialisation the weights are zero, after training the bias is not: weights
        # without a bias come from the host.
        if self.config.init == "identity" and all(
            bool(fc.weight.any()) and not bool(fc.bias.any()) for fc in projections
        ):
            raise RuntimeError(
                "the host re-initialised the weights of the MUSE head: the call of attach must "
                "come after the last self.apply(self.init_weights)"
            )

    @contextlib.contextmanager
    def own_random_numbers(self, device: torch.device) -> Iterator[None]:
        """Draw dropout from a separate stream, seeded by the number of training steps.

        The host's random numbers are those of a run without the head, and a run resumed from a
        checkpoint draws the same numbers as an uninterrupted one.

        Args:
            device: Device of the head's input.
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
        # The hosts call this module by module and only log mismatches, so it must raise itself.
        given = {name: value for name, value in state_dict.items() if name.startswith(prefix)}
        if given:
            metadata = (local_metadata or {}).get("muse", {})
            self._check_state(given, prefix, metadata.get("config", {}))
            self.steps = metadata.get("steps", 0)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    def _check_state(self, given: dict[str, Any], prefix: str, config: dict[str, Any]) -> None:
        expected = {prefix + name: tensor for name, tensor in self.state_dict().items()}
        own_config = self.config.to_dict()
        problems = [
            f"--muse_{name} was {value!r}, is {own_config.get(name)!r}"
            for name, value in config.items()
            if name not in TRAINING_ONLY and own_config.get(name) != value
        ]
        problems += [f"{name} is missing" for name in expected if name not in given]
        problems += [f"{name} is unknown" for name in given if name not in expected]
        problems += [
            f"{name} must have shape {tuple(tensor.shape)}, got {tuple(given[name].shape)}"
            for name, tensor in expected.items()
            if name in given and given[name].shape != tensor.shape
        ]
        if problems:
            lines = "".join(f"\n  {problem}" for problem in problems)
            raise ValueError(
                f"the MUSE head of the checkpoint differs from this one ({len(problems)} problems):"
                f"{lines}"
            )

"""What configurations share: JSON both ways, and checks of fields."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from muse_adapter.strict_json import parse_json
from muse_adapter.version import VERSION

if TYPE_CHECKING:
    from typing_extensions import Self

_VERSION = re.compile(r"(\d{1,4})\.(\d{1,4})(\.\d{1,4})*((a|b|rc|\.post|\.dev)\d{1,9})*")


@dataclass(frozen=True)
class JsonConfig:
    """Base of frozen dataclasses whose fields are plain values or tuples of them."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values, with the version of the package as `version`."""
        fields = dataclasses.asdict(self)
        lists = {k: list(v) for k, v in fields.items() if isinstance(v, tuple)}
        return {"version": VERSION, **fields, **lists}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Make a config from the result of `to_dict`.

        Args:
            values: Every field, and `version`.

        Returns:
            The config.

        Raises:
            TypeError: `values` is not a mapping, or a field has the wrong type.
            ValueError: Fields are unknown or missing, the version is missing, malformed or newer
                (in its first two numbers) than this package, or a field has an invalid value.
        """
        if not isinstance(values, Mapping):
            raise TypeError(f"a config must be a mapping of fields, got {type(values).__name__}")
        fields = dict(values)
        # Checked first: a newer version is the better explanation of unknown fields.
        _check_version(fields.pop("version", None))
        known = [field.name for field in dataclasses.fields(cls)]
        unknown = sorted(str(name) for name in fields if name not in known)
        if unknown:
            raise ValueError(f"unknown config fields {unknown}; known are {known}")
        missing = [name for name in known if name not in fields]
        if missing:
            raise ValueError(f"the config lacks the fields {missing}")
        return cls(**fields)

    def to_json(self) -> str:
        """Return `to_dict()` as JSON text."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Make a config from the result of `to_json`.

        Args:
            text: JSON text.

        Returns:
            The config.

        Raises:
            TypeError: As in `from_dict`.
            ValueError: The text is not JSON (see `parse_json`), or as in `from_dict`.
        """
        try:
            values = parse_json(text)
        except ValueError as error:
            raise ValueError(f"the config is not valid JSON: {error}") from error
        return cls.from_dict(values)


def check_int(name: str, value: object, *, minimum: int) -> None:
    """Refuse what is not an int of at least `minimum`."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, got {value!r}")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value}")


def check_maxima(config: JsonConfig, maxima: Mapping[str, int]) -> None:
    """Refuse fields above a number that is far above any model; None is none.

    A damaged number in a file cannot ask for all memory then.
    """
    for name, maximum in maxima.items():
        value = getattr(config, name)
        if value is not None and value > maximum:
            raise ValueError(f"{name} must be at most {maximum}, got {value}")


def check_name(field: str, value: object, known: tuple[str, ...]) -> None:
    """Refuse what is not one of the known names."""
    if not isinstance(value, str):
        raise TypeError(f"{field} must be a string, got {value!r}")
    if value not in known:
        raise ValueError(f"unknown {field} {value!r}; known are {', '.join(known)}")


def checked_rate(name: str, rate: object) -> float:
    """Return a dropout rate as a float; it must be a number in [0, 1)."""
    if not isinstance(rate, (int, float)) or isinstance(rate, bool):
        raise TypeError(f"{name} must be a number, got {rate!r}")
    if not 0 <= rate < 1:
        raise ValueError(f"{name} must be in [0, 1), got {rate}")
    return float(rate)


def _check_version(version: object) -> None:
    match = _VERSION.fullmatch(version) if isinstance(version, str) else None
    if match is None:
        raise ValueError(
            f"the config must have the version of muse-adapter that wrote it, such as {VERSION!r}, "
            f"got {version!r}"
        )
    ours = tuple(map(int, VERSION.split(".")[:2]))
    if (int(match[1]), int(match[2])) > ours:
        raise ValueError(
            f"the config was written by muse-adapter {version}, newer than this one ({VERSION}); "
            "install that version or a later one"
        )

"""Addresses of Milvus: which server and database, with which credentials and options."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote, urlsplit

TOKEN_VARIABLE = "MILVUS_TOKEN"

# For each kind of index: parameters of building and of searching, with our defaults.
INDEXES: dict[str, tuple[dict[str, int], dict[str, int]]] = {
    "FLAT": ({}, {}),
    "HNSW": ({"M": 16, "efConstruction": 200}, {"ef": 128}),
    "IVF_FLAT": ({"nlist": 1024}, {"nprobe": 32}),
    "IVF_SQ8": ({"nlist": 1024}, {"nprobe": 32}),
}
# Whose results every server groups that groups any: the first of 2.4 refuse it for other kinds.
GROUPED = {"FLAT", "HNSW", "IVF_FLAT"}
CONSISTENCY_LEVELS = "Strong", "Session", "Bounded", "Eventually"


@dataclass(frozen=True)
class Address:
    """A parsed address.

    Attributes:
        uri: Of the server, without credentials, or the path of a `.db` file.
        database: On the server; "" is its default.
        token: "user:password" or an API key; "" without authentication.
        options: What stood behind a question mark.
    """

    uri: str
    database: str = ""
    token: str = field(default="", repr=False)
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_file(self) -> bool:
        """Whether it is a file of Milvus Lite."""
        return "://" not in self.uri

    @property
    def timeout(self) -> float:
        """Seconds for which a call is tried."""
        return float(self.options.get("timeout", 60))

    @property
    def consistency(self) -> str:
        """Milvus's consistency level of searches."""
        return self.options.get("consistency", "Session")

    @property
    def index(self) -> str:
        """Kind of index: exact in a file, whose tables are small; fast on a server."""
        return self.options.get("index", "FLAT" if self.is_file else "HNSW")

    def build_parameters(self) -> dict[str, int]:
        """Return the parameters of building an index of this kind."""
        return self._chosen(INDEXES[self.index][0])

    def search_parameters(self, index: str, build: Mapping[str, int]) -> dict[str, int]:
        """Return the parameters of searching an index of some kind, that was built with others."""
        chosen = self._chosen(INDEXES[index][1])
        # No more lists can be probed than there are.
        return {name: min(value, build.get("nlist", value)) for name, value in chosen.items()}

    def _chosen(self, defaults: Mapping[str, int]) -> dict[str, int]:
        return {name: int(self.options.get(name, value)) for name, value in defaults.items()}

    def __str__(self) -> str:
        return repr(f"{self.uri}/{self.database}" if self.database else self.uri)


def is_milvus_address(uri: str) -> bool:
    """Return whether an address means Milvus, and not a folder."""
    return "://" in uri or uri.partition("?")[0].endswith(".db")


def parse_address(uri: str) -> Address:
    """Parse an address, whose credentials appear in no message.

    Args:
        uri: `[http|https]://[user:password@|token@]host[:port][/database][?options]`, or a path
            that ends with `.db`, `[?options]`. Options: `index` (FLAT, HNSW, IVF_FLAT, IVF_SQ8),
            what it is built with (`M`, `efConstruction`, `nlist`) and searched with (`ef`,
            `nprobe`), `consistency` and `timeout`. Without credentials, the environment variable
            `MILVUS_TOKEN` is used.

    Raises:
        ValueError: It is no such address, or an option is unknown or out of range.
    """
    base, _, query = uri.partition("?")
    if "@" in query or "@" in base.partition("://")[2].partition("/")[2]:
        # Of credentials, perhaps: nothing of it is shown.
        raise ValueError(
            "uri: write / as %2F, ? as %3F and # as %23 in the user, password or token of Milvus"
        )
    options = _parse_options(query)
    if "://" not in base:
        return Address(os.path.abspath(base), options=options)
    try:
        parts = urlsplit(base)
        host, port = parts.hostname, parts.port or (443 if parts.scheme == "https" else 19530)
    except ValueError:
        # Not chained: the message of the cause may quote the address.
        raise ValueError("uri: the address of Milvus has no valid host and port") from None
    if parts.scheme not in ("http", "https") or not host:
        raise ValueError(
            f"uri must be a folder, a file of Milvus Lite (.db), or http(s)://host:port of Milvus; "
            f"got scheme {parts.scheme!r}"
        )
    database = parts.path.strip("/")
    if "/" in database or parts.fragment:
        raise ValueError("uri: only the name of a database may follow the host of Milvus")
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    token = f"{user}:{password}" if password else user
    shown = f"[{host}]" if ":" in host else host
    return Address(
        f"{parts.scheme}://{shown}:{port}",
        database,
        token or os.environ.get(TOKEN_VARIABLE, ""),
        options,
    )


def _parse_options(query: str) -> dict[str, str]:
    options = dict(parse_qsl(query, keep_blank_values=True))
    numbers = {name for kind in INDEXES.values() for part in kind for name in part}
    choices = {"index": tuple(INDEXES), "consistency": CONSISTENCY_LEVELS}
    known = sorted({*numbers, *choices, "timeout"})
    for name, value in options.items():
        if name not in known:
            raise ValueError(f"uri: unknown option {name!r}; known are {', '.join(known)}")
        if name in choices and value not in choices[name]:
            raise ValueError(
                f"uri: {name} must be one of {', '.join(choices[name])}, got {value!r}"
            )
        if name not in choices and not (value.isascii() and value.isdigit() and int(value)):
            raise ValueError(f"uri: {name} must be a whole number of at least 1, got {value!r}")
    return options

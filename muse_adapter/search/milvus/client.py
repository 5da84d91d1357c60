"""Calls of Milvus that are tried again for a limited time, and clear errors."""

from __future__ import annotations

import contextlib
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from muse_adapter.search.milvus.address import TOKEN_VARIABLE, Address

_PAUSES_S = 0.1, 3.0  # between attempts: the first, and the longest
# Codes of Milvus (numbers) and of gRPC below it (names), and parts of the messages of errors whose
# code says nothing. Of a server that starts, or is not reached, which is asked again:
_NOT_LOADED = 101  # the collection; nobody asks for it, or the server has not noted who did
_PASSING_CODES = {
    *(2, 4, 8),  # the service is not available, too many requests
    *(_NOT_LOADED, 103, 106, 202),  # loading
    *(401, 500, 501, 503, 901, 902, 905),  # replicas, channels and nodes that are not there yet
    *("UNAVAILABLE", "DEADLINE_EXCEEDED"),
}
_PASSING = (
    "fail connecting",
    "illegal connection params",
    "unavailable",
    "deadline",
    "retry timeout",
    "not ready",
    "not healthy",
    "not available",
    "not loaded",
    "not fully loaded",
    "no available",
    "not serviceable",
    "node not found",
    "offline",
    "channel",
    "context canceled",
    "rate limit",
)
# Of one that denies access:
_DENIED_CODES = {1400, 1401, "UNAUTHENTICATED", "PERMISSION_DENIED"}
_DENIED = "auth check failure", "authenticated", "permission", "privilege"
_UNKNOWN_CODES = {0, 1, 65535}  # 1 is also of every error of pymilvus itself

T = TypeVar("T")

# How many clients of this process use each file; Milvus Lite serves it until it is released.
_users: dict[str, int] = {}
_users_lock = threading.Lock()


class Client:
    """A connection to Milvus.

    Args:
        address: Where it is.

    Raises:
        ImportError: pymilvus or milvus-lite is not installed.
        OSError: It is not reached, denies access, or the file cannot be opened.
    """

    def __init__(self, address: Address) -> None:
        self.address = address
        self._client: Any = None
        try:
            import pymilvus  # noqa: F401

            if address.is_file:
                import milvus_lite  # noqa: F401
        except ImportError as error:
            raise ImportError(
                f"an index in Milvus needs {error.name}: pip install 'muse-adapter[milvus]'"
            ) from error
        self._uses_file = address.is_file
        if self._uses_file:
            with _users_lock:
                _users[address.uri] = _users.get(address.uri, 0) + 1
        try:
            self.version: str = self.call("get_server_version")
        except BaseException:
            self.close()
            raise

    def call(self, method: str, *arguments: Any, **options: Any) -> Any:
        """Call a method of `MilvusClient`, again while the server is not ready.

        All calls here can be repeated without effect, so it does not matter whether an attempt
        that failed was carried out.

        Raises:
            ConnectionError: The server has not answered in time.
            PermissionError: It denies access.
            OSError: It reports another error.
        """

        def attempt(client: Any, timeout: float) -> Any:
            return getattr(client, method)(*arguments, timeout=timeout, **options)

        return self.attempt(attempt, str(arguments[0]) if arguments else "")

    def attempt(self, function: Callable[[Any, float], T], collection: str = "") -> T:
        """Call a function, again while the server is not ready, with errors as `call` has them.

        Args:
            function: Of a `MilvusClient` and the seconds that are left; without effect when it is
                called again.
            collection: That it is about.
        """
        import grpc
        from pymilvus.exceptions import MilvusException

        deadline, (pause, longest) = time.monotonic() + self.address.timeout, _PAUSES_S
        while True:
            left = max(0.1, deadline - time.monotonic())
            try:
                with _without_logs():
                    if self._client is None:
                        self._client = self._connect(left)
                    return function(self._client, left)
            except (MilvusException, grpc.RpcError, ValueError) as error:
                failure = translated(error, self.address, collection)
                if not isinstance(failure, ConnectionError):
                    raise failure from error
                if time.monotonic() + pause >= deadline:
                    raise failure from error
                if _NOT_LOADED in _codes(error) and collection:
                    # Somebody released it, or the server was killed before it had noted the wish.
                    with contextlib.suppress(MilvusException, grpc.RpcError), _without_logs():
                        self._client.load_collection(collection, timeout=left)
            time.sleep(pause)
            pause = min(2 * pause, longest)

    def knows_grouping(self) -> bool:
        """Return whether the server groups results by a field; older ones ignore the wish."""
        version = re.match(r"(?:v|milvus_lite-)?(\d+)\.(\d+)", self.version)
        return version is not None and (int(version[1]), int(version[2])) >= (2, 4)

    def close(self) -> None:
        """Close the connection, and let go of a file that nobody in this process uses."""
        client, self._client = self._client, None
        if client is not None:
            with contextlib.suppress(Exception), _without_logs():
                client.close()
        if self._uses_file:
            self._uses_file = False
            _release(self.address.uri)

    def _connect(self, timeout: float) -> Any:
        from pymilvus import MilvusClient
        from pymilvus.exceptions import ConnectionConfigException

        address = self.address
        if not address.is_file:
            return MilvusClient(
                address.uri, token=address.token, db_name=address.database, timeout=timeout
            )
        try:
            return MilvusClient(address.uri)
        except ConnectionConfigException as error:
            in_use = " (another process may have it open: Milvus Lite lets one process use a file)"
            raise OSError(
                f"Milvus Lite cannot open {address}" + in_use * Path(address.uri).exists()
            ) from error


def _release(path: str) -> None:
    """Count one user of a file less, and close it after the last."""
    from milvus_lite.server_manager import server_manager_instance

    with _users_lock:
        _users[path] -= 1
        if not _users[path]:
            del _users[path]
            server_manager_instance.release_server(path)


def translated(error: Exception, address: Address, collection: str = "") -> OSError:
    """Return the error of ours that says what an error of pymilvus means.

    Args:
        error: Of pymilvus, or of gRPC, some of whose errors it lets through.
        address: Of the server.
        collection: That was asked for. Its name may be of words that mean something in a message.
    """
    # gRPC says by a method what it is; the text of its errors has many lines.
    said = error.details() if hasattr(error, "details") else getattr(error, "message", "")
    message = str(said or error)
    codes, words = _codes(error), ""
    if not any(isinstance(code, int) for code in codes - _UNKNOWN_CODES):
        # One word at a time: a message without the name may still say what it means.
        names = "|".join(re.escape(name) for name in (collection, address.database) if name)
        words = re.sub(rf"\b(?:{names})\b", "…", message).lower() if names else message.lower()
    # pymilvus says "server unavailable" where the password is wrong; gRPC, below it, knows better.
    if codes & _DENIED_CODES or any(part in words for part in _DENIED):
        return PermissionError(
            f"Milvus at {address} denies access: give user:password@ in the address, or the "
            f"environment variable {TOKEN_VARIABLE}"
        )
    is_passing = codes & _PASSING_CODES or getattr(error, "retriable", False)
    if is_passing or any(part in words for part in _PASSING):
        return ConnectionError(
            f"Milvus at {address} does not answer, tried for {address.timeout:g} s (timeout= in "
            f"the address): {_first_line(message)}"
        )
    return OSError(f"Milvus at {address}: {_first_line(message)}")


def _codes(error: BaseException) -> set[int | str]:
    """Return the codes of an error and of those that led to it, gRPC's by name."""
    codes: set[int | str] = set()
    cause: BaseException | None = error
    while cause is not None:
        code = getattr(cause, "code", None)
        code = code() if callable(code) else code
        if code is not None:
            codes.add(int(code) if isinstance(code, int) else str(getattr(code, "name", code)))
        # pymilvus raises errors from themselves.
        cause = cause.__cause__ if cause.__cause__ is not cause else None
    return codes


def _first_line(message: str) -> str:
    return message.strip().split("\n")[0][:300]


_silenced: list[list[int]] = []  # the levels of the loggers before, for each block that runs
_silenced_lock = threading.Lock()


@contextlib.contextmanager
def _without_logs() -> Iterator[None]:
    """Keep the libraries from printing errors that are raised anyway.

    Levels belong to the process: they change back after the last block of all threads.
    """
    loggers = [logging.getLogger(name) for name in ("pymilvus", "milvus_lite")]
    with _silenced_lock:
        _silenced.append(_silenced[0] if _silenced else [logger.level for logger in loggers])
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        with _silenced_lock:
            levels = _silenced.pop()
            if not _silenced:
                for logger, level in zip(loggers, levels, strict=True):
                    logger.setLevel(level)

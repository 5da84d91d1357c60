"""Calls of Milvus that are tried again for a limited time, and clear errors."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from muse_adapter.search.milvus.address import TOKEN_VARIABLE, Address

_PAUSES_S = 0.1, 3.0  # between attempts: the first, and the longest
_NOT_LOADED = "collection not loaded"
# Parts of messages of a server that starts, or is not reached; it is asked again.
_PASSING = (
    "fail connecting",
    "illegal connection params",
    "unavailable",
    "deadline",
    "retry timeout",
    "not ready",
    "not healthy",
    "not available",
    "not fully loaded",
    _NOT_LOADED,
    "no available",
    "not serviceable",
    "node not found",
    "offline",
    "channel",
    "context canceled",
    "rate limit",
)
_DENIED = "auth check failure", "unauthenticated", "authenticat", "permission", "privilege"

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
        from pymilvus.exceptions import MilvusException

        deadline, (pause, longest) = time.monotonic() + self.address.timeout, _PAUSES_S
        while True:
            left = max(0.1, deadline - time.monotonic())
            try:
                with _without_logs():
                    if self._client is None:
                        self._client = self._connect(left)
                    return getattr(self._client, method)(*arguments, timeout=left, **options)
            except (MilvusException, ValueError) as error:
                failure = _translated(error, self.address)
                if not isinstance(failure, ConnectionError):
                    raise failure from error
                if time.monotonic() + pause >= deadline:
                    raise failure from error
                if _NOT_LOADED in str(error):
                    # Somebody released it, or the server was killed before it had noted the wish.
                    with contextlib.suppress(MilvusException), _without_logs():
                        self._client.load_collection(arguments[0], timeout=left)
            time.sleep(pause)
            pause = min(2 * pause, longest)

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Inside the `with` block errors are those of `call`, which are not tried again."""
        from pymilvus.exceptions import MilvusException

        try:
            with _without_logs():
                yield
        except MilvusException as error:
            raise _translated(error, self.address) from error

    def knows_grouping(self) -> bool:
        """Return whether the server groups results by a field; older ones ignore the wish."""
        major, _, rest = self.version.removeprefix("v").partition(".")
        minor = rest.partition(".")[0]
        return major.isdigit() and minor.isdigit() and (int(major), int(minor)) >= (2, 4)

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


def _translated(error: Exception, address: Address) -> OSError:
    """Return the error of ours that says what an error of pymilvus means."""
    message = str(getattr(error, "message", "") or error)
    # pymilvus says "server unavailable" where the password is wrong; gRPC, below it, knows better.
    lower = f"{message} {_status(error)}".lower()
    if any(part in lower for part in _DENIED):
        return PermissionError(
            f"Milvus at {address} denies access: give user:password@ in the address, or the "
            f"environment variable {TOKEN_VARIABLE}"
        )
    if any(part in lower for part in _PASSING):
        return ConnectionError(
            f"Milvus at {address} does not answer, tried for {address.timeout:g} s (timeout= in "
            f"the address): {_first_line(message)}"
        )
    return OSError(f"Milvus at {address}: {_first_line(message)}")


def _status(error: BaseException) -> str:
    """Return the codes of an error and of those that led to it, gRPC's by name."""
    codes = []
    cause: BaseException | None = error
    while cause is not None:
        code = getattr(cause, "code", "")
        codes.append(str(code() if callable(code) else code))
        # pymilvus raises errors from themselves.
        cause = cause.__cause__ if cause.__cause__ is not cause else None
    return " ".join(codes)


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

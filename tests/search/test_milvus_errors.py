"""What errors of Milvus mean: by their codes, and by words that are not the name of an index."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("pymilvus", reason="pymilvus is not installed")

import grpc
from pymilvus.exceptions import MilvusException

from muse_adapter.search.milvus.address import Address, parse_address
from muse_adapter.search.milvus.client import Client, translated

ADDRESS = parse_address("http://me:hunter2@host/channel_db")


class RpcError(grpc.RpcError):
    """An error of gRPC, which says by a method what it is."""

    def __init__(self, code: grpc.StatusCode, details: str = "") -> None:
        super().__init__("<RpcError of RPC that terminated with:")
        self._code, self._details = code, details

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details


def caused_by(code: grpc.StatusCode, message: str) -> MilvusException:
    """Return an error of pymilvus for one of gRPC."""
    error = MilvusException(2, message)
    error.__cause__ = RpcError(code)
    return error


UNREACHED = "Fail connecting to server on host:1, illegal connection params or server unavailable"
CASES = {
    "not there": (caused_by(grpc.StatusCode.UNAVAILABLE, UNREACHED), ConnectionError),
    "password": (caused_by(grpc.StatusCode.UNAUTHENTICATED, UNREACHED), PermissionError),
    "privilege": (MilvusException(1401, "PrivilegeLoad: permission deny"), PermissionError),
    "not loaded": (MilvusException(101, "collection not loaded"), ConnectionError),
    "busy": (MilvusException(8, "request is rejected"), ConnectionError),
    "retriable": (MilvusException(2312, "some reason", retriable=True), ConnectionError),
    "words only": (MilvusException(1, "service not ready"), ConnectionError),
    "wrapped": (MilvusException(65535, "stack: channel not available"), ConnectionError),
    "denied by words": (MilvusException(1, "auth check failure"), PermissionError),
    "a full disk": (MilvusException(1001, "no space left on device"), OSError),
    # Names of indexes and databases in messages.
    "named channel": (MilvusException(100, "collection not found[collection=channel]"), OSError),
    "named offline": (MilvusException(1, "can't find collection: offline"), OSError),
    "named permission": (MilvusException(65535, "schema of permission is wrong"), OSError),
    "the database": (MilvusException(1, "no channel_db[database=channel_db]"), OSError),
    "named as a word": (MilvusException(1, "collection not: service unavailable"), ConnectionError),
}
NAMES = {
    "named channel": "channel",
    "named offline": "offline",
    "named permission": "permission",
    "named as a word": "not",
}


@pytest.mark.parametrize("case", CASES)
def test_what_an_error_means(case: str) -> None:
    error, expected = CASES[case]
    found = translated(error, ADDRESS, NAMES.get(case, "videos"))
    assert type(found) is expected
    assert "hunter2" not in str(found)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("DEADLINE_EXCEEDED", ConnectionError),
        ("UNAUTHENTICATED", PermissionError),
        ("PERMISSION_DENIED", PermissionError),
        ("RESOURCE_EXHAUSTED", OSError),
        ("UNIMPLEMENTED", OSError),
    ],
)
def test_errors_of_grpc_that_pymilvus_lets_through(
    code: str, expected: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    def get_server_version(timeout: float) -> str:
        raise RpcError(grpc.StatusCode[code], "what it is")

    server = SimpleNamespace(get_server_version=get_server_version, close=lambda: None)
    monkeypatch.setattr(Client, "_connect", lambda self, timeout: server)
    with pytest.raises(OSError) as caught:
        Client(Address("http://host:1", options={"timeout": "0.1"}))
    assert type(caught.value) is expected
    assert expected is PermissionError or str(caught.value).endswith(": what it is")


def test_a_collection_that_is_loaded_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading it takes longer than the server has: it is asked again all the same."""
    answers = iter([MilvusException(101, "collection not loaded"), ["a row"]])

    def load_collection(name: str, timeout: float) -> None:
        raise RpcError(grpc.StatusCode.DEADLINE_EXCEEDED)

    def query(name: str, timeout: float) -> Any:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    server = SimpleNamespace(
        query=query, load_collection=load_collection, get_server_version=lambda timeout: "v2"
    )
    monkeypatch.setattr(Client, "_connect", lambda self, timeout: server)
    assert Client(Address("http://host:1")).call("query", "videos") == ["a row"]

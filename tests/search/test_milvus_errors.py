"""What errors of Milvus mean: by their codes, and by words that are not the name of an index."""

from __future__ import annotations

import pytest

pytest.importorskip("pymilvus", reason="pymilvus is not installed")

import grpc
from pymilvus.exceptions import MilvusException

from muse_adapter.search.milvus.address import parse_address
from muse_adapter.search.milvus.client import translated

ADDRESS = parse_address("http://me:hunter2@host/channel_db")


class RpcError(grpc.RpcError):
    """An error of gRPC, which says by a method what it is."""

    def __init__(self, code: grpc.StatusCode) -> None:
        self._code = code

    def code(self) -> grpc.StatusCode:
        return self._code


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

"""Fixtures of the tests of the index.

milvus_server   a Milvus server, started once a file
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks.milvus_server import missing, stopped_by_signals
from tests.support.milvus_server import MilvusServer


@pytest.fixture(scope="module")
def milvus_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MilvusServer]:
    """Start a server; a test may kill it and start it again.

    It is killed after the tests of a file: it computes while nothing is asked of it.
    """
    if reason := missing():
        pytest.skip(reason)
    server = MilvusServer(tmp_path_factory.mktemp("milvus"))
    with stopped_by_signals(pytest.exit):
        try:
            server.start()
            yield server
        finally:
            server.kill()

"""A real Milvus server, which asks for a password."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path

from benchmarks import milvus_server

TOKEN = "root:Milvus"  # of every new server


class MilvusServer(milvus_server.MilvusServer):
    """A server with databases for tests.

    Args:
        folder: Its data, which outlive it.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, {"common.security.authorizationEnabled": "true"}, TOKEN)
        self._numbers = itertools.count()

    @contextlib.contextmanager
    def database(self) -> Iterator[str]:
        """Yield the address of a new database, with credentials."""
        name = f"test_{next(self._numbers)}"
        with contextlib.closing(self.client()) as client:
            client.create_database(name)
        yield f"http://{TOKEN}@{self.host}/{name}"
        # So that the server has nothing to do for it any longer.
        with contextlib.closing(self.client(name)) as client:
            for collection in client.list_collections():
                client.drop_collection(collection)
            client.drop_database(name)

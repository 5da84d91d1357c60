"""A real Milvus server, from the package `milvus`, which asks for a password."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

USER, PASSWORD = "root", "Milvus"  # of every new server
_START_S = 300


def missing() -> str | None:
    """Return why there is no server to be tested; None: there is."""
    for package in ("pymilvus", "milvus"):
        if importlib.util.find_spec(package) is None:
            where = ", which has wheels for Linux on x86-64 only" * (package == "milvus")
            return f"the package {package} is not installed{where}"
    return None


class MilvusServer:
    """A server in a folder, on a free port.

    Args:
        folder: Its data, which outlive it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._numbers = itertools.count()
        self._port, self._etcd_port, etcd_peer_port = _free_ports(3)
        self.host = f"127.0.0.1:{self._port}"
        # Otherwise its etcd takes ports of its own choice, which another server may have.
        client, peer = (f"http://127.0.0.1:{port}" for port in (self._etcd_port, etcd_peer_port))
        self._etcd = folder / "etcd.yaml"
        self._etcd.write_text(
            f"name: default\ninitial-cluster: default={peer}\n"
            f"listen-client-urls: {client}\nadvertise-client-urls: {client}\n"
            f"listen-peer-urls: {peer}\ninitial-advertise-peer-urls: {peer}\n"
        )

    def start(self, *, wait: bool = True) -> None:
        """Start it, and wait until it answers."""
        code = "from milvus import main; main()"
        options = {
            "--data": self._folder,
            "--proxy-port": self._port,
            "--etcd-port": self._etcd_port,
            "--extra-config": "common.security.authorizationEnabled=true",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-c", code, *(str(part) for pair in options.items() for part in pair)],
            env={**os.environ, "ETCD_CONFIG_PATH": str(self._etcd)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        if wait:
            self.client().close()

    def kill(self) -> None:
        """Kill it as `kill -9` does."""
        if self._process is not None:
            # The group: the package starts the server as a child.
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def client(self, database: str = "") -> Any:
        """Return a client of pymilvus, once the server answers."""
        from pymilvus import MilvusClient
        from pymilvus.exceptions import MilvusException

        deadline = time.monotonic() + _START_S
        while True:
            try:
                client = MilvusClient(
                    f"http://{self.host}", token=f"{USER}:{PASSWORD}", db_name=database
                )
                client.list_collections()
                return client
            except MilvusException:
                if time.monotonic() > deadline or (self._process and self._process.poll()):
                    raise
                time.sleep(0.5)

    @contextlib.contextmanager
    def database(self) -> Iterator[str]:
        """Yield the address of a new database, with credentials."""
        name = f"test_{next(self._numbers)}"
        with contextlib.closing(self.client()) as client:
            client.create_database(name)
        yield f"http://{USER}:{PASSWORD}@{self.host}/{name}"
        # So that the server has nothing to do for it any longer.
        with contextlib.closing(self.client(name)) as client:
            for collection in client.list_collections():
                client.drop_collection(collection)
            client.drop_database(name)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as sockets:
        probes = [sockets.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]

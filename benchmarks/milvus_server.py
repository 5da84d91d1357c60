"""A Milvus server of this machine, from the package `milvus`, in a folder and on a free port."""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

_START_S = 300  # within which a new server answers
_ANSWER_S = 30  # and one that has been there longer
_LOG_END = 2000  # characters of a log that an error shows

# The package silently takes another port where it cannot bind the given one, as in the minute
# after a server was killed that had connections. The server could: it binds as these sockets do.
_RUN = """
import socket
import milvus

class Socket(socket.socket):
    def bind(self, address):
        self.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        super().bind(address)

socket.socket = Socket
milvus.main()
"""


def missing() -> str | None:
    """Return why there is no server that can be started; None: there is."""
    for package in ("pymilvus", "milvus"):
        if importlib.util.find_spec(package) is None:
            where = ", which has wheels for Linux on x86-64 only" * (package == "milvus")
            return f"the package {package} is not installed{where}"
    return None


def unknown_settings(names: Iterable[str]) -> list[str]:
    """Return which settings with dots the package does not know, and would ignore.

    It replaces lines of its template, whose levels are indented by two blanks each.
    """
    spec = importlib.util.find_spec("milvus")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("the package milvus is not installed")
    template = (Path(spec.origin).parent / "data" / "config.yaml.template").read_text("utf-8")
    known: set[str] = set()
    path: list[str] = []
    for indent, name in re.findall(r"^( *)(\w+):", template, re.MULTILINE):
        path = [*path[: len(indent) // 2], name]
        known.add(".".join(path))
    return [name for name in names if "." in name and name not in known]


@contextlib.contextmanager
def stopped_by_signals(stop: Callable[[str], object]) -> Iterator[None]:
    """Call a function, which raises, at SIGTERM and SIGHUP: so servers are killed at the end.

    A signal that is ignored, as under `nohup`, stays so.
    """
    numbers = signal.SIGTERM, signal.SIGHUP
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, lambda *_: stop("stopped by a signal"))
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Footprint(NamedTuple):
    """What a server takes, in bytes.

    Attributes:
        disk: Its data on the disk, with its log of what was written.
        memory: Its resident memory.
        peak: The largest it was since the server was started.
    """

    disk: int
    memory: int
    peak: int


class MilvusServer:
    """A server in a folder, on a free port.

    Args:
        folder: Its data, which outlive it.
        settings: Of its configuration, by names with dots; others are variables of its environment.
        token: user:password, if the settings ask for it.
    """

    def __init__(
        self, folder: Path, settings: Mapping[str, str] | None = None, token: str = ""
    ) -> None:
        folder = folder.absolute()  # the package changes into it
        self._folder, self._settings, self._token = folder, settings or {}, token
        self._process: subprocess.Popen[bytes] | None = None
        self._started = -math.inf
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
        options = ["--data", self._folder, "--proxy-port", self._port]
        options += ["--etcd-port", self._etcd_port]
        environment = {**os.environ, "ETCD_CONFIG_PATH": str(self._etcd)}
        for name, value in self._settings.items():
            if "." in name:
                options += ["--extra-config", f"{name}={value}"]
            else:
                environment[name] = value
        self._started = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, "-c", _RUN, *map(str, options)],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        if wait:
            self.client().close()

    def kill(self) -> None:
        """Kill it as `kill -9` does, and wait until it has left its ports."""
        if self._process is not None:
            # The group: the package starts the server as a child.
            with contextlib.suppress(ProcessLookupError):  # both have ended
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
            # The server is no child of ours to wait for.
            deadline = time.monotonic() + _ANSWER_S
            while any(map(_in_use, (self._port, self._etcd_port))):
                if time.monotonic() > deadline:
                    raise RuntimeError(f"the server that was killed still has {self.host}")
                time.sleep(0.01)

    def client(self, database: str = "") -> Any:
        """Return a client of pymilvus, once the server answers.

        Raises:
            RuntimeError: The server has ended, or does not answer in time.
        """
        from pymilvus import MilvusClient
        from pymilvus.exceptions import MilvusException

        deadline = max(self._started + _START_S, time.monotonic() + _ANSWER_S)
        while True:
            try:
                client = MilvusClient(f"http://{self.host}", token=self._token, db_name=database)
                client.list_collections()
                return client
            except MilvusException as error:
                # The package ends with 0 also where the server cannot start.
                ended = self._process is not None and self._process.poll() is not None
                if ended or time.monotonic() > deadline:
                    what = "has ended" if ended else "does not answer"
                    raise RuntimeError(f"the server {what}: {self._end_of_log()}") from error
                time.sleep(0.5)

    def _end_of_log(self) -> str:
        log = self._folder / "logs" / "milvus-stderr.log"
        return log.read_text("utf-8", "replace")[-_LOG_END:] if log.exists() else "it has no log"

    def footprint(self) -> Footprint:
        """Measure what the server takes now."""
        if self._process is None:
            raise RuntimeError("the server is not running")
        pid = self._process.pid
        (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        status = Path(f"/proc/{child}/status").read_text().splitlines()
        kib = {line.partition(":")[0]: line.split()[1] for line in status if line.endswith(" kB")}
        return Footprint(
            _bytes_on_disk(self._folder / "data"),
            *(1024 * int(kib[name]) for name in ("VmRSS", "VmHWM")),
        )


def _bytes_on_disk(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
            total += 512 * path.lstat().st_blocks
    return total


def _in_use(port: int) -> bool:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return True
    return False


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as sockets:
        probes = [sockets.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]

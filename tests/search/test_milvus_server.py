"""A real Milvus server: killed and restarted while videos are added, passwords, two indexes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from muse_adapter.search.store import create_store, open_store
from tests.support.milvus_server import MilvusServer
from tests.support.search_models import settings
from tests.support.search_stores import append, assert_same, videos

pytestmark = [pytest.mark.slow(seconds=40), pytest.mark.milvus_server]

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def uri(milvus_server: MilvusServer) -> Iterator[str]:
    with milvus_server.database() as uri:
        yield uri


def leave_connection(host: str) -> None:
    """Leave a connection in TIME_WAIT at a port where nobody listens, as a killed server may."""
    name, _, port = host.partition(":")
    address = name, int(port)
    with socket.create_server(address) as server, socket.create_connection(address):
        server.accept()[0].close()


def test_a_server_that_is_killed_while_videos_are_added(milvus_server, uri):
    """Calls are tried until it is back, or as long as one wants; what was added is there, once."""
    content = videos(60)
    store = create_store(f"{uri}?timeout=240", "videos", settings(), b"a model")
    impatient = open_store(f"{uri}?timeout=3", "videos")
    for number, (name, video) in enumerate(content.items()):
        if number == 20:
            milvus_server.kill()
            leave_connection(milvus_server.host)
            with pytest.raises(ConnectionError, match=r"does not answer, tried for 3 s") as caught:
                append(impatient, {name: video})
            assert "root:Milvus" not in str(caught.value)
            restart = threading.Thread(target=milvus_server.start)
            restart.start()
        append(store, {name: video})
    restart.join()
    assert_same(store, content)
    for opened in (store, impatient):
        opened.close()


def test_a_writer_that_is_killed(uri):
    """At most what it had not acknowledged is missing, and no video is there in part."""
    create_store(uri, "videos", settings(), b"a model").close()
    code = f"""
from muse_adapter.search.store import open_store
from tests.support.search_stores import append, videos
store = open_store({uri!r}, "videos")
for name, video in videos(400).items():
    append(store, {{name: video}})
    print(name, flush=True)
"""
    writer = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert writer.stdout is not None
    acknowledged = [writer.stdout.readline().strip() for _ in range(50)]
    os.kill(writer.pid, signal.SIGKILL)
    acknowledged += writer.stdout.read().split()
    writer.wait()
    assert 50 <= len(acknowledged) < 400
    content = videos(400)
    store = open_store(uri, "videos")
    with store.write() as again:
        present = again.present(list(content))
        assert set(acknowledged) <= present and len(present) <= len(acknowledged) + 1
        again.append([content[name] for name in content if name not in present])
    assert_same(store, content)
    assert store.verify() == []
    store.close()


def test_several_processes_write(uri):
    """As under torchrun, each its share."""
    create_store(uri, "videos", settings(), b"a model").close()
    code = """
import sys
from muse_adapter.search.store import open_store
from tests.support.search_stores import append, videos
share, uri = int(sys.argv[1]), sys.argv[2]
store = open_store(uri, "videos")
content = list(videos(60).items())
for start in range(share * 20, share * 20 + 30, 5):  # 10 videos are also of the next share
    append(store, dict(content[start : start + 5]))
"""
    writers = [
        subprocess.Popen([sys.executable, "-c", code, str(share), uri], cwd=ROOT)
        for share in range(3)
    ]
    assert [writer.wait(timeout=240) for writer in writers] == [0, 0, 0]
    store = open_store(uri, "videos")
    assert_same(store, videos(60))
    assert store.verify() == []
    store.close()


@pytest.mark.parametrize(
    "options", ["index=FLAT", "index=HNSW", "index=IVF_FLAT&nlist=64&nprobe=64"]
)
def test_sealed_segments(options, uri):
    """Hits are the exact ones in small tables, also once the server has built the index."""
    content = videos(300)
    store = create_store(f"{uri}?{options}", "videos", settings(), b"")
    append(store, content)
    store._client.call("flush", "videos")
    assert_same(store, content)
    store.close()


def test_passwords(milvus_server, uri, monkeypatch):
    create_store(uri, "videos", settings(), b"a model").close()
    without = uri.replace("root:Milvus@", "")
    for wrong in (without, uri.replace("root:Milvus", "root:hunter2")):
        start = time.monotonic()
        with pytest.raises(
            PermissionError, match="denies access: give user:password@ in"
        ) as caught:
            open_store(wrong, "videos")
        assert "hunter2" not in str(caught.value) and time.monotonic() - start < 30
    monkeypatch.setenv("MILVUS_TOKEN", "root:Milvus")
    open_store(without, "videos").close()

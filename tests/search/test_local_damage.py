"""Local tables with damaged files: what is shown is checked, and the rest is found by `verify`."""

from __future__ import annotations

import dataclasses
import json
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from muse_adapter.search.local import LocalStore
from tests.support.search_models import DIM, segments_of, settings

pytest.importorskip("fcntl", reason="writing a table needs POSIX locks")
pytest.importorskip("safetensors", reason="an index has the identity of its model in one")

NAMES = [f"v{i}.mp4" for i in range(5)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    store = LocalStore.create(tmp_path, settings(), b"a model")
    with store.write() as writer:
        writer.append([segments_of(name, i) for i, name in enumerate(NAMES)])
        writer.remove(["v4.mp4"])
    return tmp_path


def flip(folder: Path, column: str, position: int) -> None:
    path = folder / f"{column}-1.bin"
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


# Where video 2 has a byte: a file and a position.
BYTES = {
    "name": ("names", 2 * len("v0.mp4")),
    "end of its name": ("videos", 2 * 40),
    "end of its segments": ("videos", 2 * 40 + 8),
    "end of its frames": ("videos", 2 * 40 + 16),
    "checksum": ("videos", 2 * 40 + 24),
    "checksum of its frames": ("videos", 2 * 40 + 32),
    "span": ("segments", 2 * 2 * 24),
    "number of frames": ("segments", 2 * 2 * 24 + 16),
    "vector": ("vectors", 2 * 2 * DIM * 2),
    "frames": ("frames", 2 * 3 * 6 * 2),
}


@pytest.mark.parametrize(("column", "position"), BYTES.values(), ids=BYTES.keys())
def test_a_flipped_bit_is_found(folder, column, position):
    flip(folder, column, position)
    store = LocalStore(folder)
    damaged = store.verify()
    assert 1 <= len(damaged) <= 2, "an end of a video is the start of the next one"
    table = store.read()
    vector = segments_of("v2.mp4", 2).vectors[:1]
    _, (rows,) = table.search(vector, 1)
    with pytest.raises(ValueError, match=r"is damaged: .*VideoIndex\.verify\(\) lists"):
        table.segments(rows)
        table.frames(rows)
    # A damaged video can be removed, and the others stay.
    with store.write() as writer:
        with pytest.raises(ValueError, match="has damaged videos, to be removed first"):
            writer.compact()
        writer.remove(damaged)
        writer.compact()
    assert store.verify() == []
    table = store.read()
    left = {table.name(number) for number in table.live()}
    assert {"v0.mp4", "v1.mp4"} <= left <= {"v0.mp4", "v1.mp4", "v3.mp4"}
    assert table.num_videos == len(left) and table.num_segments == 2 * len(left)


def test_vectors_that_are_not_finite(folder):
    path = folder / "vectors-1.bin"
    path.write_bytes(b"\xff\xff" + path.read_bytes()[2:])
    with pytest.raises(ValueError, match=r"damaged: vectors must be finite.*verify"):
        LocalStore(folder).read().search(torch.ones(1, DIM), 1)


def test_bytes_behind_the_valid_ones_do_not_matter(folder):
    for column in ("names", "videos", "segments", "vectors", "frames", "removed"):
        path = folder / f"{column}-1.bin"
        path.write_bytes(path.read_bytes() + b"half of a batch")
    store = LocalStore(folder)
    assert store.verify() == []
    with store.write() as writer:
        writer.append([segments_of("new.mp4", 7)])
        writer.remove(["v0.mp4"])
    assert LocalStore(folder).verify() == [] and LocalStore(folder).read().num_videos == 4


def cut(folder: Path) -> None:
    path = folder / "vectors-1.bin"
    path.write_bytes(path.read_bytes()[:-1])


def edit_manifest(folder: Path, old: str, new: str) -> None:
    path = folder / "index.json"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut": (cut, r"vectors-1\.bin' is damaged: it has 159 bytes of 160"),
    "missing": (lambda folder: (folder / "names-1.bin").unlink(), "is damaged: .*No such file"),
    "removed": (lambda folder: flip(folder, "removed", 0), "damaged: its list of removed videos"),
    "no model": (lambda folder: (folder / "model.safetensors").unlink(), "it has no model.safet"),
    "no JSON": (lambda folder: (folder / "index.json").write_text("{"), r"index\.json' is damaged"),
    "a list": (lambda folder: (folder / "index.json").write_text("[]"), "damaged: it must be an"),
    "edited": (
        lambda folder: edit_manifest(folder, '"num_videos": 4', '"num_videos": 3'),
        r"damaged: its content has the checksum \w+, but was written with",
    ),
    "format": (
        lambda folder: edit_manifest(folder, '"format": 1', '"format": 2'),
        "has format 2, this version reads 1",
    ),
    "no format": (
        lambda folder: edit_manifest(folder, '"format": 1,', ""),
        "has format None, this version reads 1",
    ),
}


@pytest.mark.parametrize(("damage", "message"), WRONG.values(), ids=WRONG.keys())
def test_a_damaged_folder_is_refused(folder, damage, message):
    damage(folder)
    with pytest.raises(ValueError, match=message):
        LocalStore(folder)


@pytest.mark.parametrize("max_norm", ["known", "unknown"])
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan], ids=str)
def test_a_vector_that_is_not_finite(folder, max_norm, value):
    """Whether all vectors are read before the first search, or not."""
    if max_norm == "unknown":
        forget_max_norm(folder)
    path = folder / "vectors-1.bin"
    content = bytearray(path.read_bytes())
    content[-2:] = struct.pack("<e", value)
    path.write_bytes(content)
    table = LocalStore(folder).read()
    query = torch.zeros(1, DIM)
    query[0, -1] = -1 if value == -torch.inf else 1  # of minus infinity as a score nothing is seen
    with pytest.raises(ValueError, match="is damaged: vectors must be finite"):
        table.search(query, 1)


def forget_max_norm(folder: Path) -> None:
    """Make the manifest one of an earlier version, which has no `max_norm`."""
    from muse_adapter.search.local import manifest

    values = json.loads((folder / "index.json").read_text())
    kept = {k: v for k, v in values.items() if k not in ("max_norm", "crc32")}
    named = {k: v for k, v in kept.items() if k not in ("format", "muse_adapter_version")}
    kept["crc32"] = manifest._checksum(named)
    (folder / "index.json").write_text(json.dumps(kept))


def test_an_index_of_an_earlier_version(folder):
    """It has no bound on its norms, and gets none when it grows."""
    vector = segments_of("v2.mp4", 2).vectors[:1]
    expected = LocalStore(folder).read().search(vector, 3)
    forget_max_norm(folder)
    store = LocalStore(folder)
    assert store.read().manifest.max_norm is None
    assert store.read().search(vector, 3) == expected
    with store.write() as writer:
        writer.append([segments_of("v5.mp4", 5)])
    assert store.read().manifest.max_norm is None and store.read().num_videos == 5


def test_the_largest_norm_is_known(folder):
    """As it is stored, also after a batch of shorter vectors."""
    store = LocalStore(folder)
    video = segments_of("v5.mp4", 5)
    with store.write() as writer:
        writer.append([dataclasses.replace(video, vectors=3 * video.vectors)])
        writer.append([segments_of("v6.mp4", 6)])
    table = LocalStore(folder).read()
    exact = table.vectors.double().norm(dim=1).amax().item()
    assert table.manifest.max_norm == pytest.approx(exact, rel=1e-12)


def test_a_manifest_with_wrong_values(folder):
    """Whoever edits it and its checksum is told, too."""
    from muse_adapter.search.local import manifest

    values = json.loads((folder / "index.json").read_text())
    damage = {"dim": 0, "sizes": {}, "commit": -1, "max_norm": -1.0, "window": "1"}
    for name, value in damage.items():
        wrong = {**values, name: value}
        crc = manifest._checksum(
            {k: v for k, v in wrong.items() if k not in ("format", "muse_adapter_version", "crc32")}
        )
        (folder / "index.json").write_text(json.dumps({**wrong, "crc32": crc}))
        with pytest.raises(ValueError, match=f"is damaged: {name} must be"):
            LocalStore(folder)


def test_a_folder_with_something_else(tmp_path):
    (tmp_path / "holiday.mp4").write_bytes(b"")
    with pytest.raises(FileExistsError, match=r"must be empty for an index, it has 'holiday\.mp4'"):
        LocalStore.create(tmp_path, settings(), b"")
    with pytest.raises(FileNotFoundError, match=r"it has no index\.json"):
        LocalStore(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"it has no index\.json"):
        LocalStore(tmp_path / "holiday.mp4")


def test_a_table_that_cannot_be_locked_can_be_read(folder, monkeypatch):
    store = LocalStore(folder)
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with pytest.raises(OSError, match="needs the file locks of a POSIX system"):
        store.write().__enter__()
    assert store.read().num_videos == 4

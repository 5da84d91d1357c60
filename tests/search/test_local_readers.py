"""Readers of a local table beside a writer, and what they keep from one state to the next."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from muse_adapter import ExactRecall
from muse_adapter.search.local import LocalStore, recall
from muse_adapter.search.local.recall import GrowingRecall
from muse_adapter.search.local.store import _Numbers
from tests.support.search_models import DIM, segments_of, settings

pytest.importorskip("fcntl", reason="writing a table needs POSIX locks")
pytest.importorskip("safetensors", reason="an index has the identity of its model in one")


def test_readers_beside_a_writer(tmp_path, monkeypatch):
    """Each search sees a whole number of batches, in order; compaction disturbs nobody."""
    monkeypatch.setattr("os.fsync", lambda file: None)
    LocalStore.create(tmp_path, settings(), b"a model")
    stop, errors, seen = threading.Event(), [], []

    def read() -> None:
        try:
            store = LocalStore(tmp_path)
            while not stop.is_set():
                table = store.read()
                scores, (rows,) = table.search(torch.ones(1, DIM), 1000)
                names = {segment.video for segment in table.segments(rows)}
                assert len(names) == len(rows) == table.num_videos == len(scores[0])
                kept = sum(not name.startswith("removed") for name in names)
                assert kept % 3 == 0
                seen.append(kept)
        except BaseException as error:
            errors.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        store = LocalStore(tmp_path)
        for batch in range(15):
            with store.write() as writer:
                writer.append([segments_of(f"{batch}-{i}", batch) for i in range(3)])
                writer.append([segments_of(f"removed {batch}", batch)])
                writer.remove([f"removed {batch}"])
                if batch % 2:
                    writer.compact()
        while not errors and (not seen or seen[-1] < 45):
            pass
    finally:
        stop.set()
        reader.join()
    assert not errors, errors
    assert seen == sorted(seen) and seen[-1] == 45


def test_files_that_vanish_while_a_table_is_opened(tmp_path, monkeypatch):
    """The table is compacted between reading the manifest and mapping the files."""
    from muse_adapter.search.local import store as module

    store = LocalStore.create(tmp_path, settings(), b"a model")
    with store.write() as writer:
        writer.append([segments_of(name, 0) for name in "abc"])
        writer.remove(["b"])
    reader, read_manifest, others = LocalStore(tmp_path), module.read_manifest, [LocalStore.write]

    def read_and_compact(folder: Path) -> object:
        manifest = read_manifest(folder)
        if others:
            with others.pop()(store) as writer:
                writer.compact()
        return manifest

    reader.close()
    monkeypatch.setattr(module, "read_manifest", read_and_compact)
    assert reader.read().manifest.generation == 2 and reader.read().num_videos == 2


def test_compaction_frees_space(tmp_path):
    store = LocalStore.create(tmp_path, settings(), b"a model")
    with store.write() as writer:
        writer.append([segments_of(f"{i}", i, count=20) for i in range(20)])
        before = sum(path.stat().st_size for path in tmp_path.glob("*.bin"))
        writer.remove([f"{i}" for i in range(15)])
        writer.compact()
        names = {path.name for path in tmp_path.glob("*.bin")}
        after = sum(path.stat().st_size for path in tmp_path.glob("*.bin"))
        writer.compact()
        assert {path.name for path in tmp_path.glob("*.bin")} == names, "there was nothing to free"
    assert after < 0.3 * before


@pytest.mark.parametrize("steps", [[1], [5, 6, 7, 8, 9], [40, 50, 90, 91, 200], [1, 2, 4, 8, 300]])
def test_a_growing_recall_is_an_exact_one(steps):
    vectors = F.normalize(torch.randn(300, DIM), dim=1).half()
    vectors[7] = vectors[3]  # equal scores stand in the order of the rows
    growing = None
    for step in steps:
        growing = GrowingRecall(vectors[:step], growing)
        whole = ExactRecall(vectors[:step])
        for k in (1, 10, 400):
            queries = torch.cat([torch.randn(2, DIM), vectors[3:4].float()])
            for found, expected in zip(
                growing.search(queries, k), whole.search(queries, k), strict=True
            ):
                torch.testing.assert_close(found, expected, rtol=0, atol=0)
        assert len(growing._parts) <= 1 + step.bit_length()


def test_only_new_rows_are_prepared(tmp_path, monkeypatch):
    prepared = []

    class Counted(ExactRecall):
        def __init__(self, vectors: torch.Tensor, *, max_norm: float | None) -> None:
            prepared.append(len(vectors))
            super().__init__(vectors, max_norm=max_norm)

    monkeypatch.setattr(recall, "ExactRecall", Counted)
    store = LocalStore.create(tmp_path, settings(), b"a model")
    for batch in range(6):
        with store.write() as writer:
            writer.append([segments_of(f"{batch} {i}", i) for i in range(20 if not batch else 2)])
        if batch != 2:  # a state that is never searched does not interrupt
            store.read().search(torch.ones(1, DIM), 3)
    assert prepared == [40, 4, 12, 4, 60], "ranges are joined as they grow"


def test_another_table_in_the_same_folder_is_noticed(tmp_path):
    """Also where its videos, bytes and changes are as many."""
    stores = []
    for seed in (1, 2):
        shutil.rmtree(tmp_path / "table", ignore_errors=True)
        stores.append(LocalStore.create(tmp_path / "table", settings(), b"a model"))
        with stores[-1].write() as writer:
            writer.append([segments_of("a.mp4", seed)])
    assert stores[1].read().num_videos == 1
    with pytest.raises(ValueError, match=r"another index was created in .*: open it again"):
        stores[0].read()
    with pytest.raises(ValueError, match="another index was created"):
        stores[0].write().__enter__()


def test_names_that_an_interrupt_left_unread_are_read_by_the_next_call():
    asked = []

    def name(number):
        asked.append(number)
        if asked == [0, 1]:
            raise KeyboardInterrupt
        return f"{number}.mp4"

    manifest = SimpleNamespace(commit=3, generation=0)
    table = SimpleNamespace(manifest=manifest, count=4, removed=set(), name=name)
    numbers = _Numbers()
    with pytest.raises(KeyboardInterrupt):
        numbers.of(table)
    assert numbers.of(table) == {f"{number}.mp4": number for number in range(4)}
    assert asked == [0, 1, 1, 2, 3]

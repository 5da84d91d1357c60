"""What large indexes need, against numbers worked out by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import scale

SEARCH = {
    "rows": [
        {"store": "folder", "segments": 1000, "bytes": 9, "p50": 9, "together": 9, "append": 9},
        {
            "store": "folder",
            "segments": 1_000_000,
            "bytes": 1.024e9,
            "p50": 0.1,
            "together": 3.2,
            "append": 360.0,
        },
        {"store": "faiss", "segments": 10**9, "bytes": 9, "p50": 9, "together": 9, "append": 9},
    ]
}
DECODING = {
    "rows": [
        {"reader": "OpenCV", "sampled": 12, "seconds": [9, 9, 9]},
        {"reader": "muse-adapter", "sampled": 64, "seconds": [9, 9, 9]},
        {"reader": "muse-adapter", "sampled": 12, "seconds": [0.1, 0.36, 0.5]},
    ]
}
GPU = {
    "scan": {"rows": [{"tokens": 3060, "seconds": {}}]},
    "head": {"rows": [{"tokens": 3060, "seconds": {"bimamba inference": 0.0576}}]},
}


@pytest.fixture
def parts() -> scale.Parts:
    return scale.measured(SEARCH, DECODING, GPU)


def test_parts_are_those_of_the_largest_folder(parts: scale.Parts) -> None:
    assert parts.segments == 1_000_000
    assert parts[1:] == pytest.approx((1024, 1e-7, 5e-8, 3.6e-4, 0.36, 0.0036))


def test_needs(parts: scale.Parts) -> None:
    needs = scale.needs(parts, 10_000_000)
    assert needs == {
        "reading the videos, hours of a core": "1,000",
        "backbone (ViT-B/32), hours of a GPU, by arithmetic": "0.9",
        "head, hours of a GPU": "10",
        "a folder: disk for vectors": "10 GiB",
        "a folder: disk for 12 frame features a segment": "114 GiB",
        "a folder: memory in which all vectors stay": "10 GiB",
        "a folder: one query, exact, in memory": "1.0 s",
        "a folder: 64 queries at once, each": "500 ms",
        "a folder: writing, hours of its one writer": "1.0",
        "Milvus, HNSW with M = 16: memory, by formula": "20 GiB",
        "Milvus, HNSW: machines of 64 GiB": "1",
        "Milvus, HNSW with 12 frame features a segment: machines": "4",
    }
    assert scale.needs(parts, 10**9)["Milvus, HNSW: machines of 64 GiB"] == "43"


def test_limits(parts: scale.Parts) -> None:
    folder, server = ["50,331,648", "10,000,000", "20,000,000"], ["23,639,130", "2,776,280"]
    assert list(scale.limits(parts).values()) == folder + server


def test_operations_of_a_vit() -> None:
    """4.4 GMACs, as its papers say."""
    assert scale.vit_flops() / 2e9 == pytest.approx(4.41, abs=0.01)


def test_without_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale, "RESULTS", tmp_path)
    with pytest.raises(SystemExit, match="no figures to compute from: python"):
        scale.main()

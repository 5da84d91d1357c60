"""A version of Triton that is too old for the kernels."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from muse_adapter.ops import backends, triton_gpu

triton = pytest.importorskip("triton", reason="needs triton")


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    triton_gpu._load_error.cache_clear()
    yield
    triton_gpu._load_error.cache_clear()


@pytest.mark.parametrize(
    ("version", "old"), [("3.2.0", True), ("2.3.1", True), ("3.3.0", False), ("3.10.0+git", False)]
)
def test_an_old_triton_is_unavailable(
    version: str, old: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton, "__version__", version)
    reason = backends()["triton"].reason or ""
    assert (f"triton {version} is older than 3.3" in reason) is old

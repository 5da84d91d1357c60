"""Loggers of Milvus's libraries are silent in blocks of several threads, and themselves after."""

from __future__ import annotations

import contextlib
import logging

import pytest

from muse_adapter.search.milvus.client import _without_logs


@pytest.mark.parametrize("first", [0, 1])
def test_blocks_that_overlap(first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of two threads do, which end in any order."""
    logger = logging.getLogger("pymilvus")
    monkeypatch.setattr(logger, "level", logging.INFO)
    blocks = [contextlib.ExitStack(), contextlib.ExitStack()]
    for block in blocks:
        block.enter_context(_without_logs())
    blocks.pop(first).close()
    assert logger.level == logging.CRITICAL, "one block still runs"
    blocks.pop().close()
    assert logger.level == logging.INFO

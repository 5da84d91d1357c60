"""Checkouts for the tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.hosts import EVERY_HOST, Host, make_host


@pytest.fixture(params=EVERY_HOST)
def host(request: pytest.FixtureRequest, tmp_path: Path) -> Host:
    """A checkout of each kind."""
    return make_host(tmp_path, *request.param)


@pytest.fixture
def replica(tmp_path: Path) -> Host:
    """A replica of CLIP4Clip."""
    return make_host(tmp_path, "clip4clip")

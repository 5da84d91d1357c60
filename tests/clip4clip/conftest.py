"""Patched checkouts for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.hosts import EVERY_HOST, Session, imported, make_host, patch


@pytest.fixture(scope="module", params=EVERY_HOST)
def patched(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Session]:
    """A patched checkout of each kind, imported from its folder; tests do not change its files."""
    host = make_host(tmp_path_factory.mktemp("host"), *request.param)
    assert patch(host, "--write") == 0
    with imported(host) as session:
        yield session

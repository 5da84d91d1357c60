"""A patched host without the head is bit-identical to the unpatched host."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.support.host_runs import SMALL, run, same
from tests.support.hosts import EVERY_HOST, imported, make_host, patch

pytestmark = pytest.mark.usefixtures("torch_scan")


@pytest.mark.parametrize("kind", EVERY_HOST)
def test_disabled_head_changes_nothing(kind: tuple[str, bool], tmp_path: Path) -> None:
    host = make_host(tmp_path, *kind)
    with imported(host) as session:
        before = run(session)
    assert patch(host, "--write") == 0
    with imported(host) as session:
        after = run(session)
        enabled = run(session, *SMALL)
    for key, value in before.items():
        assert same(value, after[key]), key
    # With the head, the first loss, CLIP's groups and the host's random numbers are the same.
    assert enabled["losses"][0] == before["losses"][0]
    assert enabled["losses"][1:] != before["losses"][1:]
    assert same(enabled["groups"][: len(before["groups"])], before["groups"])
    assert torch.equal(enabled["random"], before["random"])

"""Checkouts that are partly applied, upgraded or edited by hand."""

from __future__ import annotations

import re

import pytest

from muse_adapter.version import VERSION
from tests.support.hosts import Host, edit, patch


def test_partly_applied_says_where(replica: Host, capsys: pytest.CaptureFixture[str]) -> None:
    patch(replica, "--write")
    whole = replica.contents()
    text = replica.main_file.read_text()
    found = re.search(r" *# >>> \S+ \S+ optimizer\n.*\n.*\n", text)
    assert found
    replica.main_file.write_text(text.replace(found[0], ""))
    capsys.readouterr()
    assert patch(replica, "--check") == 3
    out = capsys.readouterr().out
    assert "partly applied" in out
    assert re.search(r"main_task_retrieval.py: optimizer is missing \(line \d+\)", out)
    assert patch(replica, "--write") == 0
    assert replica.contents() == whole


def test_a_moved_block_is_reported(replica: Host, capsys: pytest.CaptureFixture[str]) -> None:
    patch(replica, "--write")
    text = replica.model_file.read_text()
    block = re.search(r" *# >>> \S+ \S+ attach\n.*\n.*\n", text)
    assert block
    line = "        self.clip = CLIP("
    text = text.replace(block[0], "").replace(line, block[0] + line)
    replica.model_file.write_text(text)
    capsys.readouterr()
    assert patch(replica, "--check") == 3
    assert "attach is in another place" in capsys.readouterr().out


def test_an_older_block_is_upgraded(replica: Host, capsys: pytest.CaptureFixture[str]) -> None:
    patch(replica, "--write")
    whole = replica.contents()
    for path in (replica.model_file, replica.main_file):
        text = path.read_text().replace(f"muse-adapter {VERSION}", "muse-adapter 0.0.3")
        path.write_text(text)
    capsys.readouterr()
    assert patch(replica, "--check") == 3
    assert "attach is of version 0.0.3" in capsys.readouterr().out
    assert patch(replica, "--write") == 0
    assert replica.contents() == whole


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (", self.task_config)", ", config)", "attach was edited by hand"),
        (f"muse-adapter {VERSION} attach", "muse-adapter 99.0.0 attach", "99.0.0, newer than"),
        (f"muse-adapter {VERSION} attach", f"muse-adapter {'9' * 5000} attach", "unpaired marker"),
        ("# <<< muse-adapter attach", "#", "unpaired marker of muse-adapter"),
        (f"# >>> muse-adapter {VERSION} attach", "#", "unpaired marker of muse-adapter"),
    ],
    ids=["edited", "newer", "huge", "no end marker", "no begin marker"],
)
def test_blocks_that_must_not_be_replaced(
    replica: Host, old: str, new: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    patch(replica, "--write")
    edit(replica.model_file, old, new)
    before = replica.contents()
    capsys.readouterr()
    assert patch(replica, "--write") == 2
    assert message in capsys.readouterr().err
    assert replica.contents() == before

"""Blocks are inserted and removed byte for byte."""

from __future__ import annotations

import pytest

from muse_adapter.patching import blocks
from muse_adapter.patching.source import split_lines
from tests.support.hosts import Host, patch


def crlf(raw: bytes) -> bytes:
    return raw.replace(b"\n", b"\r\n")


def declare_latin_1(raw: bytes) -> bytes:
    return b"# -*- coding: latin-1 -*-\n# caf\xe9\n" + raw


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(crlf, id="CRLF"),
        pytest.param(lambda raw: raw.replace(b"\n", b"\r"), id="CR"),
        pytest.param(lambda raw: raw.replace(b"\n\n", b"\r\n\n"), id="mixed line ends"),
        pytest.param(lambda raw: raw.replace(b"    ", b"\t"), id="tabs"),
        pytest.param(lambda raw: raw.replace(b"    ", b"  "), id="two blanks"),
        pytest.param(lambda raw: b"\xef\xbb\xbf" + raw, id="byte order mark"),
        pytest.param(lambda raw: b"\xef\xbb\xbf" + crlf(raw), id="byte order mark and CRLF"),
        pytest.param(declare_latin_1, id="declared latin-1"),
        pytest.param(lambda raw: "# 视频\n".encode() + raw, id="UTF-8 beyond ASCII"),
        pytest.param(lambda raw: raw.replace(b"\n\n", b"\n\x0c\n"), id="form feeds"),
        pytest.param(lambda raw: raw.rstrip(b"\n"), id="no newline at the end"),
        pytest.param(lambda raw: raw + b"\n\n\n", id="blank lines at the end"),
    ],
)
def test_bytes_are_kept(replica: Host, change) -> None:
    for path in (replica.model_file, replica.main_file):
        path.write_bytes(change(path.read_bytes()))
    before = replica.contents()
    assert patch(replica, "--write") == 0
    for path in (replica.model_file, replica.main_file):
        name = str(path.relative_to(replica.path))
        raw = path.read_bytes()
        compile(raw, name, "exec")
        # Without the inserted lines the file is unchanged.
        others = [line for line in raw.splitlines(True) if b"muse" not in line]
        assert b"".join(others) == before[name]
        ends = {line[len(line.rstrip(b"\r\n")) :] for line in raw.splitlines(True)}
        whole = before[name].splitlines(True)
        assert ends <= {line[len(line.rstrip(b"\r\n")) :] for line in whole}
    assert patch(replica, "--check") == 0
    assert patch(replica, "--reverse") == 0
    assert replica.contents() == before


@pytest.mark.parametrize("count", [1, 2])
def test_strip_undoes_insert(count: int) -> None:
    for text in ("", "a", "a\n", "a\r\nb", "a\rb\r"):
        lines = split_lines(text)
        there = [
            blocks.Block(f"p{n}", index, ("x = 1",), "  ")
            for n, index in zip(range(count), (0, len(lines)), strict=False)
        ]
        new = blocks.insert(lines, there) if lines else list(lines)
        assert blocks.strip("file", new)[0] == lines

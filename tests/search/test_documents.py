"""Cutting videos into windows, and printing progress."""

from __future__ import annotations

import io
import time

import pytest

from muse_adapter.search.documents import windows
from muse_adapter.search.progress import Progress


@pytest.mark.parametrize(
    ("duration", "window", "stride", "expected"),
    [
        (4.0, 1.0, 1.0, [(0, 1), (1, 2), (2, 3), (3, 4)]),
        (4.5, 1.0, 1.0, [(0, 1), (1, 2), (2, 3), (3, 4), (3.5, 4.5)]),
        (4.0, 2.0, 1.0, [(0, 2), (1, 3), (2, 4)]),
        (4.0, 3.0, 2.0, [(0, 3), (1, 4)]),
        (1.0, 1.0, 1.0, [(0, 1)]),
        (0.4, 1.0, 0.5, [(0, 0.4)]),
        (0.0, 1.0, 1.0, [(0, 0)]),
        (0.1 * 3, 0.1, 0.1, [(0, 0.1), (0.1, 0.2), (0.2, 0.3)]),
    ],
)
def test_windows(duration, window, stride, expected):
    found = windows(duration, window, stride)
    assert [pytest.approx(span) for span in expected] == found
    assert found[-1][1] == duration


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    streams = {"terminal": Terminal(), "file": io.StringIO()}
    for stream in streams.values():
        now[0] = 100.0
        progress = Progress(8000, stream=stream)
        for done, seconds in ((1, 0.1), (100, 10.0), (400, 40.0), (401, 40.1)):
            now[0] = 100.0 + seconds
            progress.update(done, unreadable=done // 400)
        now[0] = 900.0
        progress.close(8000, 1)
    lines = [
        "100 of 8000 videos, 10.0 a second, 0:13:10 left",
        "400 of 8000 videos, 10.0 a second, 0:12:40 left, 1 unreadable",
        "8000 of 8000 videos, 10.0 a second, 1 unreadable",
    ]
    assert streams["terminal"].getvalue() == "".join(f"\r\x1b[K{line}" for line in lines) + "\n"
    assert streams["file"].getvalue() == "".join(f"{line}\n" for line in lines[1:])


def test_no_progress_without_a_standard_error(monkeypatch):
    monkeypatch.setattr("sys.stderr", None)
    progress = Progress(2)
    progress.update(1, 0)
    progress.close(2, 0)

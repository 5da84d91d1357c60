"""The page of hits: what is in it, and that names and queries cannot get out of their place."""

from __future__ import annotations

import base64
import os
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote_to_bytes, urlsplit

import pytest

pytest.importorskip("av", reason="frames are read with PyAV")

from muse_adapter.data import read_frames
from muse_adapter.search import Hit
from muse_adapter.search.page import write_page
from muse_adapter.search.pictures import HEIGHT
from tests.support.hostile_names import HOSTILE_NAMES, HOSTILE_QUERIES
from tests.support.video_files import grey_frames, write_video


class Parsed(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs)
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def values(self, tag: str, attribute: str) -> list[str]:
        return [str(attributes[attribute]) for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("videos") / "grey.mp4", grey_frames(16), rate=4)


def parsed(tmp_path: Path, query: str, *hits: Hit) -> Parsed:
    write_page(tmp_path / "page.html", query, hits)
    return Parsed(tmp_path / "page.html")


def test_what_a_page_has(video, tmp_path):
    hits = [Hit(str(video), 1.0, 3.0, 0.4219), Hit(str(video), 3661.25, 3670.0, -0.1)]
    page = parsed(tmp_path, "a grey & quiet scene", *hits[:1])
    for text in ("a grey & quiet scene", "1 video", "0.422", "0:01.0 to 0:03.0", "grey.mp4"):
        assert text in page.text
    assert page.values("video", "src") == page.values("a", "href")
    assert page.values("video", "src") == [f"{video.as_uri()}#t=1.000,3.000"]
    (picture,) = page.values("img", "src")
    (tmp_path / "strip.jpg").write_bytes(base64.b64decode(picture.partition("base64,")[2]))
    strip, _ = read_frames(tmp_path / "strip.jpg", 1)
    width = round(HEIGHT * 48 / 32) + 4
    assert strip.shape == (1, 3, HEIGHT + 4, 8 * width)
    # Frames 4 to 11 of the video, in this order.
    middles = strip[0].float().mean(0)[HEIGHT // 2, width // 2 :: width]
    expected = grey_frames(16)[4:12, 0, 0, 0].tolist()
    assert middles.tolist() == pytest.approx(expected, abs=4)
    # A part beyond the end of its video has no frames.
    page = parsed(tmp_path, "late", hits[1])
    assert "1:01:01.2 to 1:01:10.0" in page.text and "is not before its end" in page.text
    assert not page.values("video", "src")


@pytest.mark.parametrize("name", HOSTILE_NAMES, ids=ascii)
def test_names_stay_in_their_place(name, video, tmp_path):
    plain = parsed(tmp_path, "words", Hit(str(video), 0.0, 4.0, 0.5))
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    os.link(video, path)
    page = parsed(tmp_path, "words", Hit(str(path), 0.0, 4.0, 0.5))
    assert [(tag, list(attributes)) for tag, attributes in page.tags] == [
        (tag, list(attributes)) for tag, attributes in plain.tags
    ]
    for address in (*page.values("video", "src"), *page.values("a", "href")):
        parts = urlsplit(address)
        assert (parts.scheme, parts.netloc, parts.query) == ("file", "", "")
        assert parts.fragment == "t=0.000,4.000"
        assert unquote_to_bytes(parts.path) == os.fsencode(path)
    if name.isprintable():
        assert name in page.text
    assert not set("\x1b\r\u202e\udcff") & set(page.text)


@pytest.mark.parametrize("query", HOSTILE_QUERIES, ids=ascii)
def test_queries_stay_in_their_place(query, tmp_path):
    plain = parsed(tmp_path, "words")
    page = parsed(tmp_path, query)
    assert page.tags == plain.tags
    if query.isprintable():
        assert page.text.count(query) == 2  # title and heading


@pytest.mark.parametrize("name", ["javascript:alert(1)", "\ud800.mp4", "a\0b", "http://x/y.mp4"])
def test_ids_that_are_no_files(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = parsed(tmp_path, "words", Hit(name, 0.0, 1.0, 0.5))
    assert not [tag for tag, _ in page.tags if tag in ("a", "video", "img")]
    assert "0.500" in page.text


def test_rules_of_the_page(tmp_path):
    page = parsed(tmp_path, "words")
    (policy,) = [a["content"] for tag, a in page.tags if "http-equiv" in a]
    assert policy.startswith("default-src 'none'; img-src data:; media-src file:;")
    assert "script-src" not in policy  # so default-src counts: none

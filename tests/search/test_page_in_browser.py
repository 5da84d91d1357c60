"""The page of hits in a real browser: what is seen, what plays, and that nothing is executed."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import unquote_to_bytes, urlsplit

import pytest

pytest.importorskip("av", reason="frames are read with PyAV")
pytest.importorskip("fcntl", reason="the browser is connected by POSIX descriptors")

from muse_adapter.search import Hit
from muse_adapter.search.page import write_page
from tests.support.browser import browser_page
from tests.support.hostile_names import HOSTILE_NAMES, HOSTILE_QUERIES
from tests.support.video_files import moving_frames, write_video

pytestmark = pytest.mark.slow

IS_SEEN = """[...document.querySelectorAll("li")].map(item => {
  const [text, image, video] = ["p", "img", "video"].map(tag => item.querySelector(tag));
  const seen = part => part.checkVisibility() && part.getBoundingClientRect().height > 10;
  return {
    text: text.innerText, all: [text, image, video].every(seen),
    image: image.complete && image.naturalWidth > 0, href: item.querySelector("a").href,
  };
})"""
READY = """Promise.all([...document.querySelectorAll("video")].map(video =>
  new Promise((resolve, reject) => {
    if (video.readyState >= 2) return resolve();
    video.addEventListener("loadeddata", resolve);
    video.addEventListener("error", () => reject(new Error(video.src)));
  })))"""
PLAY = """(async () => {
  const video = document.querySelector("video");
  const start = video.currentTime;
  const paused = new Promise(resolve => video.addEventListener("pause", resolve));
  await video.play();
  await paused;
  return [start, video.currentTime, video.videoWidth];
})()"""


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("videos") / "moving.webm"
    return write_video(path, moving_frames(24), "libvpx", options={}, rate=8)


@pytest.mark.parametrize("query", HOSTILE_QUERIES, ids=ascii)
def test_what_is_seen(query, video, tmp_path):
    hits = []
    for rank, name in enumerate(HOSTILE_NAMES):
        path = tmp_path / f"{name}.webm"
        os.link(video, path)
        hits.append(Hit(str(path), 1.0, 2.0, 0.5 - rank / 100))
    write_page(tmp_path / "page.html", query, hits)
    with browser_page(tmp_path / "profile") as page:
        page.open(tmp_path / "page.html")
        page.evaluate(READY)
        items = page.evaluate(IS_SEEN)
        title = page.evaluate("document.querySelector('h1').innerText")
        played = page.evaluate(PLAY)
        page.screenshot(tmp_path / "page.png")
        assert page.evaluate("typeof window.hacked") == "undefined"
        assert page.evaluate("document.querySelectorAll('script, svg, iframe').length") == 0
    assert title == query or not query.isprintable()
    assert len(items) == len(hits)
    for rank, (item, hit) in enumerate(zip(items, hits, strict=True), start=1):
        assert item["all"] and item["image"]
        assert item["text"].startswith(str(rank))
        assert f"{hit.score:.3f}" in item["text"] and "0:01.0 to 0:02.0" in item["text"]
        address = urlsplit(item["href"])
        assert address.scheme == "file" and address.fragment == "t=1.000,2.000"
        assert unquote_to_bytes(address.path) == os.fsencode(hit.video)
    start, end, width = played
    assert start == pytest.approx(1.0, abs=0.05) and end == pytest.approx(2.0, abs=0.3)
    assert width == 64
    assert (tmp_path / "page.png").stat().st_size > 10_000

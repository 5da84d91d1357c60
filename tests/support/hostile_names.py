"""File names and queries that try to get out of their place in a page or on a terminal."""

from __future__ import annotations

import os

HOSTILE_NAMES = [
    "<script>window.hacked=1<%2fscript>.mp4",
    "\"><img src=x onerror='window.hacked=1'>.mp4",
    "' onplay='window.hacked=1.mp4",
    "javascript:window.hacked=1;.mp4",
    "two\nlines\r\x1b[31m and an escape.mp4",
    "100% #t=9 ?a=b&amp;&lt;%3Cb%3E%00.mp4",
    "\u202egnp.mp4",
    os.fsdecode(b"not unicode \xff\xfe.mp4"),
    "été 映画 🎬.mp4",
]
HOSTILE_QUERIES = [
    "</title></h1><script>window.hacked=1</script>",
    "\"'><svg onload=window.hacked=1>&lt;b&gt;",
    "two\nlines \ud800 \u202e javascript:alert(1) 100%",
]

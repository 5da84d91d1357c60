"""What was found, as one HTML file: frames of each hit, its time and score, and the moment itself.

File names and queries may be anything: text is escaped, addresses are `file:` only and percent
encoded, and the page's own rules allow no script, no other page and nothing from the network.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from html import escape
from pathlib import Path

from muse_adapter.files import write_whole
from muse_adapter.search.listing import clock, printable
from muse_adapter.search.pictures import strip_of
from muse_adapter.search.segments import Hit

_POLICY = (
    "default-src 'none'; img-src data:; media-src file:; style-src 'unsafe-inline'; "
    "base-uri 'none'; form-action 'none'"
)

_STYLE = """
body { font: 15px/1.4 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem;
       color: #1f2328; background: #fff }
h1 { font-size: 1.4rem; overflow-wrap: anywhere }
ol { list-style: none; padding: 0 }
li { border-top: 1px solid #d1d9e0; padding: 1rem 0 }
.facts { margin: 0 0 .5rem; overflow-wrap: anywhere }
.rank, .time { margin-right: 1rem }
.score { font-weight: 600; margin-right: 1rem; font-variant-numeric: tabular-nums }
.folder, .reason { color: #59636e }
.moment { display: flex; flex-wrap: wrap; gap: .75rem; align-items: center }
video { height: 9rem; max-width: 100%; background: #000 }
.strip { flex: 1 1 30rem; min-width: 0 }
.strip img { max-width: 100% }
"""


def write_page(path: Path, query: str, hits: Sequence[Hit]) -> None:
    """Write hits as a page for a browser on this machine.

    Args:
        path: Of the HTML file. Videos are not copied into it but played from where they are.
        query: What was searched for.
        hits: What was found, best first.

    Raises:
        ImportError: PyAV is not installed.
        OSError: The file cannot be written.
    """
    title = escape(printable(query))
    count = f"{len(hits)} video{'' if len(hits) == 1 else 's'}"
    items = "\n".join(_item(rank, hit) for rank, hit in enumerate(hits, start=1))
    text = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{title}</h1>
<p>{count}</p>
<ol>
{items}
</ol>
</body>
</html>
"""
    write_whole({path: text.encode()})


def _item(rank: int, hit: Hit) -> str:
    folder, name = os.path.split(hit.video)
    span = f"{clock(hit.start)} to {clock(hit.end)}"
    facts = (
        f'<span class="rank">{rank}</span><span class="score">{hit.score:.3f}</span>'
        f'<span class="time">{span}</span>'
    )
    shown, inside = escape(printable(name)), escape(printable(folder))
    try:
        picture = base64.b64encode(strip_of(hit.video, hit.start, hit.end)).decode()
    except (OSError, ValueError) as error:
        return (
            f'<li><p class="facts">{facts}{shown} <span class="folder">{inside}</span></p>'
            f'<p class="reason">{escape(printable(str(error)))}</p></li>'
        )
    address = escape(f"{_address(hit.video)}#t={hit.start:.3f},{hit.end:.3f}")
    return (
        f'<li><p class="facts">{facts}<a href="{address}">{shown}</a> '
        f'<span class="folder">{inside}</span></p>'
        f'<div class="moment"><video controls preload="metadata" src="{address}"></video>'
        f'<div class="strip"><img alt="frames from {span}" src="data:image/jpeg;base64,{picture}">'
        "</div></div></li>"
    )


def _address(video: str) -> str:
    """Return the `file:` address of a video, whatever its name looks like."""
    return Path(os.path.abspath(video)).as_uri()

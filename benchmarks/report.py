"""The documents' sections on the benchmarks, made from the figures in `benchmarks/results`.

    python -m benchmarks.report            # rewrite them, heads.md and the plots beside them

A section stands between `<!-- NAME -->` and `<!-- end of NAME -->`, NAME as in `SECTIONS`, in any
of `DOCUMENTS`, and is empty as long as its figures are not there. Nothing between these marks is
written by hand.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import (
    decoding,
    head,
    milvus,
    moments,
    onnx,
    scale,
    scan,
    search,
    shared_machine,
    streaming,
)
from benchmarks.heads.curves import draw
from benchmarks.heads.tables import hardware_section, heads_section, markdown, pairs_section
from benchmarks.machine import ROOT
from benchmarks.retrieval import table as retrieval

RESULTS = ROOT / "benchmarks" / "results"
DOCUMENTS = ("README.md", "docs/**/*.md", "examples/README.md")


def main() -> None:
    """Rewrite the sections and draw the plots that they show.

    Raises:
        ValueError: There are figures that no document has a section for, or a mark is missing.
    """
    texts = {document: with_sections(document) for document in documents()}
    for name, section in SECTIONS.items():
        shown = any(_marks(name)[0] in text for text in texts.values())
        if (RESULTS / section.file).exists() and not shown:
            raise ValueError(f"no document has the mark <!-- {name} -->")
    for document, text in texts.items():
        document.write_text(text, encoding="utf-8")
    heads = RESULTS / "heads.json"
    if heads.exists():
        figures = json.loads(heads.read_text(encoding="utf-8"))
        heads.with_suffix(".md").write_text(markdown(figures), encoding="utf-8")
        draw(figures, RESULTS)


def documents() -> list[Path]:
    """Find the documents with a section."""
    found = (path for pattern in DOCUMENTS for path in sorted(ROOT.glob(pattern)))
    return [
        path
        for path in found
        if any(_marks(name)[0] in path.read_text(encoding="utf-8") for name in SECTIONS)
    ]


def with_sections(document: Path) -> str:
    """Return a document's text, its sections as the kept figures give them.

    Raises:
        ValueError: A section does not end, or is there twice.
    """
    text = document.read_text(encoding="utf-8")
    folder = Path(os.path.relpath(RESULTS, document.parent)).as_posix()
    for name, section in SECTIONS.items():
        first, last = _marks(name)
        if first not in text and last not in text:
            continue
        if text.count(first) != 1 or text.count(last) != 1:
            raise ValueError(f"{document} must have {first.strip()} and {last.strip()} once each")
        before, rest = text.split(first)
        if last not in rest:
            raise ValueError(f"{document}: {last.strip()} must stand behind {first.strip()}")
        _, after = rest.split(last)
        file = RESULTS / section.file
        content = ""
        if file.exists():
            content = section.write(json.loads(file.read_text(encoding="utf-8")), folder)
        text = before + first + content + last + after
    return text


def _marks(name: str) -> tuple[str, str]:
    return f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"


class Section(NamedTuple):
    """A section of the documents.

    Attributes:
        file: The figures, a file of `RESULTS`.
        write: Figures, and the folder of the results as seen from the document -> Markdown.
    """

    file: str
    write: Callable[[Any, str], str]


def _table_of(benchmark: Any) -> Callable[[Any, str], str]:
    return lambda figures, _: f"\n{benchmark.markdown_table(figures)}\n"


# By the file of its figures, what writes a table of them.
BENCHMARKS = {
    "head.json": head,
    "scan.json": scan,
    "decoding.json": decoding,
    "streaming.json": streaming,
    "onnx.json": onnx,
    "moments.json": moments,
    "shared_machine.json": shared_machine,
    "retrieval.json": retrieval,
    "search.json": search,
    "milvus.json": milvus,
}
SECTIONS = {
    **{file: Section(file, _table_of(benchmark)) for file, benchmark in BENCHMARKS.items()},
    "search.json, scale": Section("search.json", lambda figures, _: scale.section(figures)),
    "heads.json": Section("heads.json", heads_section),
    "heads.json, evaluation": Section("heads.json", pairs_section),
    "heads.json, hardware": Section("heads.json", hardware_section),
}


if __name__ == "__main__":
    main()

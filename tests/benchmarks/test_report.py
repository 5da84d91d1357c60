"""Documents and plots that `python -m benchmarks.report` makes of the kept figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import report
from benchmarks.__main__ import main
from benchmarks.heads import tables
from tests.support.small_benchmarks import RUN, FakeMeasure


@pytest.mark.parametrize(
    "document", report.documents(), ids=lambda path: path.relative_to(report.ROOT).as_posix()
)
def test_documents_show_the_kept_figures(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    assert report.with_sections(document) == text, "run python -m benchmarks.report"


def test_every_section_stands_somewhere() -> None:
    texts = [document.read_text(encoding="utf-8") for document in report.documents()]
    for name in report.SECTIONS:
        assert any(f"<!-- {name} -->\n" in text for text in texts), name


def test_the_kept_table_is_of_the_kept_figures() -> None:
    figures = json.loads((report.RESULTS / "heads.json").read_text(encoding="utf-8"))
    table = (report.RESULTS / "heads.md").read_text(encoding="utf-8")
    assert tables.markdown(figures) == table, "run python -m benchmarks.report"


def test_the_kept_figures_keep_what_is_promised() -> None:
    """The torch backend at least twice as fast as the definition, 65,920 tokens in 4.5 GiB."""
    rows = json.loads((report.RESULTS / "scan.json").read_text())["rows"]
    at = {row["backend"]: row for row in rows if row["length"] == 3060}
    for kind in ("forward_s", "training_s"):
        assert at["reference"][kind] >= 2 * at["torch"][kind]
    memory = json.loads((report.RESULTS / "head.json").read_text())["memory"]
    assert memory["tokens"] == 65_920 and memory["peak_gib"] < 4.5


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the results in an empty checkout."""
    folder = tmp_path / "benchmarks" / "results"
    folder.mkdir(parents=True)
    monkeypatch.setattr(report, "ROOT", tmp_path)
    monkeypatch.setattr(report, "RESULTS", folder)
    return folder


def write_marks(document: Path, *names: str) -> str:
    document.parent.mkdir(exist_ok=True)
    marks = "".join(f"<!-- {name} -->\n<!-- end of {name} -->\n" for name in names)
    document.write_text(f"above\n{marks}below\n")
    return document.read_text()


def test_sections_are_made_where_there_are_figures(
    fake: FakeMeasure, results: Path, tmp_path: Path
) -> None:
    page, of_patches = tmp_path / "docs" / "costs.md", tmp_path / "examples" / "README.md"
    readme, other = tmp_path / "README.md", tmp_path / "docs" / "other.md"
    empty = {
        readme: write_marks(readme, "heads.json, hardware"),
        page: write_marks(page, "head.json", "heads.json"),
        of_patches: write_marks(of_patches, "heads.json, evaluation"),
    }
    other.write_text("no marks\n")
    assert report.documents() == [readme, page, of_patches]
    report.main()
    assert {path: path.read_text() for path in empty} == empty

    assert main([*RUN, "--json", str(results / "heads.json")]) == 0
    report.main()
    once = page.read_text()
    report.main()
    assert page.read_text() == once and once.startswith("above\n") and once.endswith("below\n")
    made = {path.name for path in results.iterdir()}
    assert made == {"heads.json", "heads.md", "time.png", "memory.png"}
    whole = (results / "heads.md").read_text()
    # 40 frames of 5 tokens: 2 ms, linear, against 80 ms, quadratic.
    assert "40 frames of 2x2 patches, batch 1:" in once
    assert "| MUSE, `torch` | 10 | 2.0 ± 0.02 |" in once
    assert "| MUSE, `torch` | 1.00 ± 0.00 | 1.00 ± 0.00 | 1.00 ± 0.00 | 1.00 ± 0.00 |" in whole
    assert "| attention, SDPA flash | 2.00 ± 0.00 |" in whole
    assert "| time | none within the measured range (10 to 200 tokens): cheaper" in once
    shown = of_patches.read_text()
    assert shown.startswith("above\n") and "Measured by `python -m benchmarks" in shown
    for text in (once, shown):
        assert "| 1,000 x 1,000 | 111,556 | 334 |" in text and "| measured |" in text
    assert "![Time of a run" in once and "(../benchmarks/results/time.png)" in once
    assert "One video of 7x7 patches a frame. `python -m benchmarks" in readme.read_text()
    assert other.read_text() == "no marks\n"


def test_readme_shows_heads_of_the_kept_figures() -> None:
    figures = json.loads((report.RESULTS / "heads.json").read_text(encoding="utf-8"))
    section = report.hardware_section(figures, "results")
    assert section in (report.ROOT / "README.md").read_text(encoding="utf-8")
    short, long = (section.count(f"| {frames} |") for frames in tables.HARDWARE_FRAMES)
    assert short == len(tables.HARDWARE_HEADS) and 0 < long <= short


def test_figures_that_no_document_shows(results: Path) -> None:
    (results / "scan.json").write_text("{}")
    with pytest.raises(ValueError, match=r"no document has the mark <!-- scan\.json -->"):
        report.main()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "<!-- scan.json -->\n",
            r"must have <!-- scan\.json --> and <!-- end of scan",
        ),
        ("<!-- scan.json -->\n<!-- end of scan.json -->\n" * 2, "once each"),
        (
            "<!-- end of scan.json -->\n<!-- scan.json -->\n",
            "must stand behind <!-- scan",
        ),
    ],
    ids=["no end", "twice", "end first"],
)
def test_wrong_marks(text: str, message: str, results: Path, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(text)
    with pytest.raises(ValueError, match=message):
        report.main()
    assert readme.read_text() == text

"""README's Python blocks run, in order, in one namespace, and print what README shows."""

from __future__ import annotations

import contextlib
import doctest
import io
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.support.backbone_libraries import import_openai_clip

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"

FENCE = re.compile(r"^```(?P<language>[^\n`]*)\n(?P<code>.*?)^```[ ]*$", re.MULTILINE | re.DOTALL)
# Python runs, text behind it is its output, the others are for people. A name that is not here (py,
# Python) would be a block that nobody runs.
LANGUAGES = {"python", "text", "sh", "json", "bibtex"}
# What tests/run.sh installs beside the environment; elsewhere it may be missing.
BACKBONE_LIBRARIES = {"timm", "open_clip", "torchvision", "clip"}
# README may write ... for what differs from machine to machine.
COMPARE = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


class Block(NamedTuple):
    """One fenced block: language, first line, code, and for Python the output shown behind it."""

    language: str
    line: int
    code: str
    output: str | None


def read_blocks(text: str) -> list[Block]:
    """All fenced blocks; a text block right behind a Python block is also that block's output."""
    matches = list(FENCE.finditer(text))
    blocks = []
    for match, following in zip(matches, [*matches[1:], None], strict=True):
        output = None
        if match["language"] == "python" and following is not None:
            between = text[match.end() : following.start()].strip()
            output = following["code"] if following["language"] == "text" and not between else None
        line = text.count("\n", 0, match.start("code")) + 1
        blocks.append(Block(match["language"], line, match["code"], output))
    return blocks


def run_blocks(blocks: list[Block]) -> list[str]:
    """Runs the Python blocks in one namespace and compares their output with what is shown.

    Returns:
        The blocks that did not run for want of a backbone's library, as "line 9 (timm)".
    """
    namespace: dict[str, Any] = {"__name__": "__readme__"}
    missing: list[str] = []
    for block in blocks:
        if block.language != "python":
            continue
        # Empty lines in front make a traceback name README's own lines.
        code = compile("\n" * (block.line - 1) + block.code, str(README), "exec")
        printed = io.StringIO()
        try:
            with contextlib.redirect_stdout(printed):
                exec(code, namespace)
        except ModuleNotFoundError as error:
            if error.name not in BACKBONE_LIBRARIES:
                raise
            missing.append(f"line {block.line} ({error.name})")
            continue
        if block.output is not None:
            same = doctest.OutputChecker().check_output(block.output, printed.getvalue(), COMPARE)
            assert same, (
                f"README line {block.line} prints\n{printed.getvalue()}\nand shows\n{block.output}"
            )
    return missing


def test_readme_runs_and_prints_what_it_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = read_blocks(README.read_text(encoding="utf-8"))
    assert any(block.language == "python" and block.output for block in blocks)
    import_openai_clip()
    if missing := run_blocks(blocks):
        pytest.skip(f"ran all blocks of README but those at {', '.join(missing)}")


def test_readme_uses_known_languages_only() -> None:
    text = README.read_text(encoding="utf-8")
    blocks = read_blocks(text)
    assert {block.language for block in blocks} <= LANGUAGES
    assert 2 * len(blocks) == len(re.findall(r"^\s*```", text, re.MULTILINE)), (
        "a fence is not closed"
    )


def test_files_that_readme_names_are_there() -> None:
    text = README.read_text(encoding="utf-8")
    commands = "\n".join(block.code for block in read_blocks(text) if block.language == "sh")
    scripts = re.findall(
        r"(?:^|\s)((?:tests|examples|benchmarks)/[\w/.-]+)", commands, re.MULTILINE
    )
    links = re.findall(r"\]\((?!https?://|#|mailto:)([^)#\s]+)", text)
    missing = [name for name in [*scripts, *links] if not (ROOT / name).exists()]
    assert not missing
    assert "tests/run.sh" in scripts, "README must give the command that runs the tests"


PAGE = """
```python
a = 2
```

```python
print(a * 21)
```

```text
{shown}
```

Prose between a block and a text block.

```text
belongs to nothing
```
"""


@pytest.mark.parametrize("shown", ["42", "...", "4..."])
def test_right_output_passes(shown: str) -> None:
    run_blocks(read_blocks(PAGE.format(shown=shown)))


def test_wrong_output_fails() -> None:
    with pytest.raises(AssertionError, match=r"README line 7 prints\s+42"):
        run_blocks(read_blocks(PAGE.format(shown="43")))


def test_block_without_its_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    page = "```python\nimport {}\n```\n"
    assert run_blocks(read_blocks(page.format("timm"))) == ["line 2 (timm)"]
    with pytest.raises(ModuleNotFoundError, match="nowhere"):
        run_blocks(read_blocks(page.format("nowhere")))


def test_output_belongs_to_the_block_right_before_it() -> None:
    outputs = [block.output for block in read_blocks(PAGE.format(shown="42"))]
    assert outputs == [None, "42\n", None, None]

"""The Python blocks of README and of the pages in docs run, and print what the pages show.

The blocks of a page run in order, in one namespace.
"""

from __future__ import annotations

import ast
import configparser
import contextlib
import doctest
import importlib
import io
import itertools
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import muse_adapter
from tests.support.backbone_libraries import import_openai_clip

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]

FENCE = re.compile(r"^```(?P<language>[^\n`]*)\n(?P<code>.*?)^```[ ]*$", re.MULTILINE | re.DOTALL)
# Python runs, text behind it is its output, the others are for people. A name that is not here (py,
# Python) would be a block that nobody runs. Names in braces are directives of Sphinx.
LANGUAGES = {"python", "text", "sh", "json", "bibtex", "{toctree}", "{include}", "{eval-rst}"}
# What tests/run.sh installs beside the environment; elsewhere it may be missing. And mteb, which it
# leaves out for its size.
MAY_BE_MISSING = {"timm", "open_clip", "torchvision", "clip", "mteb"}
# A page may write ... for what differs from machine to machine.
COMPARE = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE

# These build whole models of several libraries, trace the head several times, or import mteb for
# ten seconds.
SLOW_PAGES = {"backbones", "compile", "mteb", "onnx"}

# Distributions whose module has another name, and what calls of ours need beyond their imports.
DISTRIBUTION = {
    "PIL": "pillow",
    "open_clip": "open_clip_torch",
    "clip": "clip-anytorch",
    "sentence_transformers": "sentence-transformers",
}
NEEDS = {"save_pretrained": "safetensors", "cache_tokens": "safetensors", "read_frames": "av"}
NEEDS["open_prvr"] = NEEDS["Hdf5Features"] = "h5py"
CORE = {"torch", "einops", "muse_adapter"}


class Block(NamedTuple):
    """One fenced block: language, first line, code, and for Python the output shown behind it."""

    language: str
    line: int
    code: str
    output: str | None


def read_blocks(text: str) -> list[Block]:
    """Read all fenced blocks; a text block right behind a Python block is also its output."""
    matches = list(FENCE.finditer(text))
    blocks = []
    for match, following in itertools.zip_longest(matches, matches[1:]):
        language = match["language"].partition(" ")[0]
        output = None
        if language == "python" and following is not None:
            between = text[match.end() : following.start()].strip()
            output = following["code"] if following["language"] == "text" and not between else None
        line = text.count("\n", 0, match.start("code")) + 1
        blocks.append(Block(language, line, match["code"], output))
    return blocks


def run_blocks(blocks: list[Block], page: str) -> list[str]:
    """Run the Python blocks in one namespace and compare their output with what is shown.

    Returns:
        The blocks that did not run for want of a library, as "line 9 (timm)".
    """
    namespace: dict[str, Any] = {"__name__": "__page__"}
    missing: list[str] = []
    for block in blocks:
        if block.language != "python":
            continue
        # Empty lines in front make a traceback name the page's own lines.
        code = compile("\n" * (block.line - 1) + block.code, page, "exec")
        printed = io.StringIO()
        try:
            with contextlib.redirect_stdout(printed):
                exec(code, namespace)
        except ModuleNotFoundError as error:
            if error.name not in MAY_BE_MISSING:
                raise
            missing.append(f"line {block.line} ({error.name})")
            continue
        if block.output is not None:
            same = doctest.OutputChecker().check_output(block.output, printed.getvalue(), COMPARE)
            assert same, (
                f"{page} line {block.line} prints\n{printed.getvalue()}\nand shows\n{block.output}"
            )
    return missing


def not_installed(blocks: list[Block], extras: dict[str, set[str]]) -> set[str]:
    """Name the libraries that Python blocks need and no install line before them brings."""
    installed: set[str] = set()
    missing: set[str] = set()
    for block in blocks:
        if block.language == "sh":
            for line in re.findall(r"pip install (.*)", block.code):
                for word in line.partition("#")[0].replace("'", "").split():
                    inside = re.fullmatch(r"\.\[(.*)\]", word)
                    names = inside[1].split(",") if inside else []
                    installed |= {word}.union(*(extras[name] for name in names))
        elif block.language == "python":
            modules, used = set(), set()
            for node in ast.walk(ast.parse(block.code)):
                if isinstance(node, ast.Import):
                    modules |= {alias.name for alias in node.names}
                elif isinstance(node, ast.ImportFrom):
                    modules.add(str(node.module))
                elif isinstance(node, ast.Attribute):
                    used.add(node.attr)
                elif isinstance(node, ast.Name):
                    used.add(node.id)
            tops = {module.partition(".")[0] for module in modules}
            tops -= CORE | set(sys.stdlib_module_names)
            needed = {DISTRIBUTION.get(name, name) for name in tops}
            needed |= {NEEDS[name] for name in used & set(NEEDS)}
            missing |= needed - installed
    return missing


@pytest.fixture(scope="module")
def extras() -> dict[str, set[str]]:
    """The distributions that each extra of setup.cfg brings."""
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    listed = parser["options.extras_require"]

    def brought_by(extra: str) -> set[str]:
        names: set[str] = set()
        for line in listed[extra].split():
            inside = re.match(r"muse-adapter\[([\w,]+)\]", line)
            names |= set().union(*map(brought_by, inside[1].split(","))) if inside else set()
            names |= set(re.findall(r"^[\w-]+", line))
        return names

    return {extra: brought_by(extra) for extra in listed}


def page_id(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


pages = pytest.mark.parametrize("page", PAGES, ids=page_id)


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=page_id(page), marks=[pytest.mark.slow] * (page.stem in SLOW_PAGES))
        for page in PAGES
        if "```python" in page.read_text(encoding="utf-8")
    ],
)
def test_page_runs_and_prints_what_it_shows(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = read_blocks(page.read_text(encoding="utf-8"))
    import_openai_clip()
    if missing := run_blocks(blocks, page_id(page)):
        pytest.skip(f"ran all blocks but those at {', '.join(missing)}")


@pages
def test_page_names_the_libraries_it_needs(page: Path, extras: dict[str, set[str]]) -> None:
    assert not not_installed(read_blocks(page.read_text(encoding="utf-8")), extras)


@pages
def test_page_uses_known_languages_only(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    blocks = read_blocks(text)
    assert {block.language for block in blocks} <= LANGUAGES
    assert 2 * len(blocks) == len(re.findall(r"^\s*```", text, re.MULTILINE)), (
        "a fence is not closed"
    )


@pages
def test_files_that_a_page_names_are_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    commands = "\n".join(block.code for block in read_blocks(text) if block.language == "sh")
    scripts = re.findall(r"(?:^|\s)((?:tests|examples|benchmarks|\.ci)/[\w/.-]+)", commands)
    links = re.findall(r"\]\((?!https?://|#|mailto:)([^)#\s]+)", text)
    links += re.findall(r"^```\{include\} (\S+)", text, re.MULTILINE)
    written = {"benchmarks/results/head.json"}
    missing = [name for name in set(scripts) - written if not (ROOT / name).exists()]
    missing += [link for link in links if not (page.parent / link).exists()]
    assert not missing


def test_readme_is_short_and_names_every_page() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.count("\n") <= 200
    assert "tests/run.sh" in text, "README must give the command that runs the tests"
    sections = [ROOT / "docs" / name for name in ("index.md", "guide.md", "benchmarks.md")]
    listed = "\n".join(section.read_text(encoding="utf-8") for section in sections)
    toctrees = [block.code for block in read_blocks(listed) if block.language == "{toctree}"]
    in_order = {line for code in toctrees for line in code.split()} - {":hidden:"}
    assert in_order | {"index"} == {page.stem for page in (ROOT / "docs").rglob("*.md")}


def test_api_reference_holds_every_public_name() -> None:
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"auto(?:class|function|data):: muse_adapter\.(\w+)", text))
    modules = re.findall(r"automodule:: (muse_adapter[\w.]*)", text)
    for name in modules:
        documented |= set(importlib.import_module(name).__all__)
    assert set(muse_adapter.__all__) - {"__version__"} <= documented
    assert "muse_adapter.ops" in modules


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
    run_blocks(read_blocks(PAGE.format(shown=shown)), "page.md")


def test_wrong_output_fails() -> None:
    with pytest.raises(AssertionError, match=r"page\.md line 7 prints\s+42"):
        run_blocks(read_blocks(PAGE.format(shown="43")), "page.md")


def test_block_without_its_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    page = "```python\nimport {}\n```\n"
    assert run_blocks(read_blocks(page.format("timm")), "page.md") == ["line 2 (timm)"]
    with pytest.raises(ModuleNotFoundError, match="nowhere"):
        run_blocks(read_blocks(page.format("nowhere")), "page.md")


def test_output_belongs_to_the_block_right_before_it() -> None:
    outputs = [block.output for block in read_blocks(PAGE.format(shown="42"))]
    assert outputs == [None, "42\n", None, None]


@pytest.mark.parametrize(
    ("install", "code", "missing"),
    [
        ("pip install timm", "import timm.data", set()),
        ("pip install '.[hub]'  # timm", "import timm", {"timm"}),
        ("pip install pillow", "from PIL import Image\nimport sys, torch", set()),
        ("pip install '.[cpu,hub]'", "head.save_pretrained('here')", set()),
        ("pip install '.[cpu]'", "cache_tokens(encoder, videos, 'here')", {"safetensors"}),
    ],
)
def test_library_without_an_install_line_is_named(
    install: str, code: str, missing: set[str], extras: dict[str, set[str]]
) -> None:
    block = f"```python\n{code}\n```\n"
    line = f"```sh\n{install}\n```\n"
    assert not_installed(read_blocks(line + block), extras) == missing
    assert not_installed(read_blocks(block + line), extras) >= missing, "it must stand before"

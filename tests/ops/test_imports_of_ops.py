"""Imports inside `muse_adapter.ops` go one way: kernels never see the choice."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

OPS = Path(__file__).resolve().parents[2] / "muse_adapter" / "ops"

# What the public functions stand on; each may import those before it.
FOUNDATION = [
    "torch_private", "autograd", "autocast", "checks", "library", "inputs", "processor",
    "load", "free_threads",
    "linear_map", "mixer_inputs", "short_convolution", "unit", "rows", "text_gate_inputs",
    "top_vectors_inputs", "backend", "operator",
]  # fmt: skip
BACKENDS = {
    "reference": set(),
    "recurrent": {"reference"},
    "onnx_export": {"reference"},
    "mamba_ssm": {"reference"},
    "numba_cpu": set(),
    "triton_gpu": set(),
}
CHOICE = {"self_check": set(), "choice": {"self_check", *BACKENDS}}
RETRIEVAL = "text_gate", "top_vectors", "byte_vectors"
PUBLIC = {name: {"choice"} for name in ("scan", "convolution", "mixer", *RETRIEVAL)}
MAY_IMPORT = {
    **{name: set(FOUNDATION[:index]) for index, name in enumerate(FOUNDATION)},
    **{
        name: {*FOUNDATION, *others}
        for group in (BACKENDS, CHOICE, PUBLIC)
        for name, others in group.items()
    },
    "__init__": {*FOUNDATION, "choice", *PUBLIC},
}


def unit_of(path: Path) -> str:
    return path.relative_to(OPS).parts[0].removesuffix(".py")


def imported_units(source: str) -> set[str]:
    """Files and folders of `muse_adapter.ops` that a file imports, wherever in it."""
    units = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            modules = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        else:
            continue
        parts = [module.split(".") for module in modules]
        units |= {part[2] for part in parts if part[:2] == ["muse_adapter", "ops"]}
    return units


FILES = sorted(OPS.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(OPS)))
def test_imports_go_one_way(path):
    unit = unit_of(path)
    assert unit in MAY_IMPORT, f"{unit} is new: say in this file's table what it may import"
    assert imported_units(path.read_text(encoding="utf-8")) <= MAY_IMPORT[unit] | {unit}


@pytest.mark.parametrize(
    ("unit", "source"),
    [
        ("numba_cpu", "from muse_adapter.ops.choice import choose"),
        ("triton_gpu", "def f():\n    from muse_adapter.ops import choice"),
        ("numba_cpu", "import muse_adapter.ops.triton_gpu.function"),
        ("backend", "from muse_adapter.ops.reference import REFERENCE"),
        ("operator", "from muse_adapter.ops import scan"),
        ("inputs", "from muse_adapter.ops.backend import Backend"),
    ],
)
def test_the_rule_finds_what_it_should(unit, source):
    assert not imported_units(source) <= MAY_IMPORT[unit] | {unit}


def test_private_names_of_torch_stand_in_one_file():
    """Of the whole package: one line and one reason each."""
    private = ("_C", "_dynamo", "_subclasses", "_inductor", "_functorch", "_dynamo_marked_constant")
    found = {}
    for path in sorted(OPS.parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            chain = []
            inner = node
            while isinstance(inner, ast.Attribute):
                chain.append(inner.attr)
                inner = inner.value
            root = inner.id if isinstance(inner, ast.Name) else ""
            of_torch = root in ("torch", "forward_ad", "dynamo") and any(
                part.startswith("_") and not part.startswith("__") for part in chain
            )
            if of_torch or (isinstance(node, ast.Attribute) and node.attr in private):
                found.setdefault(path.relative_to(OPS.parent).as_posix(), node.lineno)
    assert set(found) == {"ops/torch_private.py"}, found

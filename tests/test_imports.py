"""Imports go one way, and importing the package loads nothing optional."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import pytest
import torch

PACKAGE = Path(__file__).resolve().parent.parent / "muse_adapter"

# Unit (file or folder of the package) -> what it may import: units, or single files of one.
# `version` is one constant and imports nothing, so every unit may import it.
MAY_IMPORT: dict[str, set[str]] = {
    "version": set(),
    "files": set(),
    "strict_json": set(),
    "tensor_files": set(),
    "config": {"strict_json"},
    "presets": {"config"},
    "ops": set(),
    "backbones": set(),
    "training": set(),
    "retrieval": {"ops", "layers.interaction"},
    "patching": set(),
    "layers": {"ops"},
    "checkpoint": {"config", "files", "strict_json", "tensor_files"},
    "models": {"layers", "config", "checkpoint", "training"},
    "encoders": {"models", "config", "backbones", "training"},
    "data": {
        *("encoders", "models", "layers", "retrieval"),
        *("files", "strict_json", "tensor_files"),
    },
    "search": {"retrieval", "data", "files", "strict_json", "tensor_files"},
    "clip4clip": {"models", "config", "checkpoint", "training"},
    "sentence_transformers": {"encoders", "data", "models", "retrieval", "layers.interaction"},
    "onnx": {"encoders", "models", "files"},
}
# File -> what one of its functions may import when it is called: an index takes models by duck
# typing, and loads those that `VideoTransformer` is part of by the function that trusts no others.
LATE_IMPORTS = {"search/saved_models.py": {"sentence_transformers.load"}}
SEE_ALL = {"__init__", "__main__"}

# Packages of the extras; only `torch` and `einops` may be loaded.
OPTIONAL = (
    "numpy",
    "numba",
    "triton",
    "mamba_ssm",
    "causal_conv1d",
    "safetensors",
    "huggingface_hub",
    "av",
    "h5py",
    "PIL",
    "matplotlib",
    "transformers",
    "open_clip",
    "timm",
    "torchvision",
    "accelerate",
    "sentence_transformers",
    "tqdm",
    "onnx",
    "onnxscript",
    "onnxruntime",
)


def imported_modules(source: str, *, at_import: bool = False) -> list[str]:
    """List the modules of the package that a file imports, without the package's own name.

    Args:
        source: Text of the file.
        at_import: Leave out what is imported inside functions only, or for type checking.

    Returns:
        Names such as "ops.scan.selective_scan", where the last part may be an object; "" is the
        package itself.
    """
    modules = []
    for node in statements(ast.parse(source)) if at_import else ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import, write the absolute one"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            top, _, rest = name.partition(".")
            if top == "muse_adapter":
                modules.append(rest if rest.partition(".")[0] in MAY_IMPORT else "")
    return modules


def statements(node: ast.AST) -> Iterator[ast.AST]:
    """Walk through the statements that run when a file is imported."""
    for child in ast.iter_child_nodes(node):
        deferred = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        typing_only = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        if not (deferred or typing_only):
            yield child
            yield from statements(child)


def forbidden(unit: str, source: str) -> set[str]:
    """List what a file of `unit` imports but may not."""
    allowed = MAY_IMPORT[unit] | {unit, "version"}
    return {
        module
        for module in imported_modules(source)
        if not any(f"{module}.".startswith(f"{name}.") for name in allowed)
    }


def late_imports(path: Path) -> set[str]:
    """List what a file may import inside functions and does not import elsewhere."""
    allowed = LATE_IMPORTS.get(path.relative_to(PACKAGE).as_posix(), set())
    return allowed - set(imported_modules(path.read_text(encoding="utf-8"), at_import=True))


def unit_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES = sorted(path for path in PACKAGE.rglob("*.py") if unit_of(path) not in SEE_ALL)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    unit = unit_of(path)
    assert unit in MAY_IMPORT, f"{unit} is new: say in this file's table what it may import"
    assert not forbidden(unit, path.read_text(encoding="utf-8")) - late_imports(path)


@pytest.mark.parametrize(
    ("unit", "source", "expected"),
    [
        ("ops", "import torch\nfrom muse_adapter.ops import scan", set()),
        ("ops", "from muse_adapter.layers import block", {"layers.block"}),
        ("ops", "import muse_adapter.config", {"config"}),
        ("layers", "from muse_adapter.ops.scan import selective_scan", set()),
        (
            "layers",
            "from muse_adapter.models.muse import MultiScaleMamba",
            {"models.muse.MultiScaleMamba"},
        ),
        ("models", "from muse_adapter import ops", {"ops"}),
        ("models", "from muse_adapter import MuseConfig", {""}),
        (
            "training",
            "def f():\n    from muse_adapter.models.muse import MultiScaleMamba",
            {"models.muse.MultiScaleMamba"},
        ),
        ("checkpoint", "from muse_adapter.config import MuseConfig", set()),
        ("retrieval", "from muse_adapter.layers.interaction import token_similarity", set()),
        ("retrieval", "from muse_adapter.layers import interaction", set()),
        ("retrieval", "from muse_adapter.layers import block", {"layers.block"}),
        ("retrieval", "from muse_adapter import layers", {"layers"}),
    ],
)
def test_rule_finds_what_it_should(unit: str, source: str, expected: set[str]) -> None:
    assert forbidden(unit, source) == expected


def test_a_late_import_stands_inside_a_function(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (name, allowed), *_ = LATE_IMPORTS.items()
    assert late_imports(PACKAGE / name) == allowed
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    file = tmp_path / name
    file.parent.mkdir()
    file.write_text("from muse_adapter.sentence_transformers import load")
    assert late_imports(file) == set()
    (tmp_path / "search" / "index.py").write_text("def f():\n    pass")
    assert late_imports(tmp_path / "search" / "index.py") == set()


def test_relative_import_is_refused() -> None:
    with pytest.raises(AssertionError, match="relative import"):
        imported_modules("from .config import MuseConfig")


def test_the_table_has_no_circle() -> None:
    units = {unit: {name.partition(".")[0] for name in names} for unit, names in MAY_IMPORT.items()}
    assert set().union(*units.values()) <= set(units)
    TopologicalSorter(units).prepare()


def files_imported_by(path: Path) -> set[Path]:
    """List the files that run because `path` is imported, without the `__init__` of its folders."""
    found = set()
    for module in imported_modules(path.read_text(encoding="utf-8"), at_import=True):
        # The last part may be an object, and then of a file or of a folder's `__init__`.
        for name in (module, module.rpartition(".")[0]):
            target = PACKAGE.joinpath(*filter(None, name.split(".")))
            file = next(
                (f for f in (target.with_suffix(".py"), target / "__init__.py") if f.is_file()),
                None,
            )
            if file:
                found.add(file)
                break
    return found


def test_no_files_import_each_other_in_a_circle() -> None:
    graph = {path: files_imported_by(path) for path in FILES}
    assert any(graph.values())
    TopologicalSorter(graph).prepare()


def test_a_circle_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    one, two = tmp_path / "ops" / "one.py", tmp_path / "ops" / "two.py"
    one.parent.mkdir()
    one.write_text("from muse_adapter.ops import two")
    two.write_text("from muse_adapter.ops.one import thing")
    assert files_imported_by(one) == {two} and files_imported_by(two) == {one}
    with pytest.raises(CycleError):
        TopologicalSorter({path: files_imported_by(path) for path in (one, two)}).prepare()
    two.write_text("def late():\n    from muse_adapter.ops.one import thing")
    assert files_imported_by(two) == set()


@pytest.mark.parametrize("folder", ["tests", "benchmarks", "examples"])
def test_others_import_absolutely_and_no_conftest(folder: str) -> None:
    for path in (PACKAGE.parent / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}:{node.lineno}: relative import"
                assert "conftest" not in (node.module or ""), f"{path}:{node.lineno}"


@pytest.fixture(scope="module")
def imported(run_python: Callable[..., Any]) -> dict[str, Any]:
    """What a new process loads for the package, and for a call of it."""
    done = run_python(
        """
        import json, sys, time
        start = time.perf_counter()
        import torch, einops
        others = time.perf_counter() - start
        before = set(sys.modules)
        start = time.perf_counter()
        import muse_adapter
        seconds = time.perf_counter() - start
        loaded = {name.partition(".")[0] for name in set(sys.modules) - before}
        loaded = sorted(loaded - sys.stdlib_module_names)
        from muse_adapter.ops import selective_scan
        u = torch.randn(1, 4, 9, requires_grad=True)
        B = torch.randn(1, 2, 9)
        selective_scan(u, u, -torch.ones(4, 2), B, B, backend="torch").sum().backward()
        print(json.dumps({
            "seconds": seconds, "others": others, "loaded": loaded,
            "compiler": "torch._dynamo" in sys.modules,
        }))
        """
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_import_loads_torch_einops_and_nothing_else(imported: dict[str, Any]) -> None:
    print(f"import muse_adapter: {imported['seconds']:.3f} s beyond torch and einops")
    # Requirements of torch, which torch 2.6 does not load with itself.
    late = {"sympy", "mpmath"} if torch.__version__.startswith("2.6.") else set()
    assert set(imported["loaded"]) <= {"muse_adapter", "torch", "einops"} | late
    # Measured: 0.1 s against 2.
    assert imported["seconds"] < imported["others"] / 2


def test_eager_calls_do_not_import_the_compiler(imported: dict[str, Any]) -> None:
    """It takes a second, and whoever never compiles never needs it."""
    assert not imported["compiler"]


def test_core_works_where_nothing_optional_can_be_imported(run_python) -> None:
    done = run_python(
        """
        import sys
        for name in sys.argv[1:]:
            sys.modules[name] = None  # importing it fails, as if it were not installed
        import torch
        import muse_adapter
        for name in muse_adapter.__all__:
            getattr(muse_adapter, name)
        head = muse_adapter.MultiScaleMamba(dim=16, depth=1)
        video = head(torch.randn(1, 2, 50, 16), torch.tensor([[1, 0]]))
        video.sum().backward()
        print(tuple(video.shape))
        """,
        *OPTIONAL,
        PYTHONWARNINGS="ignore",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(1, 16)"

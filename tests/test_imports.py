"""Imports go one way, and importing the package loads nothing optional."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "muse_adapter"

# Unit (file or folder of the package) -> units it may import. `version` holds one constant and
# imports nothing, so anything may read it.
MAY_IMPORT: dict[str, set[str]] = {
    "version": set(),
    "files": set(),
    "config": set(),
    "presets": set(),
    "ops": set(),
    "backbones": set(),
    "training": set(),
    "retrieval": set(),
    "patching": set(),
    "layers": {"ops"},
    "checkpoint": {"config", "files"},
    "models": {"layers", "config", "checkpoint", "training"},
    "encoders": {"models", "config", "backbones", "training"},
    "data": {"encoders", "files"},
    "clip4clip": {"models", "config", "training"},
}
SEE_ALL = {"__init__", "__main__"}

# Everything an extra brings; `torch` and `einops` alone may be loaded.
OPTIONAL = (
    "numpy",
    "numba",
    "triton",
    "mamba_ssm",
    "causal_conv1d",
    "safetensors",
    "huggingface_hub",
    "av",
    "PIL",
    "matplotlib",
    "transformers",
    "open_clip",
    "timm",
    "torchvision",
    "accelerate",
    "tqdm",
)


def imported_units(source: str) -> set[str]:
    """Units of the package that a file imports, wherever in it; '' is the package itself."""
    units = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import, write the absolute one"
            modules = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        else:
            continue
        for module in modules:
            top, _, rest = module.partition(".")
            if top == "muse_adapter":
                unit = rest.partition(".")[0]
                units.add(unit if unit in MAY_IMPORT else "")
    return units


def forbidden(unit: str, source: str) -> set[str]:
    """Units that a file of `unit` imports but may not."""
    return imported_units(source) - MAY_IMPORT[unit] - {unit, "version"}


def unit_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES = sorted(path for path in PACKAGE.rglob("*.py") if unit_of(path) not in SEE_ALL)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    unit = unit_of(path)
    assert unit in MAY_IMPORT, f"{unit} is new: say in this file's table what it may import"
    assert not forbidden(unit, path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("unit", "source", "expected"),
    [
        ("ops", "import torch\nfrom muse_adapter.ops import scan", set()),
        ("ops", "from muse_adapter.layers import block", {"layers"}),
        ("ops", "import muse_adapter.config", {"config"}),
        ("layers", "from muse_adapter.ops.scan import selective_scan", set()),
        ("layers", "from muse_adapter.models.muse import MultiScaleMamba", {"models"}),
        ("models", "from muse_adapter import ops", {"ops"}),
        ("models", "from muse_adapter import MuseConfig", {""}),
        (
            "training",
            "def f():\n    from muse_adapter.models.muse import MultiScaleMamba",
            {"models"},
        ),
        ("checkpoint", "from muse_adapter.config import MuseConfig", set()),
    ],
)
def test_rule_finds_what_it_should(unit: str, source: str, expected: set[str]) -> None:
    assert forbidden(unit, source) == expected


def test_relative_import_is_refused() -> None:
    with pytest.raises(AssertionError, match="relative import"):
        imported_units("from .config import MuseConfig")


def test_import_loads_torch_einops_and_nothing_else(run_python) -> None:
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
        print(json.dumps({"seconds": seconds, "others": others, "loaded": loaded}))
        """
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    print(f"import muse_adapter: {result['seconds']:.3f} s beyond torch and einops")
    assert set(result["loaded"]) <= {"muse_adapter", "torch", "einops"}
    # Measured: 0.1 s against 2.
    assert result["seconds"] < result["others"] / 2


def test_core_works_where_nothing_optional_can_be_imported(run_python) -> None:
    done = run_python(
        """
        import sys
        for name in sys.argv[1:]:
            sys.modules[name] = None  # import of it fails as if it were not installed
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

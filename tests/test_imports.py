"""The one-way road of DESIGN 1, and an import that stays light."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src" / "fastbadge"


def module_name(path):
    parts = path.relative_to(SRC.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path):
    """Dotted names this file imports anywhere, functions and TYPE_CHECKING included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write the whole name"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


IMPORTS = {module_name(path): imports_of(path) for path in sorted(SRC.rglob("*.py"))}


def first_level(module):
    """fastbadge.strategies.badge -> strategies."""
    return f"{module}.".split(".")[1]


def arrows(module):
    """Which first-level parts of the package a module imports."""
    submodules = {first_level(name) for name in IMPORTS} - {""}
    targets = {first_level(name) for name in IMPORTS[module] if name.startswith("fastbadge.")}
    return targets & submodules - {first_level(module)}


MATHEMATICS = {
    "gradients",
    "inputs",
    "kmeanspp",
    "pools",
    "precision",
    "rows",
    "screen",
    "screen_numba",
    "sharded",
    "sumtree",
    "weights",
}

# What each part may import besides errors; the outermost may import all.
ALLOWED = {
    "errors": set(),
    "files": set(),
    "interrupts": set(),
    "lock": set(),
    "plugins": set(),
    "progress": set(),
    "sqlitefile": set(),
    "distributed": {"inputs"},
    **dict.fromkeys(MATHEMATICS, MATHEMATICS | {"progress"}),
    "inputs": set(),
    "gradients": {"inputs"},
    "precision": set(),
    "rows": set(),
    "sumtree": set(),
    "screen": {"gradients", "precision", "rows"},
    "screen_numba": {"rows", "screen"},
    "weights": {"pools", "rows", "sumtree"},
    "sharded": {"distributed", "gradients", "pools", "rows", "sumtree", "weights"},
    "kmeanspp": {"distributed", "inputs", "pools", "progress", "rows", "sharded", "weights"},
    "pools": {"gradients", "inputs", "interrupts", "progress", "rows", "screen", "screen_numba"},
    "batches": {"inputs"},
    "dropout": set(),
    "heads": {"interrupts"},
    "inference": {"batches", "gradients", "heads", "inputs", "progress"},
    "strategies": {"distributed", "gradients", "kmeanspp", "pools", "sharded"},
    "select": {
        "batches",
        "distributed",
        "dropout",
        "gradients",
        "inference",
        "inputs",
        "kmeanspp",
        "pools",
        "progress",
        "sharded",
        "strategies",
    },
    "sklearn": {"gradients", "inputs", "pools", "select", "strategies"},
    "lightning": {"batches", "select"},
    "label": {"files", "gradients", "lock", "plugins", "progress", "sqlitefile", "strategies"},
    "": {"gradients", "kmeanspp", "pools", "select", "sharded", "strategies"},
}
OUTERMOST = {"lab", "cli", "__main__"}


@pytest.mark.parametrize("module", sorted(IMPORTS))
def test_arrows_never_run_back(module):
    part = first_level(module)
    assert part in ALLOWED or part in OUTERMOST, f"say in ALLOWED what {part} may import"
    if part in ALLOWED:
        assert arrows(module) <= ALLOWED[part] | {"errors"}
    if part == "lab":
        assert arrows(module).isdisjoint({"cli", "label", "__main__"})
    if part in MATHEMATICS:
        third_party = {name.partition(".")[0] for name in IMPORTS[module]} - sys.stdlib_module_names
        assert third_party <= {"fastbadge", "numba", "numpy", "torch", "tqdm"}
        assert not {name for name in IMPORTS[module] if name.startswith("torch.nn")}


@pytest.mark.parametrize("module", sorted(IMPORTS))
def test_torchvision_is_imported_nowhere(module):
    assert not {name for name in IMPORTS[module] if name.split(".")[0] == "torchvision"}


# What is installed under another name than it is imported by.
DISTRIBUTIONS = {"PIL": "pillow", "mlflow": "mlflow-skinny", "sklearn": "scikit-learn"}
OURS = {"fastbadge", "fastbadge_command"}
PROJECT = tomllib.loads((SRC.parents[1] / "pyproject.toml").read_text())["project"]
PINS = [
    line
    for name in ("requirements.txt", "requirements-dev.txt", "requirements-docs.txt")
    for line in (SRC.parents[1] / name).read_text().splitlines()
    if line and not line.startswith(("#", "-"))
]


def name_of(requirement):
    return re.match(r"[\w-]+", requirement)[0]


@pytest.mark.parametrize("module", sorted(IMPORTS))
def test_whatever_is_imported_is_declared(module):
    names = {name.partition(".")[0] for name in IMPORTS[module]} - sys.stdlib_module_names
    extras = PROJECT["optional-dependencies"].values()
    declared = {name_of(line) for line in sum(extras, PROJECT["dependencies"])}
    assert {DISTRIBUTIONS.get(name, name) for name in names - OURS} <= declared


def test_every_direct_dependency_is_pinned_exactly():
    assert not [line for line in PINS if not re.fullmatch(r"[\w-]+==\d+(\.\d+)+", line)]
    assert {name_of(line) for line in PROJECT["dependencies"]} <= {name_of(line) for line in PINS}


def test_the_check_sees_an_import_that_is_not_allowed(tmp_path):
    bad = tmp_path / "bad.py"
    bad.write_text("def f():\n    from fastbadge.lab import store\n    import torchvision.models\n")
    assert imports_of(bad) == {"fastbadge.lab", "fastbadge.lab.store", "torchvision.models"}


def test_import_loads_torch_and_numpy_and_nothing_heavier():
    program = (
        "import sys, torch, numpy, torch.utils.data\n"
        "before = set(sys.modules)\n"
        "import fastbadge\n"
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before})"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    loaded = set(result.stdout.split()) - sys.stdlib_module_names
    assert "fastbadge" in loaded
    assert loaded <= {"fastbadge", "numpy", "torch"}


def test_public_names_exist():
    import fastbadge

    assert all(hasattr(fastbadge, name) for name in fastbadge.__all__)
    assert callable(fastbadge.select)  # the function, not the module of that name

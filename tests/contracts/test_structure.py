"""The folders of the package in one direction, stages apart, types of timm in one place, experiments on public names."""

import ast
import re
import shutil
from collections.abc import Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import lowrank_vit
from tests.support.sources import ROOT


def names_of(root: Path) -> dict[str, Path]:
    """Every module of a package, by its dotted name."""
    names = {}
    for path in sorted(root.rglob("*.py")):
        parts = (root.name, *path.relative_to(root).with_suffix("").parts)
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def imported(path: Path, package: str) -> frozenset[str]:
    """What a file imports: at its top, within functions, and for the type checker."""
    return _imported(path.read_text(encoding="utf-8"), package)


@cache
def _imported(text: str, package: str) -> frozenset[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            start = parts[: len(parts) - node.level + 1] if node.level else []
            base = ".".join([*start, *filter(None, [node.module])])
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return frozenset(names)


def graph_of(root: Path) -> dict[str, set[str]]:
    """By module: the modules of the package that it imports."""
    paths, graph = names_of(root), {}
    for name, path in paths.items():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        graph[name] = (imported(path, package) & paths.keys()) - {name}
    return graph


def cycle_in(graph: Mapping[str, set[str]]) -> list[str]:
    """The modules of one cycle, the first one again at the end; empty where there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def folder_of(name: str) -> str:
    """The folder, or the module beside the folders; empty for the package itself."""
    return name.split(".")[1] if "." in name else ""


def reachable(graph: Mapping[str, set[str]], start: str) -> set[str]:
    """All modules that are imported, directly or by what is imported."""
    seen, left = set[str](), [start]
    while left:
        for target in graph[left.pop()] - seen:
            seen.add(target)
            left.append(target)
    return seen


def climbing(root: Path, layers: list[str], apart: str) -> list[str]:
    """What reaches a folder above its own, directly or by others, a line each; ``apart``: its folders know none another."""
    graph = graph_of(root)
    place = {folder: index for index, folder in enumerate(layers)}
    lines = []
    for name in sorted(graph):
        folder = folder_of(name)
        if folder and folder not in place:
            lines.append(f"{name} is in no layer")
            continue
        for target in sorted(reachable(graph, name)):
            above_it = folder_of(target)
            if folder and above_it in place and place[above_it] > place[folder]:
                lines.append(f"{name} reaches {target}")
            inner = [part.split(".")[2] if part.count(".") >= 2 else "" for part in (name, target)]
            if folder == above_it == apart and all(inner) and inner[0] != inner[1]:
                lines.append(f"{name} reaches {target}, of another folder of {apart}")
    return lines


PACKAGE = ROOT / "lowrank_vit"
LAYERS = [  # lowest first: a folder imports none above it, not even by way of others
    "runtime",
    "records",
    "linalg",
    "modules",
    "architectures",
    "objectives",
    "data",
    "models",
    "stages",
    "units",
    "storage",
    "compression",
    "methods",
    "customize",
    "cli",
    "__main__",
]
EXPERIMENTS = ["tables", "tracking", "jobs", "measures", "runner", "report", "__main__"]
APART = "stages"  # its folders know none another
PUBLIC = {"runtime", "records", "linalg", "modules", "objectives", "data", "models", "customize"}  # and what it exports
TIMM_TYPES = re.compile(r"from timm\.(layers|models)\S* import .*[A-Z]")
KNOW_TIMM = {"architectures", "models"}


def foreign_imports(root: Path, package: str) -> list[str]:
    """What experiments import of ``package`` that is not public, a line each."""
    lines = []
    for path in sorted(root.rglob("*.py")):
        for name in sorted(imported(path, root.name)):
            parts = name.split(".")
            if parts[0] != package or len(parts) == 1:
                continue
            exported = len(parts) == 2 and parts[1] in lowrank_vit.__all__
            if any(part.startswith("_") for part in parts) or not (exported or parts[1] in PUBLIC):
                lines.append(f"{path.name} imports {name}")
    return lines


def test_folders_import_in_one_direction() -> None:
    assert climbing(PACKAGE, LAYERS, APART) == []
    assert climbing(ROOT / "experiments", EXPERIMENTS, "") == []


def own_graph(root: Path) -> dict[str, set[str]]:
    """The graph without the package's own ``__init__``, which names what is public."""
    return {name: targets - {root.name} for name, targets in graph_of(root).items() if name != root.name}


def test_there_is_no_circle() -> None:
    assert cycle_in(own_graph(PACKAGE)) == []
    assert cycle_in(own_graph(ROOT / "experiments")) == []


def test_a_circle_for_the_type_checker_is_reported(tmp_path: Path) -> None:
    root = tmp_path / "shop"
    (root / "low").mkdir(parents=True)
    (root / "low" / "a.py").write_text("from shop.low.b import B\n")
    later = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from shop.low.a import A\n"
    (root / "low" / "b.py").write_text(later)
    assert set(cycle_in(own_graph(root))) == {"shop.low.a", "shop.low.b"}


def test_every_module_is_in_a_layer_and_every_layer_has_modules() -> None:
    names = names_of(PACKAGE)
    assert len(names) > 150
    assert {folder_of(name) for name in names} == {*LAYERS, ""}
    assert len([path for path in PACKAGE.iterdir() if path.name != "__pycache__"]) <= 20


PLANTED = {  # file: what is added to it, and what is reported
    "records/new.py": (
        "import lowrank_vit.compression.compress\n",
        "lowrank_vit.records.new reaches lowrank_vit.compression.compress",
    ),
    "stages/quantize/new.py": (
        "def f():\n    from lowrank_vit.compression import report\n",
        "lowrank_vit.stages.quantize.new reaches lowrank_vit.compression.report",
    ),
    "stages/allocate/new.py": (
        "from lowrank_vit.stages.decompose import DECOMPOSITIONS\n",
        "lowrank_vit.stages.allocate.new reaches lowrank_vit.stages.decompose, of another folder of stages",
    ),
    "compression/new.py": (
        "def f():\n    from lowrank_vit.methods.svd import PlainSVD\n",
        "lowrank_vit.compression.new reaches lowrank_vit.methods.svd",
    ),
    "stray/new.py": ("", "lowrank_vit.stray.new is in no layer"),
}


def test_a_planted_violation_is_reported(tmp_path: Path) -> None:
    root = tmp_path / "lowrank_vit"
    shutil.copytree(PACKAGE, root, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"))
    for file, (text, expected) in PLANTED.items():
        (root / file).parent.mkdir(exist_ok=True)
        (root / file).write_text(text)
        assert expected in climbing(root, LAYERS, APART)
        (root / file).unlink()


def test_experiments_use_public_names_only() -> None:
    assert foreign_imports(ROOT / "experiments", "lowrank_vit") == []


@pytest.mark.slow
def test_every_public_name_is_there() -> None:
    for name in lowrank_vit.__all__:
        assert getattr(lowrank_vit, name) is not None
    assert dir(lowrank_vit) == sorted(lowrank_vit.__all__)  # what a notebook completes


def test_types_of_timm_are_known_to_families_only() -> None:
    found = {
        folder_of(name)
        for name, path in names_of(PACKAGE).items()
        if TIMM_TYPES.search(path.read_text(encoding="utf-8"))
    }
    assert "architectures" in found
    assert found <= KNOW_TIMM


def test_the_package_does_not_know_of_experiments() -> None:
    for name, path in names_of(PACKAGE).items():
        roots = {target.split(".")[0] for target in imported(path, name.rpartition(".")[0])}
        assert not roots & {"experiments", "tests", "wandb"}, name


def test_the_lock_names_the_public_index_only() -> None:
    lock = (ROOT / "uv.lock").read_text()
    hosts = {line.split("://")[1].split("/")[0] for line in lock.replace('"', "\n").splitlines() if "://" in line}
    assert hosts == {"pypi.org", "files.pythonhosted.org"}

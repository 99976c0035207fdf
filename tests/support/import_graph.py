"""The real import graph of a package, and what in it climbs against the order of its folders."""

import ast
from collections.abc import Mapping
from functools import cache
from pathlib import Path


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


def graph_of(root: Path, *, parents: bool = True) -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    """By module: the modules of the package that it imports, and all else.

    With ``parents`` the packages around a module count, too, which Python imports first.
    """
    paths = names_of(root)
    inside, outside = {}, {}
    for name, path in paths.items():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        names = imported(path, package)
        around = {parent for target in (name, *names) for parent in above(target)} if parents else set()
        inside[name] = ((names | around) & paths.keys()) - {name}
        outside[name] = {target.split(".")[0] for target in names} - {root.name}
    return inside, outside


def above(name: str) -> list[str]:
    """The packages that a module, or a name in it, is in."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


def cycle_in(graph: Mapping[str, set[str]]) -> list[str]:
    """The modules of one cycle, the first one again at the end; empty where there is none."""
    done: set[str] = set()

    def visit(name: str, way: list[str]) -> list[str]:
        if name in way:
            return [*way[way.index(name) :], name]
        if name in done:
            return []
        for target in sorted(graph[name]):
            cycle = visit(target, [*way, name])
            if cycle:
                return cycle
        done.add(name)
        return []

    return next((cycle for name in sorted(graph) if (cycle := visit(name, []))), [])


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
    graph, _ = graph_of(root, parents=False)
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

"""Read the project's source without running it: what each file imports, registers and names, and a digest of its code."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PACKAGES = ("lowrank_vit", "experiments")
REGISTERS = ("register", "source")  # what puts a thing into a registry under the name that is its first argument
WORDS = ("ctx", "kind", "type_comment")  # fields of the syntax tree that say nothing more


@dataclass(frozen=True)
class File:
    """Hold what one file says. ``imports`` are files; ``strings`` are all texts in its code except docstrings."""

    digest: str
    imports: frozenset[str]
    registered: frozenset[str]
    recipes: frozenset[str]  # that it gets by a name that is written there
    strings: frozenset[str]


class Source:
    """Hold the files of the packages below ``root`` by their paths from there, each read when it is first asked for."""

    def __init__(self, root: Path = ROOT) -> None:
        found = [path for package in PACKAGES for path in sorted((root / package).rglob("*.py"))]
        self._paths = {path.relative_to(root).as_posix(): path for path in found}
        self._files: dict[str, File] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._paths

    def __getitem__(self, name: str) -> File:
        if name not in self._files:
            self._files[name] = self._read(name)
        return self._files[name]

    def members(self, folder: str, chosen: Callable[[str], bool] = lambda name: True) -> set[str]:
        """List the files of a folder and those below that register something under a ``chosen`` name."""
        return {
            name for name in self._paths if name.startswith(f"{folder}/") and any(map(chosen, self[name].registered))
        }

    def behind(self, roots: Iterable[str], follows: Callable[[str, str], bool]) -> set[str]:
        """List all files that ``roots`` import, directly or not; ``follows(importer, imported)`` may end a path."""
        seen, left = set(roots), list(roots)
        while left:
            importer = left.pop()
            new = {name for name in self[importer].imports - seen if follows(importer, name)}
            seen |= new
            left += new
        return seen

    def home(self, module: str) -> str | None:
        """Return the file of a module; None for one of another project."""
        path = module.replace(".", "/")
        return next((name for name in (f"{path}.py", f"{path}/__init__.py") if name in self._paths), None)

    def _read(self, name: str) -> File:
        tree = ast.parse(self._paths[name].read_text(encoding="utf-8"))
        nodes = list(_nodes(tree))
        strings = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
        return File(
            digest=hashlib.sha256(repr(_plain(tree)).encode()).hexdigest(),
            imports=frozenset(self._imports(name, nodes)) - {name},
            registered=frozenset(_first_arguments(nodes, REGISTERS)),
            recipes=frozenset(_first_arguments(nodes, ("get_recipe",))),
            strings=frozenset(strings),
        )

    def _imports(self, name: str, nodes: Iterable[ast.AST]) -> Iterator[str]:
        """List the files that are imported, at the top or within functions, but for what only the type checker reads."""
        around = name.split("/")[:-1]
        for node in nodes:
            modules: list[str] = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                start = around[: len(around) - node.level + 1] if node.level else []
                base = ".".join([*start, *filter(None, [node.module])])
                modules = [self._exporter(base, alias.name) for alias in node.names]
            yield from filter(None, map(self.home, modules))

    def _exporter(self, module: str, name: str) -> str:
        """Return the module that ``from module import name`` leads to, also where the package exports it on first use."""
        if self.home(f"{module}.{name}"):
            return f"{module}.{name}"
        home = self.home(module)
        return module if home is None else self._exports(home).get(name, module)

    def _exports(self, name: str) -> dict[str, str]:
        """Return the homes of the names that a package imports for the type checker, and on first use."""
        return _exports(self._paths[name]) if name.endswith("__init__.py") else {}


@cache
def _exports(path: Path) -> dict[str, str]:
    blocks = [node for node in ast.parse(path.read_text(encoding="utf-8")).body if _is_for_checker(node)]
    imports = [node for block in blocks for node in ast.walk(block) if isinstance(node, ast.ImportFrom)]
    return {alias.name: node.module or "" for node in imports for alias in node.names}


def _is_for_checker(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def _is_text(node: object) -> bool:
    """Tell whether a statement is a text alone, as docstrings are."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Walk through the code that runs: without docstrings, and without what only the type checker reads."""
    yield node
    for child in ast.iter_child_nodes(node):
        if not _is_text(child):
            for part in child.orelse if isinstance(child, ast.If) and _is_for_checker(child) else [child]:
                yield from _nodes(part)


def _first_arguments(nodes: Iterable[ast.AST], functions: tuple[str, ...]) -> Iterator[str]:
    """List the texts that functions or methods of these names are given first."""
    for node in nodes:
        if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            function = getattr(node.func, "attr", getattr(node.func, "id", None))
            if function in functions and isinstance(node.args[0].value, str):
                yield node.args[0].value


def _plain(node: object) -> object:
    """Make plain values of a syntax tree, the same in all versions of Python: no comments, docstrings, empty fields."""
    if isinstance(node, ast.AST):
        fields = [(name, _plain(value)) for name, value in ast.iter_fields(node) if name not in WORDS]
        return type(node).__name__, *(field for field in fields if field[1] not in (None, []))
    if isinstance(node, list):
        return [_plain(item) for item in node if not _is_text(item)]
    return None if node is None else repr(node)

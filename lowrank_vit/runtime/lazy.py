"""Public names of a package, imported on first use: help must not wait for torch, nor a list of models for Lightning."""

import ast
import importlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any


def lazily(package: str, file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return a package's ``__getattr__`` and ``__dir__``, for the names that its file imports ``if TYPE_CHECKING``."""

    @cache
    def homes() -> dict[str, str]:
        blocks = [node for node in ast.parse(Path(file).read_text("utf-8")).body if isinstance(node, ast.If)]
        imports = [each for block in blocks for each in block.body if isinstance(each, ast.ImportFrom)]
        return {alias.name: str(each.module) for each in imports for alias in each.names}

    def find(name: str) -> Any:
        if name == "__all__":
            return list(homes())
        if name not in homes():
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(homes()[name]), name)

    return find, lambda: sorted(homes())

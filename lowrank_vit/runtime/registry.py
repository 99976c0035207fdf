"""Named things: registered by a decorator, found by a scan of their folder, looked up with a hint for a misspelling."""

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Generic, TypeVar

from lowrank_vit.runtime.errors import InputError

T = TypeVar("T")


def unknown(kind: str, name: str, choices: Iterable[str]) -> InputError:
    """Return the error for a ``name`` that is not in ``choices``: it suggests the nearest one and lists them all."""
    known = sorted(choices)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return InputError(f"unknown {kind} {name!r}: {hint}choose from {', '.join(known)}")


def revision_of(thing: Any) -> int:
    """Return the revision of a method, or of another thing that is registered: 1, unless its class has raised it."""
    return int(getattr(thing, "revision", 1))


class Registry(Generic[T]):
    """Map names to things of one kind, filled by ``@registry.register(name)`` or ``registry.add``.

    ``packages`` are the folders whose modules register the things; they are imported on the first look-up, so that adding
    a thing is adding one file.
    """

    def __init__(self, kind: str, *packages: str) -> None:
        self.kind = kind
        self.packages = packages
        self._entries: dict[str, T] = {}
        self._scanned = False

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that registers what it decorates as ``name``. Raises ``ValueError`` for a name in use."""
        return partial(self.add, name)

    def add(self, name: str, thing: T) -> T:
        """Register a thing as ``name``, and return it. Raises ``ValueError`` for a name in use."""
        if name in self._entries:
            raise ValueError(f"{self.kind} {name!r} is registered twice")
        self._entries[name] = thing
        return thing

    def names(self) -> list[str]:
        """Return the registered names, sorted."""
        self._scan()
        return sorted(self._entries)

    def get(self, name: str) -> T:
        """Return what is registered as ``name``. Raises ``InputError`` with the nearest name otherwise."""
        self._scan()
        if name not in self._entries:
            raise unknown(self.kind, name, self._entries)
        return self._entries[name]

    def name_of(self, thing: object) -> str | None:
        """Return the name under which the class of ``thing`` is registered; None if it is not."""
        self._scan()
        return next((name for name, entry in self._entries.items() if type(thing) is entry), None)

    def _scan(self) -> None:
        for package in () if self._scanned else self.packages:
            for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
                importlib.import_module(f"{package}.{module.name}")
        self._scanned = True

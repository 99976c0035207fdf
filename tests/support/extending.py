"""Things that a test registers for a while, as a new file would for good."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lowrank_vit.runtime.registry import Registry


@contextmanager
def registered(registry: Registry[Any], name: str, thing: Any) -> Iterator[None]:
    """Register a thing, and forget it at the end of the block."""
    registry.names()
    registry.register(name)(thing)
    try:
        yield
    finally:
        del registry._entries[name]

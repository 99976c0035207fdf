"""How methods are shown: in plots, on pages and in tables; and the numbers that their papers print."""

from dataclasses import dataclass
from typing import Any

from lowrank_vit.runtime.registry import Registry

METHODS = "lowrank_vit.methods"


@dataclass(frozen=True)
class Look:
    """Hold matplotlib's letter of a marker, the lengths of a line's dashes and gaps (none: solid), and a colour's name.

    ``title`` and ``note`` stand in tables; ``labels`` are other names by which rows call it, in small letters.
    """

    marker: str
    dashes: tuple[int, ...]
    colour: str
    title: str = ""
    note: str = ""
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Printed:
    """Hold a printed number: of a model, by its short name, and a method; its source, protocol, epochs and teacher."""

    model: str
    method: str
    params: str
    top1: float
    source: str
    protocol: str
    epochs: str
    teacher: str = "none"
    note: str = ""


LOOKS: Registry[Look] = Registry("look", METHODS)  # by the name of a recipe or token rule, or of a way to use one
PRINTED: Registry[tuple[Printed, ...]] = Registry("paper with printed numbers", METHODS)  # by the name of its file


def look(name: str, *fields: Any, **more: Any) -> None:
    """Register the ``Look`` of a recipe, of a token rule, or of a way to use one."""
    LOOKS.add(name, Look(*fields, **more))

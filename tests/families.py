"""The table of families in ``docs/families.md``, made from the registry and the models that the contract tests run.

``python -m tests.families`` writes the page; a test holds it to what the code does.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

import lowrank_vit.models  # noqa: F401  (it registers VMamba with timm)
from lowrank_vit import InputError, get_recipe
from lowrank_vit.architectures.base import FAMILIES, UnknownWholeError, family_of, survey
from lowrank_vit.architectures.canonical import canonical
from lowrank_vit.architectures.linears import left_dense
from lowrank_vit.compression.find import FoundUnits, find_units
from lowrank_vit.units.scan import ScanUnit
from tests.support.hugging_face import HUGGING_FACE
from tests.support.kinds import KINDS, Kind
from tests.support.torch_kinds import HELD, TORCH

PAGE = Path(__file__).parent.parent / "docs" / "families.md"
WORDS = {"query_key": "logits", "value": "values", "hidden": "hidden units", "scan": "whole scans", "layer": "layers"}
HEAD = """# Families of models

What `best` makes smaller in each kind of model that the contract tests run, each at the smallest size in its library:
{families} families, {kinds} kinds. Most other models of timm are taken by their usual MLPs; the report says what falls back,
and why. `python -m tests.families` writes this page, and a test compares it with the code.

*Logits* are directions in which a head compares queries with keys, *values* those that it passes on, *hidden units* those of
an MLP. *Layers* are single linear layers at low rank, where a module cannot be taken as a whole. *Refit*: losses are measured
and outputs refitted, which needs a known path from block to block.

| family | kinds | shrinks | refit | stays dense, or goes layer by layer |
| --- | --- | --- | --- | --- |
"""
VMAMBAS = {
    "VMamba v2": Kind("vmamba_tiny_s1l8", {"depths": (2, 1), "dims": 12}),
    "VMamba v0": Kind("vanilla_vmamba_tiny", {"depths": (2, 1), "dims": 12}),
}


@dataclass(frozen=True)
class Row:
    """A kind of model, and a model of that kind."""

    kind: str
    model: str
    shrinks: str
    refit: bool
    dense: str


def described(named: str, kind: Any) -> tuple[str, Row]:
    """Describe a kind of model, behind the name of its family; none where ``best`` refuses it."""
    name = getattr(kind, "whole", None) or kind.name
    model = canonical(kind.make())
    try:
        found = find_units(model, get_recipe("best").only("attention", "mlp", "scan", "decomposition"))
    except InputError as error:
        return "", Row(named, name, "refused", False, str(error).partition(" stands in")[0].partition(": ")[0])
    units = {part for unit in found.units for part in _units(unit)}
    shrinks = [word for unit, word in WORDS.items() if unit in units]
    refit = not (found.fallback and found.fallback["left_out"])
    return _family(model), Row(named, name, ", ".join(shrinks), refit, "; ".join(_dense(model, found)))


def _family(model: nn.Module) -> str:
    try:
        found = type(family_of(model))
    except UnknownWholeError:
        return ""
    return next(name for name in FAMILIES.names() if FAMILIES.get(name) is found)


def _units(unit: Any) -> list[str]:
    if isinstance(unit, ScanUnit):
        return ["scan"]
    return list(unit.site.costs()) if hasattr(unit.site, "layers") else ["layer"]


def _dense(model: nn.Module, found: FoundUnits) -> list[str]:
    """Say what stays dense as a whole or altogether, and why."""
    logits = {getattr(getattr(unit, "site", None), "dense_logits", "") for unit in found.units} - {""}
    told = [f"queries and keys, {reason}" for reason in sorted(logits)]
    refusals = [error.reason for name, error in survey(model)[1].items() if name]
    whole = ", ".join(dict.fromkeys(map(_short, refusals)))
    told += [f"layer by layer: {whole}"] * bool(whole)
    left = left_dense(model, [unit.name for unit in found.units])
    kinds = dict.fromkeys(name.rpartition(".")[2] for name in left if not name.rpartition(".")[2].isdigit())
    return told + ([f"beside the blocks: {', '.join(f'`{name}`' for name in list(kinds)[:3])}"] if kinds else [])


def _short(reason: str) -> str:
    """Leave out which of its blocks a module is in, and name a class that is not known as a whole without its package."""
    _, quote, rest = reason.partition("' ")
    return re.sub(r"belongs to [\w.]*?(\w+), which .*", r"`\1`", rest if quote else reason)


def _named(rows: Sequence[Row]) -> str:
    """List kinds of model, each with a model unless it is the one before it."""
    before = ["", *(row.model for row in rows)]
    return "; ".join(
        f"`{row.model}`"
        if row.model.startswith(row.kind)
        else row.kind
        if row.model == last
        else f"{row.kind} `{row.model}`"
        for row, last in zip(rows, before, strict=False)
    )


def page() -> str:
    """Render the whole page."""
    found: dict[str, dict[tuple[str, bool, str], list[Row]]] = {}
    kinds = [*KINDS.items(), *HUGGING_FACE.items(), *TORCH.items(), *HELD.items(), *VMAMBAS.items()]
    for named, kind in kinds:
        family, row = described(named, kind)
        found.setdefault(family, {}).setdefault((row.shrinks, row.refit, row.dense), []).append(row)
    lines = HEAD.format(families=len(FAMILIES.names()), kinds=len(kinds))
    for name in [*FAMILIES.names(), ""]:
        about = FAMILIES.get(name)().about if name else "no known attention or MLP"
        for (shrinks, refit, dense), rows in found.get(name, {}).items():
            lines += f"| {about} | {_named(rows)} | {shrinks} | {'yes' if refit else 'no'} | {dense} |\n"
            about = ""
    return lines


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")

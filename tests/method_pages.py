"""The tables of methods, recipes, statistics and formats in ``docs``, made from the registries and the dataclasses.

``python -m tests.method_pages`` writes them between the marks ``<!-- generated NAME... -->`` and ``<!-- end -->`` of pages; a
test holds the pages to what the code has.
"""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

from lowrank_vit import RECIPES, Recipe
from lowrank_vit.compression.recipe import PLAIN
from lowrank_vit.objectives import OBJECTIVES
from lowrank_vit.stages.allocate import ALLOCATORS
from lowrank_vit.stages.calibrate.statistics import STATISTICS
from lowrank_vit.stages.compensate import COMPENSATIONS
from lowrank_vit.stages.correct.measured_losses import MeasuredCurves, MeasuredLosses
from lowrank_vit.stages.correct.output_refit import OutputRefit
from lowrank_vit.stages.export.formats import EXPORTERS
from lowrank_vit.stages.gates import GRADUAL
from lowrank_vit.stages.quantize import QUANTIZERS
from lowrank_vit.stages.search import SEARCHES
from lowrank_vit.stages.tokens import TOKENS
from lowrank_vit.units.base import UNITS

FOLDER = Path(__file__).parent.parent / "docs"
PLACE = re.compile(r"(?P<mark><!-- generated (?P<names>[\w ]+) -->)\n.*?<!-- end -->", re.DOTALL)
NORM, BAR = "\N{DOUBLE VERTICAL LINE}", "\N{DIVIDES}"  # Markdown's own bar ends a cell
Methods = Mapping[str, type]


def registered(registry: Any) -> Mapping[str, Any]:
    """Look up the methods of a registry by their names."""
    return {name: registry.get(name) for name in registry.names()}


def slots() -> dict[str, Methods]:
    """Look up the methods of every slot; a slot with one method has that class's name."""
    registries = {kind: UNITS.get(kind).methods for kind in UNITS.names()}
    registries |= {"allocator": ALLOCATORS, "compensation": COMPENSATIONS, "objective": OBJECTIVES}
    registries |= {"quantizer": QUANTIZERS, "tokens": TOKENS, "search": SEARCHES, "gradual": GRADUAL}
    alone = {"sense": MeasuredCurves, "measured": MeasuredLosses, "refit": OutputRefit}
    return {name: registered(registry) for name, registry in registries.items()} | {
        name: {kind.__name__: kind} for name, kind in alone.items()
    }


def row(*cells: str) -> str:
    """Join the cells of a line. Bars become others, which end no cell."""
    return f"| {' | '.join(cell.replace('||', NORM).replace('|', BAR) for cell in cells)} |"


def about(thing: object) -> str:
    """Return a docstring's first line, in Markdown's quotes for code."""
    return (inspect.getdoc(thing) or "").partition("\n")[0].replace("``", "`")


def settings(method: type) -> str:
    """List the hyperparameters of a method with their defaults."""
    known = fields(method) if is_dataclass(method) else ()
    return ", ".join(f"`{field.name}={default(field)}`" for field in known)


def default(field: Any) -> str:
    """Write the default of a field."""
    made = (
        field.default_factory() if field.default is MISSING and field.default_factory is not MISSING else field.default
    )
    return "" if made is MISSING else repr(made)


def of_slots(*names: str) -> Iterator[str]:
    """Write the methods of some slots."""
    yield row("slot", "method", "what it does", "hyperparameters")
    yield row(*["---"] * 4)
    for slot in names:
        for name, method in slots()[slot].items():
            yield row(f"`{slot}`", f"`{name}`", about(method), settings(method))


def recipes() -> Iterator[str]:
    """Write what stands in each slot of each recipe."""
    yield row("recipe", "what it is", "units", "ranks", "Z", "corrections")
    yield row(*["---"] * 6)
    for name, recipe in RECIPES.items():
        record = recipe.record()
        units = ", ".join(f"{kind}: `{record[kind]}`" for kind in recipe.units)
        corrections = [slot for slot in ("sense", "measured", "refit") if record[slot]]
        z = f"`{record['compensation']}`, {record['solver']}" if record["compensation"] else ""
        yield row(f"`{name}`", recipe.about, units, f"`{record['allocator']}`", z, ", ".join(corrections))


def statistics() -> Iterator[str]:
    """Write what calibration can collect."""
    yield row("statistic", "what it is", "gradient")
    yield row(*["---"] * 3)
    for name, statistic in registered(STATISTICS).items():
        described = about(statistic.add).partition(", ")[2] or about(statistic.add)
        yield row(f"`{name}`", described, "yes" if statistic.gradient else "")


def formats() -> Iterator[str]:
    """Write what a model can be exported to."""
    yield row("`--format`", "file", "what it does", "needs")
    yield row(*["---"] * 4)
    for name, exporter in registered(EXPORTERS).items():
        packages = ", ".join(f"`{package}`" for package in exporter.packages)
        yield row(f"`{name}`", f"`{exporter.suffix}`", about(exporter), packages or "PyTorch alone")


def plain_fields() -> Iterator[str]:
    """Write the fields of a recipe that are no methods."""
    yield row("field", "default")
    yield row(*["---"] * 2)
    for field in fields(Recipe):
        if field.name in PLAIN and field.name != "about":
            yield row(f"`{field.name}`", f"`{default(field)}`")


TABLES: dict[str, Callable[[], Iterator[str]]] = {
    "recipes": recipes,
    "statistics": statistics,
    "fields": plain_fields,
    "formats": formats,
    "slots": lambda: of_slots(*slots()),
}


def render(text: str) -> str:
    """Write every generated table of a page anew."""

    def written(place: re.Match[str]) -> str:
        names = place["names"].split()
        lines = TABLES[names[0]]() if names[0] in TABLES else of_slots(*names)
        return "\n".join([place["mark"], "", *lines, "", "<!-- end -->"])

    return PLACE.sub(written, text)


def pages() -> list[Path]:
    """List the pages with generated tables."""
    return [path for path in sorted(FOLDER.rglob("*.md")) if PLACE.search(path.read_text(encoding="utf-8"))]


if __name__ == "__main__":
    for page in pages():
        page.write_text(render(page.read_text(encoding="utf-8")), encoding="utf-8")

"""The heads of the methods' pages and the tables of recipes and formats in ``docs``, made from the registries.

``python -m tests.method_pages`` writes them between the marks ``<!-- generated NAME... -->`` and ``<!-- end -->`` of pages; a
test holds the pages to what the code has.
"""

import inspect
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

from lowrank_vit import Recipe, get_recipe
from lowrank_vit.compression.recipe import PLAIN
from lowrank_vit.compression.recipes import FULL_FORMS, ORDER
from lowrank_vit.objectives import OBJECTIVES
from lowrank_vit.stages.allocate import ALLOCATORS
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
METHODS = FOLDER.parent / "lowrank_vit" / "methods"
PLACE = re.compile(r"(?P<mark><!-- generated (?P<names>[\w ]+) -->)\n.*?<!-- end -->", re.DOTALL)
NORM, BAR = "\N{DOUBLE VERTICAL LINE}", "\N{DIVIDES}"  # Markdown's own bar ends a cell
Methods = Mapping[str, type]
MORE = {
    "sense": "measured curves",
    "measured": "measured losses",
    "refit": "outputs refitted",
    "search": "sizes searched",
    "gradual": "gates learnt",
}


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


def placed() -> Iterator[tuple[str, str, type]]:
    """Yield every method once, as the slots that take it, its name there and its class."""
    found: dict[tuple[str, type], list[str]] = {}
    for slot, methods in slots().items():
        for name, method in methods.items():
            found.setdefault((name, method), []).append(slot)
    for (name, method), taken in found.items():
        yield ", ".join(f"`{slot}`" for slot in taken), name, method


def of_methods(chosen: Callable[[str, str, type], bool]) -> Iterator[str]:
    """Write the methods that are chosen, given their slots, name and class."""
    rows = [
        row(taken, f"`{name}`", about(method), settings(method))
        for taken, name, method in placed()
        if chosen(taken, name, method)
    ]
    if rows:
        yield from (row("slot", "method", "what it does", "hyperparameters"), row(*["---"] * 4), *rows)


def of_slots(*names: str) -> Iterator[str]:
    """Write the methods of some slots."""
    yield from of_methods(lambda taken, name, method: any(f"`{slot}`" in taken for slot in names))


def named(*names: str) -> Iterator[str]:
    """Write the methods of these names."""
    yield from of_methods(lambda taken, name, method: name in names)


def recipes_of(file: str) -> list[str]:
    """Name the recipes that a file of ``lowrank_vit/methods`` adds, in its order."""
    return re.findall(r'add_recipe\(\s*"([\w-]+)"', (METHODS / f"{file}.py").read_text(encoding="utf-8"))


def head(file: str) -> Iterator[str]:
    """Write the head of a method's page: what its file in ``lowrank_vit/methods`` registers."""
    names = recipes_of(file)
    if names:
        yield from (row("recipe", "units", "ranks", "more"), row(*["---"] * 4), *map(recipe_row, names), "")
    yield from of_methods(lambda taken, name, method: method.__module__ == f"lowrank_vit.methods.{file}")
    verbs = [f"`learn --method {name}`" if name in FULL_FORMS else f"`compress --recipe {name}`" for name in names]
    run = f" Run: {', '.join(verbs)}." if verbs else ""
    yield from ("", f"Code: `lowrank_vit/methods/{file}.py`.{run}")


def recipe_row(name: str) -> str:
    """Write what stands in each slot of a recipe."""
    recipe = get_recipe(name)
    record = recipe.record()
    more = [said for slot, said in MORE.items() if record.get(slot)]
    more += [f"Z: `{record['compensation']}`"] * bool(record["compensation"])
    more += ["trained on labels"] * recipe.labelled
    units = ", ".join(f"{kind}: `{record[kind]}`" for kind in recipe.units)
    return row(f"`{name}`", units, f"`{record['allocator']}`", ", ".join(more))


def recipes() -> Iterator[str]:
    """Write the pages of methods, each with the recipes that it explains."""
    rows = []
    for page in pages():
        text = page.read_text(encoding="utf-8")
        names = [name for file in re.findall(r"<!-- generated head (\w+) -->", text) for name in recipes_of(file)]
        if names:
            place = Path(os.path.relpath(page, FOLDER / "methods")).as_posix()
            title = text.partition("\n")[0].removeprefix("# ")
            rows.append(
                (min(map(ORDER.index, names)), row(f"[{title}]({place})", ", ".join(f"`{name}`" for name in names)))
            )
    yield row("method", "recipes")
    yield row(*["---"] * 2)
    yield from (line for _, line in sorted(rows))


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


TABLES: dict[str, Callable[..., Iterator[str]]] = {
    "recipes": recipes,
    "fields": plain_fields,
    "formats": formats,
    "head": head,
    "slots": of_slots,
    "methods": named,
}


def render(text: str) -> str:
    """Write every generated table of a page anew."""

    def written(place: re.Match[str]) -> str:
        first, *rest = place["names"].split()
        lines = TABLES[first](*rest)
        return "\n".join([place["mark"], "", *lines, "", "<!-- end -->"])

    return PLACE.sub(written, text)


def pages() -> list[Path]:
    """List the pages with generated tables."""
    return [path for path in sorted(FOLDER.rglob("*.md")) if PLACE.search(path.read_text(encoding="utf-8"))]


if __name__ == "__main__":
    for page in pages():
        page.write_text(render(page.read_text(encoding="utf-8")), encoding="utf-8")

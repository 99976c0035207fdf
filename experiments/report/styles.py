"""Choose how a method looks: one mark, one line and one colour, the same in every plot, on the page and in W&B."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.tables.catalogue import tables
from lowrank_vit.records.looks import LOOKS, Look

Row = Mapping[str, Any]
COLOURS = {  # on white and on dark paper, after Okabe and Ito: far enough apart for colour-blind eyes
    "grey": ("#757575", "#a6a6a6"),
    "orange": ("#c04e00", "#ff8f45"),
    "black": ("#111111", "#f4f4f4"),
    "blue": ("#0068a8", "#5ab4ff"),
    "green": ("#007a58", "#2fd0a0"),
    "pink": ("#a8487f", "#f09ac8"),
    "olive": ("#856900", "#e6c229"),
    "violet": ("#5b4bc4", "#aa9cff"),
    "brown": ("#7a3b1e", "#d19a78"),
    "cyan": ("#00808a", "#3fd3e0"),
    "red": ("#c0182f", "#ff6f7d"),
}
MARKERS = "s^oDvPXp<>h"  # matplotlib's
KNOWN = {name: LOOKS.get(name) for name in LOOKS.names()}  # what methods say of themselves


STYLES = {  # by the name of a recipe or token rule, and of a row's method that is neither, in small letters
    **{name.replace("-", "_"): look for name, look in KNOWN.items()},
    "baseline": Look("*", (), "black"),
    "beyond (heads), full ft": Look("P", (12, 3, 3, 3), "pink"),
    "heads, distilled": Look("p", (6, 2), "violet"),
    "heads, distilled, mixed": Look("P", (3, 3), "cyan"),
    "best, distilled": Look("o", (9, 3), "orange"),
    "-50% (heads) by gptq": Look("v", (6, 2), "red"),
    "-25% (heads)": Look("o", (1, 2), "cyan"),
    "-25% (heads) by gptq": Look("o", (6, 2), "pink"),
    "baseline by gptq": Look("*", (6, 2), "grey"),
    "heads and interpolation": Look(">", (5, 2, 1, 2), "cyan"),
    "+ losses measured": Look("h", (2, 2), "red"),
    "+ factors pivoted": Look("P", (9, 3), "black"),
    "+ norms folded": Look("s", (2, 2), "cyan"),
    "+ patch embedding at a rank": Look("s", (6, 2), "pink"),
    "+ position embedding at a rank": Look("^", (3, 3), "green"),
    "ours, macs as budget (heads)": Look("v", (4, 2), "black"),
    "best+tome": Look("D", (), "black"),
    "ours, macs as budget (best)": Look("o", (4, 2), "olive"),
    "ours (heads), sizes by the search": Look("v", (9, 3), "orange"),
    "ours (heads), sizes by gates, full ft": Look("P", (4, 2), "olive"),
    "ranks alone (heads, float16)": Look("v", (1, 2), "pink"),
    "bits alone, the same for all blocks (gptq)": Look("*", (6, 3), "blue"),
    "bits alone, of each layer (gptq)": Look("p", (9, 3), "orange"),
    "ranks, then bits (heads, gptq)": Look("D", (5, 2), "brown"),
    "ranks and bits at once (heads, gptq)": Look("P", (), "green"),
    "z, closed form": Look("v", (1, 2), "cyan"),
    "z, by gradients": Look("P", (6, 2, 1, 2), "red"),
    "none, representative": Look("o", (), "grey"),
    "low-rank, representative": Look("s", (), "black"),
    "diagonal, representative": Look("^", (), "violet"),
    "sparse, structured, representative": Look("D", (), "orange"),
    "sparse, unstructured, representative": Look("v", (), "blue"),
    "none, whitened": Look("p", (3, 2), "grey"),
    "low-rank, whitened": Look("h", (3, 2), "black"),
    "diagonal, whitened": Look("P", (3, 2), "violet"),
    "sparse, structured, whitened": Look("<", (3, 2), "orange"),
    "sparse, unstructured, whitened": Look(">", (3, 2), "blue"),
}
ALIASES = {  # further names, by methods whose names do not end in their recipe's
    **{label: name.replace("-", "_") for name, look in KNOWN.items() for label in look.labels},
    "ours (heads), full ft": "beyond (heads), full ft",
    "ours, blocks alone, distilled": "heads, distilled",
    "+ distilled (heads)": "heads, distilled",
    "+ all, factors pivoted, distilled": "best, distilled",
}
SIZE = ", printed size"  # ends the name of a method at a second size
FILE = re.compile(r", [\d.]+ MiB$")  # ends the name of a way to a file of that size
RECIPE = re.compile(r"\(([\w+-]+)\)$")


def colour_of(look: Look) -> str:
    """Return the colour on white paper."""
    return COLOURS[look.colour][0]


def mpl(look: Look) -> dict[str, Any]:
    """Return marker, line and colour, as matplotlib calls them."""
    return {"marker": look.marker, "linestyle": (0, look.dashes) if look.dashes else "-", "color": colour_of(look)}


def untrained(method: str) -> str:
    """Name a method without its fine-tuning."""
    return method.removesuffix(" + FT")


def series_of(row: Row) -> str:
    """Name what a line joins: a method at all its sizes, or one model at all its numbers of bits."""
    return str(row["method"]).partition(",")[0] if row.get("bits") is not None else FILE.sub("", str(row["method"]))


def model_of(rows: Sequence[Row]) -> str:
    """Name what a panel is about: the model that is compressed, and the one whose size is aimed at, if any."""
    row = next((row for row in rows if row["reduction"]), rows[0])
    return f"{row['model']} at the size of {row['target']}" if row["target"] else str(row["model"])


def known_style(method: str) -> Look | None:
    """Look up the style of a method, by its own name or that of its recipe; None where it has none."""
    name = method.lower().removesuffix(SIZE)
    recipe = RECIPE.search(name)
    keys = (ALIASES.get(name), name, recipe and recipe[1].replace("-", "_"))
    return next((STYLES[key] for key in keys if key in STYLES), None)


def styles_of(methods: Sequence[str]) -> dict[str, Look]:
    """Choose the styles of the methods of one plot. One that is not known takes what no other method has."""
    chosen = {method: style for method in methods if (style := known_style(method)) is not None}
    taken = {(style.marker, style.colour) for style in STYLES.values()}
    spare = (Look(marker, (6, 3), colour) for colour in COLOURS for marker in MARKERS if (marker, colour) not in taken)
    return {method: chosen[method] if method in chosen else next(spare) for method in dict.fromkeys(methods)}


def group_colours() -> dict[tuple[str, str], str]:
    """Give the runs of each table's methods, by the names of both, the colours that they have in the plots."""
    colours: dict[tuple[str, str], str] = {}
    for table in tables().values():
        methods = [(name, row.bits) for row in table.runnable for name in (row.method, untrained(row.method))]
        series = {name: series_of({"method": name, "bits": bits}) for name, bits in methods}
        styles = styles_of(list(series.values()))
        colours |= {(table.name, method): colour_of(styles[name]) for method, name in series.items()}
    return colours

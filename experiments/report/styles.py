"""Choose how a method looks: one mark, one line and one colour, the same in every plot, on the page and in W&B."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from experiments.tables.catalogue import tables
from lowrank_vit.records.looks import LOOKS

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


@dataclass(frozen=True)
class Style:
    """Hold matplotlib's letter of a marker, the lengths of a line's dashes and gaps (none: solid), and a colour's name."""

    marker: str
    dashes: tuple[int, ...]
    name: str

    @property
    def colour(self) -> str:
        """Return the colour on white paper."""
        return COLOURS[self.name][0]

    @property
    def mpl(self) -> dict[str, Any]:
        """Return marker, line and colour, as matplotlib calls them."""
        line = (0, self.dashes) if self.dashes else "-"
        return {"marker": self.marker, "linestyle": line, "color": self.colour}


STYLES = {  # by the name of a recipe or token rule, and of a row's method that is neither, in small letters
    **{name.replace("-", "_"): Style(look.marker, look.dashes, look.colour) for name, look in KNOWN.items()},
    "baseline": Style("*", (), "black"),
    "beyond (heads), full ft": Style("P", (12, 3, 3, 3), "pink"),
    "heads, distilled": Style("p", (6, 2), "violet"),
    "heads, distilled, mixed": Style("P", (3, 3), "cyan"),
    "best, distilled": Style("o", (9, 3), "orange"),
    "-50% (heads) by gptq": Style("v", (6, 2), "red"),
    "-25% (heads)": Style("o", (1, 2), "cyan"),
    "-25% (heads) by gptq": Style("o", (6, 2), "pink"),
    "baseline by gptq": Style("*", (6, 2), "grey"),
    "heads and interpolation": Style(">", (5, 2, 1, 2), "cyan"),
    "+ losses measured": Style("h", (2, 2), "red"),
    "+ factors pivoted": Style("P", (9, 3), "black"),
    "+ norms folded": Style("s", (2, 2), "cyan"),
    "+ patch embedding at a rank": Style("s", (6, 2), "pink"),
    "+ position embedding at a rank": Style("^", (3, 3), "green"),
    "ours, macs as budget (heads)": Style("v", (4, 2), "black"),
    "best+tome": Style("D", (), "black"),
    "ours, macs as budget (best)": Style("o", (4, 2), "olive"),
    "ours (heads), sizes by the search": Style("v", (9, 3), "orange"),
    "ours (heads), sizes by gates, full ft": Style("P", (4, 2), "olive"),
    "ranks alone (heads, float16)": Style("v", (1, 2), "pink"),
    "bits alone, the same for all blocks (gptq)": Style("*", (6, 3), "blue"),
    "bits alone, of each layer (gptq)": Style("p", (9, 3), "orange"),
    "ranks, then bits (heads, gptq)": Style("D", (5, 2), "brown"),
    "ranks and bits at once (heads, gptq)": Style("P", (), "green"),
    "z, closed form": Style("v", (1, 2), "cyan"),
    "z, by gradients": Style("P", (6, 2, 1, 2), "red"),
    "none, representative": Style("o", (), "grey"),
    "low-rank, representative": Style("s", (), "black"),
    "diagonal, representative": Style("^", (), "violet"),
    "sparse, structured, representative": Style("D", (), "orange"),
    "sparse, unstructured, representative": Style("v", (), "blue"),
    "none, whitened": Style("p", (3, 2), "grey"),
    "low-rank, whitened": Style("h", (3, 2), "black"),
    "diagonal, whitened": Style("P", (3, 2), "violet"),
    "sparse, structured, whitened": Style("<", (3, 2), "orange"),
    "sparse, unstructured, whitened": Style(">", (3, 2), "blue"),
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


def known_style(method: str) -> Style | None:
    """Look up the style of a method, by its own name or that of its recipe; None where it has none."""
    name = method.lower().removesuffix(SIZE)
    recipe = RECIPE.search(name)
    keys = (ALIASES.get(name), name, recipe and recipe[1].replace("-", "_"))
    return next((STYLES[key] for key in keys if key in STYLES), None)


def styles_of(methods: Sequence[str]) -> dict[str, Style]:
    """Choose the styles of the methods of one plot. One that is not known takes what no other method has."""
    chosen = {method: style for method in methods if (style := known_style(method)) is not None}
    taken = {(style.marker, style.name) for style in STYLES.values()}
    spare = (Style(marker, (6, 3), colour) for colour in COLOURS for marker in MARKERS if (marker, colour) not in taken)
    return {method: chosen[method] if method in chosen else next(spare) for method in dict.fromkeys(methods)}


def group_colours() -> dict[tuple[str, str], str]:
    """Give the runs of each table's methods, by the names of both, the colours that they have in the plots."""
    colours: dict[tuple[str, str], str] = {}
    for table in tables().values():
        methods = [(name, row.bits) for row in table.runnable for name in (row.method, untrained(row.method))]
        series = {name: series_of({"method": name, "bits": bits}) for name, bits in methods}
        styles = styles_of(list(series.values()))
        colours |= {(table.name, method): styles[name].colour for method, name in series.items()}
    return colours

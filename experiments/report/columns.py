"""Define the columns that a table can have: how a row of ``table.json`` is written, and what it is sorted by."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import Any, Literal

from experiments.report.formats import file_size, human, number, of_share, printed_count
from experiments.report.seeds import SPREADS
from experiments.report.uncertainty import TOP1, Row, caveats
from lowrank_vit.runtime.registry import Registry

Notes = dict[str, int]  # numbers of the footnotes, by their texts
Write = Callable[[Row, Notes, int], str]
Value = Callable[[Row], Any]
COSTS = {"macs": " of MACs"}  # what a reduction can be of, beside parameters
STALE = "stale: made by an older revision; --rerun-stale runs it again"
BATCHES = (1, 8)  # images at a time, as ``jobs/steps.py`` measures
ERRORS = partial(number, digits=4)  # relative errors, and divergences


@dataclass(frozen=True)
class Column:
    """Describe one column. ``write(row, notes, digits)`` is its text, ``value(row)`` sorts it (None comes last).

    ``digits`` are those of measured percentages. ``short`` is the terminal's header; ``wrap`` the least width there of
    a column whose cells may be broken; ``about`` explains the column below the table, where ``{}`` names the seeds.
    """

    name: str
    header: str
    write: Write
    value: Value
    kind: Literal["text", "number"] = "number"
    short: str = ""
    wrap: int | None = None
    about: str = ""


def _text(name: str, header: str, wrap: int | None = None, **more: Any) -> Column:
    def text(row: Row, notes: Notes, digits: int) -> str:
        return "" if row[name] is None else str(row[name])

    return Column(name, header, text, **{"value": itemgetter(name), "kind": "text", "wrap": wrap, **more})


def _number(
    name: str, header: str, write: Callable[..., str], short: str = "", about: str = "", value: Value | None = None
) -> Column:
    """Make a column whose text depends on its value alone, and on the spread of its field where rows have one."""
    find, spread = value or itemgetter(name), f"{name}_std"

    def text(row: Row, notes: Notes, digits: int) -> str:
        if (found := find(row)) is None:
            return ""
        return write(found, row[spread], digits) if spread in SPREADS else write(found)

    return Column(name, header, text, find, short=short, about=about)


def _top1(name: str, header: str, short: str, about: str, field: Callable[[Row], str]) -> Column:
    """Make a column of top-1, in the field that ``field(row)`` names, if any; the spread of a dense model's is in its row."""

    def value(row: Row) -> Any:
        return row[field(row)] if field(row) else None

    def text(row: Row, notes: Notes, digits: int) -> str:
        if (found := value(row)) is None:
            return ""
        told = name != "top1_dense" or row["protocol"] == "dense"
        return number(found, row[TOP1[field(row)]] if told else None, digits)

    return Column(name, header, text, value, short=short, about=about)


def _untrained(row: Row) -> bool:
    return str(row["protocol"]).startswith("training-free")


def _after(row: Row) -> str:
    """Name what stands under "after FT": nothing in the dense model's row, and for what is not trained."""
    return "" if row["protocol"] == "dense" or _untrained(row) else "top1"


def _counted_bytes(row: Row) -> float | None:
    return None if row["params"] is None or row["bits"] is None else row["params"] * row["bits"] / 8


def _share(row: Row, notes: Notes, digits: int) -> str:
    """Write the parameters, and what they save: ``51.9M (-40.0%)``."""
    count, dense = row["params"], row["params_dense"]
    if count is None:
        return ""
    return human(count) + (f" ({100 * (count / dense - 1):+.1f}%)" if dense and count != dense else "")


def _reduction(row: Row, notes: Notes, digits: int) -> str:
    """Write the share that is removed and, unless it is of the parameters, of what."""
    return "" if row["reduction"] is None else f"{100 * row['reduction']:.0f}%{COSTS.get(row['cost'], '')}"


def remarks(row: Row) -> list[str]:
    """List what the footnotes say of a row."""
    stale = STALE if row["stale"] else None
    quoted = row["source"] if row["status"] == "reported" else None
    return [text for text in (row["note"], quoted, row["reason"], stale) if text]


def notes_of(rows: Sequence[Row]) -> Notes:
    """Give footnotes their numbers, in the order of their first use."""
    texts = [text for row in rows for text in remarks(row)]
    return {text: number for number, text in enumerate(dict.fromkeys(texts), start=1)}


def shown_status(row: Row) -> str:
    """Return ``done``, ``stale``, ``skipped`` or ``reported``."""
    return "stale" if row["stale"] else str(row["status"])


def _status(row: Row, notes: Notes, digits: int) -> str:
    return f"{shown_status(row)} {''.join(f'[{notes[text]}]' for text in remarks(row))}".strip()


PAPER = (
    "Top-1 in percent. Reported: printed in papers, on ImageNet; dense, before and after fine-tuning (FT): measured here, "
    "{}."
)
ACCURACY = "Top-1 in percent, measured here, {}: dense, and of the model in the row."
ERROR = "Error: ||y - y'||² / ||y||² on held-out images, mean over the compressed layers."
ERROR_SEEN = "Error on calibration: ||y - y'||² / ||y||² on the calibration images, mean over the compressed layers."
ERROR_REPORTED = "Error reported: as printed in the paper."
SECONDS = "Seconds: a job, without what it shares: loading and evaluating the dense model."
BUDGET = "Budget: the share of a layer that Z may take; overhead: Z's share of the dense layers; both in percent."
OPTIMIZER = "Optimizer: of a gradient solver; sgd is the paper's plain gradient descent, adam ours."
OVERHEAD = "Overhead reported: printed in the paper, relative to the other kinds."
GAP = "Gap: by how many percent the solver's loss lies above the closed form's."
UNSEEN = (
    "KL unseen: divergence from the dense model in nats, and how often both answer the same, on training images that are "
    "held out."
)
SPEED = (
    "Speed-up: measured in turns with the dense model, at that many images a batch, eager; on a CPU in its own time."
)
SIZE = "File size: of the model on disk; reported: printed in the paper, in MiB."
IMAGES = "Images: how many calibrate the compression, and train the smaller model."
FLOAT = "Float32: top-1 before the weights were rounded."
COUNTED = "Size counted: all parameters times the bits of a weight, as if nothing else were stored."
SCANNED = "Scans: how many were replaced, least impact on the calibration images first."
SCAN_TOP1 = "Top-1: percent, on the evaluation's images; KL: from the dense model, in nats, on the same."
STORED = "File size: of the model on disk. Top-1: percent, measured here, on the evaluation's images."
DELTA = "Trained: numbers in the delta; File: of the delta on disk."
LEARNT = (
    "New: percent of 180 images of the new digit that the judge recognises; Inverted: the same in the style that no example "
    "has. Fréchet: distance of the judge's features from those of the evaluation's real images; Nearest: mean distance to "
    "the nearest of the eight examples, in pixels (small: learnt by heart)."
)
OLD = "Old: percent of 160 images of the eight old digits; Change: points, after customising; Fréchet old: their distance."
STEP = "ms: median of a training step of four images, on a machine that other work shared."

CATALOGUE: Registry[Column] = Registry("column")
for column in (
    _text("architecture", "Architecture"),
    _text("method", "Method", 12),
    _text("protocol", "Protocol", 9),
    _text("base", "Base", 8, about="Base: the decomposition of the weight, before Z."),
    _text("z", "Z", 6, about="Z: what compensates for the base's error."),
    _text("solver", "Solver", 8),
    _text("optimizer", "Optimizer", 6, about=OPTIMIZER),
    _text("target", "Size aimed at", 8, short="Size\naimed at"),
    _number("calibration_images", "Images", "{:,}".format, about=IMAGES),
    _number("bits", "Bits", str, about="Bits: of a weight."),
    Column("reduction", "Reduction", _reduction, itemgetter("reduction"), short="Re-\nduction"),
    _text(
        "params_printed",
        "Params printed",
        value=lambda row: printed_count(row["params_printed"]),
        kind="number",
        short="Params\nprinted",
    ),
    Column("params", "Params measured", _share, itemgetter("params"), short="Params\nmeasured"),
    _number("top1_reported", "Top-1 reported", number, "Top-1\npaper", PAPER),
    _top1("top1_dense", "Top-1 dense", "dense\n%", PAPER, lambda row: "top1_dense"),
    _number("top1_float", "Top-1 float32", number, "float32\n%", FLOAT),
    _top1(
        "top1_before_finetune",
        "before FT",
        "before\nFT %",
        PAPER,
        lambda row: "top1" if _untrained(row) else "top1_before_finetune",
    ),
    _top1("top1", "after FT", "after\nFT %", PAPER, _after),
    _top1("accuracy", "Top-1", "top-1\n%", ACCURACY, lambda row: "" if row["protocol"] == "dense" else "top1"),
    _number("relative_error", "Error calibration", ERRORS, "Error\ncalib.", ERROR_SEEN),
    _number("relative_error_held_out", "Error held-out", ERRORS, "Error\nunseen", ERROR),
    _number("residual_error_reported", "Error reported", "{:g}".format, "Error\npaper", ERROR_REPORTED),
    _number("kl_unseen", "KL unseen", ERRORS, "KL\nunseen", UNSEEN),
    _number("agreement_unseen", "Same answer", number, "Same\nanswer %", UNSEEN),
    _number("gap", "Gap %", of_share, "Gap\n%", GAP),
    _number("budget", "Budget %", partial(of_share, digits=1), "Budget\n%", BUDGET),
    _text("overhead_reported", "Overhead reported", short="Overh.\npaper", about=OVERHEAD),
    _number("overhead", "Overhead %", of_share, "Over-\nhead %", BUDGET),
    _number("size_counted", "Size counted", file_size, "Size\ncounted", COUNTED, _counted_bytes),
    _number("file_bytes", "File size", file_size, "File\nsize", SIZE),
    _number("size_reported", "Size reported", "{:g}".format, "Size\npaper", SIZE),
    _number("scans_replaced", "Scans", partial(number, digits=0), about=SCANNED),
    _number("scans_top1", "Top-1", number, about=SCAN_TOP1),
    _number("scans_kl", "KL", ERRORS, about=SCAN_TOP1),
    _number("stored_bytes", "File size", file_size, about=STORED),
    _number("stored_top1", "Top-1", number, about=STORED),
    _number("custom_count", "Trained", human, about=DELTA),
    _number("custom_bytes", "File", file_size, about=DELTA),
    _number("custom_concept", "New %", number, about=LEARNT),
    _number("custom_composition", "Inverted %", number, about=LEARNT),
    _number("custom_distance", "Fréchet", number, about=LEARNT),
    _number("custom_nearest", "Nearest", number, about=LEARNT),
    _number("custom_old", "Old %", number, about=OLD),
    _number("custom_old_change", "Change", "{:+.1f}".format, about=OLD),
    _number("custom_old_distance", "Fréchet old", number, about=OLD),
    _number("custom_step", "ms", number, about=STEP),
    _number("macs", "MACs", human),
    *(_number(f"speedup_{batch}", f"Speed-up {batch}", number, f"Speed\n{batch}", SPEED) for batch in BATCHES),
    _number("seconds", "Seconds", partial(number, digits=1), "Sec.", SECONDS),
    Column("status", "Status", _status, shown_status, "text", wrap=8),
):
    CATALOGUE.add(column.name, column)


def chosen(names: Sequence[str]) -> list[Column]:
    """Look up the columns of these names. Raises ``InputError`` with the nearest name."""
    return [CATALOGUE.get(name) for name in names]


def legend(columns: Sequence[Column], rows: Sequence[Row]) -> str:
    """Explain what the columns mean."""
    seeds = sorted({seed for row in rows for seed in row["seeds"] or ()})
    named = ", ".join(map(str, seeds))
    measured = f"mean ± standard deviation over seeds {named}" if len(seeds) > 1 else f"seed {named or '-'}"
    texts = dict.fromkeys(column.about for column in columns if column.about)
    return " ".join([*(text.replace("{}", measured) for text in texts), *caveats(rows)])

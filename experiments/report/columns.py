"""Define the columns that a table can have: their names, and how a row of ``table.json`` is written and sorted."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import Any, Literal

from experiments.report import cells
from experiments.report.cells import Notes, Row
from experiments.report.formats import file_size, human, number, of_share, percent, printed_count, share
from experiments.report.seeds import SPREADS
from experiments.report.uncertainty import caveats
from lowrank_vit.runtime.registry import unknown

BATCHES = (1, 8)  # images at a time, as ``jobs/beside.py`` measures
ERRORS = partial(number, digits=4)  # relative errors, and divergences


@dataclass(frozen=True)
class Column:
    """Describe one column. ``write(row, notes, digits)`` is its text, ``value(row)`` sorts it (None comes last).

    ``digits`` are those of measured percentages. ``short`` is the terminal's header; ``wrap`` the least width there of
    a column whose cells may be broken; ``about`` explains the column below the table, where ``{}`` names the seeds.
    """

    name: str
    header: str
    write: Callable[[Row, Notes, int], str]
    value: Callable[[Row], Any]
    kind: Literal["text", "number"] = "number"
    short: str = ""
    wrap: int | None = None
    about: str = ""


def _plain(name: str) -> Callable[[Row, Notes, int], str]:
    return lambda row, notes, digits: "" if row[name] is None else str(row[name])


def _text(name: str, header: str, wrap: int | None = None, **more: str) -> Column:
    return Column(name, header, _plain(name), itemgetter(name), "text", wrap=wrap, **more)


def _number(name: str, header: str, write: Callable[..., str], short: str = "", about: str = "") -> Column:
    """Make a column whose text depends on its field alone, and on the spread of that where rows have one."""
    spread = f"{name}_std"

    def text(row: Row, notes: Notes, digits: int) -> str:
        return write(row[name], row[spread], digits) if spread in SPREADS else write(row[name])

    return Column(name, header, text, itemgetter(name), short=short, about=about)


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


def _counted_bytes(row: Row) -> float | None:
    return None if row["params"] is None or row["bits"] is None else row["params"] * row["bits"] / 8


TOP1 = (
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

CATALOGUE = {
    column.name: column
    for column in (
        _text("architecture", "Architecture"),
        _text("method", "Method", 12),
        _text("protocol", "Protocol", 9),
        _text("base", "Base", 8, about="Base: the decomposition of the weight, before Z."),
        _text("z", "Z", 6, about="Z: what compensates for the base's error."),
        _text("solver", "Solver", 8),
        _text("optimizer", "Optimizer", 6, about=OPTIMIZER),
        _text("target", "Size aimed at", 8, short="Size\naimed at"),
        _number("calibration_images", "Images", lambda count: "" if count is None else f"{count:,}", about=IMAGES),
        _number("bits", "Bits", lambda bits: "" if bits is None else str(bits), about="Bits: of a weight."),
        Column("reduction", "Reduction", cells.reduction_text, itemgetter("reduction"), short="Re-\nduction"),
        Column(
            "params_printed",
            "Params printed",
            _plain("params_printed"),
            lambda row: printed_count(row["params_printed"]),
            short="Params\nprinted",
        ),
        Column(
            "params",
            "Params measured",
            lambda row, notes, digits: share(row["params"], row["params_dense"]),
            itemgetter("params"),
            short="Params\nmeasured",
        ),
        _number("top1_reported", "Top-1 reported", percent, "Top-1\npaper", TOP1),
        Column("top1_dense", "Top-1 dense", cells.dense_text, itemgetter("top1_dense"), short="dense\n%", about=TOP1),
        _number("top1_float", "Top-1 float32", percent, "float32\n%", FLOAT),
        Column("top1_before_finetune", "before FT", cells.before_text, cells.before, short="before\nFT %", about=TOP1),
        Column("top1", "after FT", cells.after_text, cells.after, short="after\nFT %", about=TOP1),
        Column("accuracy", "Top-1", cells.top1_text, cells.top1, short="top-1\n%", about=ACCURACY),
        _number("relative_error", "Error calibration", ERRORS, "Error\ncalib.", ERROR_SEEN),
        _number("relative_error_held_out", "Error held-out", ERRORS, "Error\nunseen", ERROR),
        _number("residual_error_reported", "Error reported", _short, "Error\npaper", ERROR_REPORTED),
        _number("kl_unseen", "KL unseen", ERRORS, "KL\nunseen", UNSEEN),
        _number("agreement_unseen", "Same answer", percent, "Same\nanswer %", UNSEEN),
        _number("gap", "Gap %", of_share, "Gap\n%", GAP),
        _number("budget", "Budget %", lambda share: of_share(share, digits=1), "Budget\n%", BUDGET),
        _text("overhead_reported", "Overhead reported", short="Overh.\npaper", about=OVERHEAD),
        _number("overhead", "Overhead %", of_share, "Over-\nhead %", BUDGET),
        Column(
            "size_counted",
            "Size counted",
            lambda row, notes, digits: file_size(_counted_bytes(row)),
            _counted_bytes,
            short="Size\ncounted",
            about=COUNTED,
        ),
        _number("file_bytes", "File size", file_size, "File\nsize", SIZE),
        _number("size_reported", "Size reported", _short, "Size\npaper", SIZE),
        _number("scans_replaced", "Scans", partial(number, digits=0), about=SCANNED),
        _number("scans_top1", "Top-1", percent, about=SCAN_TOP1),
        _number("scans_kl", "KL", ERRORS, about=SCAN_TOP1),
        _number("stored_bytes", "File size", file_size, about=STORED),
        _number("stored_top1", "Top-1", percent, about=STORED),
        _number("custom_count", "Trained", human, about=DELTA),
        _number("custom_bytes", "File", file_size, about=DELTA),
        _number("custom_concept", "New %", percent, about=LEARNT),
        _number("custom_composition", "Inverted %", percent, about=LEARNT),
        _number("custom_distance", "Fréchet", percent, about=LEARNT),
        _number("custom_nearest", "Nearest", number, about=LEARNT),
        _number("custom_old", "Old %", percent, about=OLD),
        _number("custom_old_change", "Change", lambda value: "" if value is None else f"{value:+.1f}", about=OLD),
        _number("custom_old_distance", "Fréchet old", number, about=OLD),
        _number("custom_step", "ms", number, about=STEP),
        _number("macs", "MACs", human),
        *(_number(f"speedup_{batch}", f"Speed-up {batch}", number, f"Speed\n{batch}", SPEED) for batch in BATCHES),
        _number("seconds", "Seconds", partial(number, digits=1), "Sec.", SECONDS),
        Column("status", "Status", cells.status_text, cells.shown_status, "text", wrap=8),
    )
}


def chosen(names: Sequence[str]) -> list[Column]:
    """Look up the columns of these names. Raises ``InputError`` with the nearest name."""
    for name in names:
        if name not in CATALOGUE:
            raise unknown("column", name, CATALOGUE)
    return [CATALOGUE[name] for name in names]


def legend(columns: Sequence[Column], rows: Sequence[Row]) -> str:
    """Explain what the columns mean."""
    seeds = sorted({seed for row in rows for seed in row["seeds"] or ()})
    named = ", ".join(map(str, seeds))
    measured = f"mean ± standard deviation over seeds {named}" if len(seeds) > 1 else f"seed {named or '-'}"
    texts = dict.fromkeys(column.about for column in columns if column.about)
    return " ".join([*(text.replace("{}", measured) for text in texts), *caveats(rows)])

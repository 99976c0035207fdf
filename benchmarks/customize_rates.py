"""Learning rates of customisation, chosen on digit 7, which no table evaluates: ``experiments/tables/table_customize.py``.

    python -m benchmarks.customize_rates [--method ROW] [--json FILE]

The rate whose mean of three accuracies is highest (the new digit, the same inverted, the old digits) is taken.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.output import show, write
from experiments.measures.customize import CHOICE, customized_and_measured
from experiments.tables.table_customize import METHODS
from lowrank_vit.customize.digits import Judge
from lowrank_vit.models import load_model
from lowrank_vit.runtime.progress import say

RATES = {
    "none": (),
    "comcat": (1e-3, 2.5e-3, 1e-2),
    "comcat-cross": (2.5e-3, 1e-2, 3e-2),
    "comcat-random": (1e-3, 2.5e-3, 1e-2),
    "comcat-class": (2.5e-3, 1e-2, 3e-2),
    "comcat-prior": (5e-3, 1e-2, 3e-2),
    "lora-2": (1e-3, 3e-3, 1e-2),
    "lora-4": (1e-3, 3e-3, 1e-2),
    "lora-4-prior": (1e-3, 3e-3, 1e-2),
    "custom_diffusion": (1e-3, 3e-3, 1e-2),
    "dreambooth": (1e-4, 3e-4, 1e-3),
    "dreambooth-class": (1e-4, 3e-4, 1e-3),
    "dreambooth-prior": (1e-4, 3e-4, 1e-3),
    "textual_inversion": (1e-2, 3e-2, 1e-1),
}
NUMBERS = ("custom_concept", "custom_composition", "custom_old", "custom_distance", "custom_nearest")


def main() -> None:
    """Customise with every rate and print the table."""
    parser = argparse.ArgumentParser(description="Learning rates of customisation, chosen on digit 7.")
    parser.add_argument(
        "--method", choices=[name for name in RATES if RATES[name]], help="one row of the table (default: all)"
    )
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    judge = Judge(load_model("digits_deit_small", None))
    found: list[dict[str, Any]] = []
    for name, (_, changes) in METHODS.items():
        for rate in RATES[name] if args.method in (None, name) else ():
            given = {**changes, "learning_rate": rate, "digit": CHOICE}
            numbers = customized_and_measured(given, 0, judge, lambda said: None)
            found.append({"method": name, "rate": rate, **{number: numbers[number] for number in NUMBERS}})
            found[-1]["mean"] = sum(found[-1][number] for number in NUMBERS[:3]) / 3
            say(f"{name} {rate:g}: mean of accuracies {found[-1]['mean']:.1f}")
    header = ("method", "rate", "digit 7", "inverted", "old", "distance", "nearest", "mean")
    lines = [[row["method"], f"{row['rate']:g}", *(f"{row[key]:.1f}" for key in (*NUMBERS, "mean"))] for row in found]
    title = "Learning rates of customisation, on digit 7, seed 0"
    show(title, header, lines)
    write(args.json, title, header, lines, found)


if __name__ == "__main__":
    main()

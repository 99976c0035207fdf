"""Add a row up over its seeds, and join seeds that were run at different times or on different machines."""

from collections.abc import Mapping
from functools import reduce
from statistics import fmean, stdev
from typing import Any

from experiments.jobs.revisions import is_stale, same_makers
from experiments.report.origins import versions_of
from lowrank_vit.runtime.errors import InputError

MEASURED = (  # what tables of their own measure
    "scans_replaced", "scans_top1", "scans_kl", "stored_bytes", "stored_top1", "custom_count", "custom_bytes",
    "custom_concept", "custom_composition", "custom_distance", "custom_nearest", "custom_old", "custom_old_change",
    "custom_old_distance", "custom_step",
)  # fmt: skip
SPREAD = ("top1", "gap", "stored_top1", "custom_concept", "custom_composition", "custom_old", "custom_distance")
NUMBERS = {  # field of a row: where a result has the number
    "params": ("params", "compressed"),
    "params_dense": ("params", "dense"),
    "macs": ("macs", "compressed"),
    "macs_dense": ("macs", "dense"),
    "top1_dense": ("top1", "dense"),
    "top1_before_finetune": ("top1", "before"),
    "top1": ("top1", "after"),
    "relative_error_held_out": ("relative_error_held_out",),
    "trainable_share": ("trainable_share",),
    "seconds": ("seconds", "total"),
    "overhead": ("z", "overhead"),
    "gap": ("z", "gap"),
    "relative_error": ("relative_error",),
    "file_bytes": ("file_bytes",),
    "top1_float": ("top1_float",),
    "kl_unseen": ("measured", "kl"),
    "agreement_unseen": ("measured", "agreement"),
    **{name: ("measured", name) for name in MEASURED},
    "images": ("n",),
    **{f"speedup_{batch}": ("speed", batch) for batch in ("1", "8")},
}
SPREADS = {  # field of a row: the number whose spread it is
    "top1_dense_std": "top1_dense",
    "top1_before_std": "top1_before_finetune",
    **{f"{name}_std": name for name in SPREAD},
}
COUNTS = ("params", "params_dense", "macs", "macs_dense", "file_bytes", "images")  # whole numbers also in the mean
Seeds = Mapping[str, Mapping[str, float]]  # the numbers of each seed; JSON has no other keys than strings


def aggregate(results: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """Add up the results of one row, by seed: means over the seeds, and standard deviations (n - 1)."""
    stale = any(is_stale(result) for result in results.values())
    return add_up({str(seed): numbers(result) for seed, result in results.items()}) | {"stale": stale}


def numbers(result: Mapping[str, Any]) -> dict[str, float]:
    """List the numbers that one result contributes to a row."""
    whole: Any = result
    found = {name: reduce(lambda part, key: (part or {}).get(key), path, whole) for name, path in NUMBERS.items()}
    distilled = result.get("distillation") or {}  # has measured the divergence itself, and says which weights it kept
    kl = (distilled.get("kl_held_out") or {}).get(distilled.get("kept", "after"))
    found |= {} if kl is None else {"kl_unseen": kl}
    return {name: value for name, value in found.items() if value is not None}


def joined(row: Mapping[str, Any], before: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return a row with the seeds published before of the same job, recipe and revisions; its own seeds take precedence.

    Raises ``InputError`` where the earlier row has several seeds and does not tell their numbers apart.
    """
    if before is None or not same_but_seeds(row, before):
        return dict(row)
    earlier = seeds_of(before)
    others = [str(seed) for seed in before["seeds"] if str(seed) not in row["by_seed"]]
    if not others:
        return dict(row)
    if missing := [seed for seed in others if seed not in earlier]:
        raise InputError(
            f"{row['id']} was published with the mean over seeds {', '.join(map(str, before['seeds']))} alone: "
            f"run seed {' and '.join(missing)} again, too"
        )
    by_seed = {seed: earlier[seed] for seed in others} | row["by_seed"]
    commits = sorted({*row["commits"], *before["commits"]})
    versions = versions_of([*row["versions"], *before["versions"]])
    hits = {**before.get("hits", {}), **row.get("hits", {})}
    return {**row, **add_up(by_seed), "by_seed": by_seed, "hits": hits, "commits": commits, "versions": versions}


def same_but_seeds(row: Mapping[str, Any], before: Mapping[str, Any]) -> bool:
    """Tell whether two rows differ in their seeds alone."""
    if "revisions" not in row or "revisions" not in before or not same_makers(row, before):
        return False
    return {**row["job"], "seed": None} == {**before["job"], "seed": None}


def seeds_of(row: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Return the numbers of each seed; an older row has them where it has one seed, whose numbers are the means."""
    if "by_seed" in row or len(row["seeds"]) != 1:
        return dict(row.get("by_seed", {}))
    return {str(row["seeds"][0]): {name: row[name] for name in NUMBERS if row.get(name) is not None}}


def add_up(by_seed: Seeds) -> dict[str, Any]:
    """Return the means of all numbers, the spreads (n - 1) of some, and the seeds, as a row of the table has them."""
    columns = {name: [each[name] for each in by_seed.values() if name in each] for name in NUMBERS}
    means = {name: fmean(values) if values else None for name, values in columns.items()}
    return {
        **means,
        **{name: stdev(columns[of]) if len(columns[of]) > 1 else None for name, of in SPREADS.items()},
        **{name: None if (mean := means[name]) is None else round(mean) for name in COUNTS},
        "seeds": sorted(map(int, by_seed)),
    }

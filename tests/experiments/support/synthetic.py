"""A small table, its plan and its results, made up."""

import json
import os
from pathlib import Path
from typing import Any

from experiments.jobs.job import ERROR, RESULT, Job, job_folder
from experiments.jobs.revisions import made_by
from experiments.runner.plan import PLAN, Images, Options, as_json, make_plan
from experiments.tables.rows import Reported, Row, Table
from experiments.tables.table2 import TABLE as TABLE2

PAPER = "A paper, Table 9"
TABLE = Table(
    "Table 9: made up",
    (
        Row(
            "m/baseline", "Model-M", "deit_tiny_patch16_224.fb_in1k", "m_small", "Baseline", None, 0.0, "86.6M", 81.8,
            "dense", PAPER,
        ),
        Reported("m/other", "Model-M", "Other", "51.9M (-40%)", 81.28, "Some authors", "full-ft+kd", "of another model"),
        Row(
            "m/svd-40", "Model-M", "deit_tiny_patch16_224.fb_in1k", "m_small", "Vanilla SVD + FT", "svd", 0.4,
            "52.0M (-40%)", 77.3, "partial-ft", PAPER,
        ),
        Row(
            "m/ours-40", "Model-M", "deit_tiny_patch16_224.fb_in1k", "m_small", "Ours (paper)", "paper", 0.4,
            "52.0M (-40%)", 81.8, "partial-ft", PAPER, "a note | with a bar",
        ),
        Row(
            "m/ours-60", "Model-M", "deit_tiny_patch16_224.fb_in1k", "m_small", "Ours (paper)", "paper", 0.6,
            "34.6M (-60%)", 81.1, "partial-ft", PAPER,
        ),
        Row("n/svd-40", "Model-N", "vit_base_patch16_224.augreg_in21k_ft_in1k", None, "Vanilla SVD + FT", "svd", 0.4),
    ),
    TABLE2.columns,
    name="table9",
)  # fmt: skip
GOLDEN = Path(__file__).parent.parent.parent / "golden"
OLDER_REVISIONS = {"evaluate": 0}
IMAGES = Images("digits", 1297, 500, 10)
PROVENANCE = {
    "source": "new",
    "git": {"commit": "0123456789abcdef", "dirty": False},
    "versions": {"torch": "2.15.0", "timm": "1.0.0"},
    "device": "cpu (x86_64)",
    "seed": 0,
    "calibration": None,
    "command": "",
}


def result(job: Job, source: str, after: float | None, before: float | None = None, **fields: Any) -> dict[str, Any]:
    """What ``result.json`` of a job would hold. ``source``: "new", or anything else for an older revision."""
    size = 26_000 if job.recipe is None else round(26_000 * (1 - job.reduction)) - job.seed
    return {
        "format": 1,
        "job": job.as_json(),
        **made_by(job),
        **({} if source == "new" else {"revisions": OLDER_REVISIONS}),
        "params": {"dense": 26_000, "compressed": size},
        "macs": {"dense": 500_000, "compressed": 20 * size},
        "top1": {"dense": 95.0 + job.seed, "before": before, "after": after},
        "n": 500,
        "relative_error_held_out": None if job.recipe is None else 0.1 + 0.01 * job.seed,
        "trainable_share": None if job.recipe is None else 0.05,
        "seconds": {"total": 10.0 + job.seed},
        "provenance": {
            "source": source,
            "git": {"commit": "0123abcd", "dirty": bool(job.seed)},
            "versions": {"python": "3.11.1", "torch": "2.15.0"},
            "device": "cpu (x86_64)",
        },
        **fields,
    }


def compare(name: str, text: str) -> None:
    """With the golden file; ``UPDATE_GOLDEN=1`` writes the file instead."""
    path = GOLDEN / name
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


def write(folder: Path, job: Job, content: dict[str, Any], name: str = RESULT) -> None:
    """Put a file into the job's folder."""
    path = job_folder(folder, job) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def fill(folder: Path, options: Options = Options(steps=100)) -> None:  # noqa: B008 (frozen)
    """A run with two seeds: everything that a report must show happens once."""
    options = Options(**{**options.__dict__, "seeds": (0, 1)})
    plan = {item.row.id: item for item in make_plan(TABLE, options, IMAGES)}
    (folder / TABLE.name).mkdir(parents=True, exist_ok=True)
    (folder / TABLE.name / PLAN).write_text(json.dumps(as_json(TABLE, options, IMAGES, list(plan.values()))))
    for job in plan["m/baseline"].jobs:
        write(folder, job, result(job, "new", after=95.0 + job.seed))
    for job, after in zip(plan["m/svd-40"].jobs, (80.0, 83.0), strict=True):
        write(folder, job, result(job, "new", after, before=after - 10))
    first, second = plan["m/ours-40"].jobs
    write(folder, first, result(first, "old", 90.0, before=85.0))
    write(folder, second, {"row": "m/ours-40", "reason": "failed: a layer has NaN"}, ERROR)

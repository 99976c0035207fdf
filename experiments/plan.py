"""From rows and options to jobs: what would run, what is skipped and why, and what the table says about both."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.checkpoints import checkpoint_names, file_hash, find_checkpoint, hub_reason
from experiments.registry import Job, Row, Table
from lowrank_vit.errors import InputError
from lowrank_vit.recipes import get_recipe

EMBEDDED = "digits"
NO_STANDIN = "no stand-in for {} among the embedded models: give --data (DATA=) to run the real one"
UNTRAINED = "a full fine-tune of no epochs is none: leave out --epochs (EPOCHS=)"
IMAGENET_VALIDATION = 50_000
IMAGENET_CLASSES = 1000


@dataclass(frozen=True)
class Options:
    """What a user may choose for all rows of a run; None is the row's, the recipe's or the profile's default."""

    data: str = EMBEDDED
    checkpoints: Path | None = None
    seeds: tuple[int, ...] | None = None
    epochs: int | None = None
    steps: int | None = None
    solver: str | None = None
    limit: int | None = None
    calibration_samples: int = 1024
    batch_size: int = 64
    processes: int = 1
    precision: str | None = None

    @property
    def embedded(self) -> bool:
        """Whether the run is on the stand-ins."""
        return self.data == EMBEDDED

    def seeds_of(self, row: Row) -> tuple[int, ...]:
        """The seeds asked for; by default three for the small stand-ins unless the row is content with fewer, else one."""
        return self.seeds or (row.embedded_seeds if self.embedded else (0,))


@dataclass(frozen=True)
class Images:
    """The images of a run: the SPEC without the path that leads there, and how many there are."""

    data: str
    train: int
    validation: int
    classes: int | None

    def about(self, limit: int | None, counted: bool = True) -> str:
        """What the title says of them: never ImageNet, unless it is the whole validation set, and all are ``counted``."""
        if self.data == EMBEDDED or not counted:
            return "digits stand-in, not ImageNet" if self.data == EMBEDDED else f"on {self.data}"
        count = min(limit or self.validation, self.validation)
        whole = count == IMAGENET_VALIDATION and self.classes == IMAGENET_CLASSES
        return f"on {self.data}, {'the ImageNet-1k validation set, ' if whole else ''}{count:,} images"


@dataclass(frozen=True)
class Planned:
    """A row with its jobs, one for each seed, or the reason why it has none."""

    row: Row
    jobs: tuple[Job, ...] = ()
    reason: str | None = None
    checkpoint: Path | None = None


def short_spec(spec: str) -> str:
    """The SPEC with the last part of its path: ``imagefolder:imagenet-samples``."""
    kind, _, target = spec.partition(":")
    return f"{kind}:{Path(target).expanduser().absolute().name}" if kind != "hf" and target else spec


def open_images(spec: str) -> Images:
    """Look at the images that a SPEC stands for. Raises ``InputError`` where they are not there."""
    if spec == EMBEDDED:  # without a second's import
        return Images(spec, 1297, 500, 10)
    from lowrank_vit.data import open_source

    source = open_source(spec)
    train, validation = source.split("train"), source.split("validation")
    if source.num_classes != IMAGENET_CLASSES:
        raise InputError(
            f"{spec} has {source.num_classes or 'no'} classes, the models of the tables have {IMAGENET_CLASSES}: "
            "give ImageNet or a part of it, in folders named by wnid"
        )
    return Images(short_spec(spec), len(train), len(validation), source.num_classes)


def make_plan(table: Table, options: Options, images: Images) -> list[Planned]:
    """Every row that can be run, with its jobs or the reason against them."""
    return [_plan_row(row, options, images) for row in table.runnable]


def _plan_row(row: Row, options: Options, images: Images) -> Planned:
    if row.full and epochs_of(row, options) == 0:
        return Planned(row, reason=UNTRAINED)
    if options.embedded:
        if row.standin is None:
            return Planned(row, reason=NO_STANDIN.format(row.architecture))
        return Planned(row, _jobs(row, row.standin, None, options, images))
    if options.checkpoints is None:
        reason = hub_reason(row.model)
        return Planned(row, () if reason else _jobs(row, row.model, None, options, images), reason)
    path = find_checkpoint(options.checkpoints, row.model)
    if path is None:
        names = " or ".join(checkpoint_names(row.model))
        return Planned(row, reason=f"no checkpoint: {options.checkpoints} has no {names}")
    return Planned(row, _jobs(row, row.model, f"{path.name}@{file_hash(path)}", options, images), checkpoint=path)


def _jobs(row: Row, model: str, checkpoint: str | None, options: Options, images: Images) -> tuple[Job, ...]:
    counts = f"{images.train}+{images.validation}"
    target = row.standin_target if options.embedded else row.target
    fields: dict[str, Any] = {
        "model": model,
        "standin": options.embedded,
        "data": images.data,
        "images": counts,
        "recipe": row.recipe,
        "reduction": row.reduction if target is None else size_reduction(model, target),
        "checkpoint": checkpoint,
        "limit": options.limit,
        "bits": row.bits,
        "measure": row.measure,
    }
    if row.recipe is None and row.measure is None:  # nothing else bears on the dense model's accuracy
        fields["epochs"] = 0
    else:
        fields |= {
            "changes": {**row.changes, **recipe_changes(row, options.steps, options.solver)},
            "epochs": epochs_of(row, options),
            "calibration_samples": min(options.calibration_samples, images.train),
            "batch_size": options.batch_size,
            "processes": options.processes,
            "precision": options.precision,
            "distill_epochs": row.distill_epochs,
            "full": row.full,
        }
    return tuple(Job(seed=seed, **fields) for seed in options.seeds_of(row))


def epochs_of(row: Row, options: Options) -> int:
    """The epochs of fine-tuning of a row: its own, else those asked for, else the paper's."""
    return next(count for count in (row.own_epochs, options.epochs, Job.epochs) if count is not None)


def recipe_changes(row: Row, steps: int | None, solver: str | None) -> dict[str, Any]:
    """Which fields of a row's recipe the options change.

    Nothing where it has no compensation, or has the value already; a solver that the row itself names stays.
    """
    if row.recipe is None:
        return {}
    own = get_recipe(row.recipe).but(**row.changes)
    if own.compensation is None:
        return {}
    solver = None if "solver" in row.changes else solver
    wanted = {"solver": solver, "steps": None if (solver or own.solver) == "closed_form" else steps}
    return {name: value for name, value in wanted.items() if value not in (None, getattr(own, name))}


@functools.cache
def size_reduction(model: str, target: str) -> float:
    """The share of ``model``'s parameters to remove so that it is as small as ``target`` (timm's names)."""
    import timm
    import torch

    import lowrank_vit.models  # noqa: F401  (the stand-ins register with timm)
    from lowrank_vit.cost import parameter_count

    with torch.device("meta"):  # only counted
        dense, small = (parameter_count(timm.create_model(name)) for name in (model, target))
    if small >= dense:
        raise InputError(f"{target} has {small:,} parameters, {model} only {dense:,}: there is nothing to remove")
    return 1 - small / dense


def deviations(job: Job, row: Row) -> list[str]:
    """What of a job differs from its row's and the paper's settings, in words: ``["1 epoch", "100 steps"]``."""
    if job.recipe is None:
        return []
    said = []
    if job.epochs not in (0, Job.epochs):
        said.append(f"{job.epochs} epoch{'s' if job.epochs > 1 else ''}")
    changed = {name: value for name, value in job.changes.items() if row.changes.get(name) != value}
    said += [f"{value} steps" if name == "steps" else f"{name} {value}" for name, value in changed.items()]
    if job.lr != Job.lr:
        said.append(f"lr {job.lr:g}")
    if job.batch_size * job.processes != Job.batch_size:
        said.append(f"batch {job.batch_size * job.processes}")
    if job.calibration_samples != Job.calibration_samples:
        said.append(f"{job.calibration_samples} calibration images")
    return said


def protocol(row: Row, job: Job) -> str:
    """The row's protocol as it was run."""
    base = "training-free" if row.recipe is not None and job.epochs == 0 else row.protocol
    base = "calibration-distilled" if job.distill_epochs else base
    return ", ".join([base, *deviations(job, row)])


def as_json(table: Table, options: Options, images: Images, plan: list[Planned]) -> dict[str, Any]:
    """What the report needs to know of a run, all rows included, whichever of them were selected."""
    return {
        "table": table.name,
        "title": f"{table.title} · {images.about(options.limit, counted=table.drawing is None)}",
        "profile": "embedded" if options.embedded else images.data,
        "rows": {item.row.id: {"reason": item.reason, "jobs": [job.as_json() for job in item.jobs]} for item in plan},
    }


def jobs_of(entry: Mapping[str, Any]) -> list[Job]:
    """The jobs of a row of a written plan."""
    return [Job.from_json(job) for job in entry["jobs"]]

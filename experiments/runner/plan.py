"""Plan jobs from rows and options: what would run, what is skipped and why, and what the table says about both."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.jobs.checkpoints import file_hash, find_checkpoint, hub_reason
from experiments.jobs.job import LEARNT_TOKENS, Job, read_json
from experiments.jobs.task import EMBEDDED
from experiments.measures.layers import blank
from experiments.runner.reach import out_of_reach, size_reduction
from experiments.tables.rows import Row, Table
from lowrank_vit import get_recipe
from lowrank_vit.data import hold_out, open_source
from lowrank_vit.modules.counting import parameter_count
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.files import given_path

PLAN = "plan.json"
NO_STANDIN = "no stand-in for {} among the embedded models: give --data (DATA=) to run the real one"
UNTRAINED = "a full fine-tune needs epochs: leave out --epochs 0 (EPOCHS=0)"
IMAGENET_VALIDATION = 50_000
IMAGENET_CLASSES = 1000


@dataclass(frozen=True)
class Options:
    """Hold what a user may choose for all rows of a run; None is the row's, the recipe's or the profile's default."""

    data: str = EMBEDDED
    checkpoints: Path | None = None
    seeds: tuple[int, ...] | None = None
    epochs: int | None = None
    steps: int | None = None
    solver: str | None = None
    optimizer: str | None = None
    limit: int | None = None
    calibration_samples: int = 1024
    batch_size: int = Job.batch_size
    lr: float = Job.lr
    processes: int = 1
    precision: str | None = None

    @property
    def embedded(self) -> bool:
        """Tell whether the run is on the stand-ins."""
        return self.data == EMBEDDED


@dataclass(frozen=True)
class Images:
    """Describe the images of a run: the SPEC without the path that leads there, and how many there are."""

    data: str
    train: int
    validation: int
    classes: int | None

    def about(self, limit: int | None, counted: bool = True) -> str:
        """Describe them for a title: never as ImageNet, unless they are its whole validation set and all are ``counted``."""
        if self.data == EMBEDDED or not counted:
            return "digits stand-in, not ImageNet" if self.data == EMBEDDED else f"on {self.data}"
        count = min(limit or self.validation, self.validation)
        whole = count == IMAGENET_VALIDATION and self.classes == IMAGENET_CLASSES
        return f"on {self.data}, {'the ImageNet-1k validation set, ' if whole else ''}{count:,} images"


@dataclass(frozen=True)
class Planned:
    """Hold a row with its jobs, one for each seed, or the reason why it has none."""

    row: Row
    jobs: tuple[Job, ...] = ()
    reason: str | None = None
    checkpoint: Path | None = None


def short_spec(spec: str) -> str:
    """Shorten the SPEC to the last part of its path: ``imagefolder:imagenet-samples``."""
    kind, _, target = spec.partition(":")
    if kind == "joined":
        folder, _, labelled = target.partition(",")
        return f"{kind}:{given_path(folder).absolute().name},{short_spec(labelled)}"
    return f"{kind}:{given_path(target).absolute().name}" if kind != "hf" and target else spec


def open_images(spec: str) -> Images:
    """Describe the images that a SPEC stands for. Raises ``InputError`` where they are not there."""
    if spec == EMBEDDED:
        return Images(spec, 1297, 500, 10)
    source = open_source(spec)
    train, validation = source.split("train"), source.split("validation")
    if source.num_classes != IMAGENET_CLASSES:
        raise InputError(
            f"{spec} has {source.num_classes or 'no'} classes, the models of the tables have {IMAGENET_CLASSES}: "
            "give ImageNet or a part of it, in folders named by wnid"
        )
    return Images(short_spec(spec), len(train), len(validation), source.num_classes)


def make_plan(table: Table, options: Options, images: Images) -> list[Planned]:
    """Plan every row that can be run: its jobs, or the reason why it has none."""
    planned = {row.id: _plan_row(row, options, images) for row in table.runnable}
    reached, able = dict[str, float](), [item for item in planned.values() if item.jobs]
    for item in sorted(able, key=lambda item: -item.jobs[0].reduction):  # the hardest first spares the others a check
        reason = out_of_reach(item.jobs[0], reached)  # the others differ in their seeds
        if reason is not None:
            planned[item.row.id] = Planned(item.row, reason=reason)
    return list(planned.values())


def _plan_row(row: Row, options: Options, images: Images) -> Planned:
    model, path, reason, checkpoint = row.model, None, None, None
    if (row.full or row.gradual_share) and epochs_of(row, options) == 0:
        reason = UNTRAINED
    elif options.embedded:
        model, reason = row.standin or "", None if row.standin else NO_STANDIN.format(row.architecture)
    elif options.checkpoints is None:
        reason = hub_reason(model)
    elif isinstance(found := find_checkpoint(options.checkpoints, model), Path):
        path, checkpoint = found, f"{found.name}@{file_hash(found)}"
    else:
        reason = found
    if reason is not None:
        return Planned(row, reason=reason)
    jobs = _jobs(row, model, checkpoint, options, images)
    left, wanted = jobs[0].calibration_samples, row.calibration_images
    if wanted not in (None, left):
        return Planned(row, reason=f"{wanted} images to calibrate on, of which {images.data} has {left}")
    return Planned(row, jobs, checkpoint=path)


def _jobs(row: Row, model: str, checkpoint: str | None, options: Options, images: Images) -> tuple[Job, ...]:
    wanted = row.calibration_images or options.calibration_samples
    seen, unseen = hold_out(range(images.train), wanted, Job.held_out_samples)
    target = row.standin_target if options.embedded else row.target
    reduction = row.reduction if row.tokens is None else row.before_tokens  # a token rule removes the rest after it
    # a stand-in aims at the same share of its target's size
    share = row.target_params / parameter_count(blank(row.target)) if row.target and row.target_params else 1.0
    fields: dict[str, Any] = {
        "model": model,
        "standin": options.embedded,
        "data": images.data,
        "images": f"{images.train}+{images.validation}",
        "reduction": reduction if target is None else size_reduction(model, target, share),
        "tokens": {} if row.tokens is None else {"rule": row.tokens, "macs": round(1 - row.reduction, 6)},
        "timed": row.timed and not options.embedded,
        "checkpoint": checkpoint,
        "limit": options.limit,
        "epochs": 0,
        **{name: getattr(row, name) for name in ("recipe", "cost", "bits", "quantizer", "measure")},
    }
    made = row.recipe is not None or row.measure is not None or row.tokens in LEARNT_TOKENS
    if made or row.quantizer is not None:  # they see images
        fields |= {"calibration_samples": len(seen), "held_out_samples": len(unseen)}
    fields |= _made(row, options) if made else {}
    seeds = options.seeds or (row.embedded_seeds if options.embedded else (0,))
    return tuple(Job(seed=seed, **fields) for seed in seeds)


def _made(row: Row, options: Options) -> dict[str, Any]:
    """Return the fields that say how a model is reduced and trained, which the dense model's accuracy does not depend on."""
    epochs = epochs_of(row, options)
    learning = math.ceil(row.gradual_share * epochs)  # before the compression
    taken = ("distill_epochs", "distill_changes", "full", "finetune_changes", "scratch")
    return {
        "changes": {**row.changes, **recipe_changes(row, options)},
        "epochs": epochs - learning,
        "gradual_epochs": row.gradual_epochs or learning,
        "batch_size": row.batch_size or options.batch_size,
        "lr": options.lr if epochs or row.gradual_epochs else Job.lr,  # a distillation has its own
        "processes": options.processes,
        "precision": options.precision,
        **{name: getattr(row, name) for name in taken},
    }


def epochs_of(row: Row, options: Options) -> int:
    """Count the epochs of training of a row: its own, else those asked for, else the paper's; 0 after a distillation."""
    own = 0 if row.distill_epochs else row.epochs
    return next(count for count in (own, options.epochs, Job.epochs) if count is not None)


def recipe_changes(row: Row, options: Options) -> dict[str, Any]:
    """Choose which fields of a row's recipe the options change.

    Nothing where it has no compensation, or has the value already; a solver or an optimiser that the row itself names
    stays, and the closed form has neither optimiser nor steps.
    """
    if row.recipe is None:
        return {}
    recipe = get_recipe(row.recipe).but(**row.changes)
    if recipe.compensation is None:
        return {}
    wanted = {name: None if name in row.changes else getattr(options, name) for name in ("solver", "optimizer")}
    wanted |= {"steps": options.steps}
    if (wanted["solver"] or recipe.solver) == "closed_form":
        wanted |= {"optimizer": None, "steps": None}
    return {name: value for name, value in wanted.items() if value not in (None, getattr(recipe, name))}


def as_json(table: Table, options: Options, images: Images, plan: list[Planned]) -> dict[str, Any]:
    """Return what the report needs to know of a run, all rows included, whichever of them were selected."""
    return {
        "table": table.name,
        "title": f"{table.title} · {images.about(options.limit, counted=table.drawing is None)}",
        "profile": "embedded" if options.embedded else images.data,
        "rows": {item.row.id: {"reason": item.reason, "jobs": [job.as_json() for job in item.jobs]} for item in plan},
    }


def jobs_of(entry: Mapping[str, Any]) -> list[Job]:
    """Read the jobs of a row of a written plan."""
    return [Job.from_json(job) for job in entry["jobs"]]


def read_plan(folder: Path, table: Table) -> dict[str, Any]:
    """Read what the last run of the table planned. Raises ``InputError`` where it was never run."""
    plan = read_json(folder / table.name / PLAN)
    if plan is None or plan.get("table") != table.name:
        raise InputError(f"{folder / table.name} has no results: python -m experiments run {table.name}")
    return plan

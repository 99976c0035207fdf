"""Describe one result to compute, as a record whose hash names the job's folder; and read the result from there."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from lowrank_vit import Recipe, get_recipe
from lowrank_vit.records.budgets import Budget, reduction_to
from lowrank_vit.records.costs import PARAMETERS
from lowrank_vit.runtime.errors import InputError

RESULT, ERROR = "result.json", "error.json"
LEARNT_TOKENS = ("spvit-kong-gates", "spvit-kong")  # rules for fewer tokens that learn what to keep


@dataclass(frozen=True)
class Job:
    """Hold everything that determines one result, and nothing else: no path, no table, no row, no device.

    ``checkpoint`` is ``file name@sha256 prefix``; ``data`` the SPEC with the last part of its path and ``images`` how
    many images it has (``train+validation``); ``recipe`` None evaluates the dense model; ``changes`` are the fields of
    the recipe that were changed; ``epochs`` 0 leaves the fine-tuning out; ``processes`` are all that share a step, since
    the batch grows with them. ``bits`` are those of the weights' codes at the end (16: half precision; None: as trained),
    rounded by ``quantizer`` (None: to nearest), on the calibration images where it looks at any.
    ``distill_epochs`` are those of training all factors on the calibration images, 0 leaves that out;
    ``distill_changes`` are that training's settings that were changed.
    ``full``: the fine-tuning is of all parameters, towards the labels and the dense model; ``finetune_changes`` are its
    settings that were changed.
    ``gradual_epochs``: of learning a structure, gates and weights together, before the compression; ``epochs``
    follow it; of ``tokens`` that are learnt on labelled images, too; ``scratch``: it begins with random weights.
    ``measure`` names what a figure measures instead of all this.
    ``cost`` is what ``reduction`` removes a share of. ``tokens``: what ``fewer_tokens`` does with the model at last, a rule
    and the share of the dense model's multiply-accumulates to leave. ``timed``: its speed is measured.
    """

    model: str
    standin: bool
    data: str
    images: str
    recipe: str | None
    reduction: float
    seed: int
    checkpoint: str | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    epochs: int = 20
    lr: float = 1e-4
    batch_size: int = 64
    calibration_samples: int = 1024
    held_out_samples: int = 256
    limit: int | None = None
    processes: int = 1
    precision: str | None = None
    bits: int | None = None
    measure: str | None = None
    distill_epochs: int = 0
    full: bool = False
    quantizer: str | None = None
    distill_changes: Mapping[str, Any] = field(default_factory=dict)
    finetune_changes: Mapping[str, Any] = field(default_factory=dict)
    gradual_epochs: int = 0
    scratch: bool = False
    cost: str = PARAMETERS
    tokens: Mapping[str, Any] = field(default_factory=dict)
    timed: bool = False

    @property
    def learns_tokens(self) -> bool:
        """Tell whether a rule learns which tokens to keep."""
        return self.tokens.get("rule") in LEARNT_TOKENS

    @property
    def sees_images(self) -> bool:
        """Tell whether it has a recipe, or tokens that are learnt, for which training images are needed."""
        return self.recipe is not None or self.learns_tokens

    @property
    def trained_epochs(self) -> int:
        """Count the epochs of the training images: of learning a structure, and of fine-tuning."""
        return self.gradual_epochs + self.epochs

    def as_json(self) -> dict[str, Any]:
        """Return all fields, as plain values."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Job":
        """Make the job that ``as_json`` gave. Raises ``InputError`` for fields that a job has not, or lacks."""
        try:
            return cls(**value)
        except TypeError as error:
            raise InputError(f"this is not the description of a job ({error}): remove it and run again") from None

    @property
    def key(self) -> str:
        """Hash the canonical JSON, which names the job's folder.

        Fields at their defaults are left out, so that a field added later with a default changes no key.
        """
        defaults = {item.name: item.default for item in fields(self) if item.default is not MISSING}
        defaults |= {name: {} for name in ("changes", "distill_changes", "finetune_changes", "tokens")}
        given = {name: value for name, value in self.as_json().items() if defaults.get(name, ...) != value}
        return hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def dense(self) -> "Job":
        """Return the evaluation of the dense model on the same images, which many jobs share.

        The seed trains the stand-in and draws the images; of a real model and all images it does nothing.
        """
        seed = self.seed if self.standin or self.limit is not None else 0
        shared = (self.model, self.standin, self.data, self.images)
        return Job(*shared, None, 0.0, seed, self.checkpoint, epochs=0, limit=self.limit)

    @property
    def budget(self) -> Budget:
        """Return the budget that the recipe has to meet."""
        return reduction_to(self.reduction, self.cost)

    @property
    def removed(self) -> float:
        """Return the share of ``cost`` that is removed in all, by the recipe and by fewer tokens."""
        return 1 - self.tokens["macs"] if self.tokens else self.reduction

    def recipe_used(self) -> Recipe:
        """Return the recipe with the changes. Raises ``InputError`` for an unknown recipe and for the dense model."""
        if self.recipe is None:
            raise InputError("this job evaluates the dense model: it has no recipe")
        return get_recipe(self.recipe).but(**self.changes)


def read_json(path: Path) -> dict[str, Any] | None:
    """Read the object in a JSON file; None where there is no such file, or none that can be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def job_folder(folder: Path, job: Job) -> Path:
    """Name the folder of a job's files among all results: one place, since tables share jobs."""
    return folder / "jobs" / job.key


def find_result(folder: Path, job: Job) -> dict[str, Any] | None:
    """Read the result of a finished job."""
    return read_json(job_folder(folder, job) / RESULT)

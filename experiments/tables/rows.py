"""Hold what a table is made of: rows to run, and printed numbers."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from experiments.tables.architectures import Architecture
from lowrank_vit.records.costs import PARAMETERS
from lowrank_vit.runtime.errors import InputError

GATES_ALONE = "gates-alone"  # a protocol: gates are trained on the calibration images, the weights stay frozen


@dataclass(frozen=True)
class Reported:
    """Hold a printed number of a method that is not run here; ``params`` as printed, such as ``"51.9M (-40%)"``."""

    id: str
    architecture: str
    method: str
    params: str
    top1: float
    source: str
    protocol: str
    note: str = ""


@dataclass(frozen=True)
class Row:
    """Describe a row to run. ``recipe`` None is the dense baseline; ``standin`` None cannot run on the embedded images.

    ``params_printed`` and ``top1_reported`` are the paper's, None where it has no such row; ``source`` says where they
    are printed. ``changes`` are of the recipe's fields; ``target`` and ``standin_target`` name the model whose size is
    aimed at, instead of ``reduction``; ``target_params`` aims at another number of parameters than that of ``target``, and
    on the stand-ins at the same share of it; ``epochs`` None leaves the number to the run, and ``gradual_share`` of them go
    to learning a structure, before the compression, if ``gradual_epochs`` does not name a number; ``bits``, ``quantizer``,
    ``measure``, ``full``, ``scratch``, ``distill_epochs``, ``distill_changes`` and ``finetune_changes`` are the job's, and
    what is distilled is not fine-tuned; ``printed`` holds further numbers of the paper, by the field of ``table.json`` that
    they stand in; ``embedded_seeds`` are those of the stand-ins by default.
    ``cost`` is what ``reduction`` is of; ``tokens`` names a rule that removes what is left of it after ``before_tokens``,
    the recipe's share. ``timed``: the speed of a real model is measured; it says little about the small stand-ins.
    ``calibration_images`` and ``batch_size`` None leave their numbers to the run.
    """

    id: str
    architecture: str
    model: str  # timm's name with its tag
    standin: str | None
    method: str
    recipe: str | None
    reduction: float = 0.0
    params_printed: str | None = None
    top1_reported: float | None = None
    protocol: str = "partial-ft"
    source: str | None = None
    note: str = ""
    changes: Mapping[str, Any] = field(default_factory=dict)
    target: str | None = None
    standin_target: str | None = None
    target_params: float | None = None
    epochs: int | None = None
    bits: int | None = None
    quantizer: str | None = None
    measure: str | None = None
    distill_epochs: int = 0
    distill_changes: Mapping[str, Any] = field(default_factory=dict)
    full: bool = False
    finetune_changes: Mapping[str, Any] = field(default_factory=dict)
    gradual_epochs: int = 0
    gradual_share: float = 0.0
    scratch: bool = False
    printed: Mapping[str, Any] = field(default_factory=dict)
    embedded_seeds: tuple[int, ...] = (0, 1, 2)
    cost: str = PARAMETERS
    tokens: str | None = None
    before_tokens: float = 0.0
    timed: bool = False
    calibration_images: int | None = None
    batch_size: int | None = None

    @classmethod
    def measuring(cls, architecture: Architecture, name: str, method: str, measure: str, **fields: Any) -> "Row":
        """Make a row that measures instead of compressing and comparing: nothing is trained."""
        fields = {"recipe": None, "measure": measure, **fields}
        return cls.untrained(architecture, name, method, **fields)

    @classmethod
    def untrained(cls, architecture: Architecture, name: str, method: str, recipe: str | None, **fields: Any) -> "Row":
        """Make the row of a method without training."""
        return cls.of(architecture, name, method, recipe, **{"protocol": "training-free", "epochs": 0, **fields})

    @classmethod
    def of(cls, architecture: Architecture, name: str, method: str, recipe: str | None, **fields: Any) -> "Row":
        """Make the row of a method on a model."""
        known = (architecture.label, architecture.model, architecture.standin)
        return cls(f"{architecture.id}/{name}", *known, method, recipe, **fields)


@dataclass(frozen=True)
class Table:
    """Hold a table or a figure of the paper. The catalogue adds ``name``, of its file, and ``about``, that file's docstring.

    ``columns``: what the rendered table shows, by the names of ``report/columns.py``. ``pictures``: made of
    ``table.json``'s content, by the names of ``report/write.py``; ``findings``: whether ``report/ablation.py`` says
    something about the same content; ``drawing``: the figure of what the jobs measured, a file in ``report/drawing``.
    """

    title: str
    rows: tuple[Row | Reported, ...]
    columns: tuple[str, ...] = ("architecture", "method", "seconds", "status")
    pictures: tuple[str, ...] = ("accuracy_vs_params",)
    findings: bool = False
    drawing: str | None = None
    name: str = ""
    about: str = ""

    @property
    def runnable(self) -> list[Row]:
        """List the rows that can be run."""
        return [row for row in self.rows if isinstance(row, Row)]

    def select(self, name: str | None) -> list[Row]:
        """List the row called ``name``, a group's (``deit_b``), those that match ``*`` and ``?``, or every row for None.

        Raises ``InputError`` with the nearest name otherwise, and for a row that is only reported.
        """
        if name is None:
            return self.runnable
        wanted = name.rstrip("/")
        chosen = [row for row in self.runnable if wanted == row.id.split("/")[0] or fnmatchcase(row.id, wanted)]
        if chosen:
            return chosen
        if any(row.id == name for row in self.rows):
            raise InputError(f"row {name!r} of {self.name} is a printed number of another paper: it cannot be run")
        near = difflib.get_close_matches(name, [row.id for row in self.runnable], n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise InputError(f"{self.name} has no row {name!r}: {hint}see python -m experiments list {self.name}")

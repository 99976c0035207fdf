"""What a table is made of: rows to run, printed numbers, and the jobs that rows become."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import json
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from lowrank_vit.errors import InputError
from lowrank_vit.recipes import Recipe, get_recipe
from lowrank_vit.registry import unknown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from experiments.architectures import Architecture

PREFIXES = ("table", "figure")  # of the modules that hold a table


@dataclass(frozen=True)
class Job:
    """Everything that determines one result, and nothing else: no path, no table, no row, no device.

    ``checkpoint`` is ``file name@sha256 prefix``; ``data`` the SPEC with the last part of its path and ``images`` how
    many images it has (``train+validation``); ``recipe`` None evaluates the dense model; ``changes`` are the fields of
    the recipe that were changed; ``epochs`` 0 leaves the fine-tuning out; ``processes`` are all that share a step, since
    the batch grows with them. ``bits`` are those of the weights' codes at the end (16: half precision; None: as trained).
    ``distill_epochs`` are those of training all factors on the calibration images, 0 leaves that out.
    ``full``: the fine-tuning is of all parameters, towards the labels and the dense model.
    ``measure`` names what a figure measures instead of all this.
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

    def as_json(self) -> dict[str, Any]:
        """All fields, as plain values."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Job:
        """The job that ``as_json`` gave. Raises ``InputError`` for fields that a job has not, or lacks."""
        try:
            return cls(**value)
        except TypeError as error:
            raise InputError(f"this is not the description of a job ({error}): remove it and run again") from None

    @property
    def key(self) -> str:
        """The hash of the canonical JSON, which names the job's folder.

        Fields at their defaults are left out, so that a field added later with a default changes no key.
        """
        defaults = {item.name: item.default for item in fields(self) if item.default is not MISSING}
        defaults["changes"] = {}
        given = {name: value for name, value in self.as_json().items() if defaults.get(name, ...) != value}
        return hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def dense_key(self) -> str:
        """The key of the dense model's evaluation, which many jobs share."""
        kept = ("model", "standin", "data", "images", "checkpoint", "limit")
        own = {name: getattr(self, name) for name in kept}
        if self.standin or self.limit is not None:  # the seed trains the stand-in and draws the images
            own["seed"] = self.seed
        return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()[:16]

    def recipe_used(self) -> Recipe:
        """The recipe with the changes. Raises ``InputError`` for an unknown recipe and for the dense model."""
        if self.recipe is None:
            raise InputError("this job evaluates the dense model: it has no recipe")
        return get_recipe(self.recipe).but(**self.changes)


@dataclass(frozen=True)
class Reported:
    """A printed number of a method that is not run here; ``params`` as printed, such as ``"51.9M (-40%)"``."""

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
    """A row to run. ``recipe`` None is the dense baseline; ``standin`` None cannot run on the embedded images.

    ``params_printed`` and ``top1_reported`` are the paper's, None where it has no such row; ``source`` says where they
    are printed. ``changes`` are of the recipe's fields; ``target`` and ``standin_target`` name the model whose size is
    aimed at, instead of ``reduction``; ``epochs`` None leaves the number to the run; ``bits``, ``measure``, ``full``
    and ``distill_epochs`` are the job's, and what is distilled is not fine-tuned; ``printed`` holds further numbers of the
    paper, by the field of ``table.json`` that they stand in; ``embedded_seeds`` are those of the stand-ins by default.
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
    epochs: int | None = None
    bits: int | None = None
    measure: str | None = None
    distill_epochs: int = 0
    full: bool = False
    printed: Mapping[str, Any] = field(default_factory=dict)
    embedded_seeds: tuple[int, ...] = (0, 1, 2)

    @classmethod
    def measuring(cls, own: Architecture, name: str, method: str, measure: str, **fields: Any) -> Row:
        """A row that measures instead of compressing and comparing: nothing is trained."""
        fields = {"recipe": None, "protocol": "training-free", "epochs": 0, "measure": measure, **fields}
        return cls(f"{own.id}/{name}", own.label, own.model, own.standin, method, **fields)

    @property
    def own_epochs(self) -> int | None:
        """The epochs of fine-tuning that the row insists on: none after a distillation."""
        return 0 if self.distill_epochs else self.epochs


@dataclass(frozen=True)
class Table:
    """A table or a figure of the paper. ``about``: the paper, the exact command, its wall time, on what it was measured.

    ``columns``: what the rendered table shows, by the names of ``columns.py``. ``pictures``: made of ``table.json``'s
    content, by file name; by default accuracy against parameters. ``findings``: sentences about the same content.
    ``drawing``: the module of ``experiments.drawing`` that makes a figure of what the jobs measured.
    """

    name: str
    title: str
    about: str
    rows: tuple[Row | Reported, ...]
    columns: tuple[str, ...] = ()
    pictures: Mapping[str, Callable[[Mapping[str, Any]], Figure]] = field(default_factory=dict)
    findings: Callable[[Mapping[str, Any]], list[str]] | None = None
    drawing: str | None = None

    def draw(self, results: Mapping[str, Sequence[Mapping[str, Any]]], title: str) -> Figure:
        """The figure of what the jobs measured, from row to results, one for each seed. Only where there is a ``drawing``."""
        figure: Figure = importlib.import_module(f"experiments.drawing.{self.drawing}").draw(results, title)
        return figure

    @property
    def runnable(self) -> list[Row]:
        """The rows that can be run."""
        return [row for row in self.rows if isinstance(row, Row)]

    def select(self, name: str | None) -> list[Row]:
        """The row called ``name``, all rows of a group (``deit_b``), those that match ``*`` and ``?``, or every row for None.

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


def tables() -> dict[str, Table]:
    """The ``TABLE`` of every module here that is called ``table...`` or ``figure...``, by its name."""
    return {table.name: table for table in _scan()}


def _scan() -> Iterator[Table]:
    folder = importlib.import_module("experiments")
    for module in pkgutil.iter_modules(folder.__path__):
        if module.name.startswith(PREFIXES):
            yield importlib.import_module(f"experiments.{module.name}").TABLE


def find_all(targets: Sequence[str]) -> list[tuple[Table, list[Row]]]:
    """The tables that the targets name, each with its selected rows; ``all`` is every table and figure.

    Raises ``InputError`` with the nearest name.
    """
    chosen: dict[str, tuple[Table, dict[str, Row]]] = {}
    for target in tables() if "all" in targets else targets:
        table, name = find(target)
        _, rows = chosen.setdefault(table.name, (table, {}))
        rows |= {row.id: row for row in table.select(name)}
    return [(table, list(rows.values())) for table, rows in chosen.values()]


def find(target: str) -> tuple[Table, str | None]:
    """The table and the row of ``TABLE`` or ``TABLE/ROW``. Raises ``InputError`` with the nearest name."""
    name, _, row = target.partition("/")
    known = tables()
    if name not in known:
        raise unknown("table", name, known)
    return known[name], row or None

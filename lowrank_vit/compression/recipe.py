"""A recipe: which method stands at which stage, with its hyperparameters."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from lowrank_vit.objectives import OBJECTIVES, Objective
from lowrank_vit.objectives.classification import Classification
from lowrank_vit.records.costs import PARAMETERS
from lowrank_vit.records.report import plain
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.registry import Registry, revision_of, unknown
from lowrank_vit.stages.allocate import ALLOCATORS, Allocator
from lowrank_vit.stages.allocate.rules import Knapsack
from lowrank_vit.stages.calibrate.observe import needs_gradient
from lowrank_vit.stages.compensate import COMPENSATIONS, Compensation
from lowrank_vit.stages.compensate.solve import ADAM, check_optimizer
from lowrank_vit.stages.correct.measured_losses import MeasuredCurves, MeasuredLosses
from lowrank_vit.stages.correct.output_refit import ClassifierRefit, OutputRefit
from lowrank_vit.stages.gates import GRADUAL, GradualMethod
from lowrank_vit.stages.search import SEARCHES, Search
from lowrank_vit.units.base import UNITS

SINGLE = "decomposition"  # the kind of unit for single linear layers
CLASSIFIER = "classifier"  # what a record calls its refit, where those of outputs are True
BUDGET = 0.05  # of a Z, as in the paper; a recipe without Z records it, too
MERGED = ("macs", "latency")  # the costs that fewer tokens save
STORED = (PARAMETERS, "bytes")  # the costs that identities in pivoted factors save
# no methods
PLAIN = ("solver", "optimizer", "steps", "bias_correction", "rank_multiple", "folded", "pivoted", "tokens", "about")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Describe a way to compress: instances of methods, stage by stage.

    ``units``: a decomposition for each kind of module to compress, by the kind's name (``decomposition`` for single
    linear layers, ``attention``, ``mlp``, ``patches``, ``positions``); beside whole modules, ``decomposition`` takes the
    layers that they leave, such as those of modules of another kind. ``objective``: what is preserved; for a model that it
    cannot be measured on, it is ``features``. ``bias_correction`` puts the mean of what is lost into the bias; ranks are
    multiples of ``rank_multiple``.
    ``folded``: linear layers take up scale and shift of the norms before them, and LayerScale behind them, exactly.
    ``pivoted``: of each pair of factors one holds an identity, which is neither stored nor counted; None: where parameters
    or bytes are the budget, since it costs multiply-accumulates.
    ``tokens``: blocks merge pairs of tokens, planned together with the sizes; None: where multiply-accumulates or time are
    the budget, and the model allows it.
    ``solver`` of the compensation: ``closed_form``, ``moments`` (gradients of the exact loss) or ``minibatch`` (gradients
    of the loss of 64 images, as in the paper). The latter two take ``steps`` by an ``optimizer``: ``sgd``, the paper's
    plain gradient descent, or ``adam``, ours. ``sense`` measures the curves that the allocator sees; ``measured`` corrects
    predicted losses by measured ones; ``refit`` refits the output layers, in closed form, on the inputs that the smaller
    model gives them, or the classifier. ``search``: learns on the calibration images what every size is worth while all
    units change, after measured losses, if any; the allocator then spends the budget by that. ``gradual`` trains gates on
    the calibration images, which say what is kept; ``labelled``: gates and weights are trained on labelled images, by
    ``learn``, before the model is compressed.
    Raises ``InputError`` for an unknown optimiser, for numbers below one, and for pivoted factors with a compensation.
    """

    name: str
    units: Mapping[str, Any]
    allocator: Allocator = field(default_factory=Knapsack)
    compensation: Compensation | None = None
    solver: str = "closed_form"
    optimizer: str = ADAM
    steps: int = 2000
    bias_correction: bool = False
    rank_multiple: int = 1
    folded: bool = False
    pivoted: bool | None = False
    tokens: bool | None = False
    objective: Objective = field(default_factory=Classification)
    sense: MeasuredCurves | None = None
    measured: MeasuredLosses | None = None
    refit: OutputRefit | ClassifierRefit | None = None
    search: Search | None = None
    gradual: GradualMethod | None = None
    labelled: bool = False
    about: str = ""

    def __post_init__(self) -> None:
        if self.rank_multiple < 1 or self.steps < 1:
            raise InputError(f"rank_multiple={self.rank_multiple}, steps={self.steps}: both must be at least 1")
        if self.pivoted and self.compensation is not None:
            raise InputError("pivoted factors leave no place for a compensation Z: leave out one of the two")
        check_optimizer(self.optimizer)

    @property
    def needs_gradient(self) -> bool:
        """Tell whether calibration needs a backward pass."""
        needs = [method.needs for method in self.units.values()]
        groups = [group for each in needs for group in ([each] if isinstance(each, frozenset) else each)]
        return self.refit is not None or any(needs_gradient(names) for names in groups)

    @property
    def replays(self) -> bool:
        """Tell whether losses are measured, by passing the stream through the model's blocks."""
        return self.measured is not None or self.sense is not None

    @property
    def needs_objective(self) -> bool:
        """Tell whether a loss is probed, measured, or trained towards."""
        return self.needs_gradient or self.replays or self.search is not None or self.gradual is not None

    @property
    def kinds(self) -> list[str]:
        """Name the kinds of units it compresses; single layers count only where it takes no whole modules."""
        return [kind for kind in self.units if kind != SINGLE] or list(self.units)

    @property
    def methods(self) -> list[Any]:
        """List the methods of all units and stages, except compensation and objective."""
        stages = (self.allocator, self.sense, self.search, self.measured, self.refit, self.gradual)
        return [*self.units.values(), *(method for method in stages if method is not None)]

    def only(self, *kinds: str) -> "Recipe":
        """Return the recipe for some kinds of units."""
        return replace(self, units={kind: method for kind, method in self.units.items() if kind in kinds})

    def method(self, slot: str) -> Any:
        """Return the method in a slot: a kind of unit, or a stage; None where there is none."""
        return self.units.get(slot) if slot in UNITS.names() else getattr(self, slot)

    def but(self, **changes: Any) -> "Recipe":
        """Change some fields; ``None`` leaves a field as it is.

        A method is given as an instance, by its registered name, or as ``"slot.field"`` for one of its hyperparameters.
        Raises ``InputError`` for an unknown field, method or hyperparameter.
        """
        given = {ALIASES.get(name, name): value for name, value in changes.items() if value is not None}
        changed = self
        for name in sorted(given, key=lambda name: "." in name):  # a method before its hyperparameters
            changed = changed._with(name, given[name])
        return changed

    def _with(self, name: str, value: Any) -> "Recipe":
        slot, _, hyperparameter = name.partition(".")
        if slot in (*PLAIN, "labelled") and not hyperparameter:
            return replace(self, **{slot: value})
        if slot not in slots():
            raise unknown("field of a recipe", slot, [*PLAIN, *slots()])
        value = _varied(slot, self.method(slot), hyperparameter, value) if hyperparameter else _method(slot, value)
        if slot not in UNITS.names():
            return replace(self, **{slot: value})
        units = {**self.units, slot: value}
        return replace(self, units={kind: method for kind, method in units.items() if method is not None})

    @property
    def revisions(self) -> dict[str, int]:
        """Return the revision of each of its methods, as ``slot.name``, and of its kinds of units, as ``unit.kind``."""
        found = {f"unit.{kind}": revision_of(UNITS.get(kind)) for kind in self.units}
        for slot in slots():
            method = self.method(slot)
            name = CLASSIFIER if isinstance(method, ClassifierRefit) else _name(slot, method)
            if method is not None:
                found[f"{slot}.{name}" if name else slot] = revision_of(method)
        return found

    def record(self) -> dict[str, Any]:
        """Describe the recipe in plain values, from which ``recipe_of`` makes it again."""
        methods = {slot: self.method(slot) for slot in slots()}
        named = {slot: _name(slot, method) for slot, method in methods.items()}
        return {
            "name": self.name,
            **{slot: named[slot] for slot in (*UNITS.names(), "allocator", "compensation")},
            "budget": getattr(self.compensation, "budget", BUDGET),
            **{name: getattr(self, name) for name in PLAIN if name != "about"},
            "objective": named["objective"],
            "probe": self.objective.probe_name,
            "sense": None if self.sense is None else self.sense.currency,
            "measured": 0 if self.measured is None else self.measured.rounds,
            "refit": CLASSIFIER if isinstance(self.refit, ClassifierRefit) else self.refit is not None,
            "search": named["search"],
            # most recipes learn nothing, and earlier records do not know it
            **({} if self.gradual is None else {"gradual": named["gradual"], "labelled": self.labelled}),
            "about": self.about,
            "hyperparameters": {slot: plain(vars(method)) for slot, method in methods.items() if method is not None},
        }

    def pivots(self, cost: str) -> bool:
        """Tell whether factors are pivoted in a model whose budget is in ``cost``."""
        return cost in STORED if self.pivoted is None else self.pivoted

    def merges(self, cost: str) -> bool:
        """Tell whether tokens are merged, where the model allows it, in a model whose budget is in ``cost``."""
        return cost in MERGED if self.tokens is None else self.tokens


ADDED: Registry[Recipe] = Registry("recipe", "lowrank_vit.methods")


def add_recipe(name: str, base: Recipe | None = None, **parts: Any) -> Recipe:
    """Make a recipe that is known by its name: of parts, or of another recipe with some of them changed."""
    recipe = Recipe(name=name, **parts) if base is None else replace(base, name=name, **parts)
    return ADDED.add(name, recipe)


ALIASES = {"budget": "compensation.budget", "probe": "objective.sampling"}


def registries() -> dict[str, Registry[Any]]:
    """Return the registry of each slot that has several methods to choose from."""
    stages: dict[str, Registry[Any]] = {
        "allocator": ALLOCATORS,
        "compensation": COMPENSATIONS,
        "objective": OBJECTIVES,
        "search": SEARCHES,
        "gradual": GRADUAL,
    }
    return {**{kind: UNITS.get(kind).methods for kind in UNITS.names()}, **stages}


def slots() -> dict[str, Callable[[str], Any] | None]:
    """Return the slots for methods, each with the function that finds a class by name; None for a slot of one method."""
    return {
        **{slot: registry.get for slot, registry in registries().items()},
        **dict.fromkeys(("sense", "measured", "refit")),
    }


def _method(slot: str, value: Any) -> Any:
    """Make the method that a name, a switch, or a number of rounds stands for; return instances as they are."""
    if slot == "sense" and isinstance(value, str):
        return MeasuredCurves(currency=value)
    if slot == "refit" and value == CLASSIFIER:
        return ClassifierRefit()
    if isinstance(value, str):
        find = slots()[slot]
        if find is None:
            raise InputError(f"{slot} has no method {value!r}: switch it on or off")
        return find(value)()
    if slot == "measured" and isinstance(value, int):
        return MeasuredLosses(rounds=int(value)) if value else None
    if isinstance(value, bool):
        if value and slot != "refit":
            raise InputError(f"{slot}={value}: name a method")
        return OutputRefit() if value else None
    return value


def _varied(slot: str, method: Any, hyperparameter: str, value: Any) -> Any:
    known = [] if method is None else [each.name for each in fields(method)]
    if hyperparameter not in known:
        if method is None:
            raise InputError(f"the recipe has no {slot}, so {slot}.{hyperparameter} cannot be changed")
        raise unknown(f"hyperparameter of {type(method).__name__}", hyperparameter, known)
    return replace(method, **{hyperparameter: tuple(value) if isinstance(value, list) else value})


def _name(slot: str, method: Any) -> str | None:
    registry = registries().get(slot)
    return None if method is None or registry is None else registry.name_of(method)


def recipe_of(record: Mapping[str, Any]) -> Recipe:
    """Make the recipe that a record describes; hyperparameters that an old record lacks take their defaults."""
    recipe = Recipe(name=record["name"], units={}, about=record.get("about", ""))
    methods = {slot: record.get(slot) for slot in slots() if record.get(slot)}
    changes = {**methods, **{name: record[name] for name in (*PLAIN, "labelled") if name in record}}
    if "objective" not in record.get("hyperparameters", {}):
        changes["probe"] = record["probe"]
    if record.get("compensation") is not None:
        changes["budget"] = record["budget"]
    for slot, hyperparameters in record.get("hyperparameters", {}).items():
        changes |= {f"{slot}.{name}": value for name, value in hyperparameters.items()}
    undecided: dict[str, Any] = {
        name: None for name in ("pivoted", "tokens") if name in record and record[name] is None
    }
    return replace(recipe.but(**changes), **undecided)

"""The named recipes, as data: which method stands at which stage."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from lowrank_vit.errors import InputError
from lowrank_vit.registry import unknown


@dataclass(frozen=True)
class Recipe:
    """A way to compress: names from the registries of decompositions, allocators and compensations.

    ``bias_correction`` puts the mean of what is lost into the bias; ranks are multiples of ``rank_multiple``. For the
    compensation: ``budget`` is Z's share of a layer's weight, ``solver`` is ``closed_form``, ``moments`` (Adam on the
    exact loss) or ``minibatch`` (the paper's), ``steps`` are the solver's. In place of a ``decomposition`` of single
    matrices, ``attention`` and ``mlp`` name those of whole modules, whose outputs ``refit`` fits anew, in closed form, to
    the inputs that the smaller model gives them. ``probe``: how the Fisher information is sampled. ``measured``: how many
    times their predicted losses are corrected by measured ones before the budget is spent.
    """

    name: str
    decomposition: str | None
    allocator: str
    compensation: str | None = None
    budget: float = 0.05
    solver: str = "closed_form"
    steps: int = 2000
    bias_correction: bool = False
    rank_multiple: int = 1
    attention: str | None = None
    mlp: str | None = None
    probe: str = "labels"
    refit: bool = False
    measured: int = 0
    about: str = ""

    def __post_init__(self) -> None:
        if self.rank_multiple < 1 or self.steps < 1:
            raise InputError(f"rank_multiple={self.rank_multiple}, steps={self.steps}: both must be at least 1")

    @property
    def halves(self) -> bool:
        """Whether whole attention modules and MLPs are taken, not single matrices."""
        return self.attention is not None

    def but(self, **changes: Any) -> Recipe:
        """The recipe with some fields changed; ``None`` leaves a field as it is."""
        given = {name: value for name, value in changes.items() if value is not None}
        unknown_fields = given.keys() - self.__dataclass_fields__.keys()
        if unknown_fields:
            raise InputError(f"a recipe has no field {sorted(unknown_fields)[0]!r}")
        return replace(self, **given)


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("svd", "svd", "uniform", about="plain SVD of the weight, the same share of every layer"),
        Recipe("fwsvd", "fwsvd", "uniform", about="SVD with rows weighted by the diagonal Fisher (Hsu et al.)"),
        Recipe("asvd", "asvd", "uniform", about="SVD of the weight scaled by input magnitudes (Yuan et al.)"),
        Recipe("svd_llm", "whitened", "uniform", about="whitened SVD, the same share of every layer (Wang et al.)"),
        Recipe("aafm", "aafm", "greedy", bias_correction=True, about="PCA of the output, mixed ranks (Yu and Wu)"),
        Recipe(
            "paper",
            "representative",
            "paper",
            compensation="low_rank",
            solver="minibatch",
            about="the paper as written: SVD on the mean image, Algorithm 1, low-rank Z by Adam (Azizi et al.)",
        ),
        Recipe(
            "exact",
            "whitened_centred",
            "knapsack",
            bias_correction=True,
            about="the exact minimiser of the paper's objective: whitened, centred, ranks by an exact knapsack",
        ),
        Recipe(
            "loss_aware",
            "two_sided",
            "knapsack",
            bias_correction=True,
            about="weighted by the loss's Fisher on the output side, ranks by predicted loss over the whole model",
        ),
        Recipe(
            "best",
            None,
            "knapsack",
            bias_correction=True,
            attention="heads",
            mlp="interpolative",
            probe="signs",
            refit=True,
            measured=1,
            about="attention by head, MLP by interpolation, one budget of predicted loss over the whole model",
        ),
    )
}


def get_recipe(name: str) -> Recipe:
    """The recipe called ``name``. Raises ``InputError`` with the nearest name otherwise."""
    if name not in RECIPES:
        raise unknown("recipe", name, RECIPES)
    return RECIPES[name]

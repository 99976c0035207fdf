"""Ours: the exact minimiser of the error of outputs, about their mean, with ranks by an exact knapsack."""

from dataclasses import dataclass
from typing import ClassVar

from lowrank_vit.compression.recipe import add_recipe
from lowrank_vit.methods.svd_llm import Whitened
from lowrank_vit.records.looks import look
from lowrank_vit.stages.decompose import DECOMPOSITIONS


@DECOMPOSITIONS.register("whitened_centred")
@dataclass(frozen=True)
class WhitenedCentred(Whitened):
    """Minimise ``E||(x - mu)(W - U V^T)||^2``, which leaves the mean error to the bias, ``b += mu (W - U V^T)``.

    All images count alike; the paper's (3) divides the error of each by its energy: ``WhitenedCentredNormalised``.
    """

    centred: ClassVar[bool] = True


@DECOMPOSITIONS.register("whitened_normalised")
@dataclass(frozen=True)
class WhitenedNormalised(Whitened):
    """Minimise ``E_i[||X_i (W - U V^T)||_F^2 / ||X_i W||_F^2]``, image by image as the paper's (3) has it."""

    normalised: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"normalised_second"})


@DECOMPOSITIONS.register("whitened_centred_normalised")
@dataclass(frozen=True)
class WhitenedCentredNormalised(WhitenedNormalised):
    """Minimise ``E_i[||(X_i - mu)(W - U V^T)||_F^2 / ||X_i W||_F^2]``: (3), the mean of all tokens left to the bias."""

    centred: ClassVar[bool] = True


add_recipe(
    "exact",
    units={"decomposition": WhitenedCentred()},
    bias_correction=True,
    about="the exact minimiser of the mean squared error of outputs: whitened, centred, ranks by an exact knapsack",
)
add_recipe(
    "exact_normalised",
    units={"decomposition": WhitenedCentredNormalised()},
    bias_correction=True,
    about="exact, with the error of each image divided by its energy, as the paper's (3) has it",
)
look("exact", "o", (), "black", "Ours")
look("exact_normalised", "o", (5, 2), "violet")

"""Searches for the sizes of all parts at once, one file each: what a size is worth while all others change, too."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from lowrank_vit.linalg.mixtures import Mixture
from lowrank_vit.objectives import Objective
from lowrank_vit.records.curves import ErrorCurve
from lowrank_vit.runtime.registry import Registry

Sizes = Sequence[int | None]


@dataclass(frozen=True)
class Part:
    """Describe a part whose size is searched: its curve, and the dense model's parameters for shares of any sizes."""

    curve: ErrorCurve
    mixture: Callable[[Sizes], Mixture]
    width: int  # of the stream, which sets what ranks are usual


@dataclass(frozen=True)
class Question:
    """Hold what a search is told: a dense model, its parts, what they may cost together, and calibration images.

    ``labels``: of the images, (N,), where the search reads them. ``budget``: in the prices of the curves.
    """

    model: nn.Module
    parts: Sequence[Part]
    budget: int
    objective: Objective
    images: Tensor  # shape: (N, C, H, W)
    labels: Tensor | None
    seed: int
    progress: bool


class Search(Protocol):
    """Define the interface of a search."""

    @property
    def images(self) -> int:
        """Return how many calibration images it sees, at most."""

    @property
    def labelled(self) -> bool:
        """Tell whether it reads labels."""

    def passes(self, images: int) -> float:
        """Return how many forward passes of one image a search on so many takes."""

    def __call__(self, question: Question) -> list[ErrorCurve]:
        """Return the parts' curves, with the search's preferences in place of losses, for a knapsack."""


SEARCHES: Registry[Any] = Registry("search", __name__)

"""COMCAT's differentiable search: every unit's size is a mixture, whose shares are learnt with the weights frozen."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from lowrank_vit.linalg.mixtures import Mixture
from lowrank_vit.modules.predicting import logits_of, predict
from lowrank_vit.records.curves import ErrorCurve
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.progress import track
from lowrank_vit.runtime.registry import unknown
from lowrank_vit.stages.search import SEARCHES, Part, Question, Sizes

LAGRANGIAN, WRITTEN = "lagrangian", "written"
EVEN, OFFICIAL = "even", "official"
TEACHER, LABELS = "teacher", "labels"
COUNT = 8  # even candidates of a unit, beside dense
NEVER = 1e3  # the preference, in nats, below the smallest candidate: taken only where no other choice meets the budget


@SEARCHES.register("gates")
@dataclass(frozen=True)
class Gates:
    """Learn logits alpha of every unit's candidate sizes, on mixtures with Gumbel-softmax shares p (COMCAT, (5) and (6)).

    ``objective``: with ``c = E[cost] / budget``, ``"lagrangian"``, ours: ``loss + m (c - 1)``, the multiplier m from 1 on
    raised by ``ascent (c - 1)`` a step and never negative; or ``"written"``, the paper's code: ``loss c^beta`` as long as
    c is above 1, else the loss, which on images that the model knows by heart costs next to nothing, so that it
    overshoots. ``target``: the loss is the divergence from the dense model, ``"teacher"``, or cross-entropy, ``"labels"``.
    ``candidates``: eight ``"even"`` sizes up to the largest that saves anything, or the ``"official"`` code's; and dense.
    Alpha takes one step of Adam with ``lr`` for each ``batch_size`` images, ``epochs`` times all; the temperature of the
    shares falls from ``hot`` to ``cold``. Noise and order come from the seed.
    """

    objective: str = LAGRANGIAN
    target: str = TEACHER
    candidates: str = EVEN
    images: int = 1024
    epochs: int = 12
    batch_size: int = 64
    lr: float = 0.1
    hot: float = 5.0
    cold: float = 0.1
    ascent: float = 0.2
    beta: float = 1.5

    def __post_init__(self) -> None:
        for kind, value, known in (
            ("objective of a search", self.objective, (LAGRANGIAN, WRITTEN)),
            ("target of a search", self.target, (TEACHER, LABELS)),
            ("row of candidates", self.candidates, (EVEN, OFFICIAL)),
        ):
            if value not in known:
                raise unknown(kind, value, known)
        if min(self.images, self.epochs, self.batch_size) < 1 or min(self.lr, self.hot, self.cold) <= 0:
            raise InputError(
                "a search needs images, epochs and batch_size of at least 1, and positive lr, hot and cold"
            )

    @property
    def labelled(self) -> bool:
        return self.target == LABELS

    def passes(self, images: int) -> float:
        """Return the dense pass of every image, and in every epoch a forward and a backward pass, which counts two."""
        return (1 + 3 * self.epochs) * min(images, self.images)

    def __call__(self, question: Question) -> list[ErrorCurve]:
        """Return each part's curve with ``-log p`` for its loss, about that of the dense choice.

        A size between two candidates is worth what the smaller one is.
        """
        sizes = [self.sizes(part) for part in question.parts]
        logits = self.learnt(question, sizes)
        parts = zip(question.parts, sizes, logits, strict=True)
        return [preferring(part.curve, own, alpha.log_softmax(0)) for part, own, alpha in parts]

    def sizes(self, part: Part) -> list[int | None]:
        """Return the candidates of a part: of the sizes that an allocator may choose, and dense."""
        ranks = part.curve.ranks
        if not ranks:
            return [None]
        wanted = official(part.width) if self.candidates == OFFICIAL else even(ranks[-1])
        steps = {int((size - ranks[0]) // ranks.step) for size in wanted if size <= ranks[-1]}
        return [*sorted({ranks[max(step, 0)] for step in steps}), None]

    def learnt(self, question: Question, sizes: Sequence[Sizes]) -> list[Tensor]:
        """Learn alpha of every part, (candidates,), and return it on the CPU."""
        model, device = question.model, next(question.model.parameters()).device
        mixtures = [part.mixture(own) for part, own in zip(question.parts, sizes, strict=True)]
        prices = [
            torch.tensor([part.curve.cost(size) for size in own], dtype=torch.float64) / question.budget
            for part, own in zip(question.parts, sizes, strict=True)
        ]
        alphas = [torch.zeros(len(own), dtype=torch.float64, requires_grad=True) for own in sizes]
        adam, generator = torch.optim.Adam(alphas, self.lr), torch.Generator().manual_seed(question.seed)
        multiplier, known = 1.0, _dense_readings(question, self.batch_size)
        steps = list(self._steps(len(question.images), generator))
        for heat, places in track(steps, "search", shown=question.progress):
            shares = [gumbel_softmax(alpha, heat, generator) for alpha in alphas]
            cost = torch.stack([own @ price for own, price in zip(shares, prices, strict=True)]).sum()
            outputs = mixed_outputs(model, mixtures, shares, question.images[places].to(device))
            loss = self._loss(question, outputs, known[places].to(device), places)
            adam.zero_grad()
            self.descended(loss, cost, multiplier).backward()
            adam.step()
            multiplier = max(0.0, multiplier + self.ascent * (float(cost.detach()) - 1))
        return [alpha.detach() for alpha in alphas]

    def _steps(self, images: int, generator: torch.Generator) -> Iterator[tuple[float, Tensor]]:
        for epoch in range(self.epochs):
            heat = self.hot * (self.cold / self.hot) ** (epoch / max(self.epochs - 1, 1))
            for places in torch.randperm(images, generator=generator).split(self.batch_size):
                yield heat, places

    def _loss(self, question: Question, outputs: Tensor, dense: Tensor, places: Tensor) -> Tensor:
        """Return the loss of a batch, the mean of its images."""
        if self.labelled:
            assert question.labels is not None
            return F.cross_entropy(outputs.double(), question.labels[places].to(outputs.device))
        objective = question.objective
        return objective.divergence(dense, objective.reading(outputs)) / len(places)

    def descended(self, loss: Tensor, cost: Tensor, multiplier: float) -> Tensor:
        """Return the objective that a step descends."""
        loss = loss.cpu()
        if self.objective == LAGRANGIAN:
            return loss + multiplier * (cost - 1)
        return loss * cost.clamp_min(1.0) ** self.beta


def even(largest: int) -> list[int]:
    """Return ``COUNT`` evenly spaced sizes up to the largest."""
    return [round(largest * place / COUNT) for place in range(1, COUNT + 1)]


def official(width: int) -> list[int]:
    """Return the ranks of COMCAT's code, of all heads together or of a layer, in a model of this width.

    Steps of 64 from 128 to 512 for 768; for 192 and 384, and here for all others, sixths of the width up to five.
    """
    return list(range(128, 513, 64)) if width == 768 else [width * sixth // 6 for sixth in range(1, 6)]


def gumbel_softmax(alpha: Tensor, heat: float, generator: torch.Generator) -> Tensor:
    """Return ``softmax((alpha + G) / heat)``, G standard Gumbel noise from the generator."""
    noise = torch.rand(alpha.shape, generator=generator, dtype=alpha.dtype).clamp(1e-12, 1 - 1e-12)
    return ((alpha - (-noise.log()).log()) / heat).softmax(0)


def mixed_outputs(model: nn.Module, mixtures: Sequence[Mixture], shares: Sequence[Tensor], images: Tensor) -> Tensor:
    """Return the dense model's outputs with the mixtures as weights, differentiable in the shares."""
    first = next(model.parameters())
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    for mixture, own in zip(mixtures, shares, strict=True):
        weights |= {name: made(own.to(first)) for name, made in mixture.items()}
    return logits_of(functional_call(model, weights, (images.to(first),)))


def preferring(curve: ErrorCurve, sizes: Sizes, logs: Tensor) -> ErrorCurve:
    """Return the curve with ``log p(dense) - log p(size)`` for its losses; ``logs``: of the candidates, dense the last.

    Between candidates it is that of the smaller one; below them all, worse than any, and the worse the smaller.
    """
    worth = (logs[-1] - logs).tolist()
    smallest = next((size for size in sizes if size is not None), 0)
    below = NEVER * (1 + torch.arange(smallest, 0, -1, dtype=torch.float64) / max(smallest, 1))
    steps = [len(curve.errors) if size is None else size for size in sizes]
    parts = [
        torch.full((end - begin,), own, dtype=torch.float64)
        for (begin, end), own in zip(pairwise(steps), worth, strict=False)
    ]
    return replace(curve, errors=torch.cat([max(worth, default=0.0) + below, *parts])) if parts else curve


def _dense_readings(question: Question, batch_size: int) -> Tensor:
    model, reading, device = question.model, question.objective.reading, next(question.model.parameters()).device
    with torch.no_grad():
        parts = [reading(predict(model, images.to(device))).cpu() for images in question.images.split(batch_size)]
    return torch.cat(parts)

"""Solvers for the compensation Z that need the moments, not the images; and the optimisers of all gradient solvers."""

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.progress import progress_bars
from lowrank_vit.runtime.registry import unknown
from lowrank_vit.runtime.tensors import storable
from lowrank_vit.stages.compensate import Compensation, State, quadratic, squared_error

ADAM, SGD = "adam", "sgd"
SOLVERS = ("closed_form", "moments")  # "minibatch", which needs the images and Lightning, is in ``minibatch.py``


def _adam(parameters: Iterable[Tensor], lr: float) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=lr, fused=True)


def _sgd(parameters: Iterable[Tensor], lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=lr)  # the paper names no momentum, and no decay


OPTIMIZERS: dict[str, Callable[[Iterable[Tensor], float], torch.optim.Optimizer]] = {ADAM: _adam, SGD: _sgd}


def check_optimizer(name: str) -> None:
    """Raise ``InputError`` unless the optimiser is known."""
    if name not in OPTIMIZERS:
        raise unknown("optimizer", name, OPTIMIZERS)


def make_optimizer(name: str, parameters: Iterable[Tensor], lr: float) -> torch.optim.Optimizer:
    """Make the optimiser for the parameters of all layers, at a constant learning rate as in the paper.

    One for all layers is one for each: it works element by element, and the layers' losses are summed.
    Raises ``InputError`` for an unknown one.
    """
    check_optimizer(name)
    return OPTIMIZERS[name](parameters, lr)


@storable
@dataclass(frozen=True)
class Solution:
    """Hold Z of one layer. Losses are (10), the error relative to ``||X_i W||_F^2``, over the whole calibration set."""

    compensation: Compensation
    state: State  # float64, L is 1
    loss_before: float  # without Z
    loss_after: float
    curve: tuple[tuple[int, float], ...] = ()  # steps done, loss then; a batch's loss where batches are seen

    @property
    def kind(self) -> str:
        """Return the registered name of this kind of Z."""
        return self.compensation.kind

    @property
    def parameters(self) -> int:
        """Count the values of Z."""
        return self.compensation.parameter_count(*self.state.shape)

    def dense(self) -> Tensor:
        """Return Z, (n, d)."""
        return self.compensation.dense(self.state)[0]

    def factors(self) -> tuple[Tensor, Tensor] | None:
        """Return ``G, Y`` to fold into ``[U G] [V Y]^T``, or ``None`` for a Z that does not fold."""
        return self.compensation.factors(self.state, 0)

    def module(self) -> nn.Module:
        """Make the deployable module, float64."""
        return self.compensation.module(self.state, 0)


@dataclass(frozen=True)
class Group:
    """Hold layers of one shape, stacked."""

    names: tuple[str, ...]
    residual: Tensor  # shape: (L, n, d)
    moment: Tensor  # shape: (L, n, n)

    def start(self, compensation: Compensation, seed: int) -> State:
        """Return where gradient solvers start. A layer's seed depends on its name, not on the layers beside it."""
        seeds = [zlib.crc32(f"{seed}/{name}".encode()) for name in self.names]
        return compensation.start(self.residual, self.moment, seeds)

    def solutions(
        self, compensation: Compensation, state: State, curves: Sequence[tuple[int, Tensor]] = ()
    ) -> dict[str, Solution]:
        """Return each layer's solution, with exact losses. curves: steps done, and the losses then, (L,)."""
        state = state.to(self.residual.device, self.residual.dtype)
        before = squared_error(torch.zeros_like(self.residual), self.residual, self.moment).tolist()
        after = squared_error(compensation.dense(state).detach(), self.residual, self.moment).tolist()
        points = [(step, losses.tolist()) for step, losses in curves]
        return {
            name: Solution(
                compensation, state.layer(i), before[i], after[i], tuple((step, losses[i]) for step, losses in points)
            )
            for i, name in enumerate(self.names)
        }


def by_shape(residuals: Mapping[str, Tensor], moments: Mapping[str, Tensor]) -> Iterator[Group]:
    """Yield the layers in groups of one shape, each stacked when its turn comes.

    Raises ``InputError`` for a layer without a moment, or with numbers that are not finite.
    """
    shapes: dict[torch.Size, list[str]] = {}
    for name, residual in residuals.items():
        if name not in moments:
            raise InputError(f"layer {name!r} has no moments: collect 'normalised_input_second'")
        if not (residual.isfinite().all() and moments[name].isfinite().all()):
            raise InputError(f"layer {name!r} has moments or weights that are not finite")
        shapes.setdefault(residual.shape, []).append(name)
    for names in shapes.values():
        stacks = (torch.stack([tensors[name] for name in names]) for tensors in (residuals, moments))
        yield Group(tuple(names), *stacks)


def solve(
    compensation: Compensation,
    residuals: Mapping[str, Tensor],
    moments: Mapping[str, Tensor],
    solver: str = "closed_form",
    *,
    steps: int = 2000,
    lr: float = 1e-3,
    optimizer: str = ADAM,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    record_every: int = 50,
    progress: bool = False,
) -> dict[str, Solution]:
    """Find Z of every layer: the minimiser of (10), ``tr((Z - R)^T M (Z - R))``.

    residuals: name to R, (n, d); moments: name to ``M = (1/N) sum_i X_i^T X_i / ||X_i W||_F^2``, (n, n); float64.
    ``"closed_form"`` is exact. ``"moments"`` descends by (11)(12) over the whole calibration set at once, with the
    paper's constant learning rate and number of steps; ``optimizer``: ``"adam"``, ours, or ``"sgd"``, the paper's plain
    descent; ``dtype``: float64 as the statistics are; float32 ends at the same loss to 1e-5 and is faster on a GPU.
    Raises ``InputError`` for an unknown solver or optimiser, steps below one, or a layer whose moments cannot be used.
    """
    if solver not in SOLVERS:
        raise unknown("solver", solver, SOLVERS)
    if steps < 1 or lr <= 0:
        raise InputError(f"steps={steps}, lr={lr}: both must be positive")
    solutions: dict[str, Solution] = {}
    with progress_bars(progress) as bar:
        if solver == "closed_form":
            for name, residual in bar.track(residuals.items(), description="compensate"):
                for group in by_shape({name: residual}, moments):
                    solutions |= group.solutions(compensation, compensation.closed_form(group.residual, group.moment))
        else:
            task = bar.add_task("compensate", total=steps * len({residual.shape for residual in residuals.values()}))
            for group in by_shape(residuals, moments):
                state = group.start(compensation, seed).to(group.residual.device, dtype)
                descent = make_optimizer(optimizer, [z.requires_grad_() for z in state.trainable.values()], lr)
                curve = _descend(compensation, state, group, descent, steps, record_every, lambda: bar.advance(task))
                solutions |= group.solutions(compensation, state, curve)
    return {name: solutions[name] for name in residuals}


def _descend(
    compensation: Compensation,
    state: State,
    group: Group,
    optimizer: torch.optim.Optimizer,
    steps: int,
    record_every: int,
    tick: Callable[[], None],
) -> list[tuple[int, Tensor]]:
    """Train the state in place; return the losses, (L,), at every ``record_every``-th step."""
    target = group.moment @ group.residual
    energy = (group.residual * target).sum((1, 2))
    dtype = next(iter(state.trainable.values())).dtype
    moment, target, curve = group.moment.to(dtype), target.to(dtype), []
    for step in range(steps):
        loss = quadratic(compensation, state, moment, target)
        if step % record_every == 0:
            curve.append((step, energy + loss.detach()))
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
        tick()
    return curve

"""Cost of the steps that see all calibration images: peak memory with few and with many, and time beside its floor.

    python -m benchmarks.memory [--model deit_tiny_patch16_224] [--counts 256,1024] [--json FILE]

Memory is the process's, everything in it included. Seconds are its CPU seconds, for the lower number of images; a bare
forward pass stands right before and after each step, so that other work on the machine affects both alike. The floors:
of the refit, a forward pass of either model, the multiply-accumulates of the sums at the forward pass's rate (half of
every second moment, as they are symmetric), and the solutions; of the measured losses, the forward passes from the block
of each unit to the end, at the same rate. Random images and weights: speed does not depend on them.
"""

import argparse
import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from benchmarks.output import show, write
from benchmarks.ratios import macs, seconds
from lowrank_vit import Analysis, OutputRefit, analyse, get_recipe
from lowrank_vit.modules.counting import input_size
from lowrank_vit.modules.surgery import get_linear
from lowrank_vit.records.curves import RankPlan
from lowrank_vit.runtime.errors import amount
from lowrank_vit.runtime.tensors import Spill
from lowrank_vit.stages.correct.measured_losses import MeasuredLosses, Replay
from lowrank_vit.stages.correct.regression import Regression, cross_validated
from lowrank_vit.stages.evaluate.speed import resident_peak

FIRST = 16  # images of the analysis, which all steps start from
LIMITS = {"memory": 1.2, "time": 1.3}


@dataclass(frozen=True)
class Row:
    """Hold a step's peak memory with few and with many images, in bytes, its CPU seconds with few, and their floor."""

    step: str
    few: int | None
    many: int | None
    seconds: float
    floor: float

    @property
    def ratios(self) -> dict[str, float | None]:
        """Return both ratios, which have ``LIMITS``."""
        memory = None if self.few is None or self.many is None else self.many / self.few
        return {"memory": memory, "time": self.seconds / self.floor}


class Bench:
    """Hold a model, its analysis, a smaller model, and batches of images."""

    def __init__(self, model: nn.Module, batch: Tensor, reduction: float) -> None:
        recipe = get_recipe("heads").but(refit=False, measured=0)  # best: embeddings, too, which are not refitted
        self.batch = batch
        self.analysis: Analysis = analyse(model, list(batch[:FIRST].split(FIRST // 4)), recipe, device="cpu")
        self.model = self.analysis.model
        self.plan: RankPlan = self.analysis.plan(reduction)
        self.small, _ = self.analysis.apply(self.plan)
        outputs = [unit.linears[-1] for unit in self.analysis.units]
        self.outputs = {site.name: get_linear(self.small, site) for site in outputs}
        moments = self.analysis.moments
        self.sensitivities = {name: moments[name].sums["sensitive_tokens"] for name in self.outputs}
        self.macs = macs(lambda: self.model(batch[:1]))

    def batches(self, images: int) -> list[Tensor]:
        """Return as many images, of which there is one batch in memory."""
        whole, rest = divmod(images, len(self.batch))
        return [self.batch] * whole + ([self.batch[:rest]] if rest else [])

    def forward(self, model: nn.Module, images: int) -> float:
        """Return the CPU seconds of a bare forward pass."""
        with torch.inference_mode():
            return seconds(lambda: [model(batch) for batch in self.batches(images)])

    def beside_forward(self, run: Callable[[], object], models: Sequence[nn.Module], images: int) -> list[float]:
        """Return the CPU seconds of a call, and of each model's forward pass: the mean of one before it and one after."""
        before = [self.forward(model, images) for model in models]
        took = seconds(run)
        return [took, *((first + self.forward(model, images)) / 2 for model, first in zip(models, before, strict=True))]

    def refit(self, images: int) -> None:
        """Refit a copy of the smaller model."""
        OutputRefit()(self.model, copy.deepcopy(self.small), self.sensitivities, self.batches(images))

    def measure(self, images: int) -> None:
        """Measure all units."""
        self.analysis.measure(self.plan, self.batches(images), images)

    def measure_one(self, images: int) -> None:
        """Measure the first unit, from which a pass goes through all blocks: it takes as much memory as all units."""
        with Spill() as kept:
            replay = Replay(self.model, self.analysis.recipe.objective, self.batches(images), images, kept)
            name = self.analysis.decomposed[0].name
            replay.divergence(name, self.small.get_submodule(name))

    def refit_row(self, few: int, many: int) -> Row:
        """Measure the refit."""
        took, dense, small = self.beside_forward(lambda: self.refit(few), (self.model, self.small), few)
        tokens = next(iter(self.sensitivities.values())).shape[0]
        sums = sum(
            tokens * (layer.in_features * (layer.in_features + 1) // 2 + layer.in_features * layer.out_features)
            for layer in self.outputs.values()
        )
        floor = dense * (1 + sums / self.macs) + small + seconds(lambda: list(map(solved, self.outputs.values())))
        return self._row("refit", self.refit, few, many, took, floor)

    def measured_row(self, few: int, many: int) -> Row:
        """Measure what the measured losses cost: their time for as many images as the method takes."""
        images = min(few, MeasuredLosses.images)
        took, dense = self.beside_forward(lambda: self.measure(images), (self.model,), images)
        least = self.macs
        with Spill() as kept:
            replay = Replay(self.model, self.analysis.recipe.objective, [self.batch[:1]], 1, kept)
            for decomposed in self.analysis.decomposed:
                units = {curve.name: None for curve in self.analysis.curves_by_unit[decomposed.name]}
                for unit in units:
                    rank = self.plan.ranks[unit]
                    small = decomposed.cut(
                        {**units, unit: decomposed.probe_rank(unit) if rank is None else rank}
                    ).fold()
                    least += macs(partial(replay.divergence, decomposed.name, small))
        return self._row("measured losses", self.measure_one, few, many, took, dense * least / self.macs)

    def _row(self, step: str, run: Callable[[int], None], few: int, many: int, took: float, floor: float) -> Row:
        peaks = [resident_peak(partial(run, images)) for images in (few, many)]
        first, last = (None if peak is None else peak[1] for peak in peaks)
        return Row(step, first, last, took, floor)


def solved(layer: nn.Linear) -> object:
    """Solve for a layer's change as the refit does, given sums of some rows."""
    k, d = layer.in_features, layer.out_features
    rows = torch.randn(2 * k, k), torch.randn(2 * k, d), torch.ones(2 * k)
    folds = [Regression.empty(k, d) for _ in range(OutputRefit.folds)]
    for fold in folds:
        fold.add(*rows)
    return cross_validated(folds, OutputRefit.ridges)


def lines(rows: Sequence[Row]) -> list[list[str]]:
    """Return the cells of the table; a ratio above its limit is marked."""
    found = []
    for row in rows:
        sizes = ("" if size is None else f"{size / 2**20:.0f}" for size in (row.few, row.many))
        ratios = {
            name: "" if ratio is None else f"{ratio:.2f}" + (" (!)" if ratio > LIMITS[name] else "")
            for name, ratio in row.ratios.items()
        }
        found.append([row.step, *sizes, ratios["memory"], f"{row.seconds:.1f}", f"{row.floor:.1f}", ratios["time"]])
    return found


def main() -> None:
    """Measure both steps and print the table."""
    parser = argparse.ArgumentParser(description="Peak memory and time of the refit and of measured losses.")
    parser.add_argument("--model", default="deit_tiny_patch16_224")
    parser.add_argument("--counts", default="256,1024", metavar="FEW,MANY", help="calibration images")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--reduction", type=float, default=0.4, help="of the smaller model")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    few, many = map(int, args.counts.split(","))
    torch.manual_seed(0)
    model = timm.create_model(args.model).eval()
    size = input_size(model)
    assert size is not None
    bench = Bench(model, torch.randn(args.batch, *size), args.reduction)
    rows = [bench.refit_row(few, many), bench.measured_row(few, many)]
    title = f"{args.model}, {few} and {many} images, {amount(torch.get_num_threads(), 'thread')}"
    header = ("step", f"MiB, {few}", f"MiB, {many}", "ratio", f"CPU s, {few}", "floor", "ratio")
    show(title, header, lines(rows))
    data = {"model": args.model, "limits": LIMITS, "rows": [asdict(row) | {"ratios": row.ratios} for row in rows]}
    write(args.json, title, header, lines(rows), data)


if __name__ == "__main__":
    main()

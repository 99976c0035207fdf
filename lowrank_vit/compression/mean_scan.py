"""VMeanba: scans with one hidden channel in the place of all (Chi et al. 2024, arXiv 2412.16602), and what really helps.

All scans are replaced, the least important ones, or as many as a drop in accuracy allows. VMamba norms the scan's output over
channels. What is the same for all channels is annihilated by it, so that a scan of the mean channel, copied back to each, has
no influence: with the skip by channel the mixer computes ``W_out LN(D u)``, as if the scan were left out; with the skip
averaged, too, the constant ``W_out beta``. A refit of the output layer, by closed form, makes up for it; what the mean
channel's scan knows can then be added behind the norm.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lowrank_vit.architectures.base import family_of, first_inputs
from lowrank_vit.architectures.vmamba import mixers
from lowrank_vit.compression import report as reporting
from lowrank_vit.modules.predicting import predict
from lowrank_vit.modules.scans import LEFT_OUT, MODES, SKIPS, SS2D, Scan, SmallScan
from lowrank_vit.modules.surgery import exchanged, replace_module
from lowrank_vit.objectives import divergences, objective_for
from lowrank_vit.objectives.classification import Classification
from lowrank_vit.records.images import Batches, Images, images_in, known_labels
from lowrank_vit.records.report import Report
from lowrank_vit.runtime import provenance
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.hardware import resolve_device
from lowrank_vit.runtime.progress import Stopwatch, track
from lowrank_vit.runtime.registry import unknown
from lowrank_vit.stages.correct.output_refit import Streams
from lowrank_vit.stages.correct.regression import Regression
from lowrank_vit.stages.evaluate.accuracy import count_hits

DROP = 3.0  # points of accuracy that the paper allows
# the features of the scan that the output layer is fitted on, beside what it was given
REFITS = {"dropped": "constant", "mean": "mean", "directions": "directions", "pooled": "pooled"}
Modules = Mapping[str, nn.Module]
RIDGE = 1e-3  # of the mean second moment of the features


@dataclass(frozen=True)
class MeanScan:
    """Describe how a scan is replaced: what is averaged over its channels, and whether the output layer is refitted.

    ``mode``: ``inputs`` of the scan, as a fused kernel takes them; ``discretised``, the paper's figure read literally;
    ``output``; or ``left_out``, no scan at all. ``skip``: ``mean``, or ``channel``, where D u stays as it is. ``refit``: the
    output layer is fitted on what it is given without a scan (``dropped``), and with the scan of the mean channel joined
    behind the norm, merged (``mean``) or each direction apart (``directions``), or with the mean of the map (``pooled``).
    Raises ``InputError`` for unknown names.
    """

    mode: str = "inputs"
    skip: str = "mean"
    refit: str | None = None

    def __post_init__(self) -> None:
        for what, value, names in (
            ("mode of a scan", self.mode, MODES),
            ("skip of a scan", self.skip, SKIPS),
            ("refit of a scan", self.refit, (None, *REFITS)),
        ):
            if value not in names:
                raise unknown(what, str(value), [name for name in names if name is not None])

    def __call__(self, scan: Scan, dim: int) -> SmallScan:
        """Make the smaller scan of a mixer of the width ``dim``; the part to be refitted adds nothing yet."""
        if self.refit is None:
            return SmallScan.of(scan, dim, self.mode, self.skip)
        scanned = self.refit in ("mean", "directions") and self.mode != LEFT_OUT
        if self.refit in ("mean", "directions") and not scanned:
            raise InputError(
                f"refit={self.refit!r} reads the scan, and mode={LEFT_OUT!r} leaves it out: choose another"
            )
        return SmallScan.of(scan, dim, self.mode if scanned else LEFT_OUT, features=REFITS[self.refit])


def mean_scan(
    model: nn.Module,
    calibration: Batches | Images,
    *,
    layers: int | None = None,
    drop: float | None = None,
    method: MeanScan = MeanScan(),
    held_out: Batches | Images | None = None,
    device: str = "auto",
    progress: bool = False,
) -> tuple[nn.Module, Report]:
    """Replace the scans whose replacement alone costs least, and refit their mixers where the method says so.

    ``calibration``: batches of training images, with labels to rank scans by accuracy, else by divergence. ``layers``: how
    many; or ``drop``: as many as lose no more points on these images together, before a refit (3 by default). The model
    can be compressed afterwards. ``held_out``: for the divergence on unseen images. Returns the model and its report.
    Raises ``InputError`` for a model without scans, and for a number that it does not have.
    """
    seen = Images.of(calibration)
    where, watch, home = resolve_device(device), Stopwatch(), next(model.parameters()).device
    model = copy.deepcopy(model).to(where).eval()
    scans = _small(model, method, layers)
    with watch("impact"):
        alone = {name: {name: scan} for name, scan in scans.items()}
        impact = impacts(model, alone, seen.batches, progress=progress)
        chosen, together = _chosen(model, scans, impact, seen.batches, layers, drop)
    small = copy.deepcopy(model)
    for name in chosen:
        replace_module(small, name, scans[name])
    if method.refit is not None and chosen:
        with watch("refit"):
            refit_mixers(model, small, chosen, seen.each(), progress=progress)
    report = reporting.dense_report(model)
    report["params"], report["macs"] = reporting.size_entries(model, small)
    report["seconds"], report["provenance"] = watch.seconds, provenance.record(where, 0, seen.record)
    report["scan"] = {**_record(method, impact, chosen, together), **_divergence(model, small, held_out)}
    small.compression_report = report  # type: ignore[assignment]  # plain data, so that save() finds it
    return small.to(home), report


def _record(
    method: MeanScan, impact: Mapping[str, Impact], chosen: Sequence[str], together: Impact | None
) -> dict[str, Any]:
    """Describe how scans were replaced, what replacing each alone costs, and which ones were replaced."""
    return {
        **asdict(method),
        "impact": {name: asdict(found) for name, found in impact.items()},
        "replaced": list(chosen),
        "K": len(chosen),
        "drop_calibration": None if together is None else together.top1,
    }


def _divergence(model: nn.Module, small: nn.Module, held_out: Batches | Images | None) -> dict[str, float]:
    """Measure the divergence on unseen images; nothing without any."""
    if held_out is None:
        return {}
    unseen, objective = Images.of(held_out), objective_for(model, Classification())
    return {f"{objective.measures}_held_out": divergences(objective, model, [small], unseen.each())[0]}


def _small(model: nn.Module, method: MeanScan, layers: int | None) -> dict[str, SmallScan]:
    """Make the smaller scans of a model, by name. Raises ``InputError`` where there are none, or fewer than ``layers``."""
    found = {f"{name}.scan": mixer for name, mixer in mixers(model).items() if type(mixer.scan) is Scan}
    if not found:
        raise InputError(
            f"{reporting.architecture(model)} has no scans that could be replaced: choose a VMamba (`list models`)"
        )
    if layers is not None and not 0 <= layers <= len(found):
        raise InputError(f"{layers} layers cannot be replaced: the model has {len(found)} scans")
    return {name: method(mixer.whole_scan, mixer.out_proj.out_features) for name, mixer in found.items()}


def _chosen(
    model: nn.Module,
    small: Mapping[str, SmallScan],
    impact: Mapping[str, Impact],
    batches: Batches,
    layers: int | None,
    drop: float | None,
) -> tuple[list[str], Impact | None]:
    """Return the scans to replace, in the model's order, and what they cost together."""
    if layers is not None and drop is not None:
        raise InputError("a number of layers and a drop exclude each other: give one of them")

    def measure(names: Sequence[str]) -> Impact:
        return impacts(model, {"": {name: small[name] for name in names}}, batches)[""]

    order = ranked(impact)
    if layers is None:
        names, together = most_within(DROP if drop is None else drop, order, measure)
    else:
        names, together = order[:layers], measure(order[:layers])
    return [name for name in small if name in names], together


@dataclass(frozen=True)
class Impact:
    """Hold what replacing some scans costs: ``top1``, percentage points lost, None without labels; ``kl`` in nats."""

    top1: float | None
    kl: float


def impacts(
    model: nn.Module, variants: Mapping[str, Modules], batches: Batches, *, progress: bool = False
) -> dict[str, Impact]:
    """Measure each variant of a model: modules, by name, that replace its own.

    Where an image has no label, no accuracy is measured. Raises ``InputError`` for no images.
    """
    lost, kl, count, labelled = dict.fromkeys(variants, 0.0), dict.fromkeys(variants, 0.0), 0, True
    device = next(model.parameters()).device
    for batch in track(batches, "impact", shown=progress):
        images, labels = images_in(batch).to(device), known_labels(batch)
        labelled, count = labelled and labels is not None, count + len(images)
        with torch.inference_mode():
            dense = predict(model, images).double().log_softmax(-1)
            for name, modules in variants.items():
                with ExitStack() as stack:
                    for place, module in modules.items():
                        stack.enter_context(exchanged(model, place, module))
                    small = predict(model, images).double().log_softmax(-1)
                kl[name] += float((dense.exp() * (dense - small)).sum())
                if labels is not None:
                    answers = labels.to(device)
                    lost[name] += float(count_hits(dense, answers, 1) - count_hits(small, answers, 1))
    if not count:
        raise InputError("no images to measure the scans on: the calibration set is empty")
    return {name: Impact(100 * lost[name] / count if labelled else None, kl[name] / count) for name in variants}


def ranked(found: Mapping[str, Impact]) -> list[str]:
    """Return the names, least impact first: by accuracy, then divergence, then depth; by divergence without accuracy."""
    return sorted(found, key=lambda name: (found[name].top1 or 0.0, found[name].kl))


def most_within(
    drop: float, order: Sequence[str], measure: Callable[[Sequence[str]], Impact]
) -> tuple[list[str], Impact | None]:
    """Return the longest prefix of ``order`` that loses at most ``drop`` points, as do all shorter ones.

    ``measure``: what replacing some of them together costs. Raises ``InputError`` where there are no labels.
    """
    chosen: list[str] = []
    last: Impact | None = None
    for place in range(1, len(order) + 1):
        found = measure(order[:place])
        if found.top1 is None:
            raise InputError(
                "a drop is measured on labelled images, and some have no label: choose the number of layers"
            )
        if found.top1 > drop:
            break
        chosen, last = list(order[:place]), found
    return chosen, last


@torch.no_grad()
def refit_mixers(
    dense: nn.Module, small: nn.Module, replaced: Collection[str], batches: Iterable[Tensor], *, progress: bool = False
) -> None:
    """Minimise ``E||y - h W - f V - b||^2 + ridge s (||W||^2 + ||V||^2)``, scan by scan from first to last, in place.

    y: the dense mixer's output; h, f: what the smaller mixer's output layer is given, and the features of its scan, where
    everything before it is smaller already; s: the mean second moment of both. All tokens are rows. ``replaced``: names
    of scans. Both streams are on the disk.
    """
    steps, device = family_of(dense).steps(dense), next(dense.parameters()).device
    inputs = first_inputs(dense, next(iter(steps.values())), (batch.to(device) for batch in batches))
    with Streams() as streams:
        for place, x in enumerate(inputs):
            streams.put(place, x, x)
        for name in track(list(steps), "refit", shown=progress):
            old, new = steps[name], small.get_submodule(name)
            if f"{name}.op.scan" in replaced:
                _refit(old, new, (streams.at(place, device) for place in range(len(streams))))
            for place in range(len(streams)):
                x, y = streams.at(place, device)
                streams.put(place, old(x), new(y))


def _refit(old: Any, new: Any, pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Refit the mixer of one block; ``pairs``: the inputs of the dense and of the smaller block."""
    mixer: SS2D = new.op
    scan, layer = mixer.scan, mixer.out_proj
    assert isinstance(scan, SmallScan)
    assert scan.bias is not None
    width, features = layer.in_features, 0 if scan.weight is None else scan.weight.shape[1]
    regression = Regression.empty(width + features, layer.out_features, layer.weight.device)
    for x, y in pairs:
        wanted = old.op(old.norm(x)).flatten(0, -2)
        u, gate = mixer.read(mixer.in_proj(new.norm(y)))
        given = mixer.written(scan(u)[0], gate)
        rows = torch.cat([given, scan.found(u)] if features else [given], -1).flatten(0, -2)
        regression.add(rows.float(), wanted.float(), rows.new_ones(len(rows), dtype=torch.float32))
    regression.gather()
    weight, shift = regression.solve(RIDGE)
    layer.weight.copy_(weight[:width].T)
    scan.bias.copy_(shift)
    if scan.weight is not None:
        scan.weight.copy_(weight[width:].T)

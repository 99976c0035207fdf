"""Sizes and bits of every module, chosen together under one budget of bytes."""

from collections.abc import Sequence
from functools import partial

from torch import nn

from lowrank_vit.compression.analysis import Analysis
from lowrank_vit.compression.joint.planning import JointPlanner
from lowrank_vit.compression.recipe import Recipe
from lowrank_vit.modules.quantized_linear import check_bits
from lowrank_vit.records.budgets import Size, budget_of
from lowrank_vit.records.report import Report
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.processes import rank_and_world
from lowrank_vit.stages.quantize import QUANTIZERS, Quantizer
from lowrank_vit.stages.quantize.inputs import input_moments
from lowrank_vit.stages.quantize.weights import quantize_each
from lowrank_vit.units.embeddings import PatchUnit

BITS = (2, 3, 4, 5, 6, 8)


def check_joint(recipe: Recipe, size: Size, bits: Sequence[int]) -> None:
    """Raise ``InputError``, before an image is seen, unless sizes and bits can be chosen together."""
    if isinstance(bits, int | str):
        raise InputError(f"bits={bits!r} leaves no choice: give several, such as (2, 3, 4, 6, 8)")
    for each in bits:
        check_bits(each)
    if not bits:
        raise InputError("no numbers of bits to choose from: give some of 2 to 8, as in 3,4,8")
    if budget_of(size).cost != "bytes":
        raise InputError("sizes and bits are chosen together in bytes: give a budget such as bytes=4MiB")
    if recipe.compensation is not None or recipe.pivoted:
        what = "a compensation Z" if recipe.compensation is not None else "pivoted factors"
        raise InputError(f"{what} and a choice of bits exclude each other: leave one of them out")
    if rank_and_world()[1] > 1:
        raise InputError("sizes and bits are chosen by one process: start one")


def compress_jointly(
    analysis: Analysis,
    size: Size,
    bits: Sequence[int] = BITS,
    *,
    quantizer: str | Quantizer = "gptq",
    dense: bool = False,
) -> tuple[nn.Module, Report]:
    """Make the most accurate model of at most ``size`` bytes on disk that the recipe's units and ``bits`` allow.

    ``size``: a budget in bytes, such as ``"bytes=4MiB"``; the file is at most 1 % smaller. ``bits``: from 2 to 8, to choose
    from for every linear layer of the units, the patch embedding and the classifier; all else is float16. ``dense``: no
    module is cut, bits alone are chosen.
    Raises ``InputError`` for a budget that no choice meets, and for a recipe with a Z or pivoted factors.
    """
    check_joint(analysis.recipe, size, bits)
    method = QUANTIZERS.get(quantizer)() if isinstance(quantizer, str) else quantizer
    plan = JointPlanner(analysis, sorted(set(bits)), method, dense).plan(budget_of(size))
    small, report = analysis.apply(plan.sizes)
    PatchUnit.prepare(small)

    observe = partial(input_moments, batches=analysis.images.each(), progress=analysis.services.progress)
    with analysis.services.watch("quantise"):
        quantized, entry = quantize_each(small, plan.bits, quantizer=method, observe=observe if method.needs else None)
    entry["calibration"] = analysis.images.record
    report = {**report, "quantization": entry}
    quantized.compression_report = report  # type: ignore[assignment]  # plain data, so that save() finds it
    return quantized.to(analysis.subject.home), report

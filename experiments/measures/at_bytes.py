"""Measure for table 4b what a file of a given size can do: by ranks, by bits, by both in turn, by both at once.

All ways that round may round the same layers: those of the blocks, the patch embedding and the classifier. Everything is
chosen on training images: those that calibrate, and those that are held out.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from experiments.jobs.job import Job
from experiments.jobs.ledger import Ledger
from experiments.jobs.measure import MEASURES, Measure, comparison_passes
from experiments.measures.layers import calibration_images, hardware_of, held_out_images
from lowrank_vit import InputError, analyse, compare, compress, evaluate, quantize, quantize_within
from lowrank_vit.data import ImageData
from lowrank_vit.modules.counting import parameter_count, saved_bytes
from lowrank_vit.records.images import Images

BITS = (2, 3, 4, 5, 6, 8)  # to choose from, alone and at once
IN_TURN = (8, 4)  # the paper's
OUTSIDE = 8  # bits of the patch embedding and the classifier where all blocks have the same
QUANTIZER = "gptq"
DIGITS = 6

Make = Callable[[nn.Module, Images, Images, int, Job], nn.Module]


def ranks(model: nn.Module, images: Images, unseen: Images, size: int, job: Job) -> nn.Module:
    """Reduce ranks until the file in float16 has ``size`` bytes."""
    header = stored(model) - 2 * sum(value.numel() for value in model.state_dict().values())
    small, _ = compress(model, images, job.recipe_used(), budget=f"bytes={2 * (size - header)}B", seed=job.seed)
    return quantize(small, 16)[0]


def bits(model: nn.Module, images: Images, unseen: Images, size: int, job: Job) -> nn.Module:
    """Round all blocks of the dense model to the most bits whose file has at most ``size`` bytes."""
    fitting = [each for each in BITS if stored(quantize(model, each, outside=OUTSIDE)[0]) <= size]
    if not fitting:
        raise InputError(f"the dense model does not fit into {size:,} bytes at any number of bits: ask for more")
    return quantize(model, max(fitting), images, quantizer=QUANTIZER, outside=OUTSIDE)[0]


def bits_by_layer(model: nn.Module, images: Images, unseen: Images, size: int, job: Job) -> nn.Module:
    """Choose the bits of every layer, and no ranks, by the knapsack of ``at_once``."""
    return quantize_within(
        model, images, f"bytes={size}B", bits=BITS, held_out=unseen, quantizer=QUANTIZER, seed=job.seed
    )[0]


def in_turn(model: nn.Module, images: Images, unseen: Images, size: int, job: Job) -> nn.Module:
    """Reduce ranks, then round, to each of the paper's two numbers of bits; keep the model nearer to the dense one."""
    analysis = analyse(model, images, job.recipe_used(), held_out=unseen, seed=job.seed)
    tried: list[tuple[float, nn.Module]] = []
    for each in IN_TURN:
        whole = stored(quantize(model, each, outside=OUTSIDE)[0])
        removed = max(0.0, (whole - size) / (parameter_count(model) * each / 8))
        while removed and size < stored(quantize(analysis.resized(analysis.plan(removed)), each, outside=OUTSIDE)[0]):
            removed += 0.005
        small = analysis.compress(removed)[0] if removed else model
        rounded = quantize(small, each, images, quantizer=QUANTIZER, outside=OUTSIDE)[0]
        tried.append((compare(model, rounded, unseen.each())["kl"], rounded))
    return min(tried, key=lambda one: one[0])[1]


def at_once(model: nn.Module, images: Images, unseen: Images, size: int, job: Job) -> nn.Module:
    """Choose sizes and bits together."""
    options: dict[str, Any] = {"budget": f"bytes={size}B", "bits": BITS, "held_out": unseen, "seed": job.seed}
    return compress(model, images, job.recipe_used(), **options)[0]


def stored(model: nn.Module) -> int:
    """Count the bytes of a model's file, floating values in float16."""
    return saved_bytes(model, torch.float16)


def allowed(model: nn.Module, job: Job) -> int:
    """Return the bytes that the file may have; the job's reduction is of the dense model's file in float32."""
    return round((1 - job.reduction) * saved_bytes(model, torch.float32))


def measure_of(make: Make, revision: int = 1) -> Measure:
    """Make the measure of one way to a file of a given size."""

    def run(model: nn.Module, data: ImageData, job: Job, ledger: Ledger) -> dict[str, Any]:
        """Measure "stored_top1" in percent, "stored_bytes", "params", and on held-out images "kl" and "agreement".

        "hits" are the images, in order, that were classified right.
        """
        size = allowed(model, job)
        ledger.tell(f"a file of {size:,} bytes")
        small = make(model, calibration_images(data), held_out_images(data), size, job)
        ledger.tell("evaluate")
        found = compare(model, small, data.held_out_dataloader())
        score = evaluate(small, data, hardware=hardware_of(model), progress=False, hits=True)
        return {
            "params": parameter_count(small),
            "stored_bytes": stored(small),
            "stored_top1": round(score["top1"], DIGITS),
            "hits": score["hits"],
            "kl": round(found["kl"], DIGITS),
            "agreement": round(found["agreement"], DIGITS),
        }

    return Measure(run, comparison_passes, ("quantise", f"quantizer.{QUANTIZER}"), revision=revision)


MEASURES.register("bytes_by_ranks")(measure_of(ranks))
MEASURES.register("bytes_by_bits")(measure_of(bits, revision=2))
MEASURES.register("bytes_by_bits_each")(measure_of(bits_by_layer))
MEASURES.register("bytes_in_turn")(measure_of(in_turn, revision=2))
MEASURES.register("bytes_at_once")(measure_of(at_once))

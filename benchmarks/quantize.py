"""What quantised weights cost in speed: seconds of a forward pass as a ratio to float32, beside torchao's int8.

    python -m benchmarks.quantize [--model deit_tiny_patch16_224] [--batches 1,8,64] [--compile] [--json FILE]

``ours N``: codes of N bits, turned back into float32 weights at every call. ``torchao ...``: int8 weights, or int8 weights
and int8 activations, of the same layers; only where torchao is installed, which the package itself does not use.
All variants take turns in each round, and a ratio is the median over the rounds, so that other work on the machine affects
all alike. Random images and weights: speed does not depend on them.

Seen with torch 2.15 and torchao 0.18, one thread of a CPU with VNNI that other work shared (good to about 0.2): DeiT-Tiny at
batch 1 ours 8 1.03 to 1.06, 6 1.18, 4 1.06; at batch 8 ours 8 1.06, 6 1.08, 4 1.12; torchao's int8 weights 1.03 to 1.07, its
int8 weights and activations 1.07 to 1.40. Only torch.compile makes the last one fast: 0.53 in one block of it at batch 8
(float32 compiled 0.97, int8 weights compiled 0.97). It rounds activations too, and its accuracy and its speed in a whole and
in a low-rank model have not been measured, so the package has no such path.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import re
import time
from pathlib import Path
from statistics import median
from typing import Any

import timm
import torch
from torch import Tensor, nn

from benchmarks.output import show, write
from lowrank_vit import BLOCK_LINEARS, quantize
from lowrank_vit.modules.counting import input_size
from lowrank_vit.runtime.errors import amount

BITS = (8, 7, 6, 4, 2)
COMPILED = ("float32", "ours 8", "torchao int8 weights", "torchao int8 both")


def _is_site(module: nn.Module, name: str) -> bool:
    return isinstance(module, nn.Linear) and re.search(BLOCK_LINEARS, name) is not None


def torchao_variants(model: nn.Module) -> dict[str, nn.Module]:
    """Make copies with the same layers in torchao's int8: weights only, and weights and activations."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, quantize_

    configs = {"weights": Int8WeightOnlyConfig(), "both": Int8DynamicActivationInt8WeightConfig()}
    variants = {}
    for name, config in configs.items():
        variants[f"torchao int8 {name}"] = copy.deepcopy(model)
        quantize_(variants[f"torchao int8 {name}"], config, filter_fn=_is_site)
    return variants


def seconds_of_rounds(variants: dict[str, nn.Module], images: Tensor, rounds: int) -> list[dict[str, float]]:
    """Return the seconds of each variant in each round, after an uncounted round, which compiles."""
    results: list[dict[str, float]] = []
    with torch.inference_mode():
        for _ in range(rounds + 1):
            results.append({})
            for name, model in variants.items():
                start = time.perf_counter()
                model(images)
                results[-1][name] = time.perf_counter() - start
    return results[1:]


def measure(variants: dict[str, nn.Module], images: Tensor, rounds: int) -> dict[str, dict[str, float]]:
    """Return ``{"ratio", "seconds"}`` of each variant: medians over the rounds."""
    seconds = seconds_of_rounds(variants, images, rounds)
    return {
        name: {
            "ratio": median(one[name] / one["float32"] for one in seconds),
            "seconds": median(one[name] for one in seconds),
        }
        for name in variants
    }


def main() -> None:
    """Measure all variants and print the table."""
    parser = argparse.ArgumentParser(description="Speed of quantised weights against float32.")
    parser.add_argument("--model", default="deit_tiny_patch16_224")
    parser.add_argument("--batches", default="1,8,64", metavar="B,B,...")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--compile", action="store_true", help="torch.compile's form of some variants, too")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    model = timm.create_model(args.model).eval()
    size = input_size(model)
    assert size is not None
    variants = {"float32": model, **{f"ours {bits}": quantize(model, bits)[0] for bits in BITS}}
    if importlib.util.find_spec("torchao"):
        variants |= torchao_variants(model)
    if args.compile:
        for name in [name for name in COMPILED if name in variants]:
            variants[f"{name}, compiled"] = copy.deepcopy(variants[name])
            variants[f"{name}, compiled"].compile()
    batches = [int(batch) for batch in args.batches.split(",")]
    rows: dict[int, Any] = {batch: measure(variants, torch.randn(batch, *size), args.rounds) for batch in batches}
    title = f"{args.model}, {amount(torch.get_num_threads(), 'thread')}: float32 is 1"
    header = ("weights", *(f"batch {batch}" for batch in batches))
    lines = [[name, *(f"{rows[batch][name]['ratio']:.2f}" for batch in batches)] for name in variants]
    show(title, header, lines)
    write(args.json, title, header, lines, {"model": args.model, "batches": rows})


if __name__ == "__main__":
    main()

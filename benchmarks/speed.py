"""Speed of compressed DeiT-S and DeiT-B shapes beside the dense models, as a share of the saved multiply-accumulates.

    python -m benchmarks.speed [--models deit_small_patch16_224,deit_base_patch16_224] [--reductions 0.5,0.6]
                               [--batches 1,8,64] [--modes eager,compiled] [--matmul-precision medium] [--clock cpu]
                               [--runtime torch,compile,onnxruntime,openvino]

Weights are random, as speed does not depend on them; the shapes are real: ``matrices`` has one rank for every layer, as
``svd_llm`` (U V^T, two products for one); ``halves`` has the widths that ``best`` chose for each head and MLP of DeiT-Tiny at
-50 %, scaled to the model and the reduction; ``halves, 8`` has them in multiples of 8, as ``--rank-multiple 8`` gives them;
``pivoted`` has wider ones, since its factors hold identities, which are neither stored nor counted.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from benchmarks.output import show, write
from lowrank_vit import benchmark, find_sites
from lowrank_vit.compression.runtimes import settings
from lowrank_vit.modules.counting import parameter_count
from lowrank_vit.modules.low_rank_attention import LowRankAttention
from lowrank_vit.modules.low_rank_linear import LowRankLinear, SmallMlp
from lowrank_vit.modules.pivoted_linear import pivot
from lowrank_vit.modules.surgery import get_linear, replace_module
from lowrank_vit.runtime.errors import amount
from lowrank_vit.runtime.hardware import resolve_device
from lowrank_vit.stages.evaluate.speed import CLOCKS

HEAD, HIDDEN = 64, 768  # of DeiT-Tiny
# query-key and value directions of each head, hidden units: what `compress --recipe best --reduction 0.5` left of its blocks
WIDTHS = (
    ((15, 8, 20), (13, 48, 62), 579),
    ((28, 17, 10), (44, 26, 23), 389),
    ((11, 12, 31), (27, 27, 33), 405),
    ((28, 16, 17), (42, 20, 31), 281),
    ((20, 40, 21), (28, 33, 24), 203),
    ((12, 28, 19), (25, 6, 30), 217),
    ((19, 21, 31), (29, 35, 31), 406),
    ((22, 19, 23), (38, 37, 39), 534),
    ((30, 20, 23), (50, 49, 51), 564),
    ((15, 23, 13), (54, 55, 61), 470),
    ((15, 14, 16), (51, 56, 61), 152),
    ((10, 11, 15), (49, 49, 55), 123),
)


def matrices(name: str, share: float, multiple: int) -> nn.Module:
    """Make a model with every linear layer of the blocks as U V^T, with ``share`` of its parameters."""
    model = timm.create_model(name).eval()
    for site in find_sites(model):
        n, d = site.in_features, site.out_features
        rank = max(1, int(share * n * d / (n + d)) // multiple * multiple)
        bias = get_linear(model, site).bias is not None
        replace_module(model, site.name, LowRankLinear(n, d, rank, bias))
    return model


def scaled(widths: Sequence[int], heads: int, share: float, multiple: int) -> list[int]:
    """Return the widths of DeiT-Tiny's heads, repeated for ``heads`` heads and scaled; their sum is a multiple."""
    chosen = [min(HEAD, max(1, round(share * widths[head % len(widths)]))) for head in range(heads)]
    while sum(chosen) % multiple:
        chosen[chosen.index(max(chosen))] -= 1
    return chosen


def halves(name: str, share: float, multiple: int) -> nn.Module:
    """Make a model with every attention module and MLP at ``share`` of the widths that ``best`` chose at -50 %."""
    model = timm.create_model(name).eval()
    sites = {site.name: site for site in find_sites(model)}
    for block, (query_key, value, hidden) in enumerate(WIDTHS):
        mlp = sites[f"blocks.{block}.mlp.fc1"]
        width, units = mlp.in_features, mlp.out_features
        queries, values = (scaled(one, width // HEAD, share, multiple) for one in (query_key, value))
        replace_module(model, f"blocks.{block}.attn", LowRankAttention(width, queries, values, HEAD**-0.5))
        kept = max(multiple, min(units, int(share * hidden * units / HIDDEN)) // multiple * multiple)
        act = model.get_submodule(f"blocks.{block}.mlp.act")
        replace_module(model, f"blocks.{block}.mlp", SmallMlp(width, kept, width, True, act))
    return model.eval()


VARIANTS: dict[str, tuple[Callable[[str, float, int], nn.Module], int, bool]] = {  # how it is made, multiple, pivoted
    "matrices": (matrices, 1, False),
    "halves": (halves, 1, False),
    "halves, 8": (halves, 8, False),
    "pivoted": (halves, 1, True),
}


def identities(model: nn.Module) -> int:
    """Count the parameters that attention no longer stores once its factors are pivoted."""
    attentions = [module for module in model.modules() if isinstance(module, LowRankAttention)]
    return sum(width**2 for each in attentions for width in (*each.query_key.widths, *each.value.widths))


def reduced(name: str, variant: str, reduction: float) -> nn.Module:
    """Make the largest model of this kind that has lost ``reduction`` of the dense one's parameters."""
    make, multiple, pivoted = VARIANTS[variant]
    target = (1 - reduction) * parameter_count(timm.create_model(name))
    low, high = 0.0, 2.0
    with torch.device("meta"):
        for _ in range(12):
            middle = (low + high) / 2
            model = make(name, middle, multiple)
            count = parameter_count(model) - (identities(model) if pivoted else 0)
            low, high = (middle, high) if count <= target else (low, middle)
    model = make(name, low, multiple)
    if pivoted:
        for parameter in model.parameters():
            nn.init.normal_(parameter)  # zeros have no pivots
        pivot(model)
    return model


HEADER = (
    "model", "params", "mode", "batch", "ms", "speed-up (quartiles)", "MACs' ratio", "share %", "memory MiB", "file MiB",
)  # fmt: skip


def lines(results: dict[str, Any]) -> list[list[str]]:
    """Return a line for each variant and setting."""
    dense = next(iter(results["macs"]))
    found = []
    for row in results["rows"]:
        for variant, macs in results["macs"].items():
            measured = row[variant]
            cells = [variant, f"{results['params'][variant] / 1e6:.2f}M", f"{row['device']} {row['mode']}"]
            cells += [str(row["batch"]), f"{1e3 * measured['seconds']:.1f}"]
            if variant == dense:
                cells += [""] * 3
            else:
                low, high = measured["speedup_quartiles"]
                cells.append(f"{measured['speedup']:.2f} ({low:.2f}-{high:.2f})")
                cells += [f"{results['macs'][dense] / macs:.2f}", f"{100 * measured['share_of_mac_ratio']:.0f}"]
            sizes = (measured["peak_memory_bytes"], measured.get("file_bytes"))
            found.append([*cells, *("" if size is None else f"{size / 2**20:.1f}" for size in sizes)])
    return found


def main() -> None:
    """Measure all models and print the tables."""
    parser = argparse.ArgumentParser(description="Speed of compressed shapes beside the dense models.")
    parser.add_argument("--models", default="deit_small_patch16_224,deit_base_patch16_224", metavar="NAME,...")
    parser.add_argument("--reductions", default="0.5,0.6", metavar="R,...")
    parser.add_argument("--variants", default=";".join(VARIANTS), metavar="NAME;...", help="(default: all)")
    parser.add_argument("--batches", default="1,8,64", metavar="B,...")
    parser.add_argument("--modes", default="eager,compiled", metavar="MODE,...")
    parser.add_argument(
        "--runtime", metavar="NAME,...", help="in place of --modes: torch, compile, onnxruntime, openvino"
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seconds", type=float, default=30.0, help="for all models in one setting")
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall")
    parser.add_argument("--matmul-precision", choices=("highest", "high", "medium"), default="highest")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_float32_matmul_precision(args.matmul_precision)
    modes, batches = (args.runtime or args.modes).split(","), [int(batch) for batch in args.batches.split(",")]
    chosen = settings(args.device, modes, batches)
    results: dict[str, Any] = {}
    told: list[list[str]] = []
    for name in args.models.split(","):
        models = {"dense": timm.create_model(name).eval()}
        for reduction in args.reductions.split(","):
            for variant in args.variants.split(";"):
                models[f"-{100 * float(reduction):g} % {variant}"] = reduced(name, variant, float(reduction))
        results[name] = benchmark(models, chosen, seconds=args.seconds, clock=args.clock, progress=True)
        show(f"{name}, {settings_told(results[name])}", HEADER, lines(results[name]))
        told += [[f"{name} {first}", *rest] for first, *rest in lines(results[name])]
    title = f"Speed beside the dense models, {settings_told(next(iter(results.values())))}"
    write(args.json, title, HEADER, told, results, resolve_device(args.device))


def settings_told(results: dict[str, Any]) -> str:
    """Describe how the times were taken."""
    return f"{amount(results['threads'], 'thread')}, {results['clock']} clock, {results['matmul_precision']} precision"


if __name__ == "__main__":
    main()

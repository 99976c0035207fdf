"""What every recipe, training, quantiser and token rule makes of a small model: the golden numerics.

``python -m tests.numerics`` computes all cases anew, and says which differ from ``tests/golden/numerics.json`` and whose
revision is to be raised. ``--record`` writes the file anew; it refuses while a case differs whose revisions and recipe are
those that are recorded. ``--record --equal`` takes changes that are no larger than between machines.
"""

import argparse
import copy
import functools
import hashlib
import json
import platform
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor, nn

from lowrank_vit import (
    RECIPES,
    Recipe,
    analyse,
    compress,
    compress_and_quantize,
    compress_with_fewer_tokens,
    distill,
    evaluate,
    fewer_tokens,
    finetune,
    get_recipe,
    learn,
    mean_scan,
    quantize,
    revisions_of,
)
from lowrank_vit.compression.recipes import FULL_FORMS, RENAMED
from lowrank_vit.data import ImageData
from lowrank_vit.modules.counting import multiply_accumulates, parameter_count
from lowrank_vit.stages.compensate import COMPENSATIONS
from lowrank_vit.stages.quantize import QUANTIZERS
from lowrank_vit.stages.tokens import TOKENS
from tests.support.finetuning import TinyData
from tests.support.hardware import on_cpu
from tests.support.models import images, outputs, tiny
from tests.support.vmambas import maps, vmamba

GOLDEN = Path(__file__).parent / "golden" / "numerics.json"
NEAR = 2e-3  # how far numbers may differ between machines, relatively; on one machine they are equal to the bit
CUT = ("calibrate", "cut", "evaluate", "plan")
Made = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One thing that is made: ``parts`` of the engine and methods behind it, beside its recipe.

    ``chaotic``: other machines make something else of it, since the last bits of equal scores decide.
    """

    make: Callable[[], Made]
    parts: tuple[str, ...]
    recipe: Recipe | None = None
    chaotic: bool = False

    def made_by(self) -> Made:
        """Its recipe and revisions."""
        return {
            "recipe": None if self.recipe is None else self.recipe.record(),
            "revisions": revisions_of(self.parts, self.recipe),
        }


class DoubleData(TinyData):
    """Images in float64, always the same."""

    def __init__(self) -> None:
        super().__init__(noise=0.0)

    def train_dataloader(self) -> Any:
        loader = super().train_dataloader()
        loader.dataset.images = loader.dataset.images.double()
        return loader

    def val_dataloader(self) -> Any:
        loader = super().val_dataloader()
        loader.dataset.images = loader.dataset.images.double()
        return loader


def described(model: nn.Module, seen: Tensor, report: Mapping[str, Any] | None = None, **losses: float) -> Made:
    """Sizes, losses and weights of what was made; ``seen``: images that it answers."""
    report = report or {"layers": []}
    state = model.state_dict()
    found = {layer["name"]: layer for layer in report["layers"]}
    numbers = {
        f"{name}.{field}": layer[field]
        for name, layer in found.items()
        for field in ("relative_error", "relative_error_held_out")
        if layer.get(field) is not None
    }
    refit = report.get("refit", {})
    numbers |= {f"refit.{name}": value for name, value in refit.items() if isinstance(value, float)}
    size = tuple(seen.shape[1:])
    return {
        "sizes": {
            "parameters": parameter_count(model),
            "macs": multiply_accumulates(model, size),
            **{name: layer.get("rank") for name, layer in found.items()},
        },
        "losses": {**numbers, **losses},
        "outputs": [value for row in outputs(model, seen).double().tolist() for value in row],
        "weights": {name: float(tensor.double().norm()) for name, tensor in state.items()},
        "bytes": digest(state),
    }


def digest(state: Mapping[str, Tensor]) -> str:
    """A hash of all values."""
    hashed = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        hashed.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return hashed.hexdigest()[:16]


def compressed(recipe: Recipe, kind: str = "vit", double: bool = True, size: Any = 0.4) -> Made:
    """A model compressed in one call."""
    model, data, unseen = tiny(kind), images(24, kind), images(8, kind, seed=2)
    if double:
        model, data, unseen = model.double(), data.double(), unseen.double()
    target = 1 - size if isinstance(size, float) else 0.5
    analysis = analyse(model, data.split(8), recipe, held_out=[unseen], device="cpu", target=target)
    small, report = analysis.compress(size)
    predicted = {
        f"{curve.name}.predicted": float(torch.as_tensor(curve.errors).double().mean()) for curve in analysis.curves
    }
    return described(small, unseen[:2], report, **predicted)


def learnt(recipe: Recipe) -> Made:
    """A full form after one epoch on labels."""
    model, unseen = tiny().double(), images(2, seed=2).double()
    options = on_cpu(epochs=1, precision="64-true", teacher=tiny().double(), seed=0)
    found = learn(model, DoubleData(), recipe, 0.3, **options)
    small, report = compress(model, [images(24).double()], recipe, 0.3, learnt=found, device="cpu")
    return described(small, unseen, report)


@functools.cache
def student() -> tuple[nn.Module, Mapping[str, Any]]:
    """What trainings and roundings begin with."""
    return compress(tiny().double(), [images(24).double()], "exact", 0.5, device="cpu")


def tuned(**options: Any) -> Made:
    """A fine-tune of one epoch."""
    start, report = student()
    settings = on_cpu(epochs=1, precision="64-true", lr=1e-2, **options)
    done = finetune(copy.deepcopy(start), DoubleData(), **settings)
    return described(done.model, images(2, seed=2).double(), report, top1=float(done.val_top1 or 0.0))


def distilled() -> Made:
    """A distillation of one epoch."""
    start, report = student()
    settings = on_cpu(epochs=1, precision="64-true", lr=1e-3)
    data, unseen = images(45).double(), images(8, seed=2).double()
    done = distill(copy.deepcopy(start), tiny().double(), data, held_out=unseen, **settings)
    return described(done.model, unseen[:2], report, **done.describe()["kl_held_out"])


def rounded(quantizer: str, bits: int) -> Made:
    """A compressed model, rounded."""
    start, report = student()
    small, _ = quantize(start, bits, [images(24).double()], quantizer=quantizer)
    return described(small, images(2, seed=2).double(), report)


def jointly() -> Made:
    """Sizes and bits chosen together."""
    data, unseen = [images(24).double()], [images(8, seed=2).double()]
    small, report = compress_and_quantize(
        tiny().double(), data, "bytes=9KiB", JOINT, bits=(3, 4, 8), held_out=unseen, device="cpu"
    )
    return described(small, unseen[0][:2], report)


def with_tokens(rule: str) -> Made:
    """Fewer tokens by a rule, which one epoch trains where it learns."""
    training = on_cpu(epochs=1, precision="64-true", seed=0)
    learning: dict[str, Any] = {}
    options: dict[str, Any] = {"tome": {"r": 3}, "merge": {"pairs": (2, 3)}}.get(rule, {"keep": 0.5})
    if rule == "spvit-kong":
        learning = {"learn_on": DoubleData(), "training": training}
    elif rule == "spvit-kong-gates":
        learning = {"learn_on": [images(24).double()], "training": training}
    small = fewer_tokens(tiny().double(), rule, **options, **learning)
    return described(small, images(2, seed=2).double())


def shared() -> Made:
    """A budget shared between tokens and sizes."""
    data, unseen = [images(24).double()], [images(8, seed=2).double()]
    small, report = compress_with_fewer_tokens(tiny().double(), data, "macs=0.6", BEST, held_out=unseen, device="cpu")
    return described(small, unseen[0][:2], report)


def scanned(recipe: Recipe | None, **changes: Any) -> Made:
    """A VMamba whose scans are replaced, or that is compressed with scans among its units."""
    model, data, unseen = vmamba().double(), maps(24).double(), maps(2, seed=2).double()
    if recipe is not None:
        small, report = compress(model, data.split(8), recipe, 0.4, device="cpu")
        return described(small, unseen, report)
    from lowrank_vit import MeanScan

    labels = outputs(model, data).argmax(1)
    batches = list(zip(data.split(8), labels.split(8), strict=True))
    small, report = mean_scan(model, batches, layers=2, method=MeanScan(**changes), device="cpu")
    impact = {f"{name}.kl": each["kl"] for name, each in report["scan"]["impact"].items()}
    return described(small, unseen, None, **impact)


def customised(delta: str) -> Made:
    """A small diffusion model customised by two steps, and what it draws."""
    from lowrank_vit.customize.sample import sample
    from lowrank_vit.customize.train import Training, train
    from tests.support.diffusion import attached, small

    model = small(torch.float32)
    customization = attached(model, delta)
    examples = images(4)
    train(customization, examples, "normal V* digit", Training(2, 2), seed=0, progress=False)
    drawn = sample(model, ["normal V* digit"], "V*", steps=2, seed=0, progress=False)
    tensors = dict(customization.tensors)
    return {
        "sizes": {"parameters": sum(tensor.numel() for tensor in tensors.values())},
        "losses": {},
        "outputs": drawn.double().flatten()[::8].tolist(),
        "weights": {name: float(tensor.detach().norm()) for name, tensor in tensors.items()},
        "bytes": digest({name: tensor.detach() for name, tensor in tensors.items()}),
    }


def drawn() -> Made:
    """The images that calibration and evaluation are given, and the accuracy of an untrained stand-in on some."""
    model = timm.create_model("digits_deit_small").eval()
    data = ImageData("digits", timm.data.resolve_model_data_config(model), seed=3, calibration_samples=64, limit=50)
    seen = data.calibration_tensor()
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.data = 0.2 * torch.randn_like(parameter)
    scores, chosen = evaluate(model, data, **on_cpu()), list(map(int, data.calibration_indices))
    return {
        "sizes": {"images": len(seen), "indices": sum(place * index for place, index in enumerate(chosen))},
        "losses": {name: float(scores[name]) for name in ("top1", "top5", "loss")},
        "outputs": seen.double().mean((1, 2, 3)).tolist(),
        "weights": {},
        "bytes": digest({"images": seen}),
    }


def standin() -> Made:
    """The smallest stand-in, as it is trained where none is cached."""
    from lowrank_vit.models.standin_training import train_standin

    model = train_standin("digits_deit_small", 0)
    return described(model, torch.linspace(-1, 1, 128).view(2, 1, 8, 8))


BEST = get_recipe("best")
EVERYTHING = BEST.but(patches="two_sided", positions="kronecker", folded=True, pivoted=True)
JOINT = BEST.but(patches="two_sided", refit=False, measured=0)


def cases() -> dict[str, Case]:
    """All cases by name."""
    return dict(_cases())


def _cases() -> Iterator[tuple[str, Case]]:
    vit, train = "family.vit", (*CUT, "train")
    for name, recipe in [*RECIPES.items(), *((name, get_recipe(name)) for name in RENAMED)]:
        short = recipe.but(steps=20) if recipe.compensation is not None else recipe
        parts = (*CUT, vit, *(["compensate"] if recipe.compensation else []), *(["train"] if recipe.gradual else []))
        yield name, Case(functools.partial(compressed, short), parts, short, chaotic=name == "wdp-gates")
    for name, recipe in FULL_FORMS.items():
        yield name, Case(functools.partial(learnt, recipe), (*train, vit), recipe)
    for kind in COMPENSATIONS.names():
        for solver in ("closed_form", "moments", "minibatch"):
            z = get_recipe("paper").but(
                compensation=kind, solver=solver, steps=5, optimizer="sgd" if kind == "diagonal" else None
            )
            yield f"{kind} Z by {solver}", Case(functools.partial(compressed, z), (*CUT, vit, "compensate"), z)
    for allocator in ("greedy", "equal_error", "uniform", "paper"):
        exact = get_recipe("exact").but(allocator=allocator)
        yield f"exact, {allocator}", Case(functools.partial(compressed, exact), (*CUT, vit), exact)
    yield "best, everything", Case(functools.partial(compressed, EVERYTHING), (*CUT, vit), EVERYTHING)
    yield "best, macs", Case(functools.partial(compressed, BEST, size={"macs": 0.6}), (*CUT, vit), BEST)
    yield "best, bytes", Case(functools.partial(compressed, BEST, size={"bytes": "12KiB"}), (*CUT, vit), BEST)
    for name in ("best", "loss_aware", "paper_charitable"):
        recipe = RECIPES[name].but(steps=20)
        single = functools.partial(compressed, recipe, double=False)
        yield f"{name}, float32", Case(single, (*CUT, vit, "compensate"), recipe)
    for name in ("best", "corp", "vtp-gates"):
        swin = functools.partial(compressed, RECIPES[name], "swin")
        parts = (*CUT, "family.swin", *(["train"] if RECIPES[name].gradual else []))
        yield f"{name}, swin", Case(swin, parts, RECIPES[name])
    features = BEST.but(objective="features")
    yield "best, features", Case(functools.partial(compressed, features, size=0.3), (*CUT, vit), features)
    labels = get_recipe("heads").but(objective="multi_label")
    yield "several labels", Case(functools.partial(compressed, labels), (*CUT, vit), labels)
    yield "fine-tune", Case(tuned, (*train, vit))
    yield "full fine-tune", Case(functools.partial(tuned, full=True, teacher=tiny().double()), (*train, vit))
    yield "distillation", Case(distilled, (*train, vit))
    for quantizer in QUANTIZERS.names():
        for bits in (8, 3):
            rounding = functools.partial(rounded, quantizer, bits)
            yield f"{quantizer}, {bits} bits", Case(rounding, ("quantise", f"quantizer.{quantizer}"))
    yield "sizes and bits", Case(jointly, (*CUT, vit, "quantise", "quantizer.gptq"), JOINT)
    for rule in TOKENS.names():
        parts = (f"tokens.{rule}", vit, *(["train"] if rule.startswith("spvit") else []))
        yield f"tokens by {rule}", Case(functools.partial(with_tokens, rule), parts)
    yield "sizes and tokens", Case(shared, (*CUT, vit, "tokens.tome"), BEST)
    yield "mean scans", Case(functools.partial(scanned, None, refit="dropped"), ("scans", "family.vmamba"))
    yield (
        "mean scans, directions",
        Case(functools.partial(scanned, None, refit="directions"), ("scans", "family.vmamba")),
    )
    yield "best, vmamba", Case(functools.partial(scanned, BEST), (*CUT, "family.vmamba"), BEST)
    from lowrank_vit.customize.deltas import DELTAS

    for delta in DELTAS.names():
        yield f"customised by {delta}", Case(functools.partial(customised, delta), ("customize",))
    yield "images", Case(drawn, ("images", "evaluate"))
    yield "stand-in", Case(standin, ("standins",), chaotic=True)


def compute(case: Case) -> Made:
    """Make a case, on one thread; the numbers as JSON has them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        torch.manual_seed(0)
        made = json.loads(json.dumps(case.make(), default=float))
        return {**case.made_by(), **made, "exactly": hashlib.sha256(json.dumps(made).encode()).hexdigest()[:16]}
    finally:
        torch.set_num_threads(threads)


def machine() -> str:
    """Name what must be the same for equal bytes."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    named = {line.partition(":")[0].strip(): line.partition(":")[2].strip() for line in lines}
    words = [named.get(field, "") for field in ("vendor_id", "cpu family", "model", "stepping")]
    words += [flag for flag in named.get("flags", "").split() if flag.startswith(("avx", "amx", "fma"))]
    return f"{platform.machine()} {' '.join(words)}, torch {torch.__version__}, numpy {np.__version__}"


def difference(made: Mapping[str, Any], known: Mapping[str, Any], tolerance: float) -> str:
    """Say what differs; nothing where all is equal to the tolerance."""
    if made["sizes"] != known["sizes"]:
        both = made["sizes"].keys() | known["sizes"].keys()
        changed = [name for name in sorted(both) if made["sizes"].get(name) != known["sizes"].get(name)]
        return f"sizes of {', '.join(changed[:4])}"
    for field in ("losses", "weights"):
        if made[field].keys() != known[field].keys():
            return f"names of {field}: {', '.join(sorted(made[field].keys() ^ known[field].keys())[:4])}"
        scale = max((abs(value) for value in known[field].values()), default=0.0)
        for name, value in known[field].items():
            least = scale * 1e-6 if field == "losses" else 0.0
            if abs(made[field][name] - value) > tolerance * max(abs(value), least, 1e-12):
                return f"{field} of {name}: {made[field][name]:.8g}, was {value:.8g}"
    scale = max((abs(value) for value in known["outputs"]), default=0.0)
    gap = max((abs(a - b) for a, b in zip(made["outputs"], known["outputs"], strict=True)), default=0.0)
    return f"outputs by {gap / scale:.1e} of the largest" if gap > tolerance * scale else ""


def recorded() -> Made:
    """The golden file; ``{}`` where there is none yet."""
    return json.loads(GOLDEN.read_text(encoding="utf-8")) if GOLDEN.exists() else {}


def to_raise(changed: Mapping[str, Case], equal: Mapping[str, Case]) -> list[str]:
    """Name the likeliest parts behind all that changed: in as many changed cases as possible, in as few equal ones."""
    behind = {name: set(case.made_by()["revisions"]) for name, case in (changed | equal).items()}
    left, named = set(changed), list[str]()
    while left:
        parts = sorted(set().union(*(behind[name] for name in left)))
        innocent = {part: sum(part in behind[name] for name in equal) / max(len(equal), 1) for part in parts}
        guilty = {part: sum(part in behind[name] for name in left) / len(left) for part in parts}
        named.append(max(parts, key=lambda part: guilty[part] - innocent[part]))
        left = {name for name in left if named[-1] not in behind[name]}
    return named


def check(chosen: Mapping[str, Case]) -> tuple[dict[str, str], dict[str, Made]]:
    """Compute cases; returns what differs by name, and what was made."""
    golden = recorded()
    here, made, differing = golden.get("machine") == machine(), {}, {}
    for name, case in chosen.items():
        made[name], known = compute(case), golden.get("cases", {}).get(name)
        if known is None:
            differing[name] = "not recorded"
        elif (said := difference(made[name], known, NEAR)) and (here or not case.chaotic or said.startswith("sizes")):
            differing[name] = said
        elif here and made[name]["exactly"] != known["exactly"]:
            differing[name] = f"{SLIGHTLY}{difference(made[name], known, 1e-9) or 'in the last bits'}"
        elif made[name]["revisions"] != known["revisions"]:
            differing[name] = RAISED
    return differing, made


SLIGHTLY = "no more than between machines: "
RAISED = "nothing but the revisions: record them"


def verdict(differing: Mapping[str, str], chosen: Mapping[str, Case]) -> str:
    """Say what differs, and what to do."""
    golden = recorded().get("cases", {})
    changed = {name: chosen[name] for name in differing if name in golden and differing[name] != RAISED}
    lines = [f"{name}: {said}" for name, said in differing.items()]
    same = {name: case for name, case in changed.items() if case.made_by()["recipe"] == golden[name]["recipe"]}
    if same:
        equal = {name: case for name, case in chosen.items() if name not in differing}
        lines.append(f"raise the revision of {', '.join(to_raise(same, equal))}")
    if changed.keys() - same.keys():
        lines.append(
            f"the recipes of {', '.join(sorted(changed.keys() - same.keys()))} have changed, which is told by itself"
        )
    return "\n".join([*lines, "then record: python -m tests.numerics --record"])


def unraised(differing: Mapping[str, str], made: Mapping[str, Made], equal_too: bool) -> list[str]:
    """Name the cases that differ although neither a revision nor the recipe has changed."""
    golden = recorded().get("cases", {})
    free = ("not recorded", RAISED, *([SLIGHTLY] if equal_too else []))
    return [
        name
        for name, said in differing.items()
        if not said.startswith(free) and all(made[name][key] == golden[name][key] for key in ("revisions", "recipe"))
    ]


def write(made: Mapping[str, Made]) -> None:
    """Write the golden file: a line for each field of a case."""
    lines = [f' "machine": {json.dumps(machine())},', ' "cases": {']
    for name, case in made.items():
        fields = [f"   {json.dumps(key)}: {json.dumps(_short(value))}" for key, value in case.items()]
        lines.append(
            f"  {json.dumps(name)}: {{\n" + ",\n".join(fields) + "\n  }" + ("," if name != list(made)[-1] else "")
        )
    GOLDEN.write_text("\n".join(["{", *lines, " }", "}"]) + "\n", encoding="utf-8")


def _short(value: Any) -> Any:
    """Round numbers to nine digits."""
    if isinstance(value, float):
        return float(f"{value:.9g}")
    if isinstance(value, dict):
        return {name: _short(item) for name, item in value.items()}
    return [_short(item) for item in value] if isinstance(value, list) else value


def main() -> None:
    """Compare, or record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--record", action="store_true", help="write the golden file anew")
    parser.add_argument(
        "--equal", action="store_true", help="with --record: numbers that differ no more than between machines, too"
    )
    parser.add_argument("--only", metavar="TEXT", help="the cases with this in their names, compared only")
    args = parser.parse_args()
    chosen = {name: case for name, case in cases().items() if args.only is None or args.only in name}
    differing, made = check(chosen)
    if not args.record or args.only:
        print(verdict(differing, chosen) if differing else f"{len(chosen)} cases are as recorded")
        sys.exit(bool(differing))
    if left := unraised(differing, made, args.equal):
        print(verdict({name: differing[name] for name in left}, chosen))
        sys.exit("nothing recorded: these differ, and no revision was raised for them")
    write(made)


if __name__ == "__main__":
    main()

"""Fewer tokens in a dense or compressed model, as a last step."""

from bisect import bisect_left
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningDataModule
from torch import nn

from lowrank_vit.compression.report import dense_report
from lowrank_vit.modules.counting import input_size, multiply_accumulates, parameter_count, saved_bytes
from lowrank_vit.modules.token_block import TokenBlock
from lowrank_vit.records.images import Batches, Images
from lowrank_vit.records.report import plain
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.hardware import ONE_PROCESS, Hardware
from lowrank_vit.runtime.processes import agreed, is_first
from lowrank_vit.stages.tokens import TOKENS, LearntRule, TokenRule
from lowrank_vit.stages.tokens.train_selectors import learn_selectors

NOTHING: Mapping[str, Any] = {}


def fewer_tokens(
    model: nn.Module,
    rule: str = "tome",
    *,
    macs: float | None = None,
    learn_on: Batches | Images | LightningDataModule | None = None,
    training: Mapping[str, Any] = NOTHING,
    **options: Any,
) -> nn.Module:
    """Return a copy of a plain ViT that hands on fewer tokens: multiply-accumulates are saved, parameters are not.

    ``rule``: ``"tome"`` (``r`` pairs merged in every block), ``"evit"`` (``keep``, the share kept after three blocks), or
    selectors that learn what to keep, which add some parameters: ``"spvit-kong-gates"`` (``keep``, its square and its third
    power), which learns on calibration images, ``learn_on``, without labels, and ``"spvit-kong"``, which trains the weights,
    too, on labelled ones; the model itself is the teacher of both. ``training``: the settings of
    ``learn_selectors``, such as ``epochs``, ``lr``, ``seed`` and ``checkpoint_dir``.
    ``macs`` chooses the strength: the least that leaves this share of the dense model's multiply-accumulates.
    The copy has a report, of the model as it was, with its multiply-accumulates counted anew and the rule in ``tokens``.
    Raises ``InputError`` for an unknown rule or option, a share that the rule cannot reach, for a model whose tokens must
    stay or are fewer already, and for a rule that has not the images to learn on that it needs.
    """
    method = TOKENS.get(rule)
    try:
        made = method(**options)
    except TypeError as error:
        raise InputError(f"the token rule {rule!r} does not take these options ({error})") from None
    if any(isinstance(module, TokenBlock) for module in model.modules()):
        raise InputError("the model hands on fewer tokens already: start from the one that it was made from")
    _check_images(rule, made, learn_on)
    chosen = made if macs is None else _within(model, made, rule, macs)
    small: Any = chosen(model)
    described = _learnt(small, model, chosen, learn_on, training) if isinstance(chosen, LearntRule) else {}
    report: Any = getattr(model, "compression_report", None) or dense_report(model)
    if (size := input_size(model)) is not None:
        report = {**report, "macs": {**report["macs"], "compressed": multiply_accumulates(small, size)}}
    if described:
        report = report | _sizes(report, small)
    small.compression_report = {**report, "tokens": {"rule": rule, **plain(vars(chosen)), **described}}
    return small


def _check_images(name: str, rule: TokenRule, images: Any) -> None:
    """Raise ``InputError`` unless a rule that learns has the images that it needs, and another one none."""
    if not isinstance(rule, LearntRule):
        if images is not None:
            raise InputError(f"the token rule {name!r} learns nothing: leave out learn_on")
    elif images is None or (isinstance(images, LightningDataModule) and not rule.labelled):
        needed = "labelled images" if rule.labelled else "batches of calibration images"
        raise InputError(f"the token rule {name!r} learns what to keep: give it {needed} by `learn_on=`")


def _learnt(
    small: nn.Module, model: nn.Module, rule: LearntRule, images: Any, training: Mapping[str, Any]
) -> dict[str, Any]:
    """Train selectors, on calibration images in the first process alone, whose result all get; say how."""
    if rule.labelled:
        from lowrank_vit.data.loading import as_data_module  # with Lightning

        module = as_data_module(images, training.get("hardware", ONE_PROCESS))
        return {"learnt": learn_selectors(small, model, data_module=module, **training)}
    images = Images.of(images)
    device = next(model.parameters()).device
    hardware = Hardware(accelerator="gpu" if device.type == "cuda" else device.type, precision="32-true")
    seen = images.tensor()
    mine = None
    if is_first():
        described = learn_selectors(small, model, images=seen, **{"hardware": hardware, **training})
        mine = (described | {"calibration": images.record}, small.state_dict())
    found = agreed(mine)
    assert found is not None
    small.load_state_dict(found[1])
    return {"learnt": found[0]}


def _sizes(report: Mapping[str, Any], small: nn.Module) -> dict[str, Any]:
    """Count parameters, and the file's bytes where a report has them, anew, those of selectors too."""
    dense, count = report["params"]["dense"], parameter_count(small)
    sizes: dict[str, Any] = {"params": {"dense": dense, "compressed": count, "reduction": 1 - count / dense}}
    if "weights_bytes" in report:
        stored = saved_bytes(small, next(small.parameters()).dtype)
        sizes["weights_bytes"] = {**report["weights_bytes"], "compressed": stored}
    return sizes


def _within(model: nn.Module, rule: TokenRule, name: str, share: float) -> TokenRule:
    """Return the rule at its least strength that leaves ``share`` of the dense model's multiply-accumulates."""
    size = input_size(model)
    rule(model)  # refuses what must keep its tokens
    if size is None:
        raise InputError("the model does not say the size of its images: give the rule's own option instead of macs")
    report: Any = getattr(model, "compression_report", None)
    dense = multiply_accumulates(model, size) if report is None else report["macs"]["dense"]
    strengths = rule.strengths(int(model.patch_embed.num_patches))  # type: ignore[union-attr, arg-type]
    place = bisect_left(strengths, -share * dense, key=lambda each: -multiply_accumulates(each(model), size))
    if place == len(strengths) or share <= 0:
        least = multiply_accumulates(strengths[-1](model), size) / dense
        raise InputError(f"macs={share:g} is out of reach: {name} on this model leaves a share of {least:.4f} or more")
    return strengths[place]
